"""Replies of one step for the page of their run: each as an episode of one action."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from agents.base import Agent
from agents.prompted import PromptedAgent
from experiments.common import cli
from experiments.common.episode_viewer import IN_PAGE, TEXT, choose, payload, write_episodes
from experiments.common.run_folder import RunFolder
from experiments.evaluate.answers.polygon_answers import question
from experiments.evaluate.answers.polygon_metrics import Record, rasterize, size_of
from search.episode import PARTS, Episode, Step, action_to_json
from segenv import queries
from segenv.codec.polygons import PolygonCodec
from segenv.geometry.rle import encode_mask
from segenv.types import Task


def write(
    folder: RunFolder,
    records: Sequence[Record],
    load: Callable[[str], Task],
    agent: Agent,
    codec: PolygonCodec,
    given: str,
    asked: str,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write what the page shows of all greedy `records` of the run, or of at most `limit`: see `write_episodes`.
    `given` and `asked` are the prompt and output type."""
    scores = {(one.task,): one.iou for one in records}
    groups = dict.fromkeys(scores, "") if limit is None else choose(scores, limit)
    by_task = {one.task: one for one in records}

    def shown() -> Iterator[dict[str, Any]]:
        for (name,), group in groups.items():
            task, prompts, sent = load(name), [], None
            if isinstance(agent, PromptedAgent):
                picture, prompt, _ = question(agent, task, 0, given, asked)
                height, width = picture.shape[:2]
                prompts, sent = [prompt], [width, height, int(agent.backend.squared)]
            yield payload(task, episode_of(by_task[name], task, codec, asked), group, size_of(task), prompts, sent)

    few = len(groups) <= IN_PAGE
    with cli.progress(len(groups), "reply", name="page", quiet=quiet or few, items=shown()) as bar:
        return write_episodes(folder.path, bar, len(groups))


def episode_of(one: Record, task: Task, codec: PolygonCodec, asked: str) -> Episode:
    """A reply as an episode of one action, from an empty mask."""
    answer = queries.read(one.text, task, codec, asked)
    empty = encode_mask(np.zeros((task.height, task.width), bool))
    step = Step(
        text=one.text,
        action={"type": TEXT} if isinstance(answer, str) else action_to_json(answer),
        iou=one.iou,
        reward=one.iou,
        score=None,
        error=one.error,
        stated_iou=None,
        mask=encode_mask(rasterize(answer, task)),
        finish_reason=one.finish_reason,
        tokens=one.tokens or None,
    )
    size, areas = (task.height, task.width), (one.intersection, one.union)
    seconds = dict.fromkeys(PARTS, 0.0)
    return Episode(task.id, 0, *size, task.instruction, 0.0, empty, (step,), False, *areas, 0.0, one.box_iou, seconds)
