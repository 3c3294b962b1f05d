# SPDX-License-Identifier: Apache-2.0
"""A site's home with policy, key, invitation and one offered study; replies of a small model; and the coordinator's receipts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.egress import Incoming, open_chain, release, take_receipts
from client.egress_chain import BEFORE_THE_FIRST, EgressLine
from client.ledger.heads import signed_head
from client.offers import store_offer
from client.site_config import template
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.enrolment import Invitation
from common.federation import EgressReceipt, EgressStatement, StartRecord
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Update
from common.riders import egress_of, with_head
from common.signed import Signed
from common.study import Study
from tests.support.studies import PRIVATE, small

SITE, COORDINATOR, STUDY_KEY, STRANGER = Secret(b"s" * 32), Secret(b"c" * 32), Secret(b"k" * 32), Secret(b"x" * 32)
RUN = "ab" * 16
NAME = "north"
COUNTS_SHAPE = (1, 2, 4)


@cache
def offered_study() -> Study:
    return small(PRIVATE)


def make_home(folder: Path, policy: str = "") -> SiteHome:
    """A home at `folder`; `policy` is put in the place of the line that lets the histogram out."""
    folder.mkdir(mode=0o700, exist_ok=True)
    home = SiteHome(folder)
    text = template(NAME, "https://localhost:1")
    home.config.write_text(text.replace("metrics_may_leave: [histogram]", policy) if policy else text, encoding="utf-8")
    write_key(home)
    invitation = Invitation(
        site=NAME,
        url="https://localhost:1",
        ca_certificate="",
        study_key=STUDY_KEY.signer.public_key,
        token="0" * 64,
        expires=2e9,
    )
    home.invitation.write_text(invitation.model_dump_json(), encoding="utf-8")
    write_offer(home, offered_study())
    return home


def write_key(home: SiteHome, secret: Secret = SITE) -> None:
    home.key.unlink(missing_ok=True)
    home.key.touch(0o600)
    home.key.write_text(secret.value.hex())


def write_offer(home: SiteHome, study: Study) -> None:
    start = StartRecord(
        study_id=study.id,
        run_id=RUN,
        sites=(NAME, "south"),
        min_sites=2,
        initial_weights_sha256="0" * 64,
        receipt_key=COORDINATOR.signer.public_key,
        version="0",
        created=0.0,
        expires=2e9,
    ).signed(STUDY_KEY.signer)
    store_offer(home, {"study": study.canonical_json, "start": json.loads(start.to_json())})


def model(value: float = 0.5) -> dict[str, np.ndarray]:
    return {"bias": np.full(3, value, np.float32), "weight": np.full((2, 3), value, np.float32)}


def instruction(round_number: int = 1, train: bool = True, value: float = 0.5) -> Instruction:
    return Instruction(RUN, offered_study().canonical_json, round_number, train, not train, model(value))


def incoming(round_number: int = 1, train: bool = True, counts_shape: tuple[int, ...] | None = None) -> Incoming:
    sent = instruction(round_number, train)
    shapes = {name: array.shape for name, array in sent.model.items()}
    return Incoming(offered_study().id, RUN, round_number, sent.sha256, shapes, counts_shape, train)


def head() -> str:
    """The head of a ledger without rows."""
    return signed_head(SITE, 0, BEFORE_THE_FIRST, "{}")


def update(round_number: int = 1, value: float = 0.25) -> RecordDict:
    return with_head(Update(RUN, round_number, NAME, model(value)).to_records(), head())


def evaluated(round_number: int = 1, counts: bool = False) -> RecordDict:
    return Evaluated(RUN, round_number, NAME, np.arange(8).reshape(COUNTS_SHAPE) if counts else None).to_records()


def refusal(code: RefusalCode = RefusalCode.NOT_READY) -> RecordDict:
    return Refusal(code, "").to_records()


def send(home: SiteHome, *rounds: int) -> list[Signed]:
    """Let an update of each round out; returns the statements that rode along."""
    return [statement_of(release(home, incoming(number), update(number), now=1e9 + number)) for number in rounds]


def statement_of(reply: RecordDict) -> Signed:
    text = egress_of(reply)
    assert text is not None
    return Signed.from_json(text)


def receipt(item_id: int, signed: Signed, signer: Secret = COORDINATOR, **changes: Any) -> dict[str, Any]:
    """What the coordinator answers for a statement, as it comes over the wire."""
    statement = EgressStatement.model_validate_json(signed.record)
    facts: Mapping[str, Any] = {
        "site": NAME,
        "statement_sha256": signed.sha256,
        "number": statement.number,
        "head": statement.head,
        "received": 1e9,
    }
    made = EgressReceipt.model_validate({**facts, **changes}).signed(signer.signer)
    return {"id": item_id, "statement": json.loads(signed.to_json()), "receipt": json.loads(made.to_json())}


def acknowledge(home: SiteHome, statements: list[Signed], first_id: int = 1) -> None:
    """The coordinator's receipts for all statements arrive."""
    taken = take_receipts(home, [receipt(first_id + index, signed) for index, signed in enumerate(statements)])
    assert (taken.kept, taken.problems) == (len(statements), ())


def lines_of(home: SiteHome) -> list[EgressLine]:
    return list(open_chain(home).lines())
