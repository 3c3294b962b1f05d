# SPDX-License-Identifier: Apache-2.0
"""The study: one training project, immutable, named by the SHA-256 of its canonical JSON.

Everything in here is public: it is sent to every site and printed in every report. What belongs to one hospital (paths, keys,
nominal size, budget) is not part of a study. Each field is documented once, here; `docs/study.md` and
`common/study.schema.json` are generated from it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from common.study_data import Data as Data
from common.study_data import Phantom as Phantom
from common.study_part import Part as Part
from common.study_part import refuse as _refuse
from common.study_survey import Survey

MODEL_NAMES = ("cnn", "scattering", "resnet18", "densenet121", "vgg16", "mlp", "logistic")
TABLE_MODELS = ("mlp", "logistic")
MetricName = Literal["auroc", "auprc", "f1", "calibration"]
METRIC_NAMES: tuple[MetricName, ...] = ("auroc", "auprc", "f1", "calibration")
SLUG = r"^[a-z0-9][a-z0-9-]{0,62}$"
SHA256 = r"^[0-9a-f]{64}$"
CLASSIFICATION = "classification"
ADDED_FIELDS = (
    "data.kind",
    "data.label_column",
    "data.label_groups",
    "data.columns",
    "data.column_names",
    "data.split_column",
    "data.separator",
    "model.hidden_units",
    "purpose",
    "survey",
)
"""Fields that came after the first release. While such a field has its default it is not in the canonical JSON, so older studies keep their
ids."""


class ExternalFile(Part):
    """A file that comes from outside, named by its content."""

    path: str = Field(description="Path of the file.")
    sha256: str = Field(pattern=SHA256, description="SHA-256 of the file in hexadecimal; checked before the file is read.")


class Model(Part):
    """The network."""

    name: Literal["cnn", "scattering", "resnet18", "densenet121", "vgg16", "mlp", "logistic"] = Field(
        "cnn",
        description="Architecture: `cnn` (small, any size), `scattering` (fixed wavelets and a linear head), or a torchvision one; for "
        "tables `logistic` (one linear layer) or `mlp`.",
    )
    hidden_units: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        (16,), min_length=1, max_length=8, description="mlp: units of each hidden layer."
    )
    pretrained: ExternalFile | None = Field(None, description="Weights to start from (safetensors).")
    freeze: Literal["none", "backbone"] = Field("none", description="`backbone` trains the last layer only.")

    @model_validator(mode="after")
    def _frozen_has_weights(self) -> Model:
        problems = []
        if self.freeze == "backbone" and self.pretrained is None:
            problems.append("freeze: without pretrained weights a random backbone would be frozen; add pretrained or remove freeze")
        if self.name in ("cnn", "scattering", *TABLE_MODELS) and self.pretrained is not None:
            problems.append(f"pretrained: {self.name} has no pretrained weights; remove it or take resnet18, densenet121 or vgg16")
        _refuse(problems)
        return self


class Augmentation(Part):
    """Random changes of each training image. All off by default."""

    shift: float = Field(0.0, ge=0, le=0.5, description="Largest shift as a share of the image size.")
    rotate_degrees: float = Field(0.0, ge=0, le=45, description="Largest rotation in degrees.")
    zoom: float = Field(0.0, ge=0, le=0.5, description="Largest relative change of size.")
    contrast: float = Field(0.0, ge=0, le=0.9, description="Largest relative change of contrast.")
    brightness: float = Field(0.0, ge=0, le=0.9, description="Largest change of brightness, in units of the full grey range.")
    flip: bool = Field(False, description="Mirror left and right at random. Not for images in which the side matters.")

    @property
    def is_active(self) -> bool:
        """Whether any change is made at all."""
        return self != Augmentation()


class Training(Part):
    """Local training at a site between two exchanges."""

    local_steps: int = Field(10, ge=1, le=100_000, description="Optimiser steps of a site in each round.")
    sampling_rate: float = Field(
        0.1, gt=0, le=1, description="Share of the patients in a step. With privacy each patient is drawn with this probability."
    )
    optimiser: Literal["sgd", "adam"] = Field("sgd", description="Optimiser; started anew in each round.")
    learning_rate: float = Field(0.5, gt=0, description="Learning rate.")
    schedule: Literal["constant", "cosine"] = Field("constant", description="Learning rate over all steps of the study.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    microbatch_rows: int = Field(
        64, ge=1, le=65_536, description="Images in memory at once; changes memory and speed, not the result's meaning."
    )
    augmentation: Augmentation = Field(default_factory=Augmentation, description="Random changes of the training images.")

    @model_validator(mode="after")
    def _momentum_has_sgd(self) -> Training:
        if self.momentum > 0 and self.optimiser != "sgd":
            raise ValueError(f"momentum: belongs to sgd and does nothing with {self.optimiser}; remove it")
        return self


class Federation(Part):
    """How the sites work together."""

    rounds: int = Field(10, ge=1, le=100_000, description="Rounds of training.")
    strategy: Literal["fedavg", "fedprox"] = Field("fedavg", description="Aggregation algorithm.")
    proximal_mu: float = Field(0.0, ge=0, description="FedProx: weight of the pull towards the global model.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Moving average of the global model over rounds; 0 takes the last one.")
    min_sites: int = Field(2, ge=1, description="Fewest updates with which a round counts.")
    round_timeout_seconds: float = Field(3600.0, gt=0, description="How long a round waits for its sites.")
    update_norm_limit: float = Field(
        1e4,
        gt=0,
        description="Largest L2 norm of a site's update, over all tensors. A larger one is left out, and counts against the site.",
    )
    weights: Literal["equal"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        "equal", description="`equal`, or a public weight for each site by name. Never a patient count."
    )

    @model_validator(mode="after")
    def _mu_has_a_strategy(self) -> Federation:
        if (self.proximal_mu > 0) != (self.strategy == "fedprox"):
            raise ValueError("proximal_mu: belongs to strategy fedprox and must be above 0 there; set both or neither")
        return self


class PatientPrivacy(Part):
    """Differential privacy of one patient with all their images (add or remove one patient), at every site by itself."""

    unit: Literal["patient"] = Field("patient", description="What is protected: one patient with all their images.")
    epsilon: float = Field(3.0, gt=0, le=100, description="ε of the whole study at each site.")
    delta: float = Field(1e-6, gt=0, le=1e-5, description="δ of the account; never above 1e-5.")
    clipping_norm: float = Field(1.0, gt=0, description="Largest L2 norm of one patient's gradient (C).")
    normalise: bool = Field(
        False, description="Count clipped gradients in units of the clipping norm, so that C can change without the learning rate."
    )
    views_per_patient: int = Field(
        1, ge=1, le=64, description="Images of a patient, drawn at random, that are averaged before clipping (K)."
    )
    mode: Literal["local", "distributed"] = Field(
        "local", description="`local`: every site adds its full noise. `distributed` is refused for now."
    )
    engine: Literal["bookkeeping", "opacus"] = Field(
        "bookkeeping", description="How patients' gradients are formed: `bookkeeping` (fast), or `opacus` (Opacus' hooks); same mechanism."
    )

    @model_validator(mode="after")
    def _only_local(self) -> PatientPrivacy:
        if self.mode == "distributed":
            raise ValueError("mode: distributed noise needs secure aggregation, which is not built yet; use local")
        return self


class NoPrivacy(Part):
    """No protection at all; has to be written out as `privacy: none`."""

    unit: Literal["none"] = Field("none", description="No privacy. A hospital refuses such a study unless its own policy allows it by id.")


def _spell_out_none(value: Any) -> Any:
    return {"unit": "none"} if value == "none" else value


def _unit_of(value: Any) -> Any:
    """A privacy part without `unit` means the patient."""
    value = _spell_out_none(value)
    if isinstance(value, dict) and "unit" not in value:
        return {"unit": "patient", **value}
    return value


Privacy = Annotated[PatientPrivacy | NoPrivacy, Field(discriminator="unit"), BeforeValidator(_unit_of)]


class PrivateEvaluation(Part):
    """What a site may tell about its held-out patients in a study with privacy: histograms of scores with noise, for the AUROC."""

    epsilon: float = Field(
        1.0, ge=0.01, le=100, description="ε of the evaluation for the whole run, paid by the held-out patients, who do not train."
    )
    bins: int = Field(
        16, ge=4, le=32, description="Bins of the score. Fewer means less noise and a coarser AUROC (16: within 0.01 in what was measured)."
    )
    every: int = Field(
        0,
        ge=0,
        description="Also after every so many rounds; ε is divided by all of them. 0: the final model only. Needs held_out_patients.",
    )
    held_out_patients: int | None = Field(
        None, ge=1, description="Nominal number of held-out patients of a site, a public number: predicts the standard error."
    )

    def rounds(self, rounds: int) -> tuple[int, ...]:
        """After which of so many rounds the model is measured; the last one is the final model."""
        return (*(range(self.every, rounds, self.every) if self.every else ()), rounds)


def _none_if_written_out(value: Any) -> Any:
    return None if value == "none" else value


class Evaluation(Part):
    """How the model is judged on the held-out patients."""

    metrics: tuple[MetricName, ...] = Field(METRIC_NAMES, min_length=1, description="Metrics in the report.")
    every: int = Field(
        1,
        ge=0,
        description="Each site scores the incoming model every so many rounds, for itself: nothing of it leaves, and only a simulation "
        "reads it. 0: the final model only.",
    )
    private: Annotated[PrivateEvaluation | None, BeforeValidator(_none_if_written_out)] = Field(
        default_factory=PrivateEvaluation,
        description="The measurement that leaves a site, or `none`. A study without privacy has none, whatever stands here.",
    )


class Study(Part):
    """One training project, the same file for a simulation and for real hospitals."""

    name: str = Field(pattern=SLUG, description="Short name: small letters, digits and hyphens.")
    description: str = Field("", max_length=2000, description="What the study is for, in a sentence.")
    task: Literal["binary", "multiclass"] = Field(
        "binary",
        description="One finding (two labels) or one of several classes. `classification` is short for the one that fits the labels.",
        json_schema_extra={"enum": ["binary", "multiclass", CLASSIFICATION]},
    )
    data: Data = Field(default_factory=Data, description="The images and labels.")
    model: Model = Field(default_factory=Model, description="The network.")
    training: Training = Field(default_factory=Training, description="Local training.")
    federation: Federation = Field(default_factory=Federation, description="Rounds and aggregation.")
    privacy: Privacy = Field(description="Protection of the patients: ε, δ and clipping norm, or `none`. Has no default.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="Metrics.")
    survey: Annotated[Survey | None, BeforeValidator(_none_if_written_out)] = Field(
        None, description="What `wardround-server survey` asks the sites about their patients before anyone trains, or `none`."
    )
    purpose: Literal["training", "survey"] = Field(
        "training",
        description="Leave it out. `wardround-server survey` makes the survey of a study, which is a study of its own and trains nothing.",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of initial weights and of splits in a simulation. Never of noise or of patient sampling."
    )

    @model_validator(mode="before")
    @classmethod
    def _name_the_task(cls, content: Any) -> Any:
        """`task: classification` is binary or multiclass, by the number of labels, before anything else looks at the study."""
        if not isinstance(content, dict) or content.get("task") != CLASSIFICATION:
            return content
        data = content.get("data")
        labels = data.get("labels") if isinstance(data, dict) else None
        return content | {"task": "multiclass" if isinstance(labels, list | tuple) and len(labels) > 2 else "binary"}

    @model_validator(mode="after")
    def _parts_fit(self) -> Study:
        problems = self._kind_problems() + self._survey_problems()
        if self.task == "binary" and len(self.data.labels) != 2:
            problems.append(f"data.labels: a binary task has two labels, not {len(self.data.labels)}; use task: multiclass")
        if self.training.augmentation.is_active and self.has_stored_features:
            problems.append(
                "training.augmentation: the features of this model are computed once and stored, so images cannot be augmented; remove it"
            )
        if self.model.name in ("cnn", "scattering") and self.data.channels != 1:
            problems.append(f"data.channels: {self.model.name} takes grey images; use 1")
        problems += self._evaluation_problems()
        _refuse(problems)
        return self

    def _kind_problems(self) -> list[str]:
        """Images and tables have models of their own, and only images can be augmented."""
        tabular = self.data.kind == "tabular"
        problems = []
        if tabular != (self.model.name in TABLE_MODELS):
            fitting = [name for name in MODEL_NAMES if (name in TABLE_MODELS) == tabular]
            problems.append(f"model.name: {self.model.name} does not take data of kind {self.data.kind}; take {' or '.join(fitting)}")
        if tabular and self.training.augmentation.is_active:
            problems.append("training.augmentation: changes images, and a table has none; remove it")
        return problems

    def _survey_problems(self) -> list[str]:
        """A survey releases its tables, with privacy, and nothing else."""
        if self.purpose == "survey" and (self.survey is None or not self.is_private or self.evaluation.private is not None):
            return ["purpose: a survey has tables, privacy and no evaluation; leave purpose out, `wardround-server survey` sets it"]
        return []

    def _evaluation_problems(self) -> list[str]:
        """Measuring often is refused where each measurement would drown in its noise."""
        private = self.evaluation.private
        if private is None or not private.every or not self.is_private:
            return []
        if private.held_out_patients is None:
            return [
                "evaluation.private.every: needs held_out_patients, the nominal number of held-out patients of a site; set it or every: 0"
            ]
        from common.evaluation_plan import evaluation_plan
        from common.private_metrics import LARGEST_STANDARD_ERROR

        plan, sites = evaluation_plan(self), self.federation.min_sites
        error = plan.predicted_standard_error(sites, sites * private.held_out_patients) if plan else 0.0
        if plan is None or error <= LARGEST_STANDARD_ERROR:
            return []
        return [
            f"evaluation.private.every: {len(plan.rounds)} measurements at ε={plan.epsilon:g} together would each have a standard error of "
            f"about {error:.2f} (at {sites} sites), the most is {LARGEST_STANDARD_ERROR}; use every: 0, or a larger epsilon"
        ]

    @property
    def canonical_json(self) -> str:
        """The study as one line of JSON: keys sorted, no spaces, every default written out but those of `ADDED_FIELDS`."""
        content = self.model_dump(mode="json")
        for dotted in ADDED_FIELDS:
            _leave_out_default(self, content, dotted.split("."))
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @property
    def id(self) -> str:
        """The study id: SHA-256 of `canonical_json`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json.encode()).hexdigest()

    @property
    def has_stored_features(self) -> bool:
        """Whether the model's features never change in training, and so are computed once for each image."""
        return self.model.name == "scattering" or self.model.freeze == "backbone"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of one site over the whole study."""
        return self.federation.rounds * self.training.local_steps

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.data.labels)

    @property
    def is_private(self) -> bool:
        """Whether patients are protected by differential privacy."""
        return isinstance(self.privacy, PatientPrivacy)

    @classmethod
    def from_canonical_json(cls, text: str) -> Study:
        """Read a study that came over the wire. Raises pydantic's ValidationError (a ValueError)."""
        return cls.model_validate_json(text)

    def with_changes(self, changes: dict[str, Any]) -> Study:
        """A new study in which dotted keys, such as `federation.rounds`, have other values; validated again."""
        content = self.model_dump(mode="json")
        for dotted, value in changes.items():
            *parents, last = dotted.split(".")
            target = content
            for key in parents:
                target = target[key]
            target[last] = value
        return Study.model_validate(content)


def _leave_out_default(part: BaseModel, content: dict[str, Any], keys: list[str]) -> None:
    """Take the field named by `keys` out of `content`, the dump of `part`, if it has its default."""
    for key in keys[:-1]:
        part, content = getattr(part, key), content[key]
    if getattr(part, keys[-1]) == type(part).model_fields[keys[-1]].get_default(call_default_factory=True):
        del content[keys[-1]]
