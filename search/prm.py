"""The process reward model (PRM): the policy's own model predicts the mask's IoU (SegAgent, arXiv 2503.08625, §4).

    Current IOU: 37                      greedy: the number of the greedy reply         mean: Σ_n p(n) · n, n = 0 .. 100
    Positive point: (175, 483)

`IouReader` reads a prediction without generating a reply. Training examples are in `search.labelled_masks`, metrics in
`segenv.statistics`; `python -m experiments.prm` trains.
"""

from __future__ import annotations

import os.path
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from agents.backends.transformers import chat, encode
from agents.mllm import MllmAgent
from segenv.codec.grammars import IOU
from segenv.mdp import Observation

Tokens = tuple[int, ...]


class NumberTokens:
    """Tokens in which a checkpoint writes `Current IOU: n` for n = 0 .. 100 at the beginning of its reply: the text
    `begun` and its tokens `prefix`, which all numbers share, and a tree of the tokens that follow. `value` is the
    number that ends at a node (its tokens so far), and `following` holds the tokens that may come after a node."""

    def __init__(self, processor: Any) -> None:
        tokenize = partial(processor.tokenizer, add_special_tokens=False)
        texts = [IOU.format(number) for number in range(101)]
        prompt, reply = chat(processor, "mask", texts[0])
        lead = reply[: reply.index(texts[0])]  # what a chat template puts before every reply
        rows = tokenize([prompt + lead + text for text in texts])["input_ids"]
        shared = len(os.path.commonprefix(rows))
        self.value: dict[Tokens, int] = {tuple(row[shared:]): number for number, row in enumerate(rows)}
        begun = lead + IOU.partition("{")[0]
        same = [text for text in (begun, begun.rstrip()) if tokenize(prompt + text)["input_ids"] == rows[0][:shared]]
        if len(self.value) < len(rows) or not same:
            raise ValueError(
                f"this tokenizer writes {texts[0]!r} .. {texts[-1]!r} without a beginning that all share, so no IoU "
                "can be read from its model"
            )
        self.begun = same[0]
        self.prefix = rows[0][len(os.path.commonprefix([tokenize(prompt)["input_ids"], rows[0]])) : shared]
        self.following: dict[Tokens, list[int]] = {}
        for node in self.value:
            for depth, token in enumerate(node):
                after = self.following.setdefault(node[:depth], [])
                after.extend([token] * (token not in after))
        depths = sorted({len(node) for node in self.following})
        self.levels = [[node for node in self.following if len(node) == depth] for depth in depths]


class IouReader:
    """Reads the IoU that a language model would state of a mask.

    The reply is known to begin with `Current IOU: `, so prompt and beginning are read in one pass, and no more than the
    tokens of the number follow. Where the model's own greedy reply states a number, it is this one: each token is the
    likeliest among those that continue a number. `tokens` counts the tokens of the last call's numbers, [N].
    """

    def __init__(self, agent: MllmAgent) -> None:
        self.agent = agent
        self.numbers = NumberTokens(agent.backend.processor)
        self.max_tokens = max(map(len, self.numbers.value))
        self.tokens: list[int] = []

    def greedy(self, observations: Sequence[Observation]) -> np.ndarray:
        """The IoU of the greedy reply on each mask, float64 [N] in 0..1."""
        return np.concatenate([np.zeros(0), *self._read(observations, self._greedy)]) / 100

    def distribution(self, observations: Sequence[Observation]) -> np.ndarray:
        """The probability of each number 0, 1, .. 100 on each mask, float64 [N, 101]."""
        return self.both(observations)[1]

    def both(self, observations: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray]:
        """`greedy` and `distribution`, [N] and [N, 101], at the cost of the latter."""
        batches = self._read(observations, self._greedy_and_distribution)
        greedy, shares = zip(*batches, strict=True) if batches else ((), ())
        return np.concatenate([np.zeros(0), *greedy]) / 100, np.concatenate([np.zeros((0, 101)), *shares])

    def _read(self, observations: Sequence[Observation], read: Callable[[_Pass], Any]) -> list[Any]:
        """Call `read` on each batch."""
        backend, began = self.agent.backend, time.perf_counter()
        batches, self.tokens = [], []
        with torch.inference_mode():
            for start in range(0, len(observations), backend.batch_size):
                batches.append(read(self._begin(observations[start : start + backend.batch_size])))
        backend.seconds += time.perf_counter() - began
        backend.tokens["reply"] += sum(self.tokens)
        return batches

    def _begin(self, observations: Sequence[Observation]) -> _Pass:
        """Read prompts and the beginning of the reply."""
        agent, backend, prefix, begun = self.agent, self.agent.backend, self.numbers.prefix, self.numbers.begun
        chats = [chat(backend.processor, agent.prompt(observation))[0] + begun for observation in observations]
        inputs = encode(backend.processor, chats, [agent.picture(observation) for observation in observations])
        if (inputs["input_ids"][:, -len(prefix) :] != torch.tensor(prefix)).any():
            raise ValueError(
                f"agent {agent.spec!r}: the tokens of {begun!r} are others after its prompt than alone, so no IoU can "
                "be read; use a chat template that ends the prompt with a special token"
            )
        backend.tokens["prompt"] += int(inputs["attention_mask"].sum())
        return _Pass(backend.model, inputs.to(backend.device, backend.model.dtype))

    def _next(self, node: Tokens, logits: torch.Tensor) -> Tokens | None:
        """The node that the likeliest token leads to, or None where the number ends; `logits` are [vocabulary]."""
        after, top = self.numbers.following[node], int(logits.argmax())
        if top not in after:
            if node in self.numbers.value:
                return None
            top = after[int(logits[after].argmax())]
        return (*node, top)

    def _greedy(self, reading: _Pass) -> np.ndarray:
        """The number of each greedy reply, [rows]."""
        numbers, logits = self.numbers, reading.logits[:, 0]
        nodes: list[Tokens] = [()] * len(logits)
        unfinished = list(range(len(nodes)))
        while True:
            longer = {i: node for i in unfinished if (node := self._next(nodes[i], logits[i])) is not None}
            for i, node in longer.items():
                nodes[i] = node
            unfinished = [i for i, node in longer.items() if node in numbers.following]
            if not unfinished:
                self.tokens += map(len, nodes)
                return np.array([numbers.value[node] for node in nodes], np.float64)
            logits = reading.extend([0], torch.tensor([[node[-1]] for node in nodes]))[:, 0]

    def _greedy_and_distribution(self, reading: _Pass) -> tuple[np.ndarray, np.ndarray]:
        """The number of each greedy reply, [rows], and the probability of each number, [rows, 101]."""
        numbers, logits, rows = self.numbers, reading.logits, len(reading.logits)
        before: list[Tokens] = [()]
        reached: dict[Tokens, torch.Tensor] = {(): torch.ones(rows, dtype=torch.float64, device=logits.device)}
        greedy: list[Tokens] = [()] * rows
        for depth, nodes in enumerate(numbers.levels):
            if depth:
                tokens = torch.tensor([[node[-1] for node in nodes]]).expand(rows, -1)
                logits = reading.extend([before.index(node[:-1]) for node in nodes], tokens)
            for k, node in enumerate(nodes):
                after, arrived = numbers.following[node], reached[node]
                chances = logits[:, k].double().softmax(-1)[:, after]
                if node in numbers.value:  # what is no digit ends the number
                    reached[node] = arrived * (1 - chances.sum(1)).clamp(min=0)
                else:
                    chances = chances / chances.sum(1, keepdim=True)
                for j, token in enumerate(after):
                    reached[node + (token,)] = arrived * chances[:, j]
                for i in (i for i, reached_node in enumerate(greedy) if reached_node == node):
                    greedy[i] = self._next(node, logits[i, k]) or node
            before = nodes
        self.tokens += [sum(map(len, numbers.levels[1:]))] * rows
        shares = torch.stack([reached[node] for node in numbers.value], 1).cpu().numpy()
        return np.array([numbers.value[node] for node in greedy], np.float64), shares


class _Pass:
    """A model's pass over the tokens so far: its cache, and `logits` [rows, branches, vocabulary] of the next ones."""

    def __init__(self, model: Any, inputs: Any) -> None:
        self.model, self.mask = model, inputs["attention_mask"]
        outputs = model(**inputs, use_cache=True, logits_to_keep=1)
        self.cache, self.logits = outputs.past_key_values, outputs.logits[:, -1:]
        # [rows, 1]: by how much positions run ahead of tokens, where pictures count for their sides (Qwen-VL, GLM-4V)
        self.ahead: torch.Tensor | None = getattr(getattr(model, "model", model), "rope_deltas", None)

    def extend(self, parents: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token in each branch: `tokens` [rows, branches], each after the branch of the last pass that
        `parents` [branches] says."""
        rows, branches = self.logits.shape[:2]
        if list(parents) != list(range(branches)):
            start = torch.arange(rows)[:, None] * branches
            chosen = (start + torch.tensor(parents)).flatten().to(self.mask.device)
            self.cache.batch_select_indices(chosen)
            self.mask = self.mask[chosen]
            self.ahead = None if self.ahead is None else self.ahead[chosen]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        inputs = {"input_ids": tokens.reshape(-1, 1).to(self.mask.device), "attention_mask": self.mask}
        if self.ahead is not None:
            positions = self.mask.sum(1, keepdim=True) - 1 + self.ahead
            inputs["position_ids"] = positions.expand(3, -1, -1)  # of time, height and width, which are one for words
        outputs = self.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.cache, self.logits = outputs.past_key_values, outputs.logits[:, -1].view(rows, len(parents), -1)
        return self.logits


def expected_iou(distribution: np.ndarray) -> np.ndarray:
    """The expected IoU, float64 [N] in 0..1, of probabilities of 0, 1, .. 100 percent, [N, 101]."""
    return (distribution @ np.arange(101) / 100).clip(0, 1)
