"""One-shot segmentation: the agent answers each task with a whole outline, in one reply (SimpleSeg, arXiv 2601.19228).

    python -m experiments.evaluate --task polygon --agent mllm:tiny-polygon --data synthetic:val --out runs/outlines

`--polygon.given` and `--polygon.asked` choose the question (`segenv.queries`), of text, point, box and mask. Replies
are the likeliest ones; with `--polygon.temperature 1 --polygon.samples 4`, so many drawn ones are measured beside them.
`--agent annotator` writes the target's own outline in `--polygon.budget` tokens: what a codec can say at best. The
run's folder holds answers.jsonl (every reply and its scores), metrics.json, plots/ and report.html; `answers` and
`measures` are the same as a library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
from tqdm import tqdm

import agents
from agents.base import Agent
from experiments.polygons_measures import PROTOCOL, Record, measures, record
from experiments.runs import RunError, RunFolder, hide_home, manifest
from segenv import codec as codecs
from segenv import data as datasets
from segenv import queries
from segenv.codec import Codec
from segenv.codec.polygons import DIALECTS, PolygonCodec
from segenv.data import Dataset
from segenv.mdp import SegState
from segenv.seeds import seed_of
from segenv.types import Task, object_of

if TYPE_CHECKING:
    from experiments.evaluate import Args

__all__ = ["Options", "Outliner", "Record", "answers", "make_agent", "measures", "run"]

FREE = frozenset({"report_episodes", "executor", "workers"})
UNITS = ("tokens", "vertices", "characters")


@dataclass(frozen=True)
class Options:
    """What is asked, and how it is answered."""

    given: Literal["text", "point", "box", "mask"] = "text"
    """what tells the object"""
    asked: Literal["mask", "box", "point", "text"] = "mask"
    """what the reply is to be"""
    temperature: float = 0.0
    """above 0, replies are also drawn at it"""
    samples: int = 1
    """how many are drawn for each task"""
    max_new_tokens: int | None = None
    """tokens that a reply may have; by default what the checkpoint declares, else 512"""
    budget: int = 128
    """the annotator's: units that its reply may have"""
    unit: Literal["tokens", "vertices", "characters"] = "tokens"
    """what its budget counts; tokens are those of the tiny model that writes polygons"""


class Outliner(Agent):
    """Writes the best outline of the target whose length is within a budget; nothing where not even a rectangle
    fits. Privileged: what it reaches is the most that any model can with this codec and budget."""

    privileged = True
    spec = "annotator"

    def __init__(self, codec: PolygonCodec, budget: int = 128, unit: str = "tokens") -> None:
        super().__init__(codec)
        if budget < 1 or unit not in UNITS:
            raise ValueError(f"budget {budget} {unit}; expected 1 or more of {', '.join(UNITS)}")
        self.dialect, self.budget, self.unit = codec, budget, unit
        self.tokens = token_counter()

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes what the agent writes."""
        return {**super().settings, "budget": self.budget, "unit": self.unit}

    def draw(self, task: Task) -> str:
        """The reply to a task."""

        def vertices(text: str) -> int:
            return sum(map(len, getattr(self.dialect.parse(text, task), "rings", ())))

        def tokens(text: str) -> int:
            numbers = text.count(",") + 1  # each a token at least; this spares most of the long texts
            return numbers if numbers > self.budget else self.tokens(text)

        length = {"tokens": tokens, "vertices": vertices, "characters": len}[self.unit]
        try:
            return self.dialect.reply(object_of(task.target), task, self.budget, length)
        except ValueError:  # the coarsest outline is too long
            return ""

    def _act_on(self, states: Sequence[SegState], seeds: Sequence[int]) -> list[str]:
        return [self.draw(state.task) for state in states]


def token_counter() -> Callable[[str], int]:
    """Counts the tokens of a text as the tiny model that writes polygons does: eight for each vertex."""
    from agents import outlines, tiny

    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(list(outlines.TOKENS))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def answers(
    agent: Agent,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    temperature: float = 0.0,
    given: str = "text",
    asked: str = "mask",
    sample: int = 0,
) -> list[Record]:
    """One scored reply of `agent` (an `MllmAgent` or `Outliner` that speaks a polygon codec) to each task.

    `seeds`, one a task, drive the sampling at `temperature`, where 0 takes the likeliest tokens. Raises ValueError for
    a question that a task cannot be asked."""
    codec = codec_of(agent.codec, agent.spec)
    if isinstance(agent, Outliner):
        texts = [agent.draw(task) for task in tasks]
        spent = [agent.tokens(text) for text in texts]
    else:
        texts, spent = _asked(agent, codec, tasks, seeds, temperature, given, asked)
    return [
        record(task, codec, text, tokens, sample, asked) for task, text, tokens in zip(tasks, texts, spent, strict=True)
    ]


def _asked(
    agent: Any,
    codec: PolygonCodec,
    tasks: Sequence[Task],
    seeds: Sequence[int],
    temperature: float,
    given: str,
    asked: str,
) -> tuple[list[str], list[int]]:
    """What a model writes, and in how many tokens."""
    found = [queries.query(task, codec, given, asked, agent.prompt_style) for task in tasks]
    prompts, pictures = [one.prompt for one in found], [one.picture for one in found]
    texts = agent.backend.generate(pictures, prompts, seeds, temperature)
    return texts, [reply.tokens for reply in agent.backend.replies]


def make_agent(args: Args) -> Agent:
    """The agent of a command line: a model, or the annotator as an `Outliner`."""
    options = args.polygon
    try:
        if args.agent == "annotator":
            speaks = codec_of(codecs.get(args.codec or "rings"), args.agent)
            if options.asked != "mask" or options.temperature:
                raise RunError(
                    f"the annotator writes masks, the same ones each time; got asked {options.asked!r} and temperature "
                    f"{options.temperature}"
                )
            return Outliner(speaks, options.budget, options.unit)
        if args.agent.partition(":")[0] != "mllm":
            raise RunError(f"agent {args.agent!r} draws no outlines; expected annotator, mllm or mllm:NAME_OR_PATH")
        made = agents.make(args.agent, args.codec, seed=args.seed, max_new_tokens=options.max_new_tokens)
    except (ValueError, OSError, ImportError) as error:
        raise RunError(f"cannot set up agent {args.agent!r} with codec {args.codec!r}: {error}") from error
    codec_of(made.codec, args.agent)
    return made


def codec_of(codec: Codec, agent: str) -> PolygonCodec:
    """An agent's codec, which must be one of polygons."""
    if not isinstance(codec, PolygonCodec):
        raise RunError(f"agent {agent!r} speaks {codec.name!r}; give it a --codec of {', '.join(DIALECTS)}")
    return codec


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Ask the agent about every task, in the folder of `args`; returns what metrics.json holds."""
    options, out = args.polygon, args.resume or args.out
    if options.temperature < 0 or options.samples < 1 or options.asked == options.given:
        raise RunError(
            f"polygon: temperature {options.temperature} must be 0 or more, samples {options.samples} 1 or more, and "
            f"given {options.given!r} another thing than asked"
        )
    if args.executor != "serial" or args.search != "none":
        raise RunError("the task polygon plays no episode: leave out --executor and --search")
    if out is None:
        raise RunError("an evaluation needs a folder: give out, or resume")
    try:
        data = datasets.make(args.data, skip_bad=args.skip_bad)[: args.limit]
    except (ValueError, OSError) as error:
        raise RunError(f"cannot read data {args.data!r}: {error}") from error
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to ask")
    agent = make_agent(args)
    codec = codec_of(agent.codec, args.agent)
    cv2.setNumThreads(args.threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(args.threads)
    with RunFolder.resume(out, args, FREE) if args.resume else RunFolder.create(out, args) as folder:
        about = folder.keep_manifest(_manifest(args, agent, data))
        have = {(one["task"], one["sample"]) for one in folder.records("answers.jsonl")}
        numbers = range(1 + options.samples if options.temperature else 1)
        with (
            folder.appending("answers.jsonl") as file,
            tqdm(
                total=len(data) * len(numbers), initial=len(have), unit="reply", disable=quiet, mininterval=1.0
            ) as bar,
        ):
            for start in range(0, len(data), args.batch_size):  # fixed groups: a model's last bits depend on them
                group = data[start : start + args.batch_size]
                if have.issuperset((name, number) for name in group.ids for number in numbers):
                    continue
                for one in _group(list(group), numbers, agent, args):
                    if (one.task, one.sample) not in have:
                        file.add(asdict(one))
                        bar.update()
        return _write_results(folder, args, about, codec, data)


def _group(tasks: Sequence[Task], numbers: Sequence[int], agent: Agent, args: Args) -> Iterator[Record]:
    """The replies to some tasks: the greedy one, and the drawn ones."""
    options = args.polygon
    for number in numbers:
        seeds = [seed_of(args.seed, task.id, number) for task in tasks]
        temperature = options.temperature if number else 0.0
        try:
            yield from answers(agent, tasks, seeds, temperature, options.given, options.asked, number)
        except ValueError as error:  # a question that the data cannot be asked
            raise RunError(f"{error}. Choose another --polygon.given or --polygon.asked") from error


def _manifest(args: Args, agent: Agent, data: Dataset) -> dict[str, Any]:
    options = args.polygon
    settings = agent.settings
    protocol = {
        "task": "polygon",
        "data": args.data,
        "limit": args.limit,
        **settings,
        "privileged": agent.privileged,
        "given": None if agent.privileged else options.given,
        "asked": options.asked,
        "phrasing": "the first",
        "temperature": options.temperature,
        "samples": options.samples if options.temperature else 0,
        "seed": args.seed,
        "threads": args.threads,
        "batch_size": args.batch_size,
        **PROTOCOL,
    }
    protocol.pop("proposal_temperature", None)
    return manifest(args.seed, protocol, {"data": data.fingerprint, "agent": settings.get("weights")})


def _write_results(
    folder: RunFolder, args: Args, about: dict[str, Any], codec: PolygonCodec, data: Dataset
) -> dict[str, Any]:
    from experiments import polygons_report as report

    places = {name: place for place, name in enumerate(data.ids)}
    records = sorted(read(folder), key=lambda one: (places[one.task], one.sample))
    if not records:
        raise RunError(f"all {len(data)} items of {args.data!r} are bad: {next(iter(data.skipped), ('', ''))[1]}")
    greedy, drawn = ([one for one in records if bool(one.sample) is some] for some in (False, True))
    numbers = {
        **measures(greedy),
        "sampled": measures(drawn) if drawn else None,
        "skipped": hide_home(dict(data.skipped)),
        "protocol": about["protocol"],
    }
    folder.write_json("metrics.json", numbers)
    numbers = folder.read_json("metrics.json")
    report.write(folder, numbers, about, greedy, codec, lambda name: data[places[name]], args.report_episodes)
    folder.finish("evaluate")
    return numbers


def read(folder: RunFolder) -> list[Record]:
    """The replies that a run has."""
    return [Record(**one) for one in folder.records("answers.jsonl")]
