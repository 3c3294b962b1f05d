# SPDX-License-Identifier: Apache-2.0
"""Small studies that are audited in seconds, with the real trainer."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from client.private_trainer import PrivateTrainer
from client.rows import FeatureRows, ImageRows, RowSource
from client.trainer import TrainingData
from common.data.cohort import Dataset
from common.models.registry import build_model
from common.privacy.calibration import PrivacyPlan
from common.study import Study
from simulations.audit.attack import Attacked, Target, attack
from simulations.audit.design import Design, design_audit
from simulations.audit.jobs import audited, canaries_for, plan_of
from simulations.audit.training import make_trainer
from simulations.audit.verdict import Bound, bound_of

PATIENTS = 24


def study(model: str, **changes: Any) -> Study:
    content: dict[str, Any] = {
        "name": "toy",
        "data": {"image_size": 16},
        "model": {"name": model},
        "training": {"local_steps": 1, "sampling_rate": 0.3, "learning_rate": 0.5},
        "federation": {"rounds": 20, "min_sites": 1},
        "privacy": {"epsilon": 1.0, "delta": 1e-5, "clipping_norm": 0.2},
    }
    return audited(Study.model_validate(content).with_changes(changes), None)


def target(toy: Study) -> Target:
    """A site of 24 patients with two images each, and 10 held-out ones."""
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(PATIENTS + 10), 2)
    size = toy.data.image_size
    dataset = Dataset(
        images=random.integers(0, 256, (len(patients), 1, size, size), dtype=np.uint8),
        labels=(patients % 2).astype(np.int64),
        patients=patients.astype(np.int64),
        patient_ids=tuple(str(number) for number in range(PATIENTS + 10)),
        label_names=("normal", "opacity"),
        columns={},
        split=None,
        natural_sites=None,
        synthetic=True,
        digest="toy",
    )
    model = build_model(toy)
    rows: RowSource = ImageRows(dataset, toy.training.augmentation, torch.device("cpu"))
    if model.feature_digest is not None:
        features = model.frozen_features(torch.from_numpy(dataset.images).float().div(127.5).sub(1))
        rows = FeatureRows(features.numpy(), torch.device("cpu"))
    everyone = [np.flatnonzero(patients == number) for number in range(PATIENTS + 10)]
    data = TrainingData("site-1", "", dataset, everyone[:PATIENTS], rows)
    return Target(toy, data, everyone[PATIENTS:], PATIENTS)


def attacked(
    toy: Study, noise: float = 1.0, trainer: type[PrivateTrainer] | None = None, canaries: int | None = None
) -> tuple[Design, Attacked]:
    """One attacked run with `noise` times the planned noise; the design is that of the honest plan."""
    plan = plan_of(toy)
    design = design_audit(plan, canaries)
    site = target(toy)
    broken: PrivacyPlan = replace(plan, noise_multiplier=plan.noise_multiplier * noise)
    if trainer is None:
        engine = make_trainer(toy, broken, PATIENTS)
    else:
        engine = trainer(toy, build_model(toy), torch.device("cpu"), privacy=toy.privacy, plan=broken, nominal_patients=PATIENTS)
    return design, attack(site, engine, canaries_for(site, design.canaries), lambda done, total: None)


def bound(toy: Study, **how: Any) -> tuple[Design, Bound]:
    design, found = attacked(toy, **how)
    return design, bound_of(design, found.scores, found.included)
