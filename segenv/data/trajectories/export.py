"""Recorded trajectories as conversations to train on: the picture of each state, the prompt, and the reply to learn.

Trajectories hold no pictures: each state is rendered from the image and the mask when it is asked for. `export` writes
them as PNG files beside the conversations, for trainers that need files, in one of two layouts:

    trl              metadata.jsonl, images/     `datasets.load_dataset(OUT)` has columns "messages" and "images"
    llama-factory    dataset_info.json, segenv.jsonl (sharegpt), images/      `dataset_dir: OUT` and `dataset: segenv`
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from segenv import render
from segenv.codec.base import Codec
from segenv.data.base import read_json
from segenv.data.trajectories.record import STOP_IOU, Trajectory
from segenv.files import json_hash, replacing, write_atomic
from segenv.types import Task

NAME = "segenv"  # the data's name in LLaMA-Factory
FORMATS = {"trl": "metadata.jsonl", "llama-factory": f"{NAME}.jsonl"}
PLACEHOLDERS = ("<image>", "<video>", "<audio>")  # trainers put media in their place


@dataclass(frozen=True, eq=False)
class Conversation:
    """A question about a state, and the reply to learn. `mask` is bool [H, W]; `key` names the picture: two
    conversations with the same one show the same."""

    task: Task
    mask: np.ndarray
    prompt: str
    reply: str
    key: str

    @property
    def picture(self) -> np.ndarray:
        """Picture that the model sees: the mask in green over the image, uint8 [H, W, 3]."""
        return render.overlay(self.task.image, self.mask)


def conversations(
    tasks: Iterable[Task], codec: Codec, prompt: Literal["codec", "instruction"] = "codec", stop_iou: float = STOP_IOU
) -> Iterator[Conversation]:
    """The lessons of the trajectories in `tasks` (of `trajectories:FILE`), with nothing rendered yet.

    The reply states the IoU of the mask that it is about, then the click, or a stop from `stop_iou` on. `prompt` is
    "codec" (the codec's whole prompt) or "instruction" (the instruction alone), as for the agent `mllm`.
    """
    for task in tasks:
        recorded: Trajectory = task.meta["trajectory"]
        asked = task.instruction if prompt == "instruction" else codec.prompt(task)
        for placeholder in PLACEHOLDERS:
            asked = asked.replace(placeholder, " ")
        for lesson in recorded.lessons(stop_iou):
            reply = codec.format(lesson.action, task, iou=lesson.iou)
            yield Conversation(
                task, recorded.decode(lesson.mask), asked, reply, json_hash([task.image_hash, lesson.mask])
            )


def export(found: Iterable[Conversation], out: Path | str, layout: str = "trl") -> int:
    """Write conversations into the folder `out` as `layout` says (a key of `FORMATS`), and return how many.

    A picture is named by its content and written once; those that are there already, from an export that was ended for
    example, are kept. The list of conversations appears when it is complete.
    """
    if layout not in FORMATS:
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(FORMATS)}")
    out, count = Path(out), 0
    with replacing(out / FORMATS[layout], "ascii") as file:
        for conversation in found:
            name = f"images/{conversation.key}.png"
            if not (out / name).exists():
                write_png(out / name, conversation.picture)
            file.write(json.dumps(_record(conversation, name, layout)) + "\n")
            count += 1
    if layout == "llama-factory":
        _register(out / "dataset_info.json")
    return count


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image, uint8 [H, W, 3] in RGB, as a PNG that is there whole or not at all."""
    content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    write_atomic(path, content, sync=False)


def _record(conversation: Conversation, picture: str, layout: str) -> dict[str, Any]:
    """One line of the list; pictures are named from the list's folder."""
    prompt, reply = conversation.prompt, conversation.reply
    if layout == "trl":
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        # `datasets` reads *_file_names of a metadata.jsonl as images, wherever the folder lies
        return {"messages": messages, "images_file_names": [picture]}
    turns = [{"from": "human", "value": f"<image>{prompt}"}, {"from": "gpt", "value": reply}]
    return {"conversations": turns, "images": [picture]}


def _register(path: Path) -> None:
    """Name the conversations in LLaMA-Factory's list of data, beside what it names already."""
    listed = read_json(path, "LLaMA-Factory's list of data by name") if path.exists() else {}
    columns = {"messages": "conversations", "images": "images"}
    listed[NAME] = {"file_name": FORMATS["llama-factory"], "formatting": "sharegpt", "columns": columns}
    write_atomic(path, json.dumps(listed, indent=2) + "\n")
