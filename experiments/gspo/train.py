"""A GSPO run from top to bottom: the policy, the data, the reward, training, and replies to held-out tasks before and
after."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import TrainerCallback

import agents
from agents.mllm import checkpoint
from agents.training.gspo import optimise, processes
from agents.training.polygon_examples import format_rings
from agents.training.sft import finetune
from experiments.common.cli import open_run, setting_up
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, disk_errors, manifest
from experiments.common.splits import split
from experiments.gspo import report
from experiments.gspo.answers import Run
from experiments.gspo.callbacks import EvalCallback
from experiments.gspo.config import RESUMABLE, Args, check
from segenv import codec as codecs
from segenv import queries, rewards
from segenv.codec.polygons import DIALECTS, PolygonCodec
from segenv.data.base import Dataset
from segenv.data.trajectories.record import encode_mask
from segenv.types import ignored_of, object_of


def run(args: Args) -> dict[str, Any] | None:
    """Do the stages that are not done, in the folder of `args`; returns what metrics.json holds, and None in other
    processes than the first, which measures while they wait."""
    patience = {"timeout": timedelta(hours=12)} if processes() > 1 else {}
    everyone = PartialState(cpu=not torch.cuda.is_available(), **patience)  # a device for each, before it loads
    this = prepare(args)
    rows, policy = QueryRows(args, this.agent, this.data, this.train_indices), this.folder / "policy"
    if not everyone.is_main_process:
        this.agent.backend.model = None
        everyone.wait_for_everyone()
        train(args, this.agent, rows, policy)
        return None
    with open_run(args, RESUMABLE) as this.folder, disk_errors(this.folder.path):
        folder = this.folder
        folder.keep_manifest(manifest(args.train.seed, this.protocol(), this.hashes()))
        if not folder.done("before"):
            this.measure(this.agent, 0)
            folder.finish("before")
        everyone.wait_for_everyone()
        train(args, this.agent, rows, policy, [EvalCallback(this)])
        if not folder.done("after"):
            this.measure(load_policy(f"mllm:{policy}", args), args.train.steps)
            folder.finish("after")
        numbers = report.write(this)
        folder.finish("gspo")
        return numbers


def prepare(args: Args) -> Run:
    """Check the settings, load the policy and open the data; RunError says what is wrong."""
    check(args)
    torch.set_num_threads(args.threads)
    with setting_up(f"data {args.data!r} and agent {args.agent!r}"):
        checkpoint(args.agent)
        agent = load_policy(args.agent, args, args.codec)
        if not isinstance(agent.codec, PolygonCodec):
            raise RunError(f"agent {args.agent!r} speaks {agent.codec.name!r}; give a --codec of {', '.join(DIALECTS)}")
        rewards.polygon(args.reward, agent.codec)
        declared = (getattr(agent.backend.model.config, "segenv", None) or {}).get("max_new_tokens", 0)
        if declared > args.train.max_tokens:
            raise RunError(
                f"agent {args.agent!r} was taught replies of up to {declared} tokens, and would be cut off at "
                f"{args.train.max_tokens}; give --max-tokens {declared} or more"
            )
        data = split(args.data, args.eval_data, args.limit, args.eval_limit)
    return Run(args, RunFolder(args.resume or args.out or ""), agent, *data)


def load_policy(spec: str, args: Args, codec: str | None = None) -> Any:
    """The agent of a checkpoint that writes polygons, by default in the codec that it declares."""
    named = None if codec is None else codecs.get(codec)
    limits = {"max_new_tokens": args.train.max_tokens, "batch_size": args.eval_batch}
    return agents.make(spec, named, seed=args.train.seed, **limits)


class QueryRows(Sequence):
    """Training tasks as rows, made when they are asked for: with the target, to which replies are compared, or for the
    control with the reply to learn."""

    def __init__(self, args: Args, agent: Any, data: Dataset, indices: Sequence[int]) -> None:
        self.args, self.agent, self.data, self.indices = args, agent, data, indices

    def __len__(self) -> int:
        most = self.args.sft.steps * self.args.sft.batch_size if self.args.method == "sft" else None
        return len(self.indices[:most])

    def __getitem__(self, k):
        task, codec = self.data[self.indices[k]], self.agent.codec
        query = queries.query(task, codec, style=self.agent.prompt_style)
        row = {"image": self.agent.backend.sent(query.picture), "prompt": query.prompt}
        if self.args.method == "sft":
            return {**row, "reply": format_rings(task, codec, self.args.vertices, self.args.ratio)}
        ignored = ignored_of(task.target)
        target = {"size": [task.height, task.width], "counts": encode_mask(object_of(task.target))}
        return {**row, "target": target, "ignored": None if ignored is None else encode_mask(ignored)}


def train(args: Args, agent: Any, rows: QueryRows, out: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train a checkpoint like the agent's and write it to `out`; every process calls it."""
    declare = {"codec": agent.codec.name, "prompt": agent.prompt_style, "image_size": agent.backend.image_size}
    declare["max_new_tokens"] = args.train.max_tokens
    agent.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
    try:
        if args.method == "sft":
            finetune(checkpoint(args.agent), rows, out, args.sft, declare)
        else:
            reward = rewards.polygon(args.reward, agent.codec)
            optimise(checkpoint(args.agent), rows, reward, out, args.train, declare, callbacks)
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(str(error)) from error
