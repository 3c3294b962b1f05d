# SPDX-License-Identifier: Apache-2.0
"""The site's own records: the ledger is whole and not behind its receipts, and so is the log of what left."""

from __future__ import annotations

from client.checks import Check, Doctor
from client.egress_audit import audit
from client.site import open_ledger
from common.errors import StorageError


def ledger(doctor: Doctor) -> str:
    """Every row is whole, and no receipt shows a row that is missing."""
    book = open_ledger(doctor.home.folder)
    book.check_storage()
    rows = book.fold().number
    book.check_not_behind()
    return f"{rows} rows are whole, {len(book.receipts())} receipts fit" if rows else "nothing was spent yet"


def egress(doctor: Doctor) -> str:
    """Every line follows from the one before it, and none is missing that a receipt or the ledger shows."""
    found = audit(doctor.home)
    if found.problems:
        raise StorageError(f"{'; '.join(found.problems)}; see `wardround-client egress --verify`")
    return f"{len(found.lines)} lines are whole ({found.checked})" if found.lines else "nothing has left yet"


RECORD_CHECKS: tuple[tuple[str, Check], ...] = (("ledger", ledger), ("egress", egress))
