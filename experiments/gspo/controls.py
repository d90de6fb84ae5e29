"""Controls of GSPO, which take no training: the start's outlines scaled by one constant, and the start sampled at a
lower temperature. Both constants are chosen on training tasks, by gIoU, and measured on the held-out ones.

Their files lie in the folder of the start: `training.jsonl` (replies to training tasks), `controls.json` (what was
chosen), `scaled.jsonl` and `cooler.jsonl` (replies to held-out tasks, as in `answers.jsonl`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from experiments.common.run_folder import RunFolder
from experiments.evaluate.answers.polygon_answers import answers
from experiments.evaluate.answers.polygon_metrics import Record, rasterize, score
from experiments.evaluate.episodes.records import append_groups
from experiments.gspo.answers import Run, read_replies
from segenv import metrics, queries
from segenv.codec.polygons import PolygonCodec
from segenv.data.base import Dataset
from segenv.records import reader
from segenv.seeds import seed_of
from segenv.types import Polygons, Task

SCALES = tuple(round(0.8 + 0.05 * k, 2) for k in range(13))  # 0.8 to 1.4
TEMPERATURES = (0.25, 0.5, 0.75, 1.0)
NAMES = ("scaled", "cooler")


def scale(answer: Any, factor: float, task: Task) -> Any:
    """Scale the polygons of an answer about the centroid of what they fill, within the image. Other answers, and
    polygons that fill nothing, stay as they are."""
    if not isinstance(answer, Polygons):
        return answer
    rows, columns = np.nonzero(rasterize(answer, task))
    if not len(rows):
        return answer
    centre, size = np.array([np.mean(columns), np.mean(rows)]) + 0.5, (task.width, task.height)
    rings = tuple(np.clip(centre + (ring - centre) * factor, 0, size) for ring in answer.rings)
    return Polygons(rings, answer.union, answer.truncated)


def rescore(one: Record, task: Task, codec: PolygonCodec, factor: float) -> Record:
    """Score a reply with its polygons scaled."""
    answer = scale(queries.read(one.text, task, codec), factor, task)
    return score(task, codec, answer, one.text, one.tokens, one.sample)


def best_scale(records: Sequence[Record], data: Dataset, codec: PolygonCodec) -> tuple[float, dict[str, float]]:
    """The scale of `SCALES` at which replies have the highest mean IoU, the nearest to 1 of equals, and those means."""
    ious: dict[float, list[float]] = {factor: [] for factor in SCALES}
    for one in records:
        task = data.by_id(one.task)
        answer = queries.read(one.text, task, codec)
        for factor, found in ious.items():
            mask = rasterize(scale(answer, factor, task), task)
            found.append(metrics.iou(task.target, mask) if one.error is None else 0.0)
    means = {factor: float(np.mean(found)) for factor, found in ious.items()}
    best = max(means, key=lambda factor: (means[factor], -abs(factor - 1)))
    return best, {str(factor): mean for factor, mean in means.items()}


def measure(run: Run, count: int) -> None:
    """Choose both constants on the first `count` training tasks, and measure them on the held-out tasks, in the start's
    folder; `run.measure` was called for step 0."""
    folder, codec = run.folder, run.agent.codec
    train, held_out = run.data.select(run.train_indices[:count]), run.held_out.select(run.eval_indices)
    for temperature in (0.0, *TEMPERATURES):
        _append(run, "training.jsonl", train, temperature, [int(temperature > 0)])
    replies = list(folder.records("training.jsonl", _read))
    greedy = [one for temperature, one in replies if not temperature]
    factor, scales = best_scale(greedy, train, codec)
    ious = {
        temperature: float(np.mean([one.iou for own, one in replies if own == temperature]))
        for temperature in TEMPERATURES
    }
    cooler = max(ious, key=lambda temperature: (ious[temperature], temperature))
    by_temperature = {str(temperature): iou for temperature, iou in ious.items()}
    chosen = {"tasks": len(greedy), "scale": factor, "temperature": cooler}
    folder.write_json("controls.json", {**chosen, "giou": {"scale": scales, "temperature": by_temperature}})
    _append(run, "cooler.jsonl", held_out, cooler, list(range(1, 1 + run.args.samples)))
    start: dict[str, list[Record]] = {}
    for one in read_replies(folder)[0]:
        start.setdefault(one.task, []).append(one)

    def rescored(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        for task in tasks:
            for one in start[task.id]:
                yield {"temperature": 0.0, **asdict(rescore(one, task, codec, factor))}

    samples = list(range(1 + run.args.samples))
    append_groups(folder, "scaled.jsonl", held_out, run.args.eval_batch, rescored, samples, quiet=True, read=_read)


def _append(run: Run, name: str, data: Dataset, temperature: float, samples: Sequence[int]) -> None:
    """Append the start's replies to tasks at a temperature; sample 0 is the greedy one."""

    def reply(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            seeds = [seed_of("held out", task.id, sample) for task in tasks]  # as in `Run.measure`
            for one in answers(run.agent, tasks, seeds, temperature, sample=sample):
                yield {"temperature": temperature, **asdict(one)}

    size = run.args.eval_batch
    append_groups(run.folder, name, data, size, reply, samples, quiet=True, read=_read, temperature=temperature)


def _read(value: Any) -> tuple[float, Record]:
    """Read a line: the temperature, and the reply. Raises ValueError where it is another thing."""
    record = reader(dict)(value)
    rest = {key: one for key, one in record.items() if key != "temperature"}
    return reader(float)(record.get("temperature")), reader(Record)(rest)


def read(folder: RunFolder) -> tuple[Mapping[str, Any], dict[str, list[Record]]]:
    """Read what was chosen, and the replies of each control of `NAMES` to the held-out tasks."""
    replies = {name: [one for _, one in folder.records(f"{name}.jsonl", _read)] for name in NAMES}
    return folder.load_json("controls.json"), replies
