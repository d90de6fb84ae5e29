"""The task `segenv_clicks` of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), an agentic one:

lmms-eval --model openai --model_args model=gpt-4o --tasks segenv_clicks --limit 50 \
    --include_path segenv/adapters/lmms_tasks

Each round is a fresh prompt, the picture of the present state and its text, as the policy is Markov in the mask.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from segenv.adapters import chat
from segenv.types import AgentError, RunError

try:
    from datasets import Dataset, DatasetDict
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.task import ConfigurableTask
except ImportError as missing:
    raise ImportError("this adapter needs lmms-eval 0.7 or newer: pip install 'segenv[lmms]'") from missing

NO_REPLY = "[LMMS_EVAL_"  # begins what lmms-eval's clients write for a model that gave none
Doc = dict[str, Any]


class Pictures(list[Image.Image]):
    """Pictures for a model, which note that they were looked at."""

    read = False

    def __iter__(self) -> Iterator[Image.Image]:
        self.read = True
        return super().__iter__()

    def __getitem__(self, k: Any) -> Any:
        self.read = True
        return super().__getitem__(k)


@dataclass
class Rounds(chat.LiveEpisode):
    """An episode under way, and the pictures of its last round, where it had one."""

    shown: Pictures | None = None


Round = tuple[Pictures | None, str | None, bool, list[str] | None, Rounds]


class ClickTask(ConfigurableTask):
    """Plays episodes. A broken tool, and a server that gives no reply, end the evaluation with an error."""

    game: chat.Chat

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Make the chat, and a row for each of its tasks. Nothing is downloaded."""
        self.game = chat.make(**dataset_kwargs or {})
        self.config.generation_kwargs["max_agentic_steps"] = self.game.mdp.max_steps  # so each episode ends by itself
        ids = list(self.game.ids)
        rows = Dataset.from_dict({"index": list(range(len(ids))), "id": ids})
        self.dataset = DatasetDict({self.config.test_split: rows})
        self.dataset_no_image = self.dataset

    def doc_to_visual(self, doc: Doc) -> list[Image.Image]:
        """The picture of an episode's start."""
        return [self.game.picture(self.game.start(doc["index"]))]

    def doc_to_text(self, doc: Doc) -> str:
        """The prompt of an episode's start."""
        return self.game.prompt(self.game.start(doc["index"]))

    def doc_to_target(self, doc: Doc) -> str:
        """No text: the target is a mask."""
        return ""

    def construct_requests(self, doc_id: int, ctx: str, **more: Any) -> Instance:
        """The request for an episode, whose rounds are those of `round_of`."""
        settings, split = copy.deepcopy(self.config.generation_kwargs), more["metadata"]["split"]
        arguments = (ctx, settings, self.doc_to_visual, self.round_of, doc_id, self.config.task, split)
        return Instance(request_type=self.OUTPUT_TYPE, arguments=arguments, idx=0, **more)

    def round_of(
        self, doc: Doc, previous_output: list[str | None], previous_round_info: Rounds | None, **more: Any
    ) -> Round:
        """Carry out the last reply: the next picture and prompt, or the record of the episode in JSON."""
        episode = previous_round_info or Rounds(self.game, self.game.start(doc["index"]))
        reply = previous_output[-1] or ""  # OpenAI's content is null where a model only thought
        if reply.startswith(NO_REPLY):
            raise AgentError(f"the model gave no reply: {reply}")
        if episode.shown is not None and not episode.shown.read:
            raise RunError(
                "no model looked at this round's picture: lmms-eval's cache gives the reply of an earlier round, since "
                "it knows a request by its text alone; leave out --use_cache"
            )
        episode.answer(reply)
        if episode.done:
            record = json.dumps({**episode.record(), "return": episode.total})
            return None, None, True, [record], episode
        episode.shown = Pictures([self.game.picture(episode.state)])
        return episode.shown, self.game.prompt(episode.state), False, None, episode


def scores(doc: Doc, results: list[str]) -> dict[str, float]:
    """The scores of an episode, from its record."""
    record = json.loads(results[0])
    return {name: float(record[name]) for name in ("iou", "best_iou", "return", "steps")}
