"""Replies with polygons: the annotator's, a model's, and their scores."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agents.backends.base import Reply
from agents.base import Agent
from agents.prompted import PromptedAgent
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate.answers.polygon_metrics import Record, record
from segenv import queries
from segenv.codec.base import Codec
from segenv.codec.polygons import DIALECTS, PolygonCodec, of_family
from segenv.mdp import SegState
from segenv.records import reader
from segenv.types import Task, object_of

UNITS = ("tokens", "vertices", "characters")


class OracleAgent(Agent):
    """Writes the best polygons of the target within a budget, and nothing where not even a rectangle fits; or the box
    or point that is `asked`. Privileged: its IoU is the upper bound of any model with this codec and budget."""

    privileged = True
    spec = "annotator"

    def __init__(self, codec: PolygonCodec, budget: int = 128, unit: str = "tokens", asked: str = "mask") -> None:
        super().__init__(codec)
        if budget < 1 or unit not in UNITS:
            raise ValueError(f"budget {budget} {unit}; expected 1 or more of {', '.join(UNITS)}")
        self.dialect, self.budget, self.unit, self.asked = codec, budget, unit, asked
        self.tokens = token_counter()

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes what the agent writes."""
        return {**super().settings, "budget": self.budget, "unit": self.unit}

    def reply(self, task: Task) -> str:
        """Write the reply to a task."""
        if self.asked != "mask":
            right = queries.answer(task, self.dialect, self.asked)
            assert not isinstance(right, str)
            return self.dialect.format(right, task)

        def vertices(text: str) -> int:
            return sum(map(len, getattr(self.dialect.parse(text, task), "rings", ())))

        def tokens(text: str) -> int:
            numbers = text.count(",") + 1  # each a token at least; this spares most of the long texts
            return numbers if numbers > self.budget else self.tokens(text)

        length = {"tokens": tokens, "vertices": vertices, "characters": len}[self.unit]
        try:
            return self.dialect.reply(object_of(task.target), task, self.budget, length)
        except ValueError:  # the coarsest polygon is too long
            return ""

    def _act(self, states: Sequence[SegState], seeds: Sequence[int]) -> list[str]:
        return [self.reply(state.task) for state in states]


def token_counter() -> Callable[[str], int]:
    """Make a function that counts the tokens of a text as the tiny model of polygons does: eight for each vertex."""
    from agents import tiny
    from agents.training import polygon_examples

    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(polygon_examples.TOKENS))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def answers(
    agent: Any,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    temperature: float = 0.0,
    prompt_type: str = "text",
    output_type: str = "mask",
    sample: int = 0,
) -> list[Record]:
    """Score one reply of `agent` (a `PromptedAgent` or `OracleAgent` with a polygon codec) to each task. `seeds`, one a
    task, drive the sampling at `temperature`; 0 is greedy. Raises ValueError where a task does not allow the query."""
    codec = polygon_codec(agent.codec, agent.spec, output_type)
    if isinstance(agent, OracleAgent):
        texts = [agent.reply(task) for task in tasks]
        replies = [Reply(text, tokens=agent.tokens(text)) for text in texts]
    else:
        asked = [question(agent, task, sample, prompt_type, output_type) for task in tasks]
        pictures, prompts, items = (list(column) for column in zip(*asked, strict=True)) if asked else ([], [], [])
        replies = agent.ask(pictures, prompts, seeds, temperature, items)
    return [score(task, codec, reply, sample, output_type) for task, reply in zip(tasks, replies, strict=True)]


def score(task: Task, codec: PolygonCodec, reply: Reply, sample: int, output_type: str) -> Record:
    """Read a reply to a task and score it; 0 tokens where it is not known how many it has."""
    return record(task, codec, reply.text, reply.tokens or 0, sample, output_type, reply.finish_reason)


def question(
    agent: PromptedAgent, task: Task, sample: int, prompt_type: str, output_type: str
) -> tuple[np.ndarray, str, dict[str, Any]]:
    """The picture as it is sent, and the prompt, of a query about a task; and what its reply is about."""
    codec, own = polygon_codec(agent.codec, agent.spec, output_type), agent.template
    style = "codec" if own is not None else agent.prompt_style
    query = queries.query(task, codec, prompt_type, output_type, style)
    prompt = query.prompt if own is None else own.replace("{instruction}", task.instruction or "the main object")
    item = {"task": task.id, "step": 0, "sample": sample, "image": [task.width, task.height]}
    return agent.backend.sent(query.picture), prompt, item


def polygon_codec(codec: Codec, agent: str, asked: str = "mask") -> PolygonCodec:
    """The codec of masks that an agent speaks, asked for `asked`: its own, or that of its family."""
    try:
        return of_family(codec, asked)
    except ValueError as error:
        raise RunError(
            f"agent {agent!r} speaks {codec.name!r}; give it a --codec of {', '.join(DIALECTS)} or text4seg, or of its "
            f"family ({error})"
        ) from error


def read(folder: RunFolder) -> list[Record]:
    """Read the replies of a run."""
    return list(folder.records("answers.jsonl", reader(Record)))
