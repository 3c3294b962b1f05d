# SPDX-License-Identifier: Apache-2.0
"""Offers of studies and the sites' answers to them: the tables `offer` and `approval`.

An offer is a study's text and its signed start record; it names the run, the sites and the digest of the initial weights. A site's answer
is an approval record that the site signed. The newest answer counts; a withdrawn offer counts for nobody.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from common.crypto.secrets import Secret
from common.crypto.signatures import Signer
from common.errors import InputError, ProtocolError, RefusedError
from common.federation import ApprovalRecord, StartRecord
from common.signed import Signed
from common.study import Study
from common.wire_names import RefusalCode
from server.home import ServerHome
from server.run_registry import RunRegistry
from server.state import State

if TYPE_CHECKING:
    from server.sites import RegisteredSite

VALID_SECONDS = 14 * 86400.0
"""How long the sites have to answer."""


@dataclass(frozen=True)
class Offer:
    """`study` is the study's canonical JSON, `start` what was signed and `record` what that says."""

    study: str
    start: Signed
    record: StartRecord
    created: float
    withdrawn: bool

    @property
    def run_id(self) -> str:
        """Our id of the run that is offered."""
        return self.record.run_id


@dataclass(frozen=True)
class Approval:
    """A site's newest answer to a study."""

    site: str
    record: ApprovalRecord
    received: float


def make_offer(
    home: ServerHome, study: Study, sites: Sequence[str], min_sites: int | None, signer: Signer, *, now: float | None = None
) -> Signed:
    """Sign the start of a run of `study` at `sites` and offer it to them; returns the signed `StartRecord`.

    `min_sites` may only raise the study's. Raises InputError with everything that is wrong: sites that are unknown, not approved or
    revoked, too few of them, no public weight for one, a key that is not the study-signing key.
    """
    from common.protocol import weights_sha256
    from server.initial import initial_model, keep_initial

    _check(home, study, sites, min_sites, signer)
    model = initial_model(study)
    created = time.time() if now is None else now
    record = StartRecord(
        study_id=study.id,
        run_id=secrets.token_hex(16),
        sites=tuple(sites),
        min_sites=study.federation.min_sites if min_sites is None else min_sites,
        initial_weights_sha256=weights_sha256(model),
        receipt_key=Secret.read(home.coordinator_key).signer.public_key,
        version=metadata.version("wardround"),
        created=created,
        expires=created + VALID_SECONDS,
    )
    signed = record.signed(signer)
    keep_initial(home.run(record.run_id), model)
    row = (record.run_id, study.id, study.canonical_json, signed.to_json(), json.dumps(list(sites)), created)
    with State(home.state).writing() as database:
        database.execute("INSERT INTO offer (run_id, study_id, study, start, sites, created) VALUES (?, ?, ?, ?, ?, ?)", row)
    return signed


def studies(home: ServerHome, site: RegisteredSite) -> dict[str, Any]:
    """What a site is offered: `{"studies": [{"study": text, "start": {"record", "signature"}}]}`, oldest first."""
    mine = [offer for offer in offers(State(home.state)) if site.name in offer.record.sites and not offer.withdrawn]
    return {"studies": [{"study": offer.study, "start": offer.start.model_dump()} for offer in mine]}


def record_approval(home: ServerHome, site: RegisteredSite, body: bytes) -> dict[str, Any]:
    """Store a site's signed answer: `{"status": "recorded"}`; the same again is answered again.

    Raises ProtocolError when it is not the site's own, RefusedError for a study that it was not offered or an answer older than the last.
    """
    signed = Signed.from_json(body)
    record = ApprovalRecord.verified(signed, site.signing_key)
    if record.site != site.name:
        raise ProtocolError(f"approval: it is of {record.site}, but {site.name} sent it")
    state = State(home.state)
    if not any(offer.record.study_id == record.study_id and site.name in offer.record.sites for offer in offers(state)):
        raise RefusedError(RefusalCode.STUDY_INVALID, f"study {record.study_id[:12]} was not offered to {site.name}")
    before = approvals(state, record.study_id).get(site.name)
    if before is not None and before.record.created > record.created:
        raise RefusedError(RefusalCode.STUDY_INVALID, f"{site.name} has given a newer answer to study {record.study_id[:12]}")
    row = (record.site, record.study_id, record.decision, record.runs, signed.to_json(), time.time())
    with state.writing() as database:
        database.execute("INSERT OR REPLACE INTO approval VALUES (?, ?, ?, ?, ?, ?)", row)
    return {"status": "recorded"}


def is_approved(state: State, site_name: str, flower_run_id: int) -> bool:
    """Whether this Flower run is of an offer that names the site, that is not withdrawn, and that the site has approved."""
    run = RunRegistry(state).find(flower_run_id)
    offer = None if run is None else find_offer(state, run.run_id)
    return offer is not None and site_name in approved_sites(state, offer)


def approved_sites(state: State, offer: Offer) -> list[str]:
    """The sites of an offer that have approved this run of its study, in the offer's order; none once it is withdrawn.

    An approval is for a number of runs of a study, whichever they were: one that is used up does not count for a further run.
    """
    if offer.withdrawn:
        return []
    answers = approvals(state, offer.record.study_id)
    yes = [name for name in offer.record.sites if name in answers and _says_yes(answers[name].record, offer.record)]
    others = _other_runs(state, offer.record)
    return [name for name in yes if len(others) < answers[name].record.runs or _has_left(state, name, offer, others, answers[name].record)]


def approvals(state: State, study_id: str) -> Mapping[str, Approval]:
    """The newest answer of each site to a study, by site."""
    with state.reading() as database:
        rows = database.execute("SELECT * FROM approval WHERE study_id = ? ORDER BY site", (study_id,)).fetchall()
    return {
        row["site"]: Approval(row["site"], ApprovalRecord.model_validate_json(Signed.from_json(row["signed"]).record), row["received"])
        for row in rows
    }


def offers(state: State) -> list[Offer]:
    """All offers, oldest first."""
    with state.reading() as database:
        return [_offer(row) for row in database.execute("SELECT * FROM offer ORDER BY created, rowid").fetchall()]


def find_offer(state: State, run_id: str) -> Offer | None:
    """The offer of one run."""
    with state.reading() as database:
        row = database.execute("SELECT * FROM offer WHERE run_id = ?", (run_id,)).fetchone()
    return None if row is None else _offer(row)


def set_withdrawn(state: State, run_id: str, withdrawn: bool) -> None:
    """Take an offer back, or make it again: nothing of its run reaches a site while it is withdrawn."""
    with state.writing() as database:
        database.execute("UPDATE offer SET withdrawn = ? WHERE run_id = ?", (int(withdrawn), run_id))


def _says_yes(approval: ApprovalRecord, offered: StartRecord) -> bool:
    return approval.decision == "approved" and approval.runs > 0 and approval.initial_weights_sha256 == offered.initial_weights_sha256


def _other_runs(state: State, record: StartRecord) -> list[str]:
    """Other runs of this study that were started."""
    query = "SELECT DISTINCT run_id FROM run WHERE study_id = ? AND run_id <> ?"
    with state.reading() as database:
        return [row["run_id"] for row in database.execute(query, (record.study_id, record.run_id)).fetchall()]


def _has_left(state: State, site: str, offer: Offer, others: Sequence[str], approval: ApprovalRecord) -> bool:
    """Whether one of the approved runs is left for this one, or is this one.

    A run is used once the site has let it begin, which every statement says that names the run (`client.approvals.permit`); what is refused
    before that says `NO_RUN`.
    """
    used = {run_id for run_id in (*others, offer.run_id) if _has_answered(state, site, run_id)}
    return offer.run_id in used or len(used) < approval.runs


def _has_answered(state: State, site: str, run_id: str) -> bool:
    with state.reading() as database:
        return database.execute("SELECT 1 FROM egress_receipt WHERE site = ? AND run_id = ? LIMIT 1", (site, run_id)).fetchone() is not None


def _offer(row: sqlite3.Row) -> Offer:
    start = Signed.from_json(row["start"])
    return Offer(row["study"], start, StartRecord.model_validate_json(start.record), row["created"], bool(row["withdrawn"]))


def _check(home: ServerHome, study: Study, sites: Sequence[str], min_sites: int | None, signer: Signer) -> None:
    problems = _site_problems(home, sites)
    needed = study.federation.min_sites
    if min_sites is not None and min_sites < needed:
        problems.append(f"--min-sites {min_sites}: the study needs {needed}, and this may only raise it; leave it out or give more")
    if len(set(sites)) < max(needed, min_sites or 0):
        problems.append(f"--sites: {len(set(sites))} sites, the run needs {max(needed, min_sites or 0)}; name more of them")
    weights = study.federation.weights
    if weights != "equal":
        problems += [f"federation.weights: no weight for {name}; give it one in the study" for name in sites if name not in weights]
    if signer.public_key != home.study_public_key.read_text(encoding="utf-8").strip():
        problems.append("the signing key is not the study-signing key of this federation: the sites would refuse; give --signing-key FILE")
    if problems:
        raise InputError(problems)


def _site_problems(home: ServerHome, sites: Sequence[str]) -> list[str]:
    from server.sites import SiteRegistry

    known = {site.name: site for site in SiteRegistry(State(home.state)).all()}
    problems = [f"--sites: {name} is named twice; name it once" for name in sorted({name for name in sites if list(sites).count(name) > 1})]
    for name in dict.fromkeys(sites):
        if name not in known:
            problems.append(f"--sites: {name} is unknown; invite it with `wardround-server invite {name}`, or see `wardround-server sites`")
        elif known[name].status == "requested":
            problems.append(f"--sites: {name} is not approved yet; `wardround-server sites approve {name}`")
        elif known[name].status != "approved":
            problems.append(f"--sites: {name} is {known[name].status}; leave it out")
    return problems
