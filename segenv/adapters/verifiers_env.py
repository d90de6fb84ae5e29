"""Environment, tasks and harness for verifiers (https://github.com/PrimeIntellect-ai/verifiers) and prime-rl.

vf-eval segenv-clicks --env.taskset.data synthetic:test -n 50 -m gpt-4o --client.base-url https://api.openai.com/v1 \
    --client.api-key-var OPENAI_API_KEY --no-push

verifiers finds the three classes by the module `segenv_clicks`, since the name of a plugin has no dots. A step is a
conversation of its own, and hence a branch of its own in the trace that verifiers keeps.
"""

from collections.abc import Iterator
from typing import Any

from segenv import render
from segenv.adapters import chat
from segenv.mdp import SegState

try:
    import openai
    import verifiers.v1 as vf
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.runtimes import ProgramResult
except ImportError as missing:
    raise ImportError("this adapter needs verifiers 0.4 or newer: pip install 'segenv[verifiers]'") from missing


class ClicksConfig(vf.TasksetConfig):
    """The arguments of `segenv.adapters.chat.make`."""

    tool: str = "sam"
    data: str = "synthetic:test"
    codec: str = "segagent"
    reward: str = "iou_gain"
    max_steps: int = 7
    start: str | None = None


class ClickState(vf.State):
    """The record of an episode that was played to its end."""

    record: dict[str, Any] | None = None
    total: float = 0.0


class ClickTask(vf.Task[vf.TaskData, ClickState]):
    """An episode to play: its place in the data is the data's `idx`."""

    @property
    def key(self) -> str:
        return self.data.id or super().key

    @vf.reward
    async def episode_return(self, trace: vf.Trace) -> float:
        """The sum of the rewards of the steps. An episode that verifiers cut has none, and raises."""
        self.ended(trace)
        return trace.state.total

    @vf.metric
    async def episode(self, trace: vf.Trace) -> dict[str, float]:
        """The IoU of the last mask, the best one on the way, and the steps."""
        record = self.ended(trace)
        return {name: float(record[name]) for name in ("iou", "best_iou", "steps", "stopped")}

    @staticmethod
    def ended(trace: vf.Trace) -> dict[str, Any]:
        """The record of a whole episode."""
        if trace.state.record is None:
            raise ValueError(
                f"the episode was cut ({trace.stop_condition}) before its end; give it more turns or tokens"
            )
        return trace.state.record


class Clicks(vf.Taskset[ClickTask, ClicksConfig]):
    """The tasks of a dataset, in its order."""

    def __init__(self, config: ClicksConfig) -> None:
        super().__init__(config)
        self.game = chat.make(config.tool, config.data, config.codec, config.reward, config.max_steps, config.start)

    def load(self) -> Iterator[ClickTask]:
        for index, name in enumerate(self.game.ids):
            yield ClickTask(vf.TaskData(idx=index, id=name), self.config.task)


class ClickEnvConfig(vf.EnvConfig):
    """One seat, that of the model which plays. Its runtime starts no program, so the local one does."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class ClickEnv(vf.Env[ClickEnvConfig]):
    """Plays an episode. A broken tool is an error of the episode and of its trace, which have no reward then."""

    async def run(self, task: ClickTask, agents: vf.Agents) -> None:
        game: chat.Chat = self.taskset.game
        async with agents.agent.interaction(task) as exchange:
            episode = chat.LiveEpisode(game, game.start(task.data.idx))
            while not episode.done:
                segment = await exchange.turn(messages(game, episode.state))
                if segment.terminated:
                    return
                reply, call = segment.messages[-1], exchange.trace.calls[-1]
                episode.answer(reply.content or "", call.finish_reason)
            exchange.trace.info["segenv"] = episode.record()
            exchange.trace.state.record, exchange.trace.state.total = episode.record(), episode.total


def messages(game: chat.Chat, state: SegState) -> vf.Messages:
    """The conversation of a state in the types of verifiers."""
    picture = vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url=render.data_url(game.picture(state))))
    return [vf.UserMessage(content=[picture, vf.TextContentPart(text=game.prompt(state))])]


class ClickHarness(vf.Harness[vf.HarnessConfig]):
    """Asks the model for one reply to the last messages alone, and starts no program."""

    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data) -> ProgramResult:
        wire = [message_to_wire(message) for message in data.prompt or []]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as client:
            await client.chat.completions.create(model=ctx.model, messages=wire)
        return ProgramResult(exit_code=0, stdout="", stderr="")

    async def resume(
        self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, messages, tool_interception_url=None
    ) -> ProgramResult:
        present = data.model_copy(update={"prompt": messages})
        return await self.launch(ctx, trace, runtime, endpoint, secret, mcp_urls, present)
