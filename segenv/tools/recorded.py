"""A model's answers without the Python between its operations."""

import warnings
from typing import Any

import torch

AFTER = 100  # calls of a kind before it is recorded: making a recording takes the time that about 200 calls save


class Recorded:
    """The logits [B, M, g, g] and predicted IoUs [B, M] of a `SamModel` on a CPU.

    Where there are many calls of one kind (the same inputs by name, the same `multimask`), they are recorded by
    `torch.jit.trace`. A recording does the model's own operations, for any batch and any number of points. One whose
    first answer differs from the model's in a single bit is not used.
    """

    def __init__(self, model: torch.nn.Module, after: int = AFTER) -> None:
        self.model, self.after = model, after
        self._calls: dict[tuple, int] = {}
        self._recordings: dict[tuple, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """State without recordings, which do not cross to another process."""
        return self.__dict__ | {"_calls": {}, "_recordings": {}}

    def __call__(self, inputs: dict[str, torch.Tensor], multimask: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer inputs, by the names that the model has for them."""
        kind, given = (multimask, *inputs), tuple(inputs.values())
        if recording := self._recordings.get(kind):
            return recording(*given)
        call = _Pass(self.model, tuple(inputs), multimask)
        called = self._calls[kind] = self._calls.get(kind, 0) + 1
        if called == self.after + 1:
            self._recordings[kind] = _record(call, given)
        return call(*given)


class _Pass(torch.nn.Module):
    """A forward pass that takes tensors alone, as a recording wants it."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], multimask: bool) -> None:
        super().__init__()
        self.model, self.names, self.multimask = model, names, multimask

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**dict(zip(self.names, inputs, strict=True)), multimask_output=self.multimask)
        return output.pred_masks[:, 0], output.iou_scores[:, 0]


def _record(call: _Pass, inputs: tuple[torch.Tensor, ...]) -> Any:
    """A recording of the call, or None where it cannot be made or is not equal."""
    with warnings.catch_warnings():  # of branches on shapes, which all inputs of a kind take alike
        warnings.simplefilter("ignore")
        try:
            recording = torch.jit.trace(call.eval(), inputs, check_trace=False)
            answer = recording(*inputs)
        except RuntimeError:
            return None
    return recording if all(map(torch.equal, answer, call(*inputs))) else None
