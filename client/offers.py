# SPDX-License-Identifier: Apache-2.0
"""Studies as the coordinator offers them: stored and shown, never acted on.

`studies/<study id>/offer.json` is {"study": canonical JSON, "start": signed start record}, the newest for each study.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from client.site_home import SiteHome
from common.enrolment import Invitation
from common.errors import InputError, ProtocolError, RefusedError, StorageError
from common.federation import StartRecord
from common.files import write_atomic
from common.signed import Signed
from common.study import Study
from common.wire_names import MAX_STUDY_CHARACTERS, RefusalCode

MOST_OFFERS: Final = 1000
_START_OF_ID = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Offer:
    """One offer whose signature is the study key's of the invitation, whose study is what was signed, and that names this site."""

    study: Study
    start: StartRecord
    signed: Signed


def check_start(invitation: Invitation, study_text: str, signed: Signed) -> Offer:
    """What came as a study and its start record. Raises RefusedError STUDY_NOT_APPROVED, STUDY_INVALID with what is wrong."""
    try:
        start = StartRecord.verified(signed, invitation.study_key)
    except ProtocolError as error:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"{error}, the study-signing key of the invitation") from error
    if len(study_text) > MAX_STUDY_CHARACTERS or hashlib.sha256(study_text.encode("utf-8", "surrogatepass")).hexdigest() != start.study_id:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"the study that came is not the one that was signed, {start.study_id[:12]}")
    if invitation.site not in start.sites:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"run {start.run_id[:12]} was not signed for {invitation.site}")
    return Offer(_read_study(study_text), start, signed)


def _read_study(text: str) -> Study:
    try:
        study = Study.from_canonical_json(text)
    except ValidationError as error:
        raise RefusedError(
            RefusalCode.STUDY_INVALID, f"the study is not valid here ({error.error_count()} problems); the two ends may differ in version"
        ) from error
    if study.canonical_json != text:
        raise RefusedError(RefusalCode.STUDY_INVALID, "the study is not in canonical form; the two ends may differ in version")
    return study


def store_offer(home: SiteHome, offer: Mapping[str, Any]) -> Offer:
    """Keep one element of `Coordinator.studies()`, unless a newer one of the same study is there; returns what is there then.

    Raises RefusedError or ProtocolError for one that is not to be believed; nothing is written then.
    """
    try:
        text, signed = offer["study"], Signed.model_validate(offer["start"])
    except (KeyError, ValidationError) as error:
        raise ProtocolError("offer: has no study with a signed start record; the two ends may differ in version") from error
    if not isinstance(text, str):
        raise ProtocolError("offer: its study is no text")
    new = check_start(home.read_invitation(), text, signed)
    known = _read(home, new.study.id) if home.offer(new.study.id).exists() else None
    if known is not None and known.start.created >= new.start.created:
        return known
    if known is None and len(_ids(home)) >= MOST_OFFERS:
        raise RefusedError(
            RefusalCode.NOT_READY, f"{MOST_OFFERS} studies are stored already; remove the folders of old ones in {home.studies}"
        )
    home.study(new.study.id).mkdir(parents=True, exist_ok=True)
    write_atomic(home.offer(new.study.id), json.dumps({"study": text, "start": signed.model_dump()}))
    return new


def read_offer(home: SiteHome, study_id: str) -> Offer:
    """The offer of a study, named in full or by the start of its id. Raises InputError unless it is exactly one."""
    found = [one for one in _ids(home) if _START_OF_ID.fullmatch(study_id) and one.startswith(study_id)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} studies start with {study_id[:64]!r}; `wardround-client studies` lists those that were offered"
            + (", give more digits" if found else "")
        )
    return _read(home, found[0])


def offers(home: SiteHome) -> list[Offer]:
    """All stored offers, oldest first. One that is damaged, or no longer signed with the invitation's key, is left out."""
    found = []
    for study_id in _ids(home):
        try:
            found.append(_read(home, study_id))
        except (StorageError, RefusedError):
            continue
    return sorted(found, key=lambda offer: offer.start.created)


def _ids(home: SiteHome) -> list[str]:
    return sorted(path.parent.name for path in home.studies.glob("*/offer.json"))


def _read(home: SiteHome, study_id: str) -> Offer:
    path = home.offer(study_id)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        text, signed = str(plain["study"]), Signed.model_validate(plain["start"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: cannot be read ({type(error).__name__}); remove it, the coordinator offers the study again") from error
    return check_start(home.read_invitation(), text, signed)
