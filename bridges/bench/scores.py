"""Scores of a walk against a reference: bias, effective sample size, weights of modes, discrepancy, and what is wrong.

Every score comes with bootstrap replicates over chains, from which standard errors over chains and seeds are computed.

* Bias squared of the mean of ``x`` and of ``x^2`` is ``(estimate - truth)^2 / variance``, the estimate being that of
  one chain from all of its draws so far; averaged over coordinates, or the worst of them; the median over chains. An
  estimate from ``n`` independent draws has ``1 / n`` on average. ``gradients_to_*`` is the count from which it stays
  under .01 until the end of the budget, infinite if it never does: the score of the papers on microcanonical Langevin.
* Effective sample sizes are ArviZ's, of normalised ranks, bulk and tail, the least over ``x``, ``x^2`` and the
  log-density: over all coordinates if they are few, else over those that a plain estimate finds worst.
* The share of chains in each mode is compared with the modes' weights by the total variation distance.

Source: Microcanonical Hamiltonian Monte Carlo (Robnik et al., 2023), https://arxiv.org/abs/2212.08549;
Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021),
https://arxiv.org/abs/1903.08008; A Kernel Two-Sample Test (Gretton et al., 2012),
https://jmlr.org/papers/v13/gretton12a.html
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from ppl_diffusion.targets import BenchmarkTarget

from ..arviz.convert import arviz
from ..arviz.summary import group_r_hat, normal_ranks
from .protocol import Walk

LOW = 0.01
"""Bias squared under which an estimate counts as good."""

REPLICATES = 20
"""Number of bootstrap replicates."""

ALL = 4
"""Largest number of coordinates of which every one is given to ArviZ."""

COMPARED = 500
"""Draws on each side of the MMD, and most draws of which the mode is looked up is eight times as many."""

BIASES = ("x", "x_worst", "x2", "x2_worst")
"""What the bias is of, and whether it is the average over coordinates or the worst."""


class Scores(NamedTuple):
    """Scores of a walk.

    Attributes:
        values: by name; NaN for what cannot be said, infinite for what was never reached.
        replicates: the same of resampled chains, each of shape ``(REPLICATES,)``; NaN where there are none.
        curves: median bias squared at the gradients of the grid, shape ``(4, grid)``, in the order of ``BIASES``.
        curve_errors: their standard errors, same shape.
    """

    values: dict[str, float]
    replicates: dict[str, np.ndarray]
    curves: np.ndarray
    curve_errors: np.ndarray


def score(walk: Walk, target: BenchmarkTarget, level: int, *, grid: np.ndarray, seed: int) -> Scores:
    """Score a walk on a target at a level.

    Args:
        walk: what the chains drew.
        target: has the reference of the level.
        level: noise level.
        grid: gradients at which the curves of the bias are read, increasing.
        seed: of the bootstrap and of the reference draws.

    Raises:
        ValueError: the target has no reference of this level.
    """
    reference, rng = target.reference(level), np.random.default_rng(seed)
    resampled = rng.integers(len(walk.positions), size=(REPLICATES, len(walk.positions)))
    values, replicates = plain_scores(walk)
    errors = chain_errors(walk, reference, grid)
    for found in (
        bias_scores(errors, grid, resampled),
        ess_scores(walk, rng),
        mode_scores(walk, target, level, resampled),
    ):
        values |= found[0]
        replicates |= found[1]
    values["mmd"] = mmd(_thinned(walk.positions, COMPARED), _flat(target.draws(COMPARED, level=level, seed=seed)))
    medians = np.median(errors[resampled], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where no draw has been made yet
        spread = np.nanstd(medians, axis=0)
    missing = {name: np.full(REPLICATES, np.nan) for name in values}
    return Scores(values, missing | replicates, np.median(errors, axis=0), spread)


def plain_scores(walk: Walk) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return what needs no reference; ``stuck`` is the share of chains that moved in fewer than 1 % of the draws."""
    moved = np.any(np.diff(walk.positions, axis=1) != 0, axis=-1).mean(1)
    spent = walk.gradients[-1] - walk.adaptation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # means of what is not reported
        acceptance, diverging = float(np.nanmean(walk.acceptance_rate)), float(np.nanmean(walk.diverging))
    values = {
        "acceptance": acceptance,
        "moved": float(moved.mean()),
        "stuck": float(np.mean(moved < 0.01)),
        "diverging": diverging,
        "gradients": float(walk.gradients[-1]),
        "draws": float(walk.positions.shape[1]),
        "adaptation_share": walk.adaptation / walk.gradients[-1],
        "reported_share": walk.reported / spent,
        "evaluated_share": walk.evaluated / spent,
        "seconds": walk.seconds,
    }
    return values, {}


def chain_errors(walk: Walk, reference: Any, grid: np.ndarray) -> np.ndarray:
    """Return the bias squared of every chain at the gradients of the grid, ``(chains, 4, grid)``; NaN before the first
    draw."""
    ends = np.searchsorted(walk.gradients, grid, side="right")
    x = walk.positions.astype(np.float64)
    columns = []
    for expectation, powers in ((reference.x, x), (reference.x_squared, x**2)):
        truth, variance = _flat(expectation.value[None])[0], _flat(expectation.variance[None])[0]
        totals = _totals(powers, ends)
        with np.errstate(all="ignore"):
            apart = (totals / ends[:, None] - truth) ** 2 / variance
        columns += [apart.mean(-1), apart.max(-1)]
    return np.stack(columns, axis=1)


def _totals(x: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sums of the first ``ends`` draws of ``x (chains, draws, size)``: ``(chains, len(ends), size)``."""
    starts = np.concatenate([[0], ends[:-1]])
    parts = [x[:, a:b].sum(1) for a, b in zip(starts, ends, strict=True)]
    return np.cumsum(np.stack(parts, axis=1), axis=1)


def bias_scores(
    errors: np.ndarray, grid: np.ndarray, resampled: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the final bias and the gradients to a low one, from the errors of chains ``(chains, 4, grid)``."""
    curves = np.median(errors, axis=0)
    again = np.median(errors[resampled], axis=1)
    values, replicates = {}, {}
    for i, name in enumerate(BIASES):
        values[f"bias_{name}"], replicates[f"bias_{name}"] = float(curves[i, -1]), again[:, i, -1]
        values[f"gradients_to_{name}"] = stays_low(curves[i], grid)
        replicates[f"gradients_to_{name}"] = np.array([stays_low(curve[i], grid) for curve in again])
    return values, replicates


def stays_low(curve: np.ndarray, grid: np.ndarray) -> float:
    """Return the first gradients of the grid from which a curve stays under ``LOW``; infinite if it never does."""
    high = np.flatnonzero(~(curve < LOW))
    first = 0 if not len(high) else high[-1] + 1
    return float(grid[first]) if first < len(grid) else np.inf


def effective_size(x: np.ndarray, kind: str) -> float:
    """Return the "bulk" or "tail" effective sample size of draws ``(chains, draws)``."""
    return float(arviz().ess(x, method=kind, **({"prob": (0.05, 0.95)} if kind == "tail" else {})))


def ess_scores(walk: Walk, rng: np.random.Generator) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return least effective sample sizes, for 1,000 gradients per chain and for a second, and the largest R-hats."""
    scalars = worst_scalars(walk)
    chains = walk.positions.shape[0]
    library = arviz()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sizes = {kind: [effective_size(x, kind) for x in scalars] for kind in ("bulk", "tail")}
        r_hats = [float(library.rhat(x)) for x in scalars]
        nested = [group_r_hat(normal_ranks(x), np.arange(chains)) for x in scalars]
    values, replicates = {"r_hat": max(r_hats), "nested_r_hat": max(nested)}, {}
    for kind, found in sizes.items():
        worst = int(np.argmin(found))
        least = found[worst]
        spread = _group_sizes(scalars[worst], kind, rng)
        per = {f"ess_{kind}": 1.0, f"ess_{kind}_per_gradient": 1000 / (chains * walk.gradients[-1])}
        per |= {f"ess_{kind}_per_second": 1 / walk.seconds}
        for name, unit in per.items():
            values[name], replicates[name] = least * unit, least * unit * spread
    return values, replicates


def _group_sizes(x: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Return bootstrap replicates of the effective sample size of ``x (chains, draws)``, as shares of it: four
    groups of chains are drawn anew, since ArviZ would take long for every replicate."""
    groups = [part for part in np.array_split(np.arange(len(x)), 4) if len(part) > 1]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = np.array([effective_size(x[part], kind) for part in groups])
        return found[rng.integers(len(found), size=(REPLICATES, len(found)))].mean(1) / found.mean()


def worst_scalars(walk: Walk) -> list[np.ndarray]:
    """Return those scalars, each ``(chains, draws)``, whose effective sample size may be the least: the log-density,
    and of ``x`` and of ``x^2`` all coordinates, or the two that a plain estimate finds worst."""
    x = walk.positions.astype(np.float64)
    found = [walk.log_density]
    for powers in (x, x**2):
        size = x.shape[-1]
        chosen = range(size) if size <= ALL else np.argsort(plain_ess(powers))[:2]
        found += [powers[..., i] for i in chosen]
    return found


def plain_ess(x: np.ndarray) -> np.ndarray:
    """Return a plain estimate of the effective sample size of every coordinate of ``x (chains, draws, size)``: the
    variance of all draws over the variance of the means of chains' halves."""
    half = x.shape[1] // 2
    means = np.concatenate([x[:, :half].mean(1), x[:, -half:].mean(1)])
    with np.errstate(all="ignore"):
        found = len(means) * x.var((0, 1)) / means.var(0, ddof=1)
    return np.nan_to_num(found, nan=0.0)


def mode_scores(
    walk: Walk, target: BenchmarkTarget, level: int, resampled: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the total variation distance between the shares of modes among draws and their weights; NaN without."""
    modes = target.reference(level).modes
    if modes is None:
        return {"mode_error": np.nan}, {}
    chains, draws, _ = walk.positions.shape
    kept = walk.positions[:, :: max(1, chains * draws // (8 * COMPARED))]
    where = target.mode_of(kept.reshape(-1, *target.potential.event_shape).astype(np.float64), level)
    assert where is not None
    indicator = np.asarray(where).reshape(kept.shape[:2])[..., None] == np.arange(len(modes.weights))
    shares, weights = indicator.mean(1), np.asarray(modes.weights)
    apart = 0.5 * np.abs(shares[resampled].mean(1) - weights).sum(-1)
    return {"mode_error": float(0.5 * np.abs(shares.mean(0) - weights).sum())}, {"mode_error": apart}


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of ``x (n, size)`` and ``y (m, size)``.

    The kernel is Gaussian; its width is the median distance between points of ``y``. It may be negative where the
    distributions are close.
    """
    within = _squares(y, y)
    width = np.median(within[~np.eye(len(y), dtype=bool)])

    def mean_kernel(squares: np.ndarray, same: bool) -> float:
        kernel, n = np.exp(-squares / width), len(squares)
        return float((kernel.sum() - n) / (n * (n - 1)) if same else kernel.mean())

    return mean_kernel(_squares(x, x), True) + mean_kernel(within, True) - 2 * mean_kernel(_squares(x, y), False)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T).clip(0)


def _thinned(positions: np.ndarray, count: int) -> np.ndarray:
    """Return about ``count`` draws, evenly from ``positions (chains, draws, size)``, as ``(count, size)``."""
    rows = positions.reshape(-1, positions.shape[-1])
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)].astype(np.float64)


def _flat(x: Any) -> np.ndarray:
    """Return points ``(n, *event_shape)`` as ``(n, size)``."""
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)
