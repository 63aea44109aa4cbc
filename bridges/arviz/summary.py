"""Summaries of draws whose chains are relatives.

Resampling copies chains, so that errors computed for independent chains are too small. Chains that continue the same
starting chain are a family; families are nearly independent. From sums over families come the errors here, and they
contain what the weights have done to the shares of modes, and the correlation of successive draws.

Source: Variance Estimation in the Particle Filter (Lee and Whiteley, 2018), https://arxiv.org/abs/1509.00394;
Nested R-hat: Assessing the Convergence of MCMC When Running Many Short Chains (Margossian et al., 2024),
https://arxiv.org/abs/2110.13017;
Rank-Normalization, Folding, and Localization: An Improved R-hat (Vehtari et al., 2021),
https://arxiv.org/abs/1903.08008
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata

from ppl_diffusion.sampling.ancestry import mean_error
from ppl_diffusion.sampling.trace import Trace

from .convert import SCALARS, arviz, check_trace, to_inference_data, was_resampled

GROUPS = 4
"""Number of groups of families that R-hat compares, as many as there are chains in a usual run."""

FEW_FAMILIES = 20
"""Effective number of families below which their spread estimates an error badly."""


def summary(trace: Trace, *, var_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Summarise the recorded draws as ``az.summary`` does, with errors that respect the ancestry of chains.

    Args:
        trace: the trace of a run.
        var_names: variables of :func:`to_inference_data`; by default those of at most ``SCALARS`` coordinates.

    Returns:
        The table of ``az.summary``, not rounded, one row per scalar. If chains were resampled, ``mcse_mean``,
        ``mcse_sd``, ``ess_bulk``, ``ess_tail`` and ``r_hat`` are those of :func:`family_statistics`, and the column
        ``families`` has their number. Of fewer than 4 draws or 2 chains, only the columns that do not need more.

    Raises:
        TypeError: ``trace`` is not a Trace.
        ValueError: ``var_names`` has a variable that the trace lacks.
    """
    check_trace("summary", trace)
    library, data = arviz(), to_inference_data(trace)
    posterior, (chains, draws) = data["posterior"], trace.positions.shape[:2]
    names = [str(name) for name in posterior.data_vars] if var_names is None else list(var_names)
    if missing := set(names) - {*map(str, posterior.data_vars)}:
        raise ValueError(f"the trace has no variable {sorted(missing)[0]!r}: use those of {[*posterior.data_vars]}")
    if var_names is None:
        names = [name for name in names if posterior[name].size <= SCALARS * chains * draws]
    kind = "all" if draws >= 4 and chains >= 2 else "stats"  # R-hat and ESS need as many
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        table = library.summary(data, var_names=names, kind=kind, round_to="none")
    if kind == "all" and was_resampled(trace):
        family = trace.families
        scalars = np.concatenate([posterior[name].to_numpy().reshape(chains, draws, -1) for name in names], axis=-1)
        rows = [family_statistics(scalars[..., i], family) for i in range(scalars.shape[-1])]
        table = table.assign(**{column: [row[column] for row in rows] for column in rows[0]})
        table["families"] = len(np.unique(family))
    return table


def family_statistics(draws: np.ndarray, family: np.ndarray) -> dict[str, float]:
    """Return statistics of the draws ``(chains, draws)`` of a scalar; ``family (chains,)`` names relatives.

    The error of a mean is that of :func:`ppl_diffusion.sampling.ancestry.mean_error` over means of chains. An effective
    sample size is the variance of all draws over the square of this error, for ``ess_bulk`` of normalised ranks, for
    ``ess_tail`` the smaller one of the indicators of the 5 % and the 95 % quantile. ``r_hat`` compares four groups of
    families, of normalised ranks and of their distances from the median, whichever is larger: single chains may stay in
    their modes, since the weights have set the shares. With fewer than 20 families, in effect, an effective sample
    size is at most that of ArviZ.

    Returns:
        ``mcse_mean``, ``mcse_sd``, ``ess_bulk``, ``ess_tail``, ``r_hat``.
    """
    share = np.bincount(family) / len(family)
    few = 1 / np.sum(share**2) < FEW_FAMILIES
    ranks = normal_ranks(draws)
    low, high = (draws <= np.quantile(draws, q) for q in (0.05, 0.95))
    centred = draws - draws.mean()
    sd = draws.std()
    with np.errstate(all="ignore"):
        mean_ess, bulk, tail = (
            min(_effective_size(values.astype(float), family) for values in each)
            for each in ((draws,), (ranks,), (low, high))
        )
        square_error = float(mean_error((centred**2).mean(1), family))
        if few:
            library = arviz()
            mean_ess = min(mean_ess, float(library.ess(draws, method="mean")))
            bulk = min(bulk, float(library.ess(draws, method="bulk")))
            tail = min(tail, float(library.ess(draws, method="tail", prob=(0.05, 0.95))))
        return {
            "mcse_mean": float(sd / np.sqrt(mean_ess)),
            "mcse_sd": float(square_error / (2 * sd)),
            "ess_bulk": bulk,
            "ess_tail": tail,
            "r_hat": max(group_r_hat(z, family) for z in (ranks, normal_ranks(np.abs(draws - np.median(draws))))),
        }


def normal_ranks(draws: np.ndarray) -> np.ndarray:
    """Return the ranks of all draws, as quantiles of a normal distribution, in the shape of ``draws``."""
    return norm.ppf((rankdata(draws) - 0.375) / (draws.size + 0.25)).reshape(draws.shape)


def _effective_size(draws: np.ndarray, family: np.ndarray) -> float:
    error = float(mean_error(draws.mean(1), family))
    return float(draws.var() / error**2) if error > 0 else float("nan")


def group_r_hat(draws: np.ndarray, family: np.ndarray) -> float:
    """Return R-hat of the halves of groups of families: the mean of the draws' variance within them is compared with
    that plus the variance between their means. NaN if there are fewer families than groups."""
    names = np.unique(family)
    if len(names) < GROUPS:
        return float("nan")
    group, half = np.searchsorted(names, family) % GROUPS, draws.shape[1] // 2
    parts = [draws[group == g][:, at : at + half] for g in range(GROUPS) for at in (0, draws.shape[1] - half)]
    shares = np.array([part.size for part in parts]) / sum(part.size for part in parts)
    means, within = np.array([part.mean() for part in parts]), shares @ np.array([part.var() for part in parts])
    between = len(parts) / (len(parts) - 1) * (shares @ (means - shares @ means) ** 2)
    return float(np.sqrt(1 + between / within)) if within > 0 else float("nan")
