# SPDX-License-Identifier: Apache-2.0
"""The run directory: what lies where (docs/run-directory.md says it for users)."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.errors import InputError, StorageError
from common.files import write_atomic
from common.study import PatientPrivacy, Study

DEFAULT_DELTA = 1e-6


@dataclass(frozen=True)
class RunLayout:
    """Paths in one run directory. The same folder is the server's home."""

    folder: Path

    @property
    def study(self) -> Path:
        """The study, pretty JSON."""
        return self.folder / "study.json"

    @property
    def request(self) -> Path:
        """How the run was asked for; `--resume` reads it."""
        return self.folder / "request.json"

    @property
    def server(self) -> Path:
        """The server's `run.json`: our run id and the sites."""
        return self.folder / "run.json"

    @property
    def events(self) -> Path:
        """The event stream."""
        return self.folder / "events.jsonl"

    @property
    def results(self) -> Path:
        """What was found; there when the run is complete."""
        return self.folder / "results.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @property
    def coordinator_key(self) -> Path:
        """The coordinator's secret key."""
        return self.folder / "coordinator.key"

    @property
    def site_table(self) -> Path:
        """List of the sites' folders."""
        return self.folder / "sites.json"

    @property
    def baseline_table(self) -> Path:
        """List of the baselines' folders."""
        return self.folder / "baselines.json"

    def site(self, name: str) -> Path:
        """One site's own folder."""
        return self.folder / "sites" / name

    def baseline(self, name: str) -> Path:
        """One baseline's folder: `pooled`, or a site's name."""
        return self.folder / "baselines" / name

    def read_study(self) -> Study:
        """The study of this run. Raises InputError when the folder is not a run directory."""
        try:
            if not self.request.exists():
                raise FileNotFoundError("no request.json: it stopped before its data was ready, or is another folder")
            return Study.model_validate_json(self.study.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder}: not a run directory ({error}); start it again, or give the folder that `wardround-sim run` named"
            ) from error

    def write_study(self, study: Study) -> None:
        """Write the study."""
        write_atomic(self.study, study.model_dump_json(indent=1))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for this process; at the end it is removed again if the run in it was never ready to start.

        Raises InputError when another process runs in it, StorageError when it cannot be made.
        """
        with self._lock_file() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{self.folder}: another process runs in this folder; wait for it or choose another --out") from error
            try:
                yield
            finally:
                if not self.request.exists():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def _lock_file(self) -> IO[str]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return (self.folder / ".lock").open("a")
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made ({error.strerror}); choose another --out") from error


def account_delta(study: Study) -> float:
    """δ of the sites' accounts: a simulation takes the study's, as published tables do, and the report says it."""
    return study.privacy.delta if isinstance(study.privacy, PatientPrivacy) else DEFAULT_DELTA


def write_table(path: Path, folders: Sequence[Path]) -> None:
    """Write a table of site folders, relative to its own place."""
    write_atomic(path, json.dumps([str(folder.relative_to(path.parent)) for folder in folders], indent=1))
