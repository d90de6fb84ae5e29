"""Generate, convert and export click trajectories in SegAgent's released JSON.

    python -m experiments.trajectories generate --data index:DIR --tool sam --starts empty box points --out runs/d0
    python -m experiments.trajectories convert --run runs/star/round1/rows.jsonl --out runs/d1
    python -m experiments.trajectories export --data trajectories:runs/d0/trajectories.json --out runs/d0_trl

`generate` keeps a click only if its IoU is above all before it, ends with the first that is not, at IoU 0.98, or after
20 clicks, as the released generator does; `--rule paper` continues instead, and drops clicks with ΔIoU below
`--min-gain` (the paper does not publish its value). `--resume DIR` resumes it.

`trajectories:FILE` is data for every command. Images are written beside the file, as PNG; with `--images DIR` they are
named in that folder instead, and the data is then `trajectories:FILE@DIR`.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import tyro

from experiments.common import cli
from experiments.common.config import (
    Different,
    Executor,
    InFolder,
    OutFolder,
    OutPath,
    RunError,
    check,
    choices,
    read_yaml,
)
from experiments.common.run_folder import RunFolder, hide_home, manifest, of_tasks
from search.episode import Episode
from search.executors import Skipped, spread
from search.on_ray import RayOptions
from search.star import StarExample
from search.trajectories import (
    ExpertPlayer,
    ExpertSetup,
    Opening,
    Play,
    Rule,
    moves_of,
    moves_of_rows,
    select,
    trajectories_of,
)
from segenv import __version__, codec
from segenv import data as datasets
from segenv.data.base import folder, within
from segenv.data.images import read_image
from segenv.data.trajectories.dataset import Trajectories, write
from segenv.data.trajectories.export import conversations, export, write_png
from segenv.data.trajectories.record import STOP_IOU
from segenv.ranges import Count, Gain, NotNegative, Processes, Seed
from segenv.records import reader
from segenv.types import SegenvError, Task, image_hash

FILE = "trajectories.json"
RESUMABLE = frozenset({"executor", "workers", "ray"})  # settings of `generate` that change no result


@dataclass(frozen=True)
class Generate:
    """Flags of `generate`; specs as in docs/evaluate.md and docs/data.md."""

    data: str = "synthetic:train"
    """what to segment"""
    tool: str = "sam"
    """what makes masks of clicks"""
    annotator: str = "ritm"
    """which annotator clicks: ritm, depth, middle, uniform, jitter:sigma=…, …"""
    starts: Annotated[tuple[Opening, ...], Different()] = ("empty",)
    """what the first mask comes from; each task is played from each: nothing, its box, random points in the box"""
    points: Count = 3
    """of the start points: their number is sampled from 1 to this"""
    samples: Count = 1
    """plays of each task from each start, for those that use chance"""
    rule: Rule = "released"
    """released: clicks while the IoU rises above all before; paper: clicks with ΔIoU of --min-gain; all: every click"""
    min_gain: Gain = 0.0
    """clicks with a ΔIoU below this are dropped (rule paper)"""
    stop_iou: NotNegative = STOP_IOU
    """a play ends at this IoU"""
    max_clicks: Count = 20
    """a play ends after so many clicks"""
    limit: Count = 1000
    """use the first N tasks only"""
    images: str | None = None
    """folder of the data's image files, to name them there in place of writing PNGs"""
    seed: Seed = 0
    out: OutFolder | None = None
    """folder of a new run; by default runs/trajectories-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    executor: Executor = "serial"
    """where tasks are played"""
    workers: Processes = 2
    """processes of the executors process and ray"""
    batch_size: Count = 16
    """plays that advance together; a learned tool's last bits may depend on it"""
    threads: Processes = 1
    """threads of the process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    ray: RayOptions = field(default_factory=RayOptions)


@dataclass(frozen=True)
class Convert:
    """Flags of `convert`."""

    run: Path
    """rows.jsonl of a StaR round, or a file of episodes: episodes.jsonl, rollout.jsonl, expert.jsonl, …"""
    out: OutPath
    """folder for trajectories.json and its images"""
    data: str | None = None
    """data of the run; by default what its config.yaml says"""
    rule: Rule = "all"
    """which clicks of episodes are kept, as for generate"""
    min_gain: Gain = 0.0
    """clicks with a ΔIoU below this are dropped (rule paper)"""
    images: str | None = None
    """folder of the data's image files, to name them there in place of writing PNGs"""


@dataclass(frozen=True)
class Export:
    """Flags of `export`. Run again, the command keeps the pictures that are there."""

    data: str
    """trajectories:FILE or trajectories:FILE@IMAGES"""
    out: OutPath
    """folder for the conversations and their pictures"""
    format: Literal["trl", "llama-factory"] = "trl"
    """for TRL: `load_dataset(OUT)`; for LLaMA-Factory: `dataset_dir: OUT`, `dataset: segenv`"""
    codec: str = "segagent"
    """how replies are written"""
    prompt: Literal["codec", "instruction"] = "codec"
    """prompts: the codec's whole prompt, or the instruction alone"""
    stop_iou: NotNegative = STOP_IOU
    """from this IoU on the reply is to stop; above 1: never"""
    limit: Count | None = None
    """use the first N trajectories only"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""


def generate(args: Generate) -> dict[str, Any]:
    """Play as `args` say, into their folder, and return counts."""
    check(args)
    if args.min_gain and args.rule != "paper":
        raise RunError(f"min_gain {args.min_gain} has no effect with rule {args.rule!r}; give --rule paper with it")
    with cli.setting_up(f"data {args.data!r} and tool {args.tool!r}"):
        names = ("seed", "batch_size", "skip_bad", "follow_links", "threads", "stop_iou", "max_clicks", "points")
        options: dict[str, Any] = {name: getattr(args, name) for name in names}
        rising = args.rule == "released"
        player = ExpertPlayer(ExpertSetup(args.data, args.tool, variant=args.annotator, rising=rising, **options))
        if args.images is not None:
            folder(args.images, "the data's image files")
    with cli.open_run(args, RESUMABLE) as run:
        hashes: dict[str, str | None] = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint}
        settings = choices(args, RESUMABLE | {"images"})
        run.keep_manifest(manifest(args.seed, settings, hashes))
        if not run.done("generate"):
            plays = _plays(args, player)
            skipped = _play_all(run, args, player, plays)
            if skipped and not any(True for _ in run.records("plays.jsonl")):
                name, why = next(iter(skipped.items()))
                raise RunError(f"all items of {args.data!r} are bad, {name!r} because: {why}")
            order = {play.key: k for k, play in enumerate(plays)}  # several workers finish in another one
            read = of_tasks(reader(PlayRecord), {play.task for play in plays})
            records = sorted(run.records("plays.jsonl", read), key=lambda one: order[_key(one)])
            entries = (record["entries"] for record in records)
            about = _write(run / FILE, entries, {"settings": hide_home(settings)})
            run.write_json("metrics.json", about | {"skipped": hide_home(skipped)})
            run.finish("generate")
        (run / "plays.jsonl").unlink(missing_ok=True)
        return run.load_json("metrics.json")


class PlayRecord(TypedDict):
    """A line of plays.jsonl."""

    task: str
    start: str
    sample: int
    entries: list[dict]


def _key(record: PlayRecord) -> tuple[str, str, int]:
    return record["task"], record["start"], record["sample"]


def _plays(args: Generate, player: ExpertPlayer) -> list[Play]:
    """The plays of a run, in the order of its file."""
    named = enumerate(player.dataset.ids[: args.limit])
    return [Play(i, name, start, k) for i, name in named for start in args.starts for k in range(args.samples)]


def _play_all(run: RunFolder, args: Generate, player: ExpertPlayer, plays: Sequence[Play]) -> Skipped:
    """Play those of `plays` that plays.jsonl lacks, in fixed groups, so that a resumed run computes the same. Returns
    the bad items."""
    have = {_key(record) for record in run.records("plays.jsonl", reader(PlayRecord))}
    groups = [plays[first : first + args.batch_size] for first in range(0, len(plays), args.batch_size)]
    groups = [group for group in groups if any(play.key not in have for play in group)]
    by_id = {play.id: play for group in groups for play in group}
    sources, skipped = player.dataset.sources, Skipped()
    with run.appending("plays.jsonl") as file, cli.progress(len(plays), "play", len(have)) as bar:
        for episode in spread(player, groups, args.executor, args.workers, skipped, args.ray):
            play = by_id[episode.task]
            if play.key in have:
                continue  # in a group that a kill cut
            task, opened = player.load(play.index), player.begun(play).meta["opening"]
            moves = select(moves_of(episode, len(opened)), args.rule, args.min_gain)
            image = _name_image(task, sources[play.index], args.images, run.path)
            entries = [one.to_json() for one in trajectories_of(moves, task, image, play.start, play.sample)]
            file.add({"task": play.task, "start": play.start, "sample": play.sample, "entries": entries})
            bar.update()
    return skipped


def read_moves(value: Any) -> Episode | StarExample:
    """Read a line of a run's episodes or rows. Raises ValueError where it is another thing."""
    try:
        return Episode.from_json(value) if "steps" in reader(dict)(value) else reader(StarExample)(value)
    except ValueError as error:
        raise ValueError(f"neither a row nor an episode: {error}") from error


def convert(args: Convert) -> dict[str, Any]:
    """Write the examples or episodes of a run as trajectories, and return counts."""
    records = list(RunFolder(args.run.parent).records(args.run.name, read_moves))
    if not records:
        raise RunError(f"--run {args.run} is missing or holds no record; expected rows.jsonl or a file of episodes")
    if len(kinds := {type(record) for record in records}) > 1:
        raise RunError(f"--run {args.run} holds both rows and episodes; it was put together by hand")
    if kinds == {Episode}:
        plays = [(e.task, e.sample, select(moves_of(e), args.rule, args.min_gain)) for e in records]
    elif args.rule != "all":
        raise RunError(f"rule {args.rule!r} is for episodes, and {args.run} holds rows, which are chosen already")
    else:
        rows: list[StarExample] = sorted(records, key=lambda row: (row.task, row.sample, row.step))
        groups = groupby(rows, key=lambda row: (row.task, row.sample))
        plays = [(task, sample, moves_of_rows(list(group))) for (task, sample), group in groups]
    data, tasks = datasets.make(args.data or _data_of_run(args.run)), {task for task, _, _ in plays}
    indices = dict(islice(((name, i) for i, name in enumerate(data.ids) if name in tasks), len(tasks)))
    if missing := tasks - set(indices):
        raise RunError(
            f"{args.run} holds task {min(missing)!r}, which the data {data.spec!r} does not; say what was played with "
            "--data"
        )
    load, sources = lru_cache(maxsize=1)(data.__getitem__), data.sources

    def entries() -> Iterator[list[dict[str, Any]]]:
        for name, sample, moves in cli.progress(len(plays), "play", items=plays):
            task = load(indices[name])
            image = _name_image(task, sources[indices[name]], args.images, args.out)
            yield [one.to_json() for one in trajectories_of(moves, task, image, sample=sample)]

    return _write(args.out / FILE, entries(), {"settings": hide_home({"data": data.spec, "rule": args.rule})})


def _data_of_run(file: Path) -> str:
    """Data spec of the run that wrote `file`."""
    for parent in list(file.resolve().parents)[:2]:
        if (parent / "config.yaml").is_file():
            data = read_yaml(parent / "config.yaml").get("data")
            if not isinstance(data, str):
                raise RunError(f"{parent / 'config.yaml'} says data: {data!r}; expected a text, or give --data")
            return data
    raise RunError(f"no config.yaml beside or above {file}, so its data is not known; say what was played with --data")


def run_export(args: Export) -> dict[str, Any]:
    """Write the conversations of a trajectories file, and return counts."""
    data = datasets.make(args.data, skip_bad=args.skip_bad, follow_links=args.follow_links)
    if not isinstance(data, Trajectories):
        raise RunError(f"data {args.data!r} holds no clicks; expected {datasets.SPECS['trajectories']}")
    try:
        writer = codec.make(args.codec)
    except ValueError as error:
        raise RunError(str(error)) from error
    chosen = data[: args.limit]
    tasks = cli.progress(len(chosen), "trajectory", items=chosen)
    count = export(conversations(tasks, writer, args.prompt, args.stop_iou), args.out, args.format)
    return {"file": str(args.out), "conversations": count, "skipped": len(data.skipped)}


def _name_image(task: Task, source: str, images: str | None, out: Path) -> str:
    """Name of the task's image in the folder `images`, or else in `out`, where it is written as PNG once."""
    if images is None:
        name = f"images/{task.image_hash}.png"
        if not (out / name).exists():
            write_png(out / name, task.image)
        return name
    name = str(task.meta.get("file_name", source))
    path = within(folder(images, "the data's image files"), name, task.id)
    if image_hash(read_image(path, task.id)) != task.image_hash:
        raise RunError(f"{path} is not the image of task {task.id!r}; give the folder that its file name counts from")
    return name


def _write(path: Path, plays: Iterable[list[dict[str, Any]]], info: dict[str, Any]) -> dict[str, Any]:
    """Write the entries of each play into the file, and return counts."""
    counts = {"plays": 0, "plays_without_click": 0, "trajectories": 0, "clicks": 0}
    last: list[float] = []

    def counted() -> Iterator[dict[str, Any]]:
        for entries in plays:
            counts["plays"] += 1
            counts["plays_without_click"] += not any(entry["clicks_list"] for entry in entries)
            for entry in entries:
                counts["trajectories"] += 1
                counts["clicks"] += len(entry["clicks_list"])
                last.extend(click["iou"] for click in entry["clicks_list"][-1:] if click["iou"] is not None)
                yield entry

    write(path, counted(), {"description": f"click trajectories, made by segenv {__version__}", **info})
    return {"file": str(path), **counts, "mean_last_iou": float(np.mean(last)) if last else None}


COMMANDS: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "generate": (Generate, generate),
    "convert": (Convert, convert),
    "export": (Export, run_export),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    cli.use_plain_characters()
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else ""
    if name not in COMMANDS:
        kinds: dict[str, Callable[..., Any]] = {key: kind for key, (kind, _) in COMMANDS.items()}
        tyro.extras.subcommand_cli_from_dict(kinds, args=argv, description=__doc__)
        return 2
    kind, work = COMMANDS[name]

    def show(args: Any) -> None:
        print(json.dumps(work(args), indent=1))

    errors = (SegenvError, OSError)
    return cli.main(f"trajectories {name}", kind, show, __doc__, argv[1:], folder="trajectories", errors=errors)


if __name__ == "__main__":
    sys.exit(main())
