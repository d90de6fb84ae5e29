"""The process reward model: what is read off a model, what it learns from, how good it is said to be, and the command
that trains it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import made_models
import numpy as np
import pytest
import torch
from conftest import disc_task
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import save

import agents
from agents import tiny
from agents.backends.transformers import chat, encode, load
from agents.mllm import MllmAgent
from agents.training.sft import SFTOptions, finetune
from experiments.common.run_folder import RunFolder
from experiments.prm import __main__, train
from search.episode import action_from_json
from search.labelled_masks import (
    SOURCES,
    LabelledMask,
    NoisyAnnotator,
    PredictedIouExamples,
    balanced,
    collect_masks,
    observation_of,
    point_masks,
)
from search.prm import IouReader, NumberTokens, expected_iou
from search.rollout import rollout
from search.star import Rules
from segenv import annotator, metrics, tools
from segenv.geometry.rle import encode_mask
from segenv.mdp import Observation, SegMDP
from segenv.statistics import APART, acceptance, calibration
from segenv.types import Click, Stop, Task

torch.set_num_threads(1)
SMALL = {"image_size": 32, "width": 64, "vision_layers": 1, "text_layers": 2, "heads": 2}
TASKS = [disc_task(40 + 4 * i, 60 - 3 * i, 26 + i, 20 + i, 9 + i, f"disc {i}") for i in range(4)]


@pytest.fixture(scope="module")
def mdp() -> SegMDP:
    return SegMDP(tools.make("disc:radius=6"), 3)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"), **SMALL)


@pytest.fixture(scope="module")
def masks(mdp) -> list[list[LabelledMask]]:
    return collect_masks(mdp, agents.make("random"), TASKS, seed=3)


# ------------------------------------------------------------------------------------------------------------- reading


def views(words: str = "it") -> list[Observation]:
    """Prompts and pictures of different sizes: a batch of them is padded."""
    full = [Observation(t.id, t.image, t.target, words + " again" * i, 0, 1) for i, t in enumerate(TASKS)]
    return [*full, Observation("empty", TASKS[0].image, np.zeros_like(TASKS[0].target), words, 0, 1)]


@torch.inference_mode()
def forced(agent, seen: Observation) -> tuple[int, np.ndarray]:
    """The likeliest number and the probability of each, by whole passes over the prompt and each beginning."""
    backend, numbers = agent.backend, NumberTokens(agent.backend.processor)
    prompt = encode(
        backend.processor, [chat(backend.processor, agent.prompt(seen))[0] + numbers.begun], [agent.picture(seen)]
    )
    known: dict = {}

    def after(node: tuple) -> torch.Tensor:
        if node not in known:
            more = dict(prompt)
            for name, value in prompt.items():
                if torch.is_tensor(value) and value.shape == prompt["input_ids"].shape:
                    tail = {"input_ids": list(node), "attention_mask": [1] * len(node)}.get(name, [0] * len(node))
                    more[name] = torch.cat([value, torch.tensor([tail], dtype=value.dtype)], 1)
            known[node] = backend.model(**more).logits[0, -1].double().softmax(-1)
        return known[node]

    chances = np.zeros(101)
    for node, number in numbers.value.items():
        chances[number] = 1.0
        for depth in range(len(node)):
            scores, part = after(node[:depth]), node[:depth] in numbers.value
            chances[number] *= float(
                scores[node[depth]] / (1 if part else scores[numbers.following[node[:depth]]].sum())
            )
        if node in numbers.following:
            chances[number] *= 1 - float(after(node)[numbers.following[node]].sum())
    node = ()
    while node in numbers.following:
        scores, allowed = after(node), numbers.following[node]
        if node in numbers.value and int(scores.argmax()) not in allowed:
            break
        node += (max(allowed, key=lambda token: float(scores[token])),)
    return numbers.value[node], chances


@pytest.mark.parametrize("family", ["tiny", "qwen2.5-vl", "llava-1.5"])
def test_one_pass_reads_what_whole_passes_say(family: str, base: Path, tmp_path: Path) -> None:
    folder = base if family == "tiny" else made_models.save(family, tmp_path)
    agent, seen = MllmAgent(folder, batch_size=3), views()
    reader = IouReader(agent)
    numbers, chances = zip(*(forced(agent, one) for one in seen), strict=True)
    read = reader.distribution(seen)
    np.testing.assert_allclose(read, np.stack(chances), atol=1e-6)
    np.testing.assert_allclose(read.sum(1), 1)
    assert reader.tokens == [10] * len(seen)  # 1 to 9, and 10, which may go on
    assert reader.both(seen)[0].tolist() == [number / 100 for number in numbers]
    assert expected_iou(read) == pytest.approx([sum(n * p / 100 for n, p in enumerate(row)) for row in read])
    assert reader.greedy(seen).tolist() == [number / 100 for number in numbers]
    assert reader.tokens == [len(str(number)) for number in numbers]
    alone = [reader.greedy([one])[0] for one in seen[::-1]]
    assert alone == [number / 100 for number in numbers[::-1]]
    assert reader.greedy([]).shape == (0,) and reader.distribution([]).shape == (0, 101)


def test_every_number_has_its_own_tokens(base: Path) -> None:
    numbers = NumberTokens(MllmAgent(base).backend.processor)
    assert numbers.begun == "Current IOU: " and sorted(numbers.value.values()) == list(range(101))
    assert [len(level) for level in numbers.levels] == [1, 9, 1]


def test_a_taught_model_states_what_is_read_and_still_acts(
    base: Path, masks: list[list[LabelledMask]], tmp_path: Path
) -> None:
    """Twelve masks learned by heart: the statement read in one pass is the one that it writes."""
    learned, tasks = balanced([one for found in masks for one in found], 12), {task.id: task for task in TASKS}
    pupil = MllmAgent(base)
    options = SFTOptions(steps=130, batch_size=12, learning_rate=4e-3, save_steps=1000)
    finetune(base, PredictedIouExamples(learned, pupil, tasks.__getitem__), tmp_path / "out", options)
    taught = MllmAgent(tmp_path / "out")
    seen = [observation_of(one, tasks[one.task]) for one in learned]
    replies = taught.act(seen, [0] * len(seen))
    read, true = IouReader(taught).greedy(seen), [one.iou for one in learned]
    assert [taught.codec.stated_iou(text) for text in replies] == read.tolist()
    assert (
        calibration(read, true, range(12))["mae"]
        < 0.05
        < calibration(IouReader(pupil).greedy(seen), true, range(12))["mae"]
    )
    wanted = [
        taught.codec.format(action_from_json(one.action), view, one.iou)
        for one, view in zip(learned, seen, strict=True)
    ]
    assert sum(a == b for a, b in zip(replies, wanted, strict=True)) >= 9


# -------------------------------------------------------------------------------------------------- what it learns from


def test_masks_carry_what_is_true_of_them(mdp: SegMDP, masks: list[list[LabelledMask]]) -> None:
    assert [{one.task for one in found} for found in masks] == [{task.id} for task in TASKS]
    assert {one.source for found in masks for one in found} == set(SOURCES)
    rules = Rules()
    for task, found in zip(TASKS, masks, strict=True):
        assert len({one.mask for one in found}) == len(found)
        assert [one.number for one in found] == list(range(len(found)))
        assert sum(not one.pixels.any() for one in found) == 1  # every episode's beginning
        for one in found:
            assert one.iou == metrics.iou(task.target, one.pixels) and LabelledMask(**one.to_json()) == one
            action = action_from_json(one.action)
            assert isinstance(action, Stop) == (one.iou >= rules.stop_iou)
            if isinstance(action, Click):
                assert bool(task.target[action.y, action.x]) == action.positive != bool(one.pixels[action.y, action.x])
    assert collect_masks(mdp, agents.make("random"), TASKS[2:], seed=3) == masks[2:], "a task's masks are its own"
    assert collect_masks(mdp, agents.make("random"), TASKS, seed=4) != masks
    (episode,) = rollout(mdp, agents.make("annotator"), TASKS[:1])
    kept = {one.mask for one in masks[0]}
    assert {episode.start_mask, *(step.mask for step in episode.steps)} <= kept, "the last mask is one of them"


def test_random_points_need_no_episode(mdp: SegMDP) -> None:
    made = point_masks(mdp, TASKS, 6, seed=1)
    assert [len(found) for found in made] == [6] * 4 and made[1:] == point_masks(mdp, TASKS[1:], 6, seed=1)
    assert all(one.source == "points" and one.score is None for found in made for one in found)


def test_the_noisy_annotator_errs_now_and_then(mdp: SegMDP) -> None:
    """In a scene with two objects it asks for the other one, too; where nothing is known of it, for any pixel."""
    known = disc_task(60, 90, 30, 30, 14)
    other = disc_task(60, 90, 70, 30, 12).target
    for meta in ({}, {"instances": known.target + 2 * other}):
        state = mdp.initial(Task("t", known.image, known.target, meta=meta))
        right = annotator.next_click(known.target, state.mask)
        texts = NoisyAnnotator().act_on([state] * 300, range(300))
        clicks = [NoisyAnnotator().codec.parse(text, state.task) for text in texts]
        wrong = [click for click in clicks if isinstance(click, Click) and click != right]
        assert 50 < len(wrong) < 140 and all(click.positive for click in wrong)
        assert (sum(bool(other[click.y, click.x]) for click in wrong) > 25) == bool(meta)


def made(ious: list[float]) -> list[LabelledMask]:
    """Masks with these IoUs, of four sources in turn; that of IoU 0 is empty."""
    pixel = encode_mask(np.ones((1, 1), bool)), encode_mask(np.zeros((1, 1), bool))
    return [
        LabelledMask("t", k, SOURCES[k % 4], 1, 1, pixel[iou == 0], iou, None, {"type": "stop"})
        for k, iou in enumerate(ious)
    ]


@given(st.lists(st.sampled_from([0, 0.05, 0.15, 0.55, 0.95, 1.0]), max_size=60), st.integers(1, 60))
def test_each_tenth_of_iou_gets_its_share(ious: list[float], limit: int) -> None:
    found = made(ious)
    chosen = balanced(found, limit)
    assert len(chosen) == min(limit, len(found)) == len({one.number for one in chosen})
    have, got = (Counter(-1 if one.iou == 0 else min(int(10 * one.iou), 9) for one in part) for part in (found, chosen))
    most = max(got.values(), default=0)
    assert all(got[tenth] >= min(have[tenth], most - 1) for tenth in have), "who has less gave all"
    assert balanced(found[::-1], limit) == chosen


def test_sources_share_a_tenth() -> None:
    assert Counter(one.source for one in balanced(made([0.5] * 400), 40)) == dict.fromkeys(SOURCES, 10)


# ----------------------------------------------------------------------------------------------------------- how good

numbers_01 = st.floats(0, 1, allow_subnormal=False)
triples = st.lists(st.tuples(numbers_01, numbers_01, st.integers(0, 4)), min_size=1, max_size=40)


@settings(max_examples=50)
@given(triples, st.randoms())
def test_measures_are_what_they_say(rows: list, random) -> None:
    said, true, tasks = (list(column) for column in zip(*rows, strict=True))
    found = calibration(said, true, tasks)
    gaps = np.array(said) - np.array(true)
    assert found["mae"] == pytest.approx(np.abs(gaps).mean()) and found["mse"] == pytest.approx((gaps**2).mean())
    assert found["bias"] == pytest.approx(gaps.mean()) and found["tasks"] == len(set(tasks))
    bins = found["reliability"]
    assert sum(one["masks"] for one in bins) == len(rows)
    assert found["ece"] == pytest.approx(
        sum(one["masks"] * abs(one["stated"] - one["true"]) for one in bins) / len(rows)
    )
    right = [(s > u) + (s == u) / 2 for s, t, a in rows for u, v, b in rows if a == b and t - v >= APART]
    assert found["ranking"] == pytest.approx(np.mean(right)) if right else np.isnan(found["ranking"])
    for name, (low, high) in found["intervals"].items():
        assert np.isnan(low) or low - 1e-9 <= high, name
    random.shuffle(rows)
    again = calibration(*(list(column) for column in zip(*rows, strict=True)))
    assert all(
        again[name] == pytest.approx(found[name], nan_ok=True) for name in ("mae", "pearson", "spearman", "ranking")
    )


def test_the_truth_is_perfect_and_its_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    tasks = [k // 5 for k in range(300)]
    true = rng.random(300)
    perfect = calibration(true, true, tasks)
    assert (perfect["mae"], perfect["ece"], perfect["ranking"]) == (0, 0, 1) and perfect["pearson"] == pytest.approx(1)
    said = (true + 0.2 * rng.standard_normal(300) + np.repeat(0.1 * rng.standard_normal(60), 5)).clip(0, 1)
    found = calibration(said, true, tasks)
    for name in ("mae", "mse", "bias", "pearson", "ranking"):
        low, high = found["intervals"][name]
        assert low < found[name] < high, name
    lone = calibration(said, true, range(300))["intervals"]["bias"]
    shared = found["intervals"]["bias"]
    assert shared[1] - shared[0] > 1.2 * (lone[1] - lone[0]), "masks of one task err together"


def test_a_filter_by_hand() -> None:
    found = acceptance([0.9, 0.8, 0.7, 0.2], [0.8, 0.3, 0.9, 0.1], 0.75)
    assert found == {
        **{"threshold": 0.75, "precision": 0.5, "recall": 0.5, "kept": 0.5, "good": 0.5},
        **{"iou_kept": pytest.approx(0.55), "iou_all": pytest.approx(0.525)},
    }
    assert np.isnan(acceptance([0.1], [0.1], 0.5)["precision"])
    with pytest.raises(ValueError, match="threshold is 75; expected an IoU in 0..1"):
        acceptance([0.1], [0.1], 75)


# --------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """Twelve discs in files."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        task = disc_task(50 + i, 70 - i, 20 + 2 * i, 24, 8 + i)
        save(folder / "images" / f"{i:02}.png", task.image)
        save(folder / "masks" / f"{i:02}.png", task.target.astype(np.uint8) * 255)
    return f"folder:{folder}"


def test_a_model_is_measured_as_it_is(base: Path, tmp_path: Path, capsys) -> None:
    options = ["--agent", f"mllm:{base}", "--tool", "disc:radius=8", "--limit", "2", "--eval-limit", "2"]
    options += ["--steps", "0", "--replies", "4", "--max-steps", "2", "--report-masks", "2"]
    assert __main__.main([*options, "--out", str(tmp_path / "run")]) == 0
    told, numbers = capsys.readouterr().out, RunFolder(tmp_path / "run").read_json("metrics.json")
    assert "as it is, mean" in told and "learned" not in told and numbers["training"] is None
    assert list(numbers["data"]["synthetic:val"]["readings"]["all"]) == ["as it is, greedy", "as it is, mean"]
    assert not (tmp_path / "run" / "train.jsonl").exists() and (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_run_trains_and_measures_and_goes_on_after_a_kill(photos: str, base: Path, tmp_path: Path, capsys) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [
        *("--data", photos, "--eval-data", photos, "synthetic:val#easy", "--agent", f"mllm:{base}"),
        *("--tool", "disc:radius=8", "--limit", "5", "--eval-limit", "2", "--rows", "40", "--steps", "6"),
        *("--batch-rows", "8", "--replies", "6", "--max-steps", "2", "--batch-size", "2", "--report-masks", "4"),
    ]
    assert __main__.main([*options, "--out", str(whole)]) == 0
    told = capsys.readouterr().out
    numbers = RunFolder(whole).read_json("metrics.json")
    assert list(numbers["data"]) == [photos, "synthetic:val#easy"] and f"{photos}, balanced masks" in told
    for found in numbers["data"].values():
        readings = found["readings"]["all"]
        assert list(readings) == [f"{model}, {way}" for model in ("before", "after") for way in ("greedy", "mean")]
        assert readings["before, mean"]["masks"] == sum(found["iou"]) > 6
        assert readings["before, mean"]["mae"] != readings["after, mean"]["mae"]
        assert found["replies"]["after"]["replies"] == 6
    assert numbers["training"]["rows"] == sum(numbers["training"]["sources"].values()) == 40
    assert (whole / "report.html").stat().st_size > 10_000
    assert MllmAgent(whole / "model").prompt_style == "instruction"

    trained, held_out = (
        {line["task"] for line in RunFolder(whole).records(name)} for name in ("train.jsonl", "eval0.jsonl")
    )
    assert len(trained) == 5 and len(held_out) == 2 and not trained & held_out

    shutil.copytree(whole, killed)
    lines = (whole / "train.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "train.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])  # killed in the middle of a write
    shutil.rmtree(killed / "model")
    for path in [*killed.glob("*.DONE"), *killed.glob("judge/*"), killed / "gather/train.DONE", *killed.glob("after*")]:
        path.unlink()
    assert __main__.main(["--resume", str(killed)]) == 0
    assert (killed / "train.jsonl").read_bytes() == b"".join(lines)
    again = RunFolder(killed).read_json("metrics.json")
    for one in (numbers, again):
        one["training"].pop("seconds")
    assert again == numbers


def test_a_trained_model_is_kept_in_the_precision_of_its_base(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    for part in load(base, "float16"):
        part.save_pretrained(half)
    whole, trained = load(base)[0].state_dict(), tmp_path / "trained"
    for k, (origin, dtype) in enumerate([(base, torch.float32), (half, torch.float16), (None, torch.float32)]):
        shutil.copytree(base, trained)
        (trained / "sft.json").write_text("{}")
        train.export(trained, tmp_path / f"kept {k}", origin)
        kept = load(tmp_path / f"kept {k}")[0].state_dict()
        assert all(torch.equal(kept[name], whole[name].to(dtype)) for name in whole)
        assert (tmp_path / f"kept {k}" / "sft.json").exists() and not trained.exists()


def test_what_cannot_be_run_is_said(photos: str, base: Path, tmp_path: Path, capsys) -> None:
    for options, message in (
        (["--agent", "annotator"], "has no weights to train"),
        (["--agent", f"mllm:{base}", "--steps", "-1"], "steps is -1; expected 0 or more"),
        (
            ["--agent", f"mllm:{base}", "--eval-data", "synthetic:train#easy", "--data", "synthetic:train#easy:"],
            "synthetic",
        ),
        (["--agent", f"mllm:{base}", "--data", photos, "--eval-data", photos + "/"], "images are in both"),
    ):
        assert __main__.main([*options, "--tool", "disc", "--out", str(tmp_path / "run")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
