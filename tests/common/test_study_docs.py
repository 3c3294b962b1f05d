# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

import common
from common.study_docs import study_markdown, study_schema, write_docs
from common.study_fields import study_fields, study_parts
from simulations.options import SHIPPED_STUDIES

SCHEMA = Path(common.__file__).parent / "study.schema.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "study.md"
HINT = "is not current; run `make docs`"


def test_the_page_and_the_schema_are_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == study_markdown(), f"{PAGE.name} {HINT}"
    assert SCHEMA.read_text(encoding="utf-8") == study_schema(), f"{SCHEMA.name} {HINT}"


def test_both_are_written_where_the_test_looks(tmp_path: Path) -> None:
    assert [path.relative_to(tmp_path).as_posix() for path in write_docs(tmp_path)] == ["docs/study.md", "common/study.schema.json"]


def test_every_key_is_described_once() -> None:
    fields = study_fields()
    assert len(fields) == sum(len(part.fields) for part in study_parts())
    assert [key for key, field in fields.items() if not field.description or not field.type_words] == []
    assert {"privacy.epsilon", "data.phantom.scanners", "model.pretrained.sha256", "training.augmentation.flip"} <= set(fields)


@pytest.mark.parametrize("path", sorted(SHIPPED_STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_accept_the_shipped_studies(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("1e-5", "1.0e-5").replace("3e-3", "3.0e-3")  # as a YAML 1.2 editor reads them
    jsonschema.validate(yaml.safe_load(text), json.loads(study_schema()))


@pytest.mark.parametrize("privacy", ["none", {"unit": "none"}, {"epsilon": 3}, {}])
def test_editors_accept_every_spelling_of_privacy(privacy: object) -> None:
    jsonschema.validate({"name": "a", "privacy": privacy}, json.loads(study_schema()))


@pytest.mark.parametrize("change", [{"privacy": {"epsilom": 3}}, {"bogus": 1}, {"privacy": "off"}, {"seed": -1}])
def test_editors_refuse_what_we_refuse(change: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "a", "privacy": "none"} | change, json.loads(study_schema()))
