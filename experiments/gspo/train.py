"""A GSPO run: policy, data, reward, training, and replies to held-out tasks before and after."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import yaml
from accelerate import PartialState

import agents
from agents.mllm import checkpoint
from agents.training import gspo, sft
from agents.training.gspo import optimise, processes
from agents.training.polygon_examples import format_rings
from agents.training.sft import finetune
from experiments.common.cli import open_run, setting_up
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, disk_errors, manifest
from experiments.common.splits import split
from experiments.evaluate.answers.polygon_metrics import METRIC_DEFINITIONS
from experiments.gspo import report
from experiments.gspo.answers import Run
from experiments.gspo.callbacks import EvalCallback
from experiments.gspo.config import RESUMABLE, Args, check
from segenv import codec as codecs
from segenv import queries, rewards
from segenv.codec.polygons import DIALECTS, PolygonCodec
from segenv.data.base import Dataset
from segenv.geometry.rle import encode_mask
from segenv.types import ignored_of, object_of


def run(args: Args) -> dict[str, Any] | None:
    """Do the stages that are not done; returns the content of metrics.json, None in other processes than the first."""
    patience = {"timeout": timedelta(hours=12)} if processes() > 1 else {}
    everyone = PartialState(cpu=not torch.cuda.is_available(), **patience)  # a device for each, before it loads
    this = prepare(args)
    rows = QueryRows(args, this.agent, this.data.select(this.train_indices))
    if not everyone.is_main_process:  # the first one measures while the others wait
        this.agent.backend.model = None
        everyone.wait_for_everyone()
        train(args, this.agent, rows, this.folder)
        return None
    with open_run(args, RESUMABLE) as this.folder, disk_errors(this.folder.path):
        this.folder.keep_manifest(manifest(args.train.seed, this.protocol(), this.hashes()), METRIC_DEFINITIONS)
        if not this.folder.done("before"):
            this.measure(this.agent, 0)
            this.folder.finish("before")
        everyone.wait_for_everyone()
        train(args, this.agent, rows, this.folder, [EvalCallback(this)])
        if not this.folder.done("after"):
            this.measure(load_policy(f"mllm:{this.folder / 'policy'}", args), args.train.steps)
            this.folder.finish("after")
        numbers = report.write(this)
        this.folder.finish("gspo")
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
        train_data, eval_data, *indices = split(
            args.data, args.eval_data, args.limit, args.eval_limit, follow_links=args.follow_links
        )
        data = train_data.checked(agent.check), eval_data.checked(agent.check)
    with setting_up("the training"):
        gspo.check_options(args.train) if args.method == "gspo" else sft.check_options(args.sft)
    return Run(args, RunFolder(args.resume or args.out or ""), agent, *data, *indices)


def load_policy(spec: str, args: Args, codec: str | None = None) -> Any:
    """The agent of a checkpoint that writes polygons, by default in the codec that it declares."""
    named = None if codec is None else codecs.make(codec)
    train = args.train
    return agents.make(spec, named, seed=train.seed, max_new_tokens=train.max_tokens, batch_size=args.eval_batch)


class QueryRows(Sequence):
    """Training tasks as rows, made when they are needed: with the target, or for the control the reply to learn."""

    def __init__(self, args: Args, agent: Any, data: Dataset) -> None:
        self.args, self.agent, self.data = args, agent, data

    def __len__(self) -> int:
        sft = self.args.sft
        return min(len(self.data), sft.steps * sft.batch_size) if self.args.method == "sft" else len(self.data)

    def __getitem__(self, k):
        task, codec = self.data[k], self.agent.codec
        query = queries.query(task, codec, style=self.agent.prompt_style)
        row = {"image": self.agent.backend.sent(query.picture), "prompt": query.prompt}
        if self.args.method == "sft":
            reply = format_rings(task, codec, self.args.vertices, self.args.ratio, rows=self.args.rows)
            return {**row, "reply": reply}
        ignored = ignored_of(task.target)
        target = {"size": [task.height, task.width], "counts": encode_mask(object_of(task.target))}
        return {**row, "target": target, "ignored": None if ignored is None else encode_mask(ignored)}


def train(args: Args, agent: Any, rows: QueryRows, folder: RunFolder, callbacks: Sequence[Any] = ()) -> None:
    """Train the agent's checkpoint and write it to `policy`; every process calls it."""
    declare = {"codec": agent.codec.name, "prompt": agent.prompt_style, "image_size": agent.backend.image_size}
    declare["max_new_tokens"] = args.train.max_tokens
    agent.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
    try:
        if args.method == "sft":
            finetune(checkpoint(args.agent), rows, folder / "policy", args.sft, declare)
        else:
            reward = rewards.polygon(args.reward, agent.codec)
            optimise(checkpoint(args.agent), rows, reward, folder / "policy", args.train, declare, callbacks)
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(str(error)) from error
