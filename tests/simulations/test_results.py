# SPDX-License-Identifier: Apache-2.0
"""results.json: what is written is what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from simulations.results import RunResult
from tests.simulations.sample_run import sample_run


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    result = sample_run()
    result.write(tmp_path / "results.json")
    assert RunResult.read(tmp_path / "results.json") == result


def test_none_stays_none(tmp_path: Path) -> None:
    result = sample_run(private=False).model_copy(update={"pooled": None, "trivial": {"8x8 pixels + logistic": None}})
    result.write(tmp_path / "results.json")
    again = RunResult.read(tmp_path / "results.json")
    assert again.pooled is None and again.privacy is None and again.trivial == {"8x8 pixels + logistic": None}


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    sample_run().write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "auroc": 1.0}))
    with pytest.raises(ValidationError, match="auroc"):
        RunResult.read(path)


def test_a_file_without_the_optional_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    sample_run().write(path)
    content = json.loads(path.read_text())
    del content["data_digest"], content["notes"]
    path.write_text(json.dumps(content))
    assert RunResult.read(path).data_digest is None
