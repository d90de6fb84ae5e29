"""GSPO: what it refuses, what it learns from, what it survives, and what its command writes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import disc_task
from pycocotools import mask as coco
from safetensors.torch import load_file

from agents import tiny
from agents.tiny import vision_tower
from agents.training.gspo import GSPOOptions, LengthPenalisedReward, optimise
from agents.training.sft import SFTOptions, finetune
from experiments.common.ablation import arm_folder
from experiments.common.config import RunError
from experiments.common.run_folder import RunFolder
from experiments.evaluate.answers.polygon_answers import OracleAgent
from experiments.evaluate.answers.polygon_metrics import record
from experiments.gspo import ablation, answers, config, controls
from experiments.gspo import train as run
from experiments.gspo.controls import SCALES, TEMPERATURES, best_scale, rescore, scale
from segenv import codec, data, rewards

torch.set_num_threads(1)
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
SMALL = {"image_size": 32, "width": 64, "vision_layers": 1, "text_layers": 2, "heads": 2}
DECLARED = {"codec": "rings", "prompt": "instruction", "image_size": [32, 32], "max_new_tokens": 64}
RINGS = codec.make("rings")
QUICK = GSPOOptions(steps=6, prompts=2, group=4, updates=2, max_tokens=64, save_steps=2, learning_rate=1e-3, warmup=0.0)
REWARD = rewards.polygon("iou+0.1*format")


class Rows:
    """A disc in one of four corners, to be outlined in four vertices."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> dict:
        x, y = 8 + 16 * (k % 2), 8 + 16 * (k // 2)
        task = disc_task(32, 32, x, y, 6)
        rle = coco.encode(np.asfortranarray(task.target, np.uint8))
        return {
            "image": task.image,
            "prompt": task.instruction,
            "target": {"size": [32, 32], "counts": rle["counts"].decode()},
            "reply": RINGS.reply(task.target, task, 60),
        }


class Lessons(Rows):
    """The same for supervised fine-tuning."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, k: int) -> dict:
        return {name: value for name, value in super().__getitem__(k % 4).items() if name != "target"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A model that outlines something, mostly: its replies differ in what they are worth."""
    folder = tmp_path_factory.mktemp("gspo")
    model, processor = tiny.build(**SMALL)
    vision_tower.fold(model.model.vision_tower)
    model.save_pretrained(folder / "fresh")
    processor.save_pretrained(folder / "fresh")
    options = SFTOptions(steps=150, batch_size=8, learning_rate=3e-3, save_steps=1000)
    finetune(folder / "fresh", Lessons(), folder / "taught", options, DECLARED)
    return folder / "taught"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", ["gspo", "luspo"])
@pytest.mark.parametrize("micro", [0, 2])
def test_one_update_from_a_batch_is_refused_as_it_does_nothing(tmp_path, algorithm, micro):
    options = replace(QUICK, algorithm=algorithm, updates=1, micro_batch_size=micro)
    with pytest.raises(ValueError, match="would do nothing of its own.*give 2 or more updates or passes"):
        optimise(None, Rows(), REWARD, tmp_path / "out", options)
    with pytest.raises(ValueError, match="steps_per_generation, which another flag"):  # by TRL's own names
        optimise(None, Rows(), REWARD, tmp_path / "out", replace(QUICK, extra=(("steps_per_generation", "1"),)))
    assert not list(tmp_path.iterdir())


def test_replies_that_cannot_be_divided_and_unknown_fields_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 prompts x 4 replies cannot be divided among 3 updates"):
        optimise(None, Rows(), REWARD, tmp_path / "out", replace(QUICK, updates=3))
    with pytest.raises(ValueError, match="GRPOConfig has no field clip"):
        optimise(None, Rows(), REWARD, tmp_path / "out", replace(QUICK, extra=(("clip", "1"),)))
    with pytest.raises(ValueError, match="no rows"):
        optimise(None, [], REWARD, tmp_path / "out", QUICK)


def test_the_judge_scores_replies_and_logs_what_they_are():
    row, logged = Rows()[0], {}
    right = row["reply"]
    replies = [right, "I see a disc", right[: right.rindex("[") - 1]]
    ids = [[0] * 20, [0] * 4, [0] * 10]
    judge = LengthPenalisedReward(REWARD, replace(QUICK, length_penalty=0.4, max_tokens=40))
    columns = {"target": [row["target"]] * 3, "log_metric": logged.__setitem__}
    found = judge([[{"role": "assistant", "content": reply}] for reply in replies], ids, **columns)
    task = disc_task(32, 32, 8, 8, 6)
    scores = [REWARD.score(reply, task) for reply in replies]
    assert scores[0]["iou"] > 0.6 and scores[0]["format"] == 1 and scores[2]["format"] == 0 < scores[2]["iou"]
    assert found == pytest.approx([scores[0]["total"] - 0.2, -0.04, scores[2]["total"] - 0.1])
    assert logged["completions/valid"] == pytest.approx(2 / 3)
    assert logged["completions/std_length"] == pytest.approx(np.std([20, 4, 10]))
    assert logged["reward/iou"] == pytest.approx((scores[0]["iou"] + scores[2]["iou"]) / 3)


def recording(scores: list[float], calls: int = 10**9):
    """The reward, which remembers what it gave, and pulls the plug after so many calls."""

    def recorded(**columns):
        if len(scores) >= 8 * calls:
            raise KeyboardInterrupt
        found = REWARD(**columns)
        scores.extend(found)
        return found

    return recorded


def test_training_that_was_cut_ends_with_the_weights_of_training_that_was_not(taught, tmp_path):
    scores: list[float] = []
    whole = optimise(taught, Rows(), recording(scores), tmp_path / "whole", QUICK)
    rounds = [np.mean(scores[k : k + 8]) for k in (0, 8, 16)]
    assert [entry["reward"] for entry in whole["log"]] == pytest.approx(rounds, abs=1e-6)
    assert np.std(scores[:8]) > 0.01
    assert whole["log"][0]["clip_ratio/region_mean"] > 0, "the second update from a batch meets the clip"
    assert not same(weights(taught), weights(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        optimise(taught, Rows(), recording([], calls=2), tmp_path / "cut", QUICK)
    state = tmp_path / "cut.training"
    assert sorted(folder.name for folder in state.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    (state / "checkpoint-4" / "trainer_state.json").write_text('{"global_')  # killed while it was written
    again: list[float] = []
    resumed = optimise(taught, Rows(), recording(again), tmp_path / "cut", QUICK)
    assert again == scores[8:], "the first round is not made again"
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    for one, other in zip(whole["log"], resumed["log"], strict=True):
        assert {k: v for k, v in one.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}
    assert optimise(taught, Rows(), recording([], calls=0), tmp_path / "cut", QUICK) == resumed, "it is done"


def arguments(taught: Path, out: Path, **own) -> config.Args:
    few = {"limit": 16, "eval_limit": 6, "probe": 3, "probe_steps": 2, "panel": 2, "eval_batch": 4, "vertices": 4}
    return config.Args(
        agent=f"mllm:{taught}",
        data="synthetic:train#easy",
        eval_data="synthetic:val#easy",
        train=replace(QUICK, steps=4),
        out=str(out),
        **{**few, **own},
    )


def test_the_command_measures_before_on_the_way_and_after(taught, tmp_path):
    out = tmp_path / "run"
    numbers = run.run(arguments(taught, out))
    steps = {step: len(records) for step, records in answers.read_replies(RunFolder(out)).items()}
    assert steps == {0: 12, 2: 6, 4: 12}, "two replies to each task: a greedy one, and a drawn one"
    for mode in ("greedy", "sampled"):
        gain, low, high = numbers["gain"][mode]
        assert gain == pytest.approx(numbers["after"][mode]["giou"] - numbers["before"][mode]["giou"])
        assert low <= gain <= high
    lines = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [line["step"] for line in lines] == ["0", "2", "4"]
    assert {"reward", "reward_iou", "reward_format", "valid", "truncated", "length", "length_std", "clipped"} <= set(
        lines[1]
    )
    assert "groups_without_spread" in lines[1] and lines[1]["held_out_greedy"]
    assert {path.stem for path in (out / "plots").iterdir()} == {"held_out", "reward", "lengths", "shares", "panel"}
    assert (out / "report.html").stat().st_size > 10_000 and list((out / "tensorboard").iterdir())
    before = (out / "answers.jsonl").read_bytes()
    assert run.run(replace(arguments(taught, out), resume=str(out))) == numbers
    assert (out / "answers.jsonl").read_bytes() == before
    with pytest.raises(RunError, match="would change results: reward"):
        run.run(replace(arguments(taught, out), resume=str(out), reward="iou"))


def test_arms_have_folders_of_their_own(tmp_path):
    for arms in ablation.TABLES.values():
        paths = {arm_folder(tmp_path, 0, arm.name) for arm in arms}
        assert len(paths) == len(arms) and all(path.name for path in paths)
        for arm in arms:
            config.check(ablation._arm(config.Args(), RunFolder(tmp_path), 3, arm))
    named = {"+ GSPO": "GSPO", "iou + format": "iou-format", "boundary_f": "boundary-f", "star+": "star+"}
    named |= {"simpleseg:contour=edges": "simpleseg-contour=edges", "random-start": "random-start"}
    assert {name: arm_folder(tmp_path, 3, name) for name in named} == {
        name: tmp_path / "seed3" / folder for name, folder in named.items()
    }
    specs = tuple(f"mllm:runs/vertices/seed0/{name}/model" for name in ("sparse", "middle-12", "dense.40"))
    found = ablation.arms(config.Args(ablation="length", checkpoints=specs))
    assert [arm.name for arm in found] == ["sparse", "middle-12", "dense.40"]
    with pytest.raises(RunError, match="names must differ"):
        ablation.arms(config.Args(ablation="length", checkpoints=("mllm:a/x-y", "mllm:b/x.y")))


def test_settings_that_cannot_work_are_refused_before_anything_is_written(taught, tmp_path):
    with pytest.raises(RunError, match="give a --codec of simpleseg"):
        run.run(replace(arguments(taught, tmp_path / "run"), codec="segagent"))
    with pytest.raises(RunError, match="has no weights to train"):
        run.run(replace(arguments(taught, tmp_path / "run"), agent="annotator"))
    with pytest.raises(RunError, match="reward 'iuo' is not understood"):
        run.run(replace(arguments(taught, tmp_path / "run"), reward="iuo"))
    for own, message in (
        ({"start_steps": 0}, "--start-steps is 0"),
        ({"ratio": -1.0}, "--ratio is -1.0; expected"),
        ({"codec": "simpleseg"}, "with --codec simpleseg, give --checkpoints"),
    ):
        with pytest.raises(RunError, match=message):
            ablation.run(replace(arguments(taught, tmp_path / "run"), ablation="length", **own))
    assert not list(tmp_path.iterdir())


def test_the_control_learns_outlines_of_as_many_vertices_as_it_is_told(taught, tmp_path):
    counts = []
    for vertices, ratio, on_rows in ((12, 0.0, False), (12, 0.03, False), (4, 0.0, False), (16, 0.0, True)):
        args = arguments(taught, tmp_path / "run", method="sft", vertices=vertices, ratio=ratio, rows=on_rows)
        this = run.prepare(args)
        rows = run.QueryRows(args, this.agent, this.data.select(this.train_indices))
        replies = [rows[k]["reply"] for k in range(len(rows))]
        counts.append([int(reply.split()[1]) for reply in replies])
    assert len(counts[0]) >= 8 and max(counts[0]) == 12 and max(counts[2]) == 4
    assert np.mean(counts[2]) < np.mean(counts[1]) < np.mean(counts[0]) - 1
    heights = [int(y) for y in re.findall(r",([0-9]{3})\]", " ".join(replies))]
    assert np.mean([y % 50 == 25 for y in heights]) > 0.4, "the others are at tops and bottoms"


class Discs:
    """A dataset of one task."""

    def __init__(self, task) -> None:
        self.task = task

    def by_id(self, name: str):
        assert name == self.task.id
        return self.task


def test_an_outline_that_is_too_small_is_scaled_about_its_centroid():
    task, small = disc_task(64, 64, 40, 20, 12), disc_task(64, 64, 40, 20, 10).target
    reply = RINGS.reply(small, task, 400)
    one = record(task, RINGS, reply, 9)
    factor, means = best_scale([one], Discs(task), RINGS)
    assert factor == 1.2 and means["1.0"] == pytest.approx(one.iou) and means["1.2"] > one.iou + 0.2
    scaled = rescore(one, task, RINGS, factor)
    assert scaled.iou == pytest.approx(means["1.2"]) and scaled.boundary_f > one.boundary_f and scaled.text == reply
    [ring] = RINGS.parse(reply, task).rings
    [grown] = scale(RINGS.parse(reply, task), 1.2, task).rings
    np.testing.assert_allclose(grown - 0, (ring - ring.mean(0)) * 1.2 + ring.mean(0), atol=0.5)
    assert scale(RINGS.parse(reply, task), 9.0, task).rings[0].max() <= 64, "it stays in the image"
    silent = record(task, RINGS, "I see a disc", 4)
    assert rescore(silent, task, RINGS, 1.2) == silent
    nothing = RINGS.parse("[]", task)
    assert scale(nothing, 1.2, task) is nothing


def test_constants_are_chosen_on_training_tasks_and_measured_on_held_out_ones(tmp_path):
    """The annotator's own polygons of few vertices, which are as good at any temperature."""
    args = config.Args(eval_batch=2, out=str(tmp_path))
    train, held_out = (data.make(f"synthetic:{split}#easy")[:3] for split in ("train", "val"))
    agent = OracleAgent(RINGS, 6, "vertices")
    this = answers.Run(args, RunFolder(tmp_path), agent, train, held_out, range(3), range(2))
    this.measure(agent, 0)
    controls.measure(this, 2)
    chosen, replies = controls.read(this.folder)
    start = answers.read_replies(this.folder)[0]
    assert chosen["tasks"] == 2 and chosen["temperature"] == 1, "the highest of equals"
    greedy = [record(train[k], RINGS, agent.reply(train[k]), 0) for k in range(2)]
    assert chosen["giou"]["scale"]["1.0"] == pytest.approx(np.mean([one.iou for one in greedy]))
    assert [(one.task, one.sample) for one in replies["scaled"]] == sorted((one.task, one.sample) for one in start)
    assert [(one.task, one.sample) for one in replies["cooler"]] == [(task, 1) for task in held_out.ids[:2]]
    task = held_out.by_id(replies["scaled"][0].task)
    assert replies["scaled"][0] == rescore(answers.of_mode(start, False)[0], task, RINGS, chosen["scale"])
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    controls.measure(this, 2)
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}, "nothing is asked again"


def test_the_controls_stand_in_the_tables(tmp_path):
    """GSPO draws what the scaled start draws; the start is two pixels too small."""
    tasks = [disc_task(64, 64, 20 + k, 20, 12, f"disc {k}") for k in range(4)]

    def replies(radius: int, samples: tuple[int, ...] = (0, 1)) -> list:
        made = []
        for k, task in enumerate(tasks):
            text = RINGS.reply(disc_task(64, 64, 20 + k, 20, radius).target, task, 400)
            made += [record(task, RINGS, text, 9, sample) for sample in samples]
        return made

    start, better, images = replies(10), replies(12), ["one", "one", "two", "three"]
    scaled = ablation._control("scaled", better, [start], images)
    cooler = ablation._control("cooler", replies(11, (1,)), [start], images)
    assert scaled["greedy"]["gain"][0] == pytest.approx(scaled["greedy"]["giou"] - np.mean([one.iou for one in start]))
    assert "greedy" not in cooler and 0 < cooler["sampled"]["gain"][0] < scaled["sampled"]["gain"][0]
    contrasts = [
        ablation._contrast(name, [better] * 3, [other] * 3, images)
        for name, other in (("start", start), ("scaled", better), ("cooler", replies(11, (1,))))
    ]
    assert contrasts[0]["greedy"]["giou"][1] > 0 and contrasts[1]["greedy"] == {"giou": [0] * 3, "boundary_f": [0] * 3}
    by_seed = [{0: start, 4: better}] * 3
    arms = [{"arm": "+ GSPO", "about": "", **{
        mode: ablation._compare(by_seed, by_seed, 4, sampled, images) for mode, sampled in answers.MODES
    }}]  # fmt: skip
    protocol = {"seeds": [0, 1, 2], "ablation": "sft", "train": {"steps": 4}, "eval_data": "from:6000:synthetic:test"}
    protocol |= {
        "controls": {"scale": 1.2, "temperature": 0.5},
        "primary endpoint": "gIoU",
        "chosen": "on training tasks",
    }
    numbers = {"arms": arms, "held_out_tasks": 4, "controls": [scaled, cooler], "contrasts": contrasts}
    said = ablation.text({**numbers, "protocol": {**protocol, "intervals": ""}})
    assert "start, scaled by 1.2 (primary: greedy gIoU)" in said and "start at T = 0.5" in said
    table = ablation.table({**numbers, "protocol": protocol})
    assert len({len(row) for row in table.rows} | {len(table.header)}) == 1 and len(table.rows) == 3 + 4
    assert table.header.count("greedy boundary F") == 1
    assert (
        ablation.report({**numbers, "protocol": {**protocol, "intervals": ""}}, {})
        .contrasts.rows[1][1]
        .startswith("+0.0")
    )


@pytest.mark.slow
def test_the_ablation_compares_with_as_much_more_supervision(taught, tmp_path, monkeypatch):
    args = arguments(taught, tmp_path / "ablation", ablation="sft", seeds=(0, 1), control_tasks=5)
    numbers = ablation.run(args)
    assert [line["arm"] for line in numbers["arms"]] == ["+ GSPO", "+ SFT"]
    first = numbers["arms"][0]["greedy"]
    assert first["after"] == pytest.approx(np.mean(first["after_by_seed"]))
    assert numbers["arms"][0]["greedy"]["before"] == numbers["arms"][1]["greedy"]["before"]
    assert "+ SFT" in ablation.text(numbers) and "(primary: greedy gIoU)" in ablation.text(numbers)
    found = {line["control"]: line for line in numbers["contrasts"]}
    assert list(found) == ["start", "scaled", "cooler", "+ SFT"] and "greedy" not in found["cooler"]
    assert found["start"]["greedy"]["giou"] == first["gain"] and len(found["scaled"]["sampled"]["boundary_f"]) == 3
    chosen = numbers["protocol"]["controls"]
    assert chosen["tasks"] == 5 and chosen["scale"] in SCALES and chosen["temperature"] in TEMPERATURES
    assert chosen["giou"]["scale"][str(chosen["scale"])] == max(chosen["giou"]["scale"].values())
    start = tmp_path / "ablation" / "start"
    assert len((start / "training.jsonl").read_text().splitlines()) == 5 * (1 + len(TEMPERATURES))
    assert len((start / "scaled.jsonl").read_text().splitlines()) == 12
    plans = [
        json.loads((tmp_path / "ablation" / "seed1" / name).read_text())["plan"]
        for name in ("GSPO/policy/gspo.json", "SFT/policy/sft.json")
    ]
    assert plans[0]["prompts"] * plans[0]["group"] // plans[0]["updates"] == plans[1]["batch_size"]
    assert plans[0]["steps"] == plans[1]["steps"] and plans[0]["base"] == plans[1]["base"]
    with monkeypatch.context() as patched:
        patched.setattr(run, "prepare", None)  # a finished one needs no policy
        assert ablation.run(replace(args, resume=args.out)) == numbers
    alone = ablation.run(replace(args, out=str(tmp_path / "alone"), seeds=(0,), workers=1))
    for line, own in zip(numbers["arms"], alone["arms"], strict=True):  # side by side or one after the other
        assert [own[mode]["after"] for mode in ("greedy", "sampled")] == [
            line[mode]["after_by_seed"][0] for mode in ("greedy", "sampled")
        ]


@pytest.mark.slow
def test_the_drift_of_length_from_models_that_it_teaches_itself(taught, tmp_path, monkeypatch):
    args = arguments(taught, tmp_path / "run", ablation="length", seeds=(0,), start_steps=1, eval_limit=2, probe=2)
    numbers = ablation.run(args)
    starts = tmp_path / "run" / "starts"
    assert [line["arm"] for line in numbers["arms"]] == list(ablation.TAUGHT)
    models = [arm_folder(starts, 0, name) / "model" for name in ablation.TAUGHT]
    assert all((path / "model.safetensors").is_file() for path in models)
    most = [
        json.loads((tmp_path / "run" / "seed0" / name / "policy" / "gspo.json").read_text())["plan"]["max_tokens"]
        for name in ablation.TAUGHT
    ]
    assert most == [max(args.train.max_tokens, 8 * (own["vertices"] + 8)) for own in ablation.TAUGHT.values()]
    assert (tmp_path / "run" / "plots" / "lengths.png").is_file()
    monkeypatch.chdir(tmp_path)
    assert ablation.run(replace(args, out=None, resume="run")) == numbers, "the same by another name"
    assert [row[0] for row in ablation.table(numbers).rows[:3]] == ["middle, start", "middle", "sparse, start"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate starts as many processes as there are GPUs")
def test_one_process_where_two_were_asked_for_is_refused_with_the_flag_that_it_needs(tmp_path):
    """Without a GPU, `accelerate launch --num_processes 2` starts one process and says nothing."""
    command = [*LAUNCH, "--num_processes", "2", "-m", "experiments.gspo", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1 and "--multi_gpu --num_processes 2 -m experiments.gspo" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_on_the_cpu_and_a_kill(taught, tmp_path):
    """`accelerate launch` trains in two processes; killed and resumed, it ends with the same weights."""
    launch = [*LAUNCH, "--multi_gpu", "--num_processes", "2"]
    flags = ["--agent", f"mllm:{taught}", "--data", "synthetic:train#easy", "--eval-data", "synthetic:val#easy"]
    numbers = {"steps": 12, "prompts": 2, "group": 4, "updates": 2, "max-tokens": 64, "save-steps": 2, "limit": 16}
    numbers |= {"eval-limit": 4, "probe": 2, "probe-steps": 4, "learning-rate": 1e-3}
    flags += [text for name, value in numbers.items() for text in (f"--{name}", str(value))]
    repo = Path(__file__).parents[2]

    def train(*arguments: str) -> subprocess.Popen:
        port = ["--main_process_port", "0", "-m", "experiments.gspo"]
        return subprocess.Popen([*launch, *port, *arguments], cwd=repo, env=dict(os.environ), start_new_session=True)

    assert train(*flags, "--out", str(tmp_path / "whole")).wait(550) == 0
    killed = train(*flags, "--out", str(tmp_path / "killed"))
    while not (tmp_path / "killed" / "policy.training" / "checkpoint-4").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert train("--resume", str(tmp_path / "killed")).wait(550) == 0
    assert same(weights(tmp_path / "whole" / "policy"), weights(tmp_path / "killed" / "policy"))
    about = json.loads((tmp_path / "whole" / "policy" / "gspo.json").read_text())
    assert not same(weights(taught), weights(tmp_path / "whole" / "policy"))
    assert (about["steps"], about["processes"]) == (12, 2)
