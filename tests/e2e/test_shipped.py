# SPDX-License-Identifier: Apache-2.0
"""The shipped first study, cut short, by name and from wherever the package lies."""

from pathlib import Path

import pytest

from common.study_file import load_study
from simulations.options import find_study
from tests.support import commands
from tests.support.studies import write_study


@pytest.mark.slow
def test_a_shipped_study_runs_to_its_report(tmp_path: Path) -> None:
    quickstart = load_study(find_study("quickstart"))
    short = quickstart.with_changes({"federation.rounds": 2, "data.phantom.patients": 160})
    answer = commands.run_json("run", write_study(short, tmp_path), "--workers", "2", "--out", tmp_path / "run")
    report = Path(answer["report"]).read_text(encoding="utf-8")
    assert answer["study_id"] == short.id
    assert "Synthetic data" in report
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://creativecommons.org", "").replace("http://purl.org", "")
