# SPDX-License-Identifier: Apache-2.0
from datetime import time
from pathlib import Path

import pytest

from client.site_config import Limits, SiteConfig, template
from common.errors import InputError
from common.study import MODEL_NAMES

WHOLE = """\
name: north
coordinator: https://coordinator.example:8443
cohorts:
  chest:
    data: images/chest.npz
    nominal_patients: 500
  lung: {data: /data/lung, nominal_patients: 60}
device: cuda:1
threads: 4
limits: {epsilon_per_account: 6, delta: 1e-6, min_patients: 50, rounds_a_day: 24, schedule: 18:00-06:00, gpu_memory_fraction: 0.5}
allow: {tasks: [binary], models: [cnn, resnet18], unprotected_studies: [], train_after_unprotected: ""}
metrics_may_leave: []
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        SiteConfig.parse(text, "site.yaml")
    return list(error.value.problems)


def test_everything_that_can_be_set_is_read(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(WHOLE)
    config = SiteConfig.read(path)
    assert config.cohorts["chest"].path == tmp_path / "images" / "chest.npz"  # relative to the file's folder
    assert config.cohorts["lung"].path == Path("/data/lung")
    assert config.limits.window == (time(18), time(6))
    assert (config.limits.epsilon_per_account, config.allow.models, config.metrics_may_leave) == (6, ("cnn", "resnet18"), ())


def test_the_template_is_valid_and_writes_out_the_defaults() -> None:
    config = SiteConfig.parse(template("north", "https://c.example:8443"), "site.yaml")
    assert config == SiteConfig(name="north", coordinator="https://c.example:8443")
    assert config.allow.models == MODEL_NAMES


def test_the_template_names_every_key() -> None:
    text = template("north", "https://c.example:8443")
    for part in (SiteConfig, *(SiteConfig.model_fields[name].annotation for name in ("limits", "allow"))):
        for key in part.model_fields:  # type: ignore[union-attr]
            assert f"{key}:" in text


def test_the_template_s_examples_are_valid_once_their_marks_are_removed() -> None:
    text = template("north", "https://c.example:8443").replace("cohorts: {}\n", "")
    for line in ("cohorts:", "  chest:", "    data: ", "    nominal_patients: "):
        text = text.replace(f"#{line}", line)
    text = text.replace("# schedule:", "schedule:").replace("# threads:", "threads:")
    config = SiteConfig.parse(text, "site.yaml")
    assert config.cohorts["chest"].nominal_patients == 500
    assert config.limits.schedule == "18:00-06:00"
    assert config.threads == 4


def test_every_problem_is_said_at_once_with_line_key_and_remedy() -> None:
    found = problems(
        "name: a b\ncoordinatr: https://x\ncohorts:\n  chest: {data: 3, nominal_patient: 5}\n"
        "limits: {delta: 0.1, schedule: 25:00-3:00, rounds_a_day: none}\nallow: {models: [cnnn], unprotected_studies: [abc]}\n"
        "device: gpu\nmetrics_may_leave: [auroc]\n"
    )
    expected = [
        "site.yaml:1: coordinator: is missing; add it",
        'site.yaml:1: name: must be the name in the invitation (letters, digits, dots and hyphens); is "a b"',
        "site.yaml:2: coordinatr: unknown key; did you mean coordinator?",
        "site.yaml:4: cohorts.chest.data: must be text",
        "site.yaml:4: cohorts.chest.nominal_patient: unknown key; did you mean nominal_patients?",
        "site.yaml:4: cohorts.chest.nominal_patients: is missing; add it",
        "site.yaml:5: limits.delta: must be a number, above 0 and at most 1e-05; is 0.1",
        'site.yaml:5: limits.rounds_a_day: must be a whole number, at least 1, is "none"',
        "site.yaml:5: limits.schedule: must be a window of local time such as 18:00-06:00",
        "site.yaml:6: allow.models[0]: must be a list of `cnn` or `scattering` or ",
        'site.yaml:6: allow.unprotected_studies: "abc" is no study id; write the 64 digits',
        'site.yaml:7: device: must be auto, cpu, mps, cuda or cuda:N; is "gpu"',
        'site.yaml:8: metrics_may_leave[0]: must be a list of `histogram`, is "auroc"',
    ]
    assert len(found) == len(expected)
    for said, begin in zip(found, expected, strict=True):
        assert said.startswith(begin)


def test_delta_is_small_for_the_largest_cohort() -> None:
    cohort = "name: a\ncoordinator: https://x\nlimits: {{delta: 1e-6}}\ncohorts: {{chest: {{data: x, nominal_patients: {}}}}}\n"
    assert SiteConfig.parse(cohort.format(100_000), "site.yaml").limits.delta == 1e-6  # exactly 1 / (10 N0)
    (found,) = problems(cohort.format(100_001))
    assert "limits.delta: is 1e-06; for 100,001 nominal patients it is at most 9.9999e-07 (1 / (10 x nominal_patients)); lower it" in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ncoordinator: http://x\n", "must be the URL in the invitation, https://host:port without a path"),
        ("name: a\ncoordinator: https://x/path\n", "without a path"),
        ("name: a\ncoordinator: https://x\ncohorts: {Big Lung: {data: x, nominal_patients: 5}}\n", '"Big Lung" is no name of a cohort'),
        ("name: a\ncoordinator: https://x\ncohorts: [1]\n", "cohorts: must be a block of keys for each name; is a list of 1"),
        ("name: a\ncoordinator: https://x\nlimits: {epsilon_per_account: .inf}\n", "must be a finite number"),
        ("name: a\ncoordinator: https://x\nlimits: {epsilon_per_account: }\n", "limits.epsilon_per_account: is empty"),
        ("name: a\ncoordinator: https://x\nlimits: {schedule: 08:00-08:00}\n", "must be a window of local time"),
        ("name: a\nname: b\ncoordinator: https://x\n", "stands twice"),
        ("- a\n", "is no site.yaml"),
        ("", "is no site.yaml"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    assert any(said in problem for problem in problems(text)), problems(text)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"site\.yaml: cannot be read \(No such file"):
        SiteConfig.read(tmp_path / "site.yaml")
    (tmp_path / "site.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        SiteConfig.read(tmp_path / "site.yaml")
    (tmp_path / "site.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(InputError, match="larger than 1,000,000 bytes"):
        SiteConfig.read(tmp_path / "site.yaml")


@pytest.mark.parametrize(
    ("schedule", "open_at", "closed_at"),
    [
        (None, [time(0), time(12)], []),
        ("18:00-06:00", [time(18), time(23, 59), time(0), time(5, 59, 59)], [time(17, 59, 59), time(6), time(12)]),
        ("09:30-17:00", [time(9, 30), time(16, 59)], [time(9, 29), time(17), time(0)]),
    ],
)
def test_the_schedule_is_a_window_of_the_day(schedule: str | None, open_at: list[time], closed_at: list[time]) -> None:
    limits = Limits(schedule=schedule)
    assert all(limits.is_open(moment) for moment in open_at)
    assert not any(limits.is_open(moment) for moment in closed_at)
