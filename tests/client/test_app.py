# SPDX-License-Identifier: Apache-2.0
"""The app as the server meets it: a message in, one reply out, whatever happens at the site."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from safetensors.numpy import save

import common
from client.app import create_app
from client.journal import read_entries
from client.ledger.recovery import recover
from client.scores import SiteScores
from client.site import evaluation_path, journal_path, key_path, ledger_path, log_path, open_ledger
from common.crypto.secrets import Secret
from common.flower_compat.identity import assume_server_identity
from common.privacy.charges import Charge, Line, Outbox, State
from common.privacy.receipts import make_receipt
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Reply, Update, read_reply, shapes_of
from common.riders import head_of, with_receipt
from common.study import Study
from tests.client.ledger.support import COORDINATOR
from tests.support.studies import PRIVATE, small

Instruct = Callable[..., Instruction]


class Hospital:
    """One app serving one folder, asked as the server asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._app = create_app(lambda context: self.folder)

    def ask(self, instruction: Instruction, records: RecordDict | None = None) -> Reply:
        assume_server_identity(1)
        kind = "train" if instruction.train else "evaluate"
        message = Message(records or instruction.to_records(), 1000, kind)
        reply = self._app(message, Context(1, 1000, {}, RecordDict(), {}))
        self.head = head_of(reply.content) or ""
        return read_reply(reply.content, run_id=instruction.run_id, round_number=instruction.round, shapes=shapes_of(instruction.model))

    def again(self) -> "Hospital":
        """The same hospital after its process died."""
        return Hospital(self.folder)


@pytest.fixture
def private() -> Study:
    return small(PRIVATE)


def charges(hospital: Hospital) -> list[Charge]:
    """What the patients who train paid."""
    return [charge for charge in open_ledger(hospital.folder).charges() if charge.key.line is Line.TRAINING]


def same(left: Reply, right: Reply) -> bool:
    assert isinstance(left, Update)
    assert isinstance(right, Update)
    return all(np.array_equal(left.delta[name], right.delta[name]) for name in left.delta)


def test_an_update_without_privacy_depends_on_the_study_only(make_site: Callable[..., Path], instruct: Instruct) -> None:
    study = small()
    first = Hospital(make_site(study)).ask(instruct(study))
    second = Hospital(make_site(study, "north-again")).ask(instruct(study))
    assert isinstance(first, Update)
    assert any(np.abs(value).max() > 0 for value in first.delta.values())
    other = Hospital(make_site(study.with_changes({"seed": 1}), "north-seed")).ask(instruct(study.with_changes({"seed": 1})))
    assert not same(first, other)
    renamed = Update(second.run_id, second.round, first.site, second.delta)
    assert not same(first, renamed), "each site draws its own patients"


def test_the_same_message_again_gets_the_stored_bytes_and_no_second_charge(
    make_site: Callable[..., Path], instruct: Instruct, private: Study
) -> None:
    hospital = Hospital(make_site(private))
    first = hospital.ask(instruct(private))
    assert same(first, hospital.ask(instruct(private)))
    assert same(first, hospital.again().ask(instruct(private)))
    (charge,) = charges(hospital)
    assert (charge.state, charge.steps) == (State.RELEASING, 2)
    assert len(list(read_entries(journal_path(hospital.folder)))) == 1


def test_a_private_round_never_repeats_at_another_time(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    first = Hospital(make_site(private, "north")).ask(instruct(private))
    shutil.rmtree(Hospital(make_site(private, "north")).folder / "outbox")
    ledger_path(make_site(private, "north")).unlink()
    assert not same(first, Hospital(make_site(private, "north")).ask(instruct(private)))


def test_the_server_may_go_back_as_far_as_replies_are_kept_and_not_further(
    make_site: Callable[..., Path], instruct: Instruct, private: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.charging.KEPT_REPLIES", 2)
    hospital = Hospital(make_site(private))
    first, second = hospital.ask(instruct(private, 1)), hospital.ask(instruct(private, 2))
    assert same(first, hospital.ask(instruct(private, 1)))
    assert isinstance(hospital.ask(instruct(private, 3)), Update)
    assert same(second, hospital.ask(instruct(private, 2)))
    assert hospital.ask(instruct(private, 1)) == Refusal(RefusalCode.ROUND_LOST, ""), "not kept any more, and never computed again"
    assert len(charges(hospital)) == 3


def test_a_site_keeps_as_many_replies_as_the_server_keeps_checkpoints() -> None:
    from client.charging import KEPT_REPLIES

    checkpoints = (Path(common.__file__).parents[1] / "server" / "checkpoints.py").read_text(encoding="utf-8")
    assert f"\nKEPT = {KEPT_REPLIES}\n" in checkpoints


def test_a_reply_that_another_process_stored_is_never_sent_under_this_charge(
    make_site: Callable[..., Path], instruct: Instruct, private: Study
) -> None:
    """Two updates with different noise must not leave under one charge, whoever wrote the outbox last."""
    hospital = Hospital(make_site(private))
    hospital.ask(instruct(private))
    (charge,) = charges(hospital)
    Outbox(hospital.folder / "outbox").store(charge.key, save({"head.weight": np.zeros(1, np.float32)}))
    assert hospital.ask(instruct(private)) == Refusal(RefusalCode.ROUND_LOST, "")


def test_a_changed_cohort_does_not_open_a_fresh_budget(
    make_site: Callable[..., Path], instruct: Instruct, private: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.charging.KEPT_REPLIES", 2)
    hospital = Hospital(make_site(private))
    for number in (1, 2, 3):
        hospital.ask(instruct(private, number))
    hospital = Hospital(make_site(private, patients=79))
    assert hospital.ask(instruct(private, 1)) == Refusal(RefusalCode.ROUND_LOST, ""), "it left, and is never made again"
    assert hospital.ask(instruct(private, 1, run_id="run-2")) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")
    assert len(charges(hospital)) == 3


def test_two_nominal_sizes_in_one_process(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    north, south = make_site(private, "north"), make_site(private, "south")
    facts = json.loads((south / "site.json").read_text())
    (south / "site.json").write_text(json.dumps({**facts, "nominal_patients": 30}))
    hospital = Hospital(north)
    assert isinstance(hospital.ask(instruct(private, 1)), Update)
    hospital.folder = south
    assert isinstance(hospital.ask(instruct(private, 1)), Update)
    hospital.folder = north
    assert isinstance(hospital.ask(instruct(private, 2)), Update)


def test_every_cause_in_training_leaves_as_one_code_and_stays_charged(
    make_site: Callable[..., Path], instruct: Instruct, private: Study
) -> None:
    hospital = Hospital(make_site(private))
    (hospital.folder / "outbox").write_text("a file where the folder should be")
    assert hospital.ask(instruct(private)) == Refusal(RefusalCode.TRAINING_FAILED, "")
    (charge,) = charges(hospital)
    assert charge.state is State.RESERVED


def test_a_full_disk_at_the_journal_does_not_cost_the_update(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    hospital = Hospital(make_site(private))
    journal_path(hospital.folder).mkdir()
    assert isinstance(hospital.ask(instruct(private)), Update)


def test_the_same_round_with_another_model_is_refused(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    hospital = Hospital(make_site(private))
    hospital.ask(instruct(private))
    assert hospital.ask(instruct(private, shift=0.5)) == Refusal(RefusalCode.ROUND_CONFLICT, "")
    assert len(charges(hospital)) == 1


def test_a_round_beyond_the_plan_is_refused(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    assert Hospital(make_site(private)).ask(instruct(private, 4)) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")


def test_a_second_run_on_the_same_patients_is_refused(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    """The first run's charges count: both together would spend more than the study's ε."""
    hospital = Hospital(make_site(private))
    for number in (1, 2, 3):
        assert isinstance(hospital.ask(instruct(private, number)), Update)
    assert hospital.ask(instruct(private, 1, run_id="run-2")) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")
    assert len(charges(hospital)) == 3


def test_a_study_without_privacy_needs_permission_by_id(make_site: Callable[..., Path], instruct: Instruct) -> None:
    study = small()
    hospital = Hospital(make_site(study, allow=False))
    assert hospital.ask(instruct(study)) == Refusal(RefusalCode.STUDY_NOT_APPROVED, "")
    assert not ledger_path(hospital.folder).exists()


def test_a_run_without_privacy_is_on_record_as_unprotected(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    study = small()
    hospital = Hospital(make_site(study))
    hospital.ask(instruct(study))
    assert ["NonPrivate" in charge.event_json for charge in charges(hospital)] == [True]
    assert hospital.ask(instruct(private)) == Refusal(RefusalCode.BUDGET_EXHAUSTED, "")


def test_too_few_patients(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    """By the public nominal size, 60: the study chooses the number, so the true one must not answer."""
    study = private.with_changes({"data.min_patients": 61})
    hospital = Hospital(make_site(study))
    assert hospital.ask(instruct(study)) == Refusal(RefusalCode.NOT_READY, "")
    assert not ledger_path(hospital.folder).exists(), "nothing was trained, so nothing is charged"


def test_evaluation_stays_at_the_site(make_site: Callable[..., Path], instruct: Instruct) -> None:
    study = small()
    hospital = Hospital(make_site(study))
    assert hospital.ask(instruct(study, 3, train=False, evaluate=True)) == Evaluated("run-1", 3, "north")
    scores = SiteScores.read(evaluation_path(hospital.folder, 3))
    assert len(scores.rows) == len(scores.labels) == len(scores.patients) == len(scores.scores) > 0
    assert np.allclose(scores.scores, 0.5), "the head starts at zero"
    assert isinstance(hospital.ask(instruct(study, 2, evaluate=True)), Update)
    assert evaluation_path(hospital.folder, 1).exists(), "riding on round 2, it is the model after round 1"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"study": "{}"}, RefusalCode.STUDY_INVALID),
        ({"protocol": 99}, RefusalCode.PROTOCOL_MISMATCH),
        ({"round": "1"}, RefusalCode.PROTOCOL_MISMATCH),
    ],
)
def test_a_message_that_does_not_fit(make_site: Callable[..., Path], instruct: Instruct, change: dict, code: RefusalCode) -> None:
    study = small()
    instruction = instruct(study)
    records = instruction.to_records()
    records["wardround"] = ConfigRecord({**records.config_records["wardround"], **change})
    assert Hospital(make_site(study)).ask(instruction, records) == Refusal(code, "")


def test_a_model_of_another_shape_is_refused_before_it_costs_anything(make_site: Callable[..., Path], instruct: Instruct) -> None:
    study = small()
    instruction = instruct(study)
    wrong = Instruction("run-1", study.canonical_json, 1, True, False, {"other": np.zeros(3, np.float32)})
    hospital = Hospital(make_site(study))
    assert hospital.ask(wrong) == Refusal(RefusalCode.PROTOCOL_MISMATCH, "")
    assert charges(hospital) == []
    assert isinstance(hospital.ask(instruction), Update)


def test_the_cause_of_a_failure_stays_in_the_local_log(make_site: Callable[..., Path], instruct: Instruct) -> None:
    study = small()
    hospital = Hospital(make_site(study))
    (hospital.folder / "rows.npy").write_bytes(b"junk of patient 42")
    instruction = instruct(study)
    assume_server_identity(1)
    message = Message(instruction.to_records(), 1000, "train")
    reply = create_app(lambda context: hospital.folder)(message, Context(1, 1000, {}, RecordDict(), {}))
    assert dict(reply.content.config_records["wardround"]) == {"protocol": 1, "kind": "refusal", "code": "NOT_READY", "site": ""}
    assert set(reply.content) == {"wardround"}
    assert "rows.npy" in log_path(hospital.folder).read_text() or "site.json" in log_path(hospital.folder).read_text()


def test_a_damaged_reply_is_never_trained_again(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    hospital = Hospital(make_site(private))
    hospital.ask(instruct(private))
    (stored,) = (hospital.folder / "outbox").glob("*.reply")
    stored.write_bytes(stored.read_bytes()[:-1])
    assert hospital.ask(instruct(private)) == Refusal(RefusalCode.ROUND_LOST, "")


def coordinated(make_site: Callable[..., Path], study: Study) -> Hospital:
    """A hospital that knows its coordinator's key."""
    folder = make_site(study)
    facts = json.loads((folder / "site.json").read_text())
    (folder / "site.json").write_text(json.dumps({**facts, "coordinator_key": COORDINATOR.signer.public_key}))
    return Hospital(folder)


def test_heads_ride_on_replies_and_a_rollback_is_refused(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    hospital = coordinated(make_site, private)
    assert isinstance(hospital.ask(instruct(private, 1)), Update)
    old = ledger_path(hospital.folder).read_bytes()
    first = make_receipt(hospital.head, COORDINATOR.signer)
    assert isinstance(hospital.ask(instruct(private, 2), with_receipt(instruct(private, 2).to_records(), first)), Update)
    second = make_receipt(hospital.head, COORDINATOR.signer)
    ledger_path(hospital.folder).write_bytes(old)
    hospital = hospital.again()
    third = instruct(private, 3)
    assert hospital.ask(third, with_receipt(third.to_records(), second)) == Refusal(RefusalCode.LEDGER_BEHIND, "")
    assert hospital.again().ask(third) == Refusal(RefusalCode.LEDGER_BEHIND, ""), "the receipt is kept"
    recover(open_ledger(hospital.folder), Secret.read(key_path(hospital.folder)))
    assert isinstance(hospital.again().ask(third), Update)
    assert hospital.ask(instruct(private, 2)) == Refusal(RefusalCode.ROUND_LOST, "")
    assert len(charges(hospital)) == 3


def test_a_receipt_that_is_not_signed_is_ignored_and_logged(make_site: Callable[..., Path], instruct: Instruct, private: Study) -> None:
    hospital = coordinated(make_site, private)
    bad = make_receipt("{}", Secret(b"x" * 32).signer)
    assert isinstance(hospital.ask(instruct(private), with_receipt(instruct(private).to_records(), bad)), Update)
    assert "ignored: receipt: not signed by the coordinator" in log_path(hospital.folder).read_text()


def test_a_round_that_fails_before_its_first_gradient_costs_nothing(
    make_site: Callable[..., Path], instruct: Instruct, private: Study
) -> None:
    hospital = Hospital(make_site(private))
    (hospital.folder / "evaluations").write_text("a file where the folder should be")
    assert hospital.ask(instruct(private, 2, evaluate=True)) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert [charge.state for charge in charges(hospital)] == [State.SETTLED]
    (hospital.folder / "evaluations").unlink()
    assert isinstance(hospital.ask(instruct(private, 2, evaluate=True)), Update)
    assert [charge.state for charge in charges(hospital)] == [State.RELEASING]
