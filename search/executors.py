"""Play the tasks of a dataset in this process, in several, or on Ray, with equal results."""

import copy
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import agents
from agents.base import Agent
from agents.replies import Record, ReplyLog, read_records
from search import on_ray, spec
from search.episode import Episode
from search.on_ray import RayOptions, WorkerError
from search.planner import to_episode
from search.rollout import Correct, Reference, rollout
from search.star import Rules
from segenv import data, ranges, tools
from segenv.data.base import Dataset
from segenv.envs import starts
from segenv.envs.starts import Start
from segenv.mdp import SegMDP
from segenv.ranges import Count, CountOrNone, NotNegative, Processes, Seed
from segenv.seeds import seed_of
from segenv.tools.base import SegTool
from segenv.types import AgentError, BadItem, Task

EXECUTORS = ("serial", "process", "ray")
Skipped = dict[str, str]  # id of a bad item: why it was skipped
Chunk = tuple[list[Any], Skipped, list[Record]]


@dataclass(frozen=True)
class Setup:
    """Dataset, tool and agent, and the settings of their episodes. Every worker builds its own from the specs; objects
    in place of specs are pickled to it, a tool without its cached encodings."""

    data: str | Dataset
    tool: str | SegTool
    agent: str | Agent
    codec: str | None = None
    max_steps: Count = 20
    reward: str = "iou_gain"
    seed: Seed = 0
    round_index: CountOrNone = 0
    samples: Count = 1
    batch_size: Count = 8
    skip_bad: bool = False
    follow_links: bool = False
    threads: Processes = 1
    temperature: NotNegative | None = None  # of agents that sample; None: their own
    rules: Rules | None = None  # by which the annotator's action is tried in place of a bad one
    reference: bool = False  # try the annotator's click in every state, too, to compare with; not of a search
    search: str = "none"  # a spec of `search.spec`, on top of the agent
    options: Mapping[str, Any] = field(default_factory=dict)  # further ones of the agent
    replies: str | None = None  # file of replies that workers need not ask for
    start: str | Start | None = None  # the initial masks, of `segenv.envs.starts`; None: the tasks' own, or empty ones

    def __post_init__(self) -> None:
        ranges.check(self)


class Player:
    """Dataset, tool and agent of a setup: `play` yields the episodes of some of its tasks.

    It sets the process's number of threads, because floating-point sums depend on it. A subclass may take other items
    than positions, and yield other results than episodes: `play` and `images` say which.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        dataset = data.make(setup.data, skip_bad=setup.skip_bad, follow_links=setup.follow_links)
        self.tool = tools.make(setup.tool)
        sampling = {} if setup.temperature is None else {"temperature": setup.temperature}
        self.agent = agents.make(setup.agent, setup.codec, seed=setup.seed, **{**setup.options, **sampling})
        self.new: list[Record] = []  # replies that a worker has to hand back
        if setup.replies is not None:
            self.agent.log = ReplyLog(read_records(Path(setup.replies)), self.new.append)
        self.dataset = dataset.checked(self.agent.check)
        self.mdp = SegMDP(self.tool, setup.max_steps, setup.reward)
        self.start = None if setup.start is None else starts.make(setup.start)
        self.search = spec.parse(setup.search)
        self.value = self.search.value_function(self.mdp, self.agent) if self.search else None
        set_threads(setup.threads)

    def play(self, positions: Sequence[Any]) -> Iterator[Any]:
        """The episodes of the tasks at `positions`, in that order; all of them advance together."""
        setup, tasks = self.setup, self.started(self.dataset.select(positions))
        options: dict[str, Any] = {name: getattr(setup, name) for name in ("seed", "round_index", "samples")}
        options["batch_size"] = max(1, len(positions) * setup.samples)
        skip = self.skip if setup.skip_bad else None
        if self.search:
            for tree in self.search.search(self.mdp, self.agent, tasks, self.value, skip=skip, **options):
                yield to_episode(self.mdp, self.agent, tree)
        else:
            correct: Correct | None = Reference() if setup.reference else None
            correct = setup.rules.correction if setup.rules else correct
            yield from rollout(self.mdp, self.agent, tasks, correct=correct, skip=skip, **options)

    def started(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """The tasks with the initial masks that the setup asks for, made by a generator of the run's seed and the
        task's id: equal ones for every agent."""
        for task in tasks:
            if self.start is not None:
                rng = np.random.default_rng(seed_of("start", self.setup.seed, task.id))
                try:
                    task = self.start(task, self.tool, rng)
                except BadItem as error:
                    if not self.setup.skip_bad:
                        raise
                    self.dataset.skip(task.id, str(error))
                    continue
            yield task

    def skip(self, task: str, error: AgentError) -> None:
        """Count a task that the agent gives no reply to among the bad items."""
        self.dataset.skip(task, str(error))

    def images(self) -> Callable[[Any], Hashable]:
        """A function that names the image of an item that `play` takes."""
        return self.dataset.sources.__getitem__

    def chunk(self, items: Sequence[Any]) -> Chunk:
        """The results of `items`, the bad ones and the new replies, as a worker sends them back."""
        results = list(self.play(items))
        replies, self.new[:] = list(self.new), []
        return results, dict(self.dataset.skipped), replies


def set_threads(threads: int) -> None:
    """Set the number of threads of OpenCV and PyTorch, where they are loaded; sums of floats depend on it."""
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def play(
    player: Player,
    positions: Sequence[int],
    executor: str,
    workers: int,
    skipped: Skipped,
    missing: Container[int] | None = None,
    ray: RayOptions = RayOptions(),  # noqa: B008  # frozen
) -> Iterator[Episode]:
    """Yield the episodes of the tasks at `positions` as they get ready, and put bad items into `skipped`.

    Tasks advance together in fixed groups of `batch_size` episodes, because the last bits of a learned model's outputs
    depend on the batch around an item: so episodes are equal in every executor, and in a run that was cut and resumed.
    To resume, give all `positions` again and those still `missing`: groups that hold one of them are played whole.

    `serial` keeps the order and uses `player` itself; `process` and `ray` build players of their own in `workers`
    processes, and yield groups as they are completed. Raises WorkerError where a worker dies; yielded episodes remain.
    On Ray a worker that is lost is replaced, and its group is played again, as `ray` says.
    Episodes of an agent that takes many questions at a time advance each on its own, in one group, and are yielded as
    they end.
    """
    size = max(1, player.setup.batch_size // player.setup.samples)
    groups = [positions[i : i + size] for i in range(0, len(positions), size)]
    if missing is not None:
        groups = [group for group in groups if any(position in missing for position in group)]
    if executor == "serial" and player.agent.in_flight > 1 and player.search is None:
        groups = [positions if missing is None else [one for one in positions if one in missing]]
    return spread(player, groups, executor, workers, skipped, ray)


def spread(
    player: Player,
    groups: Sequence[Sequence[Any]],
    executor: str,
    workers: int,
    skipped: Skipped,
    ray: RayOptions = RayOptions(),  # noqa: B008  # frozen
) -> Iterator[Any]:
    """Yield what players of the type and setup of `player` make of `groups` of items, as they get ready, and put bad
    items into `skipped`; executors and errors are those of `play`."""
    if executor not in EXECUTORS:
        raise ValueError(f"executor {executor!r} is unknown; expected one of {', '.join(EXECUTORS)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected 1 or more")
    if executor == "serial":
        for group in groups:
            yield from player.play(group)
            skipped.update(player.dataset.skipped)
        return
    log = player.agent.log
    setup = _with_weights(player, ray) if executor == "ray" else player.setup
    if log is not None and log.path is not None:
        setup = replace(setup, replies=str(log.path))
    workers = min(workers, len(groups)) or 1
    if executor == "process":
        found = _in_processes(type(player), setup, groups, workers)
    else:
        found = on_ray.play(type(player), setup, groups, player.images(), workers, setup.threads, ray)
    for results, bad, replies in found:
        if log is not None:
            for record in replies:
                log.add(record)
        skipped.update(bad)
        yield from results


def _with_weights(player: Player, ray: RayOptions) -> Setup:
    """The setup with a tool and an agent that have weights in place of their specs, so that workers need no file of
    them; where there are GPUs, each worker loads its own onto its GPU."""
    setup = player.setup
    if ray.num_gpus or ("torch" in sys.modules and sys.modules["torch"].cuda.is_available()):
        return setup
    if isinstance(setup.tool, str) and setup.tool.partition(":")[0] in ("sam", "segment-anything"):
        setup = replace(setup, tool=player.tool)
    if isinstance(setup.agent, str) and setup.agent.partition(":")[0] == "mllm":
        agent = copy.copy(player.agent)
        agent.log = None
        setup = replace(setup, agent=agent)
    return setup


def _in_processes(make: type[Player], setup: Setup, chunks: Sequence[Sequence[Any]], workers: int) -> Iterator[Chunk]:
    # Read by a worker when it imports its libraries.
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, str(setup.threads)))
    waiting, pending = iter(chunks), list[Future]()
    advice = (
        "the episodes that had come back are kept. Go on with --resume DIR, with fewer --workers or a smaller "
        "--batch-size if memory was short"
    )
    try:
        with _pool(workers, advice, _start_player, (make, setup)) as pool:
            while True:
                while len(pending) < 2 * workers and (chunk := next(waiting, None)) is not None:
                    pending.append(pool.submit(_play_chunk, chunk))
                if not pending:
                    break
                done = wait(pending, return_when=FIRST_COMPLETED).done
                ready = [future for future in pending if future in done]  # a set's order would be by chance
                pending = [future for future in pending if future not in done]
                ready.sort(key=lambda future: future.exception() is not None)  # results come before an error
                yield from (future.result() for future in ready)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def start_worker(_: int = 0) -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # only workers come here

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_made: list[tuple[type[Player], Setup]] = []  # of this process, where it is a worker


def _start_player(make: type[Player], setup: Setup) -> None:
    start_worker()
    _made.append((make, setup))


@lru_cache(maxsize=1)
def _player() -> Player:
    make, setup = _made[-1]
    return make(setup)


def _play_chunk(items: Sequence[Any]) -> Chunk:
    return _player().chunk(items)


def run_parallel(work: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> None:
    """Run jobs, `workers` at a time in processes (0: one on a GPU, else two); where one fails, the others are ended."""
    if not workers:
        import torch

        workers = 1 if torch.cuda.is_available() else 2
    if workers < 2 or len(jobs) < 2:
        for job in jobs:
            work(job)
        return
    with _pool(workers, "go on with --resume DIR, with fewer --workers if memory was short") as pool:
        done, _ = wait([pool.submit(work, job) for job in jobs], return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


@contextmanager
def _pool(
    workers: int, advice: str, start: Callable[..., None] = start_worker, arguments: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes, as a fork with threads may hang, that end with the block; WorkerError where one died."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start, arguments)
    try:
        yield pool
        pool.shutdown()
    except BrokenProcessPool as error:
        raise WorkerError(f"one of {workers} worker processes died (killed, or out of memory?); {advice}") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        ended = set(multiprocessing.active_children()) - others
        for child in ended:
            child.terminate()
        for child in ended:  # their files are free again
            child.join(10)
