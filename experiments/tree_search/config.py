"""Settings of a comparison of tree searches, and its conditions."""

from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any

import tyro

from agents.backends.server import BudgetOptions, ServerOptions
from experiments.common.config import Counts, Executor, InFolder, Names, OutFolder, RunError
from experiments.tree_search.metrics import Condition
from search import spec
from search.on_ray import RayOptions
from segenv.ranges import Count, CountOrNone, NotNegative, Processes, Seed

RESUMABLE = frozenset({"report_tasks", "server", "budget", "executor", "workers", "ray"})


@dataclass(frozen=True)
class Args:
    """Flags of the command line; specs as in docs/evaluate.md and docs/data.md."""

    data: str = "synthetic:val"
    """what to segment"""
    tool: str = "sam"
    """what makes masks of clicks"""
    agent: str = "mllm"
    """the policy whose replies are searched"""
    codec: str | None = None
    """how the policy writes actions; by default its own"""
    search: Names = ("greedy", "best-of-n", "beam", "dvts", "lookahead", "best-first", "mcts")
    """algorithms, with options where they are not the defaults: mcts:c=0.3"""
    k: Counts = (1, 3)
    """replies at each node (episodes, for best-of-n); at K = 1 all searches are greedy search, which is run"""
    depths: Counts = (7,)
    """actions that lie between the first mask and the deepest"""
    values: Names = ("prm", "tool", "oracle")
    """value sources: prm, prm:NAME_OR_PATH, self (what the policy states), tool, oracle"""
    budgets: Names = ("policy_calls=21",)
    """what each task may cost: policy_calls=N, tokens=N, tool_calls=N, value_calls=N, seconds=S; none"""
    steps: tuple[Count, ...] = (1, 3, 5, 7, 11)
    """greedy search by number of steps, with values and without (the paper's Table 2); --steps alone leaves it out"""
    limit: Count | None = 300
    """use the first N tasks only"""
    proposal_temperature: NotNegative | None = None
    """of a language model's samples; by default its own"""
    seed: Seed = 0
    """of the policy's samples"""
    out: OutFolder | None = None
    """folder of a new run; by default runs/tree-DATE"""
    resume: InFolder | None = None
    """folder of a run to resume; its settings hold"""
    executor: Executor = "serial"
    """where tasks are searched"""
    workers: Processes = 2
    """processes of the executors process and ray"""
    batch_size: Count = 16
    """tasks that are searched together; a learned model's last bits may depend on it"""
    threads: Processes = 1
    """threads; sums of floats may depend on it"""
    skip_bad: bool = False
    """pass over bad items, and count them"""
    follow_links: bool = False
    """follow links in the data's folder to files outside it"""
    report_tasks: CountOrNone = 3
    """tasks whose trees report.html shows"""
    ray: RayOptions = field(default_factory=RayOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    budget: Annotated[BudgetOptions, tyro.conf.arg(name="")] = field(default_factory=BudgetOptions)


def conditions(args: Args) -> list[Condition]:
    """Conditions to run: the steps table's searches without a budget, the grid, and for each K its controls of equal
    cost (`metrics.equal_cost`). Raises RunError for a bad spec."""
    found: dict[Condition, None] = {}

    def add(name: str, depth: int, budget: str, **options: Any) -> None:
        base, _, listed = name.partition(":")
        written = {part.partition("=")[0].strip() for part in listed.split(",") if part}
        parts = [f"{key}={value}" for key, value in options.items() if key not in written]
        text = f"{base}:{','.join([*filter(None, [listed]), *parts, *([] if budget == 'none' else [budget])])}"
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
    for value, k, depth, budget in product(args.values, args.k, args.depths, args.budgets):
        if k > 1 and budget != "none":
            add("greedy", depth * k, budget, k=1, value=value)
            add("best-of-n", depth, budget, n=k, value=value)
    return list(found)
