"""One-shot segmentation: the agent answers each task with a whole outline, in one reply (SimpleSeg, arXiv 2601.19228).

    python -m experiments.evaluate --task polygon --agent mllm:tiny-polygon --data synthetic:val --out runs/outlines

`--polygon.given` and `--polygon.asked` choose the question (`segenv.queries`), of text, point, box and mask. Replies
are the likeliest ones; with `--polygon.temperature 1 --polygon.samples 4`, so many drawn ones are measured beside them.
`--agent annotator` writes the target's own outline in `--polygon.budget` tokens: what a codec can say at best. The
run's folder holds answers.jsonl (every reply and its scores), metrics.json, plots/ and report.html; `answers` and
`measures` are the same as a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import agents
from agents.base import Agent
from experiments.common import cli
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder, hide_home, manifest
from experiments.evaluate.config import Args
from experiments.evaluate.polygon_answers import OracleAgent, answers, polygon_codec, read
from experiments.evaluate.polygon_metrics import METRIC_DEFINITIONS, Record, measures
from segenv import codec as codecs
from segenv import data as datasets
from segenv.codec.polygons import PolygonCodec
from segenv.data import Dataset
from segenv.seeds import seed_of
from segenv.types import Task

RESUMABLE = frozenset({"report_episodes", "executor", "workers"})


def make_agent(args: Args) -> Agent:
    """The agent of a command line: a model, or the annotator as an `Outliner`."""
    options = args.polygon
    with cli.setting_up(f"agent {args.agent!r} with codec {args.codec!r}"):
        if args.agent == "annotator":
            codec = polygon_codec(codecs.get(args.codec or "rings"), args.agent)
            if options.asked != "mask" or options.temperature:
                raise RunError(
                    f"the annotator writes masks, the same ones each time; got asked {options.asked!r} and temperature "
                    f"{options.temperature}"
                )
            return OracleAgent(codec, options.budget, options.unit)
        if args.agent.partition(":")[0] != "mllm":
            raise RunError(f"agent {args.agent!r} draws no outlines; expected annotator, mllm or mllm:NAME_OR_PATH")
        agent = agents.make(args.agent, args.codec, seed=args.seed, max_new_tokens=options.max_new_tokens)
    polygon_codec(agent.codec, args.agent)
    return agent


def run(args: Args, quiet: bool = False) -> dict[str, Any]:
    """Ask the agent about every task, in the folder of `args`; returns what metrics.json holds."""
    options = args.polygon
    if options.temperature < 0 or options.samples < 1 or options.asked == options.given:
        raise RunError(
            f"polygon: temperature {options.temperature} must be 0 or more, samples {options.samples} 1 or more, and "
            f"given {options.given!r} another thing than asked"
        )
    if args.executor != "serial" or args.search != "none":
        raise RunError("the task polygon plays no episode: leave out --executor and --search")
    try:
        data = datasets.make(args.data, skip_bad=args.skip_bad)[: args.limit]
    except (ValueError, OSError) as error:
        raise RunError(f"cannot read data {args.data!r}: {error}") from error
    if not len(data):
        raise RunError(f"data {args.data!r} holds no task; nothing to ask")
    agent = make_agent(args)
    codec = polygon_codec(agent.codec, args.agent)
    cli.set_threads(args.threads)
    with cli.open_run(args, RESUMABLE) as folder:
        about = folder.keep_manifest(_manifest(args, agent, data))
        have = {(one["task"], one["sample"]) for one in folder.records("answers.jsonl")}
        numbers = range(1 + options.samples if options.temperature else 1)
        with (
            folder.appending("answers.jsonl") as file,
            cli.progress(len(data) * len(numbers), "reply", len(have), quiet=quiet) as bar,
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
        **METRIC_DEFINITIONS,
    }
    protocol.pop("proposal_temperature", None)
    return manifest(args.seed, protocol, {"data": data.fingerprint, "agent": settings.get("weights")})


def _write_results(
    folder: RunFolder, args: Args, about: dict[str, Any], codec: PolygonCodec, data: Dataset
) -> dict[str, Any]:
    from experiments.evaluate import polygon_report as report

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
