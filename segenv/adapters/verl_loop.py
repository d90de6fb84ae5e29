"""An agent loop for verl (https://github.com/verl-project/verl), which trains a language model on whole episodes.

Name the class in the file of `actor_rollout_ref.rollout.agent.agent_loop_config_path`; its other keys are the arguments
of `segenv.adapters.chat.make`, each a spec or a number:

    - name: segenv_clicks
      _target_: segenv.adapters.verl_loop.ClickAgentLoop
      tool: sam
      data: synthetic:train
      max_steps: 4

and write the training file from `rows`. One conversation grows through an episode, a picture a step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from uuid import uuid4

from segenv.adapters import chat
from segenv.types import AgentError

try:
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
    from verl.utils.profiler import simple_timer
except ImportError as missing:
    raise ImportError("this adapter needs verl 0.9 or newer: pip install 'segenv[verl]'") from missing

NAME = "segenv_clicks"  # of the loop, in the rows and in the file that names its class
game_of = lru_cache(maxsize=4)(chat.make)  # verl makes a loop an episode, and all share one tool


class ClickAgentLoop(AgentLoopBase):
    """Plays an episode: asks verl's server for a reply, carries it out, and appends the next picture and prompt.

    The reward of the trajectory is the sum of the rewards of the steps. A broken tool raises, which ends the training,
    and so does a reply that the server broke off.
    An episode that outgrows `response_length` ends there, and keeps the rewards up to it.
    """

    def __init__(
        self,
        *parts: Any,
        tool: str = "sam",
        data: str = "synthetic:train",
        codec: str = "segagent",
        reward: str = "iou_gain",
        max_steps: int = 7,
        start: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*parts, **more)
        self.game = game_of(tool, data, codec, reward, max_steps, start)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """Play the episode of the task at `index` of the row."""
        episode = chat.LiveEpisode(self.game, self.game.start(int(row["index"])))
        messages = self.game.conversation(episode.state)
        images = [_picture(messages)]
        self._assert_mm_supported(True)
        tokens = await self.ct_build_initial_tokens(messages, images=images)
        first, room, name = len(tokens), self.rollout_config.response_length, uuid4().hex
        mask: list[int] = []
        logs: list[float] | None = None
        spent: dict[str, float] = {}
        while True:
            left = room - len(mask)
            with simple_timer("generate_sequences", spent):
                reply = await self.server_manager.generate(
                    request_id=name,
                    prompt_ids=tokens,
                    sampling_params={**sampling_params, "max_tokens": left},
                    image_data=images,
                )
            if reply.stop_reason in ("aborted", "abort"):
                raise AgentError(
                    "verl's server broke off a reply, which is no action of the model; with asynchronous training, set "
                    "async_training.partial_rollout=true, so that verl goes on with it"
                )
            merged, mask, logs = await self.ct_merge_assistant_token(
                tokens, reply.token_ids, mask, logs or ([] if reply.log_probs else None), reply.log_probs
            )
            tokens = merged.token_ids
            text = self.tokenizer.decode(reply.token_ids, skip_special_tokens=True)
            with simple_timer("tool_calls", spent):
                episode.answer(text, "length" if len(reply.token_ids) >= left else None)
            if episode.done or len(mask) >= room:
                break
            said = [*messages, {"role": "assistant", "content": text}]
            following = [*said, *self.game.conversation(episode.state)]
            merged, longer, aligned = await self.ct_merge_context_msg(said, following, tokens, mask, logs)
            if len(longer) >= room:
                break
            messages, tokens, mask, logs = following, merged.token_ids, longer, aligned
            images = [*images, _picture(messages)]
        told = episode.record()
        return AgentLoopOutput(
            prompt_ids=tokens[:first],
            response_ids=tokens[first:][:room],
            response_mask=mask[:room],
            response_logprobs=logs[:room] if logs else None,
            multi_modal_data={"images": images},
            reward_score=episode.total,
            num_turns=2 * len(episode.rewards),
            metrics=AgentLoopMetrics(**spent),
            extra_fields={
                "turn_scores": episode.rewards,
                "tool_rewards": [],
                "reward_extra_info": {key: float(told[key]) for key in ("iou", "best_iou", "steps", "stopped")},
            },
        )


def _picture(messages: list[chat.Message]) -> Any:
    """The picture of the last message."""
    return messages[-1]["content"][0]["image"]


def rows(number: int) -> list[dict[str, Any]]:
    """Rows of a training file, as `datasets.Dataset.from_list(rows(1_000)).to_parquet("train.parquet")` writes it: the
    place of a task in the data. The message is a placeholder, since the loop makes its own."""
    prompt = [{"role": "user", "content": "segment"}]
    shared = {"data_source": "segenv", "agent_name": NAME, "prompt": prompt, "reward_model": {"ground_truth": ""}}
    return [{**shared, "extra_info": {"index": index}} for index in range(number)]
