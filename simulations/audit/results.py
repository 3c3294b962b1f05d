# SPDX-License-Identifier: Apache-2.0
"""What an audit found, as plain values: the page and the JSON output are made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from common.data.cohort import ByteArray
from common.privacy.calibration import PrivacyPlan
from common.study import Study
from simulations.audit.attack import Attacked
from simulations.audit.design import Design
from simulations.audit.inversion import Reconstruction
from simulations.audit.membership import Membership
from simulations.audit.verdict import Bound, Verdict


@dataclass(frozen=True)
class Run:
    """One attacked run, private or control."""

    attacked: Attacked
    bound: Bound
    membership: Membership
    picture: Reconstruction


@dataclass(frozen=True)
class AuditResult:
    """A whole audit. `study` is what was audited; `original` uint8 [1, H, W] the image behind the pictures."""

    study: Study
    shipped_epsilon: float
    plan: PrivacyPlan
    design: Design
    site: str
    synthetic: bool
    private: Run
    control: Run
    original: ByteArray
    verdict: Verdict
    seconds: float
    command: str

    def facts(self) -> dict[str, Any]:
        """The numbers, for `--json`; no scores and no images."""
        return {
            "verdict": self.verdict.value,
            "study_id": self.study.id,
            "name": self.study.name,
            "claim": {"epsilon": self.plan.epsilon_target, "delta": self.plan.delta, "noise_multiplier": self.plan.noise_multiplier},
            "tested": asdict(self.design) | {"possible_epsilon": self.design.possible_epsilon},
            "private": _run_facts(self.private),
            "control": _run_facts(self.control),
            "seconds": round(self.seconds, 1),
        }


def _run_facts(run: Run) -> dict[str, Any]:
    picture = {"psnr_db": round(run.picture.psnr, 2), "ssim": round(run.picture.ssim, 3)}
    return {"bound": asdict(run.bound), "membership": asdict(run.membership), "inversion": picture}
