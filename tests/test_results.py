"""Pages of results: the numbers are those of the run, hand-written text survives, and nothing private gets in."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest

from experiments import results
from experiments.common.run_folder import hidden


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished evaluation on data in a folder, started as from the command line."""
    from experiments.evaluate import Args
    from experiments.evaluate import run as evaluate

    root = tmp_path_factory.mktemp("private")
    out = root / "disc"
    words = ["evaluate.py", "--tool", "disc", "--limit", "4", "--data", "synthetic:val", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        evaluate(Args(data="synthetic:val", tool="disc", limit=4, max_steps=3, out=str(out)), quiet=True)
    return out


def page_of(runs, out, *flags):
    assert results.main([*map(str, runs), "--name", "tools", "--out", str(out), *flags]) == 0
    return (out / "tools.md").read_text()


def rows_of(text, first):
    """The rows of the table whose header begins with `first`, as dicts."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_page_holds_the_numbers_of_its_run(run, tmp_path):
    text = page_of([run], tmp_path, "--title", "Tools on scenes")
    numbers = json.loads((run / "metrics.json").read_text())
    [row] = rows_of(text, "tool")
    low, high = numbers["intervals"]["miou"]
    assert row["final mIoU"] == f"{numbers['miou']:.3f} [{low:.3f}, {high:.3f}]"
    assert row["IoU@1"].startswith(f"{numbers['iou_at']['1']:.3f} [") and row["episodes"] == "4"
    assert text.startswith("# Tools on scenes\n")
    assert "`python -m experiments.evaluate --tool disc --limit 4 --data synthetic:val`" in text
    about = json.loads((run / "manifest.json").read_text())
    assert f"segenv {about['versions']['segenv']}" in text and about["started"][:10] in text
    assert f"data {about['hashes']['data'][:8]}" in text


def test_runs_with_equal_columns_share_a_table_in_the_order_given(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    numbers = json.loads((run / "metrics.json").read_text())
    numbers["protocol"]["tool"] = "another"
    (other / "metrics.json").write_text(json.dumps(numbers))
    assert [row["tool"] for row in rows_of(page_of([other, run], tmp_path), "tool")] == ["another", "disc"]


def test_data_and_starts_are_told_where_runs_differ_in_them(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    numbers = json.loads((run / "metrics.json").read_text())
    assert not {"data", "start", "gain over the start"} & rows_of(page_of([run, other], tmp_path), "tool")[0].keys()
    numbers["protocol"] |= {"data": "synthetic:test", "start": "box"}
    (other / "metrics.json").write_text(json.dumps(numbers))
    own, boxed = rows_of(page_of([run, other], tmp_path), "data")
    assert [own["data"], own["start"], own["gain over the start"]] == ["synthetic:val", "", ""]
    assert [boxed["data"], boxed["start"]] == ["synthetic:test", "box"]
    assert boxed["gain over the start"].startswith(f"{numbers['start_gain']:+.3f} [")


def test_text_written_by_hand_survives_and_all_else_is_written_anew(run, tmp_path):
    text = page_of([run], tmp_path, "--title", "Tools")
    edited = text.replace(results.HAND["question"], "Which tool?")
    edited = edited.replace(results.HAND["meaning"], "None.\n\nTwo lines.")
    (tmp_path / "tools.md").write_text(edited.replace("| disc |", "| typed |"))
    again = page_of([run], tmp_path)
    assert again == edited and "Which tool?" in again and "typed" not in again


def test_a_page_without_markers_is_not_written_over(run, tmp_path, capsys):
    (tmp_path / "tools.md").write_text("# Tools\n\nWritten by hand.\n")
    assert results.main([str(run), "--name", "tools", "--out", str(tmp_path)]) == 1
    assert "markers" in capsys.readouterr().err and "by hand" in (tmp_path / "tools.md").read_text()


def test_no_private_path_gets_into_a_page(run, tmp_path):
    secret = shutil.copytree(run, tmp_path / "secret")
    for name in ("manifest.json", "metrics.json"):
        text = (secret / name).read_text().replace("synthetic:val", "index:/home/anna/photos#a")
        (secret / name).write_text(text.replace('"disc"', '"sam:/srv/models/sam.pth"'))
    page = page_of([secret], tmp_path)
    assert "index:DIR#a" in page and "sam:sam.pth" in page
    assert not re.search(r"anna|/srv|/home", page) and str(tmp_path) not in page
    assert hidden("coco:/a/b.json@~/c, org/name, ../x/y, 5 / 6") == "coco:b.json@DIR, org/name, DIR, 5 / 6"


def test_tables_of_an_ablation_are_copied_as_they_are(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "ablation")
    (folder / "evaluate.DONE").rename(folder / "ablation.DONE")
    (folder / "ablation.md").write_text("| arm | gIoU |\n| --- | --- |\n| rings | 0.4150 |\n")
    assert "| arm | gIoU |\n| --- | --- |\n| rings | 0.4150 |\n" in page_of([folder], tmp_path)


@pytest.mark.parametrize("missing, reason", [("config.yaml", "no run folder"), ("evaluate.DONE", "not finished")])
def test_a_folder_that_is_no_finished_run_is_named_in_one_line(run, tmp_path, capsys, missing, reason):
    broken = shutil.copytree(run, tmp_path / "broken")
    (broken / missing).unlink()
    assert results.main([str(broken), "--name", "tools", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert reason in error and str(broken) in error and len(error.splitlines()) == 1
    assert not (tmp_path / "tools.md").exists()


def test_a_file_that_holds_no_result_is_named_in_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"a": 1}')
    for name in ("x.json", "y.json"):
        assert results.main([str(tmp_path / name), "--name", "tools", "--out", str(tmp_path)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_inputs_and_upper_bounds_are_read_from_their_files(tmp_path):
    found = {"value": 0.8024, "interval": [0.766, 0.838], "episodes": 500}
    protocol = {"data": "synthetic:val", "limit": 500, "tool": "sam"}
    (tmp_path / "inputs.json").write_text(json.dumps({"measures": {"first click": found}, "protocol": protocol}))
    row = {"budget": 64, "topology": "all", "codec": "rings", "tasks": 3, "iou": 0.5, "boundary_f": 0.25}
    row |= {"tokens": 60.4, "difference": 0.0461, "interval": [0.01, 0.09]}
    (tmp_path / "ceiling.json").write_text(json.dumps([row]))
    text = page_of([tmp_path / "inputs.json", tmp_path / "ceiling.json"], tmp_path)
    assert rows_of(text, "measure") == [{"measure": "first click", "value": "0.802 [0.766, 0.838]", "episodes": "500"}]
    assert rows_of(text, "budget")[0]["gain of the first codec"] == "+0.046 [+0.010, +0.090]"
