# SPDX-License-Identifier: Apache-2.0
import math
from decimal import Context, Decimal, localcontext, setcontext

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from common.errors import InputError
from common.privacy import noise
from common.privacy.generator import SystemGenerator
from common.privacy.integer_noise import AT_ONCE, Noise
from common.privacy.noise import QUANTILE_ERROR, normal_quantile, rounded_gaussian, tail_mass
from common.privacy.normal_tail import upper_tail

CERTAIN = 1e-9


class FirstWords(SystemGenerator):
    """Given words first, random ones after."""

    def __init__(self, words: list[int]) -> None:
        super().__init__()
        self.given = words

    def words(self, count: int):
        taken, self.given = self.given[:count], self.given[count:]
        return np.concatenate([np.array(taken, dtype=np.uint64), super().words(count - len(taken))])


def test_the_precise_tail_agrees_with_known_values() -> None:
    assert upper_tail(Decimal(0)) == Decimal("0.5")
    for x in (1e-9, 0.3, 1.0, 2.5, 5.0, 8.0, 9.0, 12.0, 16.0):
        assert float(upper_tail(Decimal(x))) == pytest.approx(norm.sf(x), rel=1e-12)
    # Q(1) and Q(9) to 100 digits (erfc(x/sqrt 2)/2)
    one = "0.1586552539314570514147674543679620775220870332733956090126055497570085580127951704991150815943606725"
    nine = "0.0000000000000000001128588405953840647735502075968747257980041900818164948887349228721553930487881348725629917291397594"
    with localcontext(prec=130):
        for x, digits in ((1, one), (9, nine)):
            assert abs(upper_tail(Decimal(x)) - Decimal(digits)) < Decimal("1e-99")


def test_the_quantile_error_is_well_below_its_bound() -> None:
    setcontext(Context(prec=60))
    random = np.random.default_rng(0)
    tails = np.concatenate(
        [np.exp(-random.uniform(0.7, 44.3, 500)), random.uniform(0, 0.5, 300), 2.0**-5 * (1 + random.normal(0, 1e-9, 50))]
    )
    for tail, x in zip(tails, normal_quantile(tails), strict=True):
        error = abs(upper_tail(Decimal(float(x))) - Decimal(float(tail))) / Decimal(float(norm.pdf(x)))  # one Newton step
        assert float(error) < QUANTILE_ERROR / 4 * (1 + x)


def test_the_quantile_reaches_nine_standard_deviations() -> None:
    assert normal_quantile(np.array([2.0**-65]))[0] > 9.15
    assert normal_quantile(np.array([0.5]))[0] == 0.0
    values = np.array([1e-18, 1e-12, 1e-6, 0.03, 0.0313, 0.4])
    assert normal_quantile(values) == pytest.approx(norm.isf(values), rel=1e-14)


def test_large_noise_is_normal() -> None:
    scale = 2.3 * 2**20
    drawn = rounded_gaussian(400_000, scale, SystemGenerator())
    assert drawn.dtype == np.int64
    assert kstest(drawn / scale, "norm").pvalue > CERTAIN
    assert drawn.var() == pytest.approx(scale**2, rel=6 * math.sqrt(2 / 400_000))
    assert np.bincount(drawn & 1).min() > 198_000  # the last bit is fair


def test_small_noise_has_the_probabilities_of_a_rounded_normal() -> None:
    drawn = rounded_gaussian(200_000, 1.3, SystemGenerator())
    edges = np.arange(-5, 6) + 0.5
    probabilities = np.diff(norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]) / 1.3))
    counts = np.histogram(drawn, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    assert chisquare(counts, probabilities * 200_000).pvalue > CERTAIN


@pytest.mark.parametrize("scale", [0.01, 1.3, 2.4e6, 1e10])
def test_deciding_in_decimals_agrees_with_the_fast_path(scale: float) -> None:
    generator = SystemGenerator()
    cells = generator.words(40) >> np.uint64(1)
    approximate = normal_quantile((cells.astype(np.float64) + 0.5) * 2.0**-64) * scale
    decided = np.array([noise._decide(int(cell), scale, generator) for cell in cells])
    assert np.abs(decided - approximate).max() <= 0.5 + 1e-9 * scale


def test_values_on_a_boundary_are_decided_by_more_bits() -> None:
    """The cell that holds the boundary between 0 and 1 must give both answers, as often as the boundary divides it."""
    scale = 1.0
    position = upper_tail(Decimal("0.5")) * 2**64
    cell, share = int(position), float(position % 1)
    answers = [noise._decide(cell, scale, SystemGenerator()) for _ in range(400)]
    assert set(answers) <= {0, 1}
    assert np.mean(answers) == pytest.approx(share, abs=6 * 0.5 / 20)


def test_the_extreme_cell_reaches_further_than_63_bits() -> None:
    drawn = rounded_gaussian(2, 1e6, FirstWords([0, 2**63]))
    assert drawn[0] > 9.07e6 and drawn[1] < -9.07e6


def test_what_63_bits_cannot_decide_gets_more_bits() -> None:
    boundary = int(upper_tail(Decimal("0.5")) * 2**64)
    assert set(rounded_gaussian(200, 1.0, FirstWords([boundary] * 200)).tolist()) == {0, 1}
    extreme = rounded_gaussian(50, 1e6, FirstWords([0] * 50))
    assert len(set(extreme.tolist())) == 50 and extreme.min() > 9.07e6


def test_the_sign_bit_is_the_sign() -> None:
    cell = 2**61
    up, down = rounded_gaussian(2, 1000.0, FirstWords([cell, 2**63 | cell]))
    assert up == -down == round(1000 * norm.isf(0.125))


def test_no_noise_draws_nothing() -> None:
    assert rounded_gaussian(4, 0.0, FirstWords([1])).tolist() == [0, 0, 0, 0]
    assert rounded_gaussian(0, 5.0, SystemGenerator()).shape == (0,)


@pytest.mark.parametrize("scale", [-1.0, 2.0**37, math.inf, math.nan])
def test_noise_that_cannot_be_drawn_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="grid steps"):
        rounded_gaussian(1, scale, SystemGenerator())


def test_chunks_are_independent() -> None:
    drawn = rounded_gaussian(3 * noise._CHUNK + 5, 1e6, SystemGenerator())
    parts = [drawn[start : start + noise._CHUNK] for start in range(0, 3 * noise._CHUNK, noise._CHUNK)]
    correlation = np.corrcoef(parts)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 6.5 / math.sqrt(noise._CHUNK)


def test_the_tail_mass_is_far_below_any_delta() -> None:
    assert 0 < tail_mass(12_000_000 * 100_000) * (1 + math.exp(100)) < 1e-6 / 100
    assert tail_mass(2) == 2 * tail_mass(1)


def test_noise_that_is_drawn_beside_the_passes_is_handed_out_once() -> None:
    drawn = [Noise(AT_ONCE + 10, 1e6, SystemGenerator()) for _ in range(2)]
    drawn[0].begin()
    for one in drawn:
        parts = [one.take(7), one.take(AT_ONCE - 7), one.take(10)]
        assert [len(part) for part in parts] == [7, AT_ONCE - 7, 10]
        assert len(set(np.concatenate(parts).tolist())) > 0.9 * AT_ONCE, "independent numbers, none of them handed out twice"


def test_what_goes_wrong_in_the_thread_is_raised_where_the_noise_is_taken() -> None:
    broken = Noise(3, 2.0**40, SystemGenerator())
    broken.begin()
    with pytest.raises(InputError, match="cannot be drawn"):
        broken.take(3)
