"""Observed sites that are not linear in ``x``, at noisy levels: widened by what ``x`` can still be there.

One derivative at one point says nothing of a sine or of ``|x|`` over the range that ``x`` still has at a level. Such a
site is therefore seen from several points ``x_0`` of the Gaussian ``x`` given ``x_k`` (``bridges.pyro.likelihood``),
the same standardised points for every chain and level. Mean and covariance of its location over the points, and the
mean of its squared scale, give the Gaussian that replaces it:

    mean_j loc(x_j)    and    mean_j scale(x_j)^2 I + cov_j loc(x_j)

Where ``x`` has few coordinates (:data:`MOST_TOGETHER`), all plain Normal sites are seen together, with all of their
covariances: the values of a site, and two sites, share the uncertainty of ``x``. The points have mean zero and unit
covariance, so a linear site among them is exact for Gaussian data. Otherwise each value is widened by its own variance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from .coordinates import log_density
from .masks import filled
from .prior import rewrapped, unwrapped
from .rows import map_rows

LOCATION_SCALE_FAMILIES = (dist.Normal, dist.StudentT, dist.Laplace, dist.Cauchy)
"""Distributions that can be widened."""

POINTS = 32
"""Number of points from which a site is seen: an even number, as they come in pairs ``+z, -z``."""

MOST_TOGETHER = 8
"""Largest number of coordinates of ``x`` for which sites are seen together, with their covariance."""

PAIRS = 8
"""Pairs of displacements over which a site is compared with a linear function of ``x``."""

REACH = 1.5
"""Points at which a site has to be defined, in units of those from which it is seen, about the mean of the prior."""

LEAST_UNUSED = 0.5
"""Effective share of the chains below which weights that were not used may change the shares of modes."""

LEAST_USED = 0.1
"""Effective share of the chains on a rung below which weights that are used leave too few."""

CURVATURE_TOLERANCE = 1e-3
"""Departure from a linear function, relative to the spread of the location, below which a site counts as linear."""


def sites_by_curvature(
    run: Callable[[Tensor], Mapping[str, Any]], names: Collection[str], *, at: Tensor, spread: Tensor | float
) -> dict[str, bool]:
    """Return which observed sites of ``names`` have a location that is not linear in ``x``, or a scale that depends on
    it.

    A linear location has ``loc(u + w) - loc(u) - loc(w) + loc(0) = 0`` for all displacements; the pairs ``u``, ``w``
    are drawn with the standard deviation of ``x``, so that the model is tried over the range of the prior.

    Args:
        run: runs the model at a flat ``x (size,)``, and returns the nodes of its trace by name.
        names: names of the observed sites; those without a location and a scale are left out, and those where they are
            not finite for some ``x``, such as the logarithm of a coordinate: over these there is no mean.
        at: the mean of ``x``, shape ``(size,)``.
        spread: standard deviation of ``x``, a number or shape ``(size,)``.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        torch.default_generator.manual_seed(1)
        u, w = spread * torch.randn(2, PAIRS, len(at), dtype=at.dtype)
        far = REACH * spread * standard_points(len(at)).to(at.dtype)
        nodes = run(at)
        wanted = [name for name in names if isinstance(unwrapped(nodes[name]["fn"]), LOCATION_SCALE_FAMILIES)]
        if not wanted:
            return {}

        def seen(x: Tensor) -> dict[tuple[str, str], Tensor]:
            there = run(x)
            return {
                (name, what): getattr(unwrapped(there[name]["fn"]), what).double()
                for name in wanted
                for what in ("loc", "scale")
            }

        found = map_rows(seen, torch.cat([at[None], at + u, at + w, at + u + w, at + far]))
    curved = {}
    for name in wanted:
        loc, scale = found[name, "loc"], found[name, "scale"]
        if not bool(loc.isfinite().all() and scale.isfinite().all()):
            continue
        loc, scale = loc[: -len(far)], scale[: -len(far)]
        bend = loc[1 + 2 * PAIRS :] - loc[1 : 1 + PAIRS] - loc[1 + PAIRS : 1 + 2 * PAIRS] + loc[:1]
        reach = (loc - loc[:1]).abs().max()
        rounding = 16 * torch.finfo(torch.get_default_dtype()).eps * loc.abs().max()
        bent = float(bend.abs().max()) > max(CURVATURE_TOLERANCE * float(reach), float(rounding))
        loud = float((scale - scale[:1]).abs().max()) > CURVATURE_TOLERANCE * float(scale.abs().max())
        curved[name] = bent or loud
    return curved


def standard_points(size: int) -> Tensor:
    """Return points ``(POINTS, size)``, float64, of a standard normal: in pairs, and for few coordinates with unit
    covariance."""
    half = POINTS // 2
    if size == 1:
        shares = (torch.arange(half, dtype=torch.float64) + half + 0.5) / POINTS
        z = torch.special.ndtri(shares)[:, None]
    elif size <= MOST_TOGETHER:
        engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=0)
        z = torch.special.ndtri(engine.draw(half, dtype=torch.float64).clamp(1e-6, 1 - 1e-6))
    else:
        z = torch.randn(half, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = torch.cat([z, -z])
    if size > MOST_TOGETHER:
        return z / (z**2).mean(0).sqrt()
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / len(z)), z.T, upper=False).T


@dataclass(frozen=True, eq=False)
class CurvedSites:
    """The observed sites that are seen from several points.

    Attributes:
        inflations: factor of the variance of each site by name where its values are widened one by one.
        together: names of those that are seen together, with their covariance.
        points: standardised points, shape ``(points, size of x)``.
        curved: names of the sites that are not linear in ``x``; others may be seen together with them.
    """

    inflations: Mapping[str, float]
    together: frozenset[str]
    points: Tensor
    curved: tuple[str, ...]

    def log_density(
        self, run: Callable[[Tensor], Mapping[str, Any]], nodes: Mapping[str, Any], deviations: Tensor
    ) -> Tensor:
        """Return the scalar log-density of these sites.

        Args:
            run: runs the model at the estimate of the clean ``x`` plus a displacement ``(size,)``.
            nodes: the nodes of the run without a displacement.
            deviations: standard deviations ``(size,)`` of the clean ``x`` given ``x_k``.
        """

        def seen(displacement: Tensor) -> dict[tuple[str, str], Tensor]:
            there = run(displacement)
            found: dict[tuple[str, str], Tensor] = {}
            for name in self.inflations:
                fn = unwrapped(there[name]["fn"])
                loc, scale, _ = torch.broadcast_tensors(fn.loc, fn.scale, nodes[name]["value"])
                found |= {(name, "loc"): loc.double(), (name, "scale"): scale.double()}
            return found

        found = map_rows(seen, self.points * deviations)
        total: Any = 0.0
        apart, spreads, scales = [], [], []
        for name, inflation in self.inflations.items():
            node, locs = nodes[name], found[name, "loc"]
            loc, square = locs.mean(0), (found[name, "scale"] ** 2).mean(0)
            if name in self.together:
                apart.append((node["value"] - loc).reshape(-1))
                spreads.append((locs - loc).reshape(len(locs), -1))
                scales.append(square.reshape(-1).sqrt())
                continue
            scale = (square + inflation * locs.var(0, correction=0)).sqrt()
            fn = rewrapped(node["fn"], partial(_moved, loc=loc, scale=scale))
            total = total + scale_and_mask(log_density(fn, filled(node)), node["scale"], node["mask"]).sum()
        if apart:
            total = total + _normal_log_density(torch.cat(apart), torch.cat(spreads, 1), torch.cat(scales))
        return total


def find_curved(
    run: Callable[[Tensor], Mapping[str, Any]], names: Collection[str], *, at: Tensor, spread: Tensor | float
) -> CurvedSites | None:
    """Return the sites to be seen from several points, or None if all of them are linear in ``x``.

    Args:
        run, names, at, spread: as in :func:`sites_by_curvature`.
    """
    widened = sites_by_curvature(run, names, at=at, spread=spread)
    curved = tuple(name for name, bent in widened.items() if bent)
    if not curved:
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        nodes = run(at)
    few = len(at) <= MOST_TOGETHER
    together = frozenset(name for name in widened if few and is_plain_normal(nodes[name]))
    views = max(1.0, sum(nodes[name]["value"].numel() for name in widened) / len(at))
    seen = {name: views for name in widened if name in curved or name in together}
    return CurvedSites(seen, together, standard_points(len(at)), curved)


def doubts_of_weights(curved: CurvedSites | None, model: str, shares: np.ndarray, *, used: bool) -> list[str]:
    """Return a sentence if the modes of a posterior may be counted wrongly, because of sites that are not linear in x.

    Args:
        curved: these sites, or None.
        model: name of the model.
        shares: effective sample size of the weights on each rung, divided by the number of chains.
        used: whether chains were resampled by them.
    """
    if curved is None or not np.isfinite(shares).any():
        return []
    sites = curved.curved
    what = f"{', '.join(sites)} of {model} {'is' if len(sites) == 1 else 'are'} not linear in x"
    if not used and shares[-1] < LEAST_UNUSED:
        return [
            f"{what}, and the weights of this walk, which count its modes, were not used (they would leave "
            f"{shares[-1]:.0%} of the chains): give resample=0.5"
        ]
    if used and np.nanmin(shares) < LEAST_USED:
        return [
            f"{what}, and on one rung the weights leave {np.nanmin(shares):.1%} of the chains: shares of modes and "
            "evidence are as uncertain as so few chains: take more chains, more rungs, "
            "ladder=Ladder.full(prior.schedule, steps=5), or compare with likelihood='tempered'"
        ]
    return []


def is_plain_normal(node: Any) -> bool:
    """Whether a site is an unmasked Normal that counts once."""
    fn = node["fn"]
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    return (
        isinstance(fn, dist.Normal)
        and node["mask"] is None
        and isinstance(node["scale"], (int, float))
        and (node["scale"] == 1)
    )


def _moved(fn: Any, loc: Tensor, scale: Tensor) -> Any:
    """Return a location-scale distribution with another location and scale, of the same dtype."""
    parameters = {name: getattr(fn, name) for name in fn.arg_constraints}
    return type(fn)(**parameters | {"loc": loc.to(fn.loc), "scale": scale.to(fn.scale)})


def _normal_log_density(apart: Tensor, spreads: Tensor, scale: Tensor) -> Tensor:
    """Log-density at ``apart (values,)`` of a Gaussian with covariance ``diag(scale^2) + mean_j s_j s_j^T``, where
    ``s_j`` are the rows of ``spreads (points, values)``."""
    r, rows = apart / scale, spreads / scale / len(spreads) ** 0.5
    few = rows if rows.shape[0] <= rows.shape[1] else rows.T
    factor = torch.linalg.cholesky_ex(torch.eye(len(few), dtype=few.dtype) + few @ few.T)[0]
    along = few @ r if few is rows else r
    solved = torch.linalg.solve_triangular(factor, along[:, None], upper=False)[:, 0]
    square = (r**2).sum() - (solved**2).sum() if few is rows else (solved**2).sum()
    normaliser = (
        factor.diagonal().log().sum()
        + scale.log().sum()
        + 0.5 * len(r) * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    )
    return -0.5 * square - normaliser
