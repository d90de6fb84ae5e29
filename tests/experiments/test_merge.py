"""Parts of an evaluation, played in folders of their own, merge to what one folder has."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import merge
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.compare import compare
from experiments.evaluate import __main__, shards
from experiments.evaluate.config import Args
from experiments.evaluate.exclusion import Choice
from segenv.tools import make

ROOT = Path(__file__).resolve().parents[2]
MANY = 20_000  # episodes of the slow test


def discs(folder: Path, tasks: int, images: int) -> str:
    """A dataset of so many tasks on small images, several on each; its spec."""
    folder.mkdir()
    for k in range(images):
        rows, columns = np.ogrid[:32, :40]
        mask = (rows - 10 - k % 9) ** 2 + (columns - 14 - k % 11) ** 2 <= 64
        image = np.random.default_rng(k).integers(0, 255, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{k}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{k}-mask.png")
    files = [{"image": f"{k % images}.png", "mask": f"{k % images}-mask.png"} for k in range(tasks)]
    listed = [{"name": f"{k:05}", "instruction": "the disc", **one} for k, one in enumerate(files)]
    (folder / "index.json").write_text(json.dumps(listed), encoding="utf-8")
    return f"index:{folder}"


def told(folder: Path) -> dict:
    """Metrics of a run without timings."""
    return {**RunFolder(folder).load_json("metrics.json"), "seconds": None}


def evaluate(*flags: str) -> int:
    """Run the command on a small budget."""
    return __main__.main(["--tool", "disc:radius=5", "--agent", "random", "--max-steps", "3", *flags])


def test_parts_merge_to_the_metrics_of_one_folder(tmp_path, capsys):
    data = ["--data", discs(tmp_path / "data", 11, 4), "--batch-size", "2", "--seed", "3", "--report-episodes", "2"]
    parts = [tmp_path / f"part{k}" for k in (1, 2, 3)]
    assert evaluate(*data, "--out", str(tmp_path / "whole")) == 0
    for k in (3, 1):
        assert evaluate(*data, "--shard", f"{k}/3", "--out", str(parts[k - 1])) == 0
    assert (parts[2] / "episodes-00003.jsonl").exists()
    out = ["--out", str(tmp_path / "merged")]
    assert merge.main([str(parts[0]), str(parts[2]), *out]) == 1
    assert "part 2 of 3 is missing" in capsys.readouterr().err
    assert evaluate(*data, "--shard", "2/3", "--executor", "process", "--out", str(parts[1])) == 0
    (parts[1] / "evaluate.DONE").rename(parts[1] / "later")
    assert merge.main([*map(str, parts), *out]) == 1
    assert f"is not finished; go on with it: --resume {parts[1]}" in capsys.readouterr().err
    (parts[1] / "later").rename(parts[1] / "evaluate.DONE")
    copied = tmp_path / "merged" / "episodes-00002.jsonl"
    for again in range(2):  # as after a kill
        if again:
            copied.write_bytes(bytes(copied.stat().st_size))  # of equal size, but not what the part has
        assert merge.main([str(parts[k]) for k in (2, 0, 1)] + out) == 0
        assert told(tmp_path / "merged") == told(tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "merged").glob("episodes*"))
    assert files == ["episodes-00001.jsonl", "episodes-00002.jsonl", "episodes-00003.jsonl", "episodes.jsonl"]
    manifest = RunFolder(tmp_path / "merged").manifest()
    assert [part["shard"] for part in manifest["merged"]] == ["1/3", "2/3", "3/3"]
    found = compare.compare(tmp_path / "whole", tmp_path / "merged")
    assert found["episodes"] == 11 and (tmp_path / "merged" / "report.html").exists()


def test_parts_that_services_at_two_addresses_played_merge_where_these_are_alike(tmp_path):
    from tests.made_service import serving

    parts = [tmp_path / "part1", tmp_path / "part2", tmp_path / "other"]
    data = ["--data", discs(tmp_path / "data", 4, 2), "--batch-size", "2"]
    with serving(make("disc:radius=5")) as (one, _), serving(make("disc:radius=5")) as (two, _):
        with serving(make("disc:radius=6")) as (other, _):
            for k, url, out in zip((1, 2, 2), (one, two, other), parts, strict=True):
                assert evaluate(*data, "--tool", url, "--shard", f"{k}/2", "--out", str(out)) == 0
        with pytest.raises(RunError, match="different evaluations: tool"):
            merge.merge(merge.Args((parts[0], parts[2]), tmp_path / "merged"))
        found = merge.merge(merge.Args((parts[0], parts[1]), tmp_path / "merged"), quiet=True)
    assert evaluate(*data, "--out", str(tmp_path / "whole")) == 0
    assert found["miou"] == told(tmp_path / "whole")["miou"] and found["episodes"] == 4


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    data = ["--data", discs(tmp_path / "data", 4, 2), "--batch-size", "2"]
    flags = {"one": ["1/2"], "two": ["2/2", "--seed", "1"], "three": ["1/1"], "whole": []}
    for name in flags:
        more = ["--shard", *flags[name]] if flags[name] else []
        assert evaluate(*data, *more, "--out", str(tmp_path / name)) == 0
    runs = {name: tmp_path / name for name in flags}
    for names, message in {
        ("one", "two"): "different evaluations: seed: was 0, now 1",
        ("one", "one"): "both part 1/2",
        ("one", "three"): "are both part",
        ("one", "whole"): "is a whole run",
    }.items():
        with pytest.raises(RunError, match=message):
            merge.merge(merge.Args(tuple(runs[name] for name in names), tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("shard", ["3", "0/3", "4/3", "1/0", "1/2/3", "-1/3", "a/b", "1/100000", "१/२"])
def test_a_shard_that_is_none_is_refused(shard, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(f"--shard={shard}", "--out", "out") == 1
    assert "expected K/N" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("tasks, batch_size, parts", [(11, 2, 3), (100, 8, 13), (5, 1, 5), (7, 100, 1)])
def test_every_task_is_in_one_part_and_groups_stay_whole(tasks, batch_size, parts):
    found = []
    for k in range(1, parts + 1):
        args = Args(shard=f"{k}/{parts}", batch_size=batch_size)
        chosen, part = shards.of(Choice(range(tasks), None), args)
        assert part == k and len(chosen.positions) and chosen.positions[0] % batch_size == 0
        found += chosen.positions
    assert found == list(range(tasks))
    with pytest.raises(RunError, match="cut fewer"):
        shards.of(Choice(range(tasks), None), Args(shard=f"1/{tasks + 1}", batch_size=batch_size))


@pytest.mark.slow
def test_many_episodes_in_parts_and_in_flat_memory(tmp_path):
    """Memory is that of the first fifth of the episodes to the end."""
    data = ["--data", discs(tmp_path / "data", MANY, 50), "--batch-size", "32", "--report-episodes", "0"]
    words = ["--tool", "disc:radius=5", "--agent", "random", "--max-steps", "3", "--out"]
    flags = [*words, str(tmp_path / "whole"), *data]
    process = subprocess.Popen([sys.executable, "-m", "experiments.evaluate", *flags], cwd=ROOT)
    episodes, sizes = tmp_path / "whole" / "episodes.jsonl", dict[int, float]()
    while process.poll() is None:
        try:
            count = episodes.read_bytes().count(b"\n")
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            size = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
            sizes[count] = max(size, sizes.get(count, 0.0))
        except (OSError, StopIteration):
            pass
        time.sleep(2)
    assert process.returncode == 0
    early = max(size for count, size in sizes.items() if count < MANY // 5)
    late = max(size for count, size in sizes.items() if MANY // 5 <= count < MANY)
    print(
        f"\nmemory {early:.0f} MiB before {MANY // 5:,} episodes, {late:.0f} after, {max(sizes.values()):.0f} at most"
    )
    assert late < early + 64, sizes
    parts = [tmp_path / f"part{k}" for k in range(1, 5)]
    for k, part in enumerate(parts, 1):
        assert evaluate(*data, "--shard", f"{k}/4", "--out", str(part)) == 0
    assert merge.main([*map(str, parts), "--out", str(tmp_path / "merged")]) == 0
    assert told(tmp_path / "merged") == told(tmp_path / "whole")
    assert told(tmp_path / "whole")["episodes"] == MANY
