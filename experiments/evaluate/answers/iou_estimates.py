"""Metrics of a model's IoU estimates on held-out masks, and of its actions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from search.episode import action_from_json
from search.labelled_masks import SOURCES, LabelledMask, balanced
from segenv import rewards
from segenv.codec.base import Codec
from segenv.statistics import calibration
from segenv.types import Click, Invalid, Stop, Task

READINGS = ("greedy", "mean")
TOOL = "tool"  # the reading that is the tool's own estimate


def iou_estimate_metrics(
    masks: Sequence[LabelledMask],
    predicted: Mapping[str, Sequence[float]],
    seed: int = 0,
    images_of: Callable[[Sequence[str]], Sequence[str]] = tuple,
) -> dict[str, Any]:
    """`calibration` of each reading (one number a mask) and of the tool, by part: "all" masks, "balanced" (as many of
    each tenth of IoU as there are, about), and each source's. Empty masks have no part in it, since any model knows
    that their IoU is 0. `iou` counts the masks in each tenth. `images_of` gives the images of task ids."""
    predicted = {**predicted, TOOL: [float("nan") if one.score is None else one.score for one in masks]}
    filled = [k for k, one in enumerate(masks) if one.pixels.any()]
    even = {(one.task, one.number) for one in balanced([masks[k] for k in filled], len(filled) // 2, seed)}
    parts = {
        "all": filled,
        "balanced": [k for k in filled if (masks[k].task, masks[k].number) in even],
        **{source: [k for k in filled if masks[k].source == source] for source in SOURCES},
    }
    readings: dict[str, dict[str, Any]] = {}
    for part, chosen in parts.items():
        true, tasks = [masks[k].iou for k in chosen], [masks[k].task for k in chosen]
        for name, values in predicted.items():
            estimates = np.array([values[k] for k in chosen])
            if len(estimates) and not np.isnan(estimates).any():
                readings.setdefault(part, {})[name] = calibration(estimates, true, tasks, images_of(tasks))
    return {"iou": histogram([masks[k].iou for k in filled]), "readings": readings}


def action_metrics(
    masks: Sequence[LabelledMask], readings: Mapping[str, Any], codec: Codec, task: Callable[[str], Task]
) -> dict[str, Any]:
    """Shares of whole replies: `parsed` are actions, `agree` state the number of the greedy reading, `placed` click on
    an error with the right sign, of those that should click, and `stops` stop if and only if they should. `readings`
    holds `replies`, pairs of a mask's index and a text, and the `greedy` reading of all masks."""
    counts: dict[str, list[float]] = {"parsed": [], "agree": [], "placed": [], "stops": []}
    for index, text in readings["replies"]:
        mask, source = masks[index], task(masks[index].task)
        action, best = codec.parse(text, source), action_from_json(mask.action)
        counts["parsed"].append(not isinstance(action, Invalid))
        counts["agree"].append(codec.stated_iou(text) == readings["greedy"][index])
        counts["stops"].append(isinstance(action, Stop) == isinstance(best, Stop))
        if isinstance(best, Click):
            counts["placed"].append(rewards.make("placement")(source, mask.pixels, action, mask.pixels, False))
    shares = {name: float(np.mean(values)) if values else None for name, values in counts.items()}
    return {"replies": len(readings["replies"]), "clicks": len(counts["placed"]), **shares}


def histogram(ious: Sequence[float]) -> list[int]:
    """Count the masks in each tenth of IoU."""
    return np.histogram(ious, 10, (0, 1))[0].tolist()
