"""The diagnosis of a run: statistics of its rungs and recorded draws, and warnings in words."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import xarray as xr

from ppl_diffusion.potentials.circulation import NOTABLE_WORK
from ppl_diffusion.sampling.trace import Trace

from .convert import was_resampled
from .evidence import (
    FEWEST_DRAWS,
    LARGE_ERROR,
    count_stuck,
    diverged,
    find_weights,
    is_coarse,
    is_still,
    started_at_init,
    widest_directions,
)
from .tables import as_html, as_text, draw_table, list_in_html, rung_table
from .verdict import Verdict

NOTABLE_R_HAT = 1.1
"""R-hat above which it is spoken of in any case."""

GROUP_LIMIT = 1.1
"""R-hat of groups of families above which they disagree. An ESS of 100 gives more than 1.07 once in 100 runs."""


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
            are of single chains in any case; ``apart`` is the number of chains that stay away from the others,
            ``trend`` the probability that chance makes draws change as much from their first to their last third.
        warnings: one sentence per problem; empty when nothing suspicious was found.
        log_normaliser, log_normaliser_error: those of the trace, in nats.
        verdict: whether the run is to be believed.
    """

    rungs: xr.Dataset
    draws: xr.Dataset
    warnings: tuple[str, ...]
    log_normaliser: float
    log_normaliser_error: float
    verdict: Verdict

    def __str__(self) -> str:
        rows = rung_table(self.rungs)
        text, count = as_text(rows), self.rungs.sizes["rung"]
        if len(rows) - 1 < count:
            text += f"\n({len(rows) - 1} of {count} rungs; all are in .rungs)"
        if drawn := draw_table(self.draws):
            text += "\n\n" + as_text(drawn)
        if normaliser := self._normaliser():
            text += f"\n\n{normaliser}"
        return text + "".join(f"\n* {sentence}" for sentence in self._sentences()) + f"\n\n{self.verdict}"

    def _repr_html_(self) -> str:
        """For notebooks: the verdict first, and the tables."""
        reasons = list_in_html(self.verdict.reasons) + f"<p>{escape(self.verdict.advice)}</p>" * bool(
            self.verdict.advice
        )
        text = f"<div><p><strong>Verdict: {self.verdict.answer}</strong></p>{reasons}"
        text += f"<p>{escape(self._normaliser())}</p>{list_in_html(self._sentences())}"
        if drawn := draw_table(self.draws):
            text += as_html(drawn, "Recorded draws")
        return f"{text}{as_html(rung_table(self.rungs), 'Rungs')}</div>"

    def _normaliser(self) -> str:
        """The log-normaliser and its error in words; nothing if it is not known."""
        error = self.log_normaliser_error
        if np.isfinite(self.log_normaliser) and not np.isnan(error):
            known = f"+- {error:.2g}" if np.isfinite(error) else "with an unknown error: one family has all the weight"
            rough = " (rough)" if LARGE_ERROR < error < np.inf else ""
            return f"log-normaliser {self.log_normaliser:.6g} {known}{rough}"
        return ""

    def _sentences(self) -> tuple[str, ...]:
        """The warnings, or that there is none."""
        quiet = "nothing suspicious was found"
        if not self.draws.sizes.get("variable", 0):
            quiet += f" on the way (R-hat and ESS need two chains, {FEWEST_DRAWS} draws)"
        return self.warnings or (quiet,)


def warning_sentences(trace: Trace, rungs: xr.Dataset, draws: xr.Dataset) -> list[str]:
    """Return the warnings about a trace; ``rungs`` and ``draws`` are the datasets of a :class:`Diagnosis`."""
    chains, count = trace.positions.shape[:2]
    steps = trace.attributes["steps"]
    found = [str(sentence) for sentence in trace.attributes.get("warnings", [])]
    still = is_still(trace)
    if still:
        found.append("no MCMC step was taken: reverse diffusion is right for mixtures, not for products or quotients")
    elif not trace.attributes["adjusted"]:
        found.append("the kernel is unadjusted: its draws, and any weights, are biased by the step size")
    found += _circulation_warnings(trace) + _failure_warnings(trace, rungs)
    stuck = count_stuck(trace)
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


def _runaway(trace: Trace) -> str | None:
    """A sentence if the last density has no tails in some direction, and chains are on their way there."""
    found = widest_directions(trace)
    return (
        None
        if found is None
        else (
            f"chains run away along one direction (standard deviation {found[0]:.3g} there, {found[1]:.3g} in the "
            "median of the others), in which the density is not normalisable: draws and weights mean nothing, lower "
            "the exponent of the denominator (or the guidance scale)"
        )
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
        if name == "diverging":  # a trajectory that ends where the energy is not finite is told of above
            counts = np.maximum(counts - np.nan_to_num(rungs.nonfinite.to_numpy()), 0)
            drawn = float(np.sum(diverged(trace)))
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
    found, resampled, init = [], was_resampled(trace), started_at_init(trace)
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
        path = "exchanges so far" if "exchange" in trace.attributes else "the path down the ladder"
        shares = "the weights" if resampled else path
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


def _weight_warnings(trace: Trace, rungs: xr.Dataset) -> list[str]:
    """At most one sentence on the importance weights: meaningless, useful, or a collapsed population."""
    chains = trace.positions.shape[0]
    ancestors = float(rungs.ancestors[-1])
    few = f"only {ancestors:.0f} of {chains} ancestors are left: the population has collapsed, draws are copies"
    collapsed = [few] if chains > 1 and ancestors < max(2.0, 0.1 * chains) else []
    found = find_weights(trace, rungs)
    if found is None:
        return collapsed
    spread = (
        f"log-weights spread {found.typical:.2g} nats a rung (up to {found.worst:.2g} at level {found.worst_level})"
    )
    biased = "" if trace.attributes["adjusted"] else ", approximately"
    resample = trace.attributes.get("resample")
    if found.meaningless:
        unused = resample is None
        advice = "weights are meaningless" if unused else "the weights that were used are meaningless: resample=None"
        astray = ", or reverse steps lead astray" if trace.attributes.get("reverse_step") else ""
        return [f"{spread}: the energies do not agree between levels, or the ladder is too coarse{astray}; {advice}"]
    if resample is None:
        left = float(rungs.ess[-1]) / chains
        if left > 0.9:
            return []
        if found.uneven:
            advice = ", take a ladder with more rungs before resample=0.5" if is_coarse(rungs) else ""
            return [f"{spread}: resampling would leave few ancestors{advice}"]
        if found.start < found.few:
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
