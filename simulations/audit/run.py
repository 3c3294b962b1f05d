# SPDX-License-Identifier: Apache-2.0
"""A whole audit: data, design, two attacked runs, two pictures, verdict.

The private run and the control are the same code with the same canaries' contents; each flips its own coins.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.child import preload, run_in_child
from common.data.cohort import ByteArray
from common.data.store import materialise, open_dataset, stored_folder
from common.errors import InputError
from common.files import cache_folder
from common.study import PatientPrivacy, Study
from simulations.audit.attack import Attacked
from simulations.audit.design import Design, design_audit
from simulations.audit.inversion import Reconstruction
from simulations.audit.jobs import Job, audited, first_site, make_features, plan_of
from simulations.audit.membership import membership
from simulations.audit.results import AuditResult, Run
from simulations.audit.verdict import bound_of, judge

Report = Callable[[str, int, int], None]
"""Called with the name of a part, and how much of it is done of how much."""

ATTACK, INVERSION = "simulations.audit.jobs:run_attack", "simulations.audit.jobs:run_inversion"
PRIVATE, CONTROL = "study's own noise", "control without noise"
MODULES = ("simulations.audit.jobs", "client.private_trainer", "dp_accounting.pld", "dp_accounting.rdp", "torch._dynamo")


@dataclass(frozen=True)
class AuditOptions:
    """One call of `wardround-sim audit`. `epsilon` audits the same study at another ε; `canaries` None takes what is needed."""

    study: Study
    data: Path | None = None
    epsilon: float | None = None
    canaries: int | None = None
    workers: int = 2
    threads: int = 1
    command: str = ""


def audit_study(options: AuditOptions, report: Report) -> AuditResult:
    """Audit a study. Raises InputError when it cannot be audited at all; the verdict is in the result."""
    started = time.monotonic()
    privacy = options.study.privacy
    if not isinstance(privacy, PatientPrivacy):
        raise InputError("audit: the study claims no privacy, so there is nothing to audit; give privacy with an epsilon")
    if options.study.data.kind == "tabular":
        raise InputError("audit: its canaries and pictures are images, so a tabular study cannot be audited; its engine is that of images")
    study = audited(options.study, options.epsilon)
    plan = plan_of(study)
    design = design_audit(plan, options.canaries)
    preload(MODULES)
    dataset = materialise(study.data, options.data, cache_folder())
    folder = str(stored_folder(study.data, options.data, cache_folder()).absolute())
    if study.has_stored_features:
        run_in_child(
            "simulations.prepare:compute_features", make_features(study, folder), lambda done, total: report("fixed features", done, total)
        )
    private, control, original = _attacked(
        options, Job(study.canonical_json, folder, design.canaries, True, options.threads), design, report
    )
    return AuditResult(
        study=study,
        shipped_epsilon=privacy.epsilon,
        plan=plan,
        design=design,
        site=first_site(study, open_dataset(Path(folder)))[0],
        synthetic=dataset.synthetic,
        private=private,
        control=control,
        original=original,
        verdict=judge(design, private.bound, control.bound),
        seconds=time.monotonic() - started,
        command=options.command,
    )


def _attacked(options: AuditOptions, job: Job, design: Design, report: Report) -> tuple[Run, Run, ByteArray]:
    """The private run, the control, and the image behind the pictures; `options.workers` processes at a time."""
    jobs = {PRIVATE: job, CONTROL: replace(job, noise=False)}
    with ThreadPoolExecutor(options.workers) as pool:
        attacks = {name: pool.submit(_child, ATTACK, each, f"training with {name}", report) for name, each in jobs.items()}
        pictures = {name: pool.submit(_child, INVERSION, each, f"inverting an update, {name}", report) for name, each in jobs.items()}
        runs = [_run(design, Attacked.from_bytes(attacks[name].result()), _picture(pictures[name].result())[0]) for name in jobs]
        return runs[0], runs[1], _picture(pictures[PRIVATE].result())[1]


def _child(work: str, job: Job, label: str, report: Report) -> bytes:
    return run_in_child(work, job.to_bytes(), lambda done, total: report(label, done, total))


def _run(design: Design, attacked: Attacked, picture: Reconstruction) -> Run:
    bound = bound_of(design, attacked.scores, attacked.included)
    return Run(attacked, bound, membership(attacked.member_losses, attacked.held_out_losses), picture)


def _picture(content: bytes) -> tuple[Reconstruction, ByteArray]:
    """The reconstruction and the original from the child's npz."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        psnr, ssim = arrays["nearness"].tolist()
        return Reconstruction(arrays["found"], psnr, ssim), arrays["original"]
