# SPDX-License-Identifier: Apache-2.0
"""May this run work here? Asked with everything that a coordinator, or somebody with its connection, could send."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.approvals import Approvals, RunRecord
from client.approving import reject
from client.budget import withdraw
from client.ledger.recovery import recover
from client.site import open_ledger
from common.crypto.secrets import Secret
from common.errors import CoordinatorRefused, CoordinatorUnreachable, DataError, RefusedError, StorageError
from common.federation import ApprovalRecord
from common.privacy.charges import ChargeKey, Line
from common.privacy.receipts import make_receipt
from common.signed import Signed
from common.study import Study
from tests.client.offered import COORDINATOR, DAY, NOW, Hospital, hospital_study, start

Refused = Callable[..., None]


@pytest.fixture(scope="module")
def approved_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study, Signed]:
    """A home in which one study is approved for one run that has not begun; each test takes a copy."""
    hospital, study = Hospital.make(tmp_path_factory.mktemp("approved") / "home"), hospital_study()
    signed = hospital.offer(study)
    hospital.approve(study)
    return hospital.home.folder, study, signed


@pytest.fixture
def hospital(approved_once: tuple[Path, Study, Signed], tmp_path: Path) -> Hospital:
    return Hospital(type(Hospital.make(tmp_path / "x").home)(Path(shutil.copytree(approved_once[0], tmp_path / "home"))))


@pytest.fixture
def study(approved_once: tuple[Path, Study, Signed]) -> Study:
    return approved_once[1]


@pytest.fixture
def signed(approved_once: tuple[Path, Study, Signed]) -> Signed:
    return approved_once[2]


def refused(hospital: Hospital, study: Study, signed: Signed, said: str, code: str = "STUDY_NOT_APPROVED", now: float = NOW) -> None:
    lines = hospital.home.approvals.read_bytes()
    with pytest.raises(RefusedError, match=said) as error:
        hospital.permit(study, signed, now)
    assert error.value.code == code
    assert hospital.home.approvals.read_bytes() == lines, "no run is used up by a refusal"


def test_an_approved_run_may_work_again_and_again(hospital: Hospital, study: Study, signed: Signed) -> None:
    first = hospital.permit(study, signed)
    later = hospital.permit(study, signed, NOW + 30 * DAY)  # once it has begun, the offer's end is none of its business
    assert first == later and first.study == study and first.folder == hospital.home.study(study.id)
    assert Approvals(hospital.home).runs(study.id) == (first.record.run_id,)
    assert json.loads((first.folder / "site.json").read_text())["run_ids"] == [first.record.run_id]


def test_a_second_run_on_one_approval_is_refused(hospital: Hospital, study: Study, signed: Signed) -> None:
    second = start(study)
    hospital.permit(study, signed)
    refused(hospital, study, second, "1 of 1 approved runs are used")
    hospital.permit(study, signed)
    hospital.set(limits={"epsilon_per_account": 30.0, "delta": 1e-5})
    assert hospital.approve(study).runs == 2
    hospital.permit(study, second)
    hospital.permit(study, signed)
    refused(hospital, study, start(study), "2 of 2 approved runs are used")


def test_runs_that_the_file_forgot_are_known_to_the_ledger(hospital: Hospital, study: Study, signed: Signed) -> None:
    """approvals.jsonl put back from a backup gives no run back."""
    backup = hospital.home.approvals.read_bytes()
    run_id = hospital.permit(study, signed).record.run_id
    book = open_ledger(hospital.home.folder)
    (account,) = book.fold().accounts.names
    book.reserve(ChargeKey(account, study.id, run_id, 1, "0" * 64), '{"type":"NonPrivateDpEvent"}', 1)
    hospital.home.approvals.write_bytes(backup)
    refused(hospital, study, start(study), "1 of 1 approved runs are used")
    hospital.permit(study, signed)


def test_a_study_changed_after_approval_is_refused(hospital: Hospital, study: Study, signed: Signed) -> None:
    weaker = study.with_changes({"privacy.epsilon": 7.99})
    refused(hospital, weaker, signed, "is not the one that was signed")
    refused(hospital, weaker, start(weaker), "is not approved")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"initial_weights_sha256": "0" * 64}, "other initial weights"),
        ({"sites": ["south", "west"]}, "not signed for north"),
        ({"expires": NOW - 1}, "has expired"),
    ],
)
def test_a_start_record_that_is_not_what_was_approved(hospital: Hospital, study: Study, changes: dict[str, object], said: str) -> None:
    refused(hospital, study, start(study, **changes), said)


def test_a_start_record_of_somebody_else(hospital: Hospital, study: Study) -> None:
    refused(hospital, study, start(study, Secret(b"x" * 32)), "the signature is not that of key")


def test_a_rejected_study_stops_at_once_and_may_be_taken_up_again(hospital: Hospital, study: Study, signed: Signed) -> None:
    hospital.permit(study, signed)
    reject(hospital.home, study.id, "IT", NOW + 1)
    refused(hospital, study, signed, "was rejected")
    assert hospital.approve(study, runs=0).runs == 1, "nothing but the run that has begun"
    hospital.permit(study, signed)
    refused(hospital, study, start(study), "1 of 1 approved runs are used")


@pytest.mark.parametrize(
    ("part", "values", "code", "said"),
    [
        ("limits", {"epsilon_per_account": 7.0}, "POLICY_REFUSED", "epsilon_per_account is 7"),
        ("allow", {"models": ["vgg16"]}, "POLICY_REFUSED", "allow.models"),
        ("limits", {"min_patients": 51}, "POLICY_REFUSED", "min_patients is 51"),
        ("cohorts", {}, "NOT_READY", "cohorts does not have chest"),
        ("limits", {"schedule": "00:00-00:01"}, "PAUSED", "the schedule is"),
    ],
)
def test_policy_outranks_an_approval(
    hospital: Hospital, study: Study, signed: Signed, part: str, values: dict[str, object], code: str, said: str
) -> None:
    hospital.permit(study, signed)
    hospital.change(part, **values)
    refused(hospital, study, signed, said, code, NOW + DAY / 2 if code == "PAUSED" else NOW)


def test_a_pause_is_for_new_and_running_work(hospital: Hospital, study: Study, signed: Signed) -> None:
    hospital.home.paused.touch()
    refused(hospital, study, signed, "paused", "PAUSED")
    hospital.home.paused.unlink()
    hospital.permit(study, signed)


def test_a_changed_policy_reaches_the_worker_and_what_was_fixed_stays(hospital: Hospital, study: Study, signed: Signed) -> None:
    before = json.loads((hospital.permit(study, signed).folder / "site.json").read_text())
    hospital.change("limits", epsilon_per_account=20.0, rounds_a_day=3, delta=1e-5)
    hospital.set(cohorts={"chest": {"data": "elsewhere", "nominal_patients": 70}})
    after = json.loads((hospital.permit(study, signed).folder / "site.json").read_text())
    assert (after["epsilon_cap"], after["rounds_a_day"]) == (20.0, 3)
    assert {key: value for key, value in before.items() if key not in ("epsilon_cap", "rounds_a_day")} == {
        key: value for key, value in after.items() if key not in ("epsilon_cap", "rounds_a_day")
    }


def test_a_ledger_without_the_promise_lets_no_run_begin(hospital: Hospital, study: Study, signed: Signed) -> None:
    """Restored from before the approval: the budget may have been promised to somebody else since."""
    withdraw(open_ledger(hospital.home.folder), study.id)
    refused(hospital, study, signed, "the ledger has no promise")
    hospital.approve(study)
    hospital.permit(study, signed)


def test_a_ledger_that_is_behind_lets_no_run_begin(hospital: Hospital, study: Study, signed: Signed) -> None:
    backup = hospital.home.ledger.read_bytes()
    book = open_ledger(hospital.home.folder)
    book.register({Line.TRAINING: ["somebody new"]}, 1e-5)
    book.take_receipt(make_receipt(book.signed_head(), COORDINATOR.signer))
    hospital.home.ledger.write_bytes(backup)
    refused(hospital, study, signed, "old copy", "LEDGER_BEHIND")
    recover(open_ledger(hospital.home.folder), Secret.read(hospital.home.key))
    hospital.permit(study, signed)


def test_only_what_this_site_signed_is_an_approval(hospital: Hospital, study: Study, signed: Signed) -> None:
    path = hospital.home.approvals
    line = path.read_text()
    other = hospital_study(seed=5)
    for bad in (line.replace(study.id, other.id), line.replace('\\"runs\\":1', '\\"runs\\":9'), "{}\n", "\n"):
        path.write_text(line + bad)
        with pytest.raises(StorageError, match=r"approvals.jsonl:2: not a record that this site signed"):
            hospital.permit(study, signed)
    stranger = RunRecord(study_id=study.id, run_id="0" * 32, created=NOW).signed(Secret(b"x" * 32).signer)
    path.write_text(line + stranger.to_json() + "\n")
    with pytest.raises(StorageError, match=r"approvals.jsonl:2"):
        hospital.permit(study, signed)


def test_a_torn_last_line_is_cut_off_by_the_next(hospital: Hospital, study: Study, signed: Signed) -> None:
    path = hospital.home.approvals
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-40])
    hospital.permit(study, signed)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 2 and lines[0] + b"\n" == whole
    assert Approvals(hospital.home).current(study.id) is not None


def test_a_folder_that_is_gone_is_not_made_up(hospital: Hospital, study: Study, signed: Signed) -> None:
    (hospital.home.study(study.id) / "site.json").unlink()
    with pytest.raises(DataError, match=r"site.json"):
        hospital.permit(study, signed)
    assert Approvals(hospital.home).runs(study.id) == (), "no run is used up by an error"


def test_the_file_is_the_sites_own(hospital: Hospital) -> None:
    assert hospital.home.approvals.stat().st_mode & 0o777 == 0o600


class Ear:
    """A coordinator that may be away or say no."""

    def __init__(self) -> None:
        self.heard: list[ApprovalRecord] = []
        self.refuses: str | None = None
        self.away = False

    def approve(self, signed: Signed) -> None:
        record = ApprovalRecord.model_validate_json(signed.record)
        if self.away:
            raise CoordinatorUnreachable("away")
        if record.study_id == self.refuses:
            raise CoordinatorRefused(409, "STUDY_INVALID", "not offered")
        self.heard.append(record)


def test_decisions_are_told_once_and_the_newest_only(hospital: Hospital, study: Study) -> None:
    ear, approvals = Ear(), Approvals(hospital.home)
    ear.away = True
    with pytest.raises(CoordinatorUnreachable):
        approvals.deliver(ear.approve)
    assert not approvals.is_delivered(study.id)
    ear.away = False
    assert (approvals.deliver(ear.approve), approvals.deliver(ear.approve)) == (1, 0)
    assert approvals.is_delivered(study.id)
    hospital.approve(study, now=NOW + 1)
    reject(hospital.home, study.id, "IT", NOW + 2)
    assert approvals.deliver(ear.approve) == 1
    assert [record.decision for record in ear.heard] == ["approved", "rejected"]
    (hospital.home.folder / "approvals-delivered.json").write_text("torn")
    assert approvals.deliver(ear.approve) == 1, "told again, which changes nothing"


def test_a_decision_that_is_refused_holds_up_no_other(hospital: Hospital, study: Study) -> None:
    other = hospital_study(seed=5)
    hospital.offer(other)
    reject(hospital.home, other.id, "IT", NOW)
    ear, approvals = Ear(), Approvals(hospital.home)
    ear.refuses = study.id
    with pytest.raises(CoordinatorRefused):
        approvals.deliver(ear.approve)
    assert [record.study_id for record in ear.heard] == [other.id]
    ear.refuses = None
    assert approvals.deliver(ear.approve) == 1
