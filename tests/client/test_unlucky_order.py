# SPDX-License-Identifier: Apache-2.0
"""What must hold when things come in an unlucky order: after a recovery, after other runs, after a new split, under questioning."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from client.ledger.recovery import recover
from client.site import Site, key_path, open_ledger
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.flower_compat.identity import assume_server_identity
from common.privacy.charge_book import Line
from common.privacy.receipts import make_receipt
from common.protocol import Instruction, Refusal, RefusalCode, Reply, Update
from common.riders import head_of, with_receipt
from common.study import Study
from tests.client.ledger.support import COORDINATOR
from tests.client.test_measuring import Hospital, measured
from tests.support.studies import PRIVATE, small

MakeSite = Callable[..., Path]
Instruct = Callable[..., Instruction]


def settings(folder: Path, **changes: object) -> None:
    path = folder / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def charged(folder: Path, line: Line) -> list[tuple[str, int]]:
    return [(charge.key.run_id, charge.key.round) for charge in open_ledger(folder).charges() if charge.key.line is line]


def test_a_run_with_a_measurement_goes_on_after_a_recovery(make_site: MakeSite, instruct: Instruct) -> None:
    """The held-out charge of round 1 comes back from the receipt; round 2 trains, and the measurement is not charged again."""
    study = measured()
    folder = make_site(study)
    settings(folder, coordinator_key=COORDINATOR.signer.public_key, epsilon_cap=50.0)
    open_ledger(folder).register(Site.open(folder).patient_ids(), 1e-5)
    shutil.copy(folder / "ledger.sqlite", folder / "backup")
    head = head_of(Hospital(folder).answer(instruct(study, 1)))
    assert head is not None
    shutil.copy(folder / "backup", folder / "ledger.sqlite")

    def ask(round_number: int) -> dict[str, object]:
        assume_server_identity(1)
        records = with_receipt(instruct(study, round_number, shift=0.001).to_records(), make_receipt(head, COORDINATOR.signer))
        app = Hospital(folder)._app
        return dict(app(Message(records, 1000, "train"), Context(1, 1000, {}, RecordDict(), {})).content["wardround"])

    assert ask(2)["code"] == "LEDGER_BEHIND"
    recover(open_ledger(folder), Secret.read(key_path(folder)))
    assert ask(2)["kind"] == "update"
    assert charged(folder, Line.TRAINING) == [("run-1", 1), ("run-1", 2)]
    assert charged(folder, Line.HELD_OUT) == [("run-1", study.federation.rounds)]


def test_the_coordinator_cannot_ask_for_the_number_of_patients(make_site: MakeSite, instruct: Instruct) -> None:
    """The study chooses min_patients; the answer depends on the public nominal size (60), not on who is there."""
    study = small(PRIVATE)
    folder = make_site(study)
    true = len(Site.open(folder).cohort.patients_in(Split.TRAIN))
    assert true != 60

    def answer(least: int) -> Reply:
        return Hospital(folder).ask(instruct(small(PRIVATE, **{"data.min_patients": least}), 3, run_id="x", train=False))

    around = range(min(true, 60) - 1, max(true, 60) + 2)
    refused = [least for least in around if isinstance(answer(least), Refusal)]
    assert refused == [least for least in around if least > 60]


def test_what_was_released_is_sent_again_whatever_was_spent_since(make_site: MakeSite, instruct: Instruct) -> None:
    study = measured().with_changes({"evaluation.private": None})
    folder = make_site(study)
    first = Hospital(folder).ask(instruct(study, 1))
    other = small({**PRIVATE, "epsilon": 4.0}, seed=3)
    settings(folder, epsilon_cap=8.05)
    replies = [Hospital(folder).ask(instruct(other, number, run_id="run-2")) for number in (1, 2)]
    again = Hospital(folder).ask(instruct(study, 1))
    assert isinstance(first, Update) and isinstance(again, Update)
    assert all((first.delta[name] == again.delta[name]).all() for name in first.delta)
    if any(isinstance(reply, Update) for reply in replies):
        assert Hospital(folder).ask(instruct(study, 2)) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")


@pytest.mark.parametrize(("cap", "code"), [(10.0, RefusalCode.BUDGET_EXHAUSTED), (30.0, None)])
def test_on_a_joint_account_training_and_measurement_are_paid_together(
    make_site: MakeSite, instruct: Instruct, cap: float, code: RefusalCode | None
) -> None:
    """A patient who trained under an older split is held out now, so both lines are one; 8 and 4 are each below 10."""
    study: Study = measured(epsilon=4.0).with_changes({"federation.rounds": 1, "privacy.epsilon": 8.0})
    folder = make_site(study)
    settings(folder, epsilon_cap=cap)
    open_ledger(folder).register({Line.TRAINING: Site.open(folder).patient_ids()[Line.HELD_OUT][:1]}, 1e-5)
    reply = Hospital(folder).ask(instruct(study, 1))
    assert isinstance(reply, Update) if code is None else reply == Refusal(code, "")
    assert len(open_ledger(folder).charges()) == (0 if code else 2)
