"""Agents that prompt a model: it sees the mask painted over the image, and writes an action."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np

from agents.backends.base import SENT_AT, Backend, Reply
from agents.base import Agent
from agents.replies import Record, key_of, question_of, record_of, recorded
from segenv import render
from segenv.codec.base import SHORT, Codec
from segenv.codec.frames import padded_square
from segenv.files import content_hash
from segenv.mdp import Observation
from segenv.ranges import CountOrNone, require
from segenv.types import AgentError, BadItem, Task

PROMPTS = ("codec", "short", "instruction")
MAX_NEW_TOKENS = 64  # of a reply, unless a checkpoint or the caller gives another number
POLYGON_TOKENS = 512  # of a reply of a polygon codec: room for some 40 vertices
EXAMPLE = Observation("", np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), bool), "{instruction}", 0, 1)


class PromptedAgent(Agent):
    """Prompts the model of `backend` with `picture` and `prompt`, and returns its replies. Subclasses give `spec`.

    `prompt` is "codec" (the codec's whole prompt), "short" (one sentence, as SegAgent's), "instruction" (the task's
    instruction alone), or a file with a prompt of one's own, in which `{instruction}` stands for the instruction. It
    ends with the agent's last `history` clicks. `act` samples at `temperature`, where 0 is
    greedy; `propose` samples at `proposal_temperature` (0.5: on 200 tasks of `synthetic:test` it served a search of the
    embedded policy as well as 0.8).
    """

    asks = True

    def __init__(
        self,
        codec: Codec,
        backend: Backend,
        prompt: str = "codec",
        temperature: float = 0.0,
        proposal_temperature: float = 0.5,
        history: int = 0,
    ) -> None:
        super().__init__(codec)
        require(CountOrNone, history=history)
        self.history = history
        self.backend = backend
        self.in_flight = backend.in_flight
        self.prompt_style = prompt
        self.template = None if prompt in ("codec", "instruction") else self._read(prompt)
        backend.squared = codec.points.extent is padded_square
        fixed, size = SENT_AT.get(getattr(codec, "writes", "")), backend.image_size
        if fixed is not None and size is not None and tuple(np.atleast_1d(size)) != fixed:
            raise ValueError(
                f"agent {self.spec!r}: codec {codec.name!r} counts in pixels of images that are sent at "
                f"{fixed[0]}x{fixed[1]}; leave out #SIZE"
            )
        if isinstance(codec, Codec) and codec.points.resized:
            backend.seen_size(448, 448)  # a processor that does not tell is refused here
            self.codec = codec.seen_at(backend.seen_size)
        self.temperature = temperature
        self.proposal_temperature = proposal_temperature

    def _read(self, file: str) -> str:
        """The prompt in a file, or the short one."""
        if file == "short":
            return SHORT
        if not Path(file).is_file():
            expected = f"one of {', '.join(PROMPTS)}, or a file with a prompt"
            raise ValueError(f"agent {self.spec!r}: prompt is {file!r}; expected {expected}")
        template = Path(file).read_text(encoding="utf-8")
        if "{instruction}" not in template:
            raise ValueError(f"prompt {file} names no object; put {{instruction}} where the task's instruction belongs")
        return template

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes the agent's texts; `prompt_text` is the prompt of an image of 640 x 480 pixels."""
        text = self.prompt(EXAMPLE)
        return {
            **super().settings,
            "prompt": self.prompt_style,
            "prompt_text": text,
            "prompt_hash": content_hash(text.encode()),
            "temperature": self.temperature,
            "proposal_temperature": self.proposal_temperature,
            **({"history": self.history} if self.history else {}),
            **self.backend.settings,
        }

    def check(self, task: Task) -> None:
        """Raise `BadItem` where the model takes no image of the task's size."""
        try:
            self.backend.check_size(task.width, task.height)
        except (ValueError, ArithmeticError) as error:
            raise BadItem(
                f"item {task.id!r}: the processor of agent {self.spec!r} takes no image of "
                f"{task.width} x {task.height} pixels, width x height ({error}); have images sent at a size that it "
                "takes, with #HEIGHTxWIDTH behind the agent's name, as in mllm:PATH#448x448"
            ) from error

    def picture(self, observation: Observation) -> np.ndarray:
        """The picture for the model: the mask in green over the image, at the size that is sent; uint8 [h, w, 3]."""
        return self.backend.sent(render.overlay(observation.image, observation.mask))

    def prompt(self, observation: Observation) -> str:
        """The prompt for the model: the codec's, the instruction alone, or that of the file."""
        clicks = observation.clicks[-self.history :] if self.history else ()
        told = "\nYour last actions: " + "; ".join(self.codec.format(one, observation) for one in clicks)
        return self._prompt(observation) + (told if clicks else "")

    def _prompt(self, observation: Observation) -> str:
        if self.template is None:
            return observation.instruction if self.prompt_style == "instruction" else self.codec.prompt(observation)
        text = self.template.replace("{instruction}", observation.instruction or "the main object")
        error = observation.error
        return f"{text}\nYour last reply was not carried out: {error}" if error else text

    def ask(
        self,
        pictures: Sequence[np.ndarray],
        prompts: Sequence[str],
        seeds: Sequence[int],
        temperature: float,
        items: Sequence[Record],
    ) -> list[Reply]:
        """Replies to pictures and prompts, from the log where it has them; `items` say what each is about."""
        if self.backend.takes_one:
            each = zip(pictures, prompts, seeds, items, strict=True)
            futures = [self.submit_question(shown, text, seed, temperature, item) for shown, text, seed, item in each]
            wait(futures)  # those that arrive are kept, though another fails
            errors = {k: error for k, one in enumerate(futures) if (error := one.exception()) is not None}
            if first := next((error for error in errors.values() if not isinstance(error, AgentError)), None):
                raise first
            if errors:
                failed = AgentError(str(next(iter(errors.values()))))
                failed.of = {k: error for k, error in errors.items() if isinstance(error, AgentError)}
                raise failed
            self.backend.replies = [future.result() for future in futures]
            return self.backend.replies
        told = None if self.backend.own_sampling else temperature
        questions = [question_of(*one, told) for one in zip(pictures, prompts, seeds, strict=True)] if self.log else []
        if not questions:
            return self.backend.ask(pictures, prompts, seeds, temperature)

        def some(missing: Sequence[int]) -> list[Reply]:
            chosen = [pictures[k] for k in missing], [prompts[k] for k in missing], [seeds[k] for k in missing]
            return self.backend.ask(*chosen, temperature)

        self.backend.replies = recorded(self.log, questions, items, some)
        return self.backend.replies

    def answer(self, items: Sequence, seeds: Sequence[int], samples: Sequence[int] | None = None) -> list[Reply]:
        """As `act`, with what is known of each reply."""
        replies: list[Reply] = []

        def texts(observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
            replies.extend(self._replies(observations, seeds, self.temperature, samples))
            return [reply.text for reply in replies]

        self._timed(texts, items, seeds)
        return replies

    def submit(self, observation: Observation, seed: int, sample: int = 0) -> Future[Reply]:
        """Ask about one observation without waiting for the reply."""
        return self.submit_question(
            self.picture(observation), self.prompt(observation), seed, self.temperature, _item(observation, sample)
        )

    def submit_question(
        self, picture: np.ndarray, prompt: str, seed: int, temperature: float, item: Record
    ) -> Future[Reply]:
        """Ask about one picture without waiting for the reply, which is known at once where the log has it. Of equal
        questions under way one is asked, for all of them."""
        log = self.log
        if log is None:
            return self.backend.submit(picture, prompt, seed, temperature, lambda reply: None)
        question = question_of(picture, prompt, seed, None if self.backend.own_sampling else temperature)

        def keep(reply: Reply) -> None:
            log.add(record_of(question, reply, **item))

        return log.find_or_submit(
            key_of(question), lambda: self.backend.submit(picture, prompt, seed, temperature, keep)
        )

    def _act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        return [reply.text for reply in self._replies(observations, seeds, self.temperature)]

    def _sample(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[str]:
        return [reply.text for reply in self._replies(observations, seeds, self.proposal_temperature)]

    def _replies(
        self,
        observations: Sequence[Observation],
        seeds: Sequence[int],
        temperature: float,
        samples: Sequence[int] | None = None,
    ) -> list[Reply]:
        pictures, prompts = map(self.picture, observations), map(self.prompt, observations)
        items = [_item(one, samples[k] if samples else None) for k, one in enumerate(observations)]
        return self.ask(list(pictures), list(prompts), seeds, temperature, items)


def size_of(agent: str, size: str) -> int | tuple[int, int] | None:
    """The size that images are sent at, of what stands behind # in the spec `agent`: `448` is the longest side,
    `336x448` height and width, and nothing is None."""
    sides = [int(side) for side in size.split("x") if side.isdecimal() and int(side)]
    if size and (not 1 <= len(sides) <= 2 or len(sides) != size.count("x") + 1):
        raise ValueError(f"agent {agent!r}: {size!r} is no size of images; expected pixels such as 448 or 336x448")
    return None if not sides else sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _item(observation: Observation, sample: int | None) -> Record:
    """The item that a reply is about."""
    size = [observation.width, observation.height]
    return {"task": observation.task_id, "step": observation.step, "sample": sample, "image": size}
