# SPDX-License-Identifier: Apache-2.0
"""Offers and the sites' answers to them, for tests."""

import json
import secrets
import time

from common.crypto.secrets import Secret
from common.federation import ApprovalRecord, StartRecord
from common.signed import Signed
from common.study import Study
from server.offers import find_offer, record_approval
from tests.server.gateway.coordinator import Coordinator, Hospital

INITIAL = "ab" * 32


def offered(coordinator: Coordinator, study: Study, sites: tuple[str, ...], *, initial: str = INITIAL, min_sites: int = 1) -> StartRecord:
    """An offer as `make_offer` leaves it, without building the model."""
    record = StartRecord(
        study_id=study.id,
        run_id=secrets.token_hex(16),
        sites=sites,
        min_sites=min_sites,
        initial_weights_sha256=initial,
        receipt_key=Secret.read(coordinator.home.coordinator_key).signer.public_key,
        version="0.1.0",
        created=time.time(),
        expires=time.time() + 3600,
    )
    signed = record.signed(Secret.read(coordinator.home.study_key).signer)
    row = (record.run_id, study.id, study.canonical_json, signed.to_json(), json.dumps(sites), record.created)
    with coordinator.state.writing() as database:
        database.execute("INSERT INTO offer (run_id, study_id, study, start, sites, created) VALUES (?, ?, ?, ?, ?, ?)", row)
    return record


def answer(hospital: Hospital, record: StartRecord, **changes: object) -> Signed:
    """The site's signed answer."""
    facts = {
        "site": hospital.name,
        "study_id": record.study_id,
        "decision": "approved",
        "cohort": "cohort",
        "runs": 1,
        "initial_weights_sha256": record.initial_weights_sha256,
        "client_version": "0.1.0",
        "epsilon_total": 1.0,
        "approved_by": "IT",
        "created": time.time(),
    }
    return ApprovalRecord.model_validate({**facts, **changes}).signed(hospital.keys.secret.signer)


def send(coordinator: Coordinator, hospital: Hospital, signed: Signed) -> dict:
    """The answer as the gateway hands it on."""
    from server.sites import SiteRegistry

    site = SiteRegistry(coordinator.state).by_name(hospital.name)
    return record_approval(coordinator.home, site, signed.to_json().encode())


def start_of(coordinator: Coordinator, record: StartRecord) -> tuple[str, str]:
    """Study text and signature as they stand in a run's configuration."""
    offer = find_offer(coordinator.state, record.run_id)
    assert offer is not None
    return offer.study, offer.start.to_json()
