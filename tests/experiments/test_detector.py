"""Open-vocabulary detectors: phrases to boxes and scores, for any family, and which of overlapping boxes stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import disc_task
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segenv.checkpoints import CheckpointError
from segenv.types import Box

torch = pytest.importorskip("torch")

import made_models  # noqa: E402

from experiments.annotate.detector import Detection, Detector, suppress  # noqa: E402

torch.set_num_threads(1)


def test_grounded_scores_belong_to_whole_phrases(grounding_dino: Path) -> None:
    """Every letter is a token, so where each phrase stands among the tokens can be counted by hand."""
    image, asked = disc_task(48, 64, 40, 20, 12).image, ["Red  cup?", "a cat.", "dog"]
    said = ["red cup", "a cat", "dog"]
    detector = Detector(grounding_dino, 0.3, 0.2)
    inputs = detector.processor(images=Image.fromarray(image), text="red cup. a cat. dog.", return_tensors="pt")
    with torch.inference_mode():
        output = detector.model(**inputs)
    scores, boxes = output.logits[0].sigmoid().numpy(), output.pred_boxes[0].numpy()
    start, spans = 1, []
    for text in said:
        letters = len(text.replace(" ", ""))
        spans.append(slice(start, start + letters))
        start += letters + 1  # the full stop
    expected = []
    for row, (x, y, w, h) in zip(scores, boxes, strict=True):
        means = [row[span].mean() for span in spans]
        best = int(np.argmax(means))
        if means[best] > 0.2 and (peak := row[spans[best]].max()) > 0.3:
            expected.append((asked[best], peak, 64 * (x - w / 2), 48 * (y - h / 2)))
    found = detector.detect(image, asked)
    assert len(found) == len(expected) > 3 and len({one.phrase for one in found}) > 1
    for one, (phrase, peak, x0, y0) in zip(found, sorted(expected, key=lambda row: -row[1]), strict=True):
        assert one.phrase == phrase and one.score == pytest.approx(peak, abs=1e-6)
        assert (one.box.x0, one.box.y0) == pytest.approx((max(x0, 0), max(y0, 0)), abs=1e-4)


@pytest.mark.parametrize("family", ["grounding-dino", "owlvit"])
def test_any_family_detects_within_the_image_and_above_the_threshold(family: str, tmp_path: Path) -> None:
    folder = made_models.save_detector(family, tmp_path, seed=3)
    image, asked = disc_task(48, 64, 40, 20, 12).image, ["disc", "cat"]
    loose = Detector(folder, 0.01, 0.0)
    found, again = loose.detect(image, asked), loose.detect(image, asked)
    middle = found[len(found) // 2].score
    assert found == again and len(found) > 1 and middle is not None
    strict = Detector(folder, middle, 0.0)
    assert strict.detect(image, asked) == [one for one in found if one.score is not None and one.score > middle]
    for one in found:
        assert one.phrase in asked
        assert 0 <= one.box.x0 < one.box.x1 <= 64 and 0 <= one.box.y0 < one.box.y1 <= 48
    assert loose.fingerprint == strict.fingerprint and loose.detect(image, []) == []
    with pytest.raises(ValueError, match="takes 30[01] tokens"):
        list(loose.captions([" ".join("x" * 300)]))
    with pytest.raises(ValueError, match="no word"):
        loose.detect(image, ["?."])


def test_phrases_that_fill_a_caption_are_asked_in_several(grounding_dino: Path) -> None:
    detector, image = Detector(grounding_dino, 0.3, 0.0), disc_task(48, 64, 40, 20, 12).image
    phrases = [f"thing number {i}" for i in range(40)]
    parts = list(detector.captions(phrases))
    assert len(parts) > 1 and [phrase for part in parts for phrase in part] == phrases
    apart = [one for part in parts for one in detector.detect(image, part)]
    assert sorted(map(str, detector.detect(image, phrases))) == sorted(map(str, apart))


def test_what_is_no_detector(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no zero-shot object detection checkpoint"):
        Detector(tmp_path)
    with pytest.raises(ValueError, match="box_threshold is 3"):
        Detector(tmp_path, box_threshold=3)


corner = st.floats(0, 50, width=32)
detections = st.builds(
    lambda phrase, x, y, w, h, score: Detection(phrase, Box(x, y, x + w + 1, y + h + 1), score),
    *(st.sampled_from("ab"), corner, corner, corner, corner),
    st.floats(0.0625, 1, width=32),
)


@given(st.lists(detections, max_size=12, unique_by=lambda one: one.score), st.floats(0.05, 0.95))
def test_of_boxes_that_overlap_the_best_stays(found: list[Detection], limit: float) -> None:
    def iou(a: Box, b: Box) -> float:
        width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        both = max(width, 0) * max(height, 0)
        return both / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - both)

    overlaps = [iou(a.box, b.box) for i, a in enumerate(found) for b in found[:i]]
    limit += 0.01 * any(abs(value - limit) < 1e-4 for value in overlaps)  # too close to call
    kept: list[Detection] = []
    for one in sorted(found, key=lambda one: -(one.score or 0)):
        if all(one.phrase != other.phrase or iou(one.box, other.box) <= limit for other in kept):
            kept.append(one)
    assert suppress(found, limit) == [one for one in found if one in kept]
    assert suppress(found, 1.0) == found
