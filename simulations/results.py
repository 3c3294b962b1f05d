# SPDX-License-Identifier: Apache-2.0
"""What a simulated run found: written to `results.json` in the run directory, read by the report and by `compare`.

All metrics here but `Measurement` are exact: only a simulation may compute them, because the researcher owns all of its data.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.files import write_atomic


class Result(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scores(Result):
    """One model's scores on held-out images: three lists of equal length, plus the patients' numbers and the images' rows.

    `scores` has one probability (binary) or one list of class probabilities for each image.
    """

    labels: list[int]
    scores: list[float] | list[list[float]]
    patients: list[int]
    rows: list[int]


class ModelResult(Result):
    """One trained model (federated, pooled, or one site alone) on the held-out patients of all sites together.

    `metrics` maps auroc, auprc, f1, sensitivity, specificity, accuracy, brier, calibration_error to a number (None: cannot be measured).
    `per_site` is the same model on each site's held-out patients alone.
    """

    metrics: dict[str, float | None]
    per_site: dict[str, dict[str, float | None]]
    test: Scores


class SiteResult(Result):
    """One site: its data, and what it spent."""

    name: str
    patients: dict[str, int]  # split name -> patients
    images: dict[str, int]
    class_counts: dict[str, int]  # label name -> training images
    nominal_patients: int
    epsilon: float | None  # None: no privacy. PLD of all charged steps.
    charged_steps: int
    updates: int
    refusals: dict[str, int]  # refusal code -> how often
    warnings: list[str]
    mean_step_seconds: float | None = None
    held_out_epsilon: float | None = None  # what the held-out patients spent on the private evaluation


class PrivacyResult(Result):
    """The mechanism, in public numbers."""

    unit: str
    neighbouring: str
    accountant: str
    epsilon_target: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    steps: int
    clipping_norm: float
    views_per_patient: int


class RoundPoint(Result):
    """One point of the curves. Loss is a site's own mean training loss; AUROC is exact, on all held-out patients."""

    round: int
    seconds: float
    auroc: float | None
    loss: dict[str, float]
    site_auroc: dict[str, float | None]
    epsilon: dict[str, float]  # upper bound (RDP) after this round


class Measurement(Result):
    """AUROC by patient as real hospitals would learn it: from the sum of the sites' noisy histograms.

    `auroc` is None where it is not measurable (standard error above .05, or none); by chance it may lie above 1. `exact` is the same
    figure from the exact scores, simulation only.
    """

    round: int
    sites: int
    auroc: float | None
    standard_error: float | None
    exact: float | None


class Example(Result):
    """One held-out image with what the federated model says. `png` is base64."""

    png: str
    label: str
    prediction: str
    probability: float


class RunResult(Result):
    """Everything that the report shows of one run."""

    study_id: str
    study: dict[str, object]
    run_id: str
    seed: int
    source: str
    synthetic: bool
    partition: str
    command: str
    versions: dict[str, str]
    device: str
    seconds: float
    rounds: int
    sites: list[SiteResult]
    privacy: PrivacyResult | None
    federated: ModelResult
    pooled: ModelResult | None
    alone: dict[str, ModelResult]
    curve: list[RoundPoint]
    trivial: dict[str, float | None]  # name of a trivial baseline -> AUROC
    examples: list[Example]
    data_digest: str | None = None  # SHA-256 of the data set: runs that share it share patients, so their ε adds up
    measured: list[Measurement] = []  # private evaluations; the last one is of the final model
    notes: list[str] = []  # remarks that the reader of the report should see, one sentence each

    def write(self, path: Path) -> None:
        """Write the result as JSON, atomically."""
        write_atomic(path, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> RunResult:
        """Read what `write` wrote."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
