"""The diagnosis of a run: statistics of its rungs and recorded draws, and warnings in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from ppl_diffusion.potentials.circulation import NOTABLE_WORK
from ppl_diffusion.sampling.importance import effective_sample_size
from ppl_diffusion.sampling.trace import Trace

from .convert import was_resampled

LOW_ESS = 0.1
"""ESS of one rung's log-weight increments, as a share of the chains, below which resampling is not recommended."""

NOTABLE_R_HAT = 1.1
"""R-hat above which it is spoken of in any case."""

GROUP_LIMIT = 1.1
"""R-hat of groups of families above which they disagree. An ESS of 100 gives more than 1.07 once in 100 runs."""

LARGE_ERROR = 0.5
"""Error of the log-normaliser, in nats, above which the shares that weights give are not called right."""

FEWEST_DRAWS = 20
"""Fewest recorded draws for which R-hat and ESS are reported: short stationary chains give false alarms."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The findings of :func:`diagnose`; ``print`` shows them as tables and sentences.

    Attributes:
        rungs: one row per rung (dimension ``rung``): ``level``, ``acceptance``, ``step``, ``diverging``, ``nonfinite``
            (counts over all chains), ``jump`` (mean length of a step), ``ess`` (of the weights, in chains),
            ``spread`` (standard deviation of the log-weight increments, nats), ``ancestors``
            (starting chains that have descendants), ``drift`` (change of the mean energy over the second half of the
            rung, in standard errors), ``stuck`` (chains that never moved). A value that is not available is NaN.
        draws: per scalar (dimension ``variable``): ``r_hat``, ``r_hat_limit`` (the largest that chance and
            autocorrelation explain), ``ess_bulk``, ``ess_tail``; empty with too few draws. If chains were resampled,
            these are of families of relatives, see ``bridges.arviz.summary``. ``r_hat_chains`` and ``limit_chains``
            are of single chains in any case.
        warnings: one sentence per problem; empty when nothing suspicious was found.
        log_normaliser, log_normaliser_error: those of the trace, in nats.
    """

    rungs: xr.Dataset
    draws: xr.Dataset
    warnings: tuple[str, ...]
    log_normaliser: float
    log_normaliser_error: float

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
                r_hat = float(row.r_hat)
                rows.append([str(name), f"{r_hat:.3f}" if r_hat < 1e4 else f"{r_hat:.0e}", *sizes])
            text += "\n\n" + _table(rows)
        error = self.log_normaliser_error
        if np.isfinite(self.log_normaliser) and not np.isnan(error):
            known = f"+- {error:.2g}" if np.isfinite(error) else "with an unknown error: one family has all the weight"
            rough = " (rough)" if LARGE_ERROR < error < np.inf else ""
            text += f"\n\nlog-normaliser {self.log_normaliser:.6g} {known}{rough}"
        quiet = "nothing suspicious was found"
        if not self.draws.sizes.get("variable", 0):
            quiet += f" on the way (R-hat and ESS need two chains, {FEWEST_DRAWS} draws)"
        return text + "".join(f"\n* {sentence}" for sentence in self.warnings or (quiet,))


def warning_sentences(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset) -> list[str]:
    """Return the warnings about a trace; ``rungs`` and ``draws`` are the datasets of a :class:`Diagnosis`."""
    chains, count = trace.positions.shape[:2]
    steps = trace.attributes["steps"]
    found = [str(sentence) for sentence in trace.attributes.get("warnings", [])]
    still = _is_still(trace)
    if still:
        found.append("no MCMC step was taken: reverse diffusion is right for mixtures, not for products or quotients")
    elif not trace.attributes["adjusted"]:
        found.append("the kernel is unadjusted: its draws, and any weights, are biased by the step size")
    found += _circulation_warnings(trace) + _failure_warnings(trace, rungs)
    stuck = _count_stuck(trace)
    if stuck and steps[-1] + count > 3:
        found.append(f"{stuck:.0f} of {chains} chains did not move at the end: ESS and R-hat do not show that")
    away = _runaway(trace)
    if away:
        return [*found, away]
    drift = float(np.nan_to_num(rungs.drift[-1]))
    if abs(drift) > 5 and steps[-1] > 1:
        found.append(f"the energy still drifted at the last rung ({drift:+.1f} standard errors): take more steps")
    weights = [] if still else _weight_warnings(trace, rungs)
    found += weights
    if draws.sizes.get("variable", 0):
        found += _mixing_warnings(trace, draws, weights_fail=bool(weights))
    return found


def _is_still(trace: Trace) -> bool:
    """Whether the kernel leaves chains where they are; traces of before this was recorded have rungs without steps."""
    steps, moves = trace.attributes["steps"], trace.stats.jump_distance
    return bool(trace.attributes.get("still", not any(steps) and not moves.notnull().any()))


def _circulation_warnings(trace: Trace) -> list[str]:
    """A sentence on a score that is not a gradient, which a kernel that accepts by work cannot leave invariant."""
    measured = trace.attributes.get("circulation") or {}
    nats = float(measured.get("nats", 0.0))
    if not nats > NOTABLE_WORK or not trace.attributes["adjusted"]:
        return []
    return [
        f"the score is not a gradient: its work round loops of a leapfrog's length is {nats:.2g} nats, "
        f"{measured['share']:.0%} of that along their sides, and no density is left invariant; take smaller steps, or "
        "train an energy from it, train(config, teacher=...)"
    ]


RUNAWAY = 5.0
"""Standard deviation of chains in one direction, relative to the median of the others, of chains that run away."""


def _runaway(trace: Trace) -> str | None:
    """A sentence if the last density has no tails in some direction, and chains are on their way there."""
    levels = trace.attributes.get("not_normalisable", [])
    if trace.attributes["levels"][-1] not in levels:
        return None
    x = trace.positions[:, -1].reshape(len(trace.positions), -1)
    x = x[np.isfinite(x).all(1)]
    if min(x.shape) < 2:
        return None
    spreads = np.linalg.svd(x - x.mean(0), compute_uv=False) / np.sqrt(len(x) - 1)
    typical = float(np.median(spreads[1:]))  # of the others: in two dimensions the median would be half of the largest
    if not spreads[0] > RUNAWAY * typical:
        return None
    return (
        f"chains run away along one direction (standard deviation {spreads[0]:.3g} there, {typical:.3g} in the median "
        "of the others), in which the density is not normalisable: draws and weights mean nothing, lower the exponent "
        "of the denominator (or the guidance scale)"
    )


def _failure_warnings(trace: Trace, rungs: xr.Dataset) -> list[str]:
    """Sentences on low acceptance, failed energies and divergences, along the ladder and in the recorded draws."""
    found, steps = [], np.array(trace.attributes["steps"])
    acceptance, recorded = rungs.acceptance.to_numpy(), trace.sample_stats
    low = np.flatnonzero((steps > 0) & (acceptance < 0.2))
    if len(low):
        rows = f"{len(low)} rung{'s' * (len(low) > 1)}"
        found.append(
            f"acceptance is under .2 on {rows} (first at level {int(rungs.level[low[0]])}): take smaller steps"
        )
    rates = recorded.acceptance_rate.to_numpy() if "acceptance_rate" in recorded else np.array([])
    if rates.size >= FEWEST_DRAWS and float(rates.mean()) < 0.2:
        found.append("acceptance is under .2 in the recorded draws: take smaller steps")
    for name, words in (
        ("nonfinite", "energies or gradients were not finite and were refused{where}: look at the potential"),
        ("diverging", "trajectories diverged{where}: take smaller steps, or look at the potential"),
    ):
        counts = np.nan_to_num(rungs[name].to_numpy())
        drawn = float(np.nansum(recorded[name])) if name in recorded else 0.0
        if counts.sum() + drawn:
            first = f"first at level {int(rungs.level[np.flatnonzero(counts)[0]])}" if counts.any() else ""
            places = filter(None, [first, f"{drawn:.0f} of them in the recorded draws" if drawn else ""])
            where = f" ({', '.join(places)})"
            found.append(f"{counts.sum() + drawn:.0f} {words.format(where=where)}")
    return found


def _mixing_warnings(trace: Trace, draws: xr.Dataset, *, weights_fail: bool) -> list[str]:
    """Sentences on R-hat and the effective sample size of the recorded draws.

    Chains that stay in their modes are as they should be if the weights have set the shares of the modes: that is, they
    were used, from a start of known density, through an adjusted kernel, and nothing is said against them.
    """
    found, resampled, init = [], was_resampled(trace), _started_at_init(trace)
    sound = not weights_fail and trace.attributes["adjusted"] and trace.log_normaliser_error <= LARGE_ERROR
    weighted = resampled and not init and sound
    families_apart = draws.r_hat.where(draws.r_hat > draws.r_hat_limit)
    apart = families_apart if weighted else draws.r_hat_chains.where(draws.r_hat_chains > draws.limit_chains)
    if weighted and apart.notnull().any():
        found.append(
            f"R-hat of groups of chains without common ancestors is up to {float(apart.max()):.2f}: the weights gave "
            "the modes shares that differ from group to group, take more chains or more rungs"
        )
    elif apart.notnull().any():
        worst = float(apart.max())
        shares = "the weights" if resampled else "the path down the ladder"
        shares = f"init= and {shares}" if init else shares
        found.append(
            f"R-hat of the recorded draws is up to {worst:.2f}: each chain stays in its mode, or takes too few "
            f"steps, and the shares of the modes are those that {shares} gave them"
        )
    elif float(draws.r_hat.max()) > NOTABLE_R_HAT:
        found.append(
            f"R-hat of the recorded draws is up to {float(draws.r_hat.max()):.2f}, as chains of so few and so "
            "correlated draws may have by chance: record more draws to tell"
        )
    least = float(draws.ess_bulk.min())
    if least < 100:
        more = "take more chains" if resampled else "record more draws or chains"
        found.append(f"the recorded draws are worth {least:.0f} independent ones: {more}")
    return found


def _started_at_init(trace: Trace) -> bool:
    """Whether positions to start from were given; in traces of before this was recorded, by log-weights of zero."""
    start = trace.stats.log_weight[0].to_numpy()
    return bool(trace.attributes.get("init", not np.any(start[np.isfinite(start)])))


def _weight_warnings(trace: Trace, rungs: xr.Dataset) -> list[str]:
    """At most one sentence on the importance weights: meaningless, useful, or a collapsed population."""
    chains = trace.positions.shape[0]
    spreads, ancestors = rungs.spread.to_numpy()[1:], float(rungs.ancestors[-1])
    few = f"only {ancestors:.0f} of {chains} ancestors are left: the population has collapsed, draws are copies"
    collapsed = [few] if chains > 1 and ancestors < max(2.0, 0.1 * chains) else []
    if chains < 2 or not len(spreads) or not np.any(np.isfinite(spreads)):
        return collapsed
    typical, worst = float(np.nanmedian(spreads)), float(np.nanmax(spreads))
    spread = f"log-weights spread {typical:.2g} nats a rung (up to {worst:.2g} at level "
    spread += f"{int(rungs.level[1 + int(np.nanargmax(spreads))])})"
    start, *others = (effective_sample_size(row) for row in trace.stats.log_weight.to_numpy())
    few_left = max(LOW_ESS * chains, 2)
    uneven = min(others) < few_left
    biased = "" if trace.attributes["adjusted"] else ", approximately"
    resample = trace.attributes.get("resample")
    if worst > 3 and uneven:
        unused = resample is None
        advice = "weights are meaningless" if unused else "the weights that were used are meaningless: resample=None"
        astray = ", or reverse steps lead astray" if trace.attributes.get("reverse_step") else ""
        return [f"{spread}: the energies do not agree between levels, or the ladder is too coarse{astray}; {advice}"]
    if resample is None:
        left = float(rungs.ess[-1]) / chains
        if left > 0.9:
            return []
        if uneven:
            levels = rungs.level.to_numpy()
            coarse = len(levels) < levels[0] - levels[-1] + 1
            advice = ", take a ladder with more rungs before resample=0.5" if coarse else ""
            return [f"{spread}: resampling would leave few ancestors{advice}"]
        if start < few_left:
            return [
                f"{spread}, but the start density fits level {int(rungs.level[0])} badly, so that resampling would "
                "leave few ancestors: pass init= before resample=0.5"
            ]
        cost = "" if trace.attributes.get("reverse_step") else ", at no cost"
        return [
            f"{spread} and keep {left:.0%} of the chains: resample=0.5 would correct the shares of the "
            f"modes{biased}{cost}"
        ]
    return collapsed


def _count_stuck(trace: Trace) -> int:
    """Count the chains that did not move in the recorded draws, nor, if these are few, in the steps before them."""
    x = trace.positions.reshape(*trace.positions.shape[:2], -1)
    still = np.all(x == x[:, :1], axis=(1, 2))
    if trace.attributes["steps"][-1] > 0 and x.shape[1] < FEWEST_DRAWS:
        still &= trace.stats.jump_distance[-1].to_numpy() == 0
    return int(np.sum(still)) if trace.attributes["steps"][-1] > 0 or x.shape[1] > 1 else 0


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
