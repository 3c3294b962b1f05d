# SPDX-License-Identifier: Apache-2.0
"""`site.yaml`: the hospital's own settings and rules. Policy outranks study outranks message.

Read with the same care as a study file: unknown keys are refused, every problem of the file is said at once, each as one line
`file:line: key: what is wrong; what to do`. What each key means is said in the annotated template (`template`).
"""

from __future__ import annotations

import re
from datetime import time
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from common.errors import InputError
from common.listen import checked_listen
from common.study import SHA256, SLUG, Part
from common.study_fields import StudyField, fields_of
from common.study_file import problem_lines, validated
from common.study_yaml import Document, Problem, read_yaml
from common.wire_names import SITE_NAME

MAX_CONFIG_BYTES = 1_000_000
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,2})?")
_SCHEDULE = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_URL = re.compile(r"https://[^/?#\s]+")
Task = Literal["binary", "multiclass"]
ModelName = Literal["cnn", "scattering", "resnet18", "densenet121", "vgg16", "mlp", "logistic"]
_TASKS: tuple[Task, ...] = get_args(Task)
_MODELS: tuple[ModelName, ...] = get_args(ModelName)
PATIENTS_PER_DELTA = 10
"""δ is at most 1 / (10 x nominal patients)."""


class CohortConfig(Part):
    """One cohort. `nominal_patients` (N0) is a public number."""

    data: str = Field(min_length=1, max_length=4096, description="File or folder of the data.")
    nominal_patients: int = Field(ge=1, description="About how many patients, a public round number, set by hand.")

    @property
    def path(self) -> Path:
        """Where the data lies."""
        return Path(self.data)


class Limits(Part):
    """How much this site gives."""

    epsilon_per_account: float = Field(3.0, gt=0, le=100, description="Most ε that a patient's data may ever spend on each ledger line.")
    delta: float = Field(1e-6, gt=0, le=1e-5, description="δ of each account, for good.")
    survey_epsilon: float = Field(
        0.5,
        ge=0,
        le=100,
        description="Most ε of all surveys together, on each ledger line and within epsilon_per_account; 0 refuses each survey.",
    )
    min_patients: int = Field(20, ge=2, description="Cohorts with a smaller nominal size take no part.")
    rounds_a_day: int = Field(1000, ge=1, description="Most rounds of training in 24 hours.")
    schedule: str | None = Field(None, description="Window of local time for training, such as 18:00-06:00; without it always.")
    gpu_memory_fraction: float = Field(1.0, gt=0, le=1, description="Share of the card's memory that training may take.")

    @field_validator("schedule")
    @classmethod
    def _is_a_window(cls, text: str | None) -> str | None:
        match = _SCHEDULE.fullmatch(text) if text is not None else None
        if text is not None and (match is None or match.group(1, 2) == match.group(3, 4)):
            raise ValueError(f'must be a window of local time such as 18:00-06:00; is "{text[:40]}"; remove the line to train at any time')
        return text

    @property
    def window(self) -> tuple[time, time] | None:
        """Begin and end of the schedule in local time; the end may be on the next day. None: always."""
        match = _SCHEDULE.fullmatch(self.schedule) if self.schedule else None
        if match is None:
            return None
        begin_hour, begin_minute, end_hour, end_minute = map(int, match.groups())
        return time(begin_hour, begin_minute), time(end_hour, end_minute)

    def is_open(self, local: time) -> bool:
        """Whether the schedule allows training at this local time; the begin belongs to the window, the end does not."""
        if self.window is None:
            return True
        begin, end = self.window
        return begin <= local < end if begin < end else local >= begin or local < end


class Allowed(Part):
    """Which studies this site takes."""

    tasks: tuple[Task, ...] = Field(_TASKS, description="Tasks.")
    models: tuple[ModelName, ...] = Field(_MODELS, description="Networks.")
    unprotected_studies: tuple[str, ...] = Field((), description="Ids of studies without privacy that are allowed.")
    train_after_unprotected: str = Field(
        "", max_length=1000, description="Why private studies may go on after one without privacy, in words; empty: they may not."
    )

    @field_validator("unprotected_studies")
    @classmethod
    def _are_ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [one for one in ids if not re.fullmatch(SHA256, one)]
        if wrong:
            raise ValueError(f'"{wrong[0][:40]}" is no study id; write the 64 digits that `wardround-client studies` shows')
        return ids


class SiteConfig(Part):
    """`site.yaml` as a whole."""

    name: str = Field(description="The site's name, as in the invitation.")
    coordinator: str = Field(description="The coordinator's URL, as in the invitation. This line is the one that counts.")
    cohorts: dict[str, CohortConfig] = Field(default_factory=dict, description="The data: an entry for each cohort.")
    device: str = Field("auto", description="auto, cpu, mps, cuda or cuda:N.")
    threads: int | None = Field(None, ge=1, le=1024, description="Processor threads for training; without it all.")
    limits: Limits = Field(default_factory=Limits, description="How much this site gives.")
    allow: Allowed = Field(default_factory=Allowed, description="Which studies this site takes.")
    metrics_may_leave: tuple[Literal["histogram"], ...] = Field(("histogram",), description="Metrics that may leave.")
    exclusions_in_egress_log: bool = Field(False, description="Whether the log of what left says how many patients are excluded.")
    metrics: str = Field("127.0.0.1:9465", description="Where the daemon serves its own figures for monitoring, or off.")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not SITE_NAME.fullmatch(name):
            raise ValueError(f'must be the name in the invitation (letters, digits, dots and hyphens); is "{name[:40]}"')
        return name

    @field_validator("coordinator")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if not _URL.fullmatch(url):
            raise ValueError(f'must be the URL in the invitation, https://host:port without a path; is "{url[:80]}"')
        return url

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not _DEVICE.fullmatch(device):
            raise ValueError(f'must be auto, cpu, mps, cuda or cuda:N; is "{device[:40]}"; auto takes a card if there is one')
        return device

    @field_validator("metrics")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        return checked_listen(text)

    @field_validator("cohorts")
    @classmethod
    def _have_names(cls, cohorts: dict[str, CohortConfig]) -> dict[str, CohortConfig]:
        wrong = [name for name in cohorts if not re.fullmatch(SLUG, name)]
        if wrong:
            raise ValueError(f'"{wrong[0][:40]}" is no name of a cohort; write small letters, digits and hyphens, such as chest')
        return cohorts

    @model_validator(mode="after")
    def _delta_is_small_enough(self) -> SiteConfig:
        largest = max((cohort.nominal_patients for cohort in self.cohorts.values()), default=1)
        if self.limits.delta * PATIENTS_PER_DELTA * largest > 1 + 1e-9:
            raise ValueError(
                f"limits.delta: is {self.limits.delta:g}; for {largest:,} nominal patients it is at most "
                f"{1 / (PATIENTS_PER_DELTA * largest):g} (1 / (10 x nominal_patients)); lower it"
            )
        return self

    @classmethod
    def read(cls, path: Path) -> SiteConfig:
        """Read and check the file; relative paths of data start at its folder. Raises InputError with every problem."""
        config = cls.parse(_read_text(path), str(path))
        cohorts = {name: one.model_copy(update={"data": str(path.absolute().parent / one.data)}) for name, one in config.cohorts.items()}
        return config.model_copy(update={"cohorts": cohorts})

    @classmethod
    def parse(cls, text: str, name: str) -> SiteConfig:
        """Check the text of a file; `name` stands before each problem. Raises InputError."""
        document = read_yaml(text)
        config = None
        if isinstance(document.value, dict):
            config = validated(document, cls, partial(_fields, document))
        else:
            document.problems = document.problems or [Problem(1, "", "is no site.yaml; write at least the keys name and coordinator")]
        if config is None or document.problems:
            raise InputError(problem_lines(name, document))
        return config


def template(name: str, url: str) -> str:
    """The annotated `site.yaml` of a new site."""
    text = resources.files("client").joinpath("templates/site.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(name=name, url=url)


def _fields(document: Document) -> dict[str, StudyField]:
    """The keys of the file in words; those of a cohort stand under each cohort's own name."""
    fields = fields_of(SiteConfig.model_json_schema())
    inner = {key.removeprefix("cohorts."): field for key, field in fields.items() if key.startswith("cohorts.")}
    cohorts = document.value.get("cohorts")
    for name in cohorts if isinstance(cohorts, dict) else ():
        fields |= {f"cohorts.{name}.{key}": field for key, field in inner.items()}
    return fields


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; a policy is a short YAML file")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); restore it, or take the template of `wardround-client init`"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save the file as UTF-8") from error
