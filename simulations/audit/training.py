# SPDX-License-Identifier: Apache-2.0
"""One site trains a study, and the server sees everything: the model of each round and the update that comes back.

The trainer, its sampling, clipping and noise are the client's own; what the attacker sees went through the client's own message and
back. The federation has one site: others would only change which model is sent. Nothing is charged, because nothing is released: the
data stays in this simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from client.private_trainer import PrivateTrainer
from client.trainer import TrainingData
from common.errors import WardroundError
from common.models.base import MedicalModel
from common.models.registry import build_model
from common.privacy.calibration import PrivacyPlan
from common.protocol import Arrays, FloatArray, Update, read_reply, shapes_of
from common.study import PatientPrivacy, Study
from server.averaging import moving_average
from server.strategies.registry import make_strategy

RUN_ID = "audit"
MakeTrainer = Callable[[Study, PrivacyPlan, int], PrivateTrainer]


@dataclass(frozen=True)
class Observation:
    """What the server sees of a round: the model that it sent and the update that it got. `average` is the published model so far."""

    round: int
    model: Arrays
    delta: Arrays
    average: Arrays


def make_trainer(study: Study, plan: PrivacyPlan, nominal_patients: int) -> PrivateTrainer:
    """The client's own trainer for a private study."""
    privacy = study.privacy
    if not isinstance(privacy, PatientPrivacy):
        raise WardroundError("only a private study can be audited")
    model = build_model(study)
    return PrivateTrainer(study, model, torch.device("cpu"), privacy=privacy, plan=plan, nominal_patients=nominal_patients)


def without_noise(plan: PrivacyPlan) -> PrivacyPlan:
    """The control: the same plan, and no noise. Only the audit makes one; no study can."""
    return replace(plan, noise_multiplier=0.0)


def initial_arrays(model: MedicalModel) -> dict[str, FloatArray]:
    """The model's trainable tensors as they are now, copied."""
    return {name: value.cpu().numpy().copy() for name, value in model.trainable_state().items()}


def observed_rounds(study: Study, trainer: PrivateTrainer, data: TrainingData) -> Iterator[Observation]:
    """All rounds of the study at one site, as the server sees them."""
    strategy = make_strategy(study.federation)
    model = average = initial_arrays(trainer.model)
    for round_number in range(1, study.federation.rounds + 1):
        sent = model
        delta = _as_sent(Update(RUN_ID, round_number, data.site, trainer.train(data, sent, round_number).delta))
        model = dict(strategy.apply(sent, delta))
        average = moving_average(average, model, study.federation.ema_decay, round_number)
        yield Observation(round_number, sent, delta, average)


def _as_sent(update: Update) -> Arrays:
    """The update's tensors after the client's message was written and read."""
    reply = read_reply(update.to_records(), run_id=RUN_ID, round_number=update.round, shapes=shapes_of(update.delta))
    if not isinstance(reply, Update):
        raise WardroundError(f"the site answered round {update.round} with {type(reply).__name__}")
    return reply.delta
