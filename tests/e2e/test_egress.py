# SPDX-License-Identifier: Apache-2.0
"""From the hospital's door to the coordinator's receipt and back, through Flower's own bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from client.egress import Incoming, last_receipt_id, release, take_receipts
from client.egress_audit import audit
from client.site_home import SiteHome
from common.errors import ProtocolError
from common.flower_compat.identity import assume_server_identity
from common.flower_compat.messages import give_message_id, message_from_bytes, message_to_bytes
from common.protocol import RefusalCode, read_reply, shapes_of
from server.egress_receipts import Expected, check_and_receipt, receipts
from server.home import ServerHome
from server.state import State
from tests.client.egress_site import COORDINATOR, NAME, RUN, SITE, incoming, instruction, make_home, model, offered_study, refusal, update


@dataclass(frozen=True)
class Registered:
    name: str = NAME


@pytest.fixture
def site(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "site")


@pytest.fixture
def coordinator(tmp_path: Path) -> ServerHome:
    (tmp_path / "server").mkdir()
    return ServerHome(tmp_path / "server")


def travelled(reply: RecordDict) -> RecordDict:
    """The reply as it comes out of Flower's wire format at the other end."""
    assume_server_identity(1)
    asked = Message(RecordDict(), 1, "train")
    give_message_id(asked)
    return message_from_bytes(message_to_bytes(Message(reply, reply_to=asked))).content


def arrive(coordinator: ServerHome, reply: RecordDict, round_number: int) -> None:
    sent = instruction(round_number)
    read_reply(reply, run_id=RUN, round_number=round_number, shapes=shapes_of(sent.model))
    check_and_receipt(
        State(coordinator.state),
        COORDINATOR.signer,
        NAME,
        reply,
        signing_key=SITE.signer.public_key,
        expected=Expected(offered_study().id, RUN, round_number, sent.sha256),
        now=1e9,
    )


def test_what_left_is_acknowledged_and_a_cut_log_is_found(site: SiteHome, coordinator: ServerHome) -> None:
    for number in (1, 2):
        arrive(coordinator, travelled(release(site, incoming(number), update(number))), number)
    arrive(coordinator, travelled(release(site, Incoming.unread(offered_study().id, RUN), refusal(RefusalCode.PAUSED))), 3)
    taken = take_receipts(site, receipts(coordinator, Registered(), last_receipt_id(site))["receipts"])
    assert (taken.kept, taken.problems, last_receipt_id(site)) == (3, (), 3)
    assert receipts(coordinator, Registered(), last_receipt_id(site))["receipts"] == []
    found = audit(site)
    assert (found.problems, found.acknowledged, found.covered) == ([], {1, 2, 3}, 3)
    site.egress.write_bytes(site.egress.read_bytes().splitlines(keepends=True)[0])
    assert len(audit(site).missing) == 2


def test_a_reply_of_an_earlier_round_is_not_acknowledged_again(site: SiteHome, coordinator: ServerHome) -> None:
    reply = travelled(release(site, incoming(1), update(1)))
    arrive(coordinator, reply, 1)
    with pytest.raises(ProtocolError, match="belongs to run"):
        arrive(coordinator, reply, 2)
    assert len(receipts(coordinator, Registered(), 0)["receipts"]) == 1


def test_the_tensors_arrive_as_they_left(site: SiteHome) -> None:
    read = read_reply(travelled(release(site, incoming(), update())), run_id=RUN, round_number=1, shapes=shapes_of(model()))
    assert {name: array.tolist() for name, array in read.delta.items()} == {name: array.tolist() for name, array in model(0.25).items()}
