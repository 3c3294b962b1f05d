# SPDX-License-Identifier: Apache-2.0
"""Private steps with Opacus: its hooks give a gradient for each row, this module does everything that touches the guarantee.

Opacus' own optimiser knows rows, not patients, draws noise from a seedable generator, and keeps half-built sums when a caller leaves
its loop early. Here one call is one step: whatever an earlier step left is cleared first, micro-batches are summed as integers, noise
is drawn once, and an exception leaves nothing behind. Each patient's rows must be in one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import InputError
from common.privacy import grad_samplers, model_check
from common.privacy.clipping import MISFIT, RowGroups, values_fit
from common.privacy.generator import SystemGenerator
from common.privacy.grid import GRID_BITS
from common.privacy.patient_optimiser import PatientOptimizer
from common.privacy.row_gradients import RowGradients
from common.privacy.step import MicroBatch, StepReport

RowLoss = Callable[[Tensor, Tensor], Tensor]


class OpacusStepper:
    """A `PrivateStepper` on Opacus' hooks. Trains `model`'s own parameters in place; `close` gives the model back clean.

    `row_loss` maps outputs and targets of R rows to R losses, one for each row. `after_noise` may change the finished `grad` by
    amounts that depend on no patient's data. `noise_multiplier` 0 gives no privacy: for tests and controls, never from a plan.
    Raises InputError, with all problems at once, for a model or an optimiser that cannot be trained privately.
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
        grad_samplers.register()
        problems = model_check.number_problems(clipping_norm, noise_multiplier, divisor, grid_bits)
        problems += model_check.model_problems(model, optimiser, GradSampleModule.GRAD_SAMPLERS.keys())
        problems += grad_samplers.padding_problems(model)
        if problems:
            raise InputError(problems)
        self._row_loss = row_loss
        self._model = RowGradients(model)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._optimiser = PatientOptimizer(
            optimiser,
            noise_multiplier=noise_multiplier,
            clipping_norm=clipping_norm,
            divisor=divisor,
            grid_bits=grid_bits,
            generator=generator,
        )
        if after_noise is not None:
            self._optimiser.attach_step_hook(lambda _: after_noise())

    def private_step(self, microbatches: Iterable[MicroBatch]) -> StepReport:
        """Take one step; none or only empty micro-batches make a step of noise. An exception leaves model and optimiser as they were.

        Raises InputError when a micro-batch or the loss has the wrong shape.
        """
        self._clear()
        self._model.train()
        self._model.enable_hooks()
        loss_sum, patient_count = 0.0, 0
        try:
            for batch in microbatches:
                if batch.patient_count > 0 or len(batch.inputs) > 0:
                    loss_sum += self._accumulate(batch)
                    patient_count += batch.patient_count
            self._optimiser.step()
            return StepReport(loss_sum, patient_count, self._optimiser.non_finite_count)
        finally:
            self._model.disable_hooks()
            self._clear()

    def close(self) -> None:
        """Remove hooks and everything else that was attached to the model; the stepper cannot be used any more."""
        self._clear()
        for parameter in self._optimiser.params:
            del parameter.summed_grad
        self._model.to_standard_module()

    def _accumulate(self, batch: MicroBatch) -> float:
        """Gradients of a micro-batch into the sum; returns its loss, weighted as the gradients are."""
        groups = RowGroups.of(batch)
        if not bool(values_fit(batch)):
            raise InputError(MISFIT)
        losses = self._row_loss(self._model(batch.inputs), batch.targets)
        _check_losses(losses, len(batch.inputs))
        weighted = losses * batch.weight
        self._model.backward(weighted.sum())
        unused = [self._names[parameter] for parameter in self._optimiser.params if parameter.grad_sample is None]
        if unused:
            raise InputError([f"{name}: the loss does not depend on it through its own layer; freeze or remove it" for name in unused])
        self._optimiser.accumulate(groups)
        return float(weighted.detach().nan_to_num(0.0, 0.0, 0.0).sum())

    def _clear(self) -> None:
        """Forget what any earlier forward or backward pass left, finished or not."""
        self._optimiser.clear()
        self._model.forget()


def _check_losses(losses: Tensor, rows: int) -> None:
    if losses.shape != (rows,):
        raise InputError(
            f"row_loss: gave a tensor of shape {list(losses.shape)} for {rows} rows, must be [{rows}]: one number a row, without "
            "reduction; squeeze outputs and targets to [R] (a loss of [R, 1] silently breaks clipping)"
        )
