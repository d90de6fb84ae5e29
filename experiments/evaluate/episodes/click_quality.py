"""Quality of an agent's clicks, from recorded episodes: does a click fall on a true error of the mask before it, with
the right sign? It needs the target and no agent, and so works for any, after the play."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from search.episode import Episode, action_from_json
from segenv import rewards, statistics
from segenv.types import Action, Click, Task, object_of

ALL = "all"  # the key of all steps together
METRIC_DEFINITIONS = {
    "first_click_in_object": "of episodes on tasks with an object, the share whose first action is a positive click on "
    "one of its pixels",
    "clicks_on_error": "of the clicks made as the k-th action, and of all, the share on a true error of the mask "
    "before it with the right sign: a positive click on a missing pixel, a negative one on a pixel too many; ignored "
    "pixels are no error. A share of no click has no value. click_counts are the clicks that it is of",
}


def right_clicks(episode: Episode, task: Task) -> np.ndarray:
    """Whether the action of each step is a click on a true error, of the right sign: float64 [steps], 1 or 0, NaN where
    it is no click. Raises ValueError where the episode is of another size than the task."""
    if (episode.height, episode.width) != task.target.shape:
        size = f"{episode.height} x {episode.width} pixels, height x width"
        raise ValueError(f"it is of {size}; expected the task's {task.height} x {task.width}")
    found = np.full(len(episode.steps), np.nan)
    for k, step in enumerate(episode.steps):
        if step.action["type"] == "click":
            found[k] = is_right(task, episode.mask(k), action_from_json(step.action))
    return found


def is_right(task: Task, mask: np.ndarray, action: Action) -> float:
    """Return 1 if an action on `mask`, bool [H, W], is a click on a true error, of the right sign; 0 if it is another
    click; NaN if it is no click."""
    if not isinstance(action, Click):
        return float("nan")
    return rewards.make("placement")(task, mask, action, mask, False)


def first_click_inside(episode: Episode, task: Task) -> float:
    """Return 1 if the first action is a positive click on the object, else 0."""
    action = episode.steps[0].action
    return is_inside(task, action_from_json(action)) if action["type"] == "click" else 0.0


def is_inside(task: Task, action: Action | None) -> float:
    """Return 1 if an action is a positive click on the object, else 0."""
    return float(isinstance(action, Click) and action.positive and object_of(task.target)[action.y, action.x])


def by_step(right: Sequence[np.ndarray], max_steps: int) -> np.ndarray:
    """`right_clicks` of episodes as one table, [episodes, max_steps], NaN after an episode's end."""
    return np.array([np.pad(row, (0, max_steps - len(row)), constant_values=np.nan) for row in right])


def summarise(
    right: np.ndarray, inside: Sequence[float] | np.ndarray, images: Sequence[Hashable] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Summarise `by_step` and `first_click_inside` of episodes: numbers of `METRIC_DEFINITIONS`, and their intervals
    over `images`."""
    clicks = ~np.isnan(right)
    columns = {ALL: (np.nansum(right, axis=1), clicks.sum(1).astype(float))}
    inside = np.asarray(inside, float)
    first = np.nan_to_num(inside), (~np.isnan(inside)).astype(float)
    columns |= {str(k + 1): (np.nan_to_num(right[:, k]), clicks[:, k].astype(float)) for k in range(right.shape[1])}
    numbers = {
        "first_click_in_object": ratio(*first),
        "clicks_on_error": {key: ratio(*pair) for key, pair in columns.items()},
        "click_counts": {key: int(counts.sum()) for key, (_, counts) in columns.items()},
    }
    intervals = {
        "first_click_in_object": list(statistics.bootstrap_ratio(*first, images=images)),
        "clicks_on_error": {
            key: list(statistics.bootstrap_ratio(*pair, images=images)) for key, pair in columns.items()
        },
    }
    return numbers, intervals


def ratio(right: np.ndarray, clicks: np.ndarray) -> float:
    """Share of clicks that are right; NaN of none."""
    return float(right.sum() / clicks.sum()) if clicks.any() else float("nan")


def rows(numbers: Mapping[str, Any], steps: Sequence[int]) -> list[tuple[str, Any, Any]]:
    """Rows of a table from metrics.json: name, value and interval of each measure, of the `steps` that there are."""
    ends = numbers["intervals"]
    listed = [("First click in the object", numbers["first_click_in_object"], ends["first_click_in_object"])]
    for key in (*map(str, steps), ALL):
        if numbers["click_counts"].get(key):
            name = "Clicks on a true error" + (f", step {key}" if key != ALL else "")
            listed.append((name, numbers["clicks_on_error"][key], ends["clicks_on_error"][key]))
    return listed
