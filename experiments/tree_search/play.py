"""Run tree searches on the same tasks, each within its budget."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from experiments.common import cli, served
from experiments.common.config import RunError, check
from experiments.common.run_folder import COPY, RunFolder, hide_home, manifest, of_tasks
from experiments.tree_search import metrics, report
from experiments.tree_search.config import RESUMABLE, Args, conditions
from experiments.tree_search.metrics import Condition, Record
from search import values
from search.executors import Player, Setup
from search.rollout import Skip
from search.tree import Tree
from search.values import ValueFunction
from segenv.mdp import SegMDP
from segenv.records import reader
from segenv.seeds import seed_of


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Search as `args` say, into their folder, and return the content of metrics.json."""
    check(args)
    grid = conditions(args)
    player = _player(args)
    indices = {name: index for index, name in enumerate(player.dataset.ids[: args.limit])}
    if not indices:
        raise RunError(f"data {args.data!r} holds no task; nothing to search")
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, player), metrics.METRIC_DEFINITIONS)
        _search_all(folder, args, player, indices, grid, quiet)
        skipped = dict(player.dataset.skipped)
        results: dict[Condition, list[Record]] = {condition: [] for condition in grid}
        for record in folder.records("results.jsonl", of_tasks(reader(metrics.Found), indices)):
            condition = Condition(record["search"], record["depth"])
            if record["task"] in skipped:
                continue  # under another condition: all are compared on the same tasks
            if condition not in results:
                raise RunError(f"{folder / 'results.jsonl'} holds {condition}, which was not asked for; {COPY}")
            results[condition].append(record)
        for records in results.values():
            records.sort(key=lambda record: indices[record["task"]])
        if not results[grid[0]]:
            raise RunError(f"all items of {args.data!r} are bad, the first because: {player.dataset.skipped[:1]}")
        images = player.dataset.images_of(record["task"] for record in results[grid[0]])
        numbers = metrics.summarise(results, args.steps, about["protocol"], images)
        numbers |= served.spent(player.agent)
        numbers["skipped"] = hide_home(skipped)
        folder.write_json("metrics.json", numbers)
        report.write(folder, results, numbers, about, player.dataset.by_id)
        folder.finish("tree_search")
        return folder.load_json("metrics.json")


def _player(args: Args) -> Player:
    """Load data, tool and policy; RunError where one of them, or a value source, cannot be had."""
    setup = Setup(
        args.data,
        args.tool,
        args.agent,
        args.codec,
        seed=args.seed,
        skip_bad=args.skip_bad,
        follow_links=args.follow_links,
        options=served.server_options(args.agent, args.server, args.budget),
    )
    with cli.setting_up(f"{args.data!r}, {args.tool!r}, {args.agent!r}, {args.values}"):
        player = Player(replace(setup, threads=args.threads))
        if args.proposal_temperature is not None:
            if not hasattr(player.agent, "proposal_temperature"):
                raise ValueError(f"agent {args.agent!r} has no proposal_temperature: it is no language model")
            player.agent.proposal_temperature = args.proposal_temperature
        for value in args.values:
            _source(value, player)
    return player


def _source(value: str, player: Player) -> ValueFunction:
    return values.make(value, player.mdp, player.agent)


def _manifest(args: Args, player: Player) -> dict[str, Any]:
    protocol = {
        "data": args.data,
        "limit": args.limit,
        "tool": player.tool.spec,
        **player.agent.settings,
        "privileged": player.agent.privileged,
        "values": {value: _source(value, player).settings for value in args.values},
        "seed": args.seed,
        "threads": args.threads,
        "batch_size": args.batch_size,
        **metrics.METRIC_DEFINITIONS,
    }
    hashes = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    return manifest(args.seed, protocol, hashes)


def _search_all(
    folder: RunFolder, args: Args, player: Player, indices: dict[str, int], grid: Sequence[Condition], quiet: bool
) -> None:
    """Search every task under every condition, but for the records of results.jsonl; a batch is searched as a whole."""
    done = {
        (record["search"], record["depth"], record["task"])
        for record in folder.records("results.jsonl", reader(metrics.Found))
    }
    kept = {(tree["search"], tree["depth"], tree["task"]) for tree in folder.records("trees.jsonl", report.read_tree)}
    ids = list(indices)
    shown = set(sorted(ids, key=lambda name: seed_of("report", name))[: args.report_tasks])  # whose trees are kept
    groups = [ids[i : i + args.batch_size] for i in range(0, len(ids), args.batch_size)]
    with (
        served.kept_replies(folder, player.agent),
        folder.appending("trees.jsonl") as trees,
        folder.appending("results.jsonl") as results,
        cli.progress(len(grid) * len(ids), "search", quiet=quiet) as bar,
    ):
        for condition in grid:
            bar.set_postfix_str(f"{condition.search}, {condition.depth} steps", refresh=False)
            skipped = dict(player.dataset.skipped)
            missing = [
                group
                for group in groups
                if any((*condition.key, name) not in done and name not in skipped for name in group)
            ]
            bar.update(len(ids) - sum(map(len, missing)))
            chosen = [[indices[name] for name in group] for group in missing]
            skip = player.skip if args.skip_bad else None
            for group, found in zip(missing, _search(condition, player, chosen, args.seed, skip), strict=True):
                for tree in found:
                    key = (*condition.key, tree.task.id)
                    if tree.task.id in shown and key not in kept:
                        trees.add(report.tree_to_json(condition, tree))
                    if key not in done:
                        results.add(metrics.record(condition, tree))
                bar.update(len(group))


def _search(
    condition: Condition, player: Player, groups: Sequence[Sequence[int]], seed: int, skip: Skip | None
) -> Iterator[Iterable[Tree]]:
    """Search each group of tasks together. Images are encoded before, so that no condition pays for another."""
    mdp = SegMDP(player.tool, condition.depth)
    value_fn = condition.parsed.value_function(mdp, player.agent)
    for group in groups:
        tasks = list(player.dataset.select(group))
        mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
        yield condition.parsed.search(mdp, player.agent, tasks, value_fn, seed=seed, batch_size=len(group), skip=skip)
