"""One-shot segmentation: the agent answers each task with polygons, in one reply (SimpleSeg, arXiv 2601.19228).

    python -m experiments.evaluate --task polygon --agent mllm:tiny-polygon --data synthetic:val --out runs/polygons
    python -m experiments.evaluate --task box --agent mllm:NAME_OR_PATH --codec qwen2.5-vl --out runs/boxes

The second, and `--task point` likewise, ask for a box or a point in the words of the codec's family, and are short for
`--task polygon --polygon.asked box`. `--polygon.given` and `--polygon.asked` choose the prompt type and the output type
(`segenv.queries`), of text, point, box and mask. Replies are greedy; with `--polygon.temperature 1 --polygon.samples
4`, four sampled ones are measured beside each. `--agent annotator` writes the target's own polygons in
`--polygon.budget` tokens, or its box, or the point deepest inside: a codec's upper bound. The run's folder holds
answers.jsonl (every reply and its scores), metrics.json, plots/ and report.html.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import agents
from agents.backends.base import Reply
from agents.base import Agent
from agents.prompted import PromptedAgent
from experiments.common import cli, served
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, manifest, of_tasks
from experiments.evaluate import exclusion
from experiments.evaluate.answers import polygon_metrics, polygon_report, reply_diagnosis, reply_page
from experiments.evaluate.answers.polygon_answers import OracleAgent, answers, polygon_codec, question, read, score
from experiments.evaluate.answers.polygon_metrics import Record, measures
from experiments.evaluate.answers.reply_facts import reply_facts
from experiments.evaluate.config import Args, PolygonOptions
from experiments.evaluate.episodes import records
from search.executors import set_threads
from segenv import codec as codecs
from segenv import data as datasets
from segenv.codec.polygons import PolygonCodec
from segenv.data import Dataset
from segenv.records import reader
from segenv.seeds import seed_of
from segenv.types import Task

RESUMABLE = frozenset({"report_episodes", "executor", "workers", "server", "budget"})
METRIC_DEFINITIONS = {**polygon_metrics.METRIC_DEFINITIONS, **reply_diagnosis.DEFINITIONS}


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Ask the agent about every task, in the folder of `args`; returns the content of metrics.json."""
    options = args.polygon
    if options.asked == options.given:
        raise RunError(f"--polygon.asked is {options.asked!r}, as is --polygon.given; ask for another thing")
    if args.executor != "serial" or args.search != "none":
        raise RunError("the task polygon plays no episode: leave out --executor and --search")
    try:
        data = datasets.make(args.data, skip_bad=args.skip_bad, follow_links=args.follow_links)
    except (ValueError, OSError) as error:
        raise RunError(f"cannot read data {args.data!r}: {error}") from error
    chosen = exclusion.choose(data, args, quiet)
    data = data.select(chosen.positions)
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to ask")
    agent = make_agent(args.agent, args.codec, args.seed, options, **model_options(args))
    data = data.checked(agent.check)
    codec = polygon_codec(agent.codec, args.agent, options.asked)
    samples = range(1 + options.samples if options.temperature else 1)
    set_threads(args.threads)
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, agent, data, chosen), METRIC_DEFINITIONS)

        def reply(tasks: list[Task]) -> Iterator[dict[str, Any]]:
            return map(asdict, _replies(tasks, samples, agent, args.seed, options))

        indices = records.indices(data)
        check = of_tasks(reader(Record), indices)
        with served.kept_replies(folder, agent):
            if isinstance(agent, PromptedAgent) and agent.in_flight > 1:
                _ask_at_once(folder, data, agent, samples, args, quiet, check)
            else:
                size = args.batch_size
                records.append_groups(folder, "answers.jsonl", data, size, reply, samples, "reply", quiet, check)
        scored = sorted(read(folder), key=lambda one: (indices[one.task], one.sample))
        records.check_any(scored, args.data, dict(data.skipped))
        greedy, sampled = ([one for one in scored if bool(one.sample) is some] for some in (False, True))
        tasks = list(dict.fromkeys(one.task for one in scored))
        images = dict(zip(tasks, records.keep_images(folder, data, tasks), strict=True))
        numbers: dict[str, Any] = {**measures(greedy, images), "sampled": None, "protocol": about["protocol"]}
        numbers["decomposed"] = _decomposed(greedy, data, images, codec, options.asked)
        numbers |= served.spent(agent)
        if sampled:
            numbers["sampled"] = measures(sampled, images)
        if options.asked == "point":
            numbers["inside"] = numbers["giou"]
            numbers["intervals"]["inside"] = numbers["intervals"]["giou"]
        numbers = records.write_metrics(folder, numbers, dict(data.skipped))
        how, limit = (options.given, options.asked), args.report_episodes
        shown = reply_page.write(folder, greedy, data.by_id, agent, codec, *how, limit, quiet)
        polygon_report.write(folder, numbers, about, greedy, shown)
        folder.finish("evaluate")
        return numbers


def _decomposed(
    greedy: Sequence[Record], data: Dataset, images: Mapping[str, str], codec: PolygonCodec, asked: str
) -> dict[str, Any] | None:
    """Take the greedy replies apart; None where a text was asked for."""
    if asked == "text":
        return None
    shared = Counter(images.values())
    facts = [reply_facts(one, data.by_id(one.task), codec, asked, shared[images[one.task]] > 1) for one in greedy]
    return reply_diagnosis.diagnose(facts, asked, [images[one.task] for one in greedy])


def model_options(args: Args) -> dict[str, Any]:
    """Options of the agent, as `args` give them beside those of `args.polygon`."""
    if args.temperature is not None or args.own_sampling:
        raise RunError(
            "replies with polygons are greedy, and sampled by --polygon.temperature; leave out the other flag"
        )
    given = records.agent_options(args)
    if "max_new_tokens" in given and args.polygon.max_new_tokens is not None:
        raise RunError("--max-new-tokens and --polygon.max-new-tokens are the same; give one of them")
    return given


def make_agent(spec: str, codec: str | None, seed: int, options: PolygonOptions, **given: Any) -> Agent:
    """Make the agent of a command line: a model, or the annotator as an `OracleAgent`."""
    with cli.setting_up(f"agent {spec!r} with codec {codec!r}"):
        if spec == "annotator":
            polygons = polygon_codec(codecs.make(codec or "rings"), spec, options.asked)
            if options.asked == "text" or options.temperature:
                raise RunError(
                    f"the annotator writes masks, boxes and points, the same ones each time; got asked "
                    f"{options.asked!r} and temperature {options.temperature}"
                )
            return OracleAgent(polygons, options.budget, options.unit, options.asked)
        if spec.partition(":")[0] == "random":
            raise RunError(f"agent {spec!r} writes no polygons; expected annotator, mllm or mllm:NAME_OR_PATH")
        spoken = polygon_codec(codecs.make(codec), spec, options.asked) if codec else None  # at a mask's length
        agent = agents.make(spec, spoken, seed=seed, **({"max_new_tokens": options.max_new_tokens} | given))
        if not isinstance(agent, PromptedAgent):
            raise RunError(f"agent {spec!r} is asked about clicks alone; expected a model, or a PromptedAgent of yours")
        return agent


def _ask_at_once(
    folder: RunFolder,
    data: Dataset,
    agent: PromptedAgent,
    samples: Sequence[int],
    args: Args,
    quiet: bool,
    check: Callable[[Any], Any],
) -> None:
    """Ask an agent that takes many questions at a time, and score each reply when it is there."""
    options = args.polygon
    codec = polygon_codec(agent.codec, args.agent, options.asked)

    def ask(task: Task, sample: int) -> Future[Reply]:
        with _as_run_error():
            picture, prompt, item = question(agent, task, sample, options.given, options.asked)
        temperature = options.temperature if sample else 0.0
        return agent.submit_question(picture, prompt, seed_of(args.seed, task.id, sample), temperature, item)

    def scored(task: Task, sample: int, reply: Reply) -> dict[str, Any]:
        return asdict(score(task, codec, reply, sample, options.asked))

    records.append_as_ready(folder, "answers.jsonl", data, agent.in_flight, ask, scored, samples, "reply", quiet, check)


@contextmanager
def _as_run_error() -> Iterator[None]:
    """Turn a question that the data cannot be asked into a RunError."""
    try:
        yield
    except ValueError as error:
        raise RunError(f"{error}. Choose another --polygon.given or --polygon.asked") from error


def _replies(
    tasks: Sequence[Task], samples: Sequence[int], agent: Agent, seed: int, options: PolygonOptions
) -> Iterator[Record]:
    """Greedy replies to the tasks (sample 0), and sampled ones."""
    for sample in samples:
        seeds = [seed_of(seed, task.id, sample) for task in tasks]
        temperature = options.temperature if sample else 0.0
        with _as_run_error():
            yield from answers(agent, tasks, seeds, temperature, options.given, options.asked, sample)


def _manifest(args: Args, agent: Agent, data: Dataset, chosen: exclusion.Choice) -> dict[str, Any]:
    options = args.polygon
    settings = {key: value for key, value in agent.settings.items() if key != "proposal_temperature"}
    protocol = {
        "task": "polygon",
        **records.settings(args, chosen),
        **settings,
        "privileged": agent.privileged,
        "given": None if agent.privileged else options.given,
        "asked": options.asked,
        "phrasing": "the first",
        "temperature": options.temperature,
        "samples": options.samples if options.temperature else 0,
        **METRIC_DEFINITIONS,
    }
    return manifest(args.seed, protocol, {"data": data.fingerprint, "agent": settings.get("weights")})
