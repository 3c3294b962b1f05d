# SPDX-License-Identifier: Apache-2.0
"""The list of excluded patients: what the file promises, and what training and scoring do with it, through the real app."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import create_app
from client.cohorts.exclusions import Participants, exclude, include, read_exclusions, remaining
from client.egress import open_chain, release
from client.egress_audit import audit
from client.egress_chain import EgressLine
from client.pseudonyms import Pseudonyms
from client.scores import SiteScores
from client.site import Site, evaluation_path, open_ledger
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.errors import InputError, StorageError
from common.flower_compat.identity import assume_server_identity
from common.privacy.charge_book import Line
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Reply, Update, read_reply, shapes_of
from tests.client.egress_site import evaluated, incoming, make_home, refusal, update
from tests.support.studies import PRIVATE, small

MakeSite = Callable[..., Path]
Instruct = Callable[..., Instruction]
SECRET = Secret(b"h" * 32)
ANNA, BERT, CARL = (Pseudonyms(SECRET).of(name) for name in ("anna", "bert", "carl"))


def test_a_decision_is_a_line_with_pseudonym_time_and_who(tmp_path: Path) -> None:
    assert read_exclusions(tmp_path).now == frozenset()
    assert exclude(tmp_path, [ANNA, BERT, ANNA], "IT", 100.0) == 2
    assert exclude(tmp_path, [ANNA], "IT", 101.0) == 0, "known, so no line"
    assert include(tmp_path, [BERT, CARL], "the office", 102.0) == 1
    lines = [json.loads(line) for line in (tmp_path / "exclusions.jsonl").read_text().splitlines()]
    assert lines == [
        {"number": 1, "patient": ANNA, "excluded": True, "time": 100.0, "by": "IT"},
        {"number": 2, "patient": BERT, "excluded": True, "time": 100.0, "by": "IT"},
        {"number": 3, "patient": BERT, "excluded": False, "time": 102.0, "by": "the office"},
    ]
    assert read_exclusions(tmp_path).now == {ANNA}
    assert (tmp_path / "exclusions.jsonl").stat().st_mode & 0o777 == 0o600


def test_only_pseudonyms_are_taken_and_nobody_is_written_when_one_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patient is not valid"):
        exclude(tmp_path, [ANNA, "bert"], "IT", 1.0)
    assert read_exclusions(tmp_path).now == frozenset()


def test_a_line_cut_by_a_crash_never_counted_and_any_other_damage_stops_everything(tmp_path: Path) -> None:
    exclude(tmp_path, [ANNA, BERT], "IT", 1.0)
    path = tmp_path / "exclusions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 3, "pat')
    assert read_exclusions(tmp_path).now == {ANNA, BERT}
    exclude(tmp_path, [CARL], "IT", 2.0)
    assert read_exclusions(tmp_path).now == {ANNA, BERT, CARL}
    for damaged in (whole.replace(b"true", b"maybe", 1), whole.splitlines(keepends=True)[1], b"\n" + whole):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="line 1"):
            read_exclusions(tmp_path)


def test_throughout_asks_for_the_whole_time(tmp_path: Path) -> None:
    exclude(tmp_path, [ANNA], "IT", 10.0)
    include(tmp_path, [ANNA], "IT", 20.0)
    exclude(tmp_path, [ANNA], "IT", 30.0)
    known = read_exclusions(tmp_path)
    spans = [(11, 19), (10, 12), (9, 12), (11, 20), (19, 31), (31, 99), (21, 29)]
    assert [known.throughout(ANNA, *span) for span in spans] == [True, False, False, False, False, True, False]
    assert not known.throughout(BERT, 0, 99)
    since = known.since(ANNA)
    assert since is not None
    assert since.time == 30.0


def test_a_cohort_without_them_keeps_all_else(make_site: MakeSite) -> None:
    folder = make_site(small())
    cohort, names = Site.open(folder).cohort, Pseudonyms(Secret.read(folder / "site.key"))
    gone = frozenset(names.of(one) for one in cohort.dataset.patient_ids[3:7])
    left = remaining(cohort, gone, names)
    assert {int(number) for number in cohort.dataset.patients[cohort.rows]} - set(cohort.dataset.patients[left.rows].tolist()) == {
        3,
        4,
        5,
        6,
    }
    before = dict(zip(cohort.rows.tolist(), cohort.split.tolist(), strict=True))
    assert all(before[row] == split for row, split in zip(left.rows.tolist(), left.split.tolist(), strict=True))


def test_participants_are_the_same_object_until_the_list_changes(make_site: MakeSite) -> None:
    site, known = Site.open(make_site(small())), Participants()
    names = Pseudonyms(Secret.read(site.home / "site.key"))
    ids = [names.of(one) for one in site.cohort.dataset.patient_ids]
    assert known.of(site.folder, site.home, site.cohort) is site.cohort
    exclude(site.home, ids[:1], "IT", 1.0)
    first = known.of(site.folder, site.home, site.cohort)
    assert first is known.of(site.folder, site.home, site.cohort) is not site.cohort
    exclude(site.home, ids[1:2], "IT", 1.0)
    assert len(known.of(site.folder, site.home, site.cohort).rows) < len(first.rows)
    include(site.home, ids[:2], "IT", 2.0)
    assert known.of(site.folder, site.home, site.cohort) is site.cohort


class Hospital:
    """One app serving one folder, which lives on while the list changes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cohort = folder, Site.open(folder).cohort
        self._names = Pseudonyms(Secret.read(folder / "site.key"))
        self._app = create_app(lambda context: self.folder)

    def ask(self, instruction: Instruction) -> Reply:
        assume_server_identity(1)
        message = Message(instruction.to_records(), 1000, "train" if instruction.train else "evaluate")
        content = self._app(message, Context(1, 1000, {}, RecordDict(), {})).content
        return read_reply(content, run_id=instruction.run_id, round_number=instruction.round, shapes=shapes_of(instruction.model))

    def patients(self, split: Split) -> list[int]:
        return np.unique(self.cohort.dataset.patients[self.cohort.rows_in(split)]).tolist()

    def exclude(self, numbers: list[int]) -> None:
        exclude(self.folder, [self._names.of(self.cohort.dataset.patient_ids[number]) for number in numbers], "IT", 1.0)

    def remove(self, numbers: list[int]) -> None:
        """Take patients out of the cohort itself."""
        keep = ~np.isin(self.cohort.dataset.patients[self.cohort.rows], numbers)
        for name, array in (("rows", self.cohort.rows), ("split", self.cohort.split)):
            np.save(self.folder / f"{name}.npy", array[keep])


def delta(reply: Reply) -> bytes:
    assert isinstance(reply, Update), reply
    return b"".join(reply.delta[name].tobytes() for name in sorted(reply.delta))


def test_excluded_patients_are_not_drawn_from_the_next_round_on(make_site: MakeSite, instruct: Instruct, tmp_path: Path) -> None:
    """Without privacy a run repeats exactly: with them excluded it goes as at a hospital that never had them."""
    study = small()
    hospital = Hospital(make_site(study))
    shutil.copytree(hospital.folder, tmp_path / "without")
    gone = hospital.patients(Split.TRAIN)[::2]
    without = Hospital(tmp_path / "without")
    without.remove(gone)
    without = Hospital(without.folder)
    assert delta(hospital.ask(instruct(study, 1))) != delta(without.ask(instruct(study, 1)))
    hospital.exclude(gone)
    assert delta(hospital.ask(instruct(study, 2))) == delta(without.ask(instruct(study, 2)))


def test_account_and_charge_stay_those_of_the_whole_cohort(make_site: MakeSite, instruct: Instruct) -> None:
    study = small(PRIVATE)
    hospital = Hospital(make_site(study))
    hospital.ask(instruct(study, 1))
    before = open_ledger(hospital.folder)
    hospital.exclude(hospital.patients(Split.TRAIN)[:10])
    assert isinstance(hospital.ask(instruct(study, 2)), Update)
    book = open_ledger(hospital.folder)
    first, second = [charge for charge in book.charges() if charge.key.line is Line.TRAINING]
    assert (first.key.account, first.event_json, first.steps) == (second.key.account, second.event_json, second.steps)
    counts = [one.fold().accounts.patient_count(first.key.account, Line.TRAINING) for one in (before, book)]
    assert counts == [len(hospital.patients(Split.TRAIN))] * 2, "the ledger keeps them"


def test_with_everybody_excluded_a_private_round_is_noise_and_another_is_refused(make_site: MakeSite, instruct: Instruct) -> None:
    private, plain = small(PRIVATE), small()
    hospital = Hospital(make_site(private))
    hospital.exclude(hospital.patients(Split.TRAIN))
    reply = hospital.ask(instruct(private, 1))
    assert isinstance(reply, Update)
    assert all(np.abs(value).max() > 0 for value in reply.delta.values())
    other = Hospital(make_site(plain, "south"))
    other.exclude(other.patients(Split.TRAIN))
    assert other.ask(instruct(plain, 1)) == Refusal(RefusalCode.NOT_READY, "")


def test_excluded_patients_are_not_scored(make_site: MakeSite, instruct: Instruct) -> None:
    study = small(PRIVATE)
    hospital = Hospital(make_site(study))
    held_out = hospital.patients(Split.TEST)
    final = instruct(study, round_number=3, train=False, evaluate=True)
    assert isinstance(hospital.ask(final), Evaluated)
    assert sorted(set(SiteScores.read(evaluation_path(hospital.folder, 3)).patients.tolist())) == held_out
    hospital.exclude(held_out[:2])
    hospital.ask(final)
    assert sorted(set(SiteScores.read(evaluation_path(hospital.folder, 3)).patients.tolist())) == held_out[2:]


def test_a_damaged_list_lets_nothing_train(make_site: MakeSite, instruct: Instruct) -> None:
    hospital = Hospital(make_site(small(PRIVATE)))
    hospital.exclude(hospital.patients(Split.TRAIN)[:1])
    (hospital.folder / "exclusions.jsonl").write_text("rubbish\n")
    assert hospital.ask(instruct(small(PRIVATE))) == Refusal(RefusalCode.NOT_READY, "")


def lines_in(folder: Path, policy: str) -> list[EgressLine]:
    """The log of a site with two excluded patients, after an update, a measurement and a refusal."""
    home = make_home(folder)
    home.config.write_text(home.config.read_text().replace("exclusions_in_egress_log: false", f"exclusions_in_egress_log: {policy}"))
    exclude(home.folder, [ANNA, BERT], "IT", 1.0)
    release(home, incoming(1), update(1))
    release(home, incoming(1, train=False), evaluated(1))
    release(home, incoming(2), refusal())
    found = audit(home)
    assert found.problems == []
    return list(open_chain(home).lines())


def test_the_log_of_what_left_counts_them_only_where_policy_says_so(tmp_path: Path) -> None:
    assert [line.exclusions for line in lines_in(tmp_path / "silent", "false")] == [None, None, None]
    assert "exclusions" not in (tmp_path / "silent" / "egress.jsonl").read_text(), "lines look as they did before there was a list"
    assert [line.exclusions for line in lines_in(tmp_path / "counted", "true")] == [2, 2, None]


def test_a_count_in_the_log_cannot_be_edited(tmp_path: Path) -> None:
    lines_in(tmp_path / "counted", "true")
    home = tmp_path / "counted"
    text = (home / "egress.jsonl").read_text()
    for edited in (text.replace('"exclusions":2,', '"exclusions":1,', 1), text.replace('"exclusions":2,', "", 1)):
        (home / "egress.jsonl").write_text(edited)
        with pytest.raises(StorageError, match="line 1 was edited"):
            list(open_chain(SiteHome(home)).lines())
