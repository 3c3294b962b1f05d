# SPDX-License-Identifier: Apache-2.0
"""`wardround-sim federation`: a coordinator and three hospitals on this machine, from the first key to the third round.

Everything goes through the real commands as processes (`simulations.loopback`). Each hospital gets the images of one scanner of the
quickstart's synthetic data; the privacy is the quickstart's. At the end, also after Ctrl-C, every process is stopped; the folders stay.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from common.data.phantom import PhantomReader
from common.data.sources import RawTable
from common.errors import InputError
from common.files import write_atomic
from common.stopping import stopped_by_signal
from common.study import Study
from common.study_file import load_study
from simulations.layout import account_delta
from simulations.loopback import Hospital, Loopback, wait_for_end
from simulations.options import RUNS_FOLDER, find_study

NAMES = ("harbour", "hillside", "university")
EPSILON_CAP = 10.0
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """One demonstration in `folder`, of so many rounds; `tell` gets a line at each step."""

    folder: Path
    rounds: int
    tell: Tell

    def run(self) -> dict[str, Any]:
        """From nothing to a trained model; what was found. Everything is stopped at the end, whatever happens."""
        study = demo_study(self.rounds)
        federation = Loopback(self.folder, limits={"epsilon_per_account": EPSILON_CAP, "delta": account_delta(study)})
        try:
            self.tell(f"folder: {self.folder}")
            hospitals = self._prepare(federation, study)
            self._enrol(federation, hospitals)
            self._train(federation, hospitals, study)
            return self._facts(federation, hospitals, study)
        finally:
            with stopped_by_signal(threading.Event()):  # a second Ctrl-C must not leave half of them running
                self.tell("stopping: hospitals, then the coordinator")
                federation.stop()

    def _prepare(self, federation: Loopback, study: Study) -> list[Hospital]:
        self.tell("images: the synthetic chest radiographs of three scanners, one npz file a hospital")
        hospitals = write_hospitals(federation, study)
        write_atomic(self._study_file, yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        self.tell("coordinator: certificate authority, keys, state folder (wardround-server init)")
        federation.make_coordinator()
        federation.up()
        self.tell(f"coordinator: up at {federation.url} (wardround-server up)")
        return hospitals

    def _enrol(self, federation: Loopback, hospitals: list[Hospital]) -> None:
        for hospital in hospitals:
            federation.enrol(hospital)
            self.tell(f"{hospital.name}: enrolled (wardround-server invite, wardround-client init, wardround-server sites approve)")
        read_out = federation.words()
        for name, words in read_out.items():
            self.tell(f"{name}: both ends read: {words}")
        for hospital in hospitals:
            federation.start_site(hospital, read_out[hospital.name])
        self.tell("hospitals: their daemons are started (wardround-client start)")

    def _train(self, federation: Loopback, hospitals: list[Hospital], study: Study) -> None:
        started = federation.offer(self._study_file, [hospital.name for hospital in hospitals])
        self.tell(f"study: {study.name} {study.id[:8]} is offered (wardround-server start)")
        for hospital in hospitals:
            federation.wait_for_offer(hospital, study.id, started)
            federation.approve(hospital, study.id)
            self.tell(f"{hospital.name}: approved (wardround-client approve)")
        self.tell(f"training: {self.rounds} rounds")
        wait_for_end(started)

    def _facts(self, federation: Loopback, hospitals: list[Hospital], study: Study) -> dict[str, Any]:
        runs = federation.on_server("runs", "--json").json["runs"]
        sites = {hospital.name: self._of_site(federation, hospital) for hospital in hospitals}
        return {"folder": str(self.folder), "study_id": study.id, "study": study.name, "runs": runs, "sites": sites}

    @staticmethod
    def _of_site(federation: Loopback, hospital: Hospital) -> dict[str, Any]:
        return {
            "home": str(hospital.home),
            "budget": federation.at(hospital, "budget", "--json").json,
            "egress": federation.at(hospital, "egress", "--verify", "--json").json,
        }

    @property
    def _study_file(self) -> Path:
        return self.folder / "study.yaml"


def demo_study(rounds: int) -> Study:
    """The quickstart for real hospitals: images from files, fewer rounds."""
    changes = {"name": "first-federation", "data.source": "npz", "federation.rounds": rounds, "federation.min_sites": len(NAMES)}
    return load_study(find_study("quickstart")).with_changes(
        {**changes, "description": "Opacity or not in synthetic chest radiographs, at three hospitals on one machine."}
    )


def write_hospitals(federation: Loopback, study: Study) -> list[Hospital]:
    """The images of the phantom's first scanners, one npz file a hospital."""
    table = PhantomReader().read(study.data.model_copy(update={"source": "phantom"}), None)
    scanners = np.unique(table.columns["scanner"])[: len(NAMES)]
    return [write_hospital(federation, name, table, table.columns["scanner"] == one) for name, one in zip(NAMES, scanners, strict=True)]


def write_hospital(federation: Loopback, name: str, table: RawTable, rows: npt.NDArray[np.bool_]) -> Hospital:
    """One hospital with the chosen rows [N] of `table` as its npz file. Raises InputError."""
    if table.patient_ids is None:
        raise InputError("the synthetic images have no patient ids")
    ids = table.patient_ids[rows]
    hospital = federation.hospital(name, nominal_patients(len(np.unique(ids))))
    hospital.data.parent.mkdir(parents=True, exist_ok=True)
    np.savez(hospital.data, images=table.images[rows], labels=table.labels[rows], patient_id=ids)
    return hospital


def nominal_patients(patients: int) -> int:
    """A public round number near the patients that train: four in five of them, in fifties."""
    return max(10, int(0.8 * patients) // 50 * 50)


def new_folder(out: Path | None) -> Path:
    """`out`, which must not be there yet, or a fresh name under `runs/`. Raises InputError."""
    if out is None:
        return (RUNS_FOLDER / f"federation-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}").absolute()
    if out.exists():
        raise InputError(f"--out {out}: is there already; name a new folder")
    return out.absolute()
