"""Claim: what is stored of every benchmark target is exact, or agrees between two kernels.

    python -m benchmarks references [--targets digit_3 cubes_2] [--chains 16] [--draws 128]

Targets in closed form and in the plane take minutes. Pictures are run by HMC and NUTS, at each of their levels, from
chains that were annealed apart. Each kernel gives a reference, with errors by ArviZ's effective sample sizes; the two
are compared, and their average is stored inside the package.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
import xarray as xr

from benchmarks.harness import Record, check_choice, say
from bridges.arviz.convert import arviz
from bridges.blackjax import HMC, NUTS
from ppl_diffusion import Ladder, Trace, anneal
from ppl_diffusion.files import versions
from ppl_diffusion.potentials.target import Target
from ppl_diffusion.sampling.kernel import Kernel
from ppl_diffusion.targets import Expectation, Reference, stored
from ppl_diffusion.targets.analytic import ANALYTIC, LEVELS
from ppl_diffusion.targets.learned import LEARNED
from ppl_diffusion.targets.planar import by_quadrature
from ppl_diffusion.targets.reference import functions

LEAPFROGS = {"digit_3": 4, "digit_completion": 4, "cubes_2": 7, "cubes_3": 7}
"""Leapfrog steps of HMC on each picture: trajectories of about a quarter of a turn in the noise. After half a turn,
energies would be what they were."""

NAMES = (*ANALYTIC, *LEARNED)
FOLDER = stored.path_of("").parent
QUICK = {"targets": ["mixture_2", "digit_3"], "chains": 4, "draws": 4, "warm_up": 1, "folder": "runs/quick"}
EVERY = 8
"""Levels between the rungs on the way to the level of a reference."""

KEPT = 32
"""Draws of pictures that are stored at each level."""

PLANAR_DRAWS = 2_000
"""Draws of learned targets in the plane that are stored at each level."""


def kernels(name: str) -> dict[str, Kernel]:
    """Return the two kernels that run on a target of pictures."""
    return {"HMC": HMC(leapfrogs=LEAPFROGS[name]), "NUTS": NUTS(max_doublings=3)}


class Measured(NamedTuple):
    """An expectation as one kernel measures it, with the effective sample size and R-hat of every coordinate."""

    expectation: Expectation
    ess: np.ndarray
    r_hat: np.ndarray


def walked(
    potential: Target, kernel: Kernel, level: int, *, chains: int, draws: int, warm_up: int, seed: int, file: Path
) -> Trace:
    """Return draws at a level, of chains that were annealed down to it; ``file`` keeps the unfinished walk."""
    above = range(len(potential.schedule) - 1, level, -EVERY)
    ladder = Ladder(levels=(*above, level), steps=(*(1 for _ in above), warm_up))
    file.parent.mkdir(parents=True, exist_ok=True)
    return anneal(potential, kernel, ladder=ladder, chains=chains, draws=draws, seed=seed, checkpoint=file)


def measured(trace: Trace) -> dict[str, Measured]:
    """Return what a reference has the expectations of, measured on a trace; also the mean of the coordinates."""
    log_p = trace.sample_stats["lp"].to_numpy().astype(np.float64)
    found = functions(trace.positions, log_p)
    found["mean of x"] = trace.positions.reshape(*log_p.shape, -1).mean(-1)
    return {name: _measure(values) for name, values in found.items()}


def _measure(values: np.ndarray) -> Measured:
    """Measure the mean of ``values (chains, draws, ...)`` over chains and draws."""
    library, shape = arviz(), values.shape[2:]
    data = xr.Dataset({"x": (("chain", "draw", "of"), values.reshape(*values.shape[:2], -1))})
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        ess, r_hat = (f["x"].to_numpy().reshape(shape) for f in (library.ess(data, method="mean"), library.rhat(data)))
    variance = values.var((0, 1), ddof=1)
    return Measured(Expectation(values.mean((0, 1)), np.sqrt(variance / ess), variance), ess, r_hat)


def averaged(one: Measured, other: Measured) -> Expectation:
    """Return the average of two measurements, each weighed by its median effective sample size."""
    share = float(np.median(one.ess) / (np.median(one.ess) + np.median(other.ess)))
    a, b = one.expectation, other.expectation
    value, variance = (share * p + (1 - share) * q for p, q in ((a.value, b.value), (a.variance, b.variance)))
    return Expectation(value, np.hypot(share * a.error, (1 - share) * b.error), variance)


def agreement(one: Mapping[str, Measured], other: Mapping[str, Measured]) -> dict[str, float]:
    """Return how far two kernels are apart, in standard errors, and the largest R-hat of the two.

    Of numbers it is the difference; of the coordinates, the root mean square, which is about 1 if they agree.
    """
    found: dict[str, float] = {}
    for name in one:
        a, b = one[name].expectation, other[name].expectation
        z = (a.value - b.value) / np.hypot(a.error, b.error)
        found[name] = float(np.sqrt(np.mean(z**2)))
        found[f"R-hat of {name}"] = float(max(np.max(one[name].r_hat), np.max(other[name].r_hat)))
    return found


def combined(traces: Mapping[str, Trace]) -> tuple[Reference, dict[str, float]]:
    """Return a reference of a level from the traces of two kernels, and how well they agree."""
    (first, one), (second, two) = traces.items()
    a, b = measured(one), measured(two)
    pooled = {name: averaged(a[name], b[name]) for name in a}
    effective = min(float(np.min(e.variance / np.square(e.error))) for e in pooled.values())
    chains, draws = one.positions.shape[:2]
    kept = np.concatenate([_kept(trace, KEPT // 2) for trace in (one, two)])
    spread = pooled["x"].variance
    reference = Reference(
        pooled["x"],
        pooled["x^2"],
        pooled["log p"],
        pooled["(log p)^2"],
        made=f"{first} and {second}, {chains} chains of {draws} draws each",
        effective_draws=effective,
        condition_number=float(spread.max() / spread.min()),
        draws=kept,
    )
    return reference, agreement(a, b)


def _kept(trace: Trace, count: int) -> np.ndarray:
    """Return draws ``(count, *event_shape)`` of different chains, and of different times as far as possible."""
    chains, draws = trace.positions.shape[:2]
    rows = np.arange(min(count, chains * draws))
    return trace.positions[rows % chains, draws - 1 - (rows // chains) * (draws // 2) % draws]


def of_pictures(name: str, runs: Path, **settings: Any) -> tuple[dict[int, Reference], dict[str, Any]]:
    """Run both kernels at every level of a target; return references, and how well the kernels agree, by level."""
    learned, references, agreements = LEARNED[name], {}, {}
    potential = learned.build()
    for level in learned.levels:
        traces = {}
        for number, (kernel, built) in enumerate(kernels(name).items()):
            file, seed = runs / "references" / f"{name}-{level}-{kernel}.walk", 1000 * number + level
            traces[kernel] = walked(potential, built, level, seed=seed, file=file, **settings)
        references[level], agreements[str(level)] = combined(traces)
        shown = {key: round(value, 2) for key, value in agreements[str(level)].items()}
        say(f"{name} level {level}: {references[level].effective_draws:.0f} effective draws, {shown}")
    return references, agreements


def references_of(name: str, runs: Path, **settings: Any) -> tuple[dict[int, Reference], dict[str, Any]]:
    """Return the references of a target by level, and how well two kernels agree where they are not exact."""
    if name in ANALYTIC:
        potential, law = ANALYTIC[name][0]()
        return {level: law.reference(potential, level) for level in LEVELS}, {}
    learned = LEARNED[name]
    if learned.modes is None:
        return of_pictures(name, runs, **settings)
    potential, found = learned.build(), {}
    for level in learned.levels:
        locations = potential.schedule.alpha(level) * learned.modes
        found[level] = by_quadrature(potential, level, locations=locations, draws=PLANAR_DRAWS)
    return found, {}


def main(
    record: Record,
    targets: Annotated[list[str], typer.Option(help="Targets whose references are made.")] = list(NAMES),  # noqa: B006
    chains: Annotated[int, typer.Option(min=4, help="Chains of each kernel, on pictures.")] = 16,
    draws: Annotated[int, typer.Option(min=4, help="Recorded draws of each chain.")] = 128,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before them, at the same level.")] = 8,
    folder: Annotated[Path, typer.Option(file_okay=False, help="Folder of the references.")] = Path(str(FOLDER)),
) -> None:
    """Make the references of every target, and write them into the package."""
    check_choice("--targets", targets, NAMES)
    for name in targets:
        found, agreements = references_of(name, record.runs, chains=chains, draws=draws, warm_up=warm_up)
        command = f"python -m benchmarks references --targets {name}"
        if agreements:
            command += f" --chains {chains} --draws {draws} --warm-up {warm_up}"
            record.write("references", record.read("references") | {name: agreements})
        folder.mkdir(parents=True, exist_ok=True)
        header = {"name": name, "command": command, "versions": json.dumps(versions())}
        stored.write(name, found, header | {"agreement": json.dumps(agreements)}, folder)
        say(f"{name}: {'two kernels' if agreements else found[min(found)].made}")
        for file in (record.runs / "references").glob(f"{name}-*.walk"):
            file.unlink()
