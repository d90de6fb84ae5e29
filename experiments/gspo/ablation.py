"""Arms of GSPO beside each other: each is a run of `experiments.gspo` in each seed, on the same held-out tasks.

An arm is one more entry in `TABLES`: its name, what it is, and which settings it has of its own. Gains are over the
policy of the start and over the table's first arm, paired over tasks.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.mllm import checkpoint
from agents.training.checkpoints import identity
from agents.training.gspo import processes
from experiments import polygon_ablation
from experiments.common import html, plots, tables
from experiments.common.config import RunError, check_seeds, create_or_resume, plain
from experiments.common.run_folder import RunFolder, hide_home, manifest, write_atomic
from experiments.evaluate.polygon_metrics import Record, by_task
from experiments.gspo import answers, config
from experiments.gspo import report as gspo_report
from experiments.gspo import train as gspo
from experiments.gspo.answers import ANSWERS
from experiments.gspo.config import Args
from search.executors import run_parallel
from segenv import statistics


@dataclass(frozen=True)
class Arm:
    """A line of a table; `own` are fields of `Args`, `train` of its `GSPOOptions`."""

    name: str
    about: str
    own: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


TABLES: dict[str, tuple[Arm, ...]] = {
    "sft": (
        Arm("+ GSPO", "reinforcement from the start's policy", {"method": "gspo"}),
        Arm("+ SFT", "as many steps and replies of supervised fine-tuning", {"method": "sft"}),
    ),
    "rewards": (
        Arm("iou + centroid + format", "the paper's, with our weights", {"reward": "iou+0.1*centroid+0.1*format"}),
        Arm("iou", "IoU alone", {"reward": "iou"}),
        Arm("iou + centroid", "without the format", {"reward": "iou+0.1*centroid"}),
        Arm("iou + format", "without the centroid", {"reward": "iou+0.1*format"}),
        Arm("boundary_f", "boundary F in place of IoU", {"reward": "boundary_f+0.1*format"}),
        Arm("chamfer", "distance of outlines in place of IoU", {"reward": "chamfer+0.1*format"}),
    ),
    "algorithms": (
        Arm("GSPO", "sequence ratios", {}, {"algorithm": "gspo"}),
        Arm("LUSPO", "sequence ratios, weighted by length", {}, {"algorithm": "luspo"}),
        Arm("GRPO", "token ratios", {}, {"algorithm": "grpo"}),
    ),
}
STARTS = "starts"
TAUGHT = polygon_ablation.ARMS["vertices"]  # how each of them is taught


def arms(args: Args, out: str | Path = "") -> tuple[Arm, ...]:
    """The arms of the table that is asked for; `out` is the run's folder, in which the models of `teach` lie."""
    if args.ablation != "length":
        return TABLES[args.ablation]
    if not args.checkpoints:
        if args.codec is not None:
            raise RunError(f"--ablation length teaches rings; with --codec {args.codec}, give --checkpoints")
        models = {name: polygon_ablation.arm_folder(Path(out).resolve() / STARTS, 0, name) / "model" for name in TAUGHT}
        return tuple(Arm(name, f"taught {name} outlines", {"agent": f"mllm:{at}"}) for name, at in models.items())
    paths = [Path(spec.partition(":")[2]) for spec in args.checkpoints]
    names = [path.parent.name if path.name == "model" else path.name for path in paths]
    found = tuple(Arm(name, spec, {"agent": spec}) for name, spec in zip(names, args.checkpoints, strict=True))
    folders = {_folder(RunFolder("."), 0, arm).name for arm in found}
    if len(folders) < len(found) or not all(names):
        raise RunError(f"--checkpoints name their arms {', '.join(names)} by their folders; these names must differ")
    return found


def teach(args: Args, out: Path) -> None:
    """Make the models that --ablation length starts from where no --checkpoints are given, in the folder `out`."""
    if not RunFolder(out).done("ablation"):
        own = create_or_resume(out) | {"steps": args.start_steps, "tasks": args.eval_limit, "ratio": args.ratio}
        polygon_ablation.run(polygon_ablation.Args("vertices", **own, workers=args.workers, threads=args.threads))


def run(args: Args) -> dict[str, Any]:
    """All arms in all seeds, in the folder of `args`; returns what ablation.json holds."""
    check_seeds(args.seeds)
    out = args.resume or args.out
    if processes() > 1:
        raise RunError("an ablation trains in one process; start it without accelerate launch")
    assert out is not None  # main gives one
    chosen = arms(args, out)
    if not args.resume:
        gspo.prepare(args)  # what is wrong is said before anything is written
    with RunFolder.resume(out, args, config.RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        if args.ablation == "length" and not args.checkpoints:
            teach(args, folder / STARTS)
        hashes = {arm.name: identity(checkpoint(arm.own.get("agent", args.agent))) for arm in chosen}
        folder.keep_manifest(manifest(args.seeds[0], _protocol(args, chosen), hashes))
        made = [_arm(args, folder, seed, arm) for seed in args.seeds for arm in chosen]
        waiting = [one for one in made if not RunFolder(one.resume or one.out or "").done("gspo")]
        for one in waiting:
            if one.agent == args.agent and one.resume is None and checkpoint(args.agent) is not None:
                _share(_start(args, folder), Path(one.out or ""))
        run_parallel(_make, waiting, args.workers)
        numbers = results(args, folder, chosen)
        folder.write_json("ablation.json", numbers)
        numbers = folder.read_json("ablation.json")
        write(folder, numbers, _lengths(args, folder, chosen))
        folder.finish("ablation")
        return numbers


def _folder(folder: RunFolder, seed: int, arm: Arm) -> Path:
    return folder / f"seed{seed}" / "-".join(re.findall("[A-Za-z0-9]+", arm.name))


def _arm(args: Args, folder: RunFolder, seed: int, arm: Arm) -> Args:
    """The settings of one run."""
    path = _folder(folder, seed, arm)
    train = replace(args.train, **{**_options(args, arm), "seed": seed})
    return replace(
        args,
        **{**arm.own, **create_or_resume(path), "train": train, "ablation": "none", "seeds": (), "checkpoints": ()},
    )


def _options(args: Args, arm: Arm) -> dict[str, Any]:
    """What an arm has of its own among the options of training; with a start of its own, it may write as much as that
    was taught."""
    base = checkpoint(arm.own["agent"]) if "agent" in arm.own else None
    if base is None or not Path(base, "config.json").is_file():
        return dict(arm.train)
    declared = json.loads(Path(base, "config.json").read_text()).get("segenv") or {}
    return {**arm.train, "max_tokens": max(args.train.max_tokens, declared.get("max_new_tokens", 0))}


def _make(args: Args) -> None:
    print(f"[{args.resume or args.out}]", file=sys.stderr)
    gspo.run(args)


def _start(args: Args, folder: RunFolder) -> RunFolder:
    """What the policy that all arms begin with replies: asked for once, and gone on with where that was cut."""
    start = RunFolder(folder / "start")
    if not start.done("before"):
        start.path.mkdir(exist_ok=True)
        this = gspo.prepare(replace(args, out=str(start.path), resume=None))
        answers.measure(this, this.agent, 0, this.eval_places)
        start.finish("before")
    return start


def _share(start: RunFolder, target: Path) -> None:
    """Give the replies of the start to a run that has not begun."""
    temporary = target.with_name(f".{target.name}.copy")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)  # it holds no more than such replies
    temporary.mkdir(parents=True)
    shutil.copy(start / ANSWERS, temporary)
    temporary.rename(target)


def results(args: Args, folder: RunFolder, chosen: Sequence[Arm]) -> dict[str, Any]:
    """The content of ablation.json; pooled numbers average each task over seeds first."""
    found = {
        arm.name: [answers.replies(RunFolder(_folder(folder, seed, arm))) for seed in args.seeds] for arm in chosen
    }
    lines, last = [], args.train.steps
    for arm in chosen:
        line: dict[str, Any] = {"arm": arm.name, "about": arm.about}
        for mode, drawn in gspo_report.MODES:
            before = [_ious(of_seed[0], drawn) for of_seed in found[arm.name]]
            after = [_ious(of_seed[last], drawn) for of_seed in found[arm.name]]
            first = [_ious(of_seed[last], drawn) for of_seed in found[chosen[0].name]]
            records = [_sorted(of_seed[last], drawn) for of_seed in found[arm.name]]
            valid = [float(np.mean([one.error is None for one in of_seed])) for of_seed in records]
            tokens = [float(np.mean([one.tokens for one in of_seed])) for of_seed in records]
            line[mode] = {
                "before": float(np.mean(before)),
                "after": float(np.mean(after)),
                "after_by_seed": [float(values.mean()) for values in after],
                "gain": _gain(np.mean(after, 0), np.mean(before, 0)),
                "gain_by_seed": [_gain(*pair) for pair in zip(after, before, strict=True)],
                "over_first": _gain(np.mean(after, 0), np.mean(first, 0)),
                "over_first_by_seed": [_gain(*pair) for pair in zip(after, first, strict=True)],
                "valid": float(np.mean(valid)),
                "valid_by_seed": valid,
                "tokens": float(np.mean(tokens)),
                "tokens_by_seed": tokens,
                "tokens_before": float(np.mean([one.tokens for one in _sorted(found[arm.name][0][0], drawn)])),
            }
        lines.append(line)
    tasks = len({one.task for one in found[chosen[0].name][0][0]})
    return {"arms": lines, "held_out_tasks": tasks, "protocol": _protocol(args, chosen)}


def _ious(records: Sequence[Record], drawn: bool) -> np.ndarray:
    """Of each task, [tasks]."""
    return by_task(_sorted(records, drawn), lambda one: one.iou)


def _sorted(records: Sequence[Record], drawn: bool) -> list[Record]:
    return sorted((one for one in records if bool(one.sample) is drawn), key=lambda one: (one.task, one.sample))


def _gain(values: np.ndarray, reference: np.ndarray) -> list[float]:
    """Paired difference of means, and its interval."""
    return [float(number) for number in statistics.bootstrap_difference(values, reference)]


def _protocol(args: Args, chosen: Sequence[Arm]) -> dict[str, Any]:
    settings = plain(args)
    kept = {key: settings[key] for key in settings if key not in config.RESUMABLE | {"out", "resume"}}
    return hide_home(
        {
            "arms": {arm.name: {**arm.own, **_options(args, arm)} for arm in chosen},
            "intervals": "95 % bootstrap over held-out tasks, paired; pooled ones average each task over seeds first",
            "between seeds": "the order of tasks and the replies drawn in training differ; the policy of the start, "
            "the held-out tasks and the seeds of their drawn replies are the same",
            "+ SFT": "learns outlines by name, of --vertices and --ratio, not the mixture of the start, "
            "without dense losses; at a constant rate of its own, --sft-learning-rate",
            **kept,
        }
    )


# --------------------------------------------------------------------------------------------------------------- report


def table(numbers: Mapping[str, Any]) -> list[list[str]]:
    """The cells: arm, seed, and for greedy and drawn replies gIoU, gain and gain over the first arm; valid, tokens."""
    own = numbers["protocol"]["ablation"] == "length"  # starts: gains over another arm would say nothing
    rows = [] if own else [_start_row("start", numbers["arms"][0])]
    for place, line in enumerate(numbers["arms"]):
        if own:
            rows.append(_start_row(f"{line['arm']}, start", line))
        seeds = numbers["protocol"]["seeds"]
        for k, seed in enumerate(["all", *seeds] if len(seeds) > 1 else seeds):

            def of(mode: str, key: str, line: Any = line, k: int = k) -> Any:
                return line[mode][f"{key}_by_seed"][k - 1] if k else line[mode][key]

            cells = []
            for mode, _ in gspo_report.MODES:
                over = _cell(of(mode, "over_first")) if place and not own else ""
                cells.append((f"{of(mode, 'after'):.3f}", _cell(of(mode, "gain")), over))
            ends = [f"{of('sampled', 'valid'):.3f}", f"{of('sampled', 'tokens'):.1f}"]
            rows.append(["" if k else line["arm"], str(seed), *_spread(cells), *ends])
    return rows


def _start_row(name: str, line: Mapping[str, Any]) -> list[str]:
    cells = [(f"{line[mode]['before']:.3f}", "", "") for mode, _ in gspo_report.MODES]
    return [name, "", *_spread(cells), "", f"{line['sampled']['tokens_before']:.1f}"]


def _spread(cells: Any) -> list[str]:
    return [cell for group in cells for cell in group]


def _cell(gain: Sequence[float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)


def header(numbers: Mapping[str, Any]) -> list[str]:
    """The names of the columns."""
    first = numbers["arms"][0]["arm"]
    names = [(f"{mode} gIoU", "gain", f"over {first}") for mode, _ in gspo_report.MODES]
    return ["", "seed", *_spread(names), "valid, sampled", "tokens"]


def text(numbers: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    head = f"{numbers['held_out_tasks']} held-out tasks, {numbers['protocol']['train']['steps']} steps"
    return "\n".join([head, tables.columns([header(numbers), *table(numbers)])])


def _lengths(args: Args, folder: RunFolder, chosen: Sequence[Arm]) -> dict[str, list[tuple[int, float]]]:
    """Mean length of drawn replies over steps, of each arm that was reinforced, in the first seed."""
    found = {}
    for arm in chosen:
        log = (RunFolder(_folder(folder, args.seeds[0], arm)).read_json("policy/gspo.json") or {"log": []})["log"]
        if log:
            found[arm.name] = [(entry["step"], entry["completions/mean_length"]) for entry in log]
    return found


def plot_lengths(lengths: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """How the length of replies drifts, as a PNG."""
    figure, axes = plots.figure_and_axes()
    for name, points in lengths.items():
        steps, values = np.array(points).T
        axes.plot(steps, values, linewidth=1.6, label=name)
    axes.set(xlabel="steps", ylabel="tokens of a drawn reply", ylim=(0, None))
    axes.legend(frameon=False)
    return plots.png(figure)


def plot_gains(numbers: Mapping[str, Any]) -> bytes:
    """Gains over the start with intervals: greedy and drawn, all seeds together, as a PNG."""
    groups = {mode: [line[mode]["gain"] for line in numbers["arms"]] for mode, _ in gspo_report.MODES}
    return plots.plot_intervals(groups, [line["arm"] for line in numbers["arms"]], "gain of held-out gIoU")


def write(folder: RunFolder, numbers: Mapping[str, Any], lengths: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """ablation.md, the plots and report.html."""
    rows = [header(numbers), *table(numbers)]
    write_atomic(folder / "ablation.md", tables.markdown(rows[0], rows[1:]))
    pictures = {"gains": plot_gains(numbers)} | ({"lengths": plot_lengths(lengths)} if lengths else {})
    for name, content in pictures.items():
        write_atomic(folder / "plots" / f"{name}.png", content)
    html.write_html(
        folder / "report.html",
        "gspo_ablation.html",
        title=f"GSPO ablation: {numbers['protocol']['ablation']}",
        numbers=numbers,
        header=rows[0],
        rows=rows[1:],
        plots={name: html.data_uri(content, "image/png") for name, content in pictures.items()},
    )
