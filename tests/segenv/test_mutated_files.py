"""A damaged annotation file is read, or is one line that says what is wrong: whatever the damage, in little memory.

`python test_mutated_files.py KIND COUNT DIR` tries COUNT files in a process with 500 MB more than the modules take, and
5 seconds for each.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from made_data import make_coco, make_index, save  # noqa: E402
from made_fields import make_grefcoco, make_reasonseg, make_sa1b  # noqa: E402
from mutations import mutated  # noqa: E402

from segenv import data  # noqa: E402
from segenv.geometry.rle import encode_mask  # noqa: E402
from segenv.types import BadItem, SegenvError  # noqa: E402


def coco(root: Path) -> tuple[str, Path]:
    return make_coco(root), root / "instances.json"


def lvis(root: Path) -> tuple[str, Path]:
    spec, file = coco(root)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["coco_url"] = f"http://images.example.org/train/{image.pop('file_name')}"
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [2]}
    file.write_text(json.dumps(content))
    return spec.replace("coco:", "lvis:"), file


def trajectories(root: Path) -> tuple[str, Path]:
    save(root / "a.png", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    square = np.zeros((4, 5), bool)
    square[1:3, 1:3] = True
    masks: list[Any] = [{"size": [4, 5], "counts": [5, 2, 2, 2, 9]}, {"size": [4, 5], "counts": encode_mask(square)}]
    entries = []
    for k, mask in enumerate(masks):
        click = {
            "idx": 0,
            "coor": [2, 1],
            "is_positive": True,
            "mask": mask,
            "box": [1, 1, 2, 2],
            "area": 4,
            "iou": 1.0,
        }
        about = {"object_id": k, "caption": "it", "segmentation": mask, "bbox": [1, 1, 2, 2], "area": 4}
        start = {"kind": "box", "mask": mask, "iou": 0.5}
        entry = {"image_name": "a.png", "height": 4, "width": 5, "gt_ann": about, "clicks_list": [click, {**click}]}
        entries.append(entry | ({"start": start, "task": "t", "sample": 1} if k else {}))
    (root / "t.json").write_text(json.dumps({"info": {"about": "x"}, "data": entries}))
    return f"trajectories:{root / 't.json'}", root / "t.json"


def index(root: Path) -> tuple[str, Path]:
    return make_index(root), root / "index.json"


def grefcoco(root: Path) -> tuple[str, Path]:
    return make_grefcoco(root), root / "grefcoco/grefs(unc).json"


def instances(root: Path) -> tuple[str, Path]:
    return make_grefcoco(root), root / "grefcoco/instances.json"


def reasonseg(root: Path) -> tuple[str, Path]:
    return f"{make_reasonseg(root)}#all", root / "val/b.json"


def sa1b(root: Path) -> tuple[str, Path]:
    return make_sa1b(root), root / "sa_10.json"


KINDS: dict[str, Callable[[Path], tuple[str, Path]]] = {
    "coco": coco,
    "lvis": lvis,
    "trajectories": trajectories,
    "index": index,
    "grefcoco": grefcoco,
    "instances": instances,
    "reasonseg": reasonseg,
    "sa1b": sa1b,
}


def outcome(spec: str, skip_bad: bool) -> str:
    """Read all of a dataset; the error, or "" where there is none. What is no error of ours passes."""
    try:
        found = data.make(spec, skip_bad)
        assert len(set(found.ids)) == len(found) == len(found.sources) and found.fingerprint
        tasks = list(found)
        assert len(tasks) + len(found.skipped) == len(found)
        for task in tasks:
            assert (task.target == 255).any() != task.meta.get("absent", False)
            assert task.target.shape == task.image.shape[:2]
            found.lacks(0, task.instruction)
        told = [reason for _, reason in found.skipped]
    except (SegenvError, ValueError) as error:
        told = [str(error)]
    wrong = [line for line in told if len(line.splitlines()) != 1 or len(line) > 3000]
    assert not wrong, f"expected one line, got {wrong[0][:500]!r}"
    return told[0] if told else ""


def try_files(kind: str, count: int, root: Path, seconds: int = 0) -> tuple[list[str], int]:
    """What went wrong with `count` damaged files, and how many of them were read in full."""
    spec, file = KINDS[kind](root)
    content, failures, read = json.loads(file.read_text()), [], 0
    for seed in range(count):
        file.write_bytes(mutated(content, seed))
        try:
            if seconds:
                signal.alarm(seconds)
            strict, patient = (outcome(spec, skip_bad) for skip_bad in (False, True))
            read += not strict
            assert strict or not patient
        except Exception as error:
            failures.append(f"{kind}, seed {seed}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            if seconds:
                signal.alarm(0)
    return failures, read


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_is_one_line(kind: str, tmp_path: Path) -> None:
    failures, read = try_files(kind, 150, tmp_path)
    assert not failures and 0 < read < 100, failures


def test_sizes_are_compared_with_the_image_before_a_mask_is_decoded(tmp_path: Path) -> None:
    """The runs do not fill the size that the entry tells; the size is what is complained of."""
    spec, file = trajectories(tmp_path)
    content = json.loads(file.read_text())
    content["data"][0] |= {"height": 7000, "width": 7000}
    file.write_text(json.dumps(content))
    with pytest.raises(BadItem, match="t.json is 7000 x 7000 pixels .* but .*a.png is 5"):
        data.make(spec)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_damaged_files_take_little_memory_and_none_hangs(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, __file__, kind, "1000", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 files" in done.stdout


def hang(*_: Any) -> None:
    raise RuntimeError("did not end in time")


if __name__ == "__main__":
    import resource

    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    most = pages * resource.getpagesize() + 500 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, hang)
    found, whole = try_files(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), seconds=5)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print("\n".join([*found, f"{sys.argv[2]} files, {whole} read, {len(found)} failed, {peak} MB at most"]))
    sys.exit(bool(found))
