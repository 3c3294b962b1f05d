# SPDX-License-Identifier: Apache-2.0
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import StudyError
from common.study_file import MAX_STUDY_BYTES, load_study, parse_study
from simulations.options import SHIPPED_STUDIES

START = "name: a\nprivacy: none\n"


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        parse_study(text, "s.yaml")
    return caught.value.problems


@pytest.mark.parametrize("path", sorted(SHIPPED_STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_all_shipped_studies_are_there() -> None:
    assert {path.stem for path in SHIPPED_STUDIES.glob("*.yaml")} == {
        "quickstart",
        "chest-xray",
        "chest-xray-bacterial",
        "chest-xray-private",
        "chest-xray-private-strict",
        "chest-xray-scattering",
        "chest-xray-scattering-strict",
        "heart-disease",
        "heart-disease-strict",
        "pneumoniamnist",
    }


def test_numbers_and_words_are_read_as_people_mean_them() -> None:
    study = parse_study(
        "name: a\nprivacy: {epsilon: 3, delta: 1e-5}\ntraining: {learning_rate: 3e-3}\ndata: {labels: [no, yes]}\n"
        "federation: {weights: {1: .5, on: 2}}",
        "s",
    )
    assert study.privacy.delta == 1e-5  # type: ignore[union-attr]
    assert study.training.learning_rate == 0.003
    assert study.data.labels == ("no", "yes")
    assert study.federation.weights == {"1": 0.5, "on": 2.0}


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        ("name: a\nprivacy:\n  epsilom: 3\n", "s.yaml:3: privacy.epsilom: ", "did you mean epsilon?"),
        ("name: a\nprivacy:\n  delta: 1e-3\n", "s.yaml:3: privacy.delta: ", "above 0 and at most 1e-05"),
        ("name: a\nprivacy: {unit: pacient}\n", "s.yaml:2: privacy.unit: ", "did you mean patient?"),
        ("name: a\nprivacy: off\n", "s.yaml:2: privacy: ", "`none` or a block of keys"),
        ("name: a\n", "s.yaml:1: privacy: ", "is missing"),
        (START + "epsilon: 3\n", "s.yaml:3: epsilon: ", "belongs at privacy.epsilon"),
        (START + "training:\n  optimiser: adm\n", "s.yaml:4: training.optimiser: ", "did you mean adam?"),
        (START + "training:\n  bogus: 1\n", "s.yaml:4: training.bogus: ", "the keys here are local_steps, sampling_rate"),
        (START + "seed: '3'\n", "s.yaml:3: seed: ", "without quotes"),
        (START + "federation: {rounds: true}\n", "s.yaml:3: federation.rounds: ", "must be a whole number"),
        (START + "federation: {rounds: 2.5}\n", "s.yaml:3: federation.rounds: ", "must be a whole number"),
        (START + "federation:\n  weights: {north: 0}\n", "s.yaml:4: federation.weights.north: ", "above 0"),
        (START + "federation:\n  weights: eqal\n", "s.yaml:4: federation.weights: ", "did you mean equal?"),
        (START + "training: {augmentation: {flip: yes}}\n", "s.yaml:3: training.augmentation.flip: ", "true or false"),
        (START + "data:\n  labels:\n  - a\n  - 3\n", "s.yaml:6: data.labels[1]: ", "this entry is 3"),
        (START + "data:\n  labels: [a, b, c]\n", "s.yaml:4: data.labels: ", "use task: multiclass"),
        (START + "data:\n", "s.yaml:3: data: ", "is empty"),
        (START + "seed: 1\nseed: 2\n", "s.yaml:4: seed: ", "stands twice, first in line 3"),
        (START + "seed: .nan\n", "s.yaml:3: seed: ", "must be a whole number"),
        (START + "training: {learning_rate: 1e999}\n", "s.yaml:3: training.learning_rate: ", "must be a finite number, is inf"),
        ("name: a\nprivacy: {epsilon: .nan}\n", "s.yaml:2: privacy.epsilon: ", 'must be a finite number, is ".nan"'),
        ("name: My Study\nprivacy: none\n", "s.yaml:1: name: ", "small letters, digits and hyphens, such as my-study"),
        (START + "model: {pretrained: {path: a, sha256: abc}}\n", "s.yaml:3: model.pretrained.sha256: ", "64 hexadecimal digits"),
        (START + f"seed: {'9' * 5000}\n", "s.yaml:3: seed: ", "fewer digits"),
        (START + "description: !!python/object:os.system x\n", "s.yaml:3: description: ", "tag"),
        (START + "description: &a x\ndata: *a\n", "s.yaml:4: ", "alias"),
        (START + "? [a]\n: b\n", "s.yaml:3: ", "a key must be a word"),
        (START + "\tseed: 1\n", "s.yaml:3: ", "tab"),
        (START + "seed: 1: 2\n", "s.yaml:3: ", "not valid YAML"),
        (START + "description: \x07\n", "s.yaml:3: ", "0x7"),
        (START + "---\nname: b\n", "s.yaml:3: ", "not valid YAML"),
        ("", "s.yaml:1: ", "not a study"),
        ("- a\n", "s.yaml:1: ", "not a study"),
        ("42", "s.yaml:1: ", "not a study"),
    ],
)
def test_a_problem_has_its_line_its_key_and_a_remedy(text: str, start: str, words: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(start)
    assert words in problem


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("name: a\nprivacy:\n", "privacy: is empty; write `none` or a block of keys (Protection of the patients"),
        ("name:\nprivacy: none\n", "name: is empty; write text (Short name: small letters"),
        ("name: a\nprivacy:\n  epsilon:\n", "privacy.epsilon: is empty; write a number, above 0 and at most 100, such as 3.0"),
        (
            "name: a\nprivacy:\n  unit: patient\n  delta:\n",
            "privacy.delta: is empty; write a number, above 0 and at most 1e-05, such as 1e-06",
        ),
        (START + "seed:\n", "or remove the line, which means 0"),
        (
            START + "data:\n  source:\n",
            "data.source: is empty; write `phantom` or `npz` or `medmnist` or `folder` or `cohort` or `csv`, or remove",
        ),
    ],
)
def test_an_empty_value_says_what_to_write(text: str, remedy: str) -> None:
    (problem,) = problems(text)
    assert remedy in problem


def test_protection_is_never_left_to_a_default_by_an_empty_line() -> None:
    fields = ("epsilon", "delta", "clipping_norm", "views_per_patient", "unit", "mode")
    for field in fields:
        (problem,) = problems(f"name: a\nprivacy:\n  {field}:\n")
        assert problem.startswith(f"s.yaml:3: privacy.{field}: is empty; write ") and "remove" not in problem


def test_all_problems_come_at_once_in_the_order_of_lines() -> None:
    found = problems("name: A B\nprivacy: {epsilon: -1}\ntraning: {}\nseed: x\nseed: 1\ndata: {channels: 2, image_size: 8}\n")
    lines = [int(re.match(r"s\.yaml:(\d+): ", problem)[1]) for problem in found]  # type: ignore[index]
    assert lines == [1, 2, 3, 4, 5, 6, 6]


def test_union_members_are_never_shown() -> None:
    text = "\n".join(problems("name: a\nprivacy: {epsilon: -1, foo: 1}\nfederation: {weights: {a: -1}}\n"))
    assert "privacy.epsilon" in text
    assert "patient.epsilon" not in text
    assert "dict[" not in text


def test_nesting_and_aliases_cannot_blow_up() -> None:
    bomb = "\n".join(["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)])
    started = time.monotonic()
    assert "alias" in problems(bomb)[0]
    assert "20 levels" in problems("a: " + "[" * 900_000)[0]
    assert time.monotonic() - started < 5


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="nameprivcy: {}[]-?!&*'\"\n\t#|>0.e1,\\%@`~", max_size=60) | st.text(max_size=60))
def test_no_text_does_anything_else_than_be_refused(text: str) -> None:
    for candidate in (text, START + text):
        try:
            parse_study(candidate, "s.yaml")
        except StudyError as error:
            assert all(problem.startswith("s.yaml:") for problem in error.problems)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    large, latin, folder = tmp_path / "large.yaml", tmp_path / "latin.yaml", tmp_path / "folder"
    large.write_bytes(b"#" * (MAX_STUDY_BYTES + 1))
    latin.write_bytes(START.encode() + b"description: \xe9\n")
    folder.mkdir()
    for path, words in ((tmp_path / "none.yaml", "no such file"), (large, "larger than"), (folder, "cannot be read")):
        with pytest.raises(StudyError, match=words):
            load_study(path)
    with pytest.raises(StudyError, match=r"latin\.yaml:3: is not UTF-8"):
        load_study(latin)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + START.encode())
    assert load_study(path).name == "a"
