# SPDX-License-Identifier: Apache-2.0
"""Policy outranks study: what site.yaml does not allow cannot be approved, not even by the hospital's own hand."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.crypto.secrets import Secret
from common.errors import ExitCode
from common.study import Study
from server.home import ServerHome
from server.offers import make_offer
from tests.support.federation import COHORT, HONEST, Federation

SITE = HONEST[0]


def offered(federation: Federation, study: Study) -> str:
    """Offer a study to one site and wait until its daemon has it; the study's id."""
    home = ServerHome(federation.coordinator)
    make_offer(home, study, [SITE], None, Secret.read(home.study_key).signer)
    federation.wait_for_offer(federation.hospitals[SITE], study.id)
    return study.id


def refusal(federation: Federation, study_id: str) -> str:
    """What `approve` says when it refuses; nothing is recorded at either end."""
    hospital = federation.hospitals[SITE]
    before = (hospital.home / "approvals.jsonl").read_bytes() if (hospital.home / "approvals.jsonl").exists() else b""
    done = federation.at(hospital, "approve", study_id, "--cohort", COHORT, "--by", "a test", "--yes", expect=ExitCode.REFUSED)
    assert (hospital.home / "approvals.jsonl").read_bytes() == before if before else not (hospital.home / "approvals.jsonl").exists()
    assert not federation.rows("SELECT site FROM approval WHERE study_id = ?", study_id)
    return done.err


@contextmanager
def settings(federation: Federation, part: str, **values: object) -> Iterator[None]:
    """Other settings in site.yaml for a while."""
    path = federation.hospitals[SITE].home / "site.yaml"
    before = path.read_text(encoding="utf-8")
    federation.change_settings(SITE, part, **values)
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def test_a_study_weaker_than_policy_cannot_be_approved(federation: Federation) -> None:
    naked = offered(federation, federation.study("naked", "none", **{"federation.min_sites": 1}))
    assert "POLICY_REFUSED" in refusal(federation, naked)
    dear = offered(federation, federation.study("dear", **{"privacy.epsilon": 9.0, "federation.min_sites": 1}))
    with settings(federation, "limits", epsilon_per_account=1.0):
        assert any(code in refusal(federation, dear) for code in ("POLICY_REFUSED", "BUDGET_EXHAUSTED"))


def test_a_metric_that_may_not_leave_is_no_part_of_an_approved_study(federation: Federation) -> None:
    measured = federation.study("measured", **{"federation.min_sites": 1, "evaluation.private": {"epsilon": 1.0}})
    study_id = offered(federation, measured)
    path = federation.hospitals[SITE].home / "site.yaml"
    before = path.read_text(encoding="utf-8")
    path.write_text(
        before.replace("metrics_may_leave:\n- histogram", "metrics_may_leave: []").replace("[histogram]", "[]"), encoding="utf-8"
    )
    try:
        assert path.read_text(encoding="utf-8") != before
        assert "POLICY_REFUSED" in refusal(federation, study_id)
    finally:
        path.write_text(before, encoding="utf-8")
