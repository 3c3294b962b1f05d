# SPDX-License-Identifier: Apache-2.0
"""The last fence is the site's own: the coordinator's owner sends what nobody approved, with every key that a coordinator has.

The executor is paused, and the test is the server of the run in its place; it also writes the gateway's own database, so the gateway lets
everything through. Whatever the site answers is a code, and its ledger and egress log say that nothing else left.
"""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import ConfigRecord, RecordDict

from common.crypto.secrets import Secret
from common.federation import SIGNATURE_KEY, STUDY_KEY, StartRecord
from common.protocol import FACTS, Arrays, Instruction
from common.signed import Signed
from common.study import Study
from server.home import ServerHome
from server.initial import initial_model
from server.launch import FILES, bundle
from server.offers import Offer, find_offer, make_offer
from server.run_registry import RunRegistry
from server.state import State
from tests.common.flower_compat.attacker import app_bundle
from tests.common.flower_compat.rogue import AGENT_APP, SERVER_APP, Rogue, rogue_run
from tests.support.federation import HONEST, Federation

SITE = HONEST[0]


@dataclass(frozen=True)
class Scene:
    """A study that the site approved for one run, which is offered and not started; the coordinator's folder."""

    federation: Federation
    home: ServerHome
    study: Study
    offer: Offer

    @property
    def state(self) -> State:
        return State(self.home.state)

    def signed(self, **changes: Any) -> Signed:
        """The start record with changes, signed with the study-signing key, which the coordinator owns."""
        record = StartRecord.model_validate_json(self.offer.start.record).model_copy(update=changes)
        return record.signed(Secret.read(self.home.study_key).signer)

    def instruction(self, run_id: str | None = None, model: Arrays | None = None) -> Instruction:
        """What a run begins with."""
        weights = initial_model(self.study) if model is None else model
        return Instruction(run_id or self.offer.run_id, self.study.canonical_json, 1, True, False, weights)

    @contextmanager
    def server(self, study: str, start: Signed, files: bytes | None = None, kind: str = SERVER_APP) -> Iterator[Rogue]:
        """Be the server of a run with this configuration, and let the gateway take it for the offered run."""
        config = {STUDY_KEY: study, SIGNATURE_KEY: start.to_json()}
        with rogue_run(self.home, bundle() if files is None else files, config, kind) as rogue:
            RunRegistry(self.state).record(rogue.flower_run_id, self.offer.run_id, self.offer.record.study_id, time.time())
            yield rogue

    def ask(self, rogue: Rogue, content: RecordDict, kind: str = "train") -> str:
        """The refusal code that a message gets, or what else it got."""
        return code_of(rogue.send(self.federation.node_id(SITE), content, kind))

    def spent(self) -> int:
        """How many rounds the site's ledger has charged."""
        return len({json.dumps(row["key"]) for row in self.federation.ledger_rows(SITE) if "key" in row})


def code_of(answer: RecordDict | None) -> str:
    if answer is None:
        return "no answer"
    facts = answer[FACTS]
    assert isinstance(facts, ConfigRecord | Mapping)
    return str(facts.get("code", facts["kind"]))


@contextmanager
def executor_paused(federation: Federation) -> Iterator[None]:
    """Stop the executor's clock, so that it takes no task."""
    assert federation.server is not None
    children = psutil.Process(federation.server.pid).children(recursive=True)
    executor = next(child for child in children if "server.executor" in child.cmdline())
    executor.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        executor.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def scene(federation: Federation) -> Iterator[Scene]:
    study = federation.study("hostile", **{"federation.min_sites": 1})
    home = ServerHome(federation.coordinator)
    signed = make_offer(home, study, [SITE], None, Secret.read(home.study_key).signer)
    record = StartRecord.model_validate_json(signed.record)
    federation.wait_for_offer(federation.hospitals[SITE], study.id)
    federation.approve(federation.hospitals[SITE], study.id)
    offer = find_offer(State(home.state), record.run_id)
    assert offer is not None
    with executor_paused(federation):
        yield Scene(federation, home, study, offer)


def test_a_run_that_was_not_approved_is_refused(scene: Scene) -> None:
    """The same study, another run id: one approval is one run. (The first use of the approval is made here.)"""
    spent = scene.spent()
    with scene.server(scene.study.canonical_json, scene.offer.start) as rogue:
        assert scene.ask(rogue, scene.instruction().to_records()) == "update"
    assert scene.spent() == spent + 1
    again = scene.signed(run_id="f" * 32)
    with scene.server(scene.study.canonical_json, again) as rogue:
        assert scene.ask(rogue, scene.instruction("f" * 32).to_records()) == "STUDY_NOT_APPROVED"
    assert scene.spent() == spent + 1


@pytest.mark.parametrize("is_signed", [False, True])
def test_a_study_changed_after_approval_is_refused(scene: Scene, is_signed: bool) -> None:
    """The text alone, under the start record of the approved study; and with a start record of its own, which nobody has approved."""
    weaker = scene.study.with_changes({"privacy.epsilon": 50.0})
    spent = scene.spent()
    with scene.server(weaker.canonical_json, scene.signed(study_id=weaker.id) if is_signed else scene.offer.start) as rogue:
        changed = Instruction(scene.offer.run_id, weaker.canonical_json, 1, True, False, initial_model(weaker))
        assert scene.ask(rogue, changed.to_records()) in ("STUDY_INVALID", "STUDY_NOT_APPROVED")
    assert scene.spent() == spent


def test_a_message_for_another_study_than_its_run_is_refused(scene: Scene) -> None:
    weaker = scene.study.with_changes({"privacy.epsilon": 50.0})
    spent = scene.spent()
    with scene.server(scene.study.canonical_json, scene.offer.start) as rogue:
        other = Instruction(scene.offer.run_id, weaker.canonical_json, 1, True, False, initial_model(weaker))
        assert scene.ask(rogue, other.to_records()) in ("STUDY_INVALID", "STUDY_NOT_APPROVED", "PROTOCOL_MISMATCH")
    assert scene.spent() == spent


def test_a_start_record_of_another_key_is_refused(scene: Scene) -> None:
    forged = StartRecord.model_validate_json(scene.offer.start.record).signed(Secret(b"x" * 32).signer)
    with scene.server(scene.study.canonical_json, forged) as rogue:
        assert scene.ask(rogue, scene.instruction().to_records()) in ("STUDY_INVALID", "STUDY_NOT_APPROVED")


def test_other_initial_weights_than_approved_are_refused(scene: Scene) -> None:
    """Weights chosen by an attacker can make gradients tell more than they should."""
    spent = scene.spent()
    bent = {name: np.full_like(array, 1e-3) for name, array in initial_model(scene.study).items()}
    with scene.server(scene.study.canonical_json, scene.offer.start) as rogue:
        assert scene.ask(rogue, scene.instruction(model=bent).to_records()) == "STUDY_NOT_APPROVED"
    assert scene.spent() == spent


@pytest.mark.parametrize("kind", ["train", "query"])
def test_an_agents_task_that_reaches_a_site_is_refused(scene: Scene, kind: str) -> None:
    """The run is an agent's, its study and start record are good, its message is what a server would send; only what sends it is wrong."""
    spent = scene.spent()
    apps = b'serverapp = "server.app:app"\nclientapp = "client.app:app"'
    pyproject = FILES["pyproject.toml"].replace(apps, b'agentapp = "client.app:app"')
    assert pyproject != FILES["pyproject.toml"]
    agent = app_bundle({**FILES, "pyproject.toml": pyproject})
    with scene.server(scene.study.canonical_json, scene.offer.start, agent, AGENT_APP) as rogue:
        assert scene.ask(rogue, scene.instruction().to_records(), kind) == "PROTOCOL_MISMATCH"
    assert scene.spent() == spent


@pytest.mark.parametrize("kind", ["query", "train.other", "system"])
def test_other_kinds_of_message_are_refused(scene: Scene, kind: str) -> None:
    spent = scene.spent()
    with scene.server(scene.study.canonical_json, scene.offer.start) as rogue:
        assert scene.ask(rogue, scene.instruction().to_records(), kind) == "PROTOCOL_MISMATCH"
    assert scene.spent() == spent


def test_a_message_that_asks_for_more_gets_no_more(scene: Scene) -> None:
    """Fields that policy forbids: the request for them is no reason to send them."""
    records = scene.instruction().to_records()
    facts = records[FACTS]
    assert isinstance(facts, ConfigRecord)
    for field in ("patient_ids", "losses", "gradients"):
        facts[field] = True
    with scene.server(scene.study.canonical_json, scene.offer.start) as rogue:
        answer = rogue.send(scene.federation.node_id(SITE), records)
    assert answer is not None
    assert set(answer) <= {FACTS, "model", "metrics"}
    assert set(answer[FACTS]) <= {"protocol", "kind", "run_id", "round", "site", "code", "ledger_head", "egress"}


def test_a_bundle_with_hostile_code_runs_nowhere(scene: Scene) -> None:
    """The bundle of the run holds code under our names; the site never asks for it, and the installed app answers."""
    mark = scene.federation.folder / "code-was-run"
    hostile = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('x')\n".encode()
    names = ("client/app.py", "client/__init__.py", "common/__init__.py", "sitecustomize.py")
    with scene.server(scene.study.canonical_json, scene.offer.start, app_bundle({**FILES, **dict.fromkeys(names, hostile)})) as rogue:
        scene.ask(rogue, scene.instruction().to_records())
    assert not mark.exists()


def test_every_refusal_of_this_page_is_in_the_sites_egress_log(scene: Scene) -> None:
    lines = scene.federation.exits(SITE)
    assert sum(1 for line in lines if json.dumps(line).find("refusal") >= 0) >= 5
    assert scene.federation.at(scene.federation.hospitals[SITE], "egress", "--verify", "--json").code == 0
