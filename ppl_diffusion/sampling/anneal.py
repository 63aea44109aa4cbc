"""Annealed MCMC: chains descend a ladder of noise levels, with steps of an MCMC kernel at each rung.

    start     x ~ N(0, max(1, sigma)^2 I / s), s the sum of the exponents: the composed density at pure noise
    at each rung, noisiest first:
      arrive    optionally by a reverse-diffusion step; compute log-weight increments
      resample  if requested and the effective sample size is low
      move      kernel steps that leave the density of this level invariant
    at the last rung: record draws

The composed energies define an unnormalised density at every level. These form an annealing path to the target,
whether or not they are noised versions of it.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552;
weights: Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008
"""

from __future__ import annotations

import time
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from ..arrays import outside_inference_mode
from ..files import versions
from ..potentials.quotients import check_quotient
from ..potentials.target import Target
from ..schedule import Ladder
from . import advice
from . import arrival as arrivals
from .advice import warn_caller
from .checkpoint import Checkpoint
from .importance import Weights
from .kernel import Kernel, Walker
from .still import Still
from .trace import Trace
from .walk import Walk, joined, stacked

BLOCK = 25
"""Maximum number of draws recorded by one call of the walker."""


class Progress(NamedTuple):
    """The argument of a progress callback, called after every rung and after every block of recorded draws.

    Attributes:
        rung: number of rungs completed.
        rungs: total number of rungs.
        level: noise level of this rung.
        draw: number of draws recorded.
        draws: total number of draws.
        acceptance_rate: mean over chains and steps; NaN for unadjusted kernels.
        ess: effective sample size of the weights on arrival, as a share of the chains; NaN for recorded draws.
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
    potential: Target,
    kernel: Kernel,
    *,
    ladder: Ladder | None = None,
    chains: int,
    draws: int = 1,
    seed: int,
    init: Any = None,
    resample: float | None = None,
    reverse_step: bool = False,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample a potential by annealed MCMC.

    Args:
        potential: the target density; its level at the last rung is sampled.
        kernel: an MCMC kernel, from ``bridges.blackjax`` or ``bridges.pyro``.
        ladder: levels and kernel steps; by default every level with ten steps.
        chains: number of chains, evaluated together.
        draws: number of kernel steps recorded at the last rung, after its ``ladder.steps`` unrecorded ones.
        seed: the same seed gives the same trace, on the same device and with the same library versions.
        init: starting positions, shape ``(chains, *event_shape)``, whose log-weights are zero, or minus infinity where
            the energy is not finite.
            By default chains start from ``N(0, max(1, sigma)^2 I / s)``.
        resample: effective sample size, as a share of the chains, below which chains are resampled by their
            weights. They are also resampled on arriving at the last rung, so that recorded positions are
            equally weighted. With None the weights are recorded but not used.
        reverse_step: arrive at each rung by the reverse-diffusion proposal, for which the weights are corrected.
            Near the clean end, where sigma falls by a large factor per rung, their variance may be infinite: rely on
            them only at noisier levels.
        checkpoint: a file that keeps the walk, written about every minute, on an interruption or error, and at the end.
            If it exists, the walk goes on from there and gives the trace of an uninterrupted one, that of a finished
            walk at once. It costs an evaluation at the start, and a second one when the walk goes on, by which other
            potentials and data are told apart; they are not counted. Remove the file when it has served. Functions
            that a kernel is made of are known by their names only.
        progress: called with a :class:`Progress` after every rung and every block of recorded draws.

    Returns:
        A :class:`~ppl_diffusion.Trace` with positions ``(chains, draws, *event_shape)``.

    Raises:
        ValueError, TypeError: an argument is invalid, or ``checkpoint`` is a file of another run or none of a walk; the
            message says what to write instead.
        FileNotFoundError, PermissionError: the folder of ``checkpoint`` does not exist, or cannot be written.
    """
    begun = time.perf_counter()
    ladder = _check_arguments(potential, kernel, ladder, chains, draws, seed, resample, progress)
    walk = Walk(int(seed), Weights(chains))
    positions, log_density = arrivals.start(potential, ladder.levels[0], chains=chains, init=init, rng=walk.rng)
    walker = kernel.bind(potential)
    settings = {
        "potential": str(potential),
        "kernel": str(kernel),
        "adjusted": kernel.adjusted,
        "seed": int(seed),
        "levels": list(ladder.levels),
        "steps": list(ladder.steps_per_rung),
        "resample": None if resample is None else float(resample),
        "reverse_step": bool(reverse_step),
    }
    run = settings | {"chains": int(chains), "draws": int(draws), "schedule": potential.schedule}
    with Checkpoint(checkpoint, run, positions) as kept:
        kept.restore(walk, walker, ladder.levels[-1])
        if walk.state is None:
            walk.notes += (
                [] if isinstance(kernel, Still) else check_quotient(potential, levels=_levels_to_check(ladder))
            )
            walk.notes += advice.check_observations(potential)
            if init is not None:
                walk.notes += advice.check_init(potential, ladder.levels[0], positions)
            if reverse_step and resample is not None:
                walk.notes += advice.check_reverse_weights(potential, ladder.levels)
        for rung in range(len(walk.rungs), len(ladder)):
            level, steps, previous = ladder.levels[rung], ladder.steps_per_rung[rung], walk.state
            if previous is not None:
                positions = previous.positions
            arrival = arrivals.arrive(
                walker, potential, positions, level, previous, reverse_step, walk.rng, walk.next_seed()
            )
            state, increments = arrival.state, arrival.increments
            if previous is not None and resample is not None and not any("threw" in note for note in walk.notes):
                walk.notes += advice.advise_on_throw(potential, previous.level, level, arrival.throw)
            if rung == 0:
                uniform = np.where(np.isfinite(arrival.energy), 0.0, -np.inf)
                increments = uniform if init is not None else -arrival.energy - log_density
            record = walk.weights.move(increments)
            if record["ess"] == 0 and (rung == 0 or walk.rungs[-1]["ess"] > 0):
                walk.notes.append(advice.advise_on_failure(potential, level, first=rung == 0))
            elif rung == 0 and init is None and record["ess"] < 0.1 * chains:
                walk.notes += advice.advise_on_start(potential, level, record["ess"], chains)
            ancestors = walk.weights.resample(resample, last=rung == len(ladder) - 1, rng=walk.rng)
            if ancestors is not None:
                state = walker.select(state, ancestors)
            record["ancestor"] = np.arange(chains) if ancestors is None else ancestors
            record["resampled"] = ancestors is not None
            record["energy_arrival"] = np.asarray(state.energy)
            walk.state, moved = walker.move(state, steps, seed=walk.next_seed())
            record |= moved
            failed = ~np.isfinite(arrival.energy)
            record["nonfinite"] = np.where(failed, np.nan_to_num(record["nonfinite"]) + 1, record["nonfinite"])
            record["gradient_calls"] = 1 + moved["gradient_calls"]
            record["energy"] = np.asarray(walk.state.energy)
            walk.rungs.append(record)
            kept.mark(walk)
            if progress is not None:
                rate = float(np.mean(moved["acceptance_rate"]))
                progress(Progress(rung + 1, len(ladder), level, 0, draws, rate, record["ess"] / chains))
        drawn, sample_stats = _record_draws(walk, walker, draws, kept, progress)
    walk.notes += [] if kept.lost is None else [kept.lost]
    walk.notes += advice.check_last_draws(potential, drawn, sample_stats, still=isinstance(kernel, Still))
    with jax.enable_x64(True):
        walk.notes += check_quotient(potential, levels=(), positions=drawn[:256, -1], level=ladder.levels[-1])
    notes = list(dict.fromkeys(walk.notes))
    for note in notes:
        warn_caller(note)
    seconds = walk.seconds + time.perf_counter() - begun
    attributes = settings | {"versions": versions(), "warnings": notes, "seconds": round(seconds, 3)}
    return Trace(drawn, _stack_rungs(walk.rungs, ladder), sample_stats, attributes)


def reverse_diffusion(
    potential: Target,
    *,
    ladder: Ladder | None = None,
    chains: int,
    seed: int,
    init: Any = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample by ancestral reverse diffusion with the composed score, a baseline that is right for mixtures only.

    It takes one evaluation at each level and no MCMC steps; ``ladder.steps`` is not used. Arguments, result and
    errors are those of :func:`anneal`; positions have shape ``(chains, 1, *event_shape)``.

    Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239
    """
    return anneal(
        potential, Still(), ladder=ladder, chains=chains, seed=seed, init=init, reverse_step=True, progress=progress
    )


def _record_draws(
    walk: Walk, walker: Walker, draws: int, kept: Checkpoint, progress: Callable[[Progress], None] | None
) -> tuple[np.ndarray, xr.Dataset]:
    """Record draws in blocks, so that progress is reported between them; of one size if possible, as each compiles."""
    block = max(n for n in range(1, min(draws, BLOCK) + 1) if draws % n == 0)
    if block < BLOCK / 2 < draws:
        block = BLOCK
    assert walk.state is not None
    if not walk.positions:
        walk.state = walker.freeze(walk.state)
    while walk.draws < draws:
        count = min(block, draws - walk.draws)
        walk.state, x, info = walker.record(walk.state, count, seed=walk.next_seed())
        if "lp" not in info:
            raise TypeError(f"record() of {type(walker).__name__} returns no lp, the log-density of each draw: add it")
        walk.positions.append(x)
        walk.statistics.append(info)
        kept.mark(walk)
        if progress is not None:
            rate, rungs = float(np.mean(info.get("acceptance_rate", np.nan))), len(walk.rungs)
            progress(Progress(rungs, rungs, walk.state.level, walk.draws, draws, rate, np.nan))
    found = joined(walk.statistics)
    calls = found.pop("gradient_calls").item()
    dataset = xr.Dataset(
        {name: (("chain", "draw"), values) for name, values in found.items()}, attrs={"gradient_calls": calls}
    )
    return np.concatenate(walk.positions, axis=1), dataset


def _stack_rungs(rungs: list[dict[str, np.ndarray]], ladder: Ladder) -> xr.Dataset:
    variables = {name: (("rung", "chain")[: values.ndim], values) for name, values in stacked(rungs).items()}
    return xr.Dataset(variables, coords={"level": ("rung", np.array(ladder.levels))})


def _levels_to_check(ladder: Ladder) -> tuple[int, ...]:
    """Return a few levels of a ladder at which to check tails, including the two cleanest."""
    coarse = ladder.levels[:: max(1, len(ladder) // 4)]
    return tuple(dict.fromkeys((*coarse, *ladder.levels[-2:])))


def _check_arguments(
    potential: Target,
    kernel: Kernel,
    ladder: Ladder | None,
    chains: int,
    draws: int,
    seed: int,
    resample: float | None,
    progress: Any,
) -> Ladder:
    if not isinstance(potential, Target):
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
