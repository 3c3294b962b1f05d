# SPDX-License-Identifier: Apache-2.0
"""`wardround-client cohort build` as IT runs it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from client import cli
from client.pseudonyms import Pseudonyms
from common.crypto.secrets import Secret
from common.errors import ExitCode
from tests.client.cohorts.exports import image, write_png, write_table


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    Secret.ensure(folder / "site.key")
    (folder / "site.yaml").write_text("name: north\ncoordinator: https://c.example:1\n")
    monkeypatch.setenv("WARDROUND_SITE", str(folder))
    return folder


def test_a_cohort_from_the_command_line(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("P1/a.png", "P2/a.png", "P3/a.png")):
        write_png(tmp_path / "e" / name, image(seed))
    table = write_table(tmp_path / "t.csv", ("pid", "ill", "grade", "sex"), [("P1", 1, 2, "f"), ("P2", 0, 0, "m")])
    command = ["cohort", "build", "--images", str(tmp_path / "e"), "--labels", str(table), "--id-column", "pid", "--label-column", "ill"]
    command += ["--label-column", "grade", "--column", "sex", "--size", "16", "--workers", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "one"), "--json"]) == ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["patients"], facts["layout"], facts["size_pixels"]) == (2, 2, "patient-folders", 16)
    assert [one["file"] for one in facts["refused"]] == ["P3/a.png"]
    assert cli.main([*command, "--out", str(tmp_path / "two")]) == ExitCode.DONE
    shown = capsys.readouterr().out
    assert "2 images of 16 x 16 pixels (1 x 8 bits) of 2 patients" in shown and "P3/a.png: the table has no line for it" in shown
    with (tmp_path / "two" / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = Pseudonyms(Secret.read(home / "site.key"))
    assert [(row["patient"], row["ill"], row["grade"], row["sex"]) for row in rows] == [
        (names.of("P1"), "1", "2", "f"),
        (names.of("P2"), "0", "0", "m"),
    ]


def test_nothing_usable_is_exit_code_2_with_the_reasons(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e" / "P1").mkdir(parents=True)
    (tmp_path / "e" / "P1" / "a.png").write_text("no image")
    command = ["cohort", "build", "--images", str(tmp_path / "e"), "--workers", "1", "--out", str(tmp_path / "out")]
    assert cli.main(command) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "P1/a.png: is no image" in said and "nothing in it can be used (1 refused)" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--window", "40"], "write centre and width"),
        (["--window", "40,-1"], "the width above 0"),
        (["--layout", "tree"], "is not one of"),
        (["--size", "8"], "16<=x<=4096"),
    ],
)
def test_wrong_options_say_what_to_write(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    write_png(tmp_path / "e" / "P1" / "a.png", image(0))
    assert cli.main(["cohort", "build", "--images", str(tmp_path / "e"), "--out", str(tmp_path / "out"), *options]) == ExitCode.BAD_INPUT
    assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_table_of_features(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "t.csv", ("pid", "age", "birth_date", "ill"), [("a", 61, "1961-04-12", 1), ("b", 41, "1981-01-01", 0)])
    command = ["cohort", "build", "--images", str(table), "--id-column", "pid", "--label-column", "ill", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--column", "age", "--column", "birth_date"]) == ExitCode.BAD_INPUT
    assert '"birth_date": 2 of its cells look like dates, and dates never enter a cohort' in capsys.readouterr().err
    assert cli.main([*command, "--column", "age"]) == ExitCode.DONE
    assert "2 rows of 2 patients" in capsys.readouterr().out


def test_without_a_home_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARDROUND_SITE", str(tmp_path))
    np.savez(tmp_path / "d.npz", images=image(0)[None], patient_id=["a"])
    assert cli.main(["cohort", "build", "--images", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    assert "--home DIR" in capsys.readouterr().err
