# SPDX-License-Identifier: Apache-2.0
"""The check of a cohort: a healthy one passes, and each thing that can be wrong is planted and found, alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.cohorts.check import CHECKS, INTACT, Order, check_cohort
from client.cohorts.findings import Severity
from client.cohorts.verdict import VerdictFile, read_verdict
from client.study_folder import SPLIT_PURPOSE
from common.crypto.secrets import Secret
from common.data.splits import split_of_patient
from common.errors import DataError
from tests.client.cohorts.checked import PSEUDONYMS, SECRET, checked, found, healthy, scans, study

IDS = [f"P{number:03d}" for number in range(60)]
PARTS = ["train", "train", "test"] * 20
Plant = Callable[[Path], Path]


def test_a_healthy_cohort_passes_every_check(tmp_path: Path) -> None:
    verdict = checked(healthy(tmp_path / "chest"), study())
    assert verdict.findings == ()
    assert [check.not_made for check in verdict.checks] == [None] * (len(CHECKS) + 1)
    assert (verdict.passed, verdict.patients, verdict.images) == (True, 60, 60)
    assert {group.part for group in verdict.groups} == {"train", "test"}
    assert sum(count for group in verdict.groups for count in group.labels["finding"].values()) == 60


def test_the_split_is_that_of_training(tmp_path: Path) -> None:
    verdict = checked(healthy(tmp_path / "chest"), study(**{"data.test_fraction": 0.4}))
    key = SECRET.derive(SPLIT_PURPOSE)
    held_out = sum(split_of_patient(key, PSEUDONYMS.of(one), 0.4, 0.0).name == "TEST" for one in IDS)
    assert {group.part: group.patients for group in verdict.groups} == {"train": 60 - held_out, "test": held_out}


def test_what_cannot_be_checked_says_why_and_does_not_fail(tmp_path: Path) -> None:
    verdict = checked(healthy(tmp_path / "chest"), secret=None)
    said = {check.name: check.not_made for check in verdict.checks if check.not_made}
    assert set(said) == {INTACT, "patients in two parts", "labels", "one class only", "enough patients"}
    assert "--home" in str(said[INTACT])
    assert "--study" in str(said["labels"])
    assert verdict.passed
    assert [group.part for group in verdict.groups] == ["all"]


def two_patients_with_one_image(folder: Path) -> Path:
    images = scans(60)
    images[7] = images[3]
    return healthy(folder, images=images, split=["train"] * 60)


def copies_across_the_split(folder: Path) -> Path:
    images = scans(60)
    images[5] = images[3]  # 3 trains, 5 is held out
    return healthy(folder, images=images, split=PARTS)


def near_copies_across_the_split(folder: Path) -> Path:
    images = scans(60)
    images[5] = (0.9 * images[3] + 8).astype(np.uint8)
    return healthy(folder, images=images, split=PARTS)


def near_copies(folder: Path) -> Path:
    images = scans(60)
    images[4] = (0.9 * images[3] + 8).astype(np.uint8)
    return healthy(folder, images=images, split=["train"] * 60)


def twice_at_one_patient(folder: Path) -> Path:
    images = scans(60)
    images[1] = images[0]
    return healthy(folder, images=images, patients=["P000", "P000", *IDS[2:]], labels=["normal", "normal", *["normal", "pneumonia"] * 29])


def copies_with_two_labels(folder: Path) -> Path:
    images = scans(60)
    images[1] = images[0]
    return healthy(folder, images=images, patients=["P000", "P000", *IDS[2:]])


def a_patient_in_two_parts(folder: Path) -> Path:
    return healthy(folder, patients=["P001", *IDS[1:]], split=["test", *["train"] * 59])


def constant_images(folder: Path) -> Path:
    images = scans(60)
    images[[8, 11]] = 77
    return healthy(folder, images=images)


def constant_before_padding(folder: Path) -> Path:
    return healthy(folder, records={8: {"constant": True}})


def negatives(folder: Path) -> Path:
    images = scans(60)
    images[[2, 30]] = 255 - images[[2, 30]]
    return healthy(folder, images=images, records={2: {"inverted": True}})


@pytest.mark.parametrize(
    ("plant", "check", "severity", "count", "examples", "says"),
    [
        (two_patients_with_one_image, "exact duplicates", Severity.WARNING, 2, [(3, 7)], "for different patients"),
        (copies_across_the_split, "exact duplicates", Severity.ERROR, 2, [(3, 5)], "in two parts of the split"),
        (near_copies_across_the_split, "near duplicates", Severity.WARNING, 1, [(3, 5)], "in two parts of the split"),
        (near_copies, "near duplicates", Severity.WARNING, 1, [(3, 4)], "of different patients"),
        (twice_at_one_patient, "exact duplicates", Severity.WARNING, 1, [(0, 1)], "of the same patient"),
        (copies_with_two_labels, "exact duplicates", Severity.ERROR, 2, [(0, 1)], "another finding"),
        (a_patient_in_two_parts, "patients in two parts", Severity.ERROR, 1, [0, 1], "in two parts of the split"),
        (constant_images, "constant images", Severity.ERROR, 2, [8, 11], "one value only"),
        (constant_before_padding, "constant images", Severity.ERROR, 1, [8], "one value only"),
        (negatives, "inverted images", Severity.WARNING, 2, [30, 2], "1 of them were turned around"),
        (lambda folder: healthy(folder, records={4: {"height": 200}}), "extreme sizes", Severity.WARNING, 1, [4], "as long as wide"),
        (
            lambda folder: healthy(folder, records={4: {"height": 700, "width": 600}}),
            "extreme sizes",
            Severity.WARNING,
            1,
            [4],
            "over 4 times larger",
        ),
        (
            lambda folder: healthy(folder, refused=["its codec JPEG-LS is missing; install it", "is empty; export it again"] * 2),
            "unreadable files",
            Severity.WARNING,
            4,
            [],
            "2 x its codec JPEG-LS is missing; 2 x is empty",
        ),
        (
            lambda folder: healthy(
                folder, records={1: {"identity_tags": ("PatientName", "StudyDate")}, 6: {"identity_tags": ("StudyDate",)}}
            ),
            "identity in headers",
            Severity.WARNING,
            2,
            [1, 6],
            "StudyDate 2, PatientName 1",
        ),
        (lambda folder: healthy(folder, records={1: {"burned_in": "yes"}}), "burned-in text", Severity.ERROR, 1, [1], "burned into"),
        (
            lambda folder: healthy(folder, records={9: {"source": "Jane_Doe.png", "name_findings": ("person name",)}}),
            "identity in file names",
            Severity.WARNING,
            1,
            [9],
            "person name 1",
        ),
        (
            lambda folder: healthy(folder, columns={"seen": ["1961-04-12", *["3"] * 59]}),
            "identity in cells",
            Severity.ERROR,
            60,
            [],
            'column "seen": 1 of its cells look like dates',
        ),
        (
            lambda folder: healthy(folder, columns={"maker": ["MÃ¼ller", "Müller", "Groß“"] * 20}),
            "encoding of tables",
            Severity.WARNING,
            20,
            [0, 3, 6, 9, 12, 15, 18, 21],
            "wrong encoding",
        ),
        (
            lambda folder: healthy(folder, columns={"\ufeffsex": ["f"] * 60}),
            "encoding of tables",
            Severity.WARNING,
            1,
            [0],
            "byte order mark",
        ),
        (
            lambda folder: healthy(folder, columns={"a": ["\ufffd", *["f"] * 59]}),
            "encoding of tables",
            Severity.WARNING,
            1,
            [0],
            "not be read",
        ),
        (
            lambda folder: healthy(folder, columns={"dose": ["1,5", "2.5"] * 30}),
            "decimal commas",
            Severity.ERROR,
            30,
            None,
            "decimal comma",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_planted_is_found_and_nothing_else(
    plant: Plant, check: str, severity: Severity, count: int, examples: list[Any] | None, says: str, tmp_path: Path
) -> None:
    verdict = checked(plant(tmp_path / "chest"))
    first = found(verdict, check)[0]
    assert (first.severity, first.count) == (severity, count)
    assert examples is None or list(first.pairs or first.images) == examples
    assert says in first.text
    assert first.remedy
    assert verdict.passed is (severity is Severity.WARNING)
    assert {one.name for one in verdict.checks if one.findings} == {check}


def test_labels_are_held_against_the_study(tmp_path: Path) -> None:
    labels = ["normal", "Pneumonia", "", "covid", *["pneumonia", "normal"] * 28]
    folder = healthy(tmp_path / "chest", labels=labels)
    empty, outside = found(checked(folder, study()), "labels")
    assert (empty.severity, empty.count, empty.images) == (Severity.ERROR, 1, (2,))
    assert (outside.severity, outside.count, outside.images) == (Severity.ERROR, 2, (1, 3))
    assert '"Pneumonia", "covid"' in outside.text
    dropped = study(**{"data.other_labels": "drop"})
    assert [one.severity for one in found(checked(folder, dropped), "labels")] == [Severity.ERROR, Severity.WARNING]
    (check,) = [one for one in checked(folder, study(**{"data.label_column": "grade"})).checks if one.name == "labels"]
    assert "no label column grade" in str(check.not_made)


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest", labels=["0", "1", "2"] * 20)
    (outside,) = found(checked(folder, study()), "labels")
    assert (outside.count, outside.text[-3:]) == (20, '"2"')


def test_a_part_with_one_class_and_a_cohort_that_is_too_small(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest", labels=["normal"] * 40 + ["pneumonia"] * 20, split=["train"] * 40 + ["test"] * 20)
    verdict = checked(folder, study(**{"data.min_patients": 41}))
    train, test = found(verdict, "one class only")
    assert (train.text, test.text) == (
        "one class only among 40 training rows (normal)",
        "one class only among 20 held-out rows (pneumonia)",
    )
    (few,) = found(verdict, "enough patients")
    assert (few.severity, few.text) == (Severity.ERROR, "40 training patients, the study asks for 41")


def test_images_that_are_smaller_than_the_study_wants_are_said(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest")
    assert found(checked(folder, study(**{"data.image_size": 64})), "extreme sizes") == ()
    (small,) = found(checked(folder, study(**{"data.image_size": 96})), "extreme sizes")
    assert small.count == 60


def test_images_of_different_things_are_not_called_negatives(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 64, 64), dtype=np.uint8)
    (check,) = [one for one in checked(healthy(tmp_path / "chest", images=images)).checks if one.name == "inverted images"]
    assert "too different" in str(check.not_made)


def test_without_the_records_of_the_files_the_rest_is_checked(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest")
    (folder / "ingest" / "files.jsonl").unlink()
    verdict = checked(folder)
    not_made = {check.name for check in verdict.checks if check.not_made}
    assert {"unreadable files", "extreme sizes", "identity in headers", "burned-in text", "identity in file names"} < not_made
    assert "constant images" not in not_made


def edited_manifest(folder: Path) -> None:
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace("normal", "pneumonia", 1))


def edited_facts(folder: Path) -> None:
    text = (folder / "cohort.json").read_text()
    (folder / "cohort.json").write_text(text.replace('"refused":0', '"refused":1'))


def edited_image(folder: Path) -> None:
    content = bytearray((folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (folder / "images.npy").write_bytes(bytes(content))


def cut_images(folder: Path) -> None:
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:-1])


@pytest.mark.parametrize("edit", [edited_manifest, edited_facts, edited_image, cut_images])
def test_a_folder_that_was_changed_since_it_was_built_fails(edit: Callable[[Path], None], tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest")
    checked(folder)
    edit(folder)
    verdict = checked(folder)
    assert [check.name for check in verdict.checks] == [INTACT]
    assert verdict.errors == 1
    assert "build the cohort again" in verdict.findings[0].remedy


def test_a_cohort_of_another_site_fails(tmp_path: Path) -> None:
    verdict = checked(healthy(tmp_path / "chest"), secret=Secret(b"o" * 32))
    assert "another site" in verdict.findings[0].text


def test_quick_does_not_read_the_images_again_until_they_change(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest")
    order, told = Order(folder, None, SECRET, quick=True), list[str]()

    def quick() -> bool:
        told.clear()
        return check_cohort(order, lambda what, done, total: told.append(what)).passed

    assert quick()
    assert "reading" in told
    assert quick()
    assert "reading" not in told
    edited_image(folder)
    assert not quick()


def test_progress_says_what_and_how_much(tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}
    check_cohort(Order(healthy(tmp_path / "chest"), None, SECRET), lambda what, done, total: told.update({what: (done, total)}))
    assert told == {"reading": (1, 1), "images": (60, 60), "checks": (len(CHECKS), len(CHECKS))}


def test_a_folder_that_is_no_cohort(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no cohort"):
        checked(tmp_path)


def test_the_verdict_is_a_file_for_machines_without_names(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "chest", records={9: {"source": "Jane_Doe.png", "name_findings": ("person name",), "burned_in": "yes"}})
    verdict = checked(folder, study())
    path = verdict.write(folder)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_verdict(folder) == verdict
    stored = VerdictFile.model_validate_json(path.read_text())
    assert (stored.passed, stored.errors, stored.warnings) == (False, 1, 1)
    assert not any(word in path.read_text() for word in ("Jane", "wrp1-", str(tmp_path)))
    assert read_verdict(tmp_path) is None
    path.write_text("{")
    with pytest.raises(DataError, match="delete it"):
        read_verdict(folder)
