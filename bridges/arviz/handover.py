"""What ArviZ's own ``diagnose`` covers is left to it, where the installed version has it (1.2 and later).

It counts divergences and saturated trees, and computes the E-BFMI of each chain. Its R-hat and ESS take chains as
independent and stationary, and are compared with limits for few long chains: those of :mod:`bridges.arviz.diagnose`
respect ancestry and short chains, and stay.

Source: Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo (Betancourt, 2016),
https://arxiv.org/abs/1604.00695
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ppl_diffusion.sampling.trace import Trace

from .convert import arviz
from .evidence import FEWEST_DRAWS


def arviz_findings(trace: Trace) -> dict[str, Any]:
    """Return what ``arviz.diagnose`` finds in the recorded draws; nothing without it, or of fewer than 20 draws.

    Returns:
        ``diverging`` and ``max_treedepth``, numbers of draws, and ``bfmi``, a number for each chain: those that ArviZ
        has found something to compute from.
    """
    library = arviz()
    chains, draws = trace.positions.shape[:2]
    if not hasattr(library, "diagnose") or draws < FEWEST_DRAWS or chains < 2:
        return {}
    stats = {name: values.to_numpy() for name, values in trace.sample_stats.items() if values.notnull().all()}
    if "diverging" in stats:
        stats["diverging"] = stats["diverging"].astype(bool)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of more chains than draws among others
        data = library.from_dict({"posterior": {"lp": trace.sample_stats.lp.to_numpy()}, "sample_stats": stats})
        _, found = library.diagnose(data, show_diagnostics=False, return_diagnostics=True)
    told = {"diverging": ("divergent", "n_divergent"), "max_treedepth": ("treedepth", "n_max")}
    counts = {name: int(found[kind][key]) for name, (kind, key) in told.items() if kind in found}
    return counts | ({"bfmi": np.asarray(found["bfmi"]["bfmi_values"]).tolist()} if "bfmi" in found else {})
