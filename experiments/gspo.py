"""GSPO: a policy that outlines objects learns from the IoU of what it draws (SimpleSeg, arXiv 2601.19228, §2).

    python -m experiments.gspo --agent mllm:tiny-polygon --out runs/gspo           # procedural scenes, from SFT
    python -m experiments.gspo --resume runs/gspo                                  # after a stop, of whatever kind
    accelerate launch --num_processes 2 -m experiments.gspo …                      # on CPUs too (gloo)
    python -m experiments.gspo --ablation sft                                      # SFT, + GSPO, + as much more SFT

Stages: held-out tasks before, training (with a probe of the same tasks every so often; it is finished when `policy` is
there), and all held-out tasks after; greedy replies and drawn ones. `--method sft` is the control: as many steps and
replies, learned from the right outlines. Departures from the paper: weights of the reward, group size and learning rate
are ours, as none is published.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import tyro
import yaml

from agents.gspo import GSPOOptions, processes
from agents.outlines import RATIO, VERTICES, drawn
from experiments.launch import as_launched
from experiments.polygons_measures import Record
from experiments.runs import RunError, RunFolder, disk_errors, hide_home, manifest, parse_args, plain
from experiments.star_stages import split
from segenv.data.base import Dataset
from segenv.seeds import seed_of
from segenv.types import SegenvError, Task, ignored_of, object_of

FREE = frozenset({"panel", "workers"})
COUNTS = ("limit", "eval_limit", "probe", "probe_steps", "samples", "eval_batch", "threads", "start_steps")
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's table."""

    agent: str = "mllm:tiny-polygon"
    """the policy to improve: a model that writes outlines, mllm:NAME_OR_PATH"""
    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; synthetic:val for synthetic data"""
    codec: str | None = None
    """how outlines are written; by default as the checkpoint declares"""
    reward: str = "iou+0.1*centroid+0.1*format"
    """weighted sum of iou, centroid, format, boundary_f and chamfer"""
    method: Literal["gspo", "sft"] = "gspo"
    """reinforcement, or the control: as many steps and replies of supervised fine-tuning"""
    train: Annotated[GSPOOptions, tyro.conf.arg(name="")] = field(default_factory=GSPOOptions)
    sft_learning_rate: float = 2e-4
    """of the control"""
    vertices: int = VERTICES
    """of the outlines that the control learns from, at most; as in experiments.sft"""
    ratio: float = RATIO
    """by which these outlines are simplified; as in experiments.sft"""
    limit: int = 100_000
    """training tasks"""
    eval_limit: int = 500
    """held-out tasks, before and after"""
    probe: int = 60
    """held-out tasks, the first of those, on the way"""
    probe_steps: int = 80
    """how often they are measured; whole rounds"""
    samples: int = 1
    """replies drawn for each held-out task, beside the greedy one"""
    eval_batch: int = 64
    """replies at a time; a model's last bits depend on it"""
    panel: int = 6
    """held-out tasks in the picture of start, middle and end"""
    threads: int = 1
    """of each process"""
    ablation: Literal["none", "sft", "rewards", "algorithms", "length"] = "none"
    """a table of arms, each a run of its own in each of --seeds: against more SFT; parts of the reward; GSPO, LUSPO and
    GRPO; or the length of replies, from several starts"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of an ablation"""
    checkpoints: tuple[str, ...] = ()
    """agents that --ablation length starts from; without any, from three that the embedded click policy becomes when it
    is taught sparse, middle and dense outlines in rings"""
    start_steps: int = 1_500
    """of each of those three"""
    workers: int = 0
    """arms of an ablation that are trained at once, by default one on a GPU and otherwise two; no number depends on
    it"""
    out: str | None = None
    """folder of a new run; by default runs/gspo-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""

    skip_bad: ClassVar[bool] = False  # a bad item ends the run: training asks for tasks in an order of its own


@dataclass
class Run:
    """What the stages share."""

    args: Args
    folder: RunFolder
    agent: Any
    data: Dataset
    held_out: Dataset
    train_places: Sequence[int]
    eval_places: Sequence[int]

    def __post_init__(self) -> None:
        self.held_out_task = lru_cache(maxsize=self.args.probe)(self.held_out.__getitem__)
        self.held_out_ids = {self.held_out.ids[place]: place for place in self.eval_places}


class Questions(Sequence):
    """Training tasks as rows of `agents.gspo` (with the target to be met) or of `agents.sft` (with the reply to learn),
    made when they are asked for."""

    def __init__(self, this: Run, count: int | None = None) -> None:
        self.this, self.agent = this, this.agent
        self.places = this.train_places[:count]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k):
        from segenv import queries
        from segenv.data.recorded import encode

        args, task, codec = self.this.args, self.this.data[self.places[k]], self.agent.codec
        query = queries.query(task, codec, style=self.agent.prompt_style)
        row = {"image": self.agent.backend.sent(query.picture), "prompt": query.prompt}
        if args.method == "sft":
            return {**row, "reply": drawn(task, codec, args.vertices, args.ratio)}
        ignored = ignored_of(task.target)
        return {
            **row,
            "target": {"size": [task.height, task.width], "counts": encode(object_of(task.target))},
            "ignored": None if ignored is None else encode(ignored),
        }


# -------------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        as_launched()
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            if processes() > 1:
                raise RunError("several processes write into one folder; name it with --out")
            args = replace(args, out=time.strftime("runs/gspo-%Y%m%d-%H%M%S"))
        if args.ablation != "none":
            from experiments import gspo_ablation

            print(gspo_ablation.text(gspo_ablation.run(args)))
        else:
            numbers = run(args)
            if numbers is None:  # another process than the first
                return 0
            from experiments import gspo_report

            print(gspo_report.text(numbers))
    except (SegenvError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        where = args.resume or args.out
        print(f"\ninterrupted; go on with: python -m experiments.gspo --resume {where}", file=sys.stderr)
        return 130
    print(f"report: {args.resume or args.out}/report.html")
    return 0


def prepare(args: Args) -> Run:
    """Settings that hold, data that can be read and a model that can be trained; RunError says what is wrong."""
    for name in COUNTS:
        if getattr(args, name) < 1:
            raise RunError(f"{name} is {getattr(args, name)}; expected 1 or more")
    if args.workers < 0:
        raise RunError(f"workers is {args.workers}; expected 0 (by itself) or more")
    if args.vertices < 4 or not 0 <= args.ratio < 1:
        raise RunError(f"vertices is {args.vertices} and ratio {args.ratio}; expected 4 or more, and from 0 to below 1")
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    try:
        import torch

        import agents
        from agents.mllm import checkpoint
        from segenv import codec as codecs
        from segenv import rewards
        from segenv.codec.polygons import DIALECTS, PolygonCodec

        torch.set_num_threads(args.threads)
        checkpoint(args.agent)
        speaks = None if args.codec is None else codecs.get(args.codec)
        agent: Any = agents.make(
            args.agent, speaks, seed=args.train.seed, max_new_tokens=args.train.max_tokens, batch_size=args.eval_batch
        )
        if not isinstance(agent.codec, PolygonCodec):
            raise RunError(f"agent {args.agent!r} speaks {agent.codec.name!r}; give a --codec of {', '.join(DIALECTS)}")
        rewards.polygon(args.reward, agent.codec)
        declared = (getattr(agent.backend.model.config, "segenv", None) or {}).get("max_new_tokens", 0)
        if declared > args.train.max_tokens:
            raise RunError(
                f"agent {args.agent!r} was taught replies of up to {declared} tokens, and would be cut off at "
                f"{args.train.max_tokens}; give --max-tokens {declared} or more"
            )
        return Run(args, RunFolder(out), agent, *split(args))  # type: ignore[arg-type]  # it has the fields that count
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up data {args.data!r} and agent {args.agent!r}: {error}") from error


def run(args: Args) -> dict[str, Any] | None:
    """All stages, in the folder of `args`; returns what metrics.json holds (None in other processes than the first)."""
    import torch
    from accelerate import PartialState

    several = processes() > 1
    if several and args.method == "sft":
        raise RunError("--method sft trains in one process; start it without accelerate launch")
    # the first process measures while the others wait; each has a device of its own before it loads anything
    everyone = PartialState(cpu=not torch.cuda.is_available(), **({"timeout": timedelta(hours=12)} if several else {}))
    this = prepare(args)
    if not everyone.is_main_process:
        this.agent.backend.model = None
        everyone.wait_for_everyone()
        learn(this)
        return None
    out = this.folder.path
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        this.folder = folder
        about = manifest(args.train.seed, protocol(this), hashes(this))
        folder.keep_manifest(about)
        with disk_errors(out):
            if not folder.done("before"):
                measure(this, this.agent, 0, this.eval_places)
                folder.finish("before")
            everyone.wait_for_everyone()
            learn(this)
            if not folder.done("after"):
                measure(this, trained(this), args.train.steps, this.eval_places)
                folder.finish("after")
            from experiments import gspo_report

            numbers = gspo_report.write(this)
        folder.finish("gspo")
        return numbers


def hashes(this: Run) -> dict[str, str | None]:
    """What identifies the data and the model of a run."""
    return {
        "data": this.data.fingerprint,
        "eval_data": this.held_out.fingerprint,
        "agent": this.agent.settings["weights"],
    }


def protocol(this: Run) -> dict[str, Any]:
    """Every choice that changes a number."""
    from experiments.polygons_measures import PROTOCOL

    args = plain(this.args)
    elsewhere = FREE | {"out", "resume", "ablation", "seeds", "checkpoints"}
    chosen = {key: args[key] for key in args if key not in elsewhere}
    chosen |= {"codec": this.agent.codec.name, "prompt": this.agent.prompt_style}
    chosen |= {"training_tasks": len(this.train_places), "held_out_tasks": len(this.eval_places)}
    return hide_home({**chosen, **PROTOCOL})


# --------------------------------------------------------------------------------------------------------------- stages


def learn(this: Run) -> None:
    """Train, in every process; the checkpoint goes to `policy`."""
    from agents.mllm import checkpoint

    args, agent = this.args, this.agent
    declare = {
        "codec": agent.codec.name,
        "prompt": agent.prompt_style,
        "image_size": agent.backend.image_size,
        "max_new_tokens": args.train.max_tokens,
    }
    base, out = checkpoint(args.agent), this.folder / "policy"
    agent.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
    from agents.gspo import optimise
    from agents.sft import finetune
    from experiments.gspo_probe import Probe
    from segenv import rewards

    try:
        if args.method == "sft":
            finetune(base, Questions(this, control(args).batch_size * args.train.steps), out, control(args), declare)
        else:
            reward = rewards.polygon(args.reward, agent.codec)
            optimise(base, Questions(this), reward, out, args.train, declare, [Probe(this)])
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(str(error)) from error


def control(args: Args) -> Any:
    """The supervised training that makes as many steps, each of as many replies."""
    from agents.sft import SFTOptions

    train = args.train
    return SFTOptions(
        steps=train.steps,
        batch_size=train.prompts * train.group // train.updates,
        micro_batch_size=train.micro_batch_size,
        learning_rate=args.sft_learning_rate,
        warmup=train.warmup,
        seed=train.seed,
        lora=train.lora,
        bf16=train.bf16,
        gradient_checkpointing=train.gradient_checkpointing,
        save_steps=train.save_steps,
        extra=(("lr_scheduler_type", "constant_with_warmup"),),  # as GSPO's
    )


def trained(this: Run) -> Any:
    """The policy after training, as an agent."""
    import agents

    args = this.args
    return agents.make(
        f"mllm:{this.folder / 'policy'}", max_new_tokens=args.train.max_tokens, batch_size=args.eval_batch
    )


def measure(this: Run, agent: Any, step: int, places: Sequence[int]) -> None:
    """Append the replies of `agent`, the policy after so many steps, to held-out tasks: greedy, and drawn. Those that
    are there already are not asked for again."""
    from experiments.polygons import answers

    args = this.args
    have = {(one["step"], one["task"], one["sample"]) for one in this.folder.records(ANSWERS)}
    with this.folder.appending(ANSWERS) as file:
        for start in range(0, len(places), args.eval_batch):  # fixed groups: a model's last bits depend on them
            tasks: list[Task] = [this.held_out_task(place) for place in places[start : start + args.eval_batch]]
            for sample in range(1 + args.samples):
                if have.issuperset((step, task.id, sample) for task in tasks):
                    continue
                seeds = [seed_of("held out", task.id, sample) for task in tasks]  # the same for each policy
                for one in answers(agent, tasks, seeds, args.train.temperature if sample else 0.0, sample=sample):
                    if (step, one.task, sample) not in have:
                        file.add({"step": step, **asdict(one)})


def replies(folder: RunFolder) -> dict[int, list[Record]]:
    """The measured replies, by the step of the policy, in the order in which they were written."""
    found: dict[int, list[Record]] = {}
    for one in folder.records(ANSWERS):
        found.setdefault(one.pop("step"), []).append(Record(**one))
    return found


if __name__ == "__main__":
    sys.exit(main())
