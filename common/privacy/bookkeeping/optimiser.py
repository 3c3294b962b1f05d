# SPDX-License-Identifier: Apache-2.0
"""The step of Opacus' optimiser for fast gradient clipping: take the clipped sum, add noise, divide, each once."""

from __future__ import annotations

from opacus.optimizers import DPOptimizerFastGradientClipping
from torch.optim import Optimizer

from common.privacy.bookkeeping.patient_sum import PatientSum
from common.privacy.generator import SystemGenerator
from common.privacy.integer_noise import IntegerStep


class BookkeepingOptimizer(IntegerStep, DPOptimizerFastGradientClipping):  # type: ignore[misc]  # Opacus ships no types
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
        self._patient_sum = patient_sum
        super().__init__(
            optimiser,
            noise_multiplier=noise_multiplier,
            clipping_norm=clipping_norm,
            divisor=divisor,
            grid_bits=grid_bits,
            generator=generator,
        )

    def accumulate(self) -> None:
        """Take the clipped sum from the engine, whole numbers [n] in grid steps; None, which means zeros, where nothing was added."""
        for parameter, total in zip(self.params, self._patient_sum.take(), strict=True):
            parameter.summed_grad = total

    def clear(self) -> None:
        """Forget also what the engine has summed."""
        super().clear()
        self._patient_sum.clear()
