# SPDX-License-Identifier: Apache-2.0
"""Noise on an integer sum, and the way back to ordinary units: the same for every engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from common.aside import Aside
from common.privacy.generator import SystemGenerator
from common.privacy.grid import grid_step
from common.privacy.noise import NoiseArray, rounded_gaussian

AT_ONCE: Final = 1 << 17  # numbers drawn and converted at once: noise of a large model never lies in memory whole


class IntegerStep(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """What the optimisers of all engines share: sums are integers, noise is drawn once, the divisor is public. See Opacus for the rest."""

    def __init__(
        self,
        optimiser: Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        divisor: float,
        grid_bits: int,
        generator: SystemGenerator,
    ) -> None:
        super().__init__(
            optimiser, noise_multiplier=noise_multiplier, max_grad_norm=clipping_norm, expected_batch_size=None, loss_reduction="sum"
        )
        self._divisor = divisor
        self._grid_bits = grid_bits
        self._system_generator = generator
        self._noise: Noise | None = None

    def begin_noise(self) -> None:
        """Start to draw the noise of a step while its gradients are formed; `clear` throws away what a step that broke off has not used."""
        self._noise = self._new_noise()
        self._noise.begin()

    def add_noise(self) -> None:
        """Add integer noise to `summed_grad` (none means zero) and put the result, in ordinary units, into `grad`."""
        noise, self._noise = self._noise or self._new_noise(), None
        set_noisy_gradients(self.params, noise, grid_step(self.max_grad_norm, self._grid_bits))

    def _new_noise(self) -> Noise:
        count = sum(parameter.numel() for parameter in self.params)
        return Noise(count, math.ldexp(self.noise_multiplier, self._grid_bits), self._system_generator)

    def scale_grad(self) -> None:
        """Divide by the public divisor."""
        torch._foreach_div_([parameter.grad for parameter in self.params], self._divisor)

    def clear(self) -> None:
        """Forget every gradient, sum, queued skip and unused noise."""
        self._noise = None
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        for parameter in self.params:
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None
            parameter._forward_counter = 0


def set_noisy_gradients(parameters: Sequence[Tensor], noise: Noise, step: float) -> None:
    """Put each `summed_grad` plus noise into `grad`, in ordinary units, and drop it.

    `summed_grad` is whole numbers [n] in grid steps of size `step`, None means zero. Every parameter's number gets one number of noise.
    """
    for together in _portions(parameters):
        if len(together) == 1:
            _set_in_pieces(together[0], noise, step)
        else:
            _set_together(together, noise, step)


def _portions(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one kind, together at most `AT_ONCE` numbers; a larger parameter stands alone."""
    portion: list[Tensor] = []
    for parameter in parameters:
        same = portion and (parameter.device, parameter.dtype) == (portion[0].device, portion[0].dtype)
        if portion and not (same and sum(one.numel() for one in portion) + parameter.numel() <= AT_ONCE):
            yield portion
            portion = []
        portion.append(parameter)
    if portion:
        yield portion


def _set_in_pieces(parameter: Tensor, noise: Noise, step: float) -> None:
    """One parameter; its noise never lies in memory whole."""
    total = _taken(parameter)
    gradient = torch.empty_like(parameter, requires_grad=False).view(-1)
    for first in range(0, len(gradient), AT_ONCE):
        part = gradient[first : first + AT_ONCE]
        integers = torch.from_numpy(noise.take(len(part))).to(part.device)
        if total is not None:
            integers += total[first : first + AT_ONCE]
        part.copy_(integers.double().mul_(step))
    parameter.grad = gradient.view_as(parameter)


def _set_together(parameters: Sequence[Tensor], noise: Noise, step: float) -> None:
    """Several small parameters at once: for each of them alone, starting the work would take longer than the work."""
    sizes = [parameter.numel() for parameter in parameters]
    integers = torch.from_numpy(noise.take(sum(sizes))).to(parameters[0].device)
    for parameter, part in zip(parameters, torch.split(integers, sizes), strict=True):
        total = _taken(parameter)
        if total is not None:
            part += total
    gradients = integers.double().mul_(step).to(parameters[0].dtype)
    for parameter, gradient in zip(parameters, torch.split(gradients, sizes), strict=True):
        parameter.grad = gradient.view_as(parameter)


def _taken(parameter: Tensor) -> Tensor | None:
    """The sum that hangs on a parameter; it hangs there no more."""
    total: Tensor | None = parameter.summed_grad  # type: ignore[attr-defined]
    parameter.summed_grad = None  # type: ignore[attr-defined]
    return total


class Noise:
    """`count` numbers of noise for one step, drawn once and handed out in order; small parameters share a draw."""

    def __init__(self, count: int, deviation: float, generator: SystemGenerator) -> None:
        self._missing = count
        self._deviation = deviation
        self._generator = generator
        self._drawn: NoiseArray = np.zeros(0, dtype=np.int64)
        self._first: Aside[NoiseArray] | None = None

    def begin(self) -> None:
        """Draw the first `AT_ONCE` numbers in a thread of their own; nothing waits for them before they are taken."""
        self._first = Aside(partial(rounded_gaussian, min(AT_ONCE, self._missing), self._deviation, self._generator))

    def take(self, count: int) -> NoiseArray:
        """The next numbers, int64 [count]."""
        if self._first is not None:
            self._drawn, self._first = self._first.result(), None
            self._missing -= len(self._drawn)
        if count > len(self._drawn):
            more = max(count - len(self._drawn), min(AT_ONCE, self._missing))
            self._drawn = np.concatenate((self._drawn, rounded_gaussian(more, self._deviation, self._generator)))
            self._missing -= more
        taken, self._drawn = self._drawn[:count].copy(), self._drawn[count:]
        return taken
