# SPDX-License-Identifier: Apache-2.0
"""The step of Opacus' optimiser for patients: clip, sum, noise, divide, in that order and each once."""

from __future__ import annotations

from collections.abc import Callable

from common.errors import WardroundError
from common.privacy.clipping import RowGroups, clip_and_sum
from common.privacy.integer_noise import IntegerStep


class PatientOptimizer(IntegerStep):
    """Opacus' optimiser with patients as the unit and integers as the arithmetic.

    `accumulate` a micro-batch any number of times, then `step`: one noise draw with standard deviation `noise_multiplier` * C,
    division by the public `divisor`, the step hook, the wrapped optimiser.
    """

    _groups: RowGroups | None = None
    non_finite_count = 0

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
        """Forget also whose rows they were."""
        super().clear()
        self._groups = None
        self.non_finite_count = 0
