"""Tree searches played on the same tasks, each within its budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.tree_search import metrics, report
from experiments.tree_search.config import RESUMABLE, Args, conditions
from experiments.tree_search.metrics import Condition, Record
from search import spec, values
from search.executors import Player, Setup
from search.tree import Tree
from search.values import ValueFunction
from segenv.mdp import SegMDP
from segenv.seeds import seed_of


@dataclass
class Run:
    """What is shared by all conditions of a run."""

    args: Args
    folder: RunFolder
    player: Player
    places: dict[str, int]  # tasks and where they stand in the data
    shown: frozenset[str]  # tasks whose trees are kept

    def search(self, condition: Condition, pending: Sequence[int]) -> Iterator[Tree]:
        """The trees of the tasks at `pending`. Images are encoded before, so that no condition pays for another."""
        mdp = SegMDP(self.player.tool, condition.depth)
        search = spec.parse(condition.search)
        assert search is not None
        value_fn = search.value_function(mdp, self.player.agent)
        for start in range(0, len(pending), self.args.batch_size):
            group = pending[start : start + self.args.batch_size]
            tasks = list(self.player.dataset.select(group))
            mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
            how = {"seed": self.args.seed, "batch_size": len(group)}
            yield from search.search(mdp, self.player.agent, tasks, value_fn, **how)


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Run as `args` say, into their folder, and return what metrics.json holds."""
    cli.check_least(args, k=1, depths=1, steps=1, batch_size=1, limit=1)
    if not (args.k and args.depths and args.budgets):
        raise RunError("expected at least one of k, depths and budgets each")
    wanted = conditions(args)
    player = _player(args, wanted)
    ids = list(player.dataset.ids[: args.limit])
    if not ids:
        raise RunError(f"data {args.data!r} holds no task; nothing to search")
    shown = frozenset(sorted(ids, key=lambda name: seed_of("report", name))[: args.report_tasks])
    with cli.open_run(args, RESUMABLE) as folder:
        about = _manifest(args, player, folder)
        one = Run(args, folder, player, {name: place for place, name in enumerate(ids)}, shown)
        _search_all(one, wanted, quiet)
        return _write_results(one, wanted, about)


def _player(args: Args, wanted: Sequence[Condition]) -> Player:
    """Data, tool and policy; RunError where they, or a value source that is wanted, cannot be had."""
    setup = Setup(args.data, args.tool, args.agent, args.codec, seed=args.seed, skip_bad=args.skip_bad)
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


def _manifest(args: Args, player: Player, folder: RunFolder) -> dict[str, Any]:
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
    return folder.keep_manifest(manifest(args.seed, protocol, hashes))


def _search_all(run: Run, wanted: Sequence[Condition], quiet: bool) -> None:
    """Search every task under every condition, but for what results.jsonl holds. A batch is searched as a whole."""
    done = {(record["search"], record["depth"], record["task"]) for record in run.folder.records("results.jsonl")}
    kept = {(tree["search"], tree["depth"], tree["task"]) for tree in run.folder.records("trees.jsonl")}
    size, ids = run.args.batch_size, list(run.places)
    with (
        run.folder.appending("trees.jsonl") as trees,
        run.folder.appending("results.jsonl") as results,
        cli.progress(len(wanted) * len(ids), "search", quiet=quiet) as bar,
    ):
        for condition in wanted:
            bar.set_postfix_str(f"{condition.search}, {condition.depth} steps", refresh=False)
            skipped = dict(run.player.dataset.skipped)
            groups = [ids[i : i + size] for i in range(0, len(ids), size)]
            open_groups = [
                group
                for group in groups
                if any((*condition.key, name) not in done and name not in skipped for name in group)
            ]
            bar.update(len(ids) - sum(map(len, open_groups)))
            for group in open_groups:
                for tree in run.search(condition, [run.places[name] for name in group]):
                    key = (*condition.key, tree.task.id)
                    if tree.task.id in run.shown and key not in kept:
                        trees.add(report.kept(condition, tree))
                    if key not in done:
                        results.add(metrics.record(condition, tree))
                bar.update(len(group))


def _write_results(run: Run, wanted: Sequence[Condition], about: dict[str, Any]) -> dict[str, Any]:
    results: dict[Condition, list[Record]] = {condition: [] for condition in wanted}
    for record in run.folder.records("results.jsonl"):
        results[Condition(record["search"], record["depth"])].append(record)
    for records in results.values():
        records.sort(key=lambda record: run.places[record["task"]])
    if not results[wanted[0]]:
        raise RunError(f"all items of {run.args.data!r} are bad, the first because: {run.player.dataset.skipped[:1]}")
    numbers = metrics.summarise(results, run.args.steps, about["protocol"])
    numbers["skipped"] = hide_home(dict(run.player.dataset.skipped))
    run.folder.write_json("metrics.json", numbers)
    report.write(run.folder, results, numbers, about, lambda name: run.player.dataset[run.places[name]])
    run.folder.finish("tree_search")
    return run.folder.read_json("metrics.json")
