"""`python -m experiments.star`: the whole loop with kills in its stages, the ablation, and what is refused."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from search import star

FLAGS = [
    "--agent",
    "mllm:untrained",
    "--tool",
    "disc",
    "--limit",
    "12",
    "--rollout-tasks",
    "4",
    "--samples",
    "2",
    "--eval-limit",
    "4",
    "--sft-steps",
    "6",
    "--round-steps",
    "4",
    "--max-steps",
    "3",
    "--threads",
    "1",
    "--batch-rows",
    "8",
    "--report-episodes",
    "2",
]


def star_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "experiments.star", *flags]


def run_whole(out) -> dict:
    subprocess.run(star_command(*FLAGS, "--out", str(out)), check=True, capture_output=True)
    return without_timings(out)


def without_timings(out) -> dict:
    numbers = json.loads((out / "metrics.json").read_text())
    for policy in numbers["policies"]:
        del policy["seconds"]
    return numbers


def kill_when(out, seen: str) -> None:
    """Start the run in `out` and SIGKILL it as soon as the file `seen` is there."""
    flags = ["--resume", str(out)] if (out / "config.yaml").exists() else [*FLAGS, "--out", str(out)]
    process = subprocess.Popen(star_command(*flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / seen).exists():
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert (out / seen).exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_in_every_stage_it_ends_as_if_uninterrupted(tmp_path):
    pytest.importorskip("trl")
    expected = run_whole(tmp_path / "whole")
    out = tmp_path / "killed"
    for seen in (
        "round0/expert.jsonl",
        "round0/policy.training",
        "round0/evaluate.jsonl",
        "round1/rollout.jsonl",
        "round1/rows.jsonl",
        "round1/policy.training",
        "round1/evaluate.DONE",
    ):
        kill_when(out, seen)
    subprocess.run(star_command("--resume", str(out)), check=True, capture_output=True)
    assert without_timings(out) == expected
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_ten_times_at_random_it_ends_as_if_uninterrupted(tmp_path):
    pytest.importorskip("trl")
    began = time.monotonic()
    expected = run_whole(tmp_path / "whole")
    whole = time.monotonic() - began
    rng = np.random.default_rng(0)
    kills = run = 0
    while True:
        out = tmp_path / f"killed{run}"
        while kills < 10:
            flags = ["--resume", str(out)] if (out / "config.yaml").exists() else [*FLAGS, "--out", str(out)]
            process = subprocess.Popen(star_command(*flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                assert process.wait(timeout=rng.uniform(0.1, 0.9) * whole) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        if not (out / "star.DONE").exists():
            flags = ["--resume", str(out)] if (out / "config.yaml").exists() else [*FLAGS, "--out", str(out)]
            subprocess.run(star_command(*flags), check=True, capture_output=True)
        assert without_timings(out) == expected
        if kills == 10:
            break
        run += 1  # it ended before ten kills: another


def lessons_of(out, n) -> list[star.StarExample]:
    path = out / f"round{n}" / "rows.jsonl"
    return [star.StarExample(**json.loads(line)) for line in path.open()] if path.exists() else []


def learned_from(out, n) -> dict:
    return json.loads((out / f"round{n}" / "policy" / "sft.json").read_text())["plan"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_ablation_plays_every_arm_on_the_same_tasks_and_goes_on_after_a_kill(tmp_path):
    pytest.importorskip("trl")
    from agents.mllm import EMBEDDED
    from agents.training.checkpoints import identity
    from experiments.star.ablation import ARMS

    trained = ["mllm" if flag == "mllm:untrained" else flag for flag in FLAGS]  # star keeps nothing of invalid replies
    trained[trained.index("--sft-steps") + 1] = "0"
    filters = ["--keep-iou", "0", "--min-gain", "-1"]
    flags = [*trained, *filters, "--ablation", "--ablation-seeds", "2"]
    out = tmp_path / "ablation"
    process = subprocess.Popen(star_command(*flags, "--out", str(out)), stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "seed0" / "continue" / "round2" / "rollout.DONE").exists():
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    subprocess.run(star_command("--resume", str(out)), check=True, capture_output=True)
    numbers = json.loads((out / "ablation.json").read_text())
    lines = {line["policy"]: line for line in numbers["policies"]}
    controls = ["S_0", "S_0, cut", "control", "judged control", "demonstrations"]
    assert list(lines) == [*controls, "star", "star+", "star+, round 2", "continue, round 2"]
    assert [line["control"] for line in numbers["contrasts"]] == controls
    assert numbers["contrasts"][0]["final_iou"] == pytest.approx(lines["star+"]["gain"])
    assert lines["star+"]["queries"] > 0 == lines["control"]["queries"]
    asked = zip(lines["demonstrations"]["queries_by_seed"], lines["star+"]["queries_by_seed"], strict=True)
    assert all(0 <= one - other < 3 for one, other in asked)
    assert (
        set(numbers["protocol"]["cut"]) == {"0", "1"} and "(primary: final mIoU)" in (out / "ablation.md").read_text()
    )
    assert lines["continue, round 2"]["steps"] == 8 and lines["star+, round 2"]["steps"] == 4
    for seed in (0, 1):
        arms = {arm: out / f"seed{seed}" / arm for arm in ARMS}
        runs = {arm: json.loads((path / "metrics.json").read_text()) for arm, path in arms.items()}
        assert lines["star+"]["miou_by_seed"][seed] == pytest.approx(runs["star+"]["policies"][1]["miou"])
        assert lines["control"]["miou_by_seed"][seed] == pytest.approx(runs["control"]["policies"][1]["miou"])
        assert len({run["policies"][0]["miou"] for run in runs.values()}) == 1
        rows = {(arm, n): lessons_of(arms[arm], n) for arm in arms for n in (0, 1)}
        first = rows["star+", 0]
        assert learned_from(arms["control"], 1)["rows"] == len(first)
        assert learned_from(arms["judged"], 1)["rows"] == len(rows["judged", 0])
        assert not (arms["judged"] / "round0" / "rows.jsonl").samefile(arms["star+"] / "round0" / "rows.jsonl")
        assert learned_from(arms["star"], 1)["rows"] == len(rows["star", 1])
        assert learned_from(arms["star+"], 1)["rows"] == len(star.unique_examples(first + rows["star+", 1]))
        assert {row.provenance for row in rows["star", 1]} == {"policy"}
        for arm, base in (("star+", EMBEDDED), ("continue", arms["continue"] / "round1" / "policy")):
            assert learned_from(arms[arm], 2)["base"] == identity(base)
    table = list(csv.DictReader((out / "ablation.csv").open()))
    assert [row["seed"] for row in table] == ["all", "0", "1"] * 9
    for row, line in zip(table[::3], numbers["policies"], strict=True):
        assert float(row["best_iou"]) == line["best_iou"] == pytest.approx(np.mean(line["best_iou_by_seed"]))
    links = [out / f"seed{seed}" / arm / "round0" / "evaluate.jsonl" for seed in (0, 1) for arm in arms]
    assert all(path.samefile(links[0]) for path in links)  # the agent as it is: one evaluation for all
    for name in ("round0/expert.jsonl", "round1/policy/model.safetensors"):
        assert (out / "seed1" / "continue" / name).samefile(out / "seed1" / "star+" / name)
    assert "star+, round 2" in (out / "report.html").read_text()


def test_a_lesson_shows_what_the_policy_was_shown(tmp_path, monkeypatch):
    """Picture and prompt of each state, with the complaint about the reply before."""
    from experiments.star.config import Args
    from experiments.star.train import Star

    args = Args(agent="mllm:untrained", tool="disc", limit=1, eval_limit=1, max_steps=3, out=str(tmp_path / "run"))
    this = Star.prepare(args)
    player = this.player(this.train_data, args.agent)
    agent: Any = player.agent
    seen: list = []
    agent.prompt_style, ask = "codec", agent.backend.ask

    def watched(pictures, prompts, *rest):
        seen.extend(zip(pictures, prompts, strict=True))
        return ask(pictures, prompts, *rest)

    monkeypatch.setattr(agent.backend, "ask", watched)
    [episode] = player.play(this.train_indices)
    rows = star.star_plus_examples(episode, this.train_data.by_id(episode.task), args.rules)
    assert [row.step for row in rows] == [0, 1, 2] and [row.error is None for row in rows] == [True, False, False]
    for lesson, (picture, prompt) in zip(star.Conversations(rows, agent, this.train_data.by_id, 3), seen, strict=True):
        assert lesson["prompt"] == prompt and np.array_equal(lesson["image"], picture)
    assert ["was not carried out: " in prompt for _, prompt in seen] == [False, True, True]


def test_a_dry_run_of_the_ablation_counts_all_of_it(tmp_path, capsys):
    from experiments.star.__main__ import main

    flags = ["--ablation", "--dry-run", "--agent", "mllm:untrained", "--tool", "disc", "--limit", "10"]
    flags += ["--rollout-tasks", "4", "--samples", "2", "--eval-limit", "5", "--round-steps", "7", "--sft-steps", "3"]
    assert main([*flags, "--ablation-seeds", "2", "--out", str(tmp_path / "run")]) == 0
    plan = capsys.readouterr().out
    assert "6 arms x 2 seeds (0, 1)" in plan
    assert "round 0, for each seed: expert (10), train (3 steps), evaluate (5), greedy (4)\n" in plan
    assert "demonstrations, for each seed: round 1: expert (new tasks), train (7 steps), evaluate (5)\n" in plan
    assert "continue, for each seed: round 2: rollout (8), filter, train (7 steps), evaluate (5)\n" in plan
    assert "  star, for each seed: round 1: filter, train (7 steps), evaluate (5)\n" in plan
    each = (10 + 5 + 4) + (2 * 8 + 2 * 5) + (8 + 5) + 4 * 5  # round 0; star+; continue; star and three controls
    assert f"in all {2 * each} episodes and {2 * (3 + (2 + 1 + 1 + 1 + 1 + 1) * 7)} optimiser steps" in plan
    assert list(tmp_path.iterdir()) == []
    assert main([*flags, "--rollout-tasks", "0", "--out", str(tmp_path / "run")]) == 1
    assert "--rollout-tasks is 0; expected 1 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_an_older_version_is_resumed_if_its_removed_options_had_no_effect(tmp_path):
    from experiments.common.config import RunError, load_config
    from experiments.star.config import Args

    (tmp_path / "config.yaml").write_text("rounds: 2\nzero_gain: correct\ndedup: rows\n")
    assert load_config(tmp_path, Args) == Args(rounds=2)
    (tmp_path / "config.yaml").write_text("rounds: 2\nzero_gain: keep\n")
    with pytest.raises(RunError, match="holds zero_gain: 'keep', an option that was removed.* as with 'correct'"):
        load_config(tmp_path, Args)


def test_an_ablation_measures_on_tasks_that_no_rule_was_chosen_on():
    from experiments.star.config import Args, with_defaults

    alone, many = with_defaults(Args()), with_defaults(Args(ablation=True))
    assert (alone.eval_data, alone.eval_limit, alone.executor) == ("synthetic:val", 400, "serial")
    assert (many.eval_data, many.eval_limit, many.executor) == ("from:6000:synthetic:test", 800, "process")
    given = Args(ablation=True, data="index:DIR", eval_limit=3, executor="serial")
    assert with_defaults(given) == given
    assert with_defaults(many) == many
    going_on = Args(ablation=True, resume="runs/of-an-older-version")
    assert with_defaults(going_on) == going_on, "a run that goes on keeps what it had"


def test_what_arms_share_is_one_file_with_two_names(tmp_path):
    from experiments.common.ablation import share
    from experiments.star.ablation import SHARED

    source, target = tmp_path / "star+", tmp_path / "continue"
    for name in ("round0/policy/model.safetensors", "round1/rollout.jsonl", "round1/rollout.DONE", "round1/rows.jsonl"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (tmp_path / ".continue.linked" / "round9").mkdir(parents=True)  # of a kill
    share(source, target, SHARED["star"])
    shared = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert shared == {"round0/policy/model.safetensors", "round1/rollout.jsonl", "round1/rollout.DONE"}
    assert all((target / name).samefile(source / name) for name in shared)
    (target / "mine").write_text("begun")
    share(source, target, ("round1/*",))
    (source / "round0" / "rows.jsonl").write_text("lessons")
    share(source, tmp_path / "judged", SHARED["judged"])  # the same S_0, of which other lessons are made
    assert [path.name for path in (tmp_path / "judged").rglob("*") if path.is_file()] == ["model.safetensors"]
    assert not (target / "round1" / "rows.jsonl").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    from experiments.star.__main__ import main

    flags = ["--dry-run", "--agent", "mllm:untrained", "--tool", "disc", "--rounds", "2", "--start-from", "previous"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    plan = capsys.readouterr().out
    assert "S_0: 600 steps" in plan and "S_2: 200 steps of 32 rows from S_1 on D_0 + D_2" in plan
    assert list(tmp_path.iterdir()) == []


def test_options_for_the_trainer_reach_trl(tmp_path):
    pytest.importorskip("trl")
    from agents.training.sft import SFTOptions, _arguments
    from experiments.common.config import parse_args
    from experiments.star.config import Args

    args = parse_args(Args, ["--trainer.lora", "8", "--trainer.extra", "optim", "adafactor", "adam_beta2", "0.95"])
    assert args.trainer.lora == 8
    made = _arguments(tmp_path, SFTOptions(extra=tuple(args.trainer.extra.items())))
    assert made.optim == "adafactor" and made.adam_beta2 == 0.95
    with pytest.raises(ValueError, match="no field optimizer"):
        _arguments(tmp_path, SFTOptions(extra=(("optimizer", "x"),)))


def test_a_run_needs_tasks_to_hold_out(tmp_path):
    from experiments.common.config import RunError
    from experiments.common.splits import split

    with pytest.raises(RunError, match="images are in both"):
        split("synthetic:val", "synthetic:val#easy", 9, 9)
    train, held_out, train_indices, eval_indices = split("synthetic", None, 5, 4)
    assert (held_out.spec, len(train_indices), len(eval_indices)) == ("synthetic:val", 5, 4)


def test_tasks_of_one_image_are_never_divided(tmp_path):
    from PIL import Image

    from experiments.common.splits import split

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for k in range(12):
        Image.fromarray(np.full((8, 9, 3), k, np.uint8)).save(tmp_path / "images" / f"{k}.png")
        for part in "abcd":
            mask = np.zeros((8, 9), np.uint8)
            mask[2:5, 2 + ord(part) - ord("a") :] = 255
            Image.fromarray(mask).save(tmp_path / "masks" / f"{k}#{part}.png")
    train, held_out, train_indices, eval_indices = split(f"berkeley:{tmp_path}", None, None, None)
    apart = [{train.ids[index].split("#")[0] for index in indices} for indices in (train_indices, eval_indices)]
    assert all(apart) and not apart[0] & apart[1]
    assert len(train_indices) + len(eval_indices) == 48


def test_only_a_language_model_can_be_improved(tmp_path):
    from experiments.common.config import RunError
    from experiments.star.config import Args
    from experiments.star.train import run

    with pytest.raises(RunError, match="'random' has no weights to train; expected mllm"):
        run(Args(agent="random", out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
