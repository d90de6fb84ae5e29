"""Play an agent with a tool on a dataset and measure it.

    python -m experiments.evaluate --data synthetic:val --limit 200 --tool sam --agent annotator --out runs/sam

writes into `--out`: config.yaml, manifest.json, episodes.jsonl (every step of every episode), metrics.json, plots/ and
report.html. A run that was ended, however, goes on with `--resume DIR`. Executor and workers change no number but the
timings; the batch size may change the last bits of what a learned model computes.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tqdm import tqdm

from experiments import filtering, polygons, polygons_report, report, summary
from experiments.runs import RunError, RunFolder, hide_home, manifest, parse_args
from experiments.summary import Outcome
from search.executors import Player, Setup, Skipped, play
from search.rollout import Episode
from segenv.types import SegenvError

FREE = frozenset({"executor", "workers", "report_episodes"})  # settings that change no result


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's tables."""

    task: Literal["segment", "filter", "polygon"] = "segment"
    """filter: the agent judges given masks, see experiments.filtering; polygon: it writes a whole outline in one reply,
    see experiments.polygons"""
    data: str = "synthetic:val"
    """what to segment: synthetic[:SPLIT], index:DIR, folder:DIR, coco:ANNOTATIONS@IMAGES, …"""
    tool: str = "sam"
    """what makes masks of clicks: sam, sam:NAME_OR_PATH, segment-anything:TYPE@FILE, grabcut, disc"""
    agent: str = "annotator"
    """who clicks: annotator[:VARIANT], random, mllm, mllm:NAME_OR_PATH"""
    codec: str | None = None
    """how the agent writes actions; by default its own"""
    search: str = "none"
    """tree search on top of the agent: greedy:k=3,value=prm, best-of-n:…, beam:…, dvts:…, best-first:…, mcts:…"""
    max_steps: int = 20
    """actions an episode may take"""
    limit: int | None = None
    """use the first N tasks only"""
    seed: int = 0
    """of the agent's randomness"""
    out: str | None = None
    """folder of a new run; by default runs/evaluate-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    executor: Literal["serial", "process", "ray"] = "serial"
    """where episodes are played"""
    workers: int = 2
    """processes of the executors process and ray"""
    batch_size: int = 8
    """episodes that advance together; a learned model's last bits may depend on it"""
    threads: int = 1
    """threads of each process; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    report_episodes: int = 24
    """episodes that report.html shows: worst, best and random ones"""
    filter: filtering.Options = field(default_factory=filtering.Options)
    polygon: polygons.Options = field(default_factory=polygons.Options)


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Evaluate as `args` say, into their folder, and return what metrics.json holds. A run that is there already goes
    on if `args.resume` names it."""
    if args.max_steps < 1 or args.batch_size < 1 or (args.limit is not None and args.limit < 1):
        raise RunError(
            f"max_steps {args.max_steps}, batch_size {args.batch_size} and limit {args.limit} must be 1 or more"
        )
    if args.task == "polygon":
        return polygons.run(args, quiet)
    player = _player(args)
    if args.task == "filter":
        return filtering.run(args, player, quiet)
    ids = list(player.dataset.ids[: args.limit])
    if not ids:
        raise RunError(f"data {args.data!r} holds no task; nothing to evaluate")
    out = args.resume or args.out
    if out is None:
        raise RunError("an evaluation needs a folder: give out, or resume")
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        about = _manifest(args, player, folder)
        places = {name: place for place, name in enumerate(ids)}
        outcomes = _finished(folder, places)
        pending = [place for place in range(len(ids)) if place not in outcomes]
        skipped: Skipped = {}
        with (
            folder.appending("episodes.jsonl") as file,
            tqdm(total=len(ids), initial=len(outcomes), unit="episode", disable=quiet, mininterval=_interval()) as bar,
        ):
            total = sum(item.final_iou for item in outcomes.values())
            for episode in play(player, range(len(ids)), args.executor, args.workers, skipped, set(pending)):
                if places[episode.task] in outcomes:
                    continue  # in a group that a kill cut
                file.add(episode.to_json())
                outcomes[places[episode.task]] = item = summary.outcome(episode)
                total += item.final_iou
                bar.set_postfix(mIoU=f"{total / len(outcomes):.4f}", refresh=False)
                bar.update()
        return _write_results(folder, args, about, [outcomes[place] for place in sorted(outcomes)], skipped, player)


def _player(args: Args) -> Player:
    setup = Setup(
        data=args.data,
        tool=args.tool,
        agent=args.agent,
        codec=args.codec,
        search=args.search,
        max_steps=args.max_steps,
        seed=args.seed,
        batch_size=args.batch_size,
        skip_bad=args.skip_bad,
        threads=args.threads,
    )
    try:
        return Player(setup)
    except (
        ValueError,
        OSError,
        ImportError,
    ) as error:  # a spec or a path that is wrong, or an extra that is not installed
        raise RunError(
            f"cannot set up data {args.data!r}, tool {args.tool!r}, agent {args.agent!r}, search {args.search!r}: "
            f"{error}"
        ) from error


def _manifest(args: Args, player: Player, folder: RunFolder) -> dict[str, Any]:
    """The run's manifest.json: written at its start, and compared with when it goes on."""
    protocol = {
        "data": args.data,
        "limit": args.limit,
        "tool": player.tool.spec,
        **player.agent.settings,
        "privileged": player.agent.privileged or (player.value is not None and player.value.privileged),
        "search": str(player.search or "none"),
        "value": player.value.settings if player.value else None,
        "max_steps": args.max_steps,
        "seed": args.seed,
        "threads": args.threads,
        "batch_size": args.batch_size,
        "start": "the task's initial mask, or an empty one where it has none",
        **summary.PROTOCOL,
    }
    hashes = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    return folder.keep_manifest(manifest(args.seed, protocol, hashes))


def _finished(folder: RunFolder, places: dict[str, int]) -> dict[int, Outcome]:
    """The episodes that the run has already, by their task's place in the data."""
    outcomes = {}
    for record in folder.records("episodes.jsonl"):
        item = summary.outcome(Episode.from_json(record))
        if item.task not in places:
            raise RunError(
                f"{folder / 'episodes.jsonl'} holds task {item.task!r}, which the data does not; start another run "
                "with --out"
            )
        outcomes[places[item.task]] = item
    return outcomes


def _write_results(
    folder: RunFolder, args: Args, about: dict[str, Any], outcomes: list[Outcome], skipped: Skipped, player: Player
) -> dict[str, Any]:
    if not outcomes:
        raise RunError(
            f"all {len(skipped)} items of {args.data!r} are bad, the first because: {next(iter(skipped.values()), '')}"
        )
    numbers = summary.summarise(outcomes, args.max_steps, about["protocol"])
    numbers["skipped"] = hide_home(skipped)
    folder.write_json("metrics.json", numbers)
    places = {name: place for place, name in enumerate(player.dataset.ids[: args.limit])}
    report.write(folder, numbers, about, outcomes, lambda name: player.dataset[places[name]], args.report_episodes)
    folder.finish("evaluate")
    return folder.read_json("metrics.json")


def _interval() -> float:
    """Seconds between two lines of progress: few where no person watches."""
    return 0.2 if sys.stderr.isatty() else 10.0


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/evaluate-%Y%m%d-%H%M%S"))
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.evaluate --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    text = {"segment": report.text, "filter": filtering.text, "polygon": polygons_report.text}[args.task]
    print(text(numbers))
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
