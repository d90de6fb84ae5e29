"""Parts that commands share whose agents ask models: options of servers, and replies that are kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agents import replies
from agents.backends.server import BudgetOptions, ServerOptions
from agents.base import Agent
from agents.replies import ReplyLog
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder

REPLIES, LOST = "replies.jsonl", "lost.jsonl"
RESUMABLE = frozenset({"server", "budget"})  # settings that change no result


def is_served(agent: str) -> bool:
    """Whether the spec of an agent names a model behind a server."""
    return agent.partition(":")[0] == "openai"


def server_options(agent: str, server: ServerOptions, budget: BudgetOptions) -> dict[str, Any]:
    """Options of the agent that the spec `agent` names: those of servers where it is behind one."""
    return {"server": server, "budget": budget} if is_served(agent) else {}


def check_executor(agent: Agent, executor: str) -> None:
    """Raise RunError where an executor is given for an agent that takes many questions at a time."""
    if agent.in_flight > 1 and executor != "serial":
        raise RunError("a server is asked many things at a time as it is: leave out --executor")


@contextmanager
def kept_replies(folder: RunFolder, agent: Agent, place: str = "") -> Iterator[None]:
    """Keep the replies of an agent that asks a model in PLACEreplies.jsonl, each as it arrives; those that are there
    are not asked for again. What a server may charge for requests that brought no reply is in PLACElost.jsonl."""
    if not agent.asks:
        yield
        return
    name, lost = place + REPLIES, place + LOST
    budget = getattr(getattr(agent, "backend", None), "budget", None)
    with folder.appending(name) as file:
        agent.log = ReplyLog(folder.records(name, replies.check), file.add, folder / name)
        try:
            if budget is None:
                yield
                return
            budget.restore(agent.log.usage, folder.records(lost, _check_lost))  # limits are of the whole run
            with folder.appending(lost) as others:
                budget.keep = others.add
                try:
                    yield
                finally:
                    budget.keep = lambda record: None
        finally:
            agent.log = None


def told(numbers: Mapping[str, Any]) -> list[str]:
    """A line about what the requests of a run cost, from its metrics.json; none where it asked no server."""
    if (spent := numbers.get("spent")) is None:
        return []
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    lost = spent["without_reply"]
    without = f"; {lost['requests']} requests without a reply are counted at the most they may cost"
    tokens = f"{spent['prompt_tokens']} + {spent['tokens']} tokens"
    return [f"{spent['requests']} requests, {tokens}{cost}{without * bool(lost['requests'])}"]


def _check_lost(record: Any) -> Mapping[str, Any]:
    """Read a record of lost.jsonl. Raises ValueError where it is another thing."""
    counts = ("requests", "prompt_tokens", "tokens")
    if not isinstance(record, dict) or not all(type(record.get(name)) is int and record[name] >= 0 for name in counts):
        raise ValueError(f"expected counts of {', '.join(counts)}")
    return record


def spent(agent: Agent) -> dict[str, Any]:
    """Costs of the requests to the agent's server, under `spent`; empty where it has none."""
    budget = getattr(getattr(agent, "backend", None), "budget", None)
    return {} if budget is None else {"spent": budget.summary}
