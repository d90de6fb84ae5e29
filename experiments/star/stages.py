"""Folder, tasks and stages of a StaR run: all but the algorithm."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agents.base import Agent
from agents.training.options import SFTOptions
from experiments.common import cli, served
from experiments.common.config import choices
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.common.splits import split
from experiments.star import metrics, report
from experiments.star.config import RESUMABLE, Args, check, with_defaults
from experiments.star.serving import PolicyServer
from search import star
from search.episode import Episode
from search.executors import Player, Setup, Skipped, play
from search.star import StarExample
from segenv.data.base import Dataset
from segenv.records import reader
from segenv.seeds import seed_of
from segenv.types import BadItem

R = TypeVar("R", bound="Run")


@dataclass
class Run:
    """Settings, folder and data of a run, and which tasks are for training and for evaluation."""

    args: Args
    folder: RunFolder
    train_data: Dataset
    eval_data: Dataset
    train_indices: Sequence[int]
    eval_indices: Sequence[int]
    server: PolicyServer | None = None

    @classmethod
    def prepare(cls: type[R], args: Args) -> R:
        """Load the data, and check settings and agent; RunError says what is wrong. Nothing is written."""
        check(args := with_defaults(args))
        with cli.setting_up(f"data {args.data!r} and agent {args.agent!r}"):
            from agents.mllm import checkpoint
            from agents.training.sft import check_options  # needs an extra, and is used only after the first stage

            checkpoint(args.agent)
            data = split(args.data, args.eval_data, args.limit, args.eval_limit, args.skip_bad, args.follow_links)
        this = cls(args, RunFolder(args.resume or args.out or ""), *data)
        if args.policy_server is not None:
            this.server = PolicyServer(args.policy_server, args.serve, this.folder / "server.log")
        with cli.setting_up("the training"):
            check_options(this.sft_options(1))
        return this

    @classmethod
    @contextmanager
    def open(cls: type[R], args: Args) -> Iterator[R]:
        """Prepare the run of `args`, and create or resume its folder."""
        this = cls.prepare(args)
        about = manifest(this.args.seed, this.protocol(), this.hashes())
        with cli.open_run(this.args, RESUMABLE) as this.folder:
            this.folder.keep_manifest(about, metrics.METRIC_DEFINITIONS)
            try:
                yield this
            finally:
                if this.server is not None:
                    this.server.close()

    def new_indices(self, count: int) -> list[int]:
        """Indices of at most `count` training tasks that come after the run's own."""
        args = self.args
        rules = args.skip_bad, args.follow_links
        more = split(args.data, args.eval_data, args.limit + count, args.eval_limit, *rules)[2]
        return list(more[args.limit :])

    def stage(self, n: int, name: str, work: Callable[[int], None]) -> None:
        """Do a stage of round n, unless it was done before the run was resumed."""
        cli.run_stage(self.folder, f"round{n}/{name}", lambda: work(n))

    def policy_player(self, data: Dataset, n: int, **options: Any) -> Player:
        """The player of S_n: in this process, or through the server, prompted as its checkpoint declares."""
        if self.server is None:
            return self.player(data, self.policy(n), **options)
        from agents import mllm

        args, weights = self.args, self.checkpoint(n)
        declared = mllm.declared(weights)
        spec = self.server.serve(str(weights), f"--resume {self.folder.path}")
        if "#" not in spec:
            own = mllm.parse(args.agent.partition(":")[2])[1] or declared.get("image_size")
            spec += "" if own is None else "#" + "x".join(map(str, np.atleast_1d(own)))
        told = {"server": args.server, "max_new_tokens": declared.get("max_new_tokens", mllm.MAX_NEW_TOKENS)}
        told["prompt"] = declared.get("prompt")
        return self.player(data, spec, args.codec or declared.get("codec"), options=told, **options)

    def player(self, data: Dataset, agent: str, codec: str | None = None, **options: Any) -> Player:
        """Make the player of `agent` on `data`; RunError where tool or agent cannot be made."""
        args, codec = self.args, None if agent == "annotator" else codec or self.args.codec
        options |= {name: getattr(args, name) for name in ("seed", "batch_size", "skip_bad", "follow_links", "threads")}
        setup = Setup(data.spec, args.tool, agent, codec, args.max_steps, **options)
        with cli.setting_up(f"tool {setup.tool!r} and agent {setup.agent!r}"):
            return Player(setup)

    def play(self, name: str, player: Player, indices: Sequence[int]) -> None:
        """Play tasks and append the episodes to NAME.jsonl, resuming after those that are there."""
        path, samples, ids = f"{name}.jsonl", player.setup.samples, player.dataset.ids
        have = {(record.task, record.sample) for record in self.folder.records(path, Episode.from_json)}
        missing = {index for index in indices if any((ids[index], sample) not in have for sample in range(samples))}
        executor, workers, skipped = self.args.executor or "serial", self.args.workers, Skipped()
        bar = cli.progress(len(indices) * samples, "episode", len(have), path)
        asked = served.is_served(player.agent.spec)
        kept = served.kept_replies(self.folder, player.agent, f"{name}.") if asked else nullcontext()
        with self.folder.appending(path) as file, bar, kept:
            for episode in play(player, indices, executor, workers, skipped, missing, self.args.ray):
                if (episode.task, episode.sample) not in have:
                    file.add(episode.to_json())
                    bar.update()
        self.folder.write_json(f"{name}.skipped.json", skipped)

    def play_actions(self, name: str, player: Player, indices: Sequence[int], actions: int) -> list[Episode]:
        """Play tasks in their order, until the episodes have so many actions in all or no task is left; they are
        returned, and those in NAME.jsonl are not played again."""
        order = {player.dataset.ids[index]: place for place, index in enumerate(indices)}
        portion = 4 * self.args.batch_size
        kept: list[Episode] = []
        for end in range(portion, len(indices) + portion, portion):
            self.play(name, player, indices[:end])
            kept, total = [], 0
            for episode in sorted(self.episodes(name), key=lambda episode: order[episode.task]):
                if total < actions:
                    kept.append(episode)
                    total += len(episode.steps)
            if total >= actions:
                break
        return kept

    def episodes(self, name: str) -> Iterator[Episode]:
        """Read the episodes in NAME.jsonl, in the order of task and sample."""
        return read_episodes(self.folder, name)

    def write_examples(self, n: int, examples: Sequence[StarExample], counts: Mapping[str, Any] | None = None) -> None:
        """Write D_n without repetitions to rows.jsonl, and `counts` and shares of all `examples` to rates.json."""
        rates = {"visited": len(examples), **star.provenance_rates(examples), **(counts or {})}
        self.folder.write_json(f"round{n}/rates.json", rates)
        (self.folder / f"round{n}/rows.jsonl").unlink(missing_ok=True)
        with self.folder.appending(f"round{n}/rows.jsonl") as file:
            for row in star.unique_examples(examples):
                file.add(row.to_json())

    def read_examples(self, n: int) -> list[StarExample]:
        """Read D_n; empty where the round made none."""
        return list(self.folder.records(f"round{n}/rows.jsonl", reader(StarExample)))

    def weights(self, n: int) -> Path:
        """The folder that the training of S_n writes."""
        return self.folder / f"round{n}" / "policy"

    def policy(self, n: int | None) -> str:
        """S_n as the spec of an agent: the given agent for None, and for 0 where S_0 takes no training."""
        return self.args.agent if n is None or (n == 0 and not self.args.start_steps) else f"mllm:{self.weights(n)}"

    def checkpoint(self, n: int | None) -> Path | str:
        """The weights of `policy(n)`. Where the agent has none, fresh ones are written to base/."""
        from agents import tiny
        from agents.mllm import checkpoint

        if n is not None and self.policy(n) != self.args.agent:
            return self.weights(n)
        named = checkpoint(self.args.agent)
        if named is not None:
            return named
        path = self.folder / "base"
        if not path.exists():
            tiny.save(self.folder / "base.tmp", self.args.seed).rename(path)
        return path

    def trainable(self, n: int | None) -> tuple[Any, dict[str, Any]]:
        """The agent of `policy(n)` to render training examples with, and what its checkpoint declares of prompts."""
        agent: Any = self.player(self.train_data, self.policy(n)).agent
        agent.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
        image_size = agent.backend.image_size
        return agent, {"codec": agent.codec.name, "prompt": agent.prompt_style, "image_size": image_size}

    def usable(self, name: str, policy: Agent, rows: Sequence[StarExample]) -> tuple[Dataset, list[StarExample]]:
        """Training data without what `policy` cannot read, and `rows` of the rest where bad items are passed over;
        NAME.skipped.json has those that are left out. The annotator, who played the tasks, can read any."""
        data, refused = self.train_data.checked(policy.check), Skipped()
        if self.args.skip_bad:
            for task in dict.fromkeys(row.task for row in rows):
                try:
                    data.by_id(task)
                except BadItem as error:
                    refused[task] = str(error)
            if os.environ.get("RANK", "0") == "0":  # of several processes that train
                self.folder.write_json(f"{name}.skipped.json", refused)
        return data, [row for row in rows if row.task not in refused]

    def sft_options(self, n: int) -> Any:
        """Settings of S_n's training."""
        args, seed = self.args, seed_of(self.args.seed, "train", n) % 2**31
        steps = args.round_steps if n else args.start_steps
        rate = args.round_learning_rate if n else args.learning_rate
        trainer = {**vars(args.trainer), "extra": tuple(sorted(args.trainer.extra.items())), "seed": seed}
        return SFTOptions(steps=steps, batch_size=args.batch_rows, learning_rate=rate, log_steps=25, **trainer)

    def hashes(self) -> dict[str, str | None]:
        """Identify the data and the models of the run."""
        player = self.player(self.train_data, self.args.agent)
        data: dict[str, str | None] = {"data": self.train_data.fingerprint, "eval_data": self.eval_data.fingerprint}
        return data | {"tool": player.tool.fingerprint, "agent": player.agent.settings["weights"]}

    def protocol(self) -> dict[str, Any]:
        """Every choice that changes a number."""
        chosen = choices(self.args, RESUMABLE)
        chosen["sft_steps"] = self.args.start_steps
        counts = {"training_tasks": len(self.train_indices), "held_out_tasks": len(self.eval_indices)}
        return hide_home(chosen | counts | metrics.METRIC_DEFINITIONS)

    def write_results(self) -> dict[str, Any]:
        """Write metrics.json and the report from the episodes of all rounds, and return the content of metrics.json."""
        args, folder = self.args, self.folder
        played = [list(self.episodes(f"round{n}/evaluate")) for n in range(args.rounds + 1)]
        empty = {"visited": 0, **star.provenance_rates([])}  # the control plays nothing
        rounds = [
            {"round": n, "rows": len(self.read_examples(n)), **(folder.read_json(f"round{n}/rates.json") or empty)}
            for n in range(len(played))
        ]
        skipped: Skipped = {}
        for path in sorted(folder.path.glob("round*/*.skipped.json")):
            skipped |= folder.load_json(str(path.relative_to(folder.path)), reader(dict[str, str]))
        images = self.eval_data.images_of(episode.task for episode in played[0])
        numbers = {
            "policies": metrics.policies(played, args.max_steps, self.eval_data.by_id, args.rules, images),
            "lessons": rounds,
            "skipped": hide_home(skipped),
            "protocol": self.protocol(),
        }
        folder.write_json("metrics.json", numbers)
        report.write(folder, numbers, [played[0], played[-1]], self.eval_data.by_id, args.report_episodes)
        folder.finish("star")
        return folder.load_json("metrics.json")

    def dry_run(self) -> str:
        """Say what a run would do; tool and agent are loaded to see that they can be."""
        args, codec = self.args, self.player(self.train_data, self.args.agent).agent.codec.name
        tasks = len(self.train_indices)
        lines = [
            f"{args.agent} ({codec}) with {args.tool} on {args.data}, into {self.folder.path}:",
            f"  D_0: the annotator plays {tasks} training tasks of at most {args.max_steps} actions",
            f"  S_0: {args.start_steps} steps of {args.batch_rows} rows from {args.agent}" * bool(args.start_steps)
            or f"  S_0: {args.agent} as it is",
            f"  evaluation: {len(self.eval_indices)} held-out tasks, for S_0 and each round",
        ]
        if args.policy_server is not None:
            lines.append(f"  policies play through {args.policy_server}, served by {args.serve or 'you'}")
        rolled = min(args.rollout_tasks, tasks)
        for n in range(1, args.rounds + 1):
            if args.variant != "control":
                rollouts = f"{rolled} tasks x {args.samples} rollouts"
                new = f"the annotator plays new tasks, with as many actions as it is asked for in {rollouts}"
                filtered = f"{rollouts}, filtered by {args.variant}"
                lines.append(f"  D_{n}: {new if args.variant == 'demonstrations' else filtered}")
            data = {"star": f"D_{n}", "control": "D_0"}.get(args.variant, f"D_0 + D_{n}")
            start = f"S_{n - 1 if args.start_from == 'previous' else 0}"
            lines.append(f"  S_{n}: {args.round_steps} steps of {args.batch_rows} rows from {start} on {data}")
        return "\n".join([*lines, "nothing was written (--dry-run)"])


def read_episodes(folder: RunFolder, name: str) -> Iterator[Episode]:
    """Read the episodes in NAME.jsonl, in the order of task and sample, whatever the order they were finished in."""
    episodes = folder.records(f"{name}.jsonl", Episode.from_json)
    return iter(sorted(episodes, key=lambda episode: (episode.task, episode.sample)))
