# SPDX-License-Identifier: Apache-2.0
"""`/v1/wardround/*` through the real gateway: enrolment from nothing, offers, answers, renewal, and how errors come back."""

import time
from pathlib import Path

import httpx
import pytest

from common.crypto.site_keys import SiteKeys
from common.enrolment import RenewRequest
from server.authority import admit, registry
from server.authority import renew as issue_renewal
from server.enrolment import invite
from tests.server.gateway.conftest import Federation
from tests.server.gateway.coordinator import RUN_OF, Hospital, approval, client, start_record

OWN = "/v1/wardround/"


def ask(federation: Federation, hospital: Hospital | None, method: str, call: str, content: bytes | None = None) -> httpx.Response:
    with client(federation.coordinator, hospital) as http:
        return http.request(method, OWN + call, content=content)


def test_enrolment_from_invitation_to_certificate(federation: Federation, tmp_path: Path) -> None:
    home, keys = federation.coordinator.home, SiteKeys.ensure(tmp_path / "east")
    request = keys.request(invite(home, "east", 1.0)).model_dump_json().encode()
    answer = ask(federation, None, "POST", "enrol", request)
    assert (answer.status_code, answer.json()["status"]) == (200, "waiting")
    admit(home, registry(home).by_name("east"), federation.coordinator.authority)
    answer = ask(federation, None, "POST", "enrol", request)
    assert answer.json()["status"] == "approved"
    (tmp_path / "tls.crt").write_text(answer.json()["certificate"])
    east = Hospital("east", keys, tmp_path / "tls.crt", tmp_path / "east" / "tls.pem", 0)
    assert ask(federation, east, "GET", "studies").json() == {"studies": []}


def test_a_used_invitation_is_a_conflict_and_an_unknown_one_forbidden(federation: Federation, tmp_path: Path) -> None:
    home = federation.coordinator.home
    invitation = invite(home, "west", 1.0)
    first, second = (SiteKeys.ensure(tmp_path / name).request(invitation) for name in ("first", "second"))
    assert ask(federation, None, "POST", "enrol", first.model_dump_json().encode()).status_code == 200
    answer = ask(federation, None, "POST", "enrol", second.model_dump_json().encode())
    assert (answer.status_code, answer.json()["code"]) == (409, "INVITATION_USED")
    assert not answer.json()["message"].startswith("INVITATION_USED")
    made_up = SiteKeys.ensure(tmp_path / "third").request(invitation.model_copy(update={"token": "0" * 64}))
    answer = ask(federation, None, "POST", "enrol", made_up.model_dump_json().encode())
    assert (answer.status_code, answer.json()["code"]) == (403, "INVITATION_UNKNOWN")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"site": 1}', b"null"])
def test_an_enrolment_that_cannot_be_read(federation: Federation, body: bytes) -> None:
    answer = ask(federation, None, "POST", "enrol", body)
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")


def test_a_site_sees_its_own_offers(federation: Federation) -> None:
    federation.coordinator.start(901, ("south",), ())
    studies = ask(federation, federation.south, "GET", "studies").json()["studies"]
    assert any('"901"' in one["study"] for one in studies)
    assert not any('"901"' in one["study"] for one in ask(federation, federation.north, "GET", "studies").json()["studies"])


def test_an_approval_through_the_gateway_opens_the_run(federation: Federation) -> None:
    federation.coordinator.start(902, ("north", "south"), ())
    record = start_record('{"study":"902"}', ("north", "south"))
    signed = approval(federation.north, record).to_json().encode()
    answer = ask(federation, federation.south, "POST", "approvals", signed)
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED"), "north's approval, sent by south"
    assert ask(federation, federation.north, "POST", "approvals", signed).status_code == 200
    from server.offers import is_approved

    assert [is_approved(federation.coordinator.state, name, 902) for name in ("north", "south")] == [True, False]


def test_an_answer_to_a_study_that_was_not_offered(federation: Federation) -> None:
    record = start_record("{}", ("north",))
    answer = ask(federation, federation.north, "POST", "approvals", approval(federation.north, record).to_json().encode())
    assert (answer.status_code, answer.json()["code"]) == (403, "STUDY_INVALID")


def test_receipts_are_numbered(federation: Federation) -> None:
    assert ask(federation, federation.north, "GET", "receipts").json() == {"receipts": [], "ledger": None}
    assert ask(federation, federation.north, "GET", "receipts?after=0").json() == {"receipts": [], "ledger": None}


@pytest.mark.parametrize("query", ["after=", "after=-1", "after=1&after=2", "after=1e3", "x", f"after={10**18}", "AFTER=1", "after=%31"])
def test_no_other_query_is_taken(federation: Federation, query: str) -> None:
    answer = ask(federation, federation.north, "GET", f"receipts?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_QUERY")


def test_the_time(federation: Federation) -> None:
    answer = ask(federation, federation.north, "GET", "time")
    assert abs(answer.json()["time"] - time.time()) < 5
    assert answer.headers["cache-control"] == "no-store"


def test_renewal_and_the_new_certificate_counts_at_once(federation: Federation, tmp_path: Path) -> None:
    coordinator = federation.coordinator
    hospital = coordinator.hospital("renewing", tmp_path)
    request = RenewRequest(certificate_request=hospital.keys.certificate_request("renewing")).model_dump_json().encode()
    assert ask(federation, hospital, "POST", "renew", request).json()["status"] == "waiting"
    issue_renewal(coordinator.home, registry(coordinator.home).by_name("renewing"), coordinator.authority)
    answer = ask(federation, hospital, "POST", "renew", request).json()
    assert answer["status"] == "approved" and answer["certificate"] != hospital.certificate.read_text()
    assert ask(federation, hospital, "GET", "time").status_code == 200, "the old one is good until its end"
    hospital.certificate.write_text(answer["certificate"])
    assert ask(federation, hospital, "GET", "time").status_code == 200


def test_the_wrong_method(federation: Federation) -> None:
    assert ask(federation, federation.north, "GET", "enrol").status_code == 405
    assert ask(federation, federation.north, "POST", "studies").status_code == 405
    assert ask(federation, None, "GET", "enrol").status_code == 401


def test_a_body_where_none_belongs_is_left_alone(federation: Federation) -> None:
    with client(federation.coordinator, federation.north) as http:
        assert http.request("GET", OWN + "time", content=b"x" * 100_000).status_code == 200
        assert http.request("GET", OWN + "time").status_code == 200, "the connection still works"


def test_runs_of_the_test_are_what_they_are_called(federation: Federation) -> None:
    from server.offers import is_approved

    state = federation.coordinator.state
    approved = {name: [is_approved(state, site, run) for site in ("north", "south")] for name, run in RUN_OF.items()}
    assert approved == {"north": [True, False], "south": [False, True], "both": [True, True], "nobody": [False, False]}
