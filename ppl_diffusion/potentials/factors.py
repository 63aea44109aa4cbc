"""The distinct factors of a product, and the sums of their exponents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

Factor = TypeVar("Factor")

ROUNDING = 1e-12
"""Sum of exponents, relative to their sizes, that is a cancellation but for rounding."""


def collect(powers: Iterable[tuple[Factor, Any, float]]) -> dict[Factor, float]:
    """Return each distinct factor and the sum of its exponents.

    Factors whose exponents cancel are left out, unless none would remain: p * q / p is q, and a factor that cancels but
    for rounding is not evaluated, so that a NaN of its energy cannot spread.

    Args:
        powers: factors, keys that are equal for factors that are the same density, and exponents.
    """
    known: dict[Any, Factor] = {}
    sums: dict[Factor, float] = {}
    sizes: dict[Factor, float] = {}
    for factor, identity, exponent in powers:
        first = known.setdefault(identity, factor)
        sums[first] = sums.get(first, 0.0) + exponent
        sizes[first] = sizes.get(first, 0.0) + abs(exponent)
    left = {factor: total for factor, total in sums.items() if abs(total) > ROUNDING * sizes[factor]}
    return left or dict.fromkeys(sums, 0.0)
