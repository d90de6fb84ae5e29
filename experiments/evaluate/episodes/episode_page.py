"""Episodes of a run for its page, each with the prompts and the size of the picture that a model was asked with."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agents.base import Agent
from agents.prompted import PromptedAgent
from experiments.common import cli
from experiments.common.episode_viewer import IN_PAGE, choose, payload, write_episodes
from experiments.common.run_folder import RunFolder
from experiments.evaluate.answers.polygon_metrics import size_of
from experiments.evaluate.episodes.metrics import Outcome
from search.episode import Episode, clicks_of
from segenv.mdp import Observation
from segenv.types import Task


def write(
    folder: RunFolder,
    outcomes: Sequence[Outcome],
    load: Callable[[str], Task],
    agent: Agent,
    max_steps: int,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write what the page shows of all episodes of the run, or of at most `limit`: see `write_episodes`. `load` gives
    the task of an id, and `agent` is the one that played."""
    scores = {(item.task, item.sample): item.final_iou for item in outcomes}
    groups = dict.fromkeys(scores, "") if limit is None else choose(scores, limit)

    def shown() -> Iterator[dict[str, Any]]:
        for record in folder.records("episodes.jsonl"):
            if (group := groups.get((record["task"], record["sample"]))) is not None:
                task, episode = load(record["task"]), Episode.from_json(record)
                yield payload(task, episode, group, size_of(task), *asked(agent, task, episode, max_steps))

    few = len(groups) <= IN_PAGE
    with cli.progress(len(groups), "episode", name="page", quiet=quiet or few, items=shown()) as bar:
        view = write_episodes(folder.path, bar, len(groups))
    place = {key: index for index, key in enumerate(groups)}
    view["rows"].sort(key=lambda row: place[row["id"], row["sample"]])
    return view


def asked(agent: Agent, task: Task, episode: Episode, max_steps: int) -> tuple[list[str], list[int] | None]:
    """The prompt of each step of an episode by an agent that prompts a model, and width and height of the pictures that
    were sent, with a third number, 1, where they were padded to a square; nothing of other agents."""
    if not isinstance(agent, PromptedAgent):
        return [], None
    errors, prompts = [None, *(step.error for step in episode.steps)], []
    for k in range(len(episode.steps)):
        known: dict[str, Any] = {"error": errors[k], "clicks": tuple(clicks_of(episode.steps[:k]))}
        seen = Observation(task.id, task.image, episode.mask(k), task.instruction, k, max_steps - k, **known)
        prompts.append(agent.prompt(seen))
    height, width = agent.backend.sent(task.image).shape[:2]
    return prompts, [width, height, int(agent.backend.squared)]
