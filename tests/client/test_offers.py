# SPDX-License-Identifier: Apache-2.0
"""Offers: believed only when the invitation's study key signed them for this site; stored, never acted on."""

import json
from pathlib import Path

import pytest

import client.offers
from client.offers import offers, read_offer, store_offer
from common.crypto.secrets import Secret
from common.errors import InputError, ProtocolError, RefusedError
from tests.client.offered import DAY, NOW, Hospital, hospital_study, start


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital.make(tmp_path / "home")


def test_an_offer_is_stored_and_nothing_else_happens(hospital: Hospital) -> None:
    before = {path.name for path in hospital.home.folder.iterdir()}
    study = hospital_study()
    signed = hospital.offer(study)
    (found,) = offers(hospital.home)
    assert (found.study, found.signed) == (study, signed) == (read_offer(hospital.home, study.id[:6]).study, signed)
    assert {path.name for path in hospital.home.folder.iterdir()} - before == {"studies"}
    assert [path.name for path in hospital.home.study(study.id).iterdir()] == ["offer.json"]


def test_who_signed_what_for_whom(hospital: Hospital) -> None:
    study = hospital_study()
    signed = start(study)
    text = study.canonical_json
    forged = signed.model_copy(update={"record": signed.record.replace('"min_sites":2', '"min_sites":1')})
    for bad_study, bad_start, code in (
        (text, start(study, Secret(b"x" * 32)), "STUDY_NOT_APPROVED"),
        (text, forged, "STUDY_NOT_APPROVED"),
        (text, start(study, sites=["south"]), "STUDY_NOT_APPROVED"),
        (study.with_changes({"privacy.epsilon": 7.9}).canonical_json, signed, "STUDY_NOT_APPROVED"),
        (text.replace('":', '": '), signed, "STUDY_NOT_APPROVED"),
        ("\ud800", signed, "STUDY_NOT_APPROVED"),
    ):
        with pytest.raises(RefusedError, match=code):
            store_offer(hospital.home, {"study": bad_study, "start": bad_start.model_dump()})
    for nonsense in ({}, {"study": text}, {"study": 1, "start": signed.model_dump()}, {"study": text, "start": "x"}):
        with pytest.raises(ProtocolError):
            store_offer(hospital.home, nonsense)
    assert offers(hospital.home) == [] and not hospital.home.studies.exists()


def test_a_signed_study_that_this_version_cannot_read(hospital: Hospital) -> None:
    import hashlib

    for text in ('{"name":"x"}', hospital_study().canonical_json + " ", "no json"):
        signed = start(hospital_study(), study_id=hashlib.sha256(text.encode()).hexdigest())
        with pytest.raises(RefusedError, match="STUDY_INVALID"):
            store_offer(hospital.home, {"study": text, "start": signed.model_dump()})


def test_a_newer_offer_takes_the_place_of_an_older_one_and_never_the_reverse(hospital: Hospital) -> None:
    study = hospital_study()
    old = start(study, created=NOW)
    new = hospital.offer(study, created=NOW + DAY)
    store_offer(hospital.home, {"study": study.canonical_json, "start": old.model_dump()})
    assert read_offer(hospital.home, study.id).signed == new


def test_an_id_has_to_name_exactly_one(hospital: Hospital) -> None:
    hospital.offer(hospital_study())
    for bad in ("", "zz", "../..", "0" * 64):
        with pytest.raises(InputError, match="0 studies start with"):
            read_offer(hospital.home, bad)
    for number in range(16):
        hospital.offer(hospital_study(seed=number + 1))
    first = next(letter for letter in "0123456789abcdef" if sum(offer.study.id[0] == letter for offer in offers(hospital.home)) > 1)
    with pytest.raises(InputError, match="give more digits"):
        read_offer(hospital.home, first)


def test_a_coordinator_cannot_fill_the_disk_with_offers(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.offers, "MOST_OFFERS", 2)
    hospital.offer(hospital_study())
    hospital.offer(hospital_study(seed=1))
    with pytest.raises(RefusedError, match="are stored already"):
        hospital.offer(hospital_study(seed=2))
    hospital.offer(hospital_study(seed=1), created=NOW + 1)


def test_a_damaged_offer_is_left_out(hospital: Hospital) -> None:
    hospital.offer(hospital_study())
    path = hospital.home.offer(hospital_study().id)
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "study": hospital_study(seed=3).canonical_json}))
    assert offers(hospital.home) == []
    path.write_text("torn")
    assert offers(hospital.home) == []
