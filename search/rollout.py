"""Play episodes: a batch of them advances together, so that agent and tool are called once a step for all; those of an
agent that takes many questions at a time advance each on its own."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from agents.backends.base import Reply
from agents.base import Agent
from search.episode import PARTS, Episode, Step, action_to_json, read_reply, step_of, told_of
from segenv import annotator, metrics
from segenv.geometry.rle import encode_mask
from segenv.mdp import Observation, SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, AgentError, Task, ToolError

# Called with a state, the action and the following state; gives the action to try instead, or None.
Correct = Callable[[SegState, Action, SegState], Action | None]


@dataclass(frozen=True)
class Reference:
    """Tries the annotator's next click in every state, to compare gains with; what that takes is not counted among the
    episode's seconds."""

    def __call__(self, state: SegState, action: Action, following: SegState) -> Action | None:
        return annotator.next_click(state.task.target, state.mask, state.clicks)


Skip = Callable[[str, AgentError], None]  # called with the id of a task that the agent could not be asked about
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
    skip: Skip | None = None,
) -> Iterator[Episode]:
    """Play each task `samples` times and yield the episodes, in the order of tasks and then samples, as soon as they
    are ready.

    At most `batch_size` episodes run at once; one that ends makes room for the next, so tasks are read when they are
    needed. The agent's seed at a step is `seed_of(seed, task id, round_index, sample, step)`: no result depends on
    `batch_size` or on the tasks around it. `correct` is called with each action; the action that it returns is tried in
    the same state and recorded in `Step.other`, and the episode continues from the agent's own.

    Episodes of an agent with `in_flight` above 1 advance each on its own, as many at a time, and are yielded as they
    end. Where the model behind the agent fails, `skip` is told, and the episode is left out; without it AgentError
    ends the rollout.
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

    items = ((task, sample) for task in tasks for sample in range(samples))
    if agent.in_flight > 1:
        return _each_on_its_own(mdp, agent, start(items), correct, skip)
    lost: list[RunningEpisode] = []

    def advance(episodes: list[RunningEpisode]) -> None:
        lost.extend(_advance(mdp, agent, episodes, correct, skip))

    def result_of(episode: RunningEpisode) -> Episode | bool | None:
        if any(episode is one for one in lost):
            return False
        return episode.finish() if mdp.terminal(episode.state) else None

    found = in_batches(items, batch_size, start, advance, result_of)
    return (episode for episode in found if isinstance(episode, Episode))


def _each_on_its_own(
    mdp: SegMDP, agent: Agent, episodes: Iterator["RunningEpisode"], correct: Correct | None, skip: Skip | None
) -> Iterator[Episode]:
    """Play episodes with `agent.in_flight` questions under way. The tool is called for one episode at a time, so that
    no mask depends on which replies come together."""
    waiting: dict[Future[Reply], tuple[RunningEpisode, Observation, tuple[float, float]]] = {}
    clock = _SharedClock()

    def ask(episode: RunningEpisode) -> None:
        seed, observation = seed_of(*episode.key, episode.state.step), mdp.observation(episode.state)
        began = clock.read(len(waiting))
        waiting[agent.submit(observation, seed, episode.sample)] = episode, observation, began

    try:
        while True:
            while len(waiting) < agent.in_flight and (fresh := next(episodes, None)) is not None:
                ask(fresh)
            if not waiting:
                return
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            now = clock.read(len(waiting))
            for future in [one for one in waiting if one in done]:
                episode, observation, began = waiting.pop(future)
                try:
                    reply = future.result()
                except AgentError as error:
                    if skip is None:
                        raise
                    skip(episode.state.task.id, error)
                    continue
                asked = clock.share(began, now, reply.seconds)
                _play(mdp, agent, [episode], [observation], [reply], time.perf_counter(), asked, correct)
                if mdp.terminal(episode.state):
                    yield episode.finish()
                else:
                    ask(episode)
    except Exception:
        wait(waiting)  # replies that are paid for are kept
        raise
    finally:
        for future in waiting:
            future.cancel()


class _SharedClock:
    """Divides the time among the questions that are under way together, so that their shares add up to the time that
    passed, as those of a batch do."""

    def __init__(self) -> None:
        self.last, self.shared = time.perf_counter(), 0.0

    def read(self, count: int) -> tuple[float, float]:
        """The time, and the share of it that one question had that was under way from the beginning; `count` have been
        since the last reading."""
        now = time.perf_counter()
        self.shared += (now - self.last) / count if count else 0.0
        self.last = now
        return now, self.shared

    @staticmethod
    def share(began: tuple[float, float], ended: tuple[float, float], seconds: float | None) -> float:
        """The share of a question between two readings. Of a reply that is known to have taken other `seconds`, as one
        that was kept in a file, the part of those that the share is of the time."""
        passed, shared = (end - begin for begin, end in zip(began, ended, strict=True))
        return shared if seconds is None or passed <= 0 else seconds * shared / passed


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
        self.start_iou = metrics.prepared(self.state.task).iou(mask)
        self.start_mask = encode_mask(mask)

    @property
    def last(self) -> tuple[float, str]:
        """The IoU of the present mask, and its run lengths."""
        return (self.steps[-1].iou, self.steps[-1].mask) if self.steps else (self.start_iou, self.start_mask)

    def finish(self) -> Episode:
        """The episode, with the metrics of its last mask."""
        began = time.perf_counter()
        task, mask = self.state.task, self.state.mask
        intersection, union = metrics.prepared(task).areas(mask)
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


def _advance(
    mdp: SegMDP,
    agent: Agent,
    episodes: Sequence[RunningEpisode],
    correct: Correct | None = None,
    skip: Skip | None = None,
) -> list[RunningEpisode]:
    """Play one step of every episode, and return those that `skip` was told of."""
    began = time.perf_counter()
    states = [episode.state for episode in episodes]
    items: Sequence = states if agent.privileged else [mdp.observation(state) for state in states]
    seeds = [seed_of(*episode.key, episode.state.step) for episode in episodes]
    called = time.perf_counter()
    try:
        replies = agent.answer(items, seeds, [episode.sample for episode in episodes])
    except AgentError as error:
        if skip is None:
            raise
        if len(episodes) > 1:  # which of them it is
            return [lost for episode in episodes for lost in _advance(mdp, agent, [episode], correct, skip)]
        skip(states[0].task.id, error)
        return list(episodes)
    asked = time.perf_counter() - called
    _play(mdp, agent, episodes, items, replies, began + asked, asked, correct)
    return []


def _play(
    mdp: SegMDP,
    agent: Agent,
    episodes: Sequence[RunningEpisode],
    items: Sequence,
    replies: Sequence[Reply],
    began: float,
    asked: float,
    correct: Correct | None = None,
) -> None:
    """Carry out a reply for each episode. `items` are what the agent was asked about; `asked` seconds were spent on the
    replies, all else since `began`."""
    states = [episode.state for episode in episodes]
    scenes = [state.task for state in states] if agent.privileged else items
    readings = [read_reply(agent.codec, reply, scene) for reply, scene in zip(replies, scenes, strict=True)]
    actions = [reading.action for reading in readings]
    before = dict(mdp.tool.seconds)
    try:
        following = list(mdp.transition(states, actions))
        counted, stopped = dict(mdp.tool.seconds), time.perf_counter()
        tried = _corrections(mdp, states, map(correct, states, actions, following)) if correct else {}
    except ToolError as error:
        raise ToolError(f"{error} (asked about tasks {', '.join(state.task.id for state in states)})") from error
    if isinstance(correct, Reference):
        began += time.perf_counter() - stopped
    else:
        counted = mdp.tool.seconds
    spent = {part: counted[part] - before[part] for part in ("encode", "decode")}
    for k, (episode, reply, reading, state) in enumerate(zip(episodes, replies, readings, following, strict=True)):
        step = step_of(mdp, episode.state, reply.text, reading.action, state, reading.stated_iou, episode.last)
        episode.steps.append(dataclasses.replace(step, other=tried.get(k), **told_of(reply, reading)))
        episode.state = state
    spent["other"] = time.perf_counter() - began - sum(spent.values())
    spent["annotator" if agent.privileged else "agent"] = asked
    for episode in episodes:
        for part, seconds in spent.items():
            episode.seconds[part] += seconds / len(episodes)


def _corrections(
    mdp: SegMDP, states: Sequence[SegState], corrected: Iterable[Action | None]
) -> dict[int, dict[str, Any]]:
    """Try what a corrector would do in `states`, where it does not give None: `{"action", "iou"}` by index."""
    better = {k: action for k, action in enumerate(corrected) if action is not None}
    after = mdp.transition([states[k] for k in better], list(better.values()))
    ious = [metrics.prepared(state.task).iou(state.mask) for state in after]
    return {k: {"action": action_to_json(better[k]), "iou": iou} for k, iou in zip(better, ious, strict=True)}
