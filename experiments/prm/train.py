"""The training of a process reward model, stage by stage."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import agents
from experiments.common.config import RunError, plain
from experiments.common.run_folder import RunFolder, disk_errors, hide_home, manifest
from experiments.evaluate import iou_report
from experiments.evaluate.iou_estimates import READINGS, action_metrics, histogram, iou_estimate_metrics
from experiments.prm.config import RESUMABLE, Args
from search.labelled_masks import (
    ERRORS,
    SAMPLES,
    SOURCES,
    LabelledMask,
    PredictedIouExamples,
    balanced,
    collect_masks,
    observation_of,
)
from search.prm import IouReader, expected_iou
from search.star import Rules
from segenv import data as datasets
from segenv import tools
from segenv.data import Dataset
from segenv.envs.filter import POINTS
from segenv.mdp import SegMDP
from segenv.seeds import seed_of
from segenv.statistics import METRIC_DEFINITIONS
from segenv.types import Task


@dataclass
class Run:
    """What the stages share."""

    args: Args
    folder: RunFolder
    train: Dataset
    held_out: list[Dataset]

    @property
    def models(self) -> tuple[str, ...]:
        """What is measured, by name."""
        return ("before", "after") if self.args.steps else ("as it is",)

    @cached_property
    def mdp(self) -> SegMDP:
        """The rules and the tool."""
        return SegMDP(tools.make(self.args.tool), self.args.max_steps)

    @cached_property
    def rules(self) -> Rules:
        """When the annotator stops."""
        return Rules(stop_iou=self.args.stop_iou)

    def agent(self, name: str = "before", **options: Any) -> Any:
        """The model, before or after its training."""
        spec = f"mllm:{self.folder / 'model'}" if name == "after" else self.args.agent
        return agents.make(spec, self.args.codec, seed=self.args.seed, **options)

    def task(self, data: Dataset) -> Callable[[str], Task]:
        """Reads a task of `data` by its id."""
        places = {name: place for place, name in enumerate(data.ids)}
        return lambda name: data[places[name]]

    def masks(self, name: str) -> list[LabelledMask]:
        """All that were gathered in the file `name`."""
        return [LabelledMask(**one) for record in self.folder.records(name) for one in record["masks"]]


def splits(args: Args) -> tuple[Dataset, list[Dataset]]:
    """Training and held-out data. No image is in both."""
    train = whole = datasets.make(args.data, skip_bad=args.skip_bad)
    if args.data in args.eval_data:
        train = whole.select(whole.hold_out(0.3)[0])
    train, held_out = train[: args.limit], []
    for spec in args.eval_data:
        data = datasets.make(spec, skip_bad=args.skip_bad)
        data = data.select(data.hold_out(0.3)[1]) if spec == args.data else data
        held_out.append(data[: args.eval_limit])
        if shared := set(train.sources) & set(held_out[-1].sources):
            raise RunError(
                f"{len(shared)} images are in both {args.data!r} and {spec!r}, {min(shared)!r}; hold out others"
            )
    if not len(train) or not all(map(len, held_out)):
        raise RunError(f"{args.data!r} or one of {args.eval_data} has no task left; give more tasks, or higher limits")
    return train, held_out


def prepare(args: Args) -> Run:
    """Settings that hold, and data that can be read; RunError says what is wrong."""
    for name in ("max_steps", "limit", "eval_limit", "rows", "steps", "batch_rows", "batch_size"):
        least = 0 if name == "steps" else 1
        if getattr(args, name) < least:
            raise RunError(f"{name} is {getattr(args, name)}; expected {least} or more")
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    torch.set_num_threads(args.threads)
    try:
        import agents.training.sft  # noqa: F401  # needs an extra, and is asked for only after the first stage
        from agents.mllm import checkpoint

        checkpoint(args.agent)
        return Run(args, RunFolder(out), *splits(args))
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up data {args.data!r} and agent {args.agent!r}: {error}") from error


# --------------------------------------------------------------------------------------------------------------- stages


def collect(this: Run, data: Dataset, name: str) -> None:
    """Append the masks of each task of `data` to the file `name`, going on after those that are in it."""
    args, policy = this.args, this.agent(temperature=this.args.temperature)
    have = {record["task"] for record in this.folder.records(name)}
    with this.folder.appending(name) as file, _bar(len(data), len(have), "task", name) as bar:
        for start in range(0, len(data), args.batch_size):
            group = data[start : start + args.batch_size]
            if have.issuperset(group.ids):
                continue
            tasks = list(group)
            made = collect_masks(this.mdp, policy, tasks, args.seed, this.rules)
            for task, masks in zip(tasks, made, strict=True):
                if task.id not in have:
                    file.add({"task": task.id, "masks": [one.to_json() for one in masks]})
                    bar.update()


def finetune(this: Run) -> None:
    """Fine-tune the agent's checkpoint on balanced masks of training tasks."""
    from agents.mllm import checkpoint
    from agents.training.sft import SFTOptions, finetune

    if (this.folder / "model").exists():
        return  # a kill came between the last step and its mark
    args, trainer = this.args, this.args.trainer
    options = SFTOptions(
        steps=args.steps,
        batch_size=args.batch_rows,
        micro_batch_size=trainer.micro_batch_size,
        learning_rate=args.learning_rate,
        warmup=trainer.warmup,
        weight_decay=trainer.weight_decay,
        seed=seed_of(args.seed, "prm") % 2**31,
        lora=trainer.lora,
        bf16=trainer.bf16,
        gradient_checkpointing=trainer.gradient_checkpointing,
        log_steps=25,
        extra=tuple(sorted(trainer.extra.items())),
    )
    pupil = this.agent()
    declare = {"codec": pupil.codec.name, "prompt": pupil.prompt_style, "image_size": pupil.backend.image_size}
    pupil.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
    rows = balanced(this.masks("train.jsonl"), args.rows, args.seed)
    lessons = PredictedIouExamples(rows, pupil, this.task(this.train))
    base, trained = checkpoint(args.agent), this.folder / "trained"
    finetune(base, lessons, trained, options, declare)
    export(trained, this.folder / "model", base)


def export(trained: Path, out: Path, base: str | Path | None) -> None:
    """Move a trained checkpoint to `out`, in float16 where `base` is stored so, as the embedded one is: what is judged
    afterwards is what is kept."""
    from transformers import AutoConfig

    from agents.backends.transformers import load
    from agents.training.sft import SUMMARY
    from segenv.tools.sam import no_loading_bars

    if base is None or AutoConfig.from_pretrained(base).dtype != torch.float16:
        os.replace(trained, out)
        return
    beside = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    with no_loading_bars():
        for part in load(trained, "float16"):  # model and processor
            part.save_pretrained(beside)
    shutil.copy(trained / SUMMARY, beside)
    os.replace(beside, out)
    shutil.rmtree(trained)


def score_masks(this: Run, k: int, model: str) -> None:
    """What a model states about the held-out masks of dataset k: the greedy number, the expected one, and on some
    masks its whole reply."""
    agent = this.agent(model)
    reader, task = IouReader(agent), this.task(this.held_out[k])
    masks = this.masks(f"eval{k}.jsonl")
    replied = balanced(masks, this.args.replies, this.args.seed)
    stated: dict[str, list[float]] = {way: [] for way in READINGS}
    size = agent.backend.batch_size
    for start in tqdm(range(0, len(masks), size), desc=f"{model}, {this.args.eval_data[k]}", unit="batch"):
        seen = [observation_of(one, task(one.task)) for one in masks[start : start + size]]
        greedy, shares = reader.both(seen)
        stated["greedy"] += greedy.tolist()
        stated["mean"] += expected_iou(shares).tolist()
    written = agent.act([observation_of(one, task(one.task)) for one in replied], [0] * len(replied))
    places = {(one.task, one.number): place for place, one in enumerate(masks)}
    replies = [[places[one.task, one.number], text] for one, text in zip(replied, written, strict=True)]
    this.folder.write_json(f"{model}{k}.json", {**stated, "replies": replies})


def _bar(total: int, done: int, unit: str, name: str) -> tqdm:
    return tqdm(total=total, initial=done, unit=unit, desc=name, mininterval=0.2 if sys.stderr.isatty() else 10.0)


def stages(this: Run) -> list[tuple[str, Callable[[], None]]]:
    """What is done, in order, by name."""
    gathered: list[tuple[str, Callable[[], None]]] = []
    judged: list[tuple[str, Callable[[], None]]] = []
    for k, data in enumerate(this.held_out):
        gathered.append((f"gather/eval{k}", partial(collect, this, data, f"eval{k}.jsonl")))
    for name in this.models:
        judged += [(f"judge/{name}{k}", partial(score_masks, this, k, name)) for k in range(len(this.held_out))]
    if not this.args.steps:
        return [*gathered, *judged]
    first = ("gather/train", partial(collect, this, this.train, "train.jsonl"))
    return [first, *gathered, ("train", partial(finetune, this)), *judged]


# -------------------------------------------------------------------------------------------------------------- results


def results(this: Run) -> dict[str, Any]:
    """The content of metrics.json: what was learned from, and for each held-out dataset how good each reading is, on
    all masks, on as many of each tenth of IoU, and by source, and how both models act."""
    args, codec = this.args, this.agent().codec
    found = {}
    for k, data in enumerate(this.held_out):
        masks, said = (
            this.masks(f"eval{k}.jsonl"),
            {model: this.folder.read_json(f"{model}{k}.json") for model in this.models},
        )
        read = {f"{model}, {way}": said[model][way] for model in this.models for way in READINGS}
        acts = {model: action_metrics(masks, said[model], codec, this.task(data)) for model in this.models}
        found[args.eval_data[k]] = {**iou_estimate_metrics(masks, read, args.seed), "replies": acts}
    return {"data": found, "training": training(this) if args.steps else None, "protocol": protocol(this)}


def training(this: Run) -> dict[str, Any]:
    """What was learned from, and how that went."""
    rows = balanced(this.masks("train.jsonl"), this.args.rows, this.args.seed)
    summary = this.folder.read_json("model/sft.json")
    return {
        "rows": len(rows),
        "sources": {source: sum(one.source == source for one in rows) for source in SOURCES},
        "iou": histogram([one.iou for one in rows]),
        **{name: summary[name] for name in ("steps", "seconds", "loss", "log")},
    }


def protocol(this: Run) -> dict[str, Any]:
    """Every choice that changes a number."""
    args = plain(this.args)
    chosen = {key: args[key] for key in args if key not in RESUMABLE | {"out", "resume"}}
    counts = {"training_tasks": len(this.train), "held_out_tasks": [len(data) for data in this.held_out]}
    return hide_home({**chosen, **counts, "samples": SAMPLES, "errors": ERRORS, "points": POINTS, **METRIC_DEFINITIONS})


def run(args: Args) -> dict[str, Any]:
    """All stages, in the folder of `args`; returns what metrics.json holds."""
    this = prepare(args)
    hashes: dict[str, str | None] = {"data": this.train.fingerprint, "tool": this.mdp.tool.fingerprint}
    hashes |= {f"eval_data {k}": data.fingerprint for k, data in enumerate(this.held_out)}
    hashes["agent"] = this.agent().settings["weights"]
    out = this.folder.path
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        this.folder = folder
        about = folder.keep_manifest(manifest(args.seed, protocol(this), hashes))
        for name, work in stages(this):
            if folder.done(name):
                print(f"[{name}] done before", file=sys.stderr)
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            with disk_errors(out):
                work()
            folder.finish(name)
            print(f"[{name}] {time.perf_counter() - began:.1f} s", file=sys.stderr)
        folder.write_json("metrics.json", results(this))
        shown = [
            iou_report.MaskSet(
                spec, this.masks(f"eval{k}.jsonl"), folder.read_json(f"{this.models[-1]}{k}.json"), this.task(data)
            )
            for k, (spec, data) in enumerate(zip(args.eval_data, this.held_out, strict=True))
        ]
        iou_report.write(folder, folder.read_json("metrics.json"), about, shown, args.report_masks)
        folder.finish("prm")
        return folder.read_json("metrics.json")
