"""StaR+: improve a click policy with its own corrected rollouts (SegAgent, arXiv 2503.08625, Alg. 1).

    python -m experiments.star                                          # procedural scenes, embedded models
    python -m experiments.star --data index:DIR --out runs/star_real    # your photos; a hash of their names splits them
    python -m experiments.star --resume runs/star_real                  # after a stop, of whatever kind

Stages, each finished by a `DONE`: the annotator plays the training tasks (D_0), the MLLM learns from it (S_0), and in
each round it plays training tasks itself, its actions are kept or corrected (D_n), and S_0 learns from D_0 ∪ D_n (S_n).
Every policy plays the same held-out tasks. The paper publishes no thresholds and fine-tunes 7B models; sizes here are
for the embedded pair on two cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from experiments import star_report
from experiments.runs import RunError, RunFolder, hide_home, manifest, parse_args, plain
from search import star
from search.executors import Player, Setup, Skipped, play
from search.rollout import Episode, decode_mask
from search.star import Row
from segenv import data as datasets
from segenv.data.base import Dataset
from segenv.mdp import SegMDP
from segenv.seeds import seed_of
from segenv.types import SegenvError, Task

FREE = frozenset({"executor", "workers", "report_episodes"})


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's table."""

    data: str = "synthetic:train"
    """training tasks; without --eval-data, a hash of the images' names sets 30 % of them apart for evaluation"""
    eval_data: str | None = None
    """held-out tasks; synthetic:val for synthetic data"""
    tool: str = "sam"
    """what makes masks of clicks"""
    agent: str = "mllm"
    """the policy to improve: mllm, mllm:NAME_OR_PATH"""
    codec: str | None = None
    """how the policy writes actions; by default its own"""
    variant: Literal["star+", "star"] = "star+"
    """judge each action and correct it, or whole trajectories"""
    rounds: int = 1
    """rounds of rollout, filter and training"""
    max_steps: int = 7
    """actions an episode may take"""
    limit: int = 400
    """training tasks that the annotator plays"""
    rollout_tasks: int = 160
    """training tasks that the policy plays in each round"""
    samples: int = 2
    """rollouts of each of those tasks"""
    temperature: float = 1.0
    """of those rollouts; evaluation is greedy"""
    eval_limit: int = 100
    """held-out tasks"""
    sft_steps: int = 600
    """optimiser steps from the base model to S_0"""
    round_steps: int = 300
    """optimiser steps from S_0 to S_n"""
    batch_rows: int = 32
    """rows an optimiser step"""
    learning_rate: float = 1e-3
    """from the base model to S_0"""
    round_learning_rate: float = 5e-4
    """from S_0 to S_n"""
    min_gain: float = 0.0
    """an action is kept if it raises the IoU by more than this"""
    stop_iou: float = 0.9
    """from this IoU on the lesson is to stop"""
    keep_iou: float = 0.7
    """what a whole trajectory must reach (variant star)"""
    seed: int = 0
    out: str | None = None
    """folder of a new run; by default runs/star-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    executor: Literal["serial", "process", "ray"] = "serial"
    workers: int = 2
    batch_size: int = 16
    """episodes that advance together; a learned model's last bits may depend on it"""
    threads: int = 1
    """threads of each process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    report_episodes: int = 12
    """held-out episodes that report.html shows before and after"""


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

    def policy(self, n: int) -> Path:
        """The folder of S_n's weights."""
        return self.folder / f"round{n}" / "policy"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/star-%Y%m%d-%H%M%S"))
        numbers = run(args)
    except (SegenvError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.star --resume {args.resume or args.out}", file=sys.stderr
        )
        return 130
    print(star_report.text(numbers))
    print(f"report: {args.resume or args.out}/report.html")
    return 0


def run(args: Args) -> dict[str, Any]:
    """All stages, in the folder of `args`; returns what metrics.json holds."""
    for name in ("rounds", "limit", "rollout_tasks", "samples", "eval_limit", "sft_steps", "round_steps", "max_steps"):
        if getattr(args, name) < 1:
            raise RunError(f"{name} is {getattr(args, name)}; expected 1 or more")
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    from agents.mllm import checkpoint

    try:
        import agents.sft  # noqa: F401  # needs an extra, and is asked for only after the first stage

        checkpoint(args.agent)
        train, held_out, train_places, eval_places = split(args)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up data {args.data!r} and agent {args.agent!r}: {error}") from error
    this = Run(args, RunFolder(out), train, held_out, train_places, eval_places)
    player = _player(this.setup(train, args.agent))
    hashes: dict[str, str | None] = {"data": train.fingerprint, "eval_data": held_out.fingerprint}
    hashes |= {"tool": player.tool.fingerprint, "agent": player.agent.settings["weights"]}
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        this.folder = folder
        folder.keep_manifest(manifest(args.seed, protocol(this), hashes))
        for n in range(args.rounds + 1):
            for name, work in STAGES if n else START:
                stage(this, n, name, work)
        played = [list(episodes(this, f"round{n}/evaluate.jsonl")) for n in range(args.rounds + 1)]
        numbers = results(this, played)
        folder.write_json("metrics.json", numbers)
        star_report.write(folder, numbers, [played[0], played[-1]], this.held_out_task, args.report_episodes)
        folder.finish("star")
        return folder.read_json("metrics.json")


def stage(this: Run, n: int, name: str, work: Callable[[Run, int], None]) -> None:
    """Do a stage of round n unless it is done."""
    key = f"round{n}/{name}"
    if this.folder.done(key):
        print(f"[{key}] done before", file=sys.stderr)
        return
    (this.folder / key).parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    work(this, n)
    this.folder.finish(key)
    print(f"[{key}] {time.perf_counter() - began:.1f} s", file=sys.stderr)


def results(this: Run, played: Sequence[Sequence[Episode]]) -> dict[str, Any]:
    """The content of metrics.json: measures of each policy, from its held-out episodes, and lessons of each round."""
    lessons = [
        {"round": n, "rows": len(read_rows(this, n)), **this.folder.read_json(f"round{n}/rates.json")}
        for n in range(len(played))
    ]
    skipped: Skipped = {}
    for path in sorted(this.folder.path.glob("round*/*.skipped.json")):
        skipped |= this.folder.read_json(str(path.relative_to(this.folder.path)))
    policies = star_report.policies(played, this.args.max_steps, this.held_out_task)
    return {"policies": policies, "lessons": lessons, "skipped": hide_home(skipped), "protocol": protocol(this)}


def protocol(this: Run) -> dict[str, Any]:
    """Every choice that changes a number."""
    args = plain(this.args)
    chosen = {key: args[key] for key in args if key not in FREE | {"out", "resume"}}
    counts = {"training_tasks": len(this.train_places), "held_out_tasks": len(this.eval_places)}
    return hide_home(chosen | counts | star_report.PROTOCOL)


# ----------------------------------------------------------------------------------------------------------------- data


def split(args: Args) -> tuple[Dataset, Dataset, list[int], list[int]]:
    """Training and held-out data, and the places of their tasks. No task is in both, nor two tasks of one image."""
    train = datasets.make(args.data, skip_bad=args.skip_bad)
    other = args.eval_data or ("synthetic:val" if args.data.startswith("synthetic") else None)
    if other is not None and other != args.data:
        held_out = datasets.make(other, skip_bad=args.skip_bad)
        train_places, eval_places = list(range(len(train))[: args.limit]), list(range(len(held_out))[: args.eval_limit])
        if shared := set(train.sources[: args.limit]) & set(held_out.sources[: args.eval_limit]):
            raise RunError(
                f"{len(shared)} images are in both {args.data!r} and {other!r}, {min(shared)!r}; hold out others"
            )
        return train, held_out, train_places, eval_places
    kept, apart = train.hold_out(0.3)
    train_places, eval_places = kept[: args.limit], apart[: args.eval_limit]
    if not train_places or not eval_places:
        raise RunError(f"{args.data!r} has {len(train)} tasks, too few to set some apart; give more, or --eval-data")
    return train, train, train_places, eval_places


def play_into(this: Run, name: str, setup: Setup, places: Sequence[int]) -> None:
    """Play tasks and append the episodes to the file `name`, going on after those that are in it."""
    data = this.held_out if setup.data == this.held_out.spec else this.train
    have = {(record["task"], record["sample"]) for record in this.folder.records(name)}
    missing = {p for p in places if any((data.ids[p], sample) not in have for sample in range(setup.samples))}
    player, skipped = _player(setup), Skipped()
    with this.folder.appending(name) as file, _bar(len(places) * setup.samples, len(have), name) as bar:
        for episode in play(player, places, this.args.executor, this.args.workers, skipped, missing):
            if (episode.task, episode.sample) not in have:
                file.add(episode.to_json())
                bar.update()
    this.folder.write_json(name.replace(".jsonl", ".skipped.json"), skipped)


def _player(setup: Setup) -> Player:
    try:
        return Player(setup)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up tool {setup.tool!r} and agent {setup.agent!r}: {error}") from error


def _bar(total: int, done: int, name: str) -> tqdm:
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit="episode", desc=name, mininterval=interval)


def episodes(this: Run, name: str) -> Iterator[Episode]:
    """The episodes in a file, in the order of task and sample, whatever the order they were finished in."""
    records = sorted(this.folder.records(name), key=lambda record: (record["task"], record["sample"]))
    return (Episode.from_json(record) for record in records)


# --------------------------------------------------------------------------------------------------------------- stages


def expert(this: Run, _: int) -> None:
    """D_0: the annotator plays the training tasks through the tool."""
    play_into(this, "round0/expert.jsonl", this.setup(this.train, "annotator"), this.train_places)
    rows = [
        row
        for episode in episodes(this, "round0/expert.jsonl")
        for row in star.expert_rows(episode, this.args.min_gain, this.args.stop_iou)
    ]
    write_rows(this, 0, rows)


def practise(this: Run, n: int) -> None:
    """Rollouts of S_{n-1} on training tasks."""
    options = {"samples": this.args.samples, "temperature": this.args.temperature, "round_index": n}
    chosen = sorted(this.train_places, key=lambda place: seed_of(this.args.seed, "rollout", n, this.train.ids[place]))
    setup = this.setup(this.train, f"mllm:{this.policy(n - 1)}", **options)
    play_into(this, f"round{n}/rollout.jsonl", setup, sorted(chosen[: this.args.rollout_tasks]))


def judge(this: Run, n: int) -> None:
    """D_n: keep what raised the IoU, correct the rest."""
    args, rows = this.args, []
    for episode in episodes(this, f"round{n}/rollout.jsonl"):
        if args.variant == "star":
            rows += star.star_rows(episode, args.min_gain, args.keep_iou)
        else:
            rows += star.star_plus_rows(episode, this.task(episode.task), args.min_gain, args.stop_iou)
    write_rows(this, n, rows)


def learn(this: Run, n: int) -> None:
    """S_0 from the base model and D_0; S_n from S_0 and D_0 ∪ D_n (star: D_n alone)."""
    from agents.sft import SFTOptions, finetune

    args = this.args
    if args.variant == "star" and n:
        lessons = read_rows(this, n)
    else:
        lessons = star.distinct(read_rows(this, 0) + (read_rows(this, n) if n else []))
    if not lessons:
        raise RunError(
            f"round {n} has nothing to learn from: no rollout passed the filter; lower --keep-iou or --min-gain"
        )
    options = SFTOptions(
        log_steps=25,
        steps=args.round_steps if n else args.sft_steps,
        batch_size=args.batch_rows,
        learning_rate=args.round_learning_rate if n else args.learning_rate,
        seed=seed_of(args.seed, "train", n) % 2**31,
    )
    pupil: Any = _player(this.setup(this.train, args.agent if n == 0 else f"mllm:{this.policy(0)}")).agent
    rows: Any = conversations(this, lessons, pupil)
    declare = {"codec": pupil.codec.name, "prompt": pupil.prompt_style, "image_size": pupil.backend.image_size}
    finetune(this.policy(0) if n else _base(this), rows, this.policy(n), options, declare)


def evaluate(this: Run, n: int) -> None:
    """S_n on the held-out tasks, greedy."""
    play_into(this, f"round{n}/evaluate.jsonl", this.setup(this.held_out, f"mllm:{this.policy(n)}"), this.eval_places)


START = (("expert", expert), ("train", learn), ("evaluate", evaluate))
STAGES = (("rollout", practise), ("filter", judge), ("train", learn), ("evaluate", evaluate))


def _base(this: Run) -> Path | str:
    """The weights that S_0 is trained from; fresh ones are written down first."""
    from agents import tiny
    from agents.mllm import checkpoint

    named = checkpoint(this.args.agent)
    if named is not None:
        return named
    path = this.folder / "base"
    if not path.exists():
        tiny.save(this.folder / "base.tmp", this.args.seed).rename(path)
    return path


def write_rows(this: Run, n: int, rows: Sequence[Row]) -> None:
    """A round's lessons without repetitions, and of what all of them were: the policy's share is its acceptance
    rate."""
    this.folder.write_json(f"round{n}/rates.json", {"visited": len(rows), **star.rates(rows)})
    (this.folder / f"round{n}/rows.jsonl").unlink(missing_ok=True)
    with this.folder.appending(f"round{n}/rows.jsonl") as file:
        for row in star.distinct(rows):
            file.add(row.to_json())


def read_rows(this: Run, n: int) -> list[Row]:
    """A round's lessons."""
    return [Row(**record) for record in this.folder.records(f"round{n}/rows.jsonl")]


def conversations(this: Run, rows: Sequence[Row], pupil: Any) -> list[dict[str, Any]]:
    """Rows as the pupil would meet them: the picture of that state, its prompt, and the reply to learn.

    The reply states the IoU of the mask before the click, which is what makes the policy its own process reward model.
    """
    made: list[dict[str, Any]] = []
    rules = SegMDP(tool=None, max_steps=this.args.max_steps)  # type: ignore[arg-type]  # no transition is asked of it
    current: Task | None = None
    for row in sorted(rows, key=lambda row: row.task):
        if current is None or current.id != row.task:
            current = this.task(row.task)
        mask = decode_mask(row.mask, row.height, row.width)
        observation = rules.observation(rules.initial(replace(current, initial_mask=mask)))
        reply = pupil.codec.format(star.action_of(row), observation, iou=row.iou)
        made.append({"image": pupil.picture(observation), "prompt": pupil.prompt(observation), "reply": reply})
    return made


if __name__ == "__main__":
    sys.exit(main())
