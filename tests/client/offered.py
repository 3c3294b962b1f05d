# SPDX-License-Identifier: Apache-2.0
"""A hospital's home with real (synthetic) images, and a coordinator that signs studies for it. No network."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from client.approvals import Permit, permit
from client.approving import approve, propose
from client.offers import store_offer
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.phantom import PhantomReader
from common.federation import ApprovalRecord, StartRecord
from common.protocol import weights_sha256
from common.signed import Signed
from common.study import Study
from tests.support.studies import PRIVATE, small

COORDINATOR = Secret(b"k" * 32)
NOW = 1_700_000_000.0
DAY = 86400.0
PATIENTS = 60
MEASURED = {"epsilon": 1.0}


def hospital_study(privacy: Any = PRIVATE, **changes: Any) -> Study:
    return small(privacy, **{"data.source": "npz", **changes})


@cache
def initial_weights(text: str) -> str:
    from common.models.registry import initial_state

    return weights_sha256(initial_state(Study.from_canonical_json(text)))


@cache
def images() -> Mapping[str, np.ndarray]:
    study = small(PRIVATE, **{"data.phantom": {"patients": PATIENTS, "scanners": 1}})
    table = PhantomReader().read(study.data, None)
    return {"images": table.images, "labels": table.labels, "patient_id": table.patient_ids}


@dataclass
class Hospital:
    """One site, `north`, with the cohort `chest`."""

    home: SiteHome

    @classmethod
    def make(cls, folder: Path, **limits: Any) -> "Hospital":
        folder.mkdir(mode=0o700, exist_ok=True)
        home = SiteHome(folder)
        Secret.ensure(home.key)
        facts = {"site": "north", "url": "https://c.example:1", "ca_certificate": "-", "token": "0" * 64, "expires": 0.0}
        home.invitation.write_text(json.dumps({**facts, "study_key": COORDINATOR.signer.public_key}))
        np.savez(folder / "chest.npz", **images())
        settings = {
            "name": "north",
            "coordinator": "https://c.example:1",
            "cohorts": {"chest": {"data": "chest.npz", "nominal_patients": 50}},
            "limits": {"epsilon_per_account": 8.0, "delta": 1e-5, **limits},
        }
        home.config.write_text(yaml.safe_dump(settings))
        return cls(home)

    def change(self, part: str, **values: Any) -> None:
        """What IT changes in site.yaml."""
        settings = yaml.safe_load(self.home.config.read_text())
        settings[part] = {**settings.get(part, {}), **values} if values else None
        self.home.config.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))

    def set(self, **values: Any) -> None:
        self.home.config.write_text(yaml.safe_dump({**yaml.safe_load(self.home.config.read_text()), **values}))

    def offer(self, study: Study, **changes: Any) -> Signed:
        """The coordinator signs a start and the daemon stores it."""
        signed = start(study, **changes)
        store_offer(self.home, {"study": study.canonical_json, "start": signed.model_dump()})
        return signed

    def approve(self, study: Study, runs: int = 1, now: float = NOW) -> ApprovalRecord:
        return approve(self.home, propose(self.home, study.id, None, runs, now), "IT", now)

    def permit(self, study: Study, signed: Signed, now: float = NOW) -> Permit:
        return permit(self.home, study.canonical_json, signed, now)


def start(study: Study, signer: Secret = COORDINATOR, **changes: Any) -> Signed:
    """A signed start record of a new run."""
    content = {
        "study_id": study.id,
        "run_id": secrets.token_hex(16),
        "sites": ["north", "south"],
        "min_sites": 2,
        "initial_weights_sha256": initial_weights(study.canonical_json),
        "receipt_key": COORDINATOR.signer.public_key,
        "version": "1",
        "created": NOW,
        "expires": NOW + DAY,
        **changes,
    }
    return StartRecord.model_validate(content).signed(signer.signer)
