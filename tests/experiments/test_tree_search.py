"""`python -m experiments.tree_search`: its numbers are those worked out by hand, and a run that was cut goes on."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import agents
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.tree_search import __main__, config, metrics, play, report
from experiments.tree_search.config import Args
from experiments.tree_search.metrics import Condition
from search import spec
from segenv import data, tools
from segenv.mdp import SegMDP
from segenv.types import Task

SMALL = Args(
    data="synthetic:val",
    tool="disc",
    agent="annotator:depth",
    search=("greedy", "mcts:simulations=4", "best-of-n"),
    k=(1, 2),
    depths=(3,),
    values=("oracle",),
    budgets=("policy_calls=6",),
    steps=(1, 2, 4),
    limit=5,
    batch_size=2,
    report_tasks=2,
)


def told(numbers: dict) -> dict:
    """Metrics without timings."""
    rows = [{**row, "spent": {**row["spent"], "seconds": 0}} for row in numbers["conditions"]]
    return {**numbers, "conditions": rows}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("tree") / "run"
    return out, play.run(replace(SMALL, out=str(out)), quiet=True)


def test_the_grid_is_what_was_asked_for() -> None:
    args = replace(SMALL, values=("tool", "oracle"), search=("greedy", "beam:width=2"), steps=(5,))
    found = [(condition.search, condition.depth) for condition in config.conditions(args)]
    assert found == [
        ("greedy:k=1,value=none", 5),
        ("greedy:k=1,value=none,policy_calls=6", 3),
        *(
            row
            for value in ("tool", "oracle")
            for row in [
                (f"greedy:k=1,value={value}", 5),
                (f"greedy:k=1,value={value},policy_calls=6", 3),
                (f"greedy:k=2,value={value}", 5),
                (f"greedy:k=2,value={value},policy_calls=6", 3),
                (f"beam:width=2,k=2,value={value},policy_calls=6", 3),
            ]
        ),
        *(
            row
            for value in ("tool", "oracle")
            for row in [
                (f"greedy:k=1,value={value},policy_calls=6", 6),
                (f"best-of-n:n=2,value={value},policy_calls=6", 3),
            ]
        ),
    ]
    with pytest.raises(RunError, match="unknown search 'astar:k=2"):
        config.conditions(replace(SMALL, search=("astar",)))
    with pytest.raises(RunError, match="'clicks=9' is no option of greedy"):
        config.conditions(replace(SMALL, budgets=("clicks=9",)))


def test_a_run_writes_tables_plots_and_trees(finished) -> None:
    out, numbers = finished
    assert numbers["tasks"] == 5 and len(numbers["conditions"]) == 9
    for name in ("table.txt", "table.md", "table.csv", "plots/steps.png", "report.html", "tree_search.DONE"):
        assert (out / name).stat().st_size > 0
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["miou"]) for row in rows] == [row["miou"] for row in numbers["conditions"]]
    lines = (out / "table.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == (2 + 9) + (2 + 5) + (2 + 9)  # with two lines of head each
    page = (out / "report.html").read_text()
    forest = json.loads(page.split('<script type="application/json" id="forest">')[1].split("</script>")[0])
    assert len(forest["tasks"]) == 2 and len(forest["trees"]) == 2 * 9
    for tree in forest["trees"]:
        assert all(node["parent"] < i for i, node in enumerate(tree["nodes"])) and tree["nodes"][0]["action"] == "start"
        assert (
            tree["nodes"][tree["best"]]["iou"] == max(node["iou"] for node in tree["nodes"]) or "none" in tree["search"]
        )
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_the_oracle_has_no_place_and_is_the_ceiling(finished) -> None:
    _, numbers = finished
    oracle = [row for row in numbers["conditions"] if row["value"] == "oracle"]
    assert len(oracle) == 7 and all(row["privileged"] and row["place"] is None for row in oracle)
    assert all(row["miou"] == pytest.approx(row["in_tree"]) for row in oracle)
    for line in [*report.comparison(numbers).rows, *report.steps_table(numbers).rows]:
        assert "oracle" not in line and ("oracle" in " ".join(line)) == ("oracle (reads the target)" in line)


def test_a_run_that_was_cut_goes_on_with_the_same_numbers(finished, tmp_path) -> None:
    out, numbers = finished
    again = tmp_path / "run"
    play.run(replace(SMALL, out=str(again), limit=5), quiet=True)
    for name in ("results.jsonl", "trees.jsonl"):
        lines = (out / name).read_bytes().splitlines(keepends=True)
        (again / name).write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:-9])
    (again / "tree_search.DONE").unlink()
    resumed = play.run(replace(SMALL, out=str(again), resume=str(again)), quiet=True)
    assert told(resumed) == told(numbers)
    keys = [(row["search"], row["depth"], row["task"]) for row in RunFolder(again).records("results.jsonl")]
    assert len(keys) == len(set(keys)) == 45
    with pytest.raises(RunError, match="k: was"):
        play.run(replace(SMALL, resume=str(again), k=(1, 3)), quiet=True)


def test_greedy_cut_after_t_steps_is_greedy_of_t_steps() -> None:
    """So that one run gives every row of the steps table."""
    tasks, tool = list(data.make("synthetic:val")[:4]), tools.make("disc")

    def search(text: str, depth: int) -> list[dict]:
        parsed, mdp, agent = spec.parse(text), SegMDP(tool, depth), agents.make("annotator:depth")
        trees = parsed.search(mdp, agent, tasks, parsed.value_function(mdp, agent))
        return [metrics.record(Condition(text, depth), tree) for tree in trees]

    for text in ("greedy:k=1,value=oracle", "greedy:k=3,value=oracle"):
        whole = search(text, 5)
        rows = metrics._steps({Condition(text, 5): whole}, (1, 2, 5, 9))
        assert [row["step"] for row in rows] == [1, 2, 5]
        for row in rows:
            short = search(text, row["step"])
            assert row["chosen"] == pytest.approx(np.mean([record["iou"] for record in short]))
            assert row["last"] == pytest.approx(np.mean([record["last_iou"] for record in short]))


def made(ious, in_tree=None, values=None) -> list[dict]:
    """Records of tasks with these IoUs."""
    return [
        {
            "task": f"task {i}",
            "iou": iou,
            "last_iou": iou,
            "in_tree": (in_tree or ious)[i],
            "value": 0.5,
            "steps": 2,
            "deepest": 3,
            "nodes": 4,
            "spent": {"policy_calls": 6, "tokens": 0, "tool_calls": 5, "value_calls": 6, "seconds": 0.5},
            "trace": [[0, 0, 0, 1, 0.1, 0.0], [3, 0, 3, 4, 0.3, iou / 2], [6, 0, 5, 6, 0.5, iou]],
            "walk": [[0.0, 0.0], [iou / 2, 0.9], [iou, 0.5]],
        }
        for i, iou in enumerate(ious)
    ]


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    budget = ",policy_calls=6"
    results = {
        Condition(f"greedy:k=1,value=none{budget}", 3): made([0.1, 0.2]),
        Condition(f"greedy:k=1,value=tool{budget}", 3): made([0.2, 0.4]),
        Condition(f"greedy:k=3,value=tool{budget}", 3): made([0.5, 0.6], in_tree=[0.6, 0.9]),
        Condition(f"mcts:k=3,value=tool{budget}", 3): made([0.4, 0.5], in_tree=[0.7, 0.9]),
        Condition(f"greedy:k=3,value=oracle{budget}", 3): made([0.9, 0.8]),
    }
    numbers = metrics.summarise(results, (), {})
    last, one, three, mcts, oracle = numbers["conditions"]
    assert [row["miou"] for row in numbers["conditions"]] == pytest.approx([0.15, 0.3, 0.55, 0.45, 0.85])
    assert one["gain"] is None and one["over_last"][0] == pytest.approx(0.15)
    assert three["gain"][0] == pytest.approx(0.25) and mcts["gain"][0] == pytest.approx(0.15)
    assert three["regret"][0] == pytest.approx(0.3) and mcts["regret"] is None, "there is no mcts with oracle"
    assert oracle["regret"] is None and oracle["gain"] is None and last["place"] is None and oracle["place"] is None
    assert [row["place"] for row in (one, three, mcts)] == [[3, 3], [1, 3], [2, 3]]
    assert three["in_tree"] == pytest.approx(0.75) and mcts["spent"]["tool_calls"] == 5
    assert mcts["over_greedy"][0] == pytest.approx(-0.1) and three["over_greedy"] is one["over_greedy"] is None
    (row,) = [line for line in report.comparison(numbers).rows if line[0] == "mcts"]
    assert row[:6] == ["mcts", "tool", "3", "3", "6 replies", "0.4500"] and {"2 of 3", "-0.1000"} <= set(row)


def test_the_steps_table_has_values_and_the_last_mask() -> None:
    """By hand: the last mask is best after one step and falls by .2 to the third; the best-valued one rises."""

    def walks(*masks: list[list[float]]) -> list[dict]:
        return [{**record, "walk": walk} for record, walk in zip(made([0.5] * len(masks)), masks, strict=True)]

    plain = [[[0.0, 0.0], [0.6, 0.5], [0.5, 0.8], [0.4, 0.7]], [[0.0, 0.0], [0.4, 0.3], [0.4, 0.3], [0.2, 0.9]]]
    three = [[[0.0, 0.0], [0.7, 0.5], [0.8, 0.9], [0.4, 0.7]], [[0.0, 0.0], [0.5, 0.5], [0.6, 0.6], [0.9, 0.9]]]
    results = {
        Condition("greedy:k=1,value=none", 3): walks(*plain),
        Condition("greedy:k=1,value=tool", 3): walks(*plain),
        Condition("greedy:k=3,value=tool", 3): walks(*three),
        Condition("greedy:k=3,value=oracle", 3): walks(*three),
    }
    numbers = metrics.summarise(results, (1, 3), {})
    by = {(row["value"], row["k"], row["step"]): row for row in numbers["steps"]}
    assert by["none", 1, 1]["last"] == pytest.approx(0.5) and by["none", 1, 3]["last"] == pytest.approx(0.3)
    assert by["tool", 1, 3]["chosen"] == pytest.approx(0.35) and by["tool", 1, 3]["gain"][0] == pytest.approx(0.05)
    assert by["tool", 3, 3]["chosen"] == pytest.approx(0.85) and by["tool", 3, 3]["over_one"][0] == pytest.approx(0.5)
    assert "over_one" not in by["tool", 1, 3] and "over_one" not in by["oracle", 3, 3], "there is no oracle at K = 1"


def test_conditions_on_unlike_tasks_are_not_compared() -> None:
    results = {
        Condition("greedy:k=1,value=tool", 3): made([0.1, 0.2]),
        Condition("greedy:k=2,value=tool", 3): made([0.1]),
    }
    with pytest.raises(ValueError, match="unlike tasks"):
        metrics.summarise(results, (), {})


def test_the_curve_is_the_best_mask_once_so_much_is_spent() -> None:
    grid = np.array([0, 2.9, 3, 6, 99])
    assert report.curve(made([0.4, 0.8]), "policy_calls", grid) == pytest.approx([0, 0, 0.3, 0.6, 0.6])


def test_a_mask_is_drawn_in_two_colours() -> None:
    mask = np.zeros((700, 400), bool)
    mask[:350] = True
    uri = report.mask_uri(mask, (1, 2, 3), 140)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))
    assert picture.shape == (320, 183, 4)
    assert picture[0, 0].tolist() == [1, 2, 3, 140] and picture[-1, 0, 3] == 0


def test_no_word_of_a_reply_becomes_part_of_the_page(task, tmp_path, finished) -> None:
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u2028 \ud800"
    out, numbers = finished
    (tree, *_) = RunFolder(out).records("trees.jsonl")
    tree["nodes"][1] |= {"text": hostile, "error": hostile, "action": {"type": "invalid", "reason": hostile}}
    order = [Condition(row["search"], row["depth"]) for row in numbers["conditions"]]
    source = data.make("synthetic:val")
    seen = source[list(source.ids).index(tree["task"])]
    strange = Task(hostile, seen.image, seen.target, hostile)
    folder = RunFolder(tmp_path)
    with folder.appending("trees.jsonl") as file:
        file.add({**tree, "task": hostile})
    results = {condition: made([0.5]) for condition in order}
    report.write(folder, results, numbers, {"command": [hostile]}, lambda name: strange)
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page and page.count("<script") == 2


def test_what_cannot_be_run_is_refused_before_it_begins(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(pytest.importorskip("agents.mllm"), "WEIGHTS", tmp_path)  # where none are embedded
    flags = ["--data", "synthetic:val", "--tool", "disc", "--agent", "random", "--out", str(tmp_path / "run")]
    assert __main__.main([*flags, "--values", "prm"]) == 1
    assert "is what a language model states" in capsys.readouterr().err
    assert __main__.main([*flags, "--values", "oracle", "--proposal-temperature", "2"]) == 1
    assert "no proposal_temperature" in capsys.readouterr().err
    assert __main__.main([*flags, "--values", "oracle", "--k", "0"]) == 1
    assert "--k holds 0; expected 1 or more" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_branching_is_compared_with_as_many_replies_without_it(finished) -> None:
    out, numbers = finished
    rows = {(row["search"], row["depth"]): row for row in numbers["conditions"]}
    lines = {(line["search"], line["control"]): line for line in numbers["equal_cost"]}
    names = {name for _, name in lines}
    assert names == {"greedy, K = 1, 6 steps", "best-of-n, n = 2"}
    found = {(one["search"], one["depth"], one["task"]): one["iou"] for one in RunFolder(out).records("results.jsonl")}
    tasks = sorted({task for *_, task in found})
    for line in lines.values():
        search, control = (line["search"], line["depth"]), (line["control_search"], line["control_depth"])
        change = [found[(*search, task)] - found[(*control, task)] for task in tasks]
        mean, low, high = line["difference"]
        assert mean == pytest.approx(np.mean(change)) and low <= mean <= high
        assert search != control and rows[control]["spent"]["policy_calls"] <= 6
    assert ("best-of-n:n=2,value=oracle,policy_calls=6", "best-of-n, n = 2") not in lines
    longer = rows["greedy:k=1,value=oracle,policy_calls=6", 6]
    assert longer["spent"]["policy_calls"] > rows["greedy:k=1,value=oracle,policy_calls=6", 3]["spent"]["policy_calls"]
    assert "K > 1 and as many replies without branching" in (out / "table.txt").read_text()


def test_the_way_to_the_returned_mask_and_its_clicks_are_measured(finished) -> None:
    """The annotator clicks on errors, always."""
    out, numbers = finished
    for row in numbers["conditions"]:
        assert row["clicks_on_error"]["all"] == 1 and row["first_click_in_object"] == 1
        assert row["on_path"] <= row["in_tree"] and row["click_counts"]["1"] == 5
    record = next(RunFolder(out).records("results.jsonl"))
    assert record["on_path"] >= record["iou"] and len(record["right"]) == record["steps"]
    older = {name: value for name, value in record.items() if name not in ("on_path", "right", "first_inside")}
    condition = Condition(record["search"], record["depth"])
    row = metrics.summarise({condition: [older]}, (), {})["conditions"][0]
    assert row["on_path"] is None and "clicks_on_error" in row
