# SPDX-License-Identifier: Apache-2.0
"""The ε of an egress line: the same bound that dp_accounting gives."""

import math

import pytest

from client.egress_spent import epsilon_bound
from common.errors import StorageError
from common.privacy.accountant import discrete_laplace, epsilon_rdp, event_to_json, gaussian, poisson_gaussian, unprotected


@pytest.mark.parametrize(
    "events",
    [
        [],
        [poisson_gaussian(0.05, 1.2, 2000)],
        [poisson_gaussian(0.5, 0.7, 10), poisson_gaussian(0.5, 0.7, 10), poisson_gaussian(0.01, 3.0, 5)],
        [poisson_gaussian(1.0, 5.0, 3), gaussian(9.0, 2)],
        [poisson_gaussian(1e-4, 50.0, 1)],
        [discrete_laplace(0.25), discrete_laplace(0.5, 2), poisson_gaussian(0.1, 2.0, 7)],
        [discrete_laplace(0.25)],
    ],
)
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_it_is_the_bound_of_the_accountant(events: list, delta: float) -> None:
    assert epsilon_bound([event_to_json(event) for event in events], delta) == pytest.approx(
        epsilon_rdp(events, delta), rel=1e-9, abs=1e-12
    )


def test_one_gaussian_by_hand() -> None:
    """Rényi divergence α/2σ², then ε = min over α of α/2σ² + log(1-1/α) - log(δα)/(α-1)."""
    expected = min(order / 8 + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1) for order in range(2, 33))
    assert epsilon_bound([event_to_json(gaussian(2.0))], 1e-5) == pytest.approx(expected)


@pytest.mark.parametrize("event", [unprotected(), gaussian(0.001), poisson_gaussian(0.1, 0.0, 3), discrete_laplace(0.0)])
def test_without_noise_it_is_infinite(event: object) -> None:
    history = [event_to_json(gaussian(2.0)), event_to_json(event)]
    assert epsilon_bound(history, 1e-5) == math.inf


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"type":"ZCDpEvent"}', "x", '{"type":"PoissonSampledDpEvent","event":{"type":"NonPrivateDpEvent"}}']
)
def test_what_is_no_event_of_ours_is_refused(text: str) -> None:
    with pytest.raises(StorageError, match="mechanism"):
        epsilon_bound([text], 1e-5)
