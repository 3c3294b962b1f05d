# SPDX-License-Identifier: Apache-2.0
"""The heavy parts of an audit, each in a process of its own: an attacked run, and a picture from an update. Bytes in, bytes out."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from client.rows import FeatureRows, ImageRows, RowSource
from client.trainer import TrainingData
from common.child import Progress
from common.data.cohort import Cohort, Dataset, Split
from common.data.features import open_features
from common.data.splits import PUBLIC_KEY, split_patients
from common.data.store import open_dataset
from common.errors import WardroundError
from common.files import cache_folder
from common.models.base import MedicalModel
from common.models.registry import build_model
from common.privacy.calibration import PrivacyPlan, plan_privacy
from common.study import PatientPrivacy, Study
from simulations.audit import inversion
from simulations.audit.attack import Target, attack
from simulations.audit.canaries import Canaries, feature_canaries, image_canaries
from simulations.audit.training import make_trainer, without_noise
from simulations.partition import cohort_for, default_partition


@dataclass(frozen=True)
class Job:
    """What a child process is told. `noise` False is the control."""

    study: str
    dataset: str
    canaries: int
    noise: bool
    threads: int

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Job:
        """What `to_bytes` wrote."""
        return cls(**json.loads(content))


def plan_of(study: Study) -> PrivacyPlan:
    """The study's own plan, as every site computes it."""
    if not isinstance(study.privacy, PatientPrivacy):
        raise WardroundError("only a private study can be audited")
    size = sum(value.numel() for value in build_model(study).trainable_state().values())
    return plan_privacy(study.privacy, study.training.sampling_rate, study.total_steps, size)


def first_site(study: Study, dataset: Dataset) -> tuple[str, Cohort, int]:
    """Name and cohort of the simulation's first site, and the public nominal size of all sites."""
    split = split_patients(dataset, PUBLIC_KEY, study.data)
    partition = default_partition(dataset)
    cohorts = [cohort_for(dataset, rows, split) for rows in partition.assign(dataset, None, study.seed)]
    nominal = max(1, round(sum(cohort.patient_count(Split.TRAIN) for cohort in cohorts) / len(cohorts)))
    return partition.site_names(dataset, None)[0], cohorts[0], nominal


def target_of(study: Study, dataset: Dataset, model: MedicalModel) -> Target:
    """The site that is attacked."""
    name, cohort, nominal = first_site(study, dataset)
    device = torch.device("cpu")
    rows: RowSource = ImageRows(dataset, study.training.augmentation, device)
    if model.feature_digest is not None:
        rows = FeatureRows(open_features(dataset, model, cache_folder()), device)
    data = TrainingData(name, "", dataset, cohort.patients_in(Split.TRAIN), rows)
    return Target(study, data, cohort.patients_in(Split.TEST), nominal)


def canaries_for(target: Target, count: int) -> Canaries:
    """Canaries of the kind that the study's model takes."""
    study, rows = target.study, target.site.rows
    if isinstance(rows, FeatureRows):
        return feature_canaries(count, rows.features.shape[1], study.class_count, study.seed)
    shape = (study.data.channels, study.data.image_size, study.data.image_size)
    return image_canaries(count, shape, study.class_count, study.seed)


def run_attack(request: bytes, progress: Progress) -> bytes:
    """The child's part: one attacked run of the study, with its noise or without."""
    job = Job.from_bytes(request)
    torch.set_num_threads(job.threads)
    study = Study.from_canonical_json(job.study)
    plan = plan_of(study)
    target = target_of(study, open_dataset(Path(job.dataset)), build_model(study))
    trainer = make_trainer(study, plan if job.noise else without_noise(plan), target.nominal_patients)
    return attack(target, trainer, canaries_for(target, job.canaries), progress).to_bytes()


def run_inversion(request: bytes, progress: Progress) -> bytes:
    """The child's part: a training patient of the site, and what an update gives away of one image, as npz."""
    job = Job.from_bytes(request)
    torch.set_num_threads(job.threads)
    study = Study.from_canonical_json(job.study)
    plan = plan_of(study) if job.noise else without_noise(plan_of(study))
    dataset = open_dataset(Path(job.dataset))
    _, cohort, _ = first_site(study, dataset)
    row = int(cohort.patients_in(Split.TRAIN)[0][0])
    small = inversion.attacked_study(study)
    original, label = inversion.shrunk(np.array(dataset.images[row]), small.data.image_size), int(dataset.labels[row])
    delta = inversion.one_patient_update(small, plan, original, label)
    found = inversion.reconstruct(small, delta, original, label, progress)
    buffer = io.BytesIO()
    np.savez(buffer, original=original, found=found.image, nearness=np.array([found.psnr, found.ssim]))
    return buffer.getvalue()


def make_features(study: Study, dataset: str) -> bytes:
    """The request with which `simulations.prepare:compute_features` stores what the jobs open."""
    return json.dumps({"study": study.canonical_json, "dataset": dataset, "device": "cpu"}).encode()


def audited(study: Study, epsilon: float | None) -> Study:
    """The study that is audited: without augmentation (an attacker could not know its draws), at another ε if one is given."""
    changes = {"training.augmentation": {}, "evaluation.every": 0}
    return study.with_changes(changes if epsilon is None else changes | {"privacy.epsilon": epsilon})
