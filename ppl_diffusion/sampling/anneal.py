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
from typing import Any

import numpy as np

from ..arrays import outside_inference_mode
from ..files import versions
from ..ladder import Ladder
from ..potentials.circulation import circulation
from ..potentials.target import Target, require_energy
from .advice import Advice, warn_caller
from .checkpoint import Checkpoint
from .kernel import Kernel
from .progress import Progress, Reporter
from .still import Still
from .trace import Trace
from .walk import Walk


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
    still, last = isinstance(kernel, Still), len(ladder) - 1
    walk = Walk(potential, kernel, ladder.levels[0], chains=chains, init=init, seed=int(seed))
    run = settings | {"chains": int(chains), "draws": int(draws), "schedule": potential.schedule}
    advice = Advice(
        ladder, started_at_init=init is not None, weighted=resample is not None, reverse_step=reverse_step, still=still
    )
    with Checkpoint(checkpoint, run, walk.start) as kept:
        walk.listeners = (advice, kept, Reporter(progress, rungs=len(ladder), draws=draws))
        kept.restore(walk, walk.walker, ladder.levels[-1])
        if walk.state is None:
            walk.begin()
        for rung in range(len(walk.rungs), len(ladder)):
            walk.arrive(ladder.levels[rung], reverse=reverse_step, resample=resample, last=rung == last)
            walk.move(ladder.steps_per_rung[rung])
        walk.draw(draws)
    positions, sample_stats = walk.drawn()
    notes = list(dict.fromkeys([*walk.notes, *kept.complaints(), *advice.on_draws(walk, positions, sample_stats)]))
    for note in notes:
        warn_caller(note)
    attributes = (
        settings
        | walk.facts
        | {
            "still": still,
            "init": init is not None,
            "has_energy": potential.has_energy,
            "circulation": _measured_circulation(walk, positions),
            "versions": versions(),
            "warnings": notes,
            "seconds": round(walk.seconds + time.perf_counter() - begun, 3),
        }
    )
    rungs = walk.visited().assign_coords(level=("rung", np.array(ladder.levels)))
    return Trace(positions, rungs, sample_stats, attributes)


def _measured_circulation(walk: Walk, draws: np.ndarray) -> dict[str, float] | None:
    """Return the circulation at the last of ``draws (chains, draws, *event_shape)`` as a dictionary; None for a density
    with an energy, and for a kernel without a step."""
    state = walk.state
    if walk.target.has_energy or state is None or not np.isfinite(state.step.log_step):
        return None
    step = float(np.exp(state.step.log_step))
    return circulation(walk.target, draws[:, -1], level=state.level, step=step)._asdict()


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
    if not potential.has_energy:
        if kernel.needs_energy:
            require_energy(potential, f"kernels such as {kernel}")
        if resample is not None:
            require_energy(potential, "weights")
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
