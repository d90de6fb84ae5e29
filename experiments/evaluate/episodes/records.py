"""Parts that the tasks of an evaluation share: records in groups, the protocol's settings, and the results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import product
from typing import Any

from agents.backends.base import Reply
from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import OBJECT, RunFolder, hide_home
from experiments.common.served import is_served, server_options
from experiments.evaluate import protocols
from experiments.evaluate.config import Args
from experiments.evaluate.exclusion import Choice
from segenv.data import Dataset
from segenv.records import checked, reader
from segenv.types import AgentError, Task

IMAGES = "images.json"  # the image of each task, where several tasks have one


def settings(args: Args, chosen: Choice) -> dict[str, Any]:
    """Settings of `args` that every protocol holds."""
    own = {name: getattr(args, name) for name in ("data", "limit", "seed", "threads", "batch_size")}
    return own | chosen.about


def agent_options(args: Args) -> dict[str, Any]:
    """Options of an agent that asks a model, as `args` give them; RunError where another is given some."""
    names = ("prompt", "max_new_tokens", "temperature", "top_p")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    given |= {"history": args.history} if args.history else {}
    given |= {"own_sampling": True} if args.own_sampling else {}
    if args.own_sampling and (args.temperature is not None or args.top_p is not None):
        raise RunError("--own-sampling samples as the model does; leave out --temperature and --top-p")
    kind = args.agent.partition(":")[0]
    if is_served(args.agent):
        pictures = {"image_format": args.image_format, "detail": args.detail}
        return given | pictures | server_options(args.agent, args.server, args.budget)
    if wrong := [*(given if kind in ("annotator", "random", "sb3") else ()), *(["detail"] if args.detail else ())]:
        flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise RunError(f"agent {args.agent!r} has no {flags}: leave that out, or take openai:MODEL@BASE_URL")
    return given


def indices(data: Dataset) -> dict[str, int]:
    """Index of each task in the data, by its id."""
    return {name: index for index, name in enumerate(data.ids)}


def keep_images(folder: RunFolder, data: Dataset, tasks: Sequence[str]) -> list[str]:
    """The image behind each of `tasks`; where some share one, images.json says so, for those who read the folder."""
    images = data.images_of(tasks)
    if len(set(images)) < len(set(tasks)):
        folder.write_json(IMAGES, dict(zip(tasks, images, strict=True)))
    return images


def read_images(folder: RunFolder, tasks: Sequence[str]) -> list[str] | None:
    """The image behind each of `tasks` in a run's folder, or None where each has one of its own."""
    images = folder.read_json(IMAGES, reader(dict[str, str]))
    return None if images is None else [images[name] for name in tasks]


def append_groups(
    folder: RunFolder,
    name: str,
    data: Dataset,
    size: int,
    work: Callable[[list[Task]], Iterable[dict[str, Any]]],
    samples: Sequence[int] = (0,),
    unit: str = "task",
    quiet: bool = False,
    read: Callable[[Any], Any] = OBJECT,
    **key: Any,
) -> None:
    """Append the records that the file `name` lacks: `work` makes those of `size` tasks, one for each of `samples`, all
    with the values of `key`. `read` checks those that are there. A resumed run has equal groups, as a learned
    model's last bits depend on them."""
    have = _have(folder, name, read, key)
    total = len(data) * len(samples)
    with folder.appending(name) as file, cli.progress(total, unit, len(have), quiet=quiet) as bar:
        for start in range(0, len(data), size):
            group = data[start : start + size]
            for record in () if have.issuperset(product(group.ids, samples)) else work(list(group)):
                if (record["task"], record.get("sample", 0)) not in have:
                    file.add(record)
                    bar.update()


def append_as_ready(
    folder: RunFolder,
    name: str,
    data: Dataset,
    in_flight: int,
    ask: Callable[[Task, int], Future[Reply]],
    record: Callable[[Task, int, Reply], dict[str, Any]],
    samples: Sequence[int] = (0,),
    unit: str = "task",
    quiet: bool = False,
    read: Callable[[Any], Any] = OBJECT,
) -> None:
    """As `append_groups`, with `in_flight` questions under way: each record is made and appended when its reply is
    there. A task that the model behind the agent gives no reply to is skipped with `data.skip_bad`, and else ends the
    run, after the replies under way have come."""
    have = _have(folder, name, read, {})
    todo = ((task, sample) for task in data for sample in samples if (task.id, sample) not in have)
    waiting: dict[Future[Reply], tuple[Task, int]] = {}
    total = len(data) * len(samples)
    with folder.appending(name) as file, cli.progress(total, unit, len(have), quiet=quiet) as bar:
        try:
            while True:
                while len(waiting) < in_flight and (one := next(todo, None)) is not None:
                    waiting[ask(*one)] = one
                if not waiting:
                    return
                done = wait(waiting, return_when=FIRST_COMPLETED).done
                for future in [one for one in waiting if one in done]:
                    task, sample = waiting.pop(future)
                    try:
                        file.add(record(task, sample, future.result()))
                        bar.update()
                    except AgentError as error:
                        if not data.skip_bad:
                            raise
                        data.skip(task.id, str(error))
        except Exception:
            wait(waiting)
            raise
        finally:
            for future in waiting:
                future.cancel()


def _have(folder: RunFolder, name: str, read: Callable[[Any], Any], key: Mapping[str, Any]) -> set[tuple[str, int]]:
    """Task and sample of the records that the file `name` holds with the values of `key`."""
    begun = (record for record in folder.records(name, checked(read)) if key.items() <= record.items())
    return {(record["task"], record.get("sample", 0)) for record in begun}


def write_metrics(folder: RunFolder, numbers: Mapping[str, Any], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Write metrics.json, with the `headline` of the protocol that the run has the name of, and return its content."""
    if measures := protocols.headline(numbers):
        numbers = {**numbers, "headline": measures}
    folder.write_json("metrics.json", {**numbers, "skipped": hide_home(dict(skipped))})
    return folder.load_json("metrics.json")


def check_any(records: Sequence[Any], data: str, skipped: Mapping[str, str]) -> None:
    """Raise RunError where there is no record, as all items of `data` are bad."""
    if not records:
        raise RunError(
            f"all {len(skipped)} items of {data!r} are bad, the first because: {next(iter(skipped.values()), '')}"
        )
