# SPDX-License-Identifier: Apache-2.0
"""A gradient for each row, by Opacus' hooks."""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn


class RowGradients(GradSampleModule):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' hooks without its copies: a row's gradients go straight into `grad_sample`, a layer that is used twice adds up.

    Only gradients of rows are computed: `backward` stops at the first trainable layers and leaves out the summed gradients of the
    parameters, which autograd would form for nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, loss_reduction="sum", strict=True)
        self._sources: list[Tensor] = []
        for layer in self.iterate_submodules(model):
            self.autograd_grad_sample_hooks.append(layer.register_forward_hook(self._remember_source))
        self.disable_hooks()

    def backward(self, loss: Tensor) -> None:
        """Fill `grad_sample` of every trainable parameter that the scalar `loss` depends on."""
        if self._sources and loss.requires_grad:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook is firing")  # meant: the first layer's input needs no gradient
                torch.autograd.grad(loss, self._sources, allow_unused=True)
        self._sources.clear()

    def forget(self) -> None:
        """Drop what forward passes left, finished or not."""
        self._sources.clear()
        for layer in self.modules():
            layer.__dict__.pop("activations", None)

    def _remember_source(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the output of a trainable layer before which nothing is trained."""
        if self.hooks_enabled and output.requires_grad and not any(value.requires_grad for value in inputs):
            self._sources.append(output)

    def capture_backprops_hook(self, module: nn.Module, _inputs: object, forward_output: tuple[Tensor, ...], **_fixed: object) -> None:
        """Replaces Opacus' hook. `forward_output` holds the loss gradient at the layer's output; rows come first, losses are summed."""
        if not self.hooks_enabled:
            return
        activations: list[list[Tensor]] = module.__dict__["activations"]
        rule = self.GRAD_SAMPLERS[type(module)]
        for parameter, sample in rule(module, activations.pop(), forward_output[0].detach()).items():
            parameter.grad_sample = sample if parameter.grad_sample is None else parameter.grad_sample + sample
