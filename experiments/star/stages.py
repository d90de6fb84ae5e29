"""What a round of StaR does, stage by stage: the annotator plays, the policy plays, its actions are judged, it learns,
and it is measured on held-out tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.star import metrics
from experiments.star.config import Args
from search import star
from search.episode import Episode, decode_mask
from search.executors import Player, Setup, Skipped, play
from search.star import StarExample
from segenv.data.base import Dataset
from segenv.mdp import Observation
from segenv.seeds import seed_of
from segenv.types import Task

TASKS_KEPT = 1024  # tasks in memory while lessons are rendered


@dataclass
class Run:
    """What the stages share: settings, folder, data and which tasks are for what."""

    args: Args
    folder: RunFolder
    train: Dataset
    held_out: Dataset
    train_places: Sequence[int]
    eval_places: Sequence[int]

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each training task stands in the data."""
        return {self.train.ids[place]: place for place in self.train_places}

    @cached_property
    def held_out_places(self) -> dict[str, int]:
        """Where each held-out task stands in its data."""
        return {self.held_out.ids[place]: place for place in self.eval_places}

    def task(self, name: str) -> Task:
        """A training task by id."""
        return self.train[self.places[name]]

    def held_out_task(self, name: str) -> Task:
        """A held-out task by id."""
        return self.held_out[self.held_out_places[name]]

    def setup(self, data: Dataset, agent: str, **options: Any) -> Setup:
        """How `agent` plays on `data`."""
        args = self.args
        return Setup(
            data=data.spec,
            tool=args.tool,
            agent=agent,
            codec=None if agent == "annotator" else args.codec,
            max_steps=args.max_steps,
            seed=args.seed,
            batch_size=args.batch_size,
            skip_bad=args.skip_bad,
            threads=args.threads,
            **options,
        )

    def weights(self, n: int) -> Path:
        """The folder that S_n's training writes."""
        return self.folder / f"round{n}" / "policy"

    def policy(self, n: int) -> str:
        """S_n as an agent; S_0 may be the given agent itself."""
        return self.args.agent if n == 0 and not self.args.start_steps else f"mllm:{self.weights(n)}"


def player_of(setup: Setup) -> Player:
    """The setup brought to life; RunError where tool or agent cannot be made."""
    try:
        return Player(setup)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up tool {setup.tool!r} and agent {setup.agent!r}: {error}") from error


def play_into(this: Run, name: str, setup: Setup, places: Sequence[int]) -> None:
    """Play tasks and append the episodes to the file `name`, going on after those that are in it."""
    data = this.held_out if setup.data == this.held_out.spec else this.train
    have = {(record["task"], record["sample"]) for record in this.folder.records(name)}
    missing = {p for p in places if any((data.ids[p], sample) not in have for sample in range(setup.samples))}
    player, skipped = player_of(setup), Skipped()
    with this.folder.appending(name) as file, _bar(len(places) * setup.samples, len(have), name) as bar:
        for episode in play(player, places, this.args.executor or "serial", this.args.workers, skipped, missing):
            if (episode.task, episode.sample) not in have:
                file.add(episode.to_json())
                bar.update()
    this.folder.write_json(name.replace(".jsonl", ".skipped.json"), skipped)


def _bar(total: int, done: int, name: str) -> tqdm:
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit="episode", desc=name, mininterval=interval)


def episodes(folder: RunFolder, name: str) -> Iterator[Episode]:
    """The episodes in a file, in the order of task and sample, whatever the order they were finished in."""
    records = sorted(folder.records(name), key=lambda record: (record["task"], record["sample"]))
    return (Episode.from_json(record) for record in records)


# --------------------------------------------------------------------------------------------------------------- stages


def demonstrate(this: Run, _: int) -> None:
    """D_0: the annotator plays the training tasks through the tool."""
    play_into(this, "round0/expert.jsonl", this.setup(this.train, "annotator"), this.train_places)
    played = episodes(this.folder, "round0/expert.jsonl")
    write_rows(
        this,
        0,
        [
            row
            for episode in played
            for row in star.demonstration_examples(episode, this.args.rules, this.args.expert == "judged")
        ],
    )


def rollout(this: Run, n: int) -> None:
    """Rollouts of S_{n-1} on training tasks."""
    args = this.args
    chosen = sorted(this.train_places, key=lambda place: seed_of(args.seed, "rollout", n, this.train.ids[place]))
    setup = this.setup(
        this.train,
        this.policy(n - 1),
        samples=args.samples,
        temperature=args.temperature,
        round_index=n,
        rules=args.rules,
        go_on_from=args.go_on_from,
    )
    play_into(this, f"round{n}/rollout.jsonl", setup, sorted(chosen[: args.rollout_tasks]))


def filter_rollouts(this: Run, n: int) -> None:
    """D_n: keep what raised the IoU, correct the rest."""
    args, rows = this.args, []
    played = episodes(this.folder, f"round{n}/rollout.jsonl")
    judged = list(star.distinct_episodes(played) if args.dedup == "sequences" else played)
    for episode in judged:
        if args.variant == "star":
            rows += star.star_examples(episode, args.rules)
        else:
            rows += star.star_plus_examples(episode, this.task(episode.task), args.rules)
    write_rows(this, n, rows, metrics.acceptance(rows, judged))


def finetune(this: Run, n: int) -> None:
    """S_0 from the agent and D_0; S_n from S_0 (or S_{n-1}) and D_0 ∪ D_n (star: D_n alone; control: D_0 alone)."""
    from agents.training.sft import SFTOptions, finetune

    args = this.args
    if n == 0 and not args.start_steps:
        return
    own = read_rows(this, n) if n else []
    lessons = own if n and args.variant == "star" else read_rows(this, 0) + own
    if args.dedup == "rows":
        lessons = star.unique_examples(lessons)
    if not lessons:
        raise RunError(
            f"round {n} has nothing to learn from: no rollout passed the filter; lower --keep-iou or --min-gain"
        )
    trainer = args.trainer
    options = SFTOptions(
        steps=args.round_steps if n else args.start_steps,
        batch_size=args.batch_rows,
        micro_batch_size=trainer.micro_batch_size,
        learning_rate=args.round_learning_rate if n else args.learning_rate,
        warmup=trainer.warmup,
        weight_decay=trainer.weight_decay,
        seed=seed_of(args.seed, "train", n) % 2**31,
        lora=trainer.lora,
        bf16=trainer.bf16,
        gradient_checkpointing=trainer.gradient_checkpointing,
        log_steps=25,
        extra=tuple(sorted(trainer.extra.items())),
    )
    before = n - 1 if args.start_from == "previous" else 0
    pupil: Any = player_of(this.setup(this.train, this.policy(before) if n else args.agent)).agent
    declare = {"codec": pupil.codec.name, "prompt": pupil.prompt_style, "image_size": pupil.backend.image_size}
    pupil.backend.model = None  # it is loaded again for training; two copies of a large one may not fit
    finetune(
        _start(this, before if n else None), Conversations(this, lessons, pupil), this.weights(n), options, declare
    )


def evaluate(this: Run, n: int) -> None:
    """S_n on the held-out tasks, greedy. Where an action is bad, the annotator's is tried in that state, and not gone
    on from: the report asks whether a stop was right there."""
    setup = this.setup(this.held_out, this.policy(n), rules=this.args.rules)
    play_into(this, f"round{n}/evaluate.jsonl", setup, this.eval_places)


def stages(variant: str, n: int) -> list[tuple[str, Any]]:
    """The stages of round n, by name."""
    if n == 0:
        return [("expert", demonstrate), ("train", finetune), ("evaluate", evaluate)]
    practice = [] if variant == "control" else [("rollout", rollout), ("filter", filter_rollouts)]
    return [*practice, ("train", finetune), ("evaluate", evaluate)]


def _start(this: Run, n: int | None) -> Path | str:
    """The weights that training starts from: those of S_n, or of the agent (None). Fresh ones are written down
    first."""
    from agents import tiny
    from agents.mllm import checkpoint

    if n is not None and this.policy(n) != this.args.agent:
        return this.weights(n)
    named = checkpoint(this.args.agent)
    if named is not None:
        return named
    path = this.folder / "base"
    if not path.exists():
        tiny.save(this.folder / "base.tmp", this.args.seed).rename(path)
    return path


def write_rows(this: Run, n: int, rows: Sequence[StarExample], judged: Mapping[str, Any] | None = None) -> None:
    """A round's lessons, what all of them were, and what became of the actions that were `judged`."""
    args = this.args
    this.folder.write_json(
        f"round{n}/rates.json", {"visited": len(rows), **star.provenance_rates(rows), **(judged or {})}
    )
    (this.folder / f"round{n}/rows.jsonl").unlink(missing_ok=True)
    rows = star.unique_examples(rows) if args.dedup == "rows" else rows
    with this.folder.appending(f"round{n}/rows.jsonl") as file:
        for row in star.capped(rows, args.per_task_cap, args.seed) if n else rows:
            file.add(row.to_json())


def read_rows(this: Run, n: int) -> list[StarExample]:
    """A round's lessons; none where it made none."""
    return [StarExample(**record) for record in this.folder.records(f"round{n}/rows.jsonl")]


class Conversations(Sequence):
    """Rows as the pupil met their states, rendered when they are asked for: the picture, the prompt, with what was
    wrong with the reply before where the codec tells that, and the reply to learn.

    The reply states the IoU of the mask before the action, which is what makes the policy its own process reward model.
    """

    def __init__(self, this: Run, rows: Sequence[StarExample], pupil: Any) -> None:
        self.rows, self.pupil, self.max_steps = rows, pupil, this.args.max_steps
        self.task = lru_cache(maxsize=TASKS_KEPT)(this.task)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k):
        row = self.rows[k]
        task, mask = self.task(row.task), decode_mask(row.mask, row.height, row.width)
        left = self.max_steps - row.step
        observation = Observation(row.task, task.image, mask, task.instruction, row.step, left, row.error)
        reply = self.pupil.codec.format(star.action_of(row), observation, iou=row.iou)
        return {"image": self.pupil.picture(observation), "prompt": self.pupil.prompt(observation), "reply": reply}
