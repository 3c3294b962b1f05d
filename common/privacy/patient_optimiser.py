# SPDX-License-Identifier: Apache-2.0
"""The step of Opacus' optimiser for patients: clip, sum, noise, divide, in that order and each once."""

from __future__ import annotations

from collections.abc import Callable

from opacus.optimizers import DPOptimizer
from torch.optim import Optimizer

from common.errors import WardroundError
from common.privacy.clipping import RowGroups, clip_and_sum
from common.privacy.generator import SystemGenerator
from common.privacy.integer_noise import set_noisy_gradients


class PatientOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus' optimiser with patients as the unit and integers as the arithmetic.

    `accumulate` a micro-batch any number of times, then `step`: one noise draw with standard deviation `noise_multiplier` * C,
    division by the public `divisor`, the step hook, the wrapped optimiser.
    """

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
        self._groups: RowGroups | None = None
        self.non_finite_count = 0

    def accumulate(self, groups: RowGroups) -> None:
        """Add the clipped gradients of the patients whose rows are in `grad_sample`."""
        self._groups = groups
        self.clip_and_accumulate()
        self._groups = None

    def clip_and_accumulate(self) -> None:
        """Clip and sum `grad_sample` into `summed_grad`, int64 in grid steps. Called by `accumulate`."""
        if self._groups is None:
            raise WardroundError("clip_and_accumulate does not know the patients of the rows; call accumulate")
        clipped = clip_and_sum([parameter.grad_sample for parameter in self.params], self._groups, self.max_grad_norm, self._grid_bits)
        for parameter, added in zip(self.params, clipped.sums, strict=True):
            parameter.grad_sample = None
            parameter.summed_grad = added if parameter.summed_grad is None else parameter.summed_grad.add_(added)
        self.non_finite_count += clipped.non_finite_count

    def add_noise(self) -> None:
        """Add integer noise to `summed_grad` (none means zero) and put the result, in ordinary units, into `grad`."""
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

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Noise, scale and hook. Micro-batches were accumulated before; no step is ever skipped."""
        if closure is not None:
            raise WardroundError("a private step takes no closure; hand the rows to accumulate")
        self.add_noise()
        self.scale_grad()
        if self.step_hook is not None:
            self.step_hook(self)
        return True

    def clear(self) -> None:
        """Forget every gradient, sum and queued skip."""
        self._step_skip_queue.clear()
        self._is_last_step_skipped = False
        self._groups = None
        self.non_finite_count = 0
        for parameter in self.params:
            parameter.grad = parameter.grad_sample = parameter.summed_grad = None
            parameter._forward_counter = 0
