"""The training of a process reward model, stage by stage."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypedDict

import torch

import agents
from agents.training.options import SFTOptions
from experiments.common.cli import open_run, progress, run_stage, setting_up
from experiments.common.config import RunError, check, choices
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.evaluate.answers import iou_report
from experiments.evaluate.answers.iou_estimates import READINGS, action_metrics, histogram, iou_estimate_metrics
from experiments.prm.config import RESUMABLE, Args
from search import labelled_masks
from search.labelled_masks import LabelledMask, observation_of
from search.prm import IouReader, expected_iou
from search.star import Rules
from segenv import data as datasets
from segenv import tools
from segenv.data import Dataset
from segenv.envs.filter import POINTS
from segenv.mdp import SegMDP
from segenv.records import reader as record_reader
from segenv.seeds import seed_of
from segenv.statistics import METRIC_DEFINITIONS


class CollectedMasks(TypedDict):
    """A line of train.jsonl or eval*.jsonl: the masks of a task."""

    task: str
    masks: list[LabelledMask]


@dataclass
class Run:
    """The training of a process reward model: settings, folder and data, with a method for each kind of stage."""

    args: Args
    folder: RunFolder
    train: Dataset
    held_out: list[Dataset]

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that are measured."""
        return ("before", "after") if self.args.steps else ("as it is",)

    @cached_property
    def mdp(self) -> SegMDP:
        """The rules and the tool."""
        return SegMDP(tools.make(self.args.tool), self.args.max_steps)

    def agent(self, name: str = "before", **options: Any) -> Any:
        """The model, before or after its training."""
        spec = f"mllm:{self.folder / 'model'}" if name == "after" else self.args.agent
        return agents.make(spec, self.args.codec, seed=self.args.seed, **options)

    def masks(self, name: str) -> list[LabelledMask]:
        """All masks in the file `name`."""
        return [one for record in self.folder.records(name, record_reader(CollectedMasks)) for one in record["masks"]]

    def training_masks(self) -> list[LabelledMask]:
        """The masks to learn from, balanced over IoU."""
        return labelled_masks.balanced(self.masks("train.jsonl"), self.args.rows, self.args.seed)

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """The stages in order, by their names on disk."""
        sets = range(len(self.held_out))
        gather = [(f"gather/eval{k}", partial(self.collect, self.held_out[k], f"eval{k}.jsonl")) for k in sets]
        judge = [(f"judge/{name}{k}", partial(self.score_masks, k, name)) for name in self.models for k in sets]
        if not self.args.steps:
            return [*gather, *judge]
        first = ("gather/train", partial(self.collect, self.train, "train.jsonl"))
        return [first, *gather, ("train", self.finetune), *judge]

    def collect(self, data: Dataset, name: str) -> None:
        """Append the masks of each task of `data` to the file `name`, resuming after those that are in it."""
        args, rules = self.args, Rules(stop_iou=self.args.stop_iou)
        policy = self.agent(temperature=args.temperature)
        data = data.checked(policy.check)
        have = {record["task"] for record in self.folder.records(name, record_reader(CollectedMasks))}
        with self.folder.appending(name) as file, progress(len(data), "task", len(have), name) as bar:
            for start in range(0, len(data), args.batch_size):
                group = data[start : start + args.batch_size]
                if have.issuperset(group.ids):
                    continue
                tasks = list(group)
                collected = labelled_masks.collect_masks(self.mdp, policy, tasks, args.seed, rules)
                for task, masks in zip(tasks, collected, strict=True):
                    if task.id not in have:
                        file.add({"task": task.id, "masks": [one.to_json() for one in masks]})
                        bar.update()

    def options(self) -> SFTOptions:
        """Settings of the training."""
        args = self.args
        trainer = {**vars(args.trainer), "extra": tuple(sorted(args.trainer.extra.items()))}
        trainer |= {"steps": args.steps, "batch_size": args.batch_rows, "learning_rate": args.learning_rate}
        return SFTOptions(seed=seed_of(args.seed, "prm") % 2**31, log_steps=25, **trainer)

    def finetune(self) -> None:
        """Fine-tune the agent's checkpoint on balanced masks of training tasks."""
        from agents.mllm import checkpoint
        from agents.training.sft import finetune

        if (self.folder / "model").exists():
            return  # a kill came between the last step and its mark
        args = self.args
        policy = self.agent()
        declare = {"codec": policy.codec.name, "prompt": policy.prompt_style, "image_size": policy.backend.image_size}
        policy.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
        examples = labelled_masks.PredictedIouExamples(self.training_masks(), policy, self.train.by_id)
        base, trained = checkpoint(args.agent), self.folder / "trained"
        finetune(base, examples, trained, self.options(), declare)
        export(trained, self.folder / "model", base)

    def score_masks(self, k: int, model: str) -> None:
        """Write the greedy and expected IoUs of a model for the held-out masks of dataset k, and some whole replies."""
        agent = self.agent(model)
        reader, task = IouReader(agent), self.held_out[k].by_id
        masks = self.masks(f"eval{k}.jsonl")
        answered = labelled_masks.balanced(masks, self.args.replies, self.args.seed)
        predicted: dict[str, list[float]] = {reading: [] for reading in READINGS}
        size = agent.backend.batch_size
        starts = range(0, len(masks), size)
        for start in progress(len(starts), "batch", name=f"{model}, {self.args.eval_data[k]}", items=starts):
            observations = [observation_of(one, task(one.task)) for one in masks[start : start + size]]
            greedy, distribution = reader.both(observations)
            predicted["greedy"] += greedy.tolist()
            predicted["mean"] += expected_iou(distribution).tolist()
        texts = agent.act([observation_of(one, task(one.task)) for one in answered], [0] * len(answered))
        indices = {(one.task, one.number): index for index, one in enumerate(masks)}
        replies = [[indices[one.task, one.number], text] for one, text in zip(answered, texts, strict=True)]
        self.folder.write_json(f"{model}{k}.json", {**predicted, "replies": replies})

    def results(self) -> dict[str, Any]:
        """The content of metrics.json: the training, and by held-out dataset how well models predict IoUs, and act."""
        codec, found = self.agent().codec, {}
        for k, data in enumerate(self.held_out):
            masks = self.masks(f"eval{k}.jsonl")
            written = {model: self.folder.load_json(f"{model}{k}.json") for model in self.models}
            read = {f"{model}, {way}": written[model][way] for model in self.models for way in READINGS}
            acts = {model: action_metrics(masks, written[model], codec, data.by_id) for model in self.models}
            estimates = iou_estimate_metrics(masks, read, self.args.seed, data.images_of)
            found[self.args.eval_data[k]] = {**estimates, "replies": acts}
        training = None
        if self.args.steps:
            masks, summary = self.training_masks(), self.folder.load_json("model/sft.json")
            sources = {source: sum(one.source == source for one in masks) for source in labelled_masks.SOURCES}
            training = {"rows": len(masks), "sources": sources, "iou": histogram([one.iou for one in masks])}
            training |= {name: summary[name] for name in ("steps", "seconds", "loss", "log")}
        return {"data": found, "training": training, "protocol": self.protocol()}

    def protocol(self) -> dict[str, Any]:
        """Every choice that changes a number."""
        chosen = choices(self.args, RESUMABLE)
        counts = {"training_tasks": len(self.train), "held_out_tasks": [len(data) for data in self.held_out]}
        fixed = {"samples": labelled_masks.SAMPLES, "errors": labelled_masks.ERRORS, "points": POINTS}
        return hide_home({**chosen, **counts, **fixed, **METRIC_DEFINITIONS})

    def report(self, about: dict[str, Any]) -> dict[str, Any]:
        """Write metrics.json and report.html; returns the numbers."""
        self.folder.write_json("metrics.json", self.results())
        numbers, shown = self.folder.load_json("metrics.json"), []
        for k, (spec, data) in enumerate(zip(self.args.eval_data, self.held_out, strict=True)):
            last = self.folder.load_json(f"{self.models[-1]}{k}.json")
            shown.append(iou_report.MaskSet(spec, self.masks(f"eval{k}.jsonl"), last, data.by_id))
        iou_report.write(self.folder, numbers, about, shown, self.args.report_masks)
        return numbers


def export(trained: Path, out: Path, base: str | Path | None) -> None:
    """Move a trained checkpoint to `out`, in float16 where `base` is stored so; the model that is kept is measured."""
    from agents.backends.transformers import load, stored_dtype
    from agents.training.sft import SUMMARY
    from segenv.checkpoints import no_loading_bars

    if base is None or stored_dtype(base) != torch.float16:
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


def splits(args: Args) -> tuple[Dataset, list[Dataset]]:
    """Training and held-out data. No image is in both."""
    train = whole = datasets.make(args.data, skip_bad=args.skip_bad, follow_links=args.follow_links)
    if args.data in args.eval_data:
        train = whole.select(whole.hold_out(0.3)[0])
    train, held_out = train[: args.limit], []
    for spec in args.eval_data:
        data = datasets.make(spec, skip_bad=args.skip_bad, follow_links=args.follow_links)
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
    """The run of settings that hold and data that can be read; RunError says what is wrong."""
    check(args)
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    torch.set_num_threads(args.threads)
    with setting_up(f"data {args.data!r} and agent {args.agent!r}"):
        from agents.mllm import checkpoint
        from agents.training.sft import check_options  # needs an extra, and is asked for only after the first stage

        checkpoint(args.agent)
        work = Run(args, RunFolder(out), *splits(args))
    with setting_up(f"tool {args.tool!r}"):
        work.mdp.tool  # noqa: B018  # made here, and kept
    with setting_up("the training"):
        check_options(work.options())
    return work


def run(args: Args) -> dict[str, Any]:
    """All stages, in the folder of `args`; returns the content of metrics.json."""
    work = prepare(args)
    hashes: dict[str, str | None] = {"data": work.train.fingerprint, "tool": work.mdp.tool.fingerprint}
    hashes |= {f"eval_data {k}": data.fingerprint for k, data in enumerate(work.held_out)}
    hashes["agent"] = work.agent().settings["weights"]
    with open_run(args, RESUMABLE) as folder:
        work.folder = folder
        about = folder.keep_manifest(manifest(args.seed, work.protocol(), hashes), METRIC_DEFINITIONS)
        for name, stage in work.stages():
            run_stage(folder, name, stage)
        numbers = work.report(about)
        folder.finish("prm")
        return numbers
