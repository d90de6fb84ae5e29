"""Agents of your own, named `MODULE:CLASS` or `MODULE:CLASS#ANYTHING`: a subclass of `Agent` in a module that Python
finds."""

import importlib.util
import inspect
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.backends.base import Reply
from agents.base import Agent
from agents.replies import question_of, recorded
from segenv import codec as codecs
from segenv import render
from segenv.codec.base import Codec
from segenv.files import content_hash
from segenv.types import AgentError, SegenvError


def own_class(spec: str) -> type[Agent] | None:
    """The class that a spec names; None where it names an agent of ours, or nothing. Raises ValueError where the module
    cannot be imported, or holds no such agent."""
    module, _, name = spec.partition(":")
    name = name.partition("#")[0]
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    if module in ("annotator", "random", "mllm", "vllm", "openai", "sb3"):
        return None
    try:
        if importlib.util.find_spec(module) is None:
            return None
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever stands in the module
        raise ValueError(f"agent {spec!r}: {module} cannot be imported ({type(error).__name__}: {error})") from error
    if not inspect.isclass(found) or not issubclass(found, Agent):
        raise ValueError(f"agent {spec!r}: {module} has no subclass {name} of agents.Agent")
    return found


def own_agent(kind: type[Agent], spec: str, codec: Codec | None, seed: int, options: dict[str, Any]) -> Agent:
    """Make an agent of the class `kind`, with what its `__init__` takes of `codec`, `seed` and `options`."""
    accepted = inspect.signature(kind).parameters
    anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values())
    unknown = [name for name, value in options.items() if value is not None and name not in accepted]
    if unknown and not anything:
        raise TypeError(f"agent {spec!r}: its __init__ takes no {', '.join(unknown)}; leave out the flag")
    given = {"codec": codec, "seed": seed, **options}
    if codec is None and "codec" in accepted and accepted["codec"].default is inspect.Parameter.empty:
        given["codec"] = codecs.make("pixels")
    given = {key: value for key, value in given.items() if value is not None and (key in accepted or anything)}
    inner = kind(**given)
    if not inner.asks:
        return OwnAgent(inner, spec)
    inner.spec = spec  # it prompts a backend, and keeps its replies itself
    return inner


class OwnAgent(Agent):
    """An agent of your own, with its replies in the log, each as it arrives, and its errors as `AgentError`."""

    asks = True

    def __init__(self, inner: Agent, spec: str) -> None:
        super().__init__(inner.codec)
        self.inner, self.spec, self.privileged = inner, spec, inner.privileged
        self.asks = not inner.privileged
        self.check = inner.check  # type: ignore[method-assign]
        file = inspect.getsourcefile(type(inner))
        self.source = None if file is None else content_hash(Path(file).read_bytes())

    @property
    def settings(self) -> dict[str, Any]:
        """Every choice that changes the agent's texts; `source` is a hash of its module's file."""
        return {**self.inner.settings, "agent": self.spec, "source": self.source}

    def answer(self, items: Sequence, seeds: Sequence[int], samples: Sequence[int] | None = None) -> list[Reply]:
        """As `act`, with replies from the log where it has them."""
        return self._replies(self.inner._act, items, seeds, "act", samples)

    def _act(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        return [reply.text for reply in self._replies(self.inner._act, items, seeds, "act")]

    def _sample(self, items: Sequence, seeds: Sequence[int]) -> list[str]:
        return [reply.text for reply in self._replies(self.inner._sample, items, seeds, "propose")]

    def _replies(
        self,
        answer: Callable[[Sequence, Sequence[int]], list[str]],
        items: Sequence,
        seeds: Sequence[int],
        kind: str,
        samples: Sequence[int] | None = None,
    ) -> list[Reply]:
        """Replies to observations; one at a time where the class answers so."""
        if self.privileged:
            return [Reply(text) for text in self._guarded(answer, items, seeds)]
        alone = type(self.inner)._act is Agent._act
        groups = [[k] for k in range(len(items))] if alone else [list(range(len(items)))]
        replies: list[Reply] = []
        for group in groups:
            own, own_seeds = [items[k] for k in group], [seeds[k] for k in group]
            told = [
                {
                    **{"task": one.task_id, "step": one.step, "sample": samples[k] if samples else None},
                    "image": [one.width, one.height],
                }
                for k, one in zip(group, own, strict=True)
            ]
            # its settings decide what it does with a seed, so the seed is a part of every question
            questions = [
                question_of(_seen(one), f"{kind}\n{one.instruction}\n{one.error}", seed, None)
                for one, seed in zip(own, own_seeds, strict=True)
            ]

            def ask(missing: Sequence[int], own: list = own, own_seeds: list[int] = own_seeds) -> list[Reply]:
                texts = self._guarded(answer, [own[k] for k in missing], [own_seeds[k] for k in missing])
                return [Reply(text) for text in texts]

            replies += recorded(self.log, questions, told, ask)
        return replies

    def _guarded(
        self, answer: Callable[[Sequence, Sequence[int]], list[str]], items: Sequence, seeds: Sequence[int]
    ) -> list[str]:
        """The texts of the agent; its errors, and what is no text, as `AgentError`."""
        try:
            texts = list(answer(items, seeds))
        except SegenvError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise AgentError(
                f"agent {self.spec!r} raised {type(error).__name__}: {error} ({Path(place.filename).name}, line "
                f"{place.lineno})"
            ) from error
        if len(texts) != len(items) or not all(isinstance(text, str) for text in texts):
            raise AgentError(f"agent {self.spec!r} gave no text for each of {len(items)} observations")
        return texts


def _seen(observation: Any) -> np.ndarray:
    return render.overlay(observation.image, observation.mask)
