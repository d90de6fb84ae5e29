"""SFT of the click policy S_0 on the annotator's trajectories over procedural scenes."""

from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

import agents
from agents import tiny
from agents.tiny.vision_tower import VisionTowerConfig
from agents.training.click_examples import ClickExamples, Mixture, Rollout, correct_action, distorted_mask
from experiments.common import config, trainer
from experiments.common.cli import setting_up
from experiments.common.config import RunError
from experiments.sft.config import RESUMABLE, STAGES, VISION_STAGE, ClickArgs
from experiments.sft.trainer import EvalState, LazyExamples, TinyTrainer, stretched, tiny_checkpoint
from segenv import codec, metrics, render, tools
from segenv.data.synthetic.scenes import Synthetic
from segenv.types import Click, Stop

CODEC = "segagent"  # the codec of the replies
MIXTURES = {
    VISION_STAGE: Mixture(first=0, cheap=1),
    "easy": Mixture(first=4, easy=0.8),
    "click": Mixture(first=4),
    "state": Mixture(first=4, trajectory=5, easy=0.2),
}
ANY_MASKS = Mixture(first=2, trajectory=4, cheap=4, crossed=4)  # of the stage `state` where masks are of any kind
IMAGE_SIZE, TEXT_LAYERS = 128, 4  # of a model from scratch
SIZES = ("width", "vision_layers", "heads")


class ClickTrainer(TinyTrainer):
    """Trains a tiny model from scratch, or a tiny checkpoint further."""

    stages = STAGES

    def fresh(self) -> tuple[Any, Any]:
        """The model to start from, and its processor."""
        args = self.args
        if args.base is not None:
            larger = args.tokens, args.image_size, args.text_layers, args.rope_theta
            model, processor, side = tiny_checkpoint(args.base, *larger)
            model.config.segenv = {"codec": CODEC, "prompt": "instruction", "image_size": [side, side]}
            return model, processor
        sizes = {name: getattr(args, name) for name in SIZES}
        size, layers = args.image_size or IMAGE_SIZE, args.text_layers or TEXT_LAYERS
        model, processor = tiny.build(args.seed, image_size=size, text_layers=layers, **sizes)
        return stretched(model, args.rope_theta), processor

    @cached_property
    def rollout(self) -> Rollout:
        """Player of the held-out trajectories."""
        return make_rollout(self.args)

    @cached_property
    def held_out(self) -> list[EvalState]:
        """Empty masks of the last `probe` tasks of `synthetic:val`, then states of trajectories and distorted masks."""
        args, data = self.args, Synthetic("val")
        tasks = [data[len(data) - 1 - k] for k in range(args.probe)]
        states: list[tuple] = [(task, np.zeros(task.target.shape, bool)) for task in tasks]
        for k, task in enumerate(tasks[: args.probe // 2]):
            rng = np.random.default_rng([args.seed, 2, k])
            if played := self.rollout.states(task, rng):
                states.append(played[rng.integers(len(played))])
            states.append((task, distorted_mask(task.target.view(bool), task.meta["instances"], rng)))
        return [
            EvalState(task, render.overlay(task.image, mask), task.instruction, mask, *action)
            for task, mask, *action in states
        ]

    def hashes(self) -> dict[str, str | None]:
        """Hashes of scenes, tool and base."""
        return {**super().hashes(), "tool": self.rollout.mdp.tool.fingerprint}

    def indices(self, step: int) -> list[int]:
        """The examples of a step: as many as the stage takes, of scenes that no other stage takes."""
        stage, first, _ = self.stage(step)
        usual = self.args.lessons
        number = {VISION_STAGE: round(1.6 * usual), "state": max(1, usual // 2)}.get(stage, usual)
        start = 1_000_000 * self.stages.index(stage) + (step - first) * number
        return list(range(start, start + number))

    def open_stage(self, stage: str) -> Dataset:
        """The examples of a stage."""
        side = self.model.config.segenv["image_size"][0]
        return LazyExamples(partial(click_examples, self.args, stage, side, side // self.processor.patch_size))

    def reply_metrics(self, state: EvalState, text: str) -> dict[str, float]:
        """Metrics of a reply: a first click in the object, or the error of the predicted IoU and of the action."""
        task, mask, parser, stop_iou = state.task, state.mask, codec.make(CODEC), self.args.stop_iou
        action = parser.parse(text, task)
        click = action if isinstance(action, Click) else None
        inside = click is not None and bool(task.target[click.y, click.x])
        if not mask.any():
            hit = float(inside and click is not None and click.positive)
            return {"first": hit, f"first_{task.meta['difficulty']}": hit}
        best, iou = state.action or correct_action(task, mask, (), stop_iou), float(metrics.iou(task.target, mask))
        scores = {"iou_error": abs((parser.stated_iou(text) or 0.0) - iou)}
        scores["stop"] = float(isinstance(action, Stop) == isinstance(best, Stop))
        if click is not None and isinstance(best, Click):
            scores["sign"] = float(click.positive == best.positive)
            scores["in_error"] = float(click.positive == inside != bool(mask[click.y, click.x]))
        return scores


def click_examples(args: ClickArgs, stage: str, side: int, grid: int) -> ClickExamples:
    """The examples of a stage, with `grid` patches along an image's `side`."""
    mixture = ANY_MASKS if stage == "state" and args.states == "any" else MIXTURES[stage]
    if stage == "click":
        mixture = replace(mixture, cheap=args.cheap)
    if stage in ("click", "state") and args.hard:
        mixture = replace(mixture, easy=(1 - args.hard) / 3, hard=args.hard)
    rollout = make_rollout(args) if mixture.trajectory else None
    return ClickExamples(mixture, rollout, side, grid, args.stop_iou, args.seed)


def make_rollout(args: ClickArgs) -> Rollout:
    """Whoever plays the trajectories of `args`: the annotator, or the policy that is to learn from its mistakes."""
    agent = agents.make(args.policy or f"mllm:{args.base}", CODEC) if args.states == "policy" else None
    return Rollout(tools.make(args.tool), agent, args.steps, args.stop_iou, args.stop_gain)


def check(args: ClickArgs) -> None:
    """Raise RunError where settings cannot be trained with."""
    config.check(args)
    if not any(getattr(args, f"{stage}_steps") for stage in STAGES):
        raise RunError("all stages have 0 steps; give at least one of them some")
    if args.states == "policy" and not (args.policy or args.base):
        raise RunError("states is 'policy', and there is neither a policy nor a base; give --policy or --base")
    if args.tokens and args.base is None:
        raise RunError("tokens needs a base, whose tokens are refined; give --base, or a larger image_size")
    patch = VisionTowerConfig().patch_size
    if args.image_size % patch:
        raise RunError(f"image_size is {args.image_size}; expected a multiple of {patch}")
    if args.width % (2 * args.heads):
        raise RunError(f"width is {args.width}; expected an even number for each of the {args.heads} heads")
    if args.probe > len(Synthetic("val")):
        raise RunError(f"probe is {args.probe}; synthetic:val has no more than {len(Synthetic('val'))} tasks")
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise RunError(f"device {args.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    with setting_up(f"tool {args.tool!r}" + f" and policy {args.policy or args.base!r}" * (args.states == "policy")):
        make_rollout(args)


def run(args: ClickArgs) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    check(args)
    return trainer.run(ClickTrainer, args, RESUMABLE, "sft")
