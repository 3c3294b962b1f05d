# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from common.privacy.discrete_laplace import discrete_laplace_noise, noise_variance
from common.privacy.generator import SystemGenerator


@pytest.mark.parametrize("parameter", [0.1, 1.0])
def test_the_noise_of_an_array_has_the_variance_of_its_parameter(parameter: float) -> None:
    """A Laplace variable has a kurtosis of about 6 (7.1 at parameter 1), so a variance from n draws has a relative error of √(6.1 / n)."""
    drawn = discrete_laplace_noise((30, 100), parameter, SystemGenerator())
    assert (drawn.astype(float) ** 2).mean() == pytest.approx(noise_variance(parameter), rel=6.5 * math.sqrt(6.1 / drawn.size))
