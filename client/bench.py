# SPDX-License-Identifier: Apache-2.0
"""What work on a study needs of each site's ledger, whatever the study does: opened once, receipts taken, never an old copy."""

from __future__ import annotations

from pathlib import Path

from client.cohorts.exclusions import Participants
from client.ledger.book import Ledger
from client.site import Site, open_ledger
from client.site_log import log_failure
from common.data.cohort import Cohort
from common.errors import ProtocolError
from common.protocol import RefusalCode
from common.study import Study


class Bench:
    """One study, for every site of the process."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._books: dict[Path, Ledger] = {}
        self._participants = Participants()

    def check_ledger(self, site: Site, receipt: str | None) -> None:
        """Keep the receipt that came along; a bad one is ignored and logged. Raises RefusedError LEDGER_BEHIND after a rollback."""
        book = self._book(site)
        try:
            if receipt is not None:
                book.take_receipt(receipt)
        except ProtocolError as error:
            log_failure(site.home, RefusalCode.PROTOCOL_MISMATCH, ProtocolError(f"ignored: {error}"))
        book.check_not_behind()

    def ledger_head(self, site: Site) -> str:
        """The signed head of the site's ledger as it is now."""
        return self._book(site).signed_head()

    def participants(self, site: Site) -> Cohort:
        """The site's cohort without patients who are excluded now; the same object until that changes. Raises StorageError."""
        return self._participants.of(site.folder, site.home, site.cohort)

    def _book(self, site: Site) -> Ledger:
        if site.folder not in self._books:
            self._books[site.folder] = open_ledger(site.folder)
        return self._books[site.folder]
