# SPDX-License-Identifier: Apache-2.0
"""A coordinator that asks for what was not agreed, or twice: its own executor is held, and the test is the server of the run.

Then the executor goes on and takes the run up by itself, as agreed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from common.crypto.secrets import Secret
from common.federation import SIGNATURE_KEY, STUDY_KEY, StartRecord
from common.flower_compat import control
from common.protocol import Instruction
from common.riders import payload_sha256
from common.study import Study
from server.home import ServerHome
from server.initial import initial_model
from server.launch import FILES, bundle
from server.offers import Offer, find_offer, make_offer
from server.run_processes import log_of
from server.run_registry import RunRegistry
from server.state import State
from simulations.processes import wait_until
from tests.common.flower_compat.attacker import app_bundle
from tests.common.flower_compat.rogue import Rogue, rogue_run
from tests.support.failures import Recorder
from tests.support.faults import RUN_SECONDS, Running, approve, held, server_child
from tests.support.federation import HONEST, Federation
from tests.support.sightings import daemon_said, events_of, log_said, round_done
from tests.support.studies import PRIVATE
from tests.support.wholeness import Whole, assert_whole, charges_of

SITE = HONEST[0]
ROUNDS = 3


@dataclass(frozen=True)
class Agreed:
    """A study that all sites have approved for one run, which nobody has started."""

    federation: Federation
    home: ServerHome
    study: Study
    offer: Offer

    @property
    def run_id(self) -> str:
        return self.offer.run_id

    @property
    def config(self) -> dict[str, str]:
        return {STUDY_KEY: self.study.canonical_json, SIGNATURE_KEY: self.offer.start.to_json()}

    def note(self, flower_run_id: int) -> None:
        """Let the gateway take a run of Flower's for this one."""
        RunRegistry(State(self.home.state)).record(flower_run_id, self.run_id, self.study.id, time.time())

    @contextmanager
    def server(self) -> Iterator[Rogue]:
        """Be the server of the run; the executor sleeps meanwhile."""
        with held(server_child(self.federation, "executor")), rogue_run(self.home, bundle(), self.config) as rogue:
            self.note(rogue.flower_run_id)
            yield rogue

    def instruction(self, study: Study | None = None, *, evaluate: bool = False) -> Instruction:
        """The first message of the run; with `evaluate` it is another one."""
        asked = study or self.study
        return Instruction(self.run_id, asked.canonical_json, 1, True, evaluate, initial_model(asked))

    def ask(self, rogue: Rogue, instruction: Instruction) -> str:
        """What the site answers: the digest of an update, else "" (its own log says why)."""
        answer = rogue.send(self.federation.node_id(SITE), instruction.to_records(), seconds=RUN_SECONDS)
        assert answer is not None, "no answer"
        return payload_sha256(answer) if "model" in answer else ""

    def finish(self) -> Whole:
        """Wait for the run's good end, which nobody has to help, and check everything."""

        def is_over() -> bool:
            return any(event.name == "run_ended" for event in events_of(self.federation, self.run_id))

        wait_until(is_over, f"{self.study.name} is over", RUN_SECONDS, self.federation.server)
        shown = self.federation.on_server
        wait_until(lambda: '"running"' not in shown("runs", "--json").out, "Flower has heard of it", 60)
        return assert_whole(self.federation, self.run_id, ROUNDS, HONEST)


def agreed(federation: Federation, name: str) -> Agreed:
    """Offered by the coordinator and approved by the sites, not started."""
    study = federation.study(name, {**PRIVATE, "epsilon": 2.0}, **{"federation.min_sites": 1, "federation.rounds": ROUNDS})
    home = ServerHome(federation.coordinator)
    signed = make_offer(home, study, HONEST, None, Secret.read(home.study_key).signer)
    for site in HONEST:
        federation.wait_for_offer(federation.hospitals[site], study.id, federation.server)
        approve(federation, site, study.id)
    offer = find_offer(State(home.state), StartRecord.model_validate_json(signed.record).run_id)
    assert offer is not None
    return Agreed(federation, home, study, offer)


@pytest.mark.slow
def test_same_round_asked_again(federation: Federation, recorder: Recorder) -> None:
    scene = agreed(federation, "asked-again")
    done = f"{SITE} is asked for round 1, then again with the same message, then with another message for the same round"
    with recorder.fault("same round asked again, with the same message and with another", done, federation) as incident:
        with scene.server() as rogue:
            first = scene.ask(rogue, scene.instruction())
            assert first
            incident.struck()
            assert scene.ask(rogue, scene.instruction()) == first, "another update left"
            assert scene.ask(rogue, scene.instruction(evaluate=True)) == ""
            incident.site_saw(daemon_said(federation, SITE, "message answered", answer="ROUND_CONFLICT"))
            assert charges_of(federation, SITE, scene.run_id)[(scene.run_id, 1)].charges == 1
        incident.healed()
        incident.recovered(round_done(federation, scene.run_id, updates=2))
        whole = scene.finish()
        incident.is_whole(whole)
        incident.remark = "The same message got the same bytes. Then the coordinator's own server goes on, and gets them once more"
    assert whole.missed == ()
    assert charges_of(federation, SITE, scene.run_id)[(scene.run_id, 1)].left == {first}


@pytest.mark.slow
def test_study_changed_after_approval(federation: Federation, recorder: Recorder) -> None:
    scene = agreed(federation, "changed-later")
    weaker = scene.study.with_changes({"privacy.epsilon": 50.0})
    done = f"{SITE} is asked for round 1 of the approved run, with a study whose ε is 50 in place of the approved one"
    with recorder.fault("study changed after approval", done, federation) as incident:
        with scene.server() as rogue:
            incident.struck()
            assert scene.ask(rogue, scene.instruction(weaker)) == ""
            incident.site_saw(daemon_said(federation, SITE, "message answered", answer="STUDY_NOT_APPROVED"))
            assert charges_of(federation, SITE, scene.run_id) == {}
        incident.healed()
        incident.recovered(round_done(federation, scene.run_id, updates=2))
        whole = scene.finish()
        incident.is_whole(whole)
        incident.remark = "Nothing was charged for it; then the coordinator's own server runs the study as it was approved"
    assert whole.missed == ()


@pytest.mark.slow
def test_bundle_tampered_with(federation: Federation, recorder: Recorder) -> None:
    scene = agreed(federation, "other-bundle")
    mark = federation.folder / "code-was-run"
    hostile = f"import pathlib\npathlib.Path({str(mark)!r}).write_text('x')\n".encode()
    names = ("server/app.py", "server/__init__.py", "client/app.py", "common/__init__.py", "sitecustomize.py")
    done = "the approved run is handed to the SuperLink with a bundle that holds code under our names; then `wardround-server resume`"
    with recorder.fault("bundle tampered with", done, federation) as incident:
        incident.struck()
        flower_run_id = control.start_run(scene.home, app_bundle({**FILES, **dict.fromkeys(names, hostile)}), scene.config)
        scene.note(flower_run_id)
        incident.coordinator_saw(log_said(log_of(scene.home, flower_run_id), "FOREIGN_BUNDLE"))
        wait_until(lambda: control.runs(scene.home, [flower_run_id])[flower_run_id].is_over, "the run is over", 60)
        incident.healed()
        process = federation.on_server_in_background("resume", scene.run_id)
        incident.recovered(round_done(federation, scene.run_id, updates=2))
        whole = Running(federation, scene.study, scene.run_id, HONEST, process).finish()
        incident.is_whole(whole)
    assert whole.missed == ()
    assert not mark.exists(), "code of the bundle was run"
