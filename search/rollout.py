"""Play episodes: a batch of them advances together, so that agent and tool are called once a step for all."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from agents.base import Agent
from search.episode import PARTS, Episode, Step, action_to_json, step_of
from segenv import metrics
from segenv.geometry.rle import encode_mask
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, Task, ToolError

# Called with a state, the action and the following state; gives the action to try instead, or None.
Correct = Callable[[SegState, Action, SegState], Action | None]
Item = TypeVar("Item")
Run = TypeVar("Run")
Result = TypeVar("Result")


def rollout(
    mdp: SegMDP,
    agent: Agent,
    tasks: Iterable[Task],
    *,
    seed: int = 0,
    round_index: int = 0,
    samples: int = 1,
    batch_size: int = 8,
    correct: Correct | None = None,
) -> Iterator[Episode]:
    """Play each task `samples` times and yield the episodes, in the order of tasks and then samples, as soon as they
    are ready.

    At most `batch_size` episodes run at once; one that ends makes room for the next, so tasks are read when they are
    needed. The agent's seed at a step is `seed_of(seed, task id, round_index, sample, step)`: no result depends on
    `batch_size` or on the tasks around it. `correct` is called with each action; the action that it returns is tried in
    the same state and recorded in `Step.other`, and the episode continues from the agent's own.
    """
    if batch_size < 1 or samples < 1 or mdp.max_steps < 1:
        raise ValueError(
            f"batch_size {batch_size}, samples {samples} and max_steps {mdp.max_steps} must all be 1 or more"
        )

    def start(items: Iterator[tuple[Task, int]]) -> Iterator[RunningEpisode]:
        while True:
            began = time.perf_counter()
            if (item := next(items, None)) is None:
                return
            task, sample = item
            episode = RunningEpisode(sample, mdp.initial(task), (seed, task.id, round_index, sample))
            episode.seconds["other"] += time.perf_counter() - began
            yield episode

    return in_batches(
        ((task, sample) for task in tasks for sample in range(samples)),
        batch_size,
        start,
        lambda episodes: _advance(mdp, agent, episodes, correct),
        lambda episode: episode.finish() if mdp.terminal(episode.state) else None,
    )


def in_batches(
    items: Iterator[Item],
    batch_size: int,
    start: Callable[[Iterator[Item]], Iterable[Run]],
    advance: Callable[[list[Run]], None],
    result_of: Callable[[Run], Result | None],
) -> Iterator[Result]:
    """Advance at most `batch_size` runs together, and yield their results in the order of `items`.

    `start` makes a run of each item, `advance` takes runs one step further, and `result_of` gives the result of one
    that has ended, else None; then it makes room for the next item.
    """
    live: dict[int, Run] = {}
    results: dict[int, Result] = {}
    started = ready = 0
    while True:
        for run in start(islice(items, batch_size - len(live))):
            live[started] = run
            started += 1
        if not live:
            return
        advance(list(live.values()))
        for number, run in list(live.items()):
            if (result := result_of(run)) is not None:
                results[number] = result
                del live[number]
        while ready in results:
            yield results.pop(ready)
            ready += 1


@dataclass
class RunningEpisode:
    """An episode that has not ended."""

    sample: int
    state: SegState
    key: tuple[Any, ...]  # run's seed, task id, round and sample, from which seeds derive
    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        mask = self.state.mask
        self.start_iou = metrics.iou(self.state.task.target, mask)
        self.start_mask = encode_mask(mask)

    def finish(self) -> Episode:
        """The episode, with the metrics of its last mask."""
        began = time.perf_counter()
        task, mask = self.state.task, self.state.mask
        intersection, union = metrics.areas(task.target, mask)
        boundary_iou, box_iou = metrics.boundary_iou(task.target, mask), metrics.box_iou(task.target, mask)
        self.seconds["other"] += time.perf_counter() - began
        return Episode(
            task=task.id,
            sample=self.sample,
            height=task.height,
            width=task.width,
            instruction=task.instruction,
            start_iou=self.start_iou,
            start_mask=self.start_mask,
            steps=tuple(self.steps),
            stopped=self.state.stopped,
            intersection=intersection,
            union=union,
            boundary_iou=float(boundary_iou),
            box_iou=float(box_iou),
            seconds=self.seconds,
        )


def _advance(mdp: SegMDP, agent: Agent, episodes: Sequence[RunningEpisode], correct: Correct | None = None) -> None:
    """Play one step of every episode."""
    began = time.perf_counter()
    states = [episode.state for episode in episodes]
    observations = [mdp.observation(state) for state in states]
    seeds = [seed_of(*episode.key, episode.state.step) for episode in episodes]
    called = time.perf_counter()
    texts = agent.act_on(states, seeds) if agent.privileged else agent.act(observations, seeds)
    answered = time.perf_counter()
    actions = [agent.codec.parse(text, observation) for text, observation in zip(texts, observations, strict=True)]
    before = dict(mdp.tool.seconds)
    try:
        following = list(mdp.transition(states, actions))
        tried = _corrections(mdp, states, map(correct, states, actions, following)) if correct else {}
    except ToolError as error:
        raise ToolError(f"{error} (asked about tasks {', '.join(state.task.id for state in states)})") from error
    spent = {part: mdp.tool.seconds[part] - before[part] for part in ("encode", "decode")}
    spent["annotator" if agent.privileged else "agent"] = answered - called
    for k, (episode, text, action, state) in enumerate(zip(episodes, texts, actions, following, strict=True)):
        step = step_of(mdp, episode.state, text, action, state, agent.codec.stated_iou(text))
        episode.steps.append(dataclasses.replace(step, other=tried.get(k)))
        episode.state = state
    spent["other"] = time.perf_counter() - began - sum(spent.values())
    for episode in episodes:
        for part, seconds in spent.items():
            episode.seconds[part] += seconds / len(episodes)


def _corrections(
    mdp: SegMDP, states: Sequence[SegState], corrected: Iterable[Action | None]
) -> dict[int, dict[str, Any]]:
    """Try what a corrector would do in `states`, where it does not give None: `{"action", "iou"}` by index."""
    better = {k: action for k, action in enumerate(corrected) if action is not None}
    after = mdp.transition([states[k] for k in better], list(better.values()))
    ious = [float(metrics.iou(state.task.target, state.mask)) for state in after]
    return {k: {"action": action_to_json(better[k]), "iou": iou} for k, iou in zip(better, ious, strict=True)}
