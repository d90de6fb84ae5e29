"""A GSPO run: its data and policy, training, and the replies before and after."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import yaml

from agents.training.gspo import processes
from agents.training.polygon_examples import format_rings
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, disk_errors, manifest
from experiments.common.splits import split
from experiments.gspo.answers import Run, hashes, measure, protocol
from experiments.gspo.config import COUNTS, RESUMABLE, Args
from segenv.types import ignored_of, object_of


class QueryRows(Sequence):
    """Training tasks as rows of `agents.training.gspo` (with the target to be met) or of `agents.training.sft` (with
    the reply to learn), made when they are asked for."""

    def __init__(self, this: Run, count: int | None = None) -> None:
        self.this, self.agent = this, this.agent
        self.places = this.train_places[:count]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, k):
        from segenv import queries
        from segenv.data.trajectories.record import encode_mask

        args, task, codec = self.this.args, self.this.data[self.places[k]], self.agent.codec
        query = queries.query(task, codec, style=self.agent.prompt_style)
        row = {"image": self.agent.backend.sent(query.picture), "prompt": query.prompt}
        if args.method == "sft":
            return {**row, "reply": format_rings(task, codec, args.vertices, args.ratio)}
        ignored = ignored_of(task.target)
        return {
            **row,
            "target": {"size": [task.height, task.width], "counts": encode_mask(object_of(task.target))},
            "ignored": None if ignored is None else encode_mask(ignored),
        }


# -------------------------------------------------------------------------------------------------------------- command


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
        return Run(args, RunFolder(out), agent, *split(args.data, args.eval_data, args.limit, args.eval_limit))
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
        finetune(this)
        return None
    out = this.folder.path
    with RunFolder.resume(out, args, RESUMABLE) if args.resume else RunFolder.create(out, args) as folder:
        this.folder = folder
        about = manifest(args.train.seed, protocol(this), hashes(this))
        folder.keep_manifest(about)
        with disk_errors(out):
            if not folder.done("before"):
                measure(this, this.agent, 0, this.eval_places)
                folder.finish("before")
            everyone.wait_for_everyone()
            finetune(this)
            if not folder.done("after"):
                measure(this, trained_agent(this), args.train.steps, this.eval_places)
                folder.finish("after")
            from experiments.gspo import report

            numbers = report.write(this)
        folder.finish("gspo")
        return numbers


# --------------------------------------------------------------------------------------------------------------- stages


def finetune(this: Run) -> None:
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
    from agents.training.gspo import optimise
    from agents.training.sft import finetune
    from experiments.gspo.callbacks import EvalCallback
    from segenv import rewards

    try:
        if args.method == "sft":
            finetune(
                base, QueryRows(this, sft_control(args).batch_size * args.train.steps), out, sft_control(args), declare
            )
        else:
            reward = rewards.polygon(args.reward, agent.codec)
            optimise(base, QueryRows(this), reward, out, args.train, declare, [EvalCallback(this)])
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(str(error)) from error


def sft_control(args: Args) -> Any:
    """The supervised training that makes as many steps, each of as many replies."""
    from agents.training.sft import SFTOptions

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


def trained_agent(this: Run) -> Any:
    """The policy after training, as an agent."""
    import agents

    args = this.args
    return agents.make(
        f"mllm:{this.folder / 'policy'}", max_new_tokens=args.train.max_tokens, batch_size=args.eval_batch
    )
