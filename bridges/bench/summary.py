"""Figures of a sweep with their errors, tables of them, and whether a ranking can be trusted.

The error of every figure is that of a bootstrap in two stages: seeds are drawn anew, and of each seed one of the
replicates that were made by drawing its chains anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

BOOTSTRAP = 50
"""Number of bootstrap samples of a figure."""

COLUMNS = {
    "warm": {
        "ESS": "ess_bulk_per_gradient",
        "tail ESS": "ess_tail_per_gradient",
        "to low bias": "gradients_to_x2",
        "acceptance": "acceptance",
        "adaptation": "adaptation_share",
        "own count": "reported_share",
    },
    "cold": {
        "to low bias": "gradients_to_x2",
        "bias": "bias_x2",
        "modes": "mode_error",
        "R-hat": "r_hat",
        "stuck": "stuck",
    },
}
"""Columns of the tables of a kernel beside others, by start: title and score."""
TITLES = {"warm": "from draws of the level itself", "cold": "from draws of the next noisier level"}


class Figure(NamedTuple):
    """A figure and its standard error; NaN for an error that cannot be told."""

    value: float
    error: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        if not np.isfinite(self.value):
            return "never"
        if not (np.isfinite(self.error) and self.error > 0):
            return f"{self.value:.3g}"
        digits = max(0, 1 - int(np.floor(np.log10(self.error))))
        if digits > 6:
            return f"{self.value:.2g}"
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


def resampled(data: xr.Dataset, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Return ``value`` averaged over seeds, and bootstrap samples of this, with the dimension ``sample``.

    A seed that never reached a low bias makes the average infinite.
    """
    rng, seeds = np.random.default_rng(seed), data.sizes["seed"]
    replicates = data.replicates.where(~data.replicates.isnull(), data.value)  # what is not resampled varies by seed
    samples = []
    for _ in range(BOOTSTRAP):
        chosen = rng.integers(seeds, size=seeds)
        which = rng.integers(data.sizes["replicate"], size=seeds)
        picked = [replicates.isel(seed=s, replicate=r, drop=True) for s, r in zip(chosen, which, strict=True)]
        samples.append(sum(picked[1:], picked[0]) / seeds)
    return data.value.mean("seed", skipna=False), xr.concat(samples, "sample")


def figure(data: xr.Dataset, statistic: Callable[[xr.DataArray], Any]) -> Figure:
    """Return a statistic of the values and its error; ``statistic`` reduces all dimensions but ``sample``."""
    value, samples = resampled(data)
    return _figure(statistic(value), statistic(samples))


def _figure(value: Any, samples: Any) -> Figure:
    samples = np.asarray(samples, dtype=float)
    return Figure(float(value), float(samples.std(ddof=1)) if np.all(np.isfinite(samples)) else float("nan"))


def leaderboard(data: xr.Dataset) -> pd.DataFrame:
    """Return the table of contenders, best first.

    Columns, each a :class:`Figure`, over the cells that all contenders have: ``ESS``, the geometric mean over targets
    and levels of the least bulk ESS for 1,000 gradients per chain, warm start; ``low bias``, the share of cells in
    which the bias squared of ``x^2`` stays under .01, warm, and ``low bias, cold``; ``bias, cold``, the geometric mean
    of the final bias squared of ``x^2``; ``modes, cold``, the mean error of the weights of modes; ``acceptance``,
    ``stuck`` and ``adaptation``; ``own count``, the gradients that the kernel reports as a share of those counted;
    ``cells``, the share of the cells in which its budget lasted.
    """
    value, samples = resampled(data)
    there = value.sel(score="gradients").notnull()
    common = common_cells(value)
    value, samples = (each.where(common) for each in (value, samples))
    rows = {}
    for name in data.contender.values:
        both = value.sel(contender=name), samples.sel(contender=name)
        rows[str(name)] = {title: _figure(*(reduce(each) for each in both)) for title, reduce in STATISTICS.items()}
        rows[str(name)]["cells"] = Figure(float(there.sel(contender=name).mean()), 0.0)
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.loc[sorted(rows, key=lambda name: -np.nan_to_num(rows[name]["ESS"].value))]


def common_cells(value: xr.DataArray) -> xr.DataArray:
    """Return which cells all contenders have, so that they are compared on the same ones; all cells if there are none.

    ``value`` is the first result of :func:`resampled`.
    """
    common = value.sel(score="gradients").notnull().all("contender")
    return common if bool(common.any()) else xr.ones_like(common)


def _pick(score: str, start: str) -> Callable[[xr.DataArray], xr.DataArray]:
    return lambda values: values.sel(score=score, start=start)


def _over_cells(
    reduce: Callable[[xr.DataArray], xr.DataArray], score: str, start: str
) -> Callable[[xr.DataArray], Any]:
    def act(values: xr.DataArray) -> Any:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return reduce(_pick(score, start)(values))

    return act


CELLS = ("target", "difficulty")


def geometric_mean(values: xr.DataArray) -> xr.DataArray:
    """Return the geometric mean over targets and levels."""
    logs: xr.DataArray = np.log(values.clip(min=1e-12))  # type: ignore[assignment]
    found: xr.DataArray = np.exp(logs.mean(CELLS))  # type: ignore[assignment]
    return found


def _share_of_finite(values: xr.DataArray) -> xr.DataArray:
    return xr.where(values.isnull(), np.nan, np.isfinite(values).astype(float)).mean(CELLS)


def _mean(values: xr.DataArray) -> xr.DataArray:
    return values.mean(CELLS)


STATISTICS: dict[str, Callable[[xr.DataArray], Any]] = {
    "ESS": _over_cells(geometric_mean, "ess_bulk_per_gradient", "warm"),
    "tail ESS": _over_cells(geometric_mean, "ess_tail_per_gradient", "warm"),
    "low bias": _over_cells(_share_of_finite, "gradients_to_x2", "warm"),
    "low bias, cold": _over_cells(_share_of_finite, "gradients_to_x2", "cold"),
    "bias, cold": _over_cells(geometric_mean, "bias_x2", "cold"),
    "modes, cold": _over_cells(_mean, "mode_error", "cold"),
    "acceptance": _over_cells(_mean, "acceptance", "warm"),
    "stuck": _over_cells(_mean, "stuck", "cold"),
    "adaptation": _over_cells(_mean, "adaptation_share", "warm"),
    "own count": _over_cells(_mean, "reported_share", "warm"),
}


class Stability(NamedTuple):
    """Whether the ranking by ESS changes with the seed.

    Attributes:
        pairs: number of pairs of contenders.
        swapped: pairs whose order is not the same with every seed.
        beyond: pairs that one seed separates by more than two standard errors in one direction, and another in the
            other.
        furthest: the largest distance, in standard errors, by which any seed puts a pair in the order opposite to that
            of all seeds together.
    """

    pairs: int
    swapped: int
    beyond: int
    furthest: float


def stability(data: xr.Dataset) -> Stability:
    """Return whether the ranking of contenders by ESS for 1,000 gradients changes with the seed beyond its errors."""
    value = _pick("ess_bulk_per_gradient", "warm")(data.value)
    replicates = _pick("ess_bulk_per_gradient", "warm")(data.replicates)
    complete = ~value.isnull().any("seed")
    by_seed = np.log(geometric_mean(value.where(complete)).transpose("contender", "seed").to_numpy())
    again = geometric_mean(replicates.where(complete)).transpose("contender", "seed", "replicate")
    errors = np.log(again.to_numpy()).std(-1)
    pairs = [(i, j) for i in range(len(by_seed)) for j in range(i) if np.isfinite([by_seed[i], by_seed[j]]).all()]
    swapped = beyond = 0
    furthest = 0.0
    for i, j in pairs:
        apart = (by_seed[i] - by_seed[j]) / np.sqrt(errors[i] ** 2 + errors[j] ** 2)
        swapped += apart.min() < 0 < apart.max()
        beyond += apart.min() < -2 and apart.max() > 2
        furthest = max(furthest, float(np.max(-apart * np.sign(apart.mean()))))
    return Stability(len(pairs), int(swapped), int(beyond), furthest)


def comparison(data: xr.Dataset) -> Group:
    """Return tables for a terminal, of each target and of the warm and the cold start, that fit into 80 columns.

    They have a row for each contender, averaged over levels and seeds. ESS is the least effective number of independent
    draws for 1,000 gradients per chain.
    """
    value, samples = resampled(data)
    tables = []
    for target, (start, columns) in product(data.target.values, COLUMNS.items()):
        title = f"{escape(str(target))}, {TITLES[start]}"
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
        for name in ("kernel", *columns):
            table.add_column(name, overflow="fold")  # a figure that is cut is none
        for name in data.contender.values:
            chosen = [each.sel(target=target, contender=name) for each in (value, samples)]
            reduced = (_over_cells(_over_levels, score, start) for score in columns.values())
            cells = [str(_figure(*(reduce(each) for each in chosen))) for reduce in reduced]
            table.add_row(escape(str(name)), *cells)
        tables.append(table)
    return Group(f"{int(data.budget.max())} gradients per chain", *tables)


def _over_levels(values: xr.DataArray) -> xr.DataArray:
    """The mean over levels, those that are infinite included."""
    return values.mean("difficulty")
