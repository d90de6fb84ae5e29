"""The ablations of GSPO: each arm is a run of `experiments.gspo` in each seed. Gains are over the policy of the start
and over the table's first arm. An arm is one more entry in `TABLES`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.mllm import checkpoint
from agents.training.checkpoints import identity
from agents.training.gspo import processes
from experiments import polygon_ablation
from experiments.common import ablation, plots
from experiments.common.ablation import Arm
from experiments.common.cli import open_run
from experiments.common.config import RunError, choices, create_or_resume
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.common.splits import HEADLINE, split
from experiments.common.tables import Table
from experiments.evaluate.answers.polygon_metrics import METRIC_DEFINITIONS, Record
from experiments.gspo import controls
from experiments.gspo import train as gspo
from experiments.gspo.answers import ANSWERS, MODES, Replies, of_mode, read_replies, tasks_of, values
from experiments.gspo.config import RESUMABLE, Args
from segenv import statistics

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
        Arm("chamfer", "distance of polygons in place of IoU", {"reward": "chamfer+0.1*format"}),
    ),
    "algorithms": (
        Arm("GSPO", "sequence ratios", train={"algorithm": "gspo"}),
        Arm("LUSPO", "sequence ratios, weighted by length", train={"algorithm": "luspo"}),
        Arm("GRPO", "token ratios", train={"algorithm": "grpo"}),
    ),
}
ENDPOINTS = {"giou": "gIoU", "boundary_f": "boundary F"}
PRIMARY = ("scaled", "greedy", "giou")  # control, mode and measure
STARTS = "starts"
TAUGHT = polygon_ablation.ARMS["vertices"]  # how each of them is taught


def arms(args: Args, out: str | Path = "") -> tuple[Arm, ...]:
    """The arms of the table `args.ablation`; `out` is the run's folder, in which the models of `teach` lie."""
    if args.ablation != "length":
        return TABLES[args.ablation]
    if not args.checkpoints:
        if args.codec is not None:
            raise RunError(f"--ablation length teaches rings; with --codec {args.codec}, give --checkpoints")
        models = {name: ablation.arm_folder(Path(out).resolve() / STARTS, 0, name) / "model" for name in TAUGHT}
        return tuple(Arm(name, f"taught {name} polygons", {"agent": f"mllm:{at}"}) for name, at in models.items())
    paths = [Path(spec.partition(":")[2]) for spec in args.checkpoints]
    names = [path.parent.name if path.name == "model" else path.name for path in paths]
    if len({ablation.arm_folder("", 0, name) for name in names}) < len(names) or not all(names):
        raise RunError(f"--checkpoints name their arms {', '.join(names)} by their folders; these names must differ")
    return tuple(Arm(name, spec, {"agent": spec}) for name, spec in zip(names, args.checkpoints, strict=True))


def teach(args: Args, out: Path) -> None:
    """Make the models that --ablation length starts from where no --checkpoints are given, in the folder `out`."""
    if not RunFolder(out).done("ablation"):
        settings = create_or_resume(out) | {"steps": args.start_steps, "tasks": args.eval_limit, "ratio": args.ratio}
        polygon_ablation.run(polygon_ablation.Args("vertices", **settings, workers=args.workers, threads=args.threads))


def run(args: Args) -> dict[str, Any]:
    """Run all arms in all seeds, in the folder of `args`; returns what ablation.json holds."""
    if processes() > 1:
        raise RunError("an ablation trains in one process; start it without accelerate launch")
    if not args.resume and args.eval_data is None and args.data.startswith("synthetic"):
        args = replace(args, eval_data=HEADLINE)
    chosen = arms(args, args.resume or args.out or "")
    if not args.resume:
        gspo.prepare(args)  # an error is raised before anything is written
    with open_run(args, RESUMABLE) as folder:
        if args.ablation == "length" and not args.checkpoints:
            teach(args, folder / STARTS)
        hashes = {arm.name: identity(checkpoint(arm.settings.get("agent", args.agent))) for arm in chosen}
        folder.keep_manifest(manifest(args.seeds[0], _protocol(args, chosen), hashes), METRIC_DEFINITIONS)
        runs = [_arm(args, folder, seed, arm) for seed in args.seeds for arm in chosen]
        for one in runs:
            if one.agent == args.agent and one.resume is None and checkpoint(args.agent) is not None:
                ablation.share(
                    _start(args, folder).path, Path(one.out or ""), [ANSWERS], shutil.copy
                )  # it is appended to
        ablation.run_arms(gspo.run, "gspo", runs, args.workers)
        if args.ablation == "sft":
            _measure_controls(args, folder)
        numbers = results(args, folder, chosen)
        return ablation.write(folder, numbers, report(numbers, _lengths(args, folder, chosen)))


def _arm(args: Args, folder: RunFolder, seed: int, arm: Arm) -> Args:
    """The settings of one run."""
    where = create_or_resume(ablation.arm_folder(folder.path, seed, arm.name))
    train = replace(args.train, **_training(args, arm), seed=seed)
    return replace(args, **arm.settings, **where, train=train, ablation="none", seeds=(seed,), checkpoints=())


def _training(args: Args, arm: Arm) -> dict[str, Any]:
    """Options of training that an arm sets; where it sets the start, replies may be as long as that was taught."""
    base = checkpoint(arm.settings["agent"]) if "agent" in arm.settings else None
    if base is None or not Path(base, "config.json").is_file():
        return dict(arm.train)
    declared = json.loads(Path(base, "config.json").read_text(encoding="utf-8")).get("segenv") or {}
    return {**arm.train, "max_tokens": max(args.train.max_tokens, declared.get("max_new_tokens", 0))}


def _start(args: Args, folder: RunFolder) -> RunFolder:
    """The folder with the replies of the policy that all arms start from, which are sampled once."""
    start = RunFolder(folder / "start")
    if not start.done("before"):
        start.path.mkdir(exist_ok=True)
        this = gspo.prepare(replace(args, out=str(start.path), resume=None))
        this.measure(this.agent, 0)
        start.finish("before")
    return start


def _measure_controls(args: Args, folder: RunFolder) -> None:
    """Choose and measure the controls that take no training, in the folder of the start."""
    start = _start(args, folder)
    if not start.done("controls"):
        this = gspo.prepare(replace(args, out=str(start.path), resume=None))
        controls.measure(this, args.control_tasks)
        start.finish("controls")


def results(args: Args, folder: RunFolder, chosen: Sequence[Arm]) -> dict[str, Any]:
    """The content of ablation.json; of pooled differences, seeds are a random effect."""
    replies = {
        arm.name: [read_replies(RunFolder(ablation.arm_folder(folder.path, seed, arm.name))) for seed in args.seeds]
        for arm in chosen
    }
    first, last = replies[chosen[0].name], args.train.steps
    _, held_out, *_ = split(args.data, args.eval_data, args.limit, args.eval_limit, follow_links=args.follow_links)
    images = held_out.images_of(tasks_of(first[0][0]))
    lines = [
        {"arm": arm.name, "about": arm.about}
        | {mode: _compare(replies[arm.name], first, last, sampled, images) for mode, sampled in MODES}
        for arm in chosen
    ]
    protocol = _protocol(args, chosen)
    numbers: dict[str, Any] = {"arms": lines, "held_out_tasks": len(images), "protocol": protocol}
    if args.ablation == "sft":
        found, untrained = controls.read(RunFolder(folder / "start"))
        protocol["controls"] = found
        protocol["primary endpoint"] = f"greedy gIoU of {chosen[0].name} less the start's outlines, scaled"
        protocol["chosen"] = (
            f"scale and temperature by gIoU on {found['tasks']} tasks of {args.data}; nothing on the held-out tasks"
        )
        claim = [one[last] for one in first]
        others = {"start": [one[0] for one in first]}
        others |= {name: [one] * len(claim) for name, one in untrained.items()}
        others |= {arm.name: [one[last] for one in replies[arm.name]] for arm in chosen[1:]}
        numbers["controls"] = [_control(name, untrained[name], others["start"], images) for name in controls.NAMES]
        numbers["contrasts"] = [_contrast(name, claim, other, images) for name, other in others.items()]
    return numbers


def _control(
    name: str, records: Sequence[Record], start: Sequence[Sequence[Record]], images: Sequence[str]
) -> dict[str, Any]:
    """The numbers of a control that takes no training, by mode; the cooler one has sampled replies alone."""
    line: dict[str, Any] = {"control": name}
    for mode, sampled in MODES:
        if of_mode(records, sampled):
            own = {key: values(records, sampled, key) for key in (*ENDPOINTS, "valid", "tokens")}
            gain = statistics.bootstrap_difference(own["giou"], values(start[0], sampled), images=images)
            line[mode] = {**{key: float(one.mean()) for key, one in own.items()}, "gain": list(gain)}
    return line


def _contrast(
    name: str, claim: Sequence[Sequence[Record]], other: Sequence[Sequence[Record]], images: Sequence[str]
) -> dict[str, Any]:
    """Differences of the first arm to a control by mode and endpoint, as mean and interval; replies of each seed."""
    line: dict[str, Any] = {"control": name}
    for mode, sampled in MODES:
        if of_mode(other[0], sampled):
            pairs = list(zip(claim, other, strict=True))
            line[mode] = {
                key: list(
                    statistics.random_effects(
                        [values(one, sampled, key) - values(another, sampled, key) for one, another in pairs], images
                    )
                )
                for key in ENDPOINTS
            }
    return line


def _compare(
    arm: Sequence[Replies], first: Sequence[Replies], last: int, sampled: bool, images: Sequence[str]
) -> dict[str, Any]:
    """An arm's numbers in one mode, from its replies and the first arm's in each seed."""
    before, after, other = (
        [values(replies[step], sampled) for replies in some] for some, step in ((arm, 0), (arm, last), (first, last))
    )
    records = [of_mode(replies[last], sampled) for replies in arm]
    boundary = [float(values(replies[last], sampled, "boundary_f").mean()) for replies in arm]
    return {
        "before": float(np.mean(before)),
        "after": float(np.mean(after)),
        "after_by_seed": [float(values.mean()) for values in after],
        **ablation.paired_gains(after, before, images=images),
        **ablation.paired_gains(after, other, "over_first", images),
        **ablation.averaged("boundary_f", boundary),
        "boundary_f_before": float(values(arm[0][0], sampled, "boundary_f").mean()),
        **ablation.averaged("valid", [float(np.mean([one.error is None for one in some])) for some in records]),
        **ablation.averaged("tokens", [float(np.mean([one.tokens for one in some])) for some in records]),
        "tokens_before": float(np.mean([one.tokens for one in of_mode(arm[0][0], sampled)])),
    }


def _protocol(args: Args, chosen: Sequence[Arm]) -> dict[str, Any]:
    kept = choices(args, RESUMABLE)
    return hide_home(
        {
            "arms": {arm.name: {**arm.settings, **_training(args, arm)} for arm in chosen},
            "intervals": ablation.INTERVALS,
            "between seeds": "the order of tasks and the replies drawn in training differ; the policy of the start, "
            "the held-out tasks and the seeds of their drawn replies are the same",
            "+ SFT": "learns outlines by name, of --vertices, --rows and --ratio, not the mixture of the start, "
            "without dense losses; at a constant rate of its own, --sft-learning-rate",
            **kept,
        }
    )


def table(numbers: Mapping[str, Any]) -> Table:
    """A row for each arm and seed: for greedy and sampled replies gIoU, gain and gain over the first arm; valid and
    tokens. Arms of the length of replies have starts of their own, and no gain over another arm."""
    lines, seeds = numbers["arms"], numbers["protocol"]["seeds"]
    starts = numbers["protocol"]["ablation"] == "length"

    def start(name: str, line: Mapping[str, Any]) -> list[str]:
        cells = []
        for mode, _ in MODES:
            cells += [f"{line[mode]['before']:.3f}", "", "", f"{line[mode]['boundary_f_before']:.3f}"]
        return [name, "", *cells, "", f"{line['sampled']['tokens_before']:.1f}"]

    rows = [] if starts else [start("start", lines[0])]
    rows += [_untrained(line, numbers["protocol"]["controls"]) for line in numbers.get("controls", ())]
    for index, line in enumerate(lines):
        if starts:
            rows.append(start(f"{line['arm']}, start", line))
        by_mode = zip(*(ablation.by_seed([line[mode]], seeds) for mode, _ in MODES), strict=True)
        for k, modes in enumerate(list(by_mode)[len(seeds) == 1 :]):
            cells = []
            for own in modes:
                over = ablation.cell(own["over_first"], 3) if index and not starts else ""
                cells += [f"{own['after']:.3f}", ablation.cell(own["gain"], 3), over, f"{own['boundary_f']:.3f}"]
            ends = [f"{modes[-1]['valid']:.3f}", f"{modes[-1]['tokens']:.1f}"]
            rows.append(["" if k else line["arm"], modes[-1]["seed"], *cells, *ends])
    columns = ("{} gIoU", "gain", f"over {lines[0]['arm']}", "{} boundary F")
    names = [name.format(mode) for mode, _ in MODES for name in columns]
    return Table(["", "seed", *names, "valid, sampled", "tokens"], rows)


def _untrained(line: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """The row of a control that takes no training."""
    cells = []
    for mode, _ in MODES:
        own = line.get(mode)
        gain = ablation.cell(own["gain"], 3) if own else ""
        cells += [f"{own['giou']:.3f}", gain, "", f"{own['boundary_f']:.3f}"] if own else [""] * 4
    sampled = line["sampled"]
    return [_named(line["control"], chosen), "", *cells, f"{sampled['valid']:.3f}", f"{sampled['tokens']:.1f}"]


def _named(control: str, chosen: Mapping[str, Any]) -> str:
    """The name of a control with its constant."""
    names = {"scaled": f"start, scaled by {chosen['scale']:g}", "cooler": f"start at T = {chosen['temperature']:g}"}
    return names.get(control, control)


def contrasts(numbers: Mapping[str, Any]) -> Table | None:
    """A row for each control: what the first arm has more, by mode and endpoint; None where there are no controls."""
    if "contrasts" not in numbers:
        return None
    columns = [(mode, key) for mode, _ in MODES for key in ENDPOINTS]
    rows = []
    for line in numbers["contrasts"]:
        name = _named(line["control"], numbers["protocol"]["controls"])
        if line["control"] == PRIMARY[0]:
            name += f" (primary: {PRIMARY[1]} {ENDPOINTS[PRIMARY[2]]})"
        rows.append([name, *(ablation.cell(line[mode][key]) if mode in line else "" for mode, key in columns)])
    head = f"{numbers['arms'][0]['arm']} less"
    return Table([head, *(f"{mode} {ENDPOINTS[key]}" for mode, key in columns)], rows)


def text(numbers: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    protocol, against = numbers["protocol"], contrasts(numbers)
    head = f"{numbers['held_out_tasks']} held-out tasks of {protocol['eval_data']}, {protocol['train']['steps']} steps"
    parts = [head, table(numbers).text()]
    if against is not None:
        parts += [f"primary endpoint: {protocol['primary endpoint']}. Chosen: {protocol['chosen']}", against.text()]
    return "\n".join(parts)


def report(numbers: Mapping[str, Any], lengths: Mapping[str, Sequence[tuple[int, float]]]) -> ablation.Report:
    """The table, gains over the start, greedy and sampled, and the lengths of replies over steps."""
    groups = {mode: [line[mode]["gain"] for line in numbers["arms"]] for mode, _ in MODES}
    names = [line["arm"] for line in numbers["arms"]]
    pictures = {"gains": plots.plot_intervals(groups, names, "gain of held-out gIoU")}
    if lengths:
        pictures["lengths"] = plots.plot_lines(lengths, "steps", "tokens of a sampled reply", ylim=(0, None))
    protocol = numbers["protocol"]
    about = (
        f"{numbers['held_out_tasks']} held-out tasks of {protocol['eval_data']}, {protocol['train']['steps']} steps. "
        f"Gains are over the start. Intervals: {protocol['intervals']}. Valid and tokens are of sampled replies."
    )
    if "contrasts" in numbers:
        about += f" Primary endpoint: {protocol['primary endpoint']}. Chosen: {protocol['chosen']}."
    return ablation.Report(
        f"GSPO ablation: {protocol['ablation']}",
        about,
        table(numbers),
        pictures,
        {line["arm"]: line["about"] for line in numbers["arms"]},
        contrasts=contrasts(numbers),
    )


def _lengths(args: Args, folder: RunFolder, chosen: Sequence[Arm]) -> dict[str, list[tuple[int, float]]]:
    """Mean length of sampled replies over steps, of each arm that was reinforced, in the first seed."""
    lengths = {}
    for arm in chosen:
        summary = RunFolder(ablation.arm_folder(folder.path, args.seeds[0], arm.name)).read_json("policy/gspo.json")
        if summary and summary["log"]:
            lengths[arm.name] = [(entry["step"], entry["completions/mean_length"]) for entry in summary["log"]]
    return lengths
