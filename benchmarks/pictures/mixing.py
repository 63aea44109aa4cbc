"""Claim: how a kernel mixes on pictures depends on the noise level first, and the trace says where it does not.

    python -m benchmarks.pictures.mixing [--model cubes] [--chains 4] [--draws 200]

An annealed walk provides starting points at five levels. From these every kernel adapts its step size and records draws
at that level. Reported are the acceptance rate; by ArviZ the effective sample size per thousand gradients and R-hat,
the worst of energy, mean and random projections; and the warnings of ``diagnose``.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS, write
from bridges.arviz import diagnose
from bridges.arviz.diagnose import WORST_COORDINATE
from bridges.blackjax import HMC, MALA, NUTS, UHMC, ULA
from ppl_diffusion import Ladder, Potential, SamplingWarning, Trace, anneal, load

LEVELS = (80, 50, 20, 5, 0)
KERNELS: dict[str, Any] = {
    "ULA": ULA(),
    "MALA": MALA(),
    "UHMC": UHMC(),
    "HMC": HMC(),
    "NUTS": NUTS(max_doublings=4),
}
MODELS = {"cubes": lambda: load("cubes").given(x=0.5, y=0.5), "digits": lambda: load("digits").given(3)}
WARM_UP = 40
MIXED = 1.05
"""R-hat below which chains count as mixed."""


def states(potential: Potential, *, chains: int) -> dict[int, np.ndarray]:
    """Return positions ``(chains, *event_shape)`` of annealed HMC at each of the levels."""
    found: dict[int, np.ndarray] = {}
    begun, top = None, len(potential.schedule) - 1
    for seed, level in enumerate(LEVELS):
        ladder = Ladder(levels=(*range(top, level, -2), level), steps=3)
        begun = anneal(potential, HMC(), ladder=ladder, chains=chains, seed=seed, init=begun).positions[:, -1]
        found[level], top = begun, level
    return found


def figures(trace: Trace) -> dict[str, Any]:
    """Return the figures of one kernel at one level."""
    found = diagnose(trace)
    calls = int(trace.sample_stats.attrs["gradient_calls"])
    draws = found.draws.drop_sel(variable=WORST_COORDINATE)
    worst, least = float(draws.r_hat.max()), float(draws.ess_bulk.min())
    rates = trace.sample_stats.acceptance_rate.to_numpy()
    return {
        "acceptance": None if np.isnan(rates).all() else float(rates.mean()),
        "step": float(trace.sample_stats.step_size[0, -1]),
        "R-hat": worst,
        "ESS": least,
        "ESS for 1000 gradients": 1000 * least / (calls * trace.positions.shape[0]),
        "gradients a chain": calls,
        "mixed": worst < MIXED,
        "words": list(found.warnings),
    }


def picture(rows: dict[str, dict[str, dict[str, Any]]]) -> Figure:
    """Plot acceptance, effective sample size per thousand gradients, and R-hat by level."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = {"acceptance": "linear", "ESS for 1000 gradients": "log", "R-hat": "log"}
    for axes, (key, scale) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, row in rows.items():
            axes.plot(
                [str(level) for level in LEVELS], [row[str(level)][key] or np.nan for level in LEVELS], ".-", label=name
            )
        axes.set(title=key, xlabel="noise level", yscale=scale)
        axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(MIXED, color="grey", lw=0.8, ls=":")
    axes.legend(fontsize=7, frameon=False)
    return figure


def main() -> None:
    """Run every kernel at every level; write the figures and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="cubes")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore", SamplingWarning)
    potential = MODELS[options.model]()
    begun = states(potential, chains=options.chains)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name, kernel in KERNELS.items():
        for level in LEVELS:
            ladder = Ladder(levels=(level,), steps=WARM_UP)
            settings = {"chains": options.chains, "draws": options.draws, "seed": level, "init": begun[level]}
            row = figures(anneal(potential, kernel, ladder=ladder, **settings))
            rows.setdefault(name, {})[str(level)] = row
            print(name, level, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
    write("mixing", {"model": options.model, "chains": options.chains, "draws": options.draws, "rows": rows})
    picture(rows).savefig(RESULTS / "mixing.png", dpi=100)


if __name__ == "__main__":
    main()
