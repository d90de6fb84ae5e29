"""Run tree searches on the same tasks, each within its budget."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.common import cli, served
from experiments.common.config import RunError, check
from experiments.common.run_folder import COPY, RunFolder, hide_home, manifest, of_tasks
from experiments.tree_search import metrics, report
from experiments.tree_search.config import RESUMABLE, Args, conditions
from experiments.tree_search.metrics import Condition, Record
from search import values
from search.executors import Player, Setup, Skipped, spread
from search.values import ValueFunction
from segenv.mdp import SegMDP
from segenv.ranges import NotNegative
from segenv.records import reader
from segenv.seeds import seed_of


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Search as `args` say, into their folder, and return the content of metrics.json."""
    check(args)
    grid = conditions(args)
    player = _player(args, grid)
    indices = {name: index for index, name in enumerate(player.dataset.ids[: args.limit])}
    if not indices:
        raise RunError(f"data {args.data!r} holds no task; nothing to search")
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, player), metrics.METRIC_DEFINITIONS)
        skipped = _search_all(folder, args, player, indices, grid, quiet)
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
            raise RunError(f"all items of {args.data!r} are bad, the first because: {list(skipped.items())[:1]}")
        images = player.dataset.images_of(record["task"] for record in results[grid[0]])
        numbers = metrics.summarise(results, args.steps, about["protocol"], images)
        numbers |= served.spent(player.agent)
        numbers["skipped"] = hide_home(skipped)
        folder.write_json("metrics.json", numbers)
        report.write(folder, results, numbers, about, player.dataset.by_id)
        folder.finish("tree_search")
        return folder.load_json("metrics.json")


class Job(NamedTuple):
    """A search of the task at `position`, under a condition of the grid, and whether its tree is kept."""

    condition: int
    position: int
    shown: bool


@dataclass(frozen=True)
class TreeSetup(Setup):
    """A setup with the conditions of its searches, and the temperature of the policy's proposals."""

    grid: tuple[Condition, ...] = ()
    proposal_temperature: NotNegative | None = None


class Searcher(Player):
    """Player whose items are jobs of one condition, and whose results are a record of each, and its tree as JSON where
    it is shown."""

    setup: TreeSetup

    def __init__(self, setup: TreeSetup) -> None:
        super().__init__(setup)
        if setup.proposal_temperature is not None:
            if not hasattr(self.agent, "proposal_temperature"):
                raise ValueError(f"agent {setup.agent!r} has no proposal_temperature: it is no language model")
            self.agent.proposal_temperature = setup.proposal_temperature
        self._value: tuple[Condition, ValueFunction | None] | None = None  # of the last condition

    def play(self, jobs: Sequence[Job]) -> Iterator[tuple[Record, dict[str, Any] | None]]:
        """Search the tasks of `jobs` together. Images are encoded before, so that no condition pays for another."""
        condition = self.setup.grid[jobs[0].condition]
        mdp = SegMDP(self.tool, condition.depth)
        if self._value is None or self._value[0] != condition:
            self._value = condition, condition.parsed.value_function(mdp, self.agent)
        tasks = list(self.dataset.select([job.position for job in jobs]))
        shown = {self.dataset.ids[job.position] for job in jobs if job.shown}
        self.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
        skip = self.skip if self.setup.skip_bad else None
        options: dict[str, Any] = {"seed": self.setup.seed, "batch_size": len(jobs), "skip": skip}
        for tree in condition.parsed.search(mdp, self.agent, tasks, self._value[1], **options):
            made = report.tree_to_json(condition, tree) if tree.task.id in shown else None
            yield metrics.record(condition, tree), made

    def images(self) -> Callable[[Job], Hashable]:
        """A function that names the image of a job."""
        sources = self.dataset.sources
        return lambda job: sources[job.position]


def _player(args: Args, grid: Sequence[Condition]) -> Searcher:
    """Load data, tool and policy; RunError where one of them, or a value source, cannot be had."""
    setup = TreeSetup(
        args.data,
        args.tool,
        args.agent,
        args.codec,
        seed=args.seed,
        skip_bad=args.skip_bad,
        follow_links=args.follow_links,
        threads=args.threads,
        options=served.server_options(args.agent, args.server, args.budget),
        grid=tuple(grid),
        proposal_temperature=args.proposal_temperature,
    )
    with cli.setting_up(f"{args.data!r}, {args.tool!r}, {args.agent!r}, {args.values}"):
        player = Searcher(setup)
        for value in args.values:
            _source(value, player)
    served.check_executor(player.agent, args.executor)
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
    folder: RunFolder, args: Args, player: Searcher, indices: dict[str, int], grid: Sequence[Condition], quiet: bool
) -> Skipped:
    """Search every task under every condition, but for the records of results.jsonl; a batch is searched as a whole.
    Returns the bad items."""
    done = {
        (record["search"], record["depth"], record["task"])
        for record in folder.records("results.jsonl", reader(metrics.Found))
    }
    kept = {(tree["search"], tree["depth"], tree["task"]) for tree in folder.records("trees.jsonl", report.read_tree)}
    ids, skipped = list(indices), Skipped()
    shown = set(sorted(ids, key=lambda name: seed_of("report", name))[: args.report_tasks])  # whose trees are kept
    batches = [ids[i : i + args.batch_size] for i in range(0, len(ids), args.batch_size)]
    groups = [
        [Job(k, indices[name], name in shown) for name in batch]
        for k, condition in enumerate(grid)
        for batch in batches
        if any((*condition.key, name) not in done for name in batch)
    ]
    with (
        served.kept_replies(folder, player.agent),
        folder.appending("trees.jsonl") as trees,
        folder.appending("results.jsonl") as results,
        cli.progress(len(grid) * len(ids), "search", len(done), quiet=quiet) as bar,
    ):
        for record, tree in spread(player, groups, args.executor, args.workers, skipped, args.ray):
            key = (record["search"], record["depth"], record["task"])
            if tree is not None and key not in kept:
                trees.add(tree)
            if key not in done:
                results.add(record)
                bar.set_postfix_str(f"{record['search']}, {record['depth']} steps", refresh=False)
                bar.update()
    return skipped
