"""Tree search over clicks, ablated: algorithms × K × depth × value source × budget, each on the same tasks.

    python -m experiments.tree_search --limit 300 --out runs/tree                    # the embedded models
    python -m experiments.tree_search --search greedy mcts:c=0.3 --k 1 3 5 --values prm tool oracle \
        --budgets policy_calls=21 policy_calls=63 --depths 7 --out runs/more
    python -m experiments.tree_search --resume runs/tree                             # after a stop, of whatever kind

Every algorithm spends the same budget for each task, and every row is compared, on the same tasks, with greedy search
at K = 1 and with the policy's last mask. `oracle` reads the target: it is the ceiling, and has no place among the
others. Prints a table, and writes it as text, CSV and Markdown beside metrics.json, plots and report.html, which shows
trees. SegAgent (arXiv 2503.08625) has greedy search alone, by steps (its Table 2) and without budgets.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from experiments import tree_measures, tree_report, tree_tables
from experiments.runs import RunError, RunFolder, hide_home, manifest, parse_args
from experiments.tree_measures import Condition, Record
from search import spec, values
from search.executors import Player, Setup
from search.tree import Tree
from search.values import ValueSource
from segenv.mdp import SegMDP
from segenv.seeds import seed_of
from segenv.types import SegenvError

FREE = frozenset({"report_tasks"})


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in the README's tables."""

    data: str = "synthetic:val"
    """what to segment"""
    tool: str = "sam"
    """what makes masks of clicks"""
    agent: str = "mllm"
    """the policy whose replies are searched"""
    codec: str | None = None
    """how the policy writes actions; by default its own"""
    search: tuple[str, ...] = ("greedy", "best-of-n", "beam", "dvts", "lookahead", "best-first", "mcts")
    """algorithms, with options where they are not the defaults: mcts:c=0.3"""
    k: tuple[int, ...] = (1, 3)
    """replies at each node (episodes, for best-of-n); at K = 1 all searches are greedy search, which is run"""
    depths: tuple[int, ...] = (7,)
    """actions that lie between the first mask and the deepest"""
    values: tuple[str, ...] = ("prm", "tool", "oracle")
    """value sources: prm, prm:NAME_OR_PATH, tool, oracle"""
    budgets: tuple[str, ...] = ("policy_calls=21",)
    """what each task may cost: policy_calls=N, tokens=N, tool_calls=N, value_calls=N, seconds=S; none"""
    steps: tuple[int, ...] = (1, 3, 5, 7, 11)
    """greedy search by number of steps, with values and without (the paper's Table 2); --steps alone leaves it out"""
    limit: int | None = 300
    """use the first N tasks only"""
    proposal_temperature: float | None = None
    """of a language model's samples; by default its own"""
    seed: int = 0
    """of the policy's samples"""
    out: str | None = None
    """folder of a new run; by default runs/tree-DATE"""
    resume: str | None = None
    """folder of a run to go on with; its settings hold"""
    batch_size: int = 16
    """tasks that are searched together; a learned model's last bits may depend on it"""
    threads: int = 1
    """threads; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    report_tasks: int = 3
    """tasks whose trees report.html shows"""


def conditions(args: Args) -> list[Condition]:
    """What is run: the steps table's searches without a budget, and the grid. Raises RunError for a bad spec."""
    found: dict[Condition, None] = {}

    def add(name: str, depth: int, budget: str, **options: Any) -> None:
        base, _, given = name.partition(":")
        written = {part.partition("=")[0].strip() for part in given.split(",") if part}
        parts = [f"{key}={value}" for key, value in options.items() if key not in written]
        text = f"{base}:{','.join([*filter(None, [given]), *parts, *([] if budget == 'none' else [budget])])}"
        try:
            parsed = spec.parse(text)
        except ValueError as error:
            raise RunError(str(error)) from error
        if parsed is None:
            raise RunError(f"search {name!r} is no search; for the policy alone, see the rows of value none")
        found[Condition(str(parsed), depth)] = None

    for value in ("none", *args.values):
        for k in args.k if value != "none" else (1,):
            for depth in {max(args.steps)} if args.steps else ():
                add("greedy", depth, "none", k=k, value=value)
            for depth in args.depths:
                for budget in args.budgets:
                    add("greedy", depth, budget, k=1 if value == "none" else k, value=value)
                    for name in args.search if k > 1 else ():
                        add(name, depth, budget, **{"n" if name.startswith("best-of-n") else "k": k}, value=value)
    return list(found)


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
        source = search.source(mdp, self.player.agent)
        for start in range(0, len(pending), self.args.batch_size):
            group = pending[start : start + self.args.batch_size]
            tasks = list(self.player.dataset.select(group))
            mdp.tool.encode([task.image for task in tasks], [task.image_hash for task in tasks])
            how = {"seed": self.args.seed, "batch_size": len(group)}
            yield from search.search(mdp, self.player.agent, tasks, source, **how)


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Run as `args` say, into their folder, and return what metrics.json holds."""
    sizes = [*args.k, *args.depths, *args.steps, args.batch_size, 1 if args.limit is None else args.limit]
    if min(sizes) < 1 or not (args.k and args.depths and args.budgets):
        raise RunError("k, depths, steps, batch_size and limit must be 1 or more, and at least one of each but steps")
    wanted = conditions(args)
    player = _player(args, wanted)
    ids = list(player.dataset.ids[: args.limit])
    if not ids:
        raise RunError(f"data {args.data!r} holds no task; nothing to search")
    out = args.resume or args.out
    if out is None:
        raise RunError("a run needs a folder: give out, or resume")
    shown = frozenset(sorted(ids, key=lambda name: seed_of("report", name))[: args.report_tasks])
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        about = _manifest(args, player, folder)
        one = Run(args, folder, player, {name: place for place, name in enumerate(ids)}, shown)
        _search_all(one, wanted, quiet)
        return _write_results(one, wanted, about)


def _player(args: Args, wanted: Sequence[Condition]) -> Player:
    """Data, tool and policy; RunError where they, or a value source that is wanted, cannot be had."""
    setup = Setup(args.data, args.tool, args.agent, args.codec, seed=args.seed, skip_bad=args.skip_bad)
    try:
        player = Player(replace(setup, threads=args.threads))
        if args.proposal_temperature is not None:
            if not hasattr(player.agent, "proposal_temperature"):
                raise ValueError(f"agent {args.agent!r} has no proposal_temperature: it is no language model")
            player.agent.proposal_temperature = args.proposal_temperature
        for value in args.values:
            _source(value, player)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up {args.data!r}, {args.tool!r}, {args.agent!r}, {args.values}: {error}") from error
    return player


def _source(value: str, player: Player) -> ValueSource:
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
        **tree_measures.PROTOCOL,
    }
    hashes = {"data": player.dataset.fingerprint, "tool": player.tool.fingerprint, "agent": protocol.get("weights")}
    return folder.keep_manifest(manifest(args.seed, protocol, hashes))


def _search_all(run: Run, wanted: Sequence[Condition], quiet: bool) -> None:
    """Search every task under every condition, but for what results.jsonl holds. A batch is searched as a whole."""
    done = {(record["search"], record["depth"], record["task"]) for record in run.folder.records("results.jsonl")}
    kept = {(tree["search"], tree["depth"], tree["task"]) for tree in run.folder.records("trees.jsonl")}
    size, ids = run.args.batch_size, list(run.places)
    interval = 0.2 if sys.stderr.isatty() else 10.0
    with (
        run.folder.appending("trees.jsonl") as trees,
        run.folder.appending("results.jsonl") as results,
        tqdm(total=len(wanted) * len(ids), unit="search", disable=quiet, mininterval=interval) as bar,
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
                        trees.add(tree_report.kept(condition, tree))
                    if key not in done:
                        results.add(tree_measures.record(condition, tree))
                bar.update(len(group))


def _write_results(run: Run, wanted: Sequence[Condition], about: dict[str, Any]) -> dict[str, Any]:
    results: dict[Condition, list[Record]] = {condition: [] for condition in wanted}
    for record in run.folder.records("results.jsonl"):
        results[Condition(record["search"], record["depth"])].append(record)
    for records in results.values():
        records.sort(key=lambda record: run.places[record["task"]])
    if not results[wanted[0]]:
        raise RunError(f"all items of {run.args.data!r} are bad, the first because: {run.player.dataset.skipped[:1]}")
    numbers = tree_measures.summarise(results, run.args.steps, about["protocol"])
    numbers["skipped"] = hide_home(dict(run.player.dataset.skipped))
    run.folder.write_json("metrics.json", numbers)
    tree_report.write(run.folder, results, numbers, about, lambda name: run.player.dataset[run.places[name]])
    run.folder.finish("tree_search")
    return run.folder.read_json("metrics.json")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = Args()
    try:
        args = parse_args(Args, argv, __doc__)
        if args.resume is None and args.out is None:
            args = replace(args, out=time.strftime("runs/tree-%Y%m%d-%H%M%S"))
        numbers = run(args)
    except SegenvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; go on with: python -m experiments.tree_search --resume {args.resume or args.out}",
            file=sys.stderr,
        )
        return 130
    print(tree_tables.text(numbers))
    print(f"report: {args.resume or args.out}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
