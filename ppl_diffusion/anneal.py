"""The walk: chains descend a ladder of noise levels, moved by an MCMC kernel at each.

    start     x ~ N(0, I/s), s the sum of the exponents: the composed density of pure noise
    at each rung, noisiest first:
      arrive    optionally by a reverse-diffusion step; weigh the change of density
      resample  if asked for and the weights have become uneven
      move      a number of kernel steps that leave the density of this level invariant
    at the last rung: record draws

At every level the composed energies define a legitimate density, so the walk is an annealing path that
ends in the target, whatever the path's densities are. This is the only loop in the library.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552;
weights: Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from . import proposals
from .arrays import outside_inference_mode
from .compose import check_quotient
from .kernel import Kernel, State, Still, Walker
from .potential import Potential
from .schedule import Ladder
from .trace import Trace, versions
from .weights import Weights

BLOCK = 25
"""Draws that are recorded at once, at most."""


class SamplingWarning(UserWarning):
    """Something about a run that its samples do not show."""


class Progress(NamedTuple):
    """What a progress callback is told after every rung, and after every block of recorded draws.

    Attributes:
        rung: rungs done.
        rungs: rungs in all.
        level: noise level of this rung.
        draw: draws recorded.
        draws: draws in all.
        acceptance_rate: mean over chains and steps; NaN for unadjusted kernels.
        ess: effective sample size of the weights on arrival, as a share of the chains.
    """

    rung: int
    rungs: int
    level: int
    draw: int
    draws: int
    acceptance_rate: float
    ess: float


@outside_inference_mode()
def anneal(
    potential: Potential,
    kernel: Kernel,
    *,
    ladder: Ladder | None = None,
    chains: int,
    draws: int = 1,
    seed: int,
    init: Any = None,
    resample: float | None = None,
    reverse_step: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample a potential by annealed MCMC.

    Args:
        potential: the target, at every level.
        kernel: an MCMC kernel, from ``bridges.blackjax`` or ``bridges.pyro``.
        ladder: levels and steps; every level with ten steps by default.
        chains: number of chains, walked together.
        draws: steps recorded at the last rung, after its ``ladder.steps`` unrecorded ones.
        seed: the same seed gives the same trace, on the same device and versions.
        init: positions to start from, shape ``(chains, *event_shape)``, with log-weights of zero.
            By default chains start from ``N(0, I/s)``, times sigma where the schedule explodes.
        resample: effective sample size, as a share of the chains, under which they are resampled by
            their weights (and once in any case on arriving at the last rung, so that recorded
            positions are equally weighted). None records the weights and applies none.
        reverse_step: arrive at each rung by the reverse-diffusion proposal; its weights account for it, with a
            variance that may be infinite where sigma falls by much in one step, at the clean end: use them above.
        progress: called with a :class:`Progress` after every rung.

    Returns:
        A :class:`~ppl_diffusion.trace.Trace` with positions ``(chains, draws, *event_shape)``.

    Raises:
        ValueError, TypeError: arguments that do not fit, each with what to write instead.
    """
    begun = time.perf_counter()
    ladder = _check(potential, kernel, ladder, chains, draws, seed, resample, progress)
    streams = np.random.SeedSequence(seed)
    population, host = np.random.default_rng(streams.spawn(1)[0]), _seeds(streams)
    positions, log_density = proposals.start(potential, ladder.levels[0], chains=chains, init=init, rng=population)
    notes = [] if isinstance(kernel, Still) else check_quotient(potential, levels=_probed(ladder))
    if init is not None:
        notes += proposals.odd_start(potential, ladder.levels[0], positions)
    walker = kernel.bind(potential)
    weights = Weights(chains)
    rungs: list[dict[str, Any]] = []
    state: State | None = None
    for rung, (level, steps) in enumerate(zip(ladder.levels, ladder.steps_per_rung, strict=True)):
        arrival = proposals.arrive(walker, potential, positions, level, state, reverse_step, population, next(host))
        state, increments = arrival.state, arrival.increments
        if rung == 0:
            given = np.where(np.isfinite(arrival.energy), 0.0, -np.inf)
            increments = given if init is not None else -arrival.energy - log_density
        record = weights.move(increments)
        if record["ess"] == 0 and (rung == 0 or rungs[-1]["ess"] > 0):
            where = "for any chain at level" if rung == 0 else "on all levels for any chain down to"
            notes.append(
                f"the energy of {potential} is not finite {where} {level}: look for NaN in what it was given, such as "
                "missing data"
            )
        elif rung == 0 and init is None and record["ess"] < 0.1 * chains:
            notes += proposals.bad_start(potential, level, record["ess"], chains)
        ancestors = weights.resample(resample, last=rung == len(ladder) - 1, rng=population)
        if ancestors is not None:
            state = walker.select(state, ancestors)
        record["ancestor"] = np.arange(chains) if ancestors is None else ancestors
        record["resampled"] = ancestors is not None
        record["energy_arrival"] = np.asarray(state.energy)
        state, moved = walker.move(state, steps, seed=next(host))
        record |= moved
        failed = ~np.isfinite(arrival.energy)
        record["nonfinite"] = np.where(failed, np.nan_to_num(record["nonfinite"]) + 1, record["nonfinite"])
        record["gradient_calls"] = 1 + int(moved["gradient_calls"])
        record["energy"], positions = np.asarray(state.energy), state.positions
        rungs.append(record)
        if progress is not None:
            rate = float(np.mean(moved["acceptance_rate"]))
            progress(Progress(rung + 1, len(ladder), level, 0, draws, rate, record["ess"] / chains))
    assert state is not None
    drawn, sample_stats = _draw(walker, walker.freeze(state), draws, host, progress, len(ladder))
    notes += _ends(potential, drawn, sample_stats, still=isinstance(kernel, Still))
    with jax.enable_x64(True):
        notes += check_quotient(potential, levels=(), positions=drawn[:256, -1], level=ladder.levels[-1])
    for note in dict.fromkeys(notes):
        warn_caller(note)
    attributes = {
        "potential": str(potential),
        "kernel": str(kernel),
        "adjusted": kernel.adjusted,
        "seed": int(seed),
        "levels": list(ladder.levels),
        "steps": list(ladder.steps_per_rung),
        "resample": None if resample is None else float(resample),
        "reverse_step": bool(reverse_step),
        "versions": versions(),
        "warnings": list(dict.fromkeys(notes)),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return Trace(drawn, _stack(rungs, ladder), sample_stats, attributes)


def reverse_diffusion(
    potential: Potential,
    *,
    ladder: Ladder | None = None,
    chains: int,
    seed: int,
    init: Any = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Plain ancestral sampling with the composed score: the baseline, and right for mixtures only.

    One evaluation at each level and no MCMC; ``ladder.steps`` is not used. Arguments, result and
    errors are those of :func:`anneal`; positions have shape ``(chains, 1, *event_shape)``.

    Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239
    """
    return anneal(
        potential, Still(), ladder=ladder, chains=chains, seed=seed, init=init, reverse_step=True, progress=progress
    )


def warn_caller(note: str) -> None:
    """A :class:`SamplingWarning` at the line that called this library, whichever of its doors that went through."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("ppl_diffusion", "bridges", "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(note, SamplingWarning, stacklevel=level)


def _ends(potential: Potential, drawn: np.ndarray, sample_stats: xr.Dataset, *, still: bool) -> list[str]:
    """What is wrong with where some chains have ended, in words."""
    finite, notes = np.isfinite(drawn).all(tuple(range(1, drawn.ndim))), []
    lost, outside = int(np.sum(~finite)), int(np.sum(finite & ~np.isfinite(sample_stats["lp"].to_numpy()[:, -1])))
    if lost:
        notes.append(
            f"draws of {lost} of {len(drawn)} chains are not finite: leave them out, and look at `nonfinite` by rung"
        )
    if 0 < outside < len(drawn):  # of all of them the weights have told
        notes.append(
            f"{outside} of {len(drawn)} chains end where the density of {potential} is zero, or its energy not a "
            f"number: leave them out{'' if still else ', or take resample=0.5, which replaces them'}"
        )
    return notes


def _draw(
    walker: Walker,
    state: State,
    draws: int,
    host: Any,
    progress: Callable[[Progress], None] | None,
    rungs: int,
) -> tuple[np.ndarray, xr.Dataset]:
    """Record draws, in blocks of one size if there is one, so that a run can be watched and interrupted."""
    block = max(n for n in range(1, min(draws, BLOCK) + 1) if draws % n == 0)
    if block < BLOCK / 2 < draws:
        block = BLOCK
    positions, stats = [], []
    for done in range(0, draws, block):
        count = min(block, draws - done)
        state, x, info = walker.record(state, count, seed=next(host))
        positions.append(x)
        stats.append(info)
        if progress is not None:
            rate = float(np.mean(info.get("acceptance_rate", np.nan)))
            progress(Progress(rungs, rungs, state.level, done + count, draws, rate, np.nan))
    calls = sum(int(info["gradient_calls"]) for info in stats)
    names = [name for name in stats[0] if name != "gradient_calls"]
    dataset = xr.Dataset(
        {name: (("chain", "draw"), np.concatenate([info[name] for info in stats], axis=1)) for name in names},
        attrs={"gradient_calls": calls},
    )
    return np.concatenate(positions, axis=1), dataset


def _stack(rungs: list[dict[str, np.ndarray]], ladder: Ladder) -> xr.Dataset:
    variables = {}
    for name in rungs[0]:
        values = np.stack([np.asarray(record[name]) for record in rungs])
        variables[name] = (("rung", "chain")[: values.ndim], values)
    return xr.Dataset(variables, coords={"level": ("rung", np.array(ladder.levels))})


def _probed(ladder: Ladder) -> tuple[int, ...]:
    """Some levels of a ladder, the cleanest ones among them."""
    coarse = ladder.levels[:: max(1, len(ladder) // 4)]
    return tuple(dict.fromkeys((*coarse, *ladder.levels[-2:])))


def _seeds(streams: np.random.SeedSequence) -> Any:
    while True:
        yield int(streams.spawn(1)[0].generate_state(1, np.uint32)[0])


def _check(
    potential: Potential,
    kernel: Kernel,
    ladder: Ladder | None,
    chains: int,
    draws: int,
    seed: int,
    resample: float | None,
    progress: Any,
) -> Ladder:
    if not isinstance(potential, Potential):
        raise TypeError(f"anneal samples a potential, got {potential!r}: wrap a function in EnergyFunction")
    if not isinstance(kernel, Kernel) or isinstance(kernel, type):
        raise TypeError(f"kernel must be an MCMC kernel, got {kernel!r}: try bridges.blackjax.HMC(leapfrogs=3)")
    for name, value, least in (("chains", chains, 1), ("draws", draws, 1), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}: try {name}={max(least, 100)}")
    if resample is not None and (not isinstance(resample, Real) or isinstance(resample, bool) or not 0 < resample <= 1):
        raise ValueError(f"resample is a share of the chains between 0 and 1, got {resample!r}: try resample=0.5")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is called with a Progress after every rung, got {progress!r}: try progress=print")
    ladder = ladder if ladder is not None else Ladder.full(potential.schedule)
    if isinstance(kernel, Still) and isinstance(ladder, Ladder):
        ladder = Ladder(levels=ladder.levels, steps=0)
    if not isinstance(ladder, Ladder):
        raise TypeError(f"ladder must be a Ladder, got {ladder!r}: try Ladder.full(potential.schedule, steps=10)")
    if ladder.levels[0] >= len(potential.schedule):
        raise ValueError(
            f"the ladder starts at level {ladder.levels[0]} and {potential} has levels 0 to "
            f"{len(potential.schedule) - 1}: build it from potential.schedule"
        )
    return ladder
