# SPDX-License-Identifier: Apache-2.0
"""A site's log of what left, beside the ledger of `support`: one update a round, with the ledger's head as it rode along."""

from collections.abc import Sequence
from pathlib import Path

from client.egress_chain import EgressChain, EgressLine, Kind
from client.ledger.book import Ledger
from client.ledger.departures import Departure, Exits
from client.ledger.receipts import ReceiptFile
from client.ledger.site_witness import SiteWitness
from common.privacy.charge_book import Line
from tests.client.ledger.support import COORDINATOR, SITE, digest

STUDY, RUN = digest("study"), digest("run")[:32]


def watched_book(folder: Path) -> Ledger:
    """The ledger as a site opens it: it must not be behind the log of what left, nor carry the mark of a restore."""
    receipts = ReceiptFile(folder / "receipts.jsonl", SITE, [COORDINATOR.signer.public_key])
    return Ledger(folder / "ledger.sqlite", SITE, receipts, SiteWitness(folder, SITE))


def chain(folder: Path) -> EgressChain:
    return EgressChain(folder / "egress.jsonl", SITE)


def log_exit(folder: Path, book: Ledger | None, number: int, reply: str, kind: Kind = "update", run: str = RUN) -> EgressLine:
    """One line; `book` gives the head that rides along, None for none."""
    fold = None if book is None else book.fold()
    row, head = (None, None) if fold is None else (fold.number, fold.head)
    return chain(folder).append(
        lambda end: EgressLine(
            number=end.number + 1,
            time=1e9,
            kind=kind,
            study_id=STUDY,
            run_id=run,
            round=number,
            payload_sha256=digest(reply),
            ledger_row=row,
            ledger_hash=head,
            torn_bytes=end.torn_bytes,
            previous=end.hash,
        )
    )


def departures_in(folder: Path, study: str = STUDY, run: str = RUN) -> list[Departure]:
    """Every update in the log; `study` and `run` are put in the place of its ids (short ones are easier to read in a test)."""
    found = []
    for line in chain(folder).lines():
        if line.kind == "update":
            head = None if line.ledger_row is None or line.ledger_hash is None else (line.ledger_row, line.ledger_hash)
            found.append(Departure((study, run, line.round, Line.TRAINING), line.payload_sha256, head))
    return found


def exits(folder: Path, study: str = "study", run: str = "run", planned: Sequence[tuple[str, int]] = ()) -> Exits:
    """What left, for the ids of `support.key`; `planned` has the mechanism of a forgotten study, or nothing."""
    return Exits(lambda: departures_in(folder, study, run), lambda _study, _line: planned[0] if planned else None)
