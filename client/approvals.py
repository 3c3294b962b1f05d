# SPDX-License-Identifier: Apache-2.0
"""What this site has approved, and whether a run may work here.

    Approvals    `approvals.jsonl`: records that the site signed, appended durably before anybody hears of them
    permit       asked by the node for each message, before any object of it is pulled

`permit` answers from the site's own files alone; the coordinator's word counts for nothing but the study-signing key in the invitation.
`runs` of an approval counts every run that the study ever had here, so a further run needs a further approval.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from client.offers import Offer, check_start
from client.policy import is_open, problems
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.study_folder import refresh
from common.crypto.secrets import Secret
from common.errors import CoordinatorRefused, ProtocolError, RefusedError, StorageError
from common.federation import DIGEST, RUN_ID, ApprovalRecord, StartRecord
from common.files import append_durably, locked, write_atomic
from common.privacy.charge_book import Line
from common.signed import Record, Signed
from common.study import Study
from common.wire_names import RefusalCode


class RunRecord(Record):
    """The first message of a run came: one of the approved runs of its study is used. Never leaves the site."""

    purpose: ClassVar[str] = "run begun 1"

    study_id: str = Field(pattern=DIGEST)
    run_id: str = Field(pattern=RUN_ID)
    created: float


@dataclass(frozen=True)
class Permit:
    """The run `record` of `study` may work at this site. `folder` (studies/<id>) is the worker's `site-folder`."""

    study: Study
    record: StartRecord
    approval: ApprovalRecord
    folder: Path


def permit(home: SiteHome, study_text: str, signed_start: Signed, now: float) -> Permit:
    """The permit of a run, from what came with get-run: the study's canonical JSON and its signed start record.

    The first message of a new run is written down durably as one of the approved runs before this returns, as the last thing: a run that
    is refused is not used. Cheap enough for each message.
    Raises RefusedError with the code that may leave: STUDY_NOT_APPROVED, STUDY_INVALID, POLICY_REFUSED, PAUSED, NOT_READY, LEDGER_BEHIND;
    InputError, DataError, StorageError when the site's own files cannot be read (answer NOT_READY).
    """
    offer = check_start(home.read_invitation(), study_text, signed_start)
    config, approvals = SiteConfig.read(home.config), Approvals(home)
    with approvals.lock():
        approval = _approved(approvals, offer)
        found = problems(config, offer.study, approval.cohort)
        if found:
            raise RefusedError(found[0][0], "; ".join(text for _, text in found))
        if home.paused.exists() or not is_open(config, now):
            raise RefusedError(RefusalCode.PAUSED, "paused" if home.paused.exists() else f"the schedule is {config.limits.schedule}")
        run_id, begun = offer.start.run_id, approvals.runs(offer.study.id)
        if run_id in begun:
            refresh(home, config, offer.study.id, begun)
        else:
            _check_new_run(home, approvals, approval, offer, now)
            refresh(home, config, offer.study.id, (*begun, run_id))
            approvals.append(RunRecord(study_id=offer.study.id, run_id=run_id, created=now))
    return Permit(offer.study, offer.start, approval, home.study(offer.study.id))


def _approved(approvals: Approvals, offer: Offer) -> ApprovalRecord:
    """The approval that a run rests on. Raises RefusedError STUDY_NOT_APPROVED."""
    name, approval = offer.study.id[:12], approvals.current(offer.study.id)
    problem = ""
    if approval is None:
        problem = f"study {name} is not approved; see `wardround-client studies`"
    elif approval.decision != "approved":
        problem = f"study {name} was rejected"
    elif approval.initial_weights_sha256 != offer.start.initial_weights_sha256:
        problem = f"study {name} was approved with other initial weights"
    if approval is None or problem:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, problem)
    return approval


def _check_new_run(home: SiteHome, approvals: Approvals, approval: ApprovalRecord, offer: Offer, now: float) -> None:
    """Whether a run that was never seen may begin. Raises RefusedError STUDY_NOT_APPROVED, LEDGER_BEHIND."""
    from client.site import open_ledger

    study_id, run_id = offer.study.id, offer.start.run_id
    ledger = open_ledger(home.study(study_id))
    ledger.check_not_behind()
    fold = ledger.fold()
    used = {*approvals.runs(study_id), *(charge.key.run_id for charge in fold.charge_fold.charges if charge.key.study_id == study_id)}
    problem = ""
    if now > offer.start.expires:
        problem = f"the start record of run {run_id[:12]} has expired"
    elif len(used | {run_id}) > approval.runs:
        problem = f"{len(used)} of {approval.runs} approved runs are used; a further run needs a further approval"
    elif offer.study.is_private and fold.earmarks.standing(study_id, Line.TRAINING) is None:
        problem = "the ledger has no promise for this study (it was restored from an older copy?); approve it again"
    if problem:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"study {study_id[:12]}: {problem}")


class Approvals:
    """`approvals.jsonl` of the site in `home`, one signed record a line, read and checked anew at each call.

    Methods raise StorageError for a line that this site did not sign; a last line cut by a crash was never told to anybody and is left out.
    """

    def __init__(self, home: SiteHome) -> None:
        self._home = home

    def lock(self) -> AbstractContextManager[None]:
        """Held by whoever decides on the strength of what is in the file."""
        return locked(self._home.folder / ".approvals.lock")

    def append(self, record: ApprovalRecord | RunRecord) -> None:
        """Sign a record and add it, durably."""
        path, line = self._home.approvals, record.signed(Secret.read(self._home.key).signer).to_json()
        append_durably(path, line.encode() + b"\n")

    def current(self, study_id: str) -> ApprovalRecord | None:
        """The newest decision on a study; None when nobody has decided."""
        found = [record for record, _ in self._records() if isinstance(record, ApprovalRecord) and record.study_id == study_id]
        return found[-1] if found else None

    def runs(self, study_id: str) -> tuple[str, ...]:
        """Run ids that have begun here for a study, in order."""
        found = (record.run_id for record, _ in self._records() if isinstance(record, RunRecord) and record.study_id == study_id)
        return tuple(dict.fromkeys(found))

    def began(self) -> dict[str, float]:
        """When each run first asked here, before it did anything: seconds since the epoch by run id."""
        return {record.run_id: record.created for record, _ in reversed(self._records()) if isinstance(record, RunRecord)}

    def deliver(self, send: Callable[[Signed], None]) -> int:
        """Hand the newest decision on each study to `send` (`Coordinator.approve`) unless the coordinator has heard it; returns how many.

        The daemon calls it whenever it polls. What could not be sent stays. A refusal of the coordinator is raised after all were tried,
        any other error of `send` at once.
        """
        newest = {record.study_id: signed for record, signed in self._records() if isinstance(record, ApprovalRecord)}
        delivered, sent, refused = self._delivered(), 0, None
        for study_id, signed in newest.items():
            if delivered.get(study_id) == signed.signature:
                continue
            try:
                send(signed)
            except CoordinatorRefused as error:
                refused = refused or error
                continue
            delivered[study_id], sent = signed.signature, sent + 1
            write_atomic(self._delivered_path, json.dumps(delivered))
        if refused is not None:
            raise refused
        return sent

    def is_delivered(self, study_id: str) -> bool:
        """Whether the coordinator has heard the newest decision on a study."""
        signed = [signed for record, signed in self._records() if isinstance(record, ApprovalRecord) and record.study_id == study_id]
        return bool(signed) and self._delivered().get(study_id) == signed[-1].signature

    @property
    def _delivered_path(self) -> Path:
        return self._home.folder / "approvals-delivered.json"

    def _delivered(self) -> dict[str, str]:
        """Signatures of what was handed in, by study. Lost or damaged: everything is handed in again, which changes nothing."""
        try:
            plain = json.loads(self._delivered_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in plain.items()} if isinstance(plain, dict) else {}

    def _records(self) -> list[tuple[ApprovalRecord | RunRecord, Signed]]:
        path = self._home.approvals
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror or error}); check permissions") from error
        whole = content[: content.rfind(b"\n") + 1]
        key = Secret.read(self._home.key).signer.public_key if whole else ""
        return [_read(line, key, f"{path}:{number}") for number, line in enumerate(whole.splitlines(), 1)]


def _read(line: bytes, key: str, where: str) -> tuple[ApprovalRecord | RunRecord, Signed]:
    kinds: tuple[type[ApprovalRecord] | type[RunRecord], ...] = (ApprovalRecord, RunRecord)
    for kind in kinds:
        try:
            signed = Signed.from_json(line)
            return kind.verified(signed, key), signed
        except ProtocolError:
            continue
    raise StorageError(f"{where}: not a record that this site signed; restore the file from its backup")
