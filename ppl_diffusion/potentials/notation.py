"""The numbers and names of compositions: expressions that ``ppl_diffusion.potentials.expression.parse`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np


def product_name(factors: Sequence[str], exponents: Sequence[float], log_scale: float) -> str:
    """Return ``2 * p * q**3 / r``; factors that are compositions themselves are in parentheses."""
    scale = format_scale(log_scale)
    text = "" if scale == "1" else scale
    for factor, a in zip(factors, exponents, strict=True):
        power = f"{abs(a) if text else a:.4g}"
        sign = "" if not text else " * " if a >= 0 else " / "
        text += f"{sign}{factor}" if power == "1" else f"{sign}{factor}**{power}"
    return text


def format_scale(log_scale: float) -> str:
    """Return ``exp(log_scale)`` as text."""
    return f"{np.exp(log_scale):.4g}" if abs(log_scale) < 700 else f"exp({log_scale:.4g})"


def log_positive(scale: Any) -> float:
    """Return the logarithm of a factor of a density, or raise ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(scale, Real):
        raise TypeError(f"a density can be multiplied by a density or a positive number, not by {scale!r}")
    factor = float(scale)
    if not (np.isfinite(factor) and factor > 0):
        raise ValueError(f"a density can only be scaled by a positive number, got {factor}: use / for a quotient")
    return float(np.log(factor))
