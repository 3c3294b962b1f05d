# SPDX-License-Identifier: Apache-2.0
"""Private steps by book-keeping: `BookkeepingStepper.private_step` is the whole of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import InputError
from common.privacy import model_check
from common.privacy.bookkeeping import ghost, self_test
from common.privacy.bookkeeping.certificate import Certificate
from common.privacy.bookkeeping.gradients import RULES
from common.privacy.bookkeeping.optimiser import BookkeepingOptimizer
from common.privacy.bookkeeping.patient_sum import PatientSum
from common.privacy.bookkeeping.recorder import Recorder
from common.privacy.clipping import MISFIT, RowGroups, values_fit
from common.privacy.generator import SystemGenerator
from common.privacy.grid import GRID_BITS
from common.privacy.step import MicroBatch, StepReport

LOG = logging.getLogger(__name__)
RowLoss = Callable[[Tensor, Tensor], Tensor]
EXACT_NUMBERS: Final = 1 << 24
"""Numbers of per-patient gradients in memory at once where a step is formed patient by patient."""


class BookkeepingStepper:
    """A `PrivateStepper` without per-sample hooks. Trains `model`'s own parameters in place; `close` gives the model back clean.

    `row_loss` maps outputs and targets of R rows to R losses, one for each row. `after_noise` may change the finished `grad` by
    amounts that depend on no patient's data. `noise_multiplier` 0 gives no privacy: for tests and controls, never from a plan.
    Raises InputError, with all problems at once, for a model or an optimiser that cannot be trained privately: what can be seen without
    rows here, the rest at the first step, before any patient's row is used.
    """

    def __init__(
        self,
        model: nn.Module,
        optimiser: Optimizer,
        row_loss: RowLoss,
        *,
        clipping_norm: float,
        noise_multiplier: float,
        divisor: float,
        generator: SystemGenerator,
        after_noise: Callable[[], None] | None = None,
        grid_bits: int = GRID_BITS,
    ) -> None:
        problems = model_check.number_problems(clipping_norm, noise_multiplier, divisor, grid_bits)
        problems += model_check.model_problems(model, optimiser, frozenset(RULES))
        if problems:
            raise InputError(problems)
        self._row_loss = row_loss
        self._wrapped = model
        self._model = Recorder(model)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._parameters = [parameter for group in optimiser.param_groups for parameter in group["params"] if parameter.requires_grad]
        self._sum = PatientSum(self._parameters, clipping_norm, grid_bits, Certificate(generator))
        self._optimiser = BookkeepingOptimizer(
            optimiser,
            self._sum,
            noise_multiplier=noise_multiplier,
            clipping_norm=clipping_norm,
            divisor=divisor,
            grid_bits=grid_bits,
            generator=generator,
        )
        if after_noise is not None:
            self._optimiser.attach_step_hook(lambda _: after_noise())
        self._keeps_batches = any(ghost.can_be_ghost(layer) for layer in model.modules())
        self._is_tested = False

    def private_step(self, microbatches: Iterable[MicroBatch]) -> StepReport:
        """Take one step; none or only empty micro-batches make a step of noise. An exception leaves model and optimiser as they were.

        Raises InputError when a micro-batch or the loss has the wrong shape, or the model mixes patients.
        """
        self._clear()
        self._model.train()
        self._optimiser.begin_noise()
        try:
            facts, kept = _Facts(), []
            for batch in microbatches:
                if batch.patient_count > 0 or len(batch.inputs) > 0:
                    self._take(batch, facts)
                    kept += [batch] if self._keeps_batches else []
            facts.check()
            if not self._sum.is_certified():
                self._form_in_double(kept, facts)
            report = StepReport(facts.loss(), facts.patient_count, self._sum.non_finite_count)
            self._optimiser.step()
            return report
        finally:
            self._clear()

    def close(self) -> None:
        """Remove hooks and everything else that was attached to the model; the stepper cannot be used any more."""
        self._clear()
        for parameter in self._parameters:
            del parameter.summed_grad
        self._model.to_standard_module()

    def _take(self, batch: MicroBatch, facts: _Facts) -> None:
        """Count one micro-batch in."""
        RowGroups.of(batch)
        self._test_once(batch)
        facts.add(batch)
        facts.losses += self._accumulate_all(batch)

    def _accumulate(self, batch: MicroBatch, *, exact: bool) -> Tensor:
        """Gradients of a micro-batch into the sum; returns its loss, weighted as the gradients are, still on the device."""
        losses = self._row_loss(self._model.record(batch.inputs), batch.targets)
        if losses.shape != (len(batch.inputs),):
            raise InputError(self_test.shape_problem(losses, len(batch.inputs)))
        weighted = losses * batch.weight
        part = self._sum.begin(RowGroups.of(batch), exact=exact)
        self._model.backward(weighted.sum(), lambda use: part.take(use, is_only_use=self._model.times_used(use.layer) == 1))
        with torch.no_grad():
            self._sum.add(part)
        unused = [self._names[parameter] for parameter in self._parameters if parameter not in part.used]
        if unused:
            raise InputError([f"{name}: the loss does not depend on it through its own layer; freeze or remove it" for name in unused])
        return weighted.detach().nan_to_num(0.0, 0.0, 0.0).sum()

    def _form_in_double(self, batches: list[MicroBatch], facts: _Facts) -> None:
        """The step once more with large sums in double precision, because the float error of one was above its bound.

        The same rounding as in a step that was accepted: whether a step comes here depends on its patients, so no more may change.
        """
        LOG.warning("the float error of a sum was above its bound; the step is formed again in double precision, which takes longer")
        self._sum.clear()
        facts.losses.clear()
        self._sum.in_double = True
        try:
            for batch in batches:
                facts.losses += self._accumulate_all(batch)
        finally:
            self._sum.in_double = False

    def _accumulate_all(self, batch: MicroBatch) -> list[Tensor]:
        """A micro-batch into the sum, in parts where it is added patient by patient."""
        exact = not self._sum.has_room(RowGroups.of(batch))
        return [self._accumulate(part, exact=exact) for part in (self._split(batch) if exact else [batch])]

    def _split(self, batch: MicroBatch) -> Iterator[MicroBatch]:
        """Parts of a micro-batch whose per-patient gradients fit into memory; one without order stays whole."""
        if batch.views is None:
            yield batch
            return
        together = max(1, EXACT_NUMBERS // sum(parameter.numel() for parameter in self._parameters))
        for first in range(0, batch.patient_count, together):
            count = min(together, batch.patient_count - first)
            rows = slice(first * batch.views, (first + count) * batch.views)
            yield replace(
                batch,
                inputs=batch.inputs[rows],
                targets=batch.targets[rows],
                patient=batch.patient[rows] - first,
                weight=batch.weight[rows],
                patient_count=count,
            )

    def _test_once(self, batch: MicroBatch) -> None:
        if not self._is_tested:
            problems = self_test.coupling_problems(self._model, self._wrapped, self._row_loss, batch)
            if problems:
                raise InputError(problems)
            self._is_tested = True

    def _clear(self) -> None:
        """Forget what any earlier forward or backward pass left, finished or not."""
        self._optimiser.clear()
        self._model.forget()


class _Facts:
    """What a step collects on the side; tensors stay on the device until the step is complete."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.patient_count = 0
        self._fits: list[Tensor] = []

    def add(self, batch: MicroBatch) -> None:
        """Count a micro-batch's patients and remember whether its values fit together."""
        self.patient_count += batch.patient_count
        self._fits.append(values_fit(batch))

    def check(self) -> None:
        """Raises InputError when any micro-batch did not fit together."""
        if self._fits and not bool(torch.stack(self._fits).all()):
            raise InputError(MISFIT)

    def loss(self) -> float:
        """Sum of the patients' losses."""
        return float(torch.stack(self.losses).sum()) if self.losses else 0.0
