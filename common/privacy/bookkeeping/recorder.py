# SPDX-License-Identifier: Apache-2.0
"""What one forward and one backward pass leave at each trainable layer: its input, and the loss gradient at its output.

From these two every gradient of the layer's parameters follows, so autograd is asked for neither summed nor per-sample gradients: the
backward pass computes gradients of activations only and stops at the first trainable layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from opacus.grad_sample.gsm_base import AbstractGradSampleModule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ATTRIBUTE: Final = "wardround_recorder"


@dataclass
class Use:
    """One use of a layer in a forward pass. `statistics` are a group norm's mean and reciprocal deviation, if autograd kept them."""

    layer: nn.Module
    inputs: Tensor
    output_gradient: Tensor | None = None
    statistics: tuple[Tensor, Tensor] | None = None

    def of_row(self, row: int) -> Use:
        """The same for a single row."""
        part = slice(row, row + 1)
        statistics = None if self.statistics is None else (self.statistics[0][part], self.statistics[1][part])
        return Use(self.layer, self.inputs[part], None if self.output_gradient is None else self.output_gradient[part], statistics)

    def release(self) -> None:
        """Let go of the tensors; autograd may hold the use itself a little longer."""
        self.inputs, self.output_gradient, self.statistics = self.inputs.new_empty(0), None, None


Consumer = Callable[[Use], None]


class Recorder(AbstractGradSampleModule):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' wrapper of a model that records instead of computing per-sample gradients. Holds nothing between steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, loss_reduction="sum")
        self._sources: list[Tensor] = []
        self._consume: Consumer | None = None
        self._is_recording = False
        self.forget()
        self._handles: list[RemovableHandle] = [layer.register_forward_hook(self._remember) for layer in trainable_layers(model).values()]
        setattr(model, ATTRIBUTE, True)

    def record(self, inputs: Tensor) -> Tensor:
        """The model's outputs; layers are remembered until `backward` or `forget`."""
        self.forget()
        self._is_recording = True
        try:
            outputs: Tensor = self(inputs)
        finally:
            self._is_recording = False
        return outputs

    def backward(self, loss: Tensor, consume: Consumer, *, keep_graph: bool = False) -> None:
        """Run the backward pass of the scalar `loss` and hand each use over as soon as its output gradient is there.

        `consume` keeps a copy of a use that it needs later: the use itself is released, so activations are freed on the way.
        """
        self._consume = consume
        try:
            if self._sources and loss.requires_grad:
                torch.autograd.grad(loss, self._sources, allow_unused=True, retain_graph=keep_graph)
        finally:
            self.forget()

    def times_used(self, layer: nn.Module) -> int:
        """How often a layer was used in the forward pass."""
        return self._times_used[layer]

    def forget(self) -> None:
        """Drop what a pass left, finished or not."""
        self._sources, self._consume = [], None
        self._times_used: Counter[nn.Module] = Counter()

    def remove_hooks(self) -> None:
        """Give the model back as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()
        if hasattr(self._module, ATTRIBUTE):
            delattr(self._module, ATTRIBUTE)

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._is_recording or not output.requires_grad:
            return
        use = Use(layer, inputs[0].detach(), statistics=_group_statistics(output) if isinstance(layer, nn.GroupNorm) else None)
        self._times_used[layer] += 1
        output.register_hook(partial(self._arrived, use))  # type: ignore[no-untyped-call]
        if not any(value.requires_grad for value in inputs):
            self._sources.append(output)

    def _arrived(self, use: Use, gradient: Tensor) -> None:
        """Called by autograd with the gradient at a use's output."""
        if self._consume is not None:
            use.output_gradient = gradient.detach()
            self._consume(use)
            use.release()


def trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every module that owns a trainable parameter itself, by name."""
    return {name: layer for name, layer in model.named_modules() if any(p.requires_grad for p in layer.parameters(recurse=False))}


def _group_statistics(output: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and reciprocal standard deviation [R, groups] that autograd saved for the backward pass; None on another code path."""
    node = output.grad_fn
    mean, reciprocal = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
    if not isinstance(mean, Tensor) or not isinstance(reciprocal, Tensor):
        return None
    return mean.detach(), reciprocal.detach()  # else the node would hold itself through its own hook, and every step's activations stay
