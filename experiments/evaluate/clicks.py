"""Play episodes of clicks and measure them."""

from __future__ import annotations

from typing import Any

from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.evaluate import metrics, report
from experiments.evaluate.config import RESUMABLE, Args
from experiments.evaluate.metrics import Outcome
from search.episode import Episode
from search.executors import Player, Setup, Skipped, play


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Play the episodes of `args` in their folder, and return what metrics.json holds."""
    player = make_player(args)
    ids = list(player.dataset.ids[: args.limit])
    if not ids:
        raise RunError(f"data {args.data!r} holds no task; nothing to evaluate")
    with cli.open_run(args, RESUMABLE) as folder:
        about = _manifest(args, player, folder)
        places = {name: place for place, name in enumerate(ids)}
        outcomes = _finished(folder, places)
        pending = [place for place in range(len(ids)) if place not in outcomes]
        skipped: Skipped = {}
        with (
            folder.appending("episodes.jsonl") as file,
            cli.progress(len(ids), "episode", len(outcomes), quiet=quiet) as bar,
        ):
            total = sum(item.final_iou for item in outcomes.values())
            for episode in play(player, range(len(ids)), args.executor, args.workers, skipped, set(pending)):
                if places[episode.task] in outcomes:
                    continue  # in a group that a kill cut
                file.add(episode.to_json())
                outcomes[places[episode.task]] = item = metrics.outcome_of(episode)
                total += item.final_iou
                bar.set_postfix(mIoU=f"{total / len(outcomes):.4f}", refresh=False)
                bar.update()
        return _write_results(folder, args, about, [outcomes[place] for place in sorted(outcomes)], skipped, player)


def make_player(args: Args) -> Player:
    """Load data, tool and agent; RunError where one of them cannot be had."""
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
    with cli.setting_up(f"data {args.data!r}, tool {args.tool!r}, agent {args.agent!r}, search {args.search!r}"):
        return Player(setup)


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
        **metrics.METRIC_DEFINITIONS,
    }
    hashes = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    return folder.keep_manifest(manifest(args.seed, protocol, hashes))


def _finished(folder: RunFolder, places: dict[str, int]) -> dict[int, Outcome]:
    """The episodes that the run has already, by their task's place in the data."""
    outcomes = {}
    for record in folder.records("episodes.jsonl"):
        item = metrics.outcome_of(Episode.from_json(record))
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
    numbers = metrics.summarise(outcomes, args.max_steps, about["protocol"])
    numbers["skipped"] = hide_home(skipped)
    folder.write_json("metrics.json", numbers)
    places = {name: place for place, name in enumerate(player.dataset.ids[: args.limit])}
    report.write(folder, numbers, about, outcomes, lambda name: player.dataset[places[name]], args.report_episodes)
    folder.finish("evaluate")
    return folder.read_json("metrics.json")
