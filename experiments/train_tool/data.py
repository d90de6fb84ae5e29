"""Training examples of the tiny SAM: views of procedural scenes, and prompts for objects, touching ones and parts."""

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from segenv import annotator
from segenv.data.synthetic.dead_leaves import sample_dead_leaves
from segenv.data.synthetic.scenes import Synthetic
from segenv.tools.tiny_sam import PIXEL_MEAN


class Crops(Dataset):
    """Square views of training scenes: of `Synthetic`, and dead leaves with chance `dead_leaves`. A prompt asks for an
    object, with chance `unions` together with others that touch it. Item i depends on i and the settings alone, so a
    run can be resumed anywhere."""

    def __init__(self, size: int, prompts: int, seed: int, unions: float = 0.0, dead_leaves: float = 0.0) -> None:
        self.size, self.prompts, self.seed, self.unions, self.dead_leaves = size, prompts, seed, unions, dead_leaves
        self.scenes = Synthetic("train")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image uint8 [S, S, 3], instances uint8 [S, S], and targets bool [prompts, 16]: the instances of a prompt."""
        cv2.setNumThreads(1)
        rng = np.random.default_rng([self.seed, self.size, i])
        scene = None if rng.random() < self.dead_leaves else self.scenes.scene(i)
        while True:  # until something can be seen well enough to be asked for
            whole = sample_dead_leaves(rng) if scene is None else (scene.image, scene.instances)
            image, instances = self._view(*whole, rng)
            areas = np.bincount(instances.ravel(), minlength=2)
            areas[0] = 0
            large = np.flatnonzero(areas >= 0.003 * self.size**2)
            if len(large):
                targets = np.zeros((self.prompts, 16), bool)
                for row, chosen in zip(targets, rng.choice(large, self.prompts), strict=True):
                    row[chosen] = True
                    touching = neighbours(instances, chosen)
                    if len(touching) and rng.random() < self.unions:
                        row[rng.choice(touching, rng.integers(1, min(2, len(touching)) + 1), replace=False)] = True
                return image, instances, targets

    def _view(
        self, image: np.ndarray, instances: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        side = max(image.shape)
        if rng.random() < 0.5:  # a square window; otherwise the whole scene, as at test time
            side = int(rng.uniform(0.35, 1.0) * side)
        high, wide = min(side, image.shape[0]), min(side, image.shape[1])
        y, x = int(rng.integers(image.shape[0] - high + 1)), int(rng.integers(image.shape[1] - wide + 1))
        image, instances = image[y : y + high, x : x + wide], instances[y : y + high, x : x + wide]
        scale = self.size / side
        new = max(1, round(wide * scale)), max(1, round(high * scale))
        image = cv2.resize(image, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        instances = cv2.resize(instances, new, interpolation=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, instances = image[:, ::-1], instances[:, ::-1]
        if rng.random() < 0.3:
            image = image[..., rng.permutation(3)]
        full = np.empty((self.size, self.size, 3), np.uint8)
        full[:] = PIXEL_MEAN.numpy().round().ravel()  # padding is 0 after normalisation
        full[: new[1], : new[0]] = image
        ids = np.zeros((self.size, self.size), np.uint8)
        ids[: new[1], : new[0]] = instances
        return full, ids


def half_plane(mask: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """One side of a random line through `mask`, float32 [S, S]; the whole plane where it would leave nearly nothing."""
    rows, columns = np.nonzero(mask)
    k, angle = rng.integers(len(rows)), rng.uniform(0, 2 * np.pi)
    y, x = np.arange(mask.shape[0])[:, None] - rows[k], np.arange(mask.shape[1])[None, :] - columns[k]
    side = np.cos(angle) * x + np.sin(angle) * y >= 0
    enough = (side & mask).sum() >= max(0.003 * mask.size, 0.25 * len(rows))
    return torch.from_numpy(side | (not enough)).float()


def neighbours(instances: np.ndarray, chosen: int) -> np.ndarray:
    """The instances that touch instance `chosen`."""
    around = cv2.dilate((instances == chosen).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    near = np.unique(instances[around])
    return near[(near != 0) & (near != chosen)]


def error_click(target: np.ndarray, prediction: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int]:
    """A correction (x, y, label) in pixels: half the time the annotator's, half anywhere in the error region."""
    wrong = target != prediction
    if rng.random() < 0.5 and (click := annotator.next_click(target, prediction)) is not None:
        return click.x, click.y, int(click.positive)
    rows, columns = np.nonzero(wrong if wrong.any() else target if target.any() else ~target)
    k = rng.integers(len(rows))
    return columns[k], rows[k], int(target[rows[k], columns[k]])


def true_click(target: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int]:
    """A click (x, y, label) anywhere in or near `target`, with the right label: also where a prediction is right."""
    x, y, width, height = cv2.boundingRect(target.astype(np.uint8))
    size = np.array([max(width, 1), max(height, 1)])
    spot = np.array([x, y]) + size * rng.uniform(-0.15, 1.15, 2)
    column, row = np.clip(spot.astype(int), 0, np.array(target.shape[::-1]) - 1)
    return column, row, int(target[row, column])


def correction(target: np.ndarray, prediction: np.ndarray, rng: np.random.Generator) -> tuple[float, float, int]:
    """A click (x, y, label) in the error or, at times, elsewhere: users correct a mask that was finished, which the
    model does not see."""
    return true_click(target, rng) if rng.random() < 0.15 else error_click(target, prediction, rng)


def points_in_boxes(truth: np.ndarray, rng: np.random.Generator, k: int = 3) -> np.ndarray:
    """From 1 to `k` positive points [N, K, 3] (x, y, 1) anywhere in the box of each of `truth` bool [N, S, S], as
    `points` of `segenv.envs.starts` sets them."""
    corners = np.array([cv2.boundingRect(mask.astype(np.uint8)) for mask in truth])[:, None]
    spots = corners[..., :2] + corners[..., 2:] * rng.random((len(truth), rng.integers(1, k + 1), 2))
    return np.concatenate([np.floor(spots), np.ones_like(spots[..., :1])], axis=2)


def first_prompt(
    truth: np.ndarray, boxed: bool, rng: np.random.Generator
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Points [N, 1, 3] (x, y, 1), or boxes [N, 4] moved by up to a tenth, of `truth` bool [N, S, S]."""
    if boxed:
        boxes = []
        for mask in truth:
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            boxes.append(np.array([x, y, x + w, y + h]) + rng.normal(0, 0.05, 4) * [w, h, w, h])
        return None, np.clip(np.array(boxes), 0, truth.shape[-1])
    empty = np.zeros(truth.shape[1:], bool)
    return np.array([error_click(mask, empty, rng) for mask in truth])[:, None], None
