# SPDX-License-Identifier: Apache-2.0
"""The upper tail of the normal distribution to ninety digits, for the few noise values that double precision cannot decide."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from functools import cache

DIGITS = 110
_PRECISE = Context(prec=DIGITS)
_NEGLIGIBLE = Decimal(21)  # the tail beyond is below 10^-97


def upper_tail(x: Decimal) -> Decimal:
    """P(Z > x) of a standard normal Z for x >= 0, with an absolute error below 10^-90.

    Series of positive terms (Abramowitz and Stegun 26.2.11): 1/2 - density(x) * (x + x^3/3 + x^5/(3*5) + …). Both sides of the difference
    are at most 1/2 and each of the fewer than 10^4 operations rounds at the 110th digit, so 10^-90 leaves sixteen digits to spare.
    """
    if x > _NEGLIGIBLE:
        return Decimal(0)
    with localcontext(_PRECISE):
        total = term = x
        divisor = 1
        while term > total * Decimal(10) ** -DIGITS:
            divisor += 2
            term = term * x * x / divisor
            total += term
        return Decimal("0.5") - total * (-x * x / 2).exp() / _root_of_two_pi()


@cache
def _root_of_two_pi() -> Decimal:
    """The square root of 2π; π by Machin's formula, 16 arctan(1/5) - 4 arctan(1/239)."""
    with localcontext(_PRECISE):
        return (2 * (16 * _inverse_tangent(5) - 4 * _inverse_tangent(239))).sqrt()


def _inverse_tangent(reciprocal: int) -> Decimal:
    """arctan(1 / reciprocal) by its Taylor series."""
    power = total = 1 / Decimal(reciprocal)
    order = 1
    while abs(power) > Decimal(10) ** -DIGITS:
        power /= -reciprocal * reciprocal
        order += 2
        total += power / order
    return total
