# SPDX-License-Identifier: Apache-2.0
"""What a survey says of the sites, on its page and to machines; and the constants that it gives a tabular study."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from common.errors import InputError, StorageError
from common.study import Study
from common.survey_plan import survey_study
from server.surveys.constants import constants_yaml
from server.surveys.findings import Findings
from server.surveys.page import survey_page, write_survey_page
from server.surveys.record import SURVEY_FILE, SurveyRecord
from tests.server.surveys.noisy import record_of, site, surveyed

SITES = {"north": site(150, 100), "south": site(200, 0), "tiny": site(6, 6)}


def test_who_differs_who_lacks_a_class_and_who_is_small() -> None:
    findings = Findings(record_of(surveyed(), SITES, noise=False))
    assert [(lack.site, lack.label) for lack in findings.lacks()] == [("south", "opacity")]
    assert {name: findings.reaches_minimum(name) for name in SITES} == {"north": "yes", "south": "yes", "tiny": "no"}
    classes = next(table for table in findings.plan.tables if table.name == "classes")
    pair = findings.pairs(classes)[0]
    assert (pair.one, pair.other) == ("north", "south")
    assert pair.distance is not None and pair.distance.is_sure and pair.distance.value == pytest.approx(0.4, abs=0.05)


def test_near_the_minimum_nothing_is_said() -> None:
    study = surveyed(epsilon=0.5)
    assert Findings(record_of(study, {"a": site(11, 10)}, noise=False)).reaches_minimum("a") == "cannot be told"


def test_machines_get_what_the_page_shows() -> None:
    facts = json.loads(json.dumps(Findings(record_of(surveyed(), SITES, noise=False)).as_json()))
    assert facts["sites"]["north"]["tables"]["classes"] == {"normal": 150.0, "opacity": 100.0}
    assert facts["distances"]["classes"][0] | {"by_noise": 0} == {
        "sites": ["north", "south"],
        "distance": 0.4,
        "by_noise": 0,
        "differs": True,
    }
    assert facts["classes_not_seen"][0]["site"] == "south"
    assert facts["min_patients"] == 20


class Checker(HTMLParser):
    """Every tag is closed, and nothing is fetched from anywhere."""

    VOID = ("meta", "br", "img", "link", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked_for: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.asked_for += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_names_what_matters(tmp_path: Path) -> None:
    record = record_of(surveyed(), {**SITES, "<b>odd": site(90, 90)}, noise=False).with_refusal("away", "PAUSED")
    text = write_survey_page(tmp_path, record).read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.asked_for == [] and "url(" not in text and "@import" not in text
    assert "<b>odd" not in text
    for expected in ("south", "may have no patient with label <strong>opacity", "no answer: PAUSED", "sites differ", "all together"):
        assert expected in text
    assert len(re.findall(r"<svg ", text)) >= 4


def test_a_page_of_one_site_or_of_none_compares_nobody() -> None:
    assert "nothing to compare" in survey_page(record_of(surveyed(), {"a": site(90, 90)}))
    assert "0</strong> of 1 sites" in survey_page(record_of(surveyed(), {}).with_refusal("a", "PAUSED"))


def test_the_record_comes_back_and_the_first_answer_of_a_site_counts(tmp_path: Path) -> None:
    record = record_of(surveyed(), {"a": site(90, 90)}).with_refusal("b", "PAUSED")
    record.write(tmp_path)
    assert SurveyRecord.read(tmp_path) == record
    other = record_of(surveyed(), {"a": site(1, 1)})
    assert record.with_refusal("a", "x").tables == record.tables and other.tables != record.tables
    (tmp_path / SURVEY_FILE).write_text("{")
    with pytest.raises(StorageError):
        SurveyRecord.read(tmp_path)
    with pytest.raises(InputError):
        SurveyRecord.read(tmp_path / "nowhere")


def tabular(**survey: object) -> Study:
    columns = {"age": {"centre": 0.0, "scale": 1.0, "limit": 4.0, "missing": "indicator"}, "sex": {"kind": "flag"}}
    data = {"source": "csv", "kind": "tabular", "columns": columns}
    asked = {"epsilon": 10.0, "features": {"age": {"low": 0, "high": 100, "bins": 10}}, **survey}
    return survey_study(Study.model_validate({"name": "t", "data": data, "model": {"name": "mlp"}, "privacy": "none", "survey": asked}))


def test_constants_are_mean_and_deviation_of_all_sites_together() -> None:
    study = tabular()
    ages = [0, 0, 0, 0, 0, 100, 100, 0, 0, 0, 50]
    images = {"images": [100.0, 0, 0, 0, 0]}
    record = record_of(study, {name: {**site(125, 125, [float(age) for age in ages]), **images} for name in ("a", "b")}, noise=False)
    text = constants_yaml(Findings(record))
    columns = yaml.safe_load(text)["data"]["columns"]
    assert columns["age"] == {"centre": 60.0, "scale": 5.0, "limit": 4.0, "missing": "indicator"}
    assert columns["sex"] == {"kind": "flag"}
    assert "a, b" in text.splitlines()[0]
    assert study.with_changes({"data.columns": columns}).data.columns["age"].centre == 60.0


def test_constants_that_were_not_measured_are_refused() -> None:
    with pytest.raises(InputError, match="no column of numbers"):
        constants_yaml(Findings(record_of(surveyed(), SITES)))
    images = {"images": [3.0, 0, 0, 0, 0]}
    with pytest.raises(InputError, match="drowns in the noise"):
        constants_yaml(Findings(record_of(tabular(epsilon=0.05), {"a": {**site(2, 1), **images}})))
