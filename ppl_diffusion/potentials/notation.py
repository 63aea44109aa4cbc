"""The names of compositions: expressions that ``ppl_diffusion.potentials.expression.parse`` reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def product_name(factors: Sequence[str], exponents: Sequence[float], log_scale: float) -> str:
    """Return ``2 * p * q**3 / r``; factors that are compositions themselves are in parentheses."""
    text = "" if log_scale == 0 else format_scale(log_scale)
    for factor, a in zip(factors, exponents, strict=True):
        power = "" if abs(a) == 1 and (a > 0 or text) else f"**{abs(a) if text else a:.4g}"
        sign = "" if not text else " * " if a >= 0 else " / "
        text += f"{sign}{factor}{power}"
    return text


def format_scale(log_scale: float) -> str:
    """Return ``exp(log_scale)`` as text."""
    return f"{np.exp(log_scale):.4g}" if abs(log_scale) < 700 else f"exp({log_scale:.4g})"
