# SPDX-License-Identifier: Apache-2.0
"""`wardround-client ledger recover`: first everything that the coordinator knows, then what this site's own files show.

    fetch      offers (whose keys sign receipts), receipts for what left, the receipt for the newest ledger head
    recover    `client.ledger.recovery`, with the log of what left and those receipts
    unmark     a restored site opens again once the ledger has answered the mark

A site that was restored from a backup does not know what left after the backup: only the coordinator does. So without an answer from it
such a site stays closed. Without the mark, a coordinator that does not answer is no obstacle: what is on this disk is charged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from client.coordinator import Coordinator
from client.egress import open_chain
from client.egress_chain import EgressLine
from client.egress_receipts import acknowledged, last_receipt_id, take_receipts
from client.ledger.book import Ledger
from client.ledger.departures import Departure, Exits, Mechanism
from client.ledger.receipts import ReceiptFile
from client.ledger.recovery import Recovered, recover
from client.ledger.site_witness import Restored, SiteWitness, remove_mark
from client.offers import offers, read_offer, store_offer
from client.site import SiteFile, coordinator_keys, home_of, key_path, open_ledger
from client.site_home import SiteHome
from client.survey_budget import survey_lines
from common.crypto.secrets import Secret
from common.errors import CoordinatorRefused, CoordinatorUnreachable, DataError, InputError, ProtocolError, RefusedError, StorageError
from common.federation import EgressStatement
from common.privacy.accountant import UNPROTECTED_JSON
from common.privacy.charge_book import Line, Slot
from common.protocol import COUNTS, Evaluated, Refusal, RefusalCode
from common.riders import payload_sha256
from common.signed import Signed

Statements = Mapping[str, EgressStatement]
"""What this site said about replies, by the digest of the signed statement."""
_HISTOGRAM = f"{COUNTS}/{COUNTS}"


@dataclass(frozen=True)
class Outcome:
    """What a recovery did. `asked`: the coordinator answered; `not_asked` says why not. `was_restored`: the site carried the mark."""

    recovered: Recovered
    asked: bool
    not_asked: str
    was_restored: bool


def recover_site(folder: Path) -> Outcome:
    """Recover the ledger of the site that `folder` belongs to.

    Raises CoordinatorUnreachable, CoordinatorRefused, ProtocolError, InputError when a restored site gets no answer, and stays closed;
    RefusedError LEDGER_BEHIND when something left of which nobody knows the cost; StorageError.
    """
    home = SiteHome(home_of(folder))
    if not home.config.exists():  # a simulation's site: nobody to ask
        return Outcome(recover(open_ledger(folder), Secret.read(key_path(home.folder))), False, "", False)
    mark, secret = Restored.read(home.folder), Secret.read(home.key)
    fetched, problem = _fetch(home, secret, is_restored=mark is not None)
    done = recover(_ledger(home, secret), secret, exits_of(home, fetched))
    if mark is not None:
        remove_mark(home.folder)
    return Outcome(done, not problem, problem, mark is not None)


def _fetch(home: SiteHome, secret: Secret, *, is_restored: bool) -> tuple[Statements, str]:
    """Everything that the coordinator knows, into the site's own files; what this site has said about its replies, and why nobody could be
    asked, where that may be."""
    try:
        with Coordinator(home) as coordinator:
            for offer in coordinator.studies():
                _store(home, offer)
            fetched = _fetch_receipts(home, secret, coordinator)
            newest = coordinator.ledger_receipt()
    except (CoordinatorUnreachable, CoordinatorRefused, ProtocolError, InputError) as error:  # InputError: not enrolled yet
        if is_restored:
            error.add_note(
                "this site was restored from a backup, and only the coordinator knows what left after it: the ledger stays closed; run "
                "`wardround-client ledger recover` again when it answers"
            )
            raise
        return {}, str(error)
    if newest is not None:
        _ledger(home, secret).take_receipt(newest)
    return fetched, ""


def _fetch_receipts(home: SiteHome, secret: Secret, coordinator: Coordinator) -> Statements:
    """Keep the receipts that count, and return what they are for.

    A statement needs no receipt to be believed here: this site signed it, so the reply was made.
    """
    found, after = {}, last_receipt_id(home)
    while receipts := coordinator.receipts(after):
        after = max(after + 1, take_receipts(home, receipts).last_id)
        for plain in receipts:
            with suppress(ValidationError, ProtocolError):
                signed = Signed.model_validate(plain.get("statement"))
                found[signed.sha256] = EgressStatement.verified(signed, secret.signer.public_key)
    return found


def _store(home: SiteHome, offer: dict[str, object]) -> None:
    try:
        store_offer(home, offer)
    except (ProtocolError, InputError, RefusedError):
        return  # what cannot be believed has no part in this


def _ledger(home: SiteHome, secret: Secret) -> Ledger:
    """The ledger, which believes receipts of every study that was offered: those that were approved after a backup are not known here."""
    keys = coordinator_keys(home.folder) | {offer.start.receipt_key for offer in offers(home)}
    return Ledger(home.ledger, secret, ReceiptFile(home.receipts, secret, keys), SiteWitness(home.folder, secret))


def exits_of(home: SiteHome, fetched: Statements) -> Exits:
    """All that is known to have left this site, and what it cost."""
    return Exits(lambda: departures(home, fetched), lambda study_id, line: planned(home, study_id, line))


def departures(home: SiteHome, fetched: Statements) -> list[Departure]:
    """From the log of what left, and from the statements that the coordinator has and the log has lost. Raises StorageError, InputError."""
    found, lost = [], {**fetched, **{one.statement_sha256: one.statement for one in acknowledged(home)[0]}}
    for line in open_chain(home).lines():
        lost.pop(line.statement_sha256, None)
        head = None if line.ledger_row is None or line.ledger_hash is None else (line.ledger_row, line.ledger_hash)
        found += [
            Departure((line.study_id, line.run_id, line.round, pays), line.payload_sha256, head) for pays in _paying_lines(home, line)
        ]
    return found + list(_of_statements(home, lost.values()))


def _paying_lines(home: SiteHome, line: EgressLine) -> tuple[Line, ...]:
    """Who pays for what left with this line."""
    if line.kind == "surveyed":
        return survey_lines(joint=_is_joint(home, line.study_id))
    if line.kind == "update":
        return (Line.TRAINING,)
    return (Line.HELD_OUT,) if line.kind == "evaluated" and any(field.name == _HISTOGRAM for field in line.fields) else ()


def _is_joint(home: SiteHome, study_id: str) -> bool:
    """Whether the patients of a study pay on one line for both; what is not known any more counts as two."""
    try:
        return SiteFile.read(home.study(study_id)).joint
    except DataError:
        return False


def _of_statements(home: SiteHome, lost: Collection[EgressStatement]) -> Iterator[Departure]:
    """A statement does not say which line pays: every one that may have done."""
    nothing = _refusals(home) if lost else set()
    for one in lost:
        empty = payload_sha256(Evaluated(one.run_id, one.round, home.read_invitation().site).to_records())
        if one.payload_sha256 not in nothing and one.payload_sha256 != empty:
            yield from (Departure(slot, one.payload_sha256) for slot in _slots(home, one.study_id, one.run_id, one.round))


def _refusals(home: SiteHome) -> set[str]:
    """Digests of everything that leaves and costs nothing: a refusal is its code and, perhaps, the site's name."""
    names = ("", home.read_invitation().site)
    return {payload_sha256(Refusal(code, name).to_records()) for code in RefusalCode for name in names}


def _slots(home: SiteHome, study_id: str, run_id: str, number: int) -> Iterator[Slot]:
    from common.evaluation_plan import evaluation_plan

    yield study_id, run_id, number, Line.TRAINING
    try:
        study = read_offer(home, study_id).study
    except (InputError, StorageError, RefusedError):
        return
    plan, pays_both = evaluation_plan(study), study.purpose == "survey" and not _is_joint(home, study_id)
    if pays_both or (plan is not None and number in plan.rounds):
        yield study_id, run_id, number, Line.HELD_OUT


def planned(home: SiteHome, study_id: str, line: Line) -> Mechanism | None:
    """What one release of a study on a line costs, worked out from its offer as at its approval; None without the offer."""
    from client.budget import line_plans
    from common.models.registry import initial_state

    try:
        study = read_offer(home, study_id).study
    except (InputError, StorageError, RefusedError):
        return None
    if not study.is_private:
        return UNPROTECTED_JSON, study.training.local_steps
    is_survey = study.purpose == "survey"
    plans = line_plans(study, 0 if is_survey else sum(value.size for value in initial_state(study).values()))
    steps = study.training.local_steps if line is Line.TRAINING and not is_survey else 1
    return next(((plan.event_json, steps) for plan in plans if plan.line is line), None)
