# SPDX-License-Identifier: Apache-2.0
"""The measured bound on float errors: it sees what it must see, and a sum that it does not accept is never used."""

import math

import pytest
import torch
from torch import Tensor, nn

from common.privacy.bookkeeping import ghost, patient_sum
from common.privacy.bookkeeping.bounds import BLOCK_ERROR, CERTIFIED_ERROR, LEAST_WEIGHTS, failure_mass, float_slack
from common.privacy.bookkeeping.certificate import PROBES, SHRINKAGE, Certificate
from common.privacy.engines import failure_mass as failure_mass_of
from common.privacy.engines import sensitivity
from common.privacy.generator import SystemGenerator
from common.privacy.grid import relative_sensitivity
from common.privacy.step import MicroBatch
from tests.common.privacy.bookkeeping.test_layers import engine_sum, loop_over_patients
from tests.common.privacy.bookkeeping.test_layers import row_loss as square_loss


def products() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(300, 40), torch.randn(300, 70)


def test_an_ordinary_float32_product_is_accepted() -> None:
    left, right = products()
    certificate, weight = Certificate(SystemGenerator()), nn.Parameter(torch.empty(40, 70))
    certificate.add(weight, left[:100], right[:100])
    certificate.add(weight, left[100:], right[100:])
    assert certificate.accepts({weight: left.t() @ right}, clipping_norm=300.0)


@pytest.mark.parametrize("kind", ["one number", "one row", "everywhere", "not a number"])
def test_an_error_above_the_bound_is_not_accepted(kind: str) -> None:
    left, right = products()
    for _ in range(200):
        certificate, weight = Certificate(SystemGenerator()), nn.Parameter(torch.empty(40, 70))
        certificate.add(weight, left, right)
        error = torch.zeros(40, 70, dtype=torch.float64)
        if kind == "one number":
            error[3, 5] = 1
        elif kind == "one row":
            error[3] = torch.randn(70)
        elif kind == "everywhere":
            error = torch.randn(40, 70, dtype=torch.float64)
        error *= 1.001 * CERTIFIED_ERROR / error.norm().clamp_min(1e-9)
        wrong = left.t().double() @ right.double() + error
        if kind == "not a number":
            wrong[0, 0] = math.nan
        assert not certificate.accepts({weight: wrong}, clipping_norm=1.0)


def test_the_chance_to_miss_an_error_is_what_the_bound_says() -> None:
    """The chi-square tail behind `failure_mass`, exactly: P(chi²_k <= k / 32) for k = 32 probes."""
    tail = torch.special.gammainc(torch.tensor(PROBES / 2, dtype=torch.float64), torch.tensor(PROBES / SHRINKAGE / 2, dtype=torch.float64))
    chernoff = (math.exp(1 - 1 / SHRINKAGE) / SHRINKAGE) ** (PROBES / 2)
    assert 0 < tail.item() <= chernoff < failure_mass(1) / 2  # in either of two neighbours


def test_the_estimate_is_unbiased() -> None:
    left, right = products()
    error = torch.randn(40, 70, dtype=torch.float64) * 1e-3
    exact, estimates = left.t().double() @ right.double(), []
    for _ in range(300):
        certificate, weight = Certificate(SystemGenerator()), nn.Parameter(torch.empty(40, 70))
        certificate.add(weight, left, right)
        estimates.append(certificate._squared_error(exact + error, certificate._seen[weight]).item() / PROBES)
    assert sum(estimates) / 300 == pytest.approx(error.square().sum().item(), rel=0.06)


def test_layers_of_different_width_share_their_probes() -> None:
    certificate = Certificate(SystemGenerator())
    narrow, wide = nn.Parameter(torch.empty(2, 3)), nn.Parameter(torch.empty(4, 9))
    sums = {}
    for weight in (narrow, wide):
        left, right = torch.randn(5, weight.shape[0]), torch.randn(5, weight.shape[1])
        certificate.add(weight, left, right)
        sums[weight] = left.double().t() @ right.double()
    assert certificate.accepts(sums, 1.0)
    assert not certificate.accepts({**sums, narrow: sums[narrow] + 1.0}, 1.0)


def test_a_sum_that_is_not_accepted_is_formed_again_in_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies wrongly: the step still gives the right sum."""
    monkeypatch.setattr(ghost, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(ghost, "is_cheaper", lambda use, slots: True)
    original = patient_sum.PatientSum._add_large

    def broken(self: patient_sum.PatientSum, part: ghost.Factors, *arguments: Tensor) -> None:
        original(self, part, *arguments)
        self._large[part.weight][0, 0] += 0.0 if self.in_double else 0.02

    monkeypatch.setattr(patient_sum.PatientSum, "_add_large", broken)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    parts = [MicroBatch(torch.randn(4, 8), torch.randn(4), torch.arange(2).repeat_interleave(2), torch.full((4,), 0.5), 2, 2)] * 2
    expected = sum(loop_over_patients(model, part, 0.5) for part in parts)
    assert (engine_sum("bookkeeping", model, parts, 0.5, bits=24) - expected).norm() <= 1e-4 * expected.norm()


def test_a_patient_with_infinite_values_does_not_spoil_a_large_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(ghost, "is_cheaper", lambda use, slots: True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 1), nn.Flatten(0))
    part = MicroBatch(torch.randn(3, 8), torch.randn(3), torch.arange(3), torch.ones(3), 3, 1)
    part.inputs[1, 2] = math.inf
    rest = MicroBatch(part.inputs[[0, 2]], part.targets[[0, 2]], torch.arange(2), torch.ones(2), 2, 1)
    expected = loop_over_patients(model, rest, 0.5)
    assert (engine_sum("bookkeeping", model, [part], 0.5, bits=24) - expected).norm() <= 1e-4 * expected.norm()


def test_ghost_norms_are_never_below_the_exact_ones() -> None:
    """Places that cancel: the norm is a thousandth of its terms."""
    torch.manual_seed(0)
    left, right = torch.randn(5, 2, 30), torch.randn(5, 2, 50)
    left[:, 1], right[:, 1] = -left[:, 0], right[:, 0] * (1 + 1e-3)
    factors = ghost.Factors(torch.empty(0), left, right, 1)
    exact = torch.bmm(left.double().transpose(1, 2), right.double()).square().sum((1, 2))
    assert (factors.squared_norms() >= exact).all()
    assert torch.allclose(factors.squared_norms(), exact, rtol=1e-2)


def test_block_sums_keep_their_bound() -> None:
    torch.manual_seed(0)
    gradient, clipping = torch.randn(100, 5000), torch.rand(100)
    exact = clipping.double() @ gradient.double()
    error = (patient_sum._block_sums(gradient, clipping).double().sum(0) - exact).norm()
    assert 0 < error <= (clipping.double() * gradient.double().norm(dim=1)).sum() * 16 * 2.0**-24


def test_the_slack_by_hand() -> None:
    assert BLOCK_ERROR == 2.0**-10
    assert float_slack(100) == pytest.approx(2 * 2.0**-10 + 0.5 * 10 * 2.0**-20)
    assert float_slack(LEAST_WEIGHTS) == pytest.approx(2 * math.hypot(2.0**-10, 2.0**-8) + 0.5 * 256 * 2.0**-20)
    assert sensitivity("bookkeeping", 10_000) == relative_sensitivity(10_000) + float_slack(10_000)
    assert sensitivity("opacus", 10_000) == relative_sensitivity(10_000)
    assert failure_mass_of("opacus", 1000) == 0 < failure_mass_of("bookkeeping", 1000) < 1e-13


def test_float32_sums_of_a_full_step_stay_within_the_slack() -> None:
    """A thousand patients with equal gradients, the case in which errors add up most."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 1), nn.Flatten(0))
    inputs = torch.rand(64, 400) + 1
    parts = [MicroBatch(inputs, torch.full((64,), 50.0), torch.arange(64), torch.ones(64), 64, 1)] * 16
    found = engine_sum("bookkeeping", model, parts, 1.0, bits=30).double()
    doubled = nn.Sequential(nn.Linear(400, 1), nn.Flatten(0)).double()
    doubled.load_state_dict(model.state_dict())
    part = parts[0]
    exact = 16 * loop_over_patients(doubled, MicroBatch(part.inputs.double(), part.targets.double(), part.patient, part.weight, 64, 1), 1.0)
    assert square_loss(torch.ones(1), torch.zeros(1)).item() == 3.0
    assert (found - exact).norm() <= 2 * BLOCK_ERROR


def test_a_step_that_is_formed_again_is_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a sum is accepted depends on the patients, so going the other way may not change how anything is rounded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 300), nn.Tanh(), nn.Linear(300, 1), nn.Flatten(0))
    one = torch.randn(1, 256).expand(64, -1)
    parts = [MicroBatch(one, torch.ones(64), torch.arange(64), torch.ones(64), 64, 1)] * 8
    accepted = engine_sum("bookkeeping", model, parts, 1.0, bits=20).double()
    monkeypatch.setattr(Certificate, "accepts", lambda *_: False)
    again = engine_sum("bookkeeping", model, parts, 1.0, bits=20).double()
    assert 0 < (accepted - again).norm() <= CERTIFIED_ERROR
