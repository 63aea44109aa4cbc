"""ArviZ's rank and energy plots of runs of many chains, some of them relatives.

A rank plot has a panel or a line for each chain: of more than 8, or of resampled ones, four groups of families are
compared instead, as R-hat does.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppl_diffusion.sampling.trace import Trace

from .convert import arviz, dotted_keys, was_resampled
from .diagnose import scalars_of
from .evidence import FEWEST_DRAWS
from .summary import GROUPS
from .words import Diagnosis

MOST_CHAINS, MOST_SCALARS = 8, 4
"""Chains that are shown one by one, and scalars."""

FEWEST_RANKS = 40
"""Fewest values of a group that have a rank plot."""


def plot_ranks(trace: Trace, found: Diagnosis) -> tuple[Figure, list[str], str] | None:
    """Plot the ranks of the scalars with the largest R-hat.

    Returns:
        The figure, the names of the scalars, and what is compared, in words; None if there is too little to compare.
    """
    scalars, grouped = scalars_of(trace)[0], was_resampled(trace) or len(trace.positions) > MOST_CHAINS
    parts = groups_of(trace) if grouped else [np.array([i]) for i in range(len(trace.positions))]
    size = min((len(part) for part in parts), default=0)
    if len(parts) < 2 or size * trace.positions.shape[1] < FEWEST_RANKS:
        return None
    names = list(scalars)
    if found.draws.sizes.get("variable", 0):
        order = np.argsort(-np.nan_to_num(found.draws.r_hat_chains.to_numpy()), kind="stable")
        names = [str(found.draws["variable"].to_numpy()[i]) for i in order]
    names = [name for name in names if np.isfinite(scalars[name]).all()][:MOST_SCALARS]
    if not names:
        return None
    values = {name: np.stack([scalars[name][part[:size]].ravel() for part in parts]) for name in names}
    words = f"{len(parts)} groups of {size} chains without common ancestors" if grouped else f"{len(parts)} chains"
    return _figure("plot_rank", {"posterior": values}, panels=len(names), kind="bars"), names, words


def groups_of(trace: Trace) -> list[np.ndarray]:
    """Return the chains of up to four groups of families, of about the same size each."""
    family = trace.families
    names, sizes = np.unique(family, return_counts=True)
    groups: list[list[int]] = [[] for _ in range(min(GROUPS, len(names)))]
    for name in names[np.argsort(-sizes, kind="stable")]:
        min(groups, key=len).extend(np.flatnonzero(family == name).tolist())
    return [np.array(group) for group in groups]


def plot_energies(trace: Trace) -> Figure | None:
    """Plot the energies of draws and their transitions; None if they were not recorded, or of too few draws."""
    energy = trace.sample_stats.get("energy")
    if energy is None or energy.sizes["draw"] < FEWEST_DRAWS or not np.isfinite(energy).all():
        return None
    values = energy.to_numpy()
    data = {"posterior": {"lp": trace.sample_stats.lp.to_numpy()}, "sample_stats": {"energy": values}}
    return _figure("plot_energy", data, panels=1, bfmi=False, textsize=9)


def _figure(name: str, groups: dict[str, Any], *, panels: int, **options: Any) -> Figure:
    """Call a plot of ArviZ, outside of pyplot where the version allows it; ``options`` are those of 0.23."""
    library, groups = arviz(), {group: dotted_keys(values) for group, values in groups.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if int(library.__version__.split(".")[0]) < 1:
            figure = Figure(figsize=(4 * min(panels, 2), 3 * -(-panels // 2)), layout="constrained")
            axes = figure.subplots(-(-panels // 2), min(panels, 2), squeeze=False).ravel()
            for left in axes[panels:]:
                left.set_axis_off()
            ax = axes[:panels] if panels > 1 else axes[0]
            getattr(library, name)(library.from_dict(**groups), ax=ax, show=False, **options)
            return figure
        plot = getattr(library, name)(library.from_dict(groups), backend="matplotlib")
        found = plot.viz["figure"].item()
        import matplotlib.pyplot as plt

        plt.close(found)
        return found
