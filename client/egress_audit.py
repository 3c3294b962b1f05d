# SPDX-License-Identifier: Apache-2.0
"""What can be shown about the log of what left, and what cannot.

    the chain alone     edited, removed, added and reordered lines; lines written without the site's key
    with the ledger     a reply that the ledger says was sent, and that has no line
    with receipts       lines cut from the end, and a chain rewritten with the site's key, as far as the newest receipt

A receipt names the line before a reply (number and hash) and, through the site's statement, the reply's own line: study, run, round,
message, bytes. So the lines up to there are fixed in every byte, and the reply's own line in what its statement says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from client.egress import open_chain, statement_for
from client.egress_chain import BEFORE_THE_FIRST, EgressLine
from client.egress_receipts import Acknowledged, acknowledged
from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.errors import InputError, RefusedError, StorageError, WardroundError
from common.privacy.charge_book import Line, State

KINDS_THAT_PAY = {Line.TRAINING: ("update", "surveyed"), Line.HELD_OUT: ("evaluated", "surveyed")}


@dataclass
class Findings:
    """What an audit found. `problems` is empty when everything that was checked fits.

    `receipts` that count and `receipts_ignored` that do not; `covered`: number of the last line that a receipt is for, so that all before
    it are fixed in every byte;
    `acknowledged`: numbers of lines whose reply the coordinator has; `again`: number of a line to that of the first with the same bytes in
    answer to the same message; `torn_bytes`: what crashes left of lines that never counted; `missing`: statements whose line is gone;
    `damaged`: the chain itself does not hold, and was read up to there.
    """

    lines: list[EgressLine] = field(default_factory=list)
    receipts: int = 0
    receipts_ignored: int = 0
    covered: int = 0
    acknowledged: set[int] = field(default_factory=set)
    again: dict[int, int] = field(default_factory=dict)
    torn_bytes: int = 0
    missing: list[Acknowledged] = field(default_factory=list)
    explained: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: bool = False
    not_checked: list[str] = field(default_factory=list)

    @property
    def checked(self) -> str:
        """Which of the two this was."""
        return "chain and receipts" if self.receipts else "chain alone"

    @property
    def head(self) -> tuple[int, str]:
        """Number and hash of the last line."""
        return (self.lines[-1].number, self.lines[-1].hash) if self.lines else (0, BEFORE_THE_FIRST)


def audit(home: SiteHome) -> Findings:
    """Check the log in every way that this machine can. Damage is a finding, not an error.

    Raises StorageError when the site's key cannot be read.
    """
    found = Findings()
    _read_chain(home, found)
    if found.problems:
        found.damaged = True
        return found
    _check_statements(home, found)
    _check_receipts(home, found)
    _check_ledger(home, found)
    return found


def explain(home: SiteHome, why: str, now: float) -> int:
    """Hospital IT says why acknowledged lines are not in the log (a restored backup): a line for good, which `audit` accepts as the answer.

    Returns how many lines it explains. Raises InputError when nothing is missing or no reason is given, StorageError.
    """
    found = audit(home)
    if not why.strip():
        raise InputError("egress --explain: say why in words, such as: the server was restored from the backup of 3 May")
    if not found.missing:
        raise InputError("egress --explain: no acknowledged line is missing, so there is nothing to explain")
    note = "".join(letter if letter.isprintable() else " " for letter in why.strip()[:1000])
    digests = tuple(one.statement_sha256 for one in found.missing)

    open_chain(home).append(
        lambda end: EgressLine(
            number=end.number + 1,
            time=now,
            kind="note",
            note=note,
            explained=digests,
            torn_bytes=end.torn_bytes,
            previous=end.hash,
        )
    )
    return len(digests)


def sentences(found: Findings) -> list[str]:
    """What was seen and what could not be seen, in words."""
    number, _ = found.head
    if found.damaged:
        return [
            f"Seen: the chain. It holds to line {number} and is damaged behind it.",
            "Not seen: anything behind the damage. Receipts and ledger were not held against a damaged chain.",
        ]
    texts = [f"Seen: the chain. {number} lines follow from each other, and each was written with this site's key."]
    if found.covered and not found.missing:
        texts.append(
            f"Seen: {found.receipts} receipts. The coordinator has the reply of line {found.covered}: no line up to there was cut off, "
            f"none before it was rewritten, and study, run, round, message and bytes of line {found.covered} are what it received."
        )
    if not found.receipts:
        texts.append(
            "Not seen: whether lines were cut from the end, or the whole chain was rewritten by somebody with the site's key. There is no "
            "receipt to hold it against; the daemon fetches them."
        )
    elif found.lines:
        texts.append(
            f"Not seen: whether lines after {number} were cut off, or lines after {found.covered} were rewritten with the site's key."
        )
    texts += [f"Not seen: {text}" for text in found.not_checked]
    if found.receipts_ignored:
        texts.append(f"{found.receipts_ignored} lines of egress-receipts.jsonl are not receipts that count; they were left out.")
    if found.explained:
        texts.append(f"{found.explained} acknowledged lines are not here, and hospital IT has said why (lines of kind note).")
    if found.again:
        texts.append(
            f"{len(found.again)} lines are for bytes that were answered before (again): sent once more, or the first one never left."
        )
    if found.torn_bytes:
        texts.append(f"{found.torn_bytes} bytes of unfinished lines were cut off after crashes; what they were about never left.")
    return texts


def _read_chain(home: SiteHome, found: Findings) -> None:
    first: dict[tuple[object, ...], int] = {}
    try:
        for line in open_chain(home).lines():
            found.lines.append(line)
            found.torn_bytes += line.torn_bytes
            bytes_id = (line.study_id, line.run_id, line.round, line.incoming_sha256, line.payload_sha256)
            if line.kind != "note" and first.setdefault(bytes_id, line.number) != line.number:
                found.again[line.number] = first[bytes_id]
    except StorageError as error:
        Secret.read(home.key)  # without the key nothing was checked at all
        found.problems.append(str(error))


def _check_statements(home: SiteHome, found: Findings) -> None:
    """Each line has to name the statement that this site signs for it (Ed25519 gives the same signature each time)."""
    signer = Secret.read(home.key).signer
    for line in found.lines:
        if line.kind != "note" and statement_for(line, line.number - 1, line.previous).signed(signer).sha256 != line.statement_sha256:
            found.problems.append(f"{home.egress}: line {line.number} names another statement than the one about it")


def _check_receipts(home: SiteHome, found: Findings) -> None:
    try:
        receipts, found.receipts_ignored = acknowledged(home)
    except WardroundError as error:
        found.not_checked.append(f"the receipts ({error})")
        return
    found.receipts = len(receipts)
    by_statement = {line.statement_sha256: line for line in found.lines if line.kind != "note"}
    explained = {digest for line in found.lines for digest in line.explained}
    for one in receipts:
        line = by_statement.get(one.statement_sha256)
        if line is not None:
            found.acknowledged.add(line.number)
        elif one.statement_sha256 in explained:
            found.explained += 1
        else:
            found.missing.append(one)
    found.covered = max(found.acknowledged, default=0)
    if found.missing:
        found.problems.append(_missing_problem(home, found))


def _missing_problem(home: SiteHome, found: Findings) -> str:
    first = min(found.missing, key=lambda one: one.statement.number).statement
    replaced = any(one.statement.number < found.head[0] for one in found.missing)
    how = "the chain was rewritten, or went on from an old copy" if replaced else "lines were cut off, or an old copy was restored"
    return (
        f"{home.egress}: {len(found.missing)} lines that the coordinator has acknowledged are not here, the first after line "
        f"{first.number} (run {first.run_id[:8]} round {first.round}): {how}. "
        "If that was a restore, say so with `wardround-client egress --explain`"
    )


def _check_ledger(home: SiteHome, found: Findings) -> None:
    """What the ledger says was sent must have a line, and the ledger must have the rows that the newest line saw."""
    try:
        secret = Secret.read(home.key)
        fold = Ledger(home.ledger, secret, ReceiptFile(home.receipts, secret, ())).fold()
    except (StorageError, RefusedError) as error:
        found.not_checked.append(f"whether everything that the ledger says was sent has a line ({error})")
        return
    answered = {(line.study_id, line.run_id, line.round, line.kind) for line in found.lines}
    sent = [charge.key for charge in fold.charge_fold.charges if charge.state is State.SENT]
    without = [key for key in sent if answered.isdisjoint((*key.slot[:3], kind) for kind in KINDS_THAT_PAY[key.line])]
    if without:
        found.problems.append(
            f"{home.egress}: the ledger says that {len(without)} replies were sent which have no line, the first in run "
            f"{without[0].run_id[:8]} round {without[0].round}: lines were removed"
        )
    newest = newest_ledger_head(found.lines)
    if newest is not None and fold.lacks([newest]):
        found.problems.append(
            f"{home.ledger}: does not have row {newest[0]} that was its head when a reply left: it was restored from an old copy. Run "
            "`wardround-client ledger recover`"
        )


def newest_ledger_head(lines: Sequence[EgressLine]) -> tuple[int, str] | None:
    """Row number and hash of the ledger's head in the newest line that has one."""
    return next(((line.ledger_row, line.ledger_hash) for line in reversed(lines) if line.ledger_row is not None and line.ledger_hash), None)
