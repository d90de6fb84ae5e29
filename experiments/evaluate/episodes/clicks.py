"""Play episodes of clicks and measure them."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from experiments.common import cli, served
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest, of_tasks, part_name
from experiments.evaluate import exclusion, sensitivity, shards
from experiments.evaluate.config import RESUMABLE, Args
from experiments.evaluate.episodes import episode_page, metrics, records, report
from experiments.evaluate.episodes.metrics import Outcome
from search.episode import Episode
from search.executors import Player, Setup, Skipped, play
from segenv.data.base import unique


def run(args: Args, quiet: bool = False, arm: bool = False) -> dict[str, Any]:
    """Play the episodes of `args` in their folder, and return the content of metrics.json. An `arm` is of a run that
    has said its protocol."""
    player = make_player(args)
    served.check_executor(player.agent, args.executor)
    if args.sensitivity:
        sensitivity.arms(player.agent)  # an agent without a prompt is refused here
    chosen, part = shards.of(exclusion.choose(player.dataset, args, quiet or arm), args)
    data = player.dataset.select(chosen.positions)
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to evaluate")
    indices, skipped = records.indices(data), Skipped()
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, player, chosen), metrics.METRIC_DEFINITIONS)
        shared = Counter(sources := data.sources)

        def outcome(episode: Episode) -> Outcome:
            index = indices[episode.task]
            return metrics.outcome_of(episode, data[index], player.agent.codec, shared[sources[index]] > 1)

        outcomes = _finished(folder, indices, outcome)
        missing = {position for k, position in enumerate(chosen.positions) if k not in outcomes}
        with (
            folder.appending(part_name("episodes.jsonl", part)) as file,
            served.kept_replies(folder, player.agent),
            cli.progress(len(data), "episode", len(outcomes), quiet=quiet) as bar,
        ):
            total = sum(item.final_iou for item in outcomes.values())
            for episode in play(player, chosen.positions, args.executor, args.workers, skipped, missing, args.ray):
                index = indices[episode.task]
                if index in outcomes:
                    continue  # in a group that a kill cut
                file.add(episode.to_json())
                outcomes[index] = outcome(episode)
                total += outcomes[index].final_iou
                bar.set_postfix(mIoU=f"{total / len(outcomes):.4f}", refresh=False)
                bar.update()
        ordered = [outcomes[index] for index in sorted(outcomes)]
        records.check_any(ordered, args.data, skipped)
        images = records.keep_images(folder, data, [item.task for item in ordered])
        numbers = metrics.summarise(ordered, args.max_steps, about["protocol"], images) | served.spent(player.agent)
        numbers["unsolved"] = _unsolved(folder, args, player, ordered)
        if args.sensitivity:
            numbers["sensitivity"] = sensitivity.measure(
                folder, args, player.agent, ordered, images, partial(run, arm=True), quiet
            )
        numbers = records.write_metrics(folder, numbers, skipped)
        limit = args.report_episodes
        shown = episode_page.write(folder, ordered, data.by_id, player.agent, args.max_steps, limit, quiet)
        report.write(folder, numbers, about, ordered, shown)
        folder.finish("evaluate")
        return numbers


def make_player(args: Args) -> Player:
    """Load data, tool and agent; RunError where one of them cannot be had."""
    options: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("search", "seed", "batch_size", "skip_bad", "follow_links", "threads", "start")
    }
    options["reference"] = reference(args)
    options["options"] = records.agent_options(args)
    named = ("data", "tool", "agent", "search", "start")
    with cli.setting_up(", ".join(f"{name} {getattr(args, name)!r}" for name in named if getattr(args, name))):
        return Player(Setup(args.data, args.tool, args.agent, args.codec, args.max_steps, **options))


def reference(args: Args) -> bool:
    """Whether the annotator's click is tried in every state, too: by default, unless the annotator plays itself."""
    if args.reference and args.search != "none":
        raise RunError("--reference compares single actions; leave it out, or --search")
    default = args.search == "none" and args.agent.partition(":")[0] != "annotator"
    return default if args.reference is None else args.reference


def _unsolved(folder: RunFolder, args: Args, player: Player, outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    """The tasks that the annotator could not solve, which are also written to a file; None of another player."""
    if not player.agent.privileged or player.search is not None:
        return None
    found = exclusion.unsolved(outcomes)
    exclusion.write_unsolved(folder, found, f"{args.agent} with {args.tool}")
    return found


def _manifest(args: Args, player: Player, chosen: exclusion.Choice) -> dict[str, Any]:
    protocol = {
        **records.settings(args, chosen),
        "tool": player.tool.spec,
        **player.agent.settings,
        "privileged": player.agent.privileged or (player.value is not None and player.value.privileged),
        "search": str(player.search or "none"),
        "value": player.value.settings if player.value else None,
        "max_steps": args.max_steps,
        "reference": reference(args),
        "start": args.start or "the task's initial mask, or an empty one where it has none",
        **({} if args.shard is None else {"shard": args.shard}),
        **metrics.METRIC_DEFINITIONS,
    }
    hashes = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    return manifest(args.seed, protocol, hashes)


def _finished(folder: RunFolder, indices: dict[str, int], outcome: Callable[[Episode], Outcome]) -> dict[int, Outcome]:
    """Outcomes of the episodes that the run has already, by the index of their task."""
    check = of_tasks(metrics.read_episode, indices)

    def read(record: Any) -> Outcome:
        return outcome(check(record))

    found = list(folder.records("episodes.jsonl", read))
    unique((item.task for item in found), "episodes of task", folder / "episodes.jsonl")
    return {indices[item.task]: item for item in found}
