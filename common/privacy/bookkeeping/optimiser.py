# SPDX-License-Identifier: Apache-2.0
"""The step of Opacus' optimiser for fast gradient clipping: take the clipped sum, add noise, divide, each once."""

from __future__ import annotations

from opacus.optimizers import DPOptimizerFastGradientClipping
from torch.optim import Optimizer

from common.privacy.bookkeeping.patient_sum import PatientSum
from common.privacy.generator import SystemGenerator
from common.privacy.integer_noise import set_noisy_gradients


class BookkeepingOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' optimiser on the engine's integer sums.

    The stock class adds `grad` again for every micro-batch, needs a gradient to be there, and keeps `summed_grad` and its queue of
    micro-batches after an aborted step. Here the sum is the engine's and is taken, not added; `clear` forgets all of it.
    """

    def __init__(
        self,
        optimiser: Optimizer,
        patient_sum: PatientSum,
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
        self._patient_sum = patient_sum
        self._divisor = divisor
        self._grid_bits = grid_bits
        self._system_generator = generator

    def accumulate(self) -> None:
        """Take the clipped sum from the engine, int64 [n] in grid steps; None, which means zeros, where nothing was added."""
        for parameter, total in zip(self.params, self._patient_sum.take(), strict=True):
            parameter.summed_grad = total

    def add_noise(self) -> None:
        """One draw of integer noise; the result, in ordinary units, goes into `grad`."""
        set_noisy_gradients(
            self.params,
            noise_multiplier=self.noise_multiplier,
            clipping_norm=self.max_grad_norm,
            grid_bits=self._grid_bits,
            generator=self._system_generator,
        )

    def scale_grad(self) -> None:
        """Divide by the public divisor."""
        for parameter in self.params:
            parameter.grad.div_(self._divisor)

    def clear(self) -> None:
        """Forget every gradient, sum and queued skip."""
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self._patient_sum.clear()
        for parameter in self.params:
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None
