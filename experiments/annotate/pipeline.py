"""Annotate one image: boxes, masks and descriptions."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np

import agents
from experiments.annotate.config import Args
from experiments.annotate.detector import Detection, Detector, clip, suppress
from experiments.annotate.inputs import Inputs
from experiments.annotate.outputs import Record
from experiments.common import cli
from experiments.common.config import RunError
from search.executors import set_threads
from segenv import render, tools
from segenv.data.base import within
from segenv.data.images import read_image
from segenv.geometry import mask_to_polygons, polygons_to_mask
from segenv.geometry.rle import polygons_to_rle, segmentation_mask
from segenv.tools.base import SegTool
from segenv.types import Prompt, Task, image_hash

AT_ONCE = 1 << 27  # bytes of masks, or of pictures to describe, that are in memory at the same time
DESCRIBED = 8  # objects in a batch


class Annotator:
    """Models of a run, which make an image's record."""

    def __init__(self, args: Args) -> None:
        self.args = args
        with cli.setting_up(f"tool {args.tool!r}, detector {args.detector!r}, caption {args.caption!r}"):
            self.tool: SegTool = tools.make(args.tool)
            self.detector: Detector | None = None
            if not args.boxes:
                self.detector = Detector(args.detector, args.box_threshold, args.text_threshold)
            self.captioner: Any = agents.make(args.caption) if args.caption else None
            if args.caption and not hasattr(self.captioner, "backend"):
                raise ValueError(
                    f"agent {args.caption!r} describes nothing; expected a language model, mllm:NAME_OR_PATH"
                )
        set_threads(args.threads)

    def check(self, source: Inputs) -> None:
        """Raise `RunError` where there is a phrase that the detector cannot read."""
        if self.detector is not None:
            try:
                list(self.detector.captions(source.every_phrase))
            except ValueError as error:
                raise RunError(str(error)) from error

    @cached_property
    def fingerprints(self) -> dict[str, str | None]:
        return {
            "tool": self.tool.fingerprint,
            "detector": None if self.detector is None else self.detector.fingerprint,
            "caption": None if self.captioner is None else self.captioner.backend.fingerprint,
        }

    def annotate(self, name: str, source: Inputs) -> Record:
        """Annotate the image `name`. Raises `BadItem`, and `ToolError` where a model fails."""
        times = [time.perf_counter()]
        image = read_image(within(source.root, name, name, self.args.follow_links), name, self.args.max_pixels)
        if self.captioner is not None:
            self.captioner.check(Task(name, image, np.ones(image.shape[:2], bool)))
        phrases, dropped = source.phrases_of(name), Counter[str]()
        times.append(time.perf_counter())
        boxes, present = self._boxes(name, image, source, dropped)
        times.append(time.perf_counter())
        objects = self._objects(image, boxes, dropped)
        times.append(time.perf_counter())
        if self.captioner is not None:
            for one, text in zip(objects, self._captions(image, objects), strict=True):
                one["caption"] = text
        times.append(time.perf_counter())
        return {
            "image": name,
            "height": image.shape[0],
            "width": image.shape[1],
            "hash": image_hash(image),
            "objects": objects,
            "absent": [phrase for phrase in phrases if phrase not in present],
            "dropped": {why: count for why, count in dropped.items() if count},
            "seconds": dict(zip(("read", "detect", "segment", "caption"), np.diff(times).tolist(), strict=True)),
        }

    def _boxes(
        self, name: str, image: np.ndarray, source: Inputs, dropped: Counter
    ) -> tuple[list[Detection], set[str]]:
        """Boxes to segment, from a file or detected (without repeats, the best first), and the phrases of all boxes."""
        if source.boxes is not None:
            listed = source.boxes.get(name, [])
            height, width = image.shape[:2]
            boxes = [replace(one, box=box) for one in listed if (box := clip(one.box, width, height))]
            dropped["outside the image"] += len(listed) - len(boxes)
            return boxes, {one.phrase for one in listed}
        assert self.detector is not None
        phrases = source.phrases_of(name)
        boxes = self.detector.detect(image, phrases) if phrases else []
        alone = suppress(boxes, self.args.nms)
        dropped["repeats of a better box"] += len(boxes) - len(alone)
        dropped["beyond max_objects"] += max(len(alone) - self.args.max_objects, 0)
        return alone[: self.args.max_objects], {one.phrase for one in boxes}

    def _objects(self, image: np.ndarray, boxes: Sequence[Detection], dropped: Counter[str]) -> list[dict[str, Any]]:
        """Segment the objects in boxes; entries with exact masks."""
        height, width = image.shape[:2]
        encoding = self.tool.encode([image])[0] if boxes else {}
        at_once = max(AT_ONCE // (height * width), 1)
        objects = []
        for start in range(0, len(boxes), at_once):
            some = boxes[start : start + at_once]
            predictions = self.tool.predict([encoding] * len(some), [Prompt(box=one.box) for one in some])
            for one, prediction in zip(some, predictions, strict=True):
                rings = [
                    ring
                    for ring in mask_to_polygons(prediction.mask)
                    if cv2.contourArea(ring.astype(np.float32)) >= self.args.min_part
                ]  # what lies in a ring is smaller, so it goes with it
                area = int(polygons_to_mask(rings, height, width).sum())
                score = None if np.isnan(prediction.score) else prediction.score
                if area < self.args.min_area:
                    dropped["below min_area" if area else "empty mask"] += 1
                elif score is not None and score < self.args.min_mask_score:
                    dropped["below min_mask_score"] += 1
                else:
                    objects.append(
                        {
                            "phrase": one.phrase,
                            "score": one.score,
                            "box": [one.box.x0, one.box.y0, one.box.x1, one.box.y1],
                            "mask_score": score,
                            "mask": polygons_to_rle(rings, height, width),
                        }
                    )
        return objects

    def _captions(self, image: np.ndarray, objects: Sequence[dict[str, Any]]) -> Iterator[str]:
        """Describe each object on one line; "" where the model gives no text."""
        backend = self.captioner.backend
        special = backend.processor.tokenizer.all_special_tokens
        at_once = max(min(AT_ONCE // image.nbytes, DESCRIBED), 1)
        for start in range(0, len(objects), at_once):
            some = objects[start : start + at_once]
            shown = [render.overlay(image, segmentation_mask(one["mask"], *image.shape[:2])) for one in some]
            prompts = [self.args.caption_prompt.replace("{phrase}", one["phrase"]) for one in some]
            for text in backend.generate(shown, prompts, [0] * len(some)):
                for token in special:
                    text = text.replace(token, " ")
                yield " ".join(text.split()).strip("\"'“”")
