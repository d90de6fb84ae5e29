"""A calibration: ask about every picture, find the frame of the numbers, and write the codec with its evidence."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import yaml

import agents
from agents.base import Agent
from agents.prompted import PromptedAgent
from experiments.calibrate import fit
from experiments.calibrate.config import RESUMABLE, Args
from experiments.calibrate.probes import Probe, draw, numbers_in
from experiments.common import cli, served
from experiments.common.config import RunError, plain
from experiments.common.run_folder import RunFolder, manifest, write_atomic
from segenv import codec as codecs
from segenv.codec.file import CodecFile
from segenv.mdp import Observation
from segenv.seeds import seed_of

PROBES, CODEC = "probes.jsonl", "codec.yaml"
READ = 0.6  # the part of the replies that must state a place


@dataclass(frozen=True)
class Result:
    """Result of a calibration: the frame, or none; why; all frames with their errors; and the replies."""

    frame: fit.FittedFrame | None
    why: str
    frames: list[fit.FittedFrame]
    records: list[dict[str, Any]]


def sizes_of(texts: tuple[str, ...]) -> list[tuple[int, int]]:
    """Widths and heights of `640x400` and the like. Raises RunError for others, and for fewer than three shapes that
    are not square."""
    sizes = []
    for text in texts:
        sides = text.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 32 <= int(side) <= 8192 for side in sides):
            raise RunError(f"--sizes has {text!r}; expected WIDTHxHEIGHT in pixels, from 32 to 8192, such as 640x400")
        sizes.append((int(sides[0]), int(sides[1])))
    if len([size for size in sizes if size[0] != size[1]]) < 3:
        raise RunError("--sizes names fewer than three that are not square; frames look alike on the others")
    return sizes


def run(args: Args) -> Result:
    """Ask the agent about the pictures, and find the frame of its numbers; results lie in the run folder."""
    sizes = sizes_of(tuple(args.sizes))
    with cli.setting_up(f"agent {args.agent!r}, codec {args.codec!r}"):
        agent = agents.make(args.agent, args.codec, **served.server_options(args.agent, args.server, args.budget))
    if agent.privileged:
        raise RunError(f"agent {args.agent!r} reads the target, and no picture; calibrate agents that look at images")
    with cli.open_run(args, RESUMABLE) as folder:
        folder.keep_manifest(manifest(args.seed, {"agent": agent.settings}, {}))
        records = ask(agent, [draw(size, k, args.seed) for size in sizes for k in range(args.each)], args, folder)
        result = evaluate(records)
        folder.write_json("calibration.json", summary(result))
        if result.frame is not None:
            write_atomic(folder / CODEC, codec_text(result.frame, agent, result.records))
        folder.finish("calibrate")
    return result


def ask(agent: Agent, probes: list[Probe], args: Args, folder: RunFolder) -> list[dict[str, Any]]:
    """The agent's reply to each picture, with what was sent; those that are on the disk are not asked for again: a
    model's replies are kept in replies.jsonl as they arrive."""
    have = {record["task"]: record for record in folder.records(PROBES)}
    missing = [probe for probe in probes if probe.task.id not in have]
    progress = cli.progress(len(probes), "reply", done=len(have))
    with folder.appending(PROBES) as file, served.kept_replies(folder, agent), progress as bar:
        for k in range(0, len(missing), args.batch_size):
            some = missing[k : k + args.batch_size]
            seen = [observation(probe) for probe in some]
            texts = agent.act(seen, [seed_of(args.seed, probe.task.id) for probe in some])
            for probe, item, text in zip(some, seen, texts, strict=True):
                task = probe.task
                record: dict[str, Any] = {
                    "task": task.id,
                    "size": [task.width, task.height],
                    "sent": sent_size(agent, item),
                }
                record |= {"target": list(probe.middle), "reply": text, "numbers": numbers_in(text)}
                have[task.id] = record
                file.add(record)
            bar.update(len(some))
    return [have[probe.task.id] for probe in probes]


def observation(probe: Probe) -> Observation:
    """The agent's observation: the picture with an empty mask."""
    task = probe.task
    empty = np.zeros(task.target.shape, bool)
    return Observation(task.id, task.image, empty, task.instruction, step=0, steps_left=1)


def sent_size(agent: Agent, item: Observation) -> list[int]:
    """Width and height of what the model sees, where the agent tells, else of the picture that it is sent."""
    if isinstance(agent, PromptedAgent):
        with suppress(AttributeError, ValueError):  # a processor that does not tell
            return list(agent.backend.seen_size(item.width, item.height))
    picture = agent.picture(item) if isinstance(agent, PromptedAgent) else item.image
    return [picture.shape[1], picture.shape[0]]


def evaluate(records: list[dict[str, Any]]) -> Result:
    """Find the frame of the numbers in the replies; none where too few replies state a place."""
    read = [record for record in records if record["numbers"] is not None]
    if len(read) < READ * len(records):
        why = f"{len(read)} of {len(records)} replies state a place; see {PROBES}, and try another --codec"
        return Result(None, why, [], records)
    columns = (np.array([record[name] for record in read], float) for name in ("numbers", "target", "size", "sent"))
    frame, frames, why = fit.choose(fit.Probes(*columns))
    return Result(frame, why, frames, records)


def codec_text(frame: fit.FittedFrame, agent: Agent, records: list[dict[str, Any]]) -> str:
    """The codec of a frame for a file: written and prompted as the agent's own, with as many digits as its numbers."""
    name = getattr(agent.codec, "writes", "")
    digits = max(len(repr(number).partition(".")[2].rstrip("0")) for one in records for number in one["numbers"] or ())
    found = CodecFile(
        writes=name if name in codecs.CODECS else "grid1000-xy",
        unit=frame.unit,
        order=frame.order,
        scale=(round(frame.scale[0], 4), round(frame.scale[1], 4)),
        offset=(round(frame.offset[0], 4), round(frame.offset[1], 4)),
        cap=frame.cap,
        decimals=min(digits, 4),
    )
    return f"# {fit.describe(frame)}: {frame.error:.1%} of the image off\n" + yaml.safe_dump(
        plain(found), sort_keys=False
    )


def summary(result: Result) -> dict[str, Any]:
    """The result for a file: the frame, why, the errors of all frames."""
    frames = [{**asdict(frame), "is": fit.describe(frame)} for frame in result.frames]
    read = sum(record["numbers"] is not None for record in result.records)
    return {
        "frame": asdict(result.frame) if result.frame else None,
        "sure": result.frame is not None,
        "why": result.why,
        "replies": len(result.records),
        "read": read,
        "frames": frames,
    }
