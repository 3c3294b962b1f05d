# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks the coordinator beside the rounds, again and again, over calls of our own:

    approvals and rejections that it has not heard yet      handed in
    studies offered to this site                            stored and shown, never acted on
    receipts for what left, and for the ledger's head       stored
    the next certificate, when it is time                   fetched; the node then takes a new connection

Everything here may fail and is done again at the next turn; no round waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from client.approvals import Approvals
from client.coordinator import Coordinator
from client.daemon_log import DaemonLog
from client.egress import last_receipt_id, take_receipts
from client.enrol import renew
from client.offers import store_offer
from client.site import open_ledger
from client.site_home import SiteHome
from client.status import StatusBoard
from common.errors import CoordinatorUnreachable, InputError, ProtocolError, RefusedError, WardroundError

SOON_SECONDS: Final = 3.0
LATER_SECONDS: Final = 15.0
BUSY_SECONDS: Final = 300.0


class Chores:
    """The turns of one daemon. `renewed` is called after a new certificate was written."""

    def __init__(self, home: SiteHome, board: StatusBoard, log: DaemonLog, renewed: Callable[[], None]) -> None:
        self._home = home
        self._board = board
        self._log = log
        self._renewed = renewed
        self._coordinator = Coordinator(home)
        self._seen: dict[str, str] = {}
        self._after: int | None = None
        self._ledger_receipt: str | None = None
        self._news_at = time.monotonic()
        self._problem: str | None = None

    def run(self, stopping: threading.Event) -> None:
        """Take turns until `stopping`."""
        while not stopping.is_set():
            self.turn()
            quiet = time.monotonic() - self._news_at > BUSY_SECONDS
            stopping.wait(LATER_SECONDS if quiet else SOON_SECONDS)
        self._coordinator.close()

    def turn(self) -> None:
        """Everything once; what fails keeps nothing else from its turn, unless nobody can be reached.

        A problem is noted, once as long as it stays the same.
        """
        problem: WardroundError | None = None
        for chore in (self._renew, self._hand_in, self._fetch_offers, self._fetch_receipts):
            try:
                chore()
            except CoordinatorUnreachable as error:
                problem = error
                break
            except WardroundError as error:
                problem = problem or error
        if problem is None:
            self._board.heard()
        self._note(problem)

    def _note(self, problem: WardroundError | None) -> None:
        text = None if problem is None else str(problem)
        if text is not None and text != self._problem:
            self._board.fail(text, again=True)
            self._log.write("coordinator", {"problem": type(problem).__name__, "error": text})
        self._problem = text

    def _hand_in(self) -> None:
        sent = Approvals(self._home).deliver(self._coordinator.approve)
        if sent:
            self._news("approvals handed in", {"records": sent})

    def _fetch_offers(self) -> None:
        """Offers by run; one that cannot be believed is logged once and forgotten."""
        for offer in self._coordinator.studies():
            text = str(offer.get("start"))
            if text not in self._seen:
                self._seen[text] = self._store(offer)

    def _store(self, offer: dict[str, Any]) -> str:
        try:
            stored = store_offer(self._home, offer)
        except (ProtocolError, InputError, RefusedError) as error:
            self._log.write("offer ignored", {"reason": str(error)})
            return ""
        self._news("study offered", {"study": stored.study.id[:12], "name": stored.study.name, "run": stored.start.run_id[:12]})
        return stored.study.id

    def _fetch_receipts(self) -> None:
        if self._after is None:
            self._after = last_receipt_id(self._home)
        receipts, ledger_receipt = self._coordinator.all_receipts(self._after)
        if receipts:
            taken = take_receipts(self._home, receipts)
            self._after = max(self._after, taken.last_id)
            for problem in taken.problems:
                self._log.write("receipt ignored", {"reason": problem})
        if ledger_receipt is not None and ledger_receipt != self._ledger_receipt:
            self._take(ledger_receipt)

    def _take(self, ledger_receipt: str) -> None:
        """Keep what shows the newest head of the ledger: an old copy of the ledger is then known as one before any message comes."""
        try:
            open_ledger(self._home.folder).take_receipt(ledger_receipt)
        except ProtocolError as error:
            if ledger_receipt not in self._seen:
                self._seen[ledger_receipt] = ""
                self._log.write("receipt ignored", {"reason": str(error)})
            return
        self._ledger_receipt = ledger_receipt

    def _renew(self) -> None:
        if renew(self._home, self._coordinator, time.time()):
            self._coordinator.close()
            self._coordinator = Coordinator(self._home)
            self._renewed()

    def _news(self, event: str, facts: dict[str, object]) -> None:
        self._news_at = time.monotonic()
        self._log.write(event, facts)
