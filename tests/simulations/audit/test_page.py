# SPDX-License-Identifier: Apache-2.0
"""The page and the command: everything said, nothing loaded from outside, the exit code right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from common.errors import ExitCode
from simulations.audit.attack import Attacked
from simulations.audit.design import design_audit
from simulations.audit.inversion import Reconstruction
from simulations.audit.jobs import plan_of
from simulations.audit.membership import membership
from simulations.audit.page import write_audit
from simulations.audit.results import AuditResult, Run
from simulations.audit.verdict import Verdict, bound_of
from simulations.cli import main
from simulations.commands.audit import print_audit
from tests.simulations.audit.toy import study

SECTIONS = ("claim", "attacker", "bounds", "scores", "membership", "inversion", "meaning")


def sample(distance: float = 0.0) -> AuditResult:
    """A result in which scores of canaries that were in are higher by `distance` in the private run and by 20 in the control."""
    toy = study("cnn")
    plan = plan_of(toy)
    design = design_audit(plan)
    random = np.random.default_rng(0)
    runs = []
    for shift in (distance, 20.0):
        included = random.random(design.canaries) < 0.5
        attacked = Attacked(included, random.normal(size=design.canaries) + shift * included, random.random(60), random.random(120))
        picture = Reconstruction(random.integers(0, 256, (1, 16, 16), dtype=np.uint8), 12.0, 0.3)
        bound = bound_of(design, attacked.scores, included)
        runs.append(Run(attacked, bound, membership(attacked.member_losses, attacked.held_out_losses), picture))
    verdict = Verdict.FAILED if distance > 5 else Verdict.PASSED
    image = np.zeros((1, 16, 16), np.uint8)
    return AuditResult(toy, 1.0, plan, design, "site-<1>", True, runs[0], runs[1], image, verdict, 61.0, "wardround-sim audit <toy>")


def test_the_page_says_it_all_and_loads_nothing(tmp_path: Path) -> None:
    html = write_audit(sample(), tmp_path / "audit.html").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in html for name in SECTIONS)
    assert "Passed." in html
    assert "A lower bound near 0 proves nothing by itself; the control shows that the attack works" in html
    assert "site-&lt;1&gt;" in html
    assert "<toy>" not in html
    assert "<script" not in html
    assert "http" not in html.replace("data:image", "")
    assert len(html) < 1_000_000


def test_the_page_of_a_refuted_claim(tmp_path: Path) -> None:
    result = sample(20.0)
    html = write_audit(result, tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "FAILED: the claim is wrong" in html
    assert f"{result.private.bound.epsilon_999:.2f}" in html
    assert "INCONCLUSIVE" in write_audit(replace(result, verdict=Verdict.INCONCLUSIVE), tmp_path / "b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("distance", "code"), [(0.0, ExitCode.DONE), (20.0, ExitCode.AUDIT)])
def test_exit_code_and_files(
    distance: float, code: ExitCode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simulations.commands.audit.audit_study", lambda options, report: sample(distance))
    assert main(["audit", "quickstart", "--out", str(tmp_path / "out"), "--json"]) == code
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.html", "audit.json", "study.json"}
    printed = capsys.readouterr()
    assert '"verdict": "' + ("failed" if distance else "passed") + '"' in printed.out
    assert ("the claim is wrong" in printed.err) == bool(distance)


def test_a_claim_too_large_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "quickstart", "--out", str(tmp_path / "out")]) == ExitCode.BAD_INPUT
    assert "--epsilon 3" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_without_privacy_has_nothing_to_audit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "chest-xray"]) == ExitCode.BAD_INPUT
    assert "claims no privacy" in capsys.readouterr().err


def test_the_table_on_the_terminal(tmp_path: Path) -> None:
    console = Console(record=True, width=120, file=(tmp_path / "terminal").open("w"))
    print_audit({**sample().facts(), "report": "audit.html"}, console)
    console.file.close()
    text = console.export_text()
    assert "control, no noise" in text
    assert "60 of 60" in text
    assert "report: audit.html" in text


@pytest.mark.slow
def test_a_whole_audit_of_the_quickstart(tmp_path: Path) -> None:
    assert main(["audit", "quickstart", "--epsilon", "1", "--out", str(tmp_path / "out")]) == ExitCode.DONE
