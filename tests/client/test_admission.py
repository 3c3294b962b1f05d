# SPDX-License-Identifier: Apache-2.0
"""The worker checks once more what the node checked: the study, the run, the initial weights, the rounds a day; and where things lie."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

import client.admission
from client.app import app
from client.journal import read_entries
from client.site import Site, home_of, journal_path, ledger_settings, log_path, open_ledger, site_from_context
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.errors import DataError
from common.flower_compat.identity import assume_server_identity
from common.models.registry import initial_state
from common.privacy.charges import Line, State
from common.privacy.receipts import make_receipt
from common.protocol import Instruction, Refusal, RefusalCode, Reply, Update, read_reply, shapes_of
from common.riders import head_of
from common.study import Study
from tests.client.offered import COORDINATOR, Hospital, hospital_study


class Worker:
    """The app of the worker process, asked as the node asks."""

    def __init__(self, hospital: Hospital, study: Study) -> None:
        self.hospital, self.study = hospital, study
        permitted = hospital.permit(study, hospital.offer(study))
        self.run_id, self.folder = permitted.record.run_id, permitted.folder
        self.weights: Mapping[str, Any] = initial_state(study)

    def ask(self, number: int = 1, study: Study | None = None, run_id: str = "", train: bool = True, shift: float = 0.0) -> Reply:
        assume_server_identity(1)
        model = {name: value + np.float32(shift) for name, value in self.weights.items()}
        text = (study or self.study).canonical_json
        instruction = Instruction(run_id or self.run_id, text, number, train, not train, model)
        message = Message(instruction.to_records(), 1000, "train" if train else "evaluate")
        reply = app(message, Context(1, 1000, {"site-folder": str(self.folder)}, RecordDict(), {}))
        self.head = head_of(reply.content)
        return read_reply(reply.content, run_id=instruction.run_id, round_number=number, shapes=shapes_of(model))

    def refused(self, code: RefusalCode, said: str, **asked: Any) -> None:
        assert self.ask(**asked) == Refusal(code, "")
        assert said in log_path(self.hospital.home.folder).read_text(), "the cause stays in the site's own log"


@pytest.fixture
def approved(tmp_path: Path) -> Callable[..., Worker]:
    def make(study: Study | None = None, **limits: Any) -> Worker:
        hospital, study = Hospital.make(tmp_path / "home", **limits), study or hospital_study()
        hospital.offer(study)
        if not study.is_private:
            hospital.change("allow", unprotected_studies=[study.id])
        hospital.approve(study, runs=2)
        return Worker(hospital, study)

    return make


def test_an_approved_study_trains_and_all_that_lasts_lies_in_the_home(approved: Callable[..., Worker]) -> None:
    worker = approved(epsilon_per_account=30.0)
    home = worker.hospital.home
    assert isinstance(worker.ask(), Update)
    assert home.ledger.exists() and home.outbox.is_dir() and home.round_lock.exists()
    assert [entry.round for entry in read_entries(home.journal)] == [1] and journal_path(home.folder) == home.journal
    assert {path.name for path in worker.folder.iterdir()} == {"offer.json", "site.json", "rows.npy", "split.npy"}
    charges = open_ledger(home.folder).charges()
    assert [(charge.key.line, charge.state) for charge in charges] == [(Line.TRAINING, State.RELEASING)]
    assert [charge.key.study_id for charge in open_ledger(worker.folder).charges()] == [worker.study.id], "one ledger for the whole site"


def test_another_study_or_run_in_this_folder_is_refused(approved: Callable[..., Worker]) -> None:
    worker = approved(epsilon_per_account=30.0)
    other = worker.study.with_changes({"privacy.epsilon": 7.9})
    worker.refused(RefusalCode.STUDY_NOT_APPROVED, "is not the one of this folder", study=other)
    worker.refused(RefusalCode.STUDY_NOT_APPROVED, "is not among those that were approved", run_id="f" * 32)
    assert open_ledger(worker.folder).charges() == []


def test_round_one_starts_from_the_approved_weights(approved: Callable[..., Worker]) -> None:
    worker = approved(epsilon_per_account=30.0)
    worker.refused(RefusalCode.STUDY_NOT_APPROVED, "the initial weights are not those", shift=1e-4)
    worker.refused(RefusalCode.STUDY_NOT_APPROVED, "the initial weights are not those", shift=1e-4, number=0, train=False)
    assert open_ledger(worker.folder).charges() == []
    assert isinstance(worker.ask(), Update)
    assert isinstance(worker.ask(number=2, shift=1e-4), Update), "later rounds bring other weights"


def test_rounds_a_day(approved: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = approved(epsilon_per_account=30.0, rounds_a_day=2)
    first = worker.ask()
    assert isinstance(worker.ask(number=2), Update)
    worker.refused(RefusalCode.POLICY_REFUSED, "2 rounds were trained in the last 24 hours", number=3)
    again = worker.ask()
    assert isinstance(first, Update) and isinstance(again, Update)
    assert all(np.array_equal(first.delta[name], again.delta[name]) for name in first.delta), "what was released is sent again"
    monkeypatch.setattr(client.admission, "DAY_SECONDS", 0.0)
    assert isinstance(worker.ask(number=3), Update), "a day later"


def test_a_policy_that_became_stricter_holds_in_the_running_worker(approved: Callable[..., Worker]) -> None:
    worker = approved(epsilon_per_account=30.0)
    assert isinstance(worker.ask(), Update)
    path = worker.folder / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rounds_a_day": 1}))
    worker.refused(RefusalCode.POLICY_REFUSED, "rounds_a_day is 1", number=2)


def test_what_another_study_was_promised_holds_in_the_worker(approved: Callable[..., Worker]) -> None:
    """Also when a study would spend what was not promised to it: here its own promise is gone."""
    from client.budget import withdraw

    worker = approved(epsilon_per_account=11.0)
    second = worker.study.with_changes({"seed": 1})
    withdraw(open_ledger(worker.folder), worker.study.id)
    worker.hospital.offer(second)
    worker.hospital.approve(second, runs=2)
    worker.refused(RefusalCode.BUDGET_EXHAUSTED, "with what other studies were promised")


def test_receipts_of_any_approved_study_are_believed(approved: Callable[..., Worker], tmp_path: Path) -> None:
    worker = approved(epsilon_per_account=30.0)
    other_key = Secret(b"o" * 32).signer
    book = open_ledger(worker.folder)
    receipt = make_receipt(book.signed_head(), other_key)
    other = worker.study.with_changes({"seed": 1})
    worker.hospital.offer(other, receipt_key=other_key.public_key)
    worker.hospital.approve(other)
    for folder in (worker.hospital.home.folder, worker.folder):
        open_ledger(folder).take_receipt(receipt)
        open_ledger(folder).take_receipt(make_receipt(book.signed_head(), COORDINATOR.signer))


def test_a_joint_cohort_is_on_both_lines(approved: Callable[..., Worker]) -> None:
    worker = approved(epsilon_per_account=30.0)
    site = Site.open(worker.folder)
    lines = site.patient_ids()
    assert not set(lines[Line.TRAINING]) & set(lines[Line.HELD_OUT])
    path = worker.folder / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "joint": True}))
    lines = Site.open(worker.folder).patient_ids()
    assert lines[Line.TRAINING] == lines[Line.HELD_OUT] == sorted(site.cohort.dataset.patient_ids)
    assert site.cohort.patient_count(Split.TRAIN) < len(lines[Line.TRAINING])


def test_where_a_site_is(approved: Callable[..., Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = approved(epsilon_per_account=12.0 + 20)
    home = worker.hospital.home.folder
    assert home_of(worker.folder) == home_of(home) == home.resolve()
    assert ledger_settings(home) == ledger_settings(worker.folder) == ("north", 32.0)
    with pytest.raises(DataError, match=r"no site.json and no site.yaml"):
        home_of(tmp_path)
    table = tmp_path / "table.json"
    table.write_text('["here"]')
    monkeypatch.setenv("WARDROUND_SITE_TABLE", str(table))
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    assert site_from_context(context) == tmp_path / "here"
    assert site_from_context(Context(1, 1, {"partition-id": 0, "site-folder": "/there"}, RecordDict(), {})) == Path("/there")
