"""Teach a tiny MLLM that clicks to write polygons: supervised fine-tuning on polygons of procedural scenes.

    python -m experiments.sft --mode polygon --out runs/polygon        # then --mode polygon --resume runs/polygon

starts from the embedded click policy, which knows where things are, gives its tokenizer one token for each frequent run
of brackets, and trains on fresh scenes of `synthetic:train`: polygons by name, by box or by point, boxes by name, and
empty lists for what is not there. Polygons are simplified by a ratio of their length, as SimpleSeg's. Departures: they
have at most `--vertices`, which may stand on `--rows`; and beside the loss of the reply there are dense ones: on the
image's tokens, where the object is, and which vertices; and on attention, which of these tokens to read for the next
vertex. `--text-layers` gives the base more layers, which read those tokens.
"""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from agents import tiny
from agents.training.click_examples import Mixture
from agents.training.polygon_examples import TOKENS, PolygonExamples
from experiments.common import config, trainer
from experiments.common.config import RunError
from experiments.evaluate.answers.polygon_metrics import record
from experiments.sft.config import POLYGON_STAGES, RESUMABLE, PolygonArgs
from experiments.sft.trainer import EvalState, LazyExamples, TinyTrainer, tiny_checkpoint
from segenv import queries
from segenv.codec import polygons
from segenv.data.synthetic.scenes import Synthetic

VERTEX_TOKENS = 8  # of a vertex in `rings`
PROMPT_TOKENS = 64  # beside the image's, at most


class PolygonTrainer(TinyTrainer):
    """Trains the model of a checkpoint in one stage, `draw`."""

    stages = POLYGON_STAGES

    def fresh(self) -> tuple[Any, Any]:
        """The checkpoint's model, with tokens for polygons, and its processor."""
        args = self.args
        sizes = args.tokens, args.image_size, args.text_layers, args.rope_theta
        model, processor, side = tiny_checkpoint(args.base, *sizes)
        new = [token for token in TOKENS if token not in processor.tokenizer.get_vocab()]
        tiny.extend(model, processor, new)
        longest = VERTEX_TOKENS * (self.args.vertices + 8)  # some more than it was taught
        model.config.segenv = {
            "codec": self.args.codec,
            "prompt": "instruction",
            "image_size": [side, side],
            "max_new_tokens": longest,
        }
        text = model.config.text_config
        whole = model.config.image_seq_length + PROMPT_TOKENS + longest
        text.max_position_embeddings = max(text.max_position_embeddings, whole)
        return model, processor

    @cached_property
    def held_out(self) -> list[EvalState]:
        """The last `probe` tasks of `synthetic:val`."""
        data, codec = Synthetic("val"), polygons.make(self.args.codec)
        tasks = (data[len(data) - 1 - k] for k in range(self.args.probe))
        asked = (queries.query(task, codec, style="instruction") for task in tasks)
        return [EvalState(one.task, one.picture, one.prompt, np.zeros(one.task.target.shape, bool)) for one in asked]

    def indices(self, step: int) -> list[int]:
        """The examples of a step."""
        return list(range(step * self.args.lessons, (step + 1) * self.args.lessons))

    def open_stage(self, stage: str) -> Dataset:
        """The examples of the only stage."""
        args, side = self.args, self.model.config.segenv["image_size"][0]
        mixture, grid = Mixture(first=args.questions), side // self.processor.patch_size
        polygon = (args.codec, args.vertices, args.ratio, args.order, args.rows)
        return LazyExamples(partial(PolygonExamples, mixture, *polygon, image_size=side, grid=grid, seed=args.seed + 2))

    def reply_metrics(self, state: EvalState, text: str) -> dict[str, float]:
        """IoU of a reply, also by difficulty, and whether it can be parsed."""
        reply = record(state.task, polygons.make(self.args.codec), text, 0)
        difficulty = state.task.meta["difficulty"]
        return {"giou": reply.iou, f"giou_{difficulty}": reply.iou, "valid": float(reply.error is None)}


def run(args: PolygonArgs) -> Path:
    """Train in the folder of `args`, and write the model into it: the folder that is returned."""
    check(args)
    return trainer.run(PolygonTrainer, args, RESUMABLE, "sft")


def check(args: PolygonArgs) -> None:
    """Raise RunError where settings cannot be trained with."""
    config.check(args)
    if args.codec not in polygons.DIALECTS:
        raise RunError(f"codec {args.codec!r} writes no polygons; expected one of {', '.join(polygons.DIALECTS)}")
