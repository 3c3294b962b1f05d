# SPDX-License-Identifier: Apache-2.0
"""The outcome of a cohort's check, and `checks.json`, its form for machines: numbers and sentences, no patient and no file name.

`passed` is true when there is no error; warnings do not fail it. A check that could not be made says why, and does not fail it either.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from client.cohorts.findings import Finding, Severity
from common.errors import DataError, StorageError
from common.files import write_atomic

CHECKS: Final = "checks.json"


class CheckResult(BaseModel):
    """One check: its findings, or why it was not made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    findings: tuple[Finding, ...] = ()
    not_made: str | None = None

    @property
    def state(self) -> str:
        """The worst of it in a word."""
        if self.not_made is not None:
            return "not made"
        found = {one.severity for one in self.findings}
        return "error" if Severity.ERROR in found else "warning" if found else "ok"


class Group(BaseModel):
    """How many patients and rows one part of the split has; `labels` counts the rows of each label, by label column."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    patients: int
    rows: int
    labels: dict[str, dict[str, int]]


class Verdict(BaseModel):
    """`checks.json`. `cohort` is the digest of the cohort that was checked, `time` seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    time: float
    cohort: str
    kind: str
    patients: int
    rows: int
    images: int
    study_id: str | None
    groups: tuple[Group, ...]
    checks: tuple[CheckResult, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, errors first."""
        found = [one for check in self.checks for one in check.findings]
        return tuple(sorted(found, key=lambda one: one.severity is not Severity.ERROR))

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(one.severity is Severity.ERROR for one in self.findings)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return len(self.findings) - self.errors

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong that stops a study."""
        return self.errors == 0

    def summary(self) -> str:
        """One line."""
        made = sum(check.not_made is None for check in self.checks)
        return (
            f"{self.patients:,} patients, {self.rows:,} {'images' if self.images else 'rows'}; {made} checks: "
            f"{self.errors} errors, {self.warnings} warnings"
        )

    def as_json(self) -> str:
        """The file's text, with `passed` and the counts spelt out."""
        return VerdictFile(passed=self.passed, errors=self.errors, warnings=self.warnings, verdict=self).model_dump_json(indent=1) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `checks.json` into the cohort's folder. Raises StorageError."""
        path = folder / CHECKS
        write_atomic(path, self.as_json())
        try:
            path.chmod(0o600)
        except OSError as error:
            raise StorageError(f"{path}: its permissions cannot be set ({error.strerror})") from error
        return path


class VerdictFile(BaseModel):
    """What is in `checks.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passed: bool
    errors: int
    warnings: int
    verdict: Verdict


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def read_verdict(folder: Path) -> Verdict | None:
    """The last verdict; None when there is none. Raises DataError for a damaged file."""
    path = folder / CHECKS
    try:
        return VerdictFile.model_validate_json(path.read_text(encoding="utf-8")).verdict
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read; delete it and run `wardround-client cohort check` again") from error
