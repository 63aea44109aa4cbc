"""What is said of a run, in words: what its rungs and its recorded draws tell against believing it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.stats import f as f_distribution

from ppl_diffusion.trace import Trace
from ppl_diffusion.weights import effective_sample_size

FEW = 0.1
"""Share of the chains that the weights of one rung leave, of which resampling is of no use."""

FEWEST_DRAWS = 20
"""Recorded draws below which R-hat and ESS are not reported: they alarm on short stationary chains."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What :func:`diagnose` found; ``print`` it.

    Attributes:
        rungs: one row per rung (dimension ``rung``): ``level``, ``acceptance``, ``step``, ``diverging``, ``nonfinite``
            (counts over all chains), ``jump`` (mean length of a step), ``ess`` (of the weights, in chains),
            ``spread`` (standard deviation of the log-weight increments, nats), ``ancestors`` (distinct chains
            of the start that are left), ``drift`` (change of the mean energy over the second half of the rung, in
            standard errors), ``stuck`` (chains that never moved).
        draws: per scalar (dimension ``variable``): ``r_hat``, ``ess_bulk``, ``ess_tail``; empty for few draws.
        warnings: sentences; empty when nothing was found.
    """

    rungs: xr.Dataset
    draws: xr.Dataset
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        columns = {
            "level": "{:.0f}",
            "acceptance": "{:.2f}",
            "step": "{:.3g}",
            "diverging": "{:.0f}",
            "nonfinite": "{:.0f}",
            "jump": "{:.3g}",
            "ess": "{:.0f}",
            "spread": "{:.3g}",
            "ancestors": "{:.0f}",
            "drift": "{:.1f}",
            "stuck": "{:.0f}",
        }
        count = self.rungs.sizes["rung"]
        shown = range(count) if count <= 24 else sorted({*np.linspace(0, count - 1, 24).astype(int)})
        rows = [list(columns)]
        for i in shown:
            values = {name: float(self.rungs[name][i]) for name in columns}
            rows.append(["-" if np.isnan(v) else columns[name].format(v) for name, v in values.items()])
        text = _table(rows)
        if len(shown) < count:
            text += f"\n({len(shown)} of {count} rungs; all are in .rungs)"
        if self.draws.sizes.get("variable", 0):
            rows = [["recorded draws", "r_hat", "ess_bulk", "ess_tail"]]
            for name in self.draws["variable"].to_numpy():
                row = self.draws.sel(variable=name)
                sizes = [f"{float(row[kind]):.0f}" for kind in ("ess_bulk", "ess_tail")]
                rows.append([str(name), f"{float(row.r_hat):.3f}", *sizes])
            text += "\n\n" + _table(rows)
        quiet = "nothing suspicious was found"
        if not self.draws.sizes.get("variable", 0):
            quiet += f" on the way (R-hat and ESS need two chains, {FEWEST_DRAWS} draws)"
        return text + "".join(f"\n* {sentence}" for sentence in self.warnings or (quiet,))


def words(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset) -> list[str]:
    """Sentences on a trace whose figures by rung and by scalar are those of a :class:`Diagnosis`."""
    chains, count = trace.positions.shape[:2]
    steps = np.array(trace.attributes["steps"])
    found = [str(sentence) for sentence in trace.attributes.get("warnings", [])]
    if trace.attributes["kernel"].startswith("Still"):
        found.append("no MCMC step was taken: reverse diffusion is right for mixtures, not for products or quotients")
    elif not trace.attributes["adjusted"]:
        found.append("the kernel is unadjusted: its draws, and any weights, are biased by the step size")
    acceptance = rungs.acceptance.to_numpy()
    low = np.flatnonzero((steps > 0) & (acceptance < 0.2))
    if len(low):
        where = int(rungs.level[low[0]])
        rows = f"{len(low)} rung{'s' * (len(low) > 1)}"
        found.append(f"acceptance is under .2 on {rows} (first at level {where}): take smaller steps")
    nonfinite = float(np.nansum(rungs.nonfinite))
    if nonfinite:
        found.append(f"{nonfinite:.0f} energies or gradients were not finite and were refused: look at the potential")
    diverging = float(np.nansum(rungs.diverging))
    if diverging:
        found.append(f"{diverging:.0f} trajectories diverged: take smaller steps, or look at the potential")
    stuck = _stuck(trace)
    if stuck and steps[-1] + count > 3:
        found.append(f"{stuck:.0f} of {chains} chains did not move at the last rung: ESS and R-hat do not show that")
    drift = float(np.nan_to_num(rungs.drift[-1]))
    if abs(drift) > 5 and steps[-1] > 1:
        found.append(f"the energy still drifted at the last rung ({drift:+.1f} standard errors): take more steps")
    found += _weight_words(trace, rungs)
    if draws.sizes.get("variable", 0):
        worst = float(draws.r_hat.max())
        if worst > _highest_r_hat(chains, count, draws.sizes["variable"]):
            shares = "the path down the ladder" if trace.attributes.get("resample") is None else "the weights"
            found.append(
                f"R-hat of the recorded draws is up to {worst:.2f}: each chain stays in its mode, or takes too few "
                f"steps, and the shares of the modes are those that {shares} gave them"
            )
        least = float(draws.ess_bulk.min())
        if least < 100:
            found.append(f"the recorded draws are worth {least:.0f} independent ones: record more draws or chains")
    return found


def _weight_words(trace: Trace, rungs: xr.Dataset) -> list[str]:
    chains = trace.positions.shape[0]
    spreads = rungs.spread.to_numpy()[1:]
    if chains < 2 or not len(spreads) or not np.any(np.isfinite(spreads)):
        return []
    typical, worst = float(np.nanmedian(spreads)), float(np.nanmax(spreads))
    uneven = min(effective_sample_size(row) for row in trace.stats.log_weight.to_numpy()[1:]) < max(FEW * chains, 2)
    biased = "" if trace.attributes["adjusted"] else ", approximately"
    resample = trace.attributes.get("resample")
    if worst > 3 and uneven:
        unused = resample is None
        advice = "weights are meaningless" if unused else "the weights that were used are meaningless: resample=None"
        return [
            f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}): the energies do not agree between "
            f"levels, or the ladder is too coarse; {advice}"
        ]
    if resample is None:
        left = float(rungs.ess[-1]) / chains
        if left > 0.9:
            return []
        if uneven:
            levels = rungs.level.to_numpy()
            coarse = len(levels) < levels[0] - levels[-1] + 1
            advice = ", take a ladder with more rungs before resample=0.5" if coarse else ""
            return [
                f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}): resampling would leave few "
                f"ancestors{advice}"
            ]
        return [
            f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g}) and keep {left:.0%} of the chains: "
            f"resample=0.5 would correct the shares of the modes{biased}, at no cost"
        ]
    ancestors = float(rungs.ancestors[-1])
    if ancestors < max(2.0, 0.1 * chains):
        return [f"only {ancestors:.0f} of {chains} ancestors are left: the population has collapsed, draws are copies"]
    return []


def _stuck(trace: Trace) -> int:
    """Chains that moved neither in the steps of the last rung nor in recorded draws."""
    x = trace.positions.reshape(*trace.positions.shape[:2], -1)
    still = np.all(x == x[:, :1], axis=(1, 2))
    if trace.attributes["steps"][-1] > 0:
        still &= trace.stats.jump_distance[-1].to_numpy() == 0
    return int(np.sum(still)) if trace.attributes["steps"][-1] > 0 or x.shape[1] > 1 else 0


def _highest_r_hat(chains: int, count: int, variables: int) -> float:
    """Above what R-hat is no accident: 1.05, or what independent draws exceed once in a hundred times.

    The ratio of the variances between and within split chains follows an F distribution.
    """
    halves, length = 2 * chains, count // 2
    ratio = f_distribution.ppf(1 - 0.01 / variables, halves - 1, halves * (length - 1))
    return max(1.05, float(np.sqrt(1 + (ratio - 1) / length)))


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
