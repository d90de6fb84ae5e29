"""Parts that the tasks of an evaluation share: records in groups, the protocol's settings, and the results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import OBJECT, RunFolder, hide_home
from experiments.evaluate.config import Args
from segenv.data import Dataset
from segenv.records import checked, reader
from segenv.types import Task

IMAGES = "images.json"  # the image of each task, where several tasks have one


def settings(args: Args) -> dict[str, Any]:
    """Settings of `args` that every protocol holds."""
    return {name: getattr(args, name) for name in ("data", "limit", "seed", "threads", "batch_size")}


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
    begun = (record for record in folder.records(name, checked(read)) if key.items() <= record.items())
    have = {(record["task"], record.get("sample", 0)) for record in begun}
    total = len(data) * len(samples)
    with folder.appending(name) as file, cli.progress(total, unit, len(have), quiet=quiet) as bar:
        for start in range(0, len(data), size):
            group = data[start : start + size]
            for record in () if have.issuperset(product(group.ids, samples)) else work(list(group)):
                if (record["task"], record.get("sample", 0)) not in have:
                    file.add(record)
                    bar.update()


def write_metrics(folder: RunFolder, numbers: Mapping[str, Any], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Write metrics.json, and return its content."""
    folder.write_json("metrics.json", {**numbers, "skipped": hide_home(dict(skipped))})
    return folder.load_json("metrics.json")


def check_any(records: Sequence[Any], data: str, skipped: Mapping[str, str]) -> None:
    """Raise RunError where there is no record, as all items of `data` are bad."""
    if not records:
        raise RunError(
            f"all {len(skipped)} items of {data!r} are bad, the first because: {next(iter(skipped.values()), '')}"
        )
