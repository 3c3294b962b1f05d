# SPDX-License-Identifier: Apache-2.0
"""A survey at a site, through the real app, ledger, outbox and generator."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import create_app
from client.cohorts.exclusions import exclude
from client.egress_rules import ExitRules, Incoming, check_exit
from client.ledger.book import Ledger
from client.pseudonyms import Pseudonyms
from client.site import SITE_FILE, Site, SiteFile, key_path, open_ledger
from client.survey_tables import exact_tables
from common.crypto.secrets import Secret
from common.errors import ProtocolError
from common.flower_compat.identity import assume_server_identity
from common.privacy.accountant import epsilon_pld, event_from_json
from common.privacy.charge_book import Charge, Line
from common.privacy.charges import Outbox, State
from common.protocol import TABLES, Instruction, Refusal, RefusalCode, Reply, Surveyed, read_reply
from common.study import Study
from common.survey_plan import WEIGHT, SurveyPlan, survey_plan, survey_study
from tests.support.studies import PRIVATE, small

MakeSite = Callable[..., Path]


def surveyed(**survey: object) -> Study:
    return survey_study(small(PRIVATE, survey={"epsilon": 1.0, "subgroups": {"scanner": ["1", "2"]}, **survey}))


def plan_of(study: Study) -> SurveyPlan:
    plan = survey_plan(study)
    assert plan is not None
    return plan


def asked(study: Study, **changes: object) -> Instruction:
    facts = {"run_id": "run-1", "study": study.canonical_json, "round": 0, "train": False, "evaluate": True, "model": {}}
    return Instruction(**{**facts, **changes})  # type: ignore[arg-type]


class Hospital:
    """One app serving one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._app = create_app(lambda context: self.folder)

    def answer(self, instruction: Instruction) -> RecordDict:
        assume_server_identity(1)
        message = Message(instruction.to_records(), 1000, "train" if instruction.train else "evaluate")
        return self._app(message, Context(1, 1000, {}, RecordDict(), {})).content

    def ask(self, instruction: Instruction) -> Reply:
        plan = survey_plan(Study.from_canonical_json(instruction.study))
        facts = {"run_id": instruction.run_id, "round_number": instruction.round, "shapes": {}}
        return read_reply(self.answer(instruction), **facts, tables=plan.shapes if plan else None)

    def tables(self, study: Study, **changes: object) -> dict[str, np.ndarray]:
        reply = self.ask(asked(study, **changes))
        assert isinstance(reply, Surveyed), reply
        return dict(reply.tables)

    def refusal(self, study: Study, **changes: object) -> RefusalCode:
        reply = self.ask(asked(study, **changes))
        assert isinstance(reply, Refusal), reply
        return reply.code

    def charges(self) -> list[Charge]:
        return open_ledger(self.folder).charges()

    def change(self, **settings: object) -> None:
        path = self.folder / SITE_FILE
        path.write_text(SiteFile.read(self.folder).model_copy(update=settings).model_dump_json())


@pytest.fixture
def hospital(make_site: MakeSite) -> Hospital:
    return Hospital(make_site(surveyed()))


def test_every_table_leaves_with_noise_and_all_patients_pay_for_it(hospital: Hospital) -> None:
    study = surveyed()
    tables, plan = hospital.tables(study), plan_of(study)
    exact = exact_tables(Site.open(hospital.folder).cohort, plan)
    assert exact["patients"].tolist() == [80 * WEIGHT]
    assert {name: table.shape for name, table in tables.items()} == plan.shapes
    for name, table in tables.items():
        assert table.dtype == np.int64
        assert (table == exact[name]).sum() <= 2, "P(0) is below 1 in 1,000 for each cell"
        assert np.abs(table - exact[name]).max() < 30 * plan.standard_error * WEIGHT
    charges = hospital.charges()
    assert {(charge.key.line, charge.state, charge.key.round, charge.steps) for charge in charges} == {
        (line, State.RELEASING, 0, 5) for line in Line
    }
    for charge in charges:
        assert epsilon_pld([event_from_json(charge.event_json)], 1e-9) == pytest.approx(1.0, rel=1e-3)


def test_noise_is_new_at_each_site(make_site: MakeSite) -> None:
    study = surveyed()
    one, other = (Hospital(make_site(study, name)).tables(study) for name in ("north", "south"))
    assert not any(np.array_equal(one[name], other[name]) for name in one)


def test_asked_again_the_stored_bytes_are_sent_under_the_same_charges(hospital: Hospital) -> None:
    study = surveyed()
    first = hospital.tables(study)
    for again in (hospital, Hospital(hospital.folder)):
        found = again.tables(study)
        assert all(np.array_equal(first[name], found[name]) for name in first)
    assert len(hospital.charges()) == 2


def test_another_message_for_the_same_survey_is_a_conflict(hospital: Hospital) -> None:
    study = surveyed()
    hospital.tables(study)
    assert hospital.refusal(study, model={"w": np.zeros(3, np.float32)}) is RefusalCode.ROUND_CONFLICT
    assert len(hospital.charges()) == 2


@pytest.mark.parametrize("changes", [{"train": True, "evaluate": False}, {"round": 1}])
def test_a_survey_answers_its_one_message_and_no_other(hospital: Hospital, changes: dict[str, object]) -> None:
    assert hospital.refusal(surveyed(), **changes) is RefusalCode.PROTOCOL_MISMATCH
    assert hospital.charges() == []


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_killed_anywhere_it_is_charged_once_and_leaves_once(hospital: Hospital, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each durable step in turn: two reservations, the outbox, the first `releasing`. Then the same message again."""
    study, done = surveyed(), []

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            found = original(*arguments)
            done.append(original.__name__)
            if len(done) == number:
                raise Killed
            return found

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((Ledger, "reserve"), (Outbox, "store"), (Ledger, "releasing")):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        with pytest.raises(Killed):
            hospital.answer(asked(study))
    assert done == ["reserve", "reserve", "store", "releasing"][:number]
    later = Hospital(hospital.folder)
    first = later.tables(study)
    assert all(np.array_equal(table, later.tables(study)[name]) for name, table in first.items())
    assert [charge.state for charge in later.charges()] == [State.RELEASING] * 2
    assert len({charge.reply_sha256 for charge in later.charges()}) == 1


def test_a_reply_that_is_gone_is_never_made_again(hospital: Hospital) -> None:
    study = surveyed()
    hospital.tables(study)
    for path in (hospital.folder / "outbox").iterdir():
        path.unlink()
    assert hospital.refusal(study) is RefusalCode.ROUND_LOST


def test_patients_with_an_official_split_pay_once_on_their_joint_line(hospital: Hospital) -> None:
    hospital.change(joint=True)
    hospital.tables(surveyed())
    (charge,) = hospital.charges()
    assert charge.key.line is Line.TRAINING
    book = open_ledger(hospital.folder)
    assert book.history(charge.key.account, Line.HELD_OUT) == [charge], "it counts for both"


def test_surveys_have_a_small_budget_of_their_own(hospital: Hospital) -> None:
    hospital.change(survey_epsilon=1.5, epsilon_cap=10.0)
    hospital.tables(surveyed())
    assert hospital.refusal(surveyed(epsilon=0.6)) is RefusalCode.BUDGET_EXHAUSTED
    assert hospital.refusal(surveyed(), run_id="run-2") is RefusalCode.BUDGET_EXHAUSTED
    hospital.tables(surveyed(epsilon=0.5))
    assert len(hospital.charges()) == 4


def test_a_budget_of_exactly_the_surveys_epsilon_is_enough_and_none_is_not(hospital: Hospital) -> None:
    hospital.change(survey_epsilon=0.0)
    assert hospital.refusal(surveyed()) is RefusalCode.BUDGET_EXHAUSTED
    hospital.change(survey_epsilon=1.0)
    hospital.tables(surveyed())
    hospital.change(survey_epsilon=0.5)
    hospital.tables(surveyed())  # it left before: what policy says since does not take it back


def test_the_accounts_own_cap_holds_for_surveys_too(hospital: Hospital) -> None:
    hospital.change(survey_epsilon=5.0, epsilon_cap=0.9)
    assert hospital.refusal(surveyed()) is RefusalCode.BUDGET_EXHAUSTED


def test_what_a_survey_took_is_not_there_for_training(hospital: Hospital, instruct: Callable[..., Instruction]) -> None:
    study = small({**PRIVATE, "epsilon": 2.0})
    hospital.change(epsilon_cap=2.0)
    hospital.tables(surveyed())
    reply = read_reply(hospital.answer(instruct(study)), run_id="run-1", round_number=1, shapes={})
    assert isinstance(reply, Refusal) and reply.code is RefusalCode.BUDGET_EXHAUSTED


def test_gaussian_noise_is_charged_as_such(make_site: MakeSite) -> None:
    study = surveyed(mechanism="gaussian")
    hospital = Hospital(make_site(study))
    hospital.tables(study)
    assert all("GaussianDpEvent" in charge.event_json and "Sampled" not in charge.event_json for charge in hospital.charges())
    assert len(hospital.charges()) == 2


def test_a_patient_who_is_excluded_is_not_counted_and_pays_all_the_same(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SurveyPlan, "noise_for", lambda plan, table, generator: np.zeros(len(table.cells), np.int64))
    hospital.change(epsilon_cap=10.0)
    site = Site.open(hospital.folder)
    pseudonyms = Pseudonyms(Secret.read(key_path(site.home)))
    patients = [pseudonyms.of(one) for one in site.cohort.dataset.patient_ids[:5]]
    exclude(site.home, patients[:3], "IT", 0.0)
    assert hospital.tables(surveyed())["patients"].tolist() == [77 * WEIGHT]
    exclude(site.home, patients[3:], "IT", 1.0)
    assert hospital.tables(surveyed(), run_id="run-2")["patients"].tolist() == [75 * WEIGHT], "from the next message on"
    assert len(hospital.charges()) == 4


# ---- the way out


def rules() -> ExitRules:
    return ExitRules("north", (), "00")


def incoming(study: Study) -> Incoming:
    instruction = asked(study, run_id="a" * 32)
    return Incoming.of(instruction, study)


def reply_to(study: Study, **changes: np.ndarray) -> RecordDict:
    tables = {name: np.arange(shape[0], dtype=np.int64) for name, shape in plan_of(study).shapes.items()}
    return Surveyed("a" * 32, 0, "north", {**tables, **changes}).to_records()


def test_the_tables_of_the_approved_survey_may_leave() -> None:
    check_exit(reply_to(surveyed()), incoming(surveyed()), rules)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extra": np.zeros(1, np.int64)}, "tensor extra was not asked for"),
        ({"classes": np.zeros(3, np.int64)}, "expected int64"),
        ({"classes": np.zeros(2, np.float32)}, "expected int64"),
        ({"classes": np.array([10**12 + 1, 0])}, "a count lies outside"),
    ],
)
def test_any_other_table_stays(changes: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        check_exit(reply_to(surveyed(), **changes), incoming(surveyed()), rules)


def test_bytes_behind_a_tables_values_stay() -> None:
    reply = reply_to(surveyed())
    array = reply[TABLES]["classes"]
    array.data = array.data + b"Mary"
    with pytest.raises(ProtocolError):
        check_exit(reply, incoming(surveyed()), rules)


def test_tables_do_not_leave_in_answer_to_a_round_or_an_evaluation() -> None:
    study = small(PRIVATE)
    instruction = Instruction("a" * 32, study.canonical_json, 0, False, True, {})
    with pytest.raises(ProtocolError, match="does not answer what was asked"):
        check_exit(reply_to(surveyed()), Incoming.of(instruction, study), rules)


def test_a_release_is_never_made_before_it_is_charged(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[State]] = []

    def spy(*arguments: object) -> object:
        seen.append([charge.state for charge in hospital.charges()])
        return exact_tables(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("client.surveying.exact_tables", spy)
    hospital.tables(surveyed())
    assert seen == [[State.RESERVED, State.RESERVED]]
