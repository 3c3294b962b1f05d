# SPDX-License-Identifier: Apache-2.0
"""From a signed offer to a run: wait for the sites' answers, then submit it to the SuperLink.

What is submitted is a bundle of two constant files, without code: Flower wants one, and our executor runs the installed `server.app`
for this bundle and refuses any other. The study and its signature travel as the run's configuration.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import FederationError, InputError, RefusedError
from common.federation import RESUME_KEY, SIGNATURE_KEY, STUDY_KEY
from server.home import ServerHome
from server.offers import Offer, approvals, approved_sites, find_offer, offers
from server.run_processes import is_at_work
from server.run_registry import RunRegistry
from server.run_story import RUN_RESUMED, note
from server.state import State

POLL_SECONDS = 0.5
ENDING_SECONDS = 15.0
"""How long the server of a run may take to be gone once Flower calls the run over."""
PYPROJECT = f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "wardround-run"
version = "1.0.0"
description = "Names the installed apps; holds no code."
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]

[tool.flwr.app]
publisher = "wardround"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
{STUDY_KEY} = ""
{SIGNATURE_KEY} = ""
{RESUME_KEY} = ""
""".encode()
LICENSE = b"SPDX-License-Identifier: Apache-2.0\n"
FILES = {"pyproject.toml": PYPROJECT, "LICENSE": LICENSE}


@dataclass(frozen=True)
class Answers:
    """What the sites of an offer have said so far."""

    approved: tuple[str, ...]
    rejected: tuple[str, ...]
    silent: tuple[str, ...]

    @property
    def are_complete(self) -> bool:
        """Whether nobody has to be waited for."""
        return not self.silent


def bundle() -> bytes:
    """The bundle of every run: always the same bytes."""
    from common.flower_compat.control import build_bundle

    return build_bundle(FILES)


def bundle_sha256() -> str:
    """Digest of `bundle`, by which the executor knows it."""
    return hashlib.sha256(bundle()).hexdigest()


def answers(state: State, offer: Offer) -> Answers:
    """Who has approved, who has rejected, who has not answered."""
    said = approvals(state, offer.record.study_id)
    approved = tuple(approved_sites(state, offer))
    rejected = tuple(name for name in offer.record.sites if name in said and said[name].record.decision == "rejected")
    return Answers(approved, rejected, tuple(name for name in offer.record.sites if name not in approved and name not in rejected))


def wait_for_answers(home: ServerHome, run_id: str, wait_seconds: float, tell: Callable[[Answers], None]) -> Answers:
    """Until every site has answered, or the time or the offer is over; `tell` hears of each change.

    Raises FederationError when too few have approved, RefusedError when the offer is withdrawn meanwhile.
    """
    state, last = State(home.state), None
    deadline = time.monotonic() + wait_seconds
    while True:
        offer = the_offer(state, run_id)
        if offer.withdrawn:
            raise RefusedError("OFFER_WITHDRAWN", f"run {run_id[:8]} was stopped; `wardround-server resume {run_id[:8]}` offers it again")
        found = answers(state, offer)
        if found != last:
            tell(found)
            last = found
        if found.are_complete or time.monotonic() >= deadline or time.time() >= offer.record.expires:
            break
        time.sleep(POLL_SECONDS)
    if len(found.approved) < offer.record.min_sites:
        raise FederationError(_too_few(offer, found))
    return found


def submit(home: ServerHome, offer: Offer, automatic_because: str | None = None) -> int:
    """Hand the run to the SuperLink and note Flower's id of it, which is returned. `automatic_because` says why nobody was asked.

    Raises RefusedError RUN_ACTIVE when it runs, or is just being handed over; NotRunning, FederationError.
    """
    from common.flower_compat import control

    registry = RunRegistry(State(home.state))
    with _handing_over(home, offer.run_id):
        before = [run.flower_run_id for run in registry.of(offer.run_id)]
        for run in control.runs(home, before[-1:]).values():
            if run.status == "pending" or (not run.is_over and is_at_work(home, run.flower_run_id)):
                raise RefusedError("RUN_ACTIVE", f"run {offer.run_id[:8]} is {run.status}; stop it first")
            if not run.is_over:  # its server is gone, and Flower has not noticed yet
                control.stop_run(home, run.flower_run_id)
        if before:
            reason = automatic_because or "resumed by the coordinator"
            is_automatic = automatic_because is not None
            note(home, offer.run_id, RUN_RESUMED, wait_seconds=ENDING_SECONDS, automatic=is_automatic, reason=reason)
        config = {STUDY_KEY: offer.study, SIGNATURE_KEY: offer.start.to_json(), RESUME_KEY: str(before[-1]) if before else ""}
        flower_run_id = control.start_run(home, bundle(), config)
        registry.record(flower_run_id, offer.run_id, offer.record.study_id, time.time())
    return flower_run_id


@contextmanager
def _handing_over(home: ServerHome, run_id: str) -> Iterator[None]:
    """One hand at a time: the coordinator's or the executor's. Raises RefusedError."""
    folder = home.run(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".submit.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError("RUN_ACTIVE", f"run {run_id[:8]} is just being started") from None
        yield


def the_offer(state: State, run: str) -> Offer:
    """The offer of a run that is named in full, by the start of its id, or `last`. Raises InputError."""
    exact = find_offer(state, run)
    if exact is not None:
        return exact
    known = offers(state)
    found = known[-1:] if run == "last" else [offer for offer in known if run and offer.run_id.startswith(run)]
    if len(found) != 1:
        how = "no such run" if not found else f"{len(found)} runs start like that"
        raise InputError(f"{run}: {how}; `wardround-server runs` lists them")
    return found[0]


def _too_few(offer: Offer, found: Answers) -> str:
    rejected = f"; rejected by {', '.join(found.rejected)}" if found.rejected else ""
    silent = f"; no answer from {', '.join(found.silent)}" if found.silent else ""
    return (
        f"{len(found.approved)} sites have approved, the run needs {offer.record.min_sites}{rejected}{silent}. The offer stands: "
        f"`wardround-server resume {offer.run_id[:8]}` waits again, `wardround-server stop {offer.run_id[:8]}` takes it back"
    )
