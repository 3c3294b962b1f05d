# SPDX-License-Identifier: Apache-2.0
"""The commands about a built cohort as hospital IT types them: check, exclude, include, exclusions, who-trained."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from client import cli
from client.checks import Doctor, cohorts
from client.cohorts.page import Thumbnails, page
from client.cohorts.verdict import CHECKS, read_verdict
from client.site_home import SiteHome
from common.errors import DataError, ExitCode
from tests.client.cohorts.checked import PSEUDONYMS, SECRET, checked, healthy, scans, study
from tests.client.egress_site import make_home, write_key
from tests.support.studies import write_study

Capture = pytest.CaptureFixture[str]
BAD_CELL = "<script>alert(1)</script>"


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    """A site with the key that the cohorts here are sealed with."""
    made = make_home(tmp_path / "home")
    write_key(made, SECRET)
    return made


def run(*arguments: object) -> int:
    return cli.main([str(one) for one in arguments])


def copies(folder: Path) -> Path:
    images = scans(60)
    images[5] = images[3]
    labels = ["normal", "pneumonia"] * 29 + [BAD_CELL, BAD_CELL]
    return healthy(folder, images=images, labels=labels, split=["train", "train", "test"] * 20)


def test_a_check_prints_a_table_writes_the_verdict_and_fails_on_errors(home: SiteHome, tmp_path: Path, capsys: Capture) -> None:
    good, bad = healthy(tmp_path / "good"), copies(tmp_path / "bad")
    assert run("cohort", "check", good, "--home", home.folder) == ExitCode.DONE
    assert "Usable: 60 patients, 60 images" in capsys.readouterr().out
    assert run("cohort", "check", bad, "--home", home.folder) == ExitCode.BAD_INPUT
    said = " ".join(capsys.readouterr().out.split())
    assert "Not usable yet" in said
    assert "exact duplicates error 2 images are in two parts of the split" in said
    verdict = read_verdict(bad)
    assert verdict is not None
    assert not verdict.passed
    assert (bad / CHECKS).stat().st_mode & 0o777 == 0o600


def test_json_is_one_object_and_takes_a_study(home: SiteHome, tmp_path: Path, capsys: Capture) -> None:
    file = write_study(study(**{"data.min_patients": 60}), tmp_path)
    folder = healthy(tmp_path / "chest")
    assert run("cohort", "check", folder, "--home", home.folder, "--study", file, "--json") == ExitCode.BAD_INPUT
    facts = json.loads(capsys.readouterr().out)
    assert (facts["passed"], facts["errors"], facts["verdict"]["study_id"]) == (False, 1, study(**{"data.min_patients": 60}).id)
    (few,) = [one for one in facts["verdict"]["checks"] if one["name"] == "enough patients"]
    assert few["findings"][0]["severity"] == "error"


def test_outside_a_site_it_checks_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv("WARDROUND_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert run("cohort", "check", healthy(tmp_path / "chest")) == ExitCode.DONE
    assert "as it was built not made" in " ".join(capsys.readouterr().out.split())
    assert run("cohort", "check", tmp_path / "chest", "--home", tmp_path) == ExitCode.BAD_INPUT
    assert "not a site's folder" in capsys.readouterr().err


def test_the_page_stands_alone_shows_the_copies_and_escapes_what_tables_say(home: SiteHome, tmp_path: Path) -> None:
    folder, path = copies(tmp_path / "chest"), tmp_path / "page.html"
    run("cohort", "check", folder, "--home", home.folder, "--page", path)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert BAD_CELL not in text
    assert "&lt;script&gt;" in text
    assert "It stays at this site" in text
    (pair,) = re.findall(r'<li class="pair">(.*?)</li>', text)[:1]
    first, second = re.findall(r'src="(data:image/png;base64,[^"]+)" alt="image (\d+)"', pair)
    assert (first[0], first[1], second[1]) == (second[0], "3", "5"), "the very same pixels"
    assert text.count("data:image/png") == 48 + len(re.findall(r'<li class="pair">', text)) * 2


def test_a_page_of_16_bit_and_of_colour_images_and_of_none(tmp_path: Path) -> None:
    wide = healthy(tmp_path / "wide", images=scans(60).astype(np.uint16) * 200)
    colour = healthy(tmp_path / "colour", images=np.repeat(scans(60)[..., None], 3, axis=3))
    for folder in (wide, colour):
        images = np.load(folder / "images.npy", mmap_mode="r")
        assert page(folder.name, checked(folder), Thumbnails(images)).count("data:image/png") == 48
    assert "data:image/png" not in page("wide", checked(wide), Thumbnails(None))


def test_the_site_s_own_check_looks_into_each_cohort(home: SiteHome, tmp_path: Path) -> None:
    def listed(*folders: Path) -> str:
        entries = ", ".join(f"{folder.name}: {{data: {folder}, nominal_patients: 60}}" for folder in folders)
        home.config.write_text(re.sub(r"(?m)^cohorts: \{.*\}$", f"cohorts: {{{entries}}}", home.config.read_text()))
        return cohorts(Doctor(home))

    good, bad = healthy(tmp_path / "good"), copies(tmp_path / "bad")
    (tmp_path / "raw").mkdir()
    assert "none was made" in listed(tmp_path / "raw")
    assert listed(good, tmp_path / "raw").startswith("good: 60 patients, 60 images;")
    with pytest.raises(DataError, match=r"^bad: .* 1 errors, .*cohort check"):
        listed(good, bad)


def test_patients_are_excluded_by_id_file_or_pseudonym_and_come_back(home: SiteHome, tmp_path: Path, capsys: Capture) -> None:
    named = tmp_path / "opted-out.txt"
    named.write_text("\ufeffP002\n\n P003 \n", encoding="utf-8")
    assert run("cohort", "exclude", "P001", PSEUDONYMS.of("P001"), "--file", named, "--by", "DPO", "--home", home.folder, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"excluded": 3}
    assert run("cohort", "include", "P002", "--home", home.folder) == 0
    capsys.readouterr()
    run("cohort", "exclusions", "--home", home.folder, "--json")
    listed = json.loads(capsys.readouterr().out)["excluded"]
    assert {one["patient"] for one in listed} == {PSEUDONYMS.of("P001"), PSEUDONYMS.of("P003")}
    assert {one["by"] for one in listed} == {"DPO"}
    run("cohort", "exclusions", "--home", home.folder)
    said = capsys.readouterr().out
    assert "2 patients are excluded" in said
    assert "P00" not in (home.folder / "exclusions.jsonl").read_text() + said, "ids are not kept"


def test_nobody_named_is_an_error(home: SiteHome, tmp_path: Path, capsys: Capture) -> None:
    assert run("cohort", "exclude", "--home", home.folder) == ExitCode.BAD_INPUT
    assert run("cohort", "exclude", "--file", tmp_path / "nothing", "--home", home.folder) == ExitCode.BAD_INPUT
    assert "cannot be read" in capsys.readouterr().err
    assert not (home.folder / "exclusions.jsonl").exists()


def test_who_trained_says_so_when_nothing_did(home: SiteHome, capsys: Capture) -> None:
    run("cohort", "exclude", "P001", "--home", home.folder)
    assert run("cohort", "who-trained", "P001", "--home", home.folder) == 0
    said = capsys.readouterr().out
    assert "No model used this patient" in said
    assert "Excluded since" in said
    run("cohort", "who-trained", "P001", "--home", home.folder, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["patient"], facts["uses"], facts["in_cohorts"]) == (PSEUDONYMS.of("P001"), [], 0)
