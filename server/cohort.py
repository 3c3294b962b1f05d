# SPDX-License-Identifier: Apache-2.0
"""A run of real hospitals: is its start record good, who takes part, and the run's folder.

A run counts when the study-signing key signed its start record, the record is for this study, and the offer stands. It is noted in the
table `run` before anything is sent. Nodes are picked by the key that their site was registered with, never by name, and only while the
site is approved, not revoked, and has itself approved the study.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.crypto.secrets import Secret
from common.errors import InputError, ProtocolError, RefusedError, StorageError
from common.federation import StartRecord
from common.files import write_atomic
from common.flower_compat.grids import NodeInfo
from common.protocol import Arrays, weights_sha256
from common.signed import Signed
from common.study import Study
from server.exchange import Node
from server.home import ServerHome
from server.initial import initial_model, kept_initial
from server.offers import Offer, approvals, approved_sites, find_offer
from server.run_file import RUN_FILE, RunFile
from server.run_registry import RunRegistry
from server.sites import APPROVED, SiteRegistry
from server.state import State
from server.statements import Statements


class Cohort:
    """The sites of one run."""

    def __init__(self, home: ServerHome, offer: Offer, run: RunFile) -> None:
        self._home, self._offer = home, offer
        self._state = State(home.state)
        self._names = {key: name for name, key in (run.node_keys or {}).items()}

    @property
    def ready(self) -> list[str]:
        """The sites that may get a message now."""
        offer = find_offer(self._state, self._offer.run_id)
        approved = approved_sites(self._state, offer) if offer else []
        members = {site.name for site in SiteRegistry(self._state).all() if site.status == APPROVED}
        return [name for name in approved if name in members]

    def roster(self) -> dict[str, str]:
        """The sites that have approved the run, each with the reason why it may not take part any more, "" if it may."""
        said = approvals(self._state, self._offer.record.study_id)
        members = {site.name: site.status for site in SiteRegistry(self._state).all()}
        ready = set(self.ready)
        return {
            name: "" if name in ready else _why_not(members.get(name))
            for name in self._offer.record.sites
            if name in said and said[name].record.decision == "approved"
        }

    def pick(self, online: Iterable[NodeInfo]) -> list[Node]:
        """The nodes of the sites that are ready."""
        ready = set(self.ready)
        named = ((info, self._names.get(info.public_key.decode(errors="replace"))) for info in online)
        return [Node(info.node_id, name) for info, name in named if name is not None and name in ready]

    def statements(self, signing_keys: Mapping[str, str]) -> Statements:
        """What checks and receipts the sites' statements."""
        signer = Secret.read(self._home.coordinator_key).signer
        return Statements(self._state, signer, self._offer.record.study_id, signing_keys)


def open_run(home: ServerHome, study_text: str, signature: str, flower_run_id: int) -> tuple[Offer, RunFile]:
    """Check a run's configuration, note the run, and write `run.json` into its folder.

    Raises ProtocolError for a record that is not the study-signing key's or not this study's, RefusedError when the offer is not there
    any more, StorageError.
    """
    record = StartRecord.verified(Signed.from_json(signature), home.study_public_key.read_text(encoding="utf-8").strip())
    if hashlib.sha256(study_text.encode()).hexdigest() != record.study_id:
        raise ProtocolError(f"run {record.run_id[:8]}: the study is not the one that was signed; nothing was sent")
    state = State(home.state)
    offer = find_offer(state, record.run_id)
    if offer is None or offer.withdrawn:
        raise RefusedError("OFFER_WITHDRAWN", f"run {record.run_id[:8]}: its offer was withdrawn; `wardround-server resume` makes it again")
    RunRegistry(state).record(flower_run_id, record.run_id, record.study_id, time.time())
    run = _run_file(state, record)
    write_atomic(home.run(record.run_id) / RUN_FILE, run.model_dump_json(indent=1))
    return offer, run


def signed_initial(home: ServerHome, study: Study, record: StartRecord) -> Arrays:
    """The initial weights that the sites have approved: those that were kept with the offer, else made anew.

    Raises ProtocolError when they are not what was signed, StorageError.
    """
    kept = kept_initial(home.run(record.run_id))
    model = initial_model(study) if kept is None else kept
    if weights_sha256(model) != record.initial_weights_sha256:
        raise ProtocolError(
            f"run {record.run_id[:8]}: the initial weights are not those that were signed (was torch upgraded?); start the study again"
        )
    return model


def _why_not(status: str | None) -> str:
    return "it may not take part: revoked" if status != APPROVED else "it may not take part: its approval does not cover this run any more"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder: two servers of one run would spend each site's budget on a round that counts once. Raises RefusedError."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".run.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StorageError(f"cannot lock {folder}: {error.strerror}") from error
            raise RefusedError("RUN_ACTIVE", f"run {folder.name[:8]} is still running; stop it first") from error
        yield


def _run_file(state: State, record: StartRecord) -> RunFile:
    known = {site.name: site for site in SiteRegistry(state).all()}
    missing = [name for name in record.sites if name not in known]
    if missing:
        raise InputError(f"run {record.run_id[:8]}: {', '.join(missing)} are not registered here; is this the folder that started it?")
    return RunFile(
        run_id=record.run_id,
        sites=record.sites,
        min_sites=record.min_sites,
        node_keys={name: known[name].node_key for name in record.sites},
        signing_keys={name: known[name].signing_key for name in record.sites},
    )
