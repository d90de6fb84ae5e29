"""The tool's trainer: a live start, and the same weights whether or not it is stopped on the way."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from experiments.common.config import RunError  # noqa: E402
from experiments.train_tool import __main__, config, data  # noqa: E402
from experiments.train_tool import trainer as train_tool  # noqa: E402
from segenv.data.synthetic.dead_leaves import sample_dead_leaves  # noqa: E402
from segenv.metrics import box_of  # noqa: E402
from segenv.tools import tiny_sam  # noqa: E402
from segenv.tools.sam import SamTool  # noqa: E402
from segenv.types import Click, Prompt  # noqa: E402

TINY = config.Args(
    image_size=64,
    small_size=32,
    width=32,
    depth=1,
    prompt_width=32,
    scenes=2,
    prompts=2,
    small_steps=2,
    large_steps=2,
    cooldown=1,
    save_every=1,
)


def batch(size: int, scenes: int = 2) -> list:
    crops = data.Crops(size, 2, seed=0)
    items = [crops[i] for i in range(scenes)]
    return [torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True)]


def test_the_encoder_is_alive_at_the_start():
    """The configuration's own initialisation gives a constant embedding; ours must tell places apart."""
    trainer = train_tool.SamTrainer(TINY)
    pixels = (batch(32)[0].permute(0, 3, 1, 2).float() - tiny_sam.PIXEL_MEAN) / tiny_sam.PIXEL_STD
    embedding = trainer.model.vision_encoder(pixels).last_hidden_state
    assert embedding.std((2, 3)).mean() > 0.1
    points = trainer.model.shared_image_embedding.positional_embedding
    assert 0.5 < points.std() < 1.5 and not points.requires_grad
    assert trainer.model.prompt_encoder.shared_embedding.positional_embedding is points


@pytest.mark.parametrize("several", [False, True])
def test_a_step_moves_every_part(several):
    trainer = train_tool.SamTrainer(TINY)
    trainer.several = several
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(4):
        trainer.train_step(batch(32))
    moved = {
        name.split(".")[0] for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert moved == {"vision_encoder", "prompt_encoder", "mask_decoder"}


def test_training_lowers_the_loss_on_one_batch():
    trainer = train_tool.SamTrainer(dataclasses.replace(TINY, small_steps=1000, rate=1e-2))
    losses = [trainer.train_step(batch(32))["loss"] for _ in range(50)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    def run(trainer, steps):
        for size, count in steps:
            if size > trainer.size:
                trainer.grow()
            for _ in range(count):
                trainer.train_step(batch(size))

    whole = train_tool.SamTrainer(TINY)
    run(whole, [(32, 2), (64, 2)])
    first = train_tool.SamTrainer(TINY)
    run(first, [(32, 2), (64, 1)])
    first.save(tmp_path)
    second = train_tool.SamTrainer(TINY)
    second.load(tmp_path)
    run(second, [(64, 1)])
    assert second.step == whole.step
    average = second.averaged.state_dict()
    for name, value in whole.averaged.state_dict().items():
        torch.testing.assert_close(average[name], value, rtol=0, atol=0)


def test_growing_keeps_what_was_learnt():
    """The same scene at twice the size gives about the same embedding, twice as fine."""
    trainer = train_tool.SamTrainer(TINY)
    small = trainer.model.vision_encoder.pos_embed.detach().clone()
    trainer.grow()
    large = trainer.model.vision_encoder.pos_embed.detach()
    pooled = torch.nn.functional.avg_pool2d(large.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert large.shape[1] == 2 * small.shape[1]
    assert (pooled - small).abs().mean() < 0.1 * small.abs().mean()


def test_a_correction_falls_in_the_error():
    rng = np.random.default_rng(0)
    target, prediction = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    target[2:8, 2:8], prediction[5:12, 5:12] = True, True
    labels = set()
    for _ in range(50):
        x, y, label = data.error_click(target, prediction, rng)
        assert target[y, x] != prediction[y, x] and label == int(target[y, x])
        labels.add(label)
    assert labels == {0, 1}


def test_a_true_click_has_the_label_of_its_pixel_and_falls_near_the_target():
    rng = np.random.default_rng(0)
    target = np.zeros((32, 48), bool)
    target[8:18, 28:48] = True
    labels = set()
    for _ in range(60):
        x, y, label = data.true_click(target, rng)
        assert label == int(target[y, x]) and 6 <= y <= 20 and 24 <= x < 48
        labels.add(label)
    assert labels == {0, 1}


def test_points_lie_in_the_boxes_of_their_targets():
    rng, truth = np.random.default_rng(0), np.zeros((3, 40, 40), bool)
    truth[0, 3:7, 5:9], truth[1, 20:40, 0:2], truth[2, 11, 12] = True, True, True
    counts = set()
    for _ in range(30):
        points = data.points_in_boxes(truth, rng)
        counts.add(points.shape[1])
        for mask, spots in zip(truth, points, strict=True):
            rows, columns = np.nonzero(mask)
            assert (spots[:, 2] == 1).all()
            assert (spots[:, 0] >= columns.min()).all() and (spots[:, 0] <= columns.max()).all()
            assert (spots[:, 1] >= rows.min()).all() and (spots[:, 1] <= rows.max()).all()
    assert counts == {1, 2, 3}


def test_a_mask_is_given_in_training_as_the_tool_gives_it():
    """The model gets what `SamTool` feeds it for a mask without logits."""
    trainer = train_tool.SamTrainer(TINY)
    tool = SamTool(trainer.model)
    mask = np.zeros((16, 16), bool)
    mask[3:9, 4:15] = True
    prompts = train_tool.Prompts().given(mask[None])
    expected = tool._fed_back(tool.frame(16, 16), Prompt(mask=mask))
    np.testing.assert_array_equal(prompts.logits[0, 0].numpy(), expected)
    np.testing.assert_array_equal(prompts.boxes, [tool.frame(16, 16).box(box_of(mask))])


def test_given_masks_come_from_boxes_points_and_distortions():
    trainer = train_tool.SamTrainer(TINY)
    truth = np.zeros((2, 32, 32), bool)
    truth[0, 4:20, 6:28], truth[1, 10:30, 2:12] = True, True
    small = truth[:, ::2, ::2]
    found = []
    for seed in range(12):
        masks = trainer._given_masks(torch.randn(2, 32, 4, 4), truth, small, np.random.default_rng(seed))
        assert masks.shape == (2, 16, 16) and masks.any((1, 2)).all()
        found.append(masks)
    overlap = [(masks & small).sum() / (masks | small).sum() for masks in found]
    assert sum(0.3 < value < 1 for value in overlap) >= 2  # distorted ones are near their targets


@pytest.mark.parametrize("given", [0.0, 1.0])
def test_steps_measure_first_prompts_or_given_masks(given):
    trainer = train_tool.SamTrainer(dataclasses.replace(TINY, given=given))
    trainer.several = True
    measures = trainer.train_step(batch(32))
    assert ("iou_given" in measures) == bool(given) and ("iou_first" in measures) == (not given)


def test_a_frozen_encoder_stays_while_the_rest_moves():
    trainer = train_tool.SamTrainer(dataclasses.replace(TINY, frozen_encoder=True, small_steps=0))
    trainer.open_stage("large")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for _ in range(2):
        trainer.train_step(batch(64))
    after = trainer.model.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"prompt_encoder", "mask_decoder"}


def test_training_goes_on_from_the_embedded_model_at_its_widths():
    args = dataclasses.replace(TINY, base="tiny-sam", small_steps=0, large_steps=2, image_size=64)
    trainer = train_tool.SamTrainer(args)
    assert trainer.several
    embedded = SamTool().model.state_dict()
    for name, value in trainer.model.state_dict().items():
        if not name.endswith("pos_embed"):
            torch.testing.assert_close(value, embedded[name], rtol=0, atol=0)
    trainer.open_stage("large")
    assert trainer.model.config.vision_config.image_size == 64
    trainer.train_step(batch(64))


def test_a_base_that_is_no_tiny_sam_is_refused(tmp_path):
    with pytest.raises(RunError, match="cannot start from --base"):
        train_tool.SamTrainer(dataclasses.replace(TINY, base=str(tmp_path / "nowhere")))
    other = tiny_sam.tiny_config(32, 32, 1, 32, patch=16)
    tiny_sam.build(other).save_pretrained(tmp_path / "other")
    with pytest.raises(RunError, match="cannot start from --base"):
        train_tool.SamTrainer(dataclasses.replace(TINY, base=str(tmp_path / "other")))


def test_losses_prefer_the_target():
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 2:6] = 1
    right, wrong = 10 * (target - 0.5), -10 * (target - 0.5)
    for balanced in (0.0, 0.5, 1.0):
        assert tiny_sam.mask_losses(right, target, balanced) < tiny_sam.mask_losses(wrong, target, balanced)
    assert float(tiny_sam.ious(right, target)) == 1.0 and float(tiny_sam.ious(wrong, target)) == 0.0


def test_a_part_is_a_real_part_of_the_object():
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:28] = True
    shares = [float((data.half_plane(mask, rng).numpy() * mask).sum() / mask.sum()) for _ in range(60)]
    assert min(shares) >= 0.25 and sum(share < 1 for share in shares) > 10


def test_leaves_are_things_among_pieces():
    for seed in range(8):
        image, instances = sample_dead_leaves(np.random.default_rng(seed))
        again = sample_dead_leaves(np.random.default_rng(seed))
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8 and image.std() > 5
        assert instances.shape == (256, 256) and 1 <= instances.max() <= 3
        np.testing.assert_array_equal(again[0], image)
        np.testing.assert_array_equal(again[1], instances)


def test_prompts_ask_for_objects_or_things_that_touch():
    crops = data.Crops(64, 8, seed=0, unions=1.0, dead_leaves=0.3)
    sizes = set()
    for i in range(12):
        _, instances, targets = crops[i]
        for row in targets:
            chosen = np.flatnonzero(row)
            assert 0 not in chosen and all((instances == k).any() for k in chosen)
            sizes.add(len(chosen))
    assert sizes == {1, 2, 3}


@pytest.mark.slow
def test_the_command_trains_stops_resumes_and_writes_the_same_tool(tmp_path):
    from safetensors.torch import load_file

    from segenv import tools

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_tool.run(dataclasses.replace(TINY, out=str(whole)))
    train_tool.run(dataclasses.replace(TINY, out=str(cut), large_steps=1))
    assert __main__.main(["--out", str(cut)]) == 1  # a run is there
    assert __main__.main(["--resume", str(cut), "--small-steps", "9"]) == 1  # it has grown already
    assert __main__.main(["--resume", str(cut), "--large-steps", "2"]) == 0
    steps = [json.loads(line)["step"] for line in (cut / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    one, two = (load_file(out / "state.safetensors") for out in (whole, cut))
    assert one.keys() == two.keys()
    tool = tools.make(f"sam:{cut / 'model'}")
    image = np.full((48, 64, 3), 90, np.uint8)
    [prediction] = tool.predict(tool.encode([image]), [Prompt((Click(20, 20),))])
    assert prediction.mask.shape == (48, 64) and prediction.logits.shape == (32, 32)


def test_batches_resume_where_they_stopped():
    trainer = train_tool.SamTrainer(dataclasses.replace(TINY, small_steps=3))
    whole = list(trainer.batches())
    trainer.step = 1
    rest = list(trainer.batches())
    assert len(whole) == 3 and len(rest) == 2
    for a, b in zip(whole[1:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rates(trainer, steps) -> list[float]:
    """The learning rate of each of `steps`, without training."""
    found = []
    for trainer.step in steps:
        trainer.start_optimiser(trainer.args.small_steps if trainer.grown else 0)
        found.append(trainer.optimiser.param_groups[0]["lr"])
    return found


def test_the_rate_warms_up_stays_and_cools_down_above_zero():
    trainer = train_tool.SamTrainer(dataclasses.replace(TINY, small_steps=500, large_steps=600, cooldown=300))
    assert rates(trainer, [0, 99, 199, 499]) == pytest.approx([5e-6, 5e-4, 1e-3, 1e-3])
    trainer.grow()  # half the rate, and a warm-up of its own
    assert rates(trainer, [500, 699, 800, 950, 1099]) == pytest.approx([2.5e-6, 5e-4, 5e-4, 2.5e-4, 5e-4 / 300])
    short = train_tool.SamTrainer(dataclasses.replace(TINY, small_steps=2, large_steps=2, cooldown=9))
    assert all(rate > 0 for rate in rates(short, range(4)))


def test_the_schedule_and_the_average_follow_the_steps():
    trainer = train_tool.SamTrainer(TINY)
    found = []
    for _ in range(2):
        found.append(trainer.optimiser.param_groups[0]["lr"])
        trainer.train_step(batch(32))
    assert found == pytest.approx([5e-6, 1e-5])
    assert trainer.averaged.n_averaged == trainer.step + 1


def test_a_state_of_another_version_is_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    trainer = train_tool.SamTrainer(TINY)
    trainer.save(tmp_path)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as state:
        about = state.metadata()
    old = {
        name.replace("averaged.", "average.").replace("heads.", "affinity."): v for name, v in load_file(file).items()
    }
    save_file(old, file, metadata=about)
    with pytest.raises(RunError, match="has no 'averaged.*another version of segenv"):
        trainer.load(tmp_path)
