"""Claim: how a kernel mixes on pictures depends on the noise level first, and the trace says where it does not.

    python -m benchmarks mixing [--model cubes] [--chains 4] [--draws 200]

An annealed walk provides starting points at five levels. From these every kernel adapts its step size and records draws
at that level. Reported are the acceptance rate; by ArviZ the effective sample size per thousand gradients and R-hat,
the worst of energy, mean and random projections; and the warnings of ``diagnose``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, check_choice, say
from bridges.arviz import diagnose
from bridges.arviz.diagnose import WORST_COORDINATE
from bridges.blackjax import HMC, MALA, NUTS, UHMC, ULA
from ppl_diffusion import Ladder, Potential, Trace, anneal, load

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
QUICK = {"model": "digits", "chains": 2, "draws": 20, "warm_up": 2, "levels": [98], "kernels": ["ULA", "HMC"]}
MIXED = 1.05
"""R-hat below which chains count as mixed."""


def states(potential: Potential, levels: Sequence[int], *, chains: int) -> dict[int, np.ndarray]:
    """Return positions ``(chains, *event_shape)`` of annealed HMC at each of the levels."""
    found: dict[int, np.ndarray] = {}
    begun, top = None, len(potential.schedule) - 1
    for seed, level in enumerate(levels):
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
            axes.plot(list(row), [one[key] or np.nan for one in row.values()], ".-", label=name)
        axes.set(title=key, xlabel="noise level", yscale=scale)
        axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(MIXED, color="grey", lw=0.8, ls=":")
    axes.legend(fontsize=7, frameon=False)
    return figure


def main(
    record: Record,
    model: Annotated[str, typer.Option(help=f"Of {', '.join(MODELS)}.")] = "cubes",
    chains: Annotated[int, typer.Option(min=2, help="Chains of each walk.")] = 4,
    draws: Annotated[int, typer.Option(min=20, help="Recorded draws of each chain.")] = 200,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before them, which adapt the step size.")] = WARM_UP,
    levels: Annotated[list[int], typer.Option(min=0, help="Noise levels, from the noisiest down.")] = list(LEVELS),  # noqa: B006
    kernels: Annotated[list[str], typer.Option(help="Kernels to run.")] = list(KERNELS),  # noqa: B006
) -> None:
    """Run every kernel at every level; write the figures and a picture."""
    check_choice("--model", [model], MODELS)
    check_choice("--kernels", kernels, KERNELS)
    potential = MODELS[model]()
    begun = states(potential, levels, chains=chains)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name in kernels:
        for level in levels:

            def row(name: str = name, level: int = level) -> dict[str, Any]:
                ladder = Ladder(levels=(level,), steps=warm_up)
                settings: dict[str, Any] = {"chains": chains, "draws": draws, "seed": level, "init": begun[level]}
                return figures(anneal(potential, KERNELS[name], ladder=ladder, **settings))

            settings = {"model": model, "chains": chains, "draws": draws, "warm-up": warm_up, "levels": levels}
            found = record.kept(f"mixing/{name}-{level}", settings, row)
            rows.setdefault(name, {})[str(level)] = found
            shown = {key: round(value, 3) for key, value in found.items() if isinstance(value, float)}
            say(f"{name} {level} {shown}")
    record.write("mixing", {"model": model, "chains": chains, "draws": draws, "rows": rows})
    record.draw("mixing", picture(rows))
