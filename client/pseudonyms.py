# SPDX-License-Identifier: Apache-2.0
"""What stands for a patient at a site: a keyed pseudonym, the same in cohorts, in the split and in the ledger.

A pseudonym is `wrp1-` and the 64 hexadecimal digits of HMAC-SHA256(key derived from the site's secret, patient id). Whoever lacks the
site's key can neither make one nor test a guess. An id that already has this form is its own pseudonym, so a cohort that was built here
and a raw file of the same hospital name one person alike.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from common.crypto.secrets import Secret
from common.errors import DataError

PURPOSE: Final = "patient pseudonyms"
PREFIX: Final = "wrp1-"
_FORM: Final = re.compile(PREFIX + r"[0-9a-f]{64}")


def is_pseudonym(patient_id: str) -> bool:
    """Whether the text has the form of a pseudonym (of any site)."""
    return _FORM.fullmatch(patient_id) is not None


def digest_of(key: bytes, patient_id: str) -> bytes:
    """The 32 bytes that stand for a patient in the ledger: HMAC-SHA256 of the id, or those of a pseudonym that it already is.

    Spaces around an id do not belong to it.
    """
    name = patient_id.strip()
    if is_pseudonym(name):
        return bytes.fromhex(name.removeprefix(PREFIX))
    return hmac.new(key, name.encode(), hashlib.sha256).digest()


class Pseudonyms:
    """The pseudonyms of one site. Calling `of` on its own result changes nothing."""

    def __init__(self, secret: Secret) -> None:
        self._key = secret.derive(PURPOSE)

    def of(self, patient_id: str) -> str:
        """The pseudonym of a patient. Raises DataError for an empty id."""
        if not patient_id.strip():
            raise DataError("a patient id is empty; give every image its patient")
        return PREFIX + digest_of(self._key, patient_id).hex()

    def of_all(self, patient_ids: Sequence[str]) -> tuple[str, ...]:
        """Pseudonyms of different patients. Raises DataError when two of the ids turn out to be one patient (an id and its pseudonym)."""
        names = tuple(self.of(one) for one in patient_ids)
        twice = len(names) - len(set(names))
        if twice:
            raise DataError(
                f"{twice} patients stand in the data under two names (their id and their pseudonym, or an id with spaces around it); build "
                "one cohort from the hospital's own ids (wardround-client cohort build)"
            )
        return names
