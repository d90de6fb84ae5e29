"""Groups of tasks on actors of Ray: on this machine, or on a cluster that the user has started.

A group is played on one actor; groups of one image come to the actor that has its encoding. An actor that is lost is
replaced, and its group is played again from its beginning: a group's results are handed on whole and once.
"""

import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from segenv.ranges import Count, NotNegative, Range
from segenv.types import SegenvError

LOOK_AHEAD = 64  # waiting groups among which an actor looks for its images
MOST_IMAGES = 1 << 16  # of which it is known who has seen them


class WorkerError(SegenvError):
    """Raised where a worker of an executor is lost, or the executor is missing; the message says what to do."""


@dataclass(frozen=True)
class RayOptions:
    """Options of the executor ray; none of them changes a result."""

    num_cpus: Annotated[float, Range(above=0)] = 1.0
    """processors that each worker asks for"""
    num_gpus: NotNegative = 0.0
    """GPUs that each worker asks for: 1, or a part, so that several workers share one"""
    address: str | None = None
    """of a cluster: auto, HOST:PORT or ray://HOST:PORT; by default Ray starts on this machine, and ends with the run"""
    retries: Count = 3
    """times that a group of tasks is begun before the run stops: it may be what ends its workers"""


@dataclass(eq=False)
class _Job:
    """A group, the images in it, and how often it was begun."""

    group: Sequence[Any]
    images: frozenset[Hashable]
    begun: int = 0


class _Waiting:
    """Groups that wait, in their order, and the actor that has seen each image."""

    def __init__(self, groups: Sequence[Sequence[Any]], images: Callable[[Any], Hashable]) -> None:
        self._rest = (_Job(group, frozenset(map(images, group))) for group in groups)
        self._ahead: list[_Job] = []
        self._home: dict[Hashable, int] = {}  # image: number of an actor

    def next(self, actor: int) -> _Job | None:
        """Take a group for an actor that is free: one of its own images, else one whose images no actor has seen, else
        the first, so that none is idle; None where no group is left."""
        self._ahead += islice(self._rest, max(LOOK_AHEAD - len(self._ahead), 0))
        if not self._ahead:
            return None
        homes = [(job, {self._home[one] for one in job.images if one in self._home}) for job in self._ahead]
        own = (job for job, seen in homes if actor in seen)
        new = (job for job, seen in homes if not seen)
        job = next(own, None) or next(new, None) or self._ahead[0]
        self._ahead.remove(job)
        self._home |= dict.fromkeys(job.images, actor)
        while len(self._home) > MOST_IMAGES:
            del self._home[next(iter(self._home))]
        job.begun += 1
        return job

    def put_back(self, job: _Job, actor: int) -> None:
        """Return a group whose actor is lost, and what that actor had seen."""
        self._home = {image: one for image, one in self._home.items() if one != actor}
        self._ahead.insert(0, job)


def play(
    make: Callable[[Any], Any],
    setup: Any,
    groups: Sequence[Sequence[Any]],
    images: Callable[[Any], Hashable],
    workers: int,
    threads: int,
    options: RayOptions,
) -> Iterator[Any]:
    """Yield `make(setup).chunk(group)` of each of `groups` as they get ready, from `workers` actors.

    `setup` goes into Ray's object store once, with the weights that it may hold. `images` names the image of an
    item of a group. Raises WorkerError where a group was begun `options.retries` times, each time on an actor that
    was lost, and the error of a group that raises one.
    """
    try:
        import ray
    except ImportError as error:
        raise WorkerError("executor 'ray' needs Ray: pip install 'segenv[ray]', or take --executor process") from error
    ours = not ray.is_initialized()  # a script that started Ray itself, on a cluster for example, keeps it
    watcher = _start(ray, workers, options) if ours else None
    actors: dict[int, Any] = {}
    try:
        workers = _placed(ray.cluster_resources(), workers, options)
        shared = ray.put(setup)
        remote: Any = ray.remote(
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )(make)
        waiting = _Waiting(groups, images)
        yield from _results(ray, lambda: remote.remote(shared), actors, waiting, workers, options.retries)
    finally:
        if ray.is_initialized():
            for actor in actors.values():
                ray.kill(actor)
        if ours:
            ray.shutdown()
        if watcher is not None:
            watcher.kill()
            watcher.communicate()


def _results(
    ray: Any, begin: Callable[[], Any], actors: dict[int, Any], waiting: _Waiting, workers: int, retries: int
) -> Iterator[Any]:
    """Yield the result of each waiting group from actors that `begin` makes, and keep those alive in `actors`, by their
    numbers below `workers`."""
    running: dict[Any, tuple[int, _Job]] = {}
    free = list(range(workers))
    while True:
        while free and (job := waiting.next(free[0])) is not None:
            number = free.pop(0)
            if number not in actors:
                actors[number] = begin()
            running[actors[number].chunk.remote(job.group)] = number, job
        if not running:
            return
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        number, job = running.pop(ready)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except ray.exceptions.RayError as error:
            if job.begun >= retries:
                raise _lost(job, error) from error
            print(f"a Ray worker was lost; its {len(job.group)} tasks are begun again", file=sys.stderr)
            ray.kill(actors.pop(number))
            waiting.put_back(job, number)
            free.append(number)
            continue
        free.append(number)
        yield result


def _placed(resources: Mapping[str, float], workers: int, options: RayOptions) -> int:
    """The workers that there is room for, at most `workers`: others would wait without end. Raises WorkerError where
    there is room for none."""
    for name, flag, each in (("CPU", "--ray.num-cpus", options.num_cpus), ("GPU", "--ray.num-gpus", options.num_gpus)):
        there = resources.get(name, 0.0)
        if each > there:
            raise WorkerError(f"{flag} is {each:g}, and Ray has {there:g} {name}s in all; ask for less")
        workers = min(workers, math.floor(there / each + 1e-6)) if each else workers
    return workers


def _lost(job: _Job, error: Exception) -> WorkerError:
    reason = " ".join(str(error).split())[:300]
    return WorkerError(
        f"Ray lost the worker of the tasks at {list(job.group)} {job.begun} times ({reason}); the episodes that had "
        "come back are kept. Go on with --resume DIR, and fewer --workers or a smaller --batch-size if memory was short"
    )


# Ends the processes that have files open in a Ray session's folder, once our process has ended, however it did: of a
# kill, Ray's own agents learn only after a minute.
_WATCH = """
import os, signal, sys
sys.stdin.read()
for one in os.listdir("/proc") if os.path.isdir("/proc") else ():
    try:
        names = [os.readlink(f"/proc/{one}/fd/{k}") for k in os.listdir(f"/proc/{one}/fd")]
        if any(name.startswith(sys.argv[1]) for name in names):
            os.kill(int(one), signal.SIGKILL)
    except (OSError, ValueError):
        pass
"""


def _start(ray: Any, workers: int, options: RayOptions) -> subprocess.Popen | None:
    """Connect to a cluster, or start Ray on this machine, with a process that ends it when ours ends; SIGTERM stays
    with who had it."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if options.address is not None:
            context = ray.init(address=options.address, **quiet)
        else:
            cpus = max(1, math.ceil(workers * options.num_cpus))
            context = ray.init(num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f" at {options.address}" if options.address else ""
        advice = "see `ray status`, or leave out --ray.address"
        raise WorkerError(f"Ray cannot be reached{where} ({error}); {advice}") from error
    if mine:
        signal.signal(signal.SIGTERM, before)  # Ray's own handler ends the process at once
    if options.address is not None:  # a cluster goes on without us
        return None
    watch = [sys.executable, "-I", "-c", _WATCH, context.address_info["session_dir"]]
    return subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
