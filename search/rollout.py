"""Play episodes: those of a batch advance together, so that agent and tool are asked once a step for all of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.base import Agent
from search.episode import PARTS, Episode, Step, action_to_json, step_of
from segenv import metrics
from segenv.data.trajectories.record import encode_mask
from segenv.mdp import SegMDP, SegState
from segenv.seeds import seed_of
from segenv.types import Action, Task, ToolError

# asked with a state, the action and what followed; the action to take instead, or None
Correct = Callable[[SegState, Action, SegState], Action | None]


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

    At most `batch_size` episodes are under way; one that ends makes place for the next, so tasks are read when they are
    needed. The agent's seed at a step is `seed_of(seed, task id, round_index, sample, step)`: no result depends on
    `batch_size` or on the tasks around it. `correct` is asked about each action; the action that it returns is tried in
    the same state and recorded in `Step.other`, and the episode continues from the agent's own.
    """
    if batch_size < 1 or samples < 1 or mdp.max_steps < 1:
        raise ValueError(
            f"batch_size {batch_size}, samples {samples} and max_steps {mdp.max_steps} must all be 1 or more"
        )
    waiting = ((task, sample) for task in tasks for sample in range(samples))
    live: list[Play] = []
    finished: dict[int, Episode] = {}
    started = ready = 0
    while True:
        while len(live) < batch_size:
            began = time.perf_counter()
            item = next(waiting, None)
            if item is None:
                break
            live.append(Play(started, item[1], mdp.initial(item[0]), (seed, item[0].id, round_index, item[1])))
            live[-1].seconds["other"] += time.perf_counter() - began
            started += 1
        if not live:
            return
        _advance(mdp, agent, live, correct)
        finished.update((play.number, play.finish()) for play in live if mdp.terminal(play.state))
        live = [play for play in live if not mdp.terminal(play.state)]
        while ready in finished:
            yield finished.pop(ready)
            ready += 1


@dataclass
class Play:
    """An episode under way."""

    number: int  # index in the order of tasks and samples
    sample: int
    state: SegState
    key: tuple[Any, ...]  # the agent's seeds derive from it
    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    def __post_init__(self) -> None:
        mask = self.state.mask
        self.start_iou = metrics.iou(self.state.task.target, mask)
        self.start_mask = encode_mask(mask)

    def finish(self) -> Episode:
        """Make the episode, with metrics of the last mask."""
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


def _advance(mdp: SegMDP, agent: Agent, live: Sequence[Play], correct: Correct | None = None) -> None:
    """Play one step of every episode in `live`."""
    began = time.perf_counter()
    states = [play.state for play in live]
    observations = [mdp.observation(state) for state in states]
    seeds = [seed_of(*play.key, play.state.step) for play in live]
    asked = time.perf_counter()
    texts = agent.act_on(states, seeds) if agent.privileged else agent.act(observations, seeds)
    answered = time.perf_counter()
    actions = [agent.codec.parse(text, observation) for text, observation in zip(texts, observations, strict=True)]
    before = dict(mdp.tool.seconds)
    try:
        following = list(mdp.transition(states, actions))
        tried = _corrections(mdp, states, actions, following, correct) if correct else {}
    except ToolError as error:
        raise ToolError(f"{error} (asked about tasks {', '.join(state.task.id for state in states)})") from error
    spent = {part: mdp.tool.seconds[part] - before[part] for part in ("encode", "decode")}
    spent["annotator" if agent.privileged else "agent"] = answered - asked
    for k, (play, text, action, state) in enumerate(zip(live, texts, actions, following, strict=True)):
        step = step_of(mdp, play.state, text, action, state, agent.codec.stated_iou(text))
        play.steps.append(dataclasses.replace(step, other=tried.get(k)))
        play.state = state
    spent["other"] = time.perf_counter() - began - sum(spent.values())
    for play in live:
        for part, seconds in spent.items():
            play.seconds[part] += seconds / len(live)


def _corrections(
    mdp: SegMDP,
    states: Sequence[SegState],
    actions: Sequence[Action],
    following: Sequence[SegState],
    correct: Correct,
) -> dict[int, dict[str, Any]]:
    """Try what `correct` would have done where it found an action bad: `{"action", "iou"}` by index."""
    better = {
        k: action
        for k, asked in enumerate(zip(states, actions, following, strict=True))
        if (action := correct(*asked)) is not None
    }
    after = mdp.transition([states[k] for k in better], list(better.values()))
    ious = [float(metrics.iou(state.task.target, state.mask)) for state in after]
    return {k: {"action": action_to_json(better[k]), "iou": iou} for k, iou in zip(better, ious, strict=True)}
