# SPDX-License-Identifier: Apache-2.0
"""Who may be asked, whose answer counts, and for which run."""

import time
from pathlib import Path

import pytest

from common.crypto.secrets import Secret
from common.errors import InputError, ProtocolError, RefusedError
from common.federation import NO_MESSAGE, NO_RUN, EgressStatement, StartRecord
from common.protocol import Refusal, RefusalCode, weights_sha256
from common.riders import payload_sha256, with_egress
from common.signed import Signed
from server.egress_receipts import Expected, check_and_receipt
from server.initial import initial_model
from server.offers import approved_sites, find_offer, is_approved, make_offer, record_approval, set_withdrawn, studies
from server.run_registry import RunRegistry
from server.sites import SiteRegistry
from tests.server.gateway.coordinator import Coordinator, Hospital
from tests.server.offering import answer, offered, send
from tests.support.studies import small

STUDY = small()


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator.make(tmp_path)


def signer(coordinator: Coordinator):
    return Secret.read(coordinator.home.study_key).signer


def test_an_offer_says_what_the_sites_have_to_know(coordinator: Coordinator, tmp_path: Path) -> None:
    for name in ("north", "south", "west"):
        coordinator.hospital(name, tmp_path)
    study = STUDY.with_changes({"data.image_size": 16, "model.name": "cnn"})
    signed = make_offer(coordinator.home, study, ["north", "south"], None, signer(coordinator), now=1000.0)
    record = StartRecord.verified(signed, coordinator.home.study_public_key.read_text().strip())
    assert (record.study_id, record.sites, record.min_sites, record.created) == (study.id, ("north", "south"), 2, 1000.0)
    assert record.expires > record.created
    assert record.initial_weights_sha256 == weights_sha256(initial_model(study))
    assert record.receipt_key == Secret.read(coordinator.home.coordinator_key).signer.public_key
    registry = SiteRegistry(coordinator.state)
    (seen,) = studies(coordinator.home, registry.by_name("south"))["studies"]
    assert seen["study"] == study.canonical_json
    assert Signed.model_validate(seen["start"]) == signed
    assert studies(coordinator.home, registry.by_name("west")) == {"studies": []}
    set_withdrawn(coordinator.state, record.run_id, True)
    assert studies(coordinator.home, registry.by_name("south")) == {"studies": []}


def test_everything_that_is_wrong_with_an_offer_is_said_at_once(coordinator: Coordinator, tmp_path: Path) -> None:
    from common.crypto.site_keys import SiteKeys
    from server.enrolment import enrol, invite

    coordinator.hospital("north", tmp_path)
    coordinator.hospital("gone", tmp_path)
    SiteRegistry(coordinator.state).revoke("gone")
    request = SiteKeys.ensure(tmp_path / "late").request(invite(coordinator.home, "late", 1.0))
    enrol(coordinator.home, request.model_dump_json().encode())
    study = STUDY.with_changes({"federation.weights": {"north": 1.0}, "federation.min_sites": 6})
    with pytest.raises(InputError) as caught:
        make_offer(coordinator.home, study, ["north", "north", "gone", "late", "nobody"], 3, Secret(b"x" * 32).signer)
    said = "\n".join(caught.value.problems)
    for expected in (
        "north is named twice",
        "gone is revoked",
        "late is not approved yet",
        "nobody is unknown",
        "--min-sites 3: the study needs 6",
        "4 sites, the run needs 6",
        "no weight for gone",
        "not the study-signing key",
    ):
        assert expected in said, expected
    assert studies(coordinator.home, SiteRegistry(coordinator.state).by_name("north")) == {"studies": []}


def test_min_sites_may_be_raised(coordinator: Coordinator, tmp_path: Path) -> None:
    for name in ("north", "south", "west"):
        coordinator.hospital(name, tmp_path)
    with pytest.raises(InputError, match="2 sites, the run needs 3"):
        make_offer(coordinator.home, STUDY, ["north", "south"], 3, signer(coordinator))
    signed = make_offer(coordinator.home, STUDY, ["north", "south", "west"], 3, signer(coordinator))
    assert StartRecord.model_validate_json(signed.record).min_sites == 3


def test_an_answer_counts_only_from_its_own_site(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south, west = (coordinator.hospital(name, tmp_path) for name in ("north", "south", "west"))
    record = offered(coordinator, STUDY, ("north", "south"))
    site = SiteRegistry(coordinator.state).by_name("north")
    with pytest.raises(ProtocolError, match="signature"):
        record_approval(coordinator.home, site, answer(south, record).to_json().encode())
    with pytest.raises(ProtocolError, match="it is of south, but north sent it"):
        record_approval(coordinator.home, site, answer(north, record, site="south").to_json().encode())
    with pytest.raises(RefusedError, match="not offered to west"):
        send(coordinator, west, answer(west, record))
    with pytest.raises(RefusedError, match="not offered"):
        send(coordinator, north, answer(north, record, study_id="0" * 64))
    signed = answer(north, record)
    assert send(coordinator, north, signed) == send(coordinator, north, signed) == {"status": "recorded"}


def test_the_newest_answer_counts_and_an_old_one_cannot_come_back(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.hospital("north", tmp_path)
    record = offered(coordinator, STUDY, ("north",))
    yes = answer(north, record, created=time.time() - 10)
    send(coordinator, north, yes)
    RunRegistry(coordinator.state).record(7, record.run_id, record.study_id, time.time())
    assert is_approved(coordinator.state, "north", 7)
    send(coordinator, north, answer(north, record, decision="rejected"))
    assert not is_approved(coordinator.state, "north", 7)
    with pytest.raises(RefusedError, match="newer answer"):
        send(coordinator, north, yes)
    assert not is_approved(coordinator.state, "north", 7)


def test_approved_means_this_run_of_this_study_with_these_weights(coordinator: Coordinator, tmp_path: Path) -> None:
    north, south = (coordinator.hospital(name, tmp_path) for name in ("north", "south"))
    record = offered(coordinator, STUDY, ("north", "south"))
    other = offered(coordinator, STUDY.with_changes({"seed": 5}), ("north",))
    registry = RunRegistry(coordinator.state)
    registry.record(7, record.run_id, record.study_id, time.time())
    registry.record(2**64 - 3, other.run_id, other.study_id, time.time())
    send(coordinator, north, answer(north, record))
    send(coordinator, south, answer(south, record, initial_weights_sha256="0" * 64))
    assert is_approved(coordinator.state, "north", 7)
    assert not is_approved(coordinator.state, "south", 7), "approved with other initial weights"
    assert not is_approved(coordinator.state, "north", 2**64 - 3), "another study"
    assert not is_approved(coordinator.state, "north", 8), "no such run"
    set_withdrawn(coordinator.state, record.run_id, True)
    assert not is_approved(coordinator.state, "north", 7)


UNKNOWN = {"study_id": NO_MESSAGE, "run_id": NO_RUN, "round": 0, "incoming_sha256": NO_MESSAGE, "number": 1, "head": "0" * 64}
"""What a site says of a message that it did not read."""


def refuses(coordinator: Coordinator, hospital: Hospital, record: StartRecord, code: RefusalCode, said: dict[str, object]) -> None:
    """A refusal of round 1 as it arrives, with the site's statement about it, which the coordinator checks and gives a receipt for."""
    reply = Refusal(code, hospital.name).to_records()
    signed = EgressStatement.model_validate({**said, "payload_sha256": payload_sha256(reply)}).signed(hospital.keys.secret.signer)
    check_and_receipt(
        coordinator.state,
        Secret.read(coordinator.home.coordinator_key).signer,
        hospital.name,
        with_egress(reply, signed.to_json()),
        signing_key=hospital.keys.secret.signer.public_key,
        expected=Expected(record.study_id, record.run_id, 1, "d" * 64),
        now=time.time(),
    )


def test_an_approval_that_is_used_up_does_not_count_for_a_further_run(coordinator: Coordinator, tmp_path: Path) -> None:
    north = coordinator.hospital("north", tmp_path)
    registry = RunRegistry(coordinator.state)
    first = offered(coordinator, STUDY, ("north",))
    send(coordinator, north, answer(north, first))
    registry.record(1, first.run_id, first.study_id, time.time())
    second = offered(coordinator, STUDY, ("north",))
    offer = find_offer(coordinator.state, second.run_id)
    assert offer is not None
    assert approved_sites(coordinator.state, offer) == ["north"], "the first run never got an answer: nothing is used"
    refuses(coordinator, north, first, RefusalCode.PAUSED, UNKNOWN)
    assert approved_sites(coordinator.state, offer) == ["north"], "refused before the site let the run begin: it does not count it either"
    refuses(coordinator, north, first, RefusalCode.TRAINING_FAILED, UNKNOWN | {"study_id": STUDY.id, "run_id": first.run_id})
    assert approved_sites(coordinator.state, offer) == [], "refused after the run began: the site counts it too"
    assert is_approved(coordinator.state, "north", 1), "the first run goes on"
    send(coordinator, north, answer(north, first, runs=2))
    assert approved_sites(coordinator.state, offer) == ["north"]


def test_flower_runs_of_one_run_are_found_under_either_number(coordinator: Coordinator) -> None:
    registry = RunRegistry(coordinator.state)
    registry.record(2**63 + 1, "a" * 32, "b" * 64, 1.0)
    registry.record(2**63 + 1, "c" * 32, "b" * 64, 2.0)
    registry.record(5, "a" * 32, "b" * 64, 3.0)
    assert [run.flower_run_id for run in registry.of("a" * 32)] == [2**63 + 1, 5]
    found = registry.find(2**63 + 1)
    assert found is not None
    assert (found.run_id, found.started) == ("a" * 32, 1.0)
    assert registry.find(6) is None
    assert len(registry.all()) == 2
