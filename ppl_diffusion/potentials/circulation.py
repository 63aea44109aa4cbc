"""How far a score is from being a gradient: its work round small closed loops.

A density's score is a gradient, whose work round a closed path vanishes. The output of a network need not be one. A
kernel that accepts by work (``bridges.blackjax.line_integral``) then has no density that it leaves invariant; what it
is wrong by, in nats, is the work round the loops that a chain can take.

Source of the circulation as a measure: Stokes' theorem, by which it is the curl times the area for small loops.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from ..arrays import as_numpy
from .target import Target

LOOPS = 64
"""Largest number of loops, one at each of as many chains."""

NODES, SHARES = np.polynomial.legendre.leggauss(3)
"""Nodes and weights of Gauss and Legendre on (-1, 1), exact for polynomials of fifth degree along a side."""

SHRUNK = 4
"""Factor by which the loops that are measured are smaller than steps, so that quadrature is exact where a density
changes within a step: the work round a small loop is the curl times its area, here a sixteenth of that of a step."""

NOTABLE_WORK = 0.05
"""Work round a loop, in nats, from which on the score is told not to be a gradient: it shifts acceptance by 5%."""


class Circulation(NamedTuple):
    """Work of a score round closed loops.

    Attributes:
        nats: root mean square of the work round a loop.
        share: its ratio to the root mean square of the sum of the works along the sides, each taken as positive; 0 for
            a gradient, at most 1.
        side: root mean square length of a side.
    """

    nats: float
    share: float
    side: float


def circulation(target: Target, x: np.ndarray, *, level: int, step: float, seed: int = 0) -> Circulation:
    """Measure the work of the score round loops of the length of leapfrog steps.

    A loop is a parallelogram at a chain, whose two sides are ``step`` times standard normal momenta, measured at a
    ``SHRUNK`` one. It costs twelve evaluations at all chains.

    Args:
        target: the density, or a target of which only the gradient is known.
        x: chains, shape ``(chains, *event_shape)``; the first ``LOOPS`` that are finite are used.
        level: their noise level.
        step: leapfrog step.
        seed: seed of the momenta.

    Returns:
        NaN in every field if no chain, or no work, is finite.
    """
    flat = np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    flat = flat[np.isfinite(flat).all(1)][:LOOPS]
    a, b = step / SHRUNK * np.random.default_rng(seed).standard_normal((2, *flat.shape))
    corners = [flat, flat + a, flat + a + b, flat + b]
    sides = []
    for begin, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        work = np.zeros(len(flat))
        for node, share in zip(NODES, SHARES, strict=True):
            at = (begin + end) / 2 + node / 2 * (end - begin)
            with jax.enable_x64(True):
                gradient = target.value_and_grad(at.reshape(-1, *target.event_shape), level=level)[1]
            work = work - share / 2 * np.sum(as_numpy(gradient).reshape(at.shape) * (end - begin), axis=1)
        sides.append(work)
    works = np.array(sides)
    works = works[:, np.isfinite(works).all(0)]
    if not works.size:
        return Circulation(float("nan"), float("nan"), float("nan"))
    round_loop, along = (float(np.sqrt(np.mean(w**2))) for w in (works.sum(0), np.abs(works).sum(0)))
    round_loop, along = round_loop * SHRUNK**2, along * SHRUNK
    side = SHRUNK * float(np.sqrt(np.mean(np.sum(a**2, axis=1))))
    return Circulation(round_loop, round_loop / along if along > 0 else 0.0, side)
