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

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import check_count, outside_inference_mode
from ..ladder import Ladder
from ..potentials.target import Target, require_energy
from .advice import warn_caller
from .arrival import given
from .descent import Descent
from .islands import Island, Spread, merge, split
from .kernel import Kernel
from .progress import Progress
from .still import Still
from .trace import Trace
from .transitions import Reverse, check_reverse


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
    reverse_step: Reverse = False,
    snapshots: int = 0,
    islands: int | None = None,
    spread: Spread | None = None,
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
            With True it has the variance of DDPM, and near the clean end, where sigma falls by a large factor per rung,
            weights may have an infinite variance: rely on them only at noisier levels. With "wide" it has also the
            variance of the clean point, estimated from the gradients of all chains at the rung before, and recorded
            (``widening``): rely on weights down to the last rung, see :mod:`ppl_diffusion.sampling.transitions`.
        snapshots: number of rungs, spread evenly over the ladder, at which the positions of a few chains are kept in
            the trace: the first 8 or, of small events, up to 256.
        islands: number of blocks of chains that walk apart, each with a seed, a step adaptation and a resampling of its
            own, and are merged at the end; by default all chains are one. Chains have to be a multiple of it. The trace
            depends on the number of islands, and not on where they walk.
        spread: what moves the islands: called as the builtin ``map`` with a function, that can be pickled, and the
            islands. The ``map`` of ``bridges.ray.Workers`` and of a ``ProcessPoolExecutor`` will do. By default they
            walk here, one after the other.
        checkpoint: a file that keeps the walk, written about every minute, on an interruption or error, and at the end.
            If it exists, the walk goes on from there and gives the trace of an uninterrupted one, that of a finished
            walk at once. It costs an evaluation at the start, and a second one when the walk goes on, by which other
            potentials and data are told apart; they are not counted. Remove the file when it has served. Functions
            that a kernel is made of are known by their names only. Of several islands it is a folder, with a file of
            each; where they are spread over machines, these have to share it.
        progress: called with a :class:`Progress` after every rung and every block of recorded draws.

    Returns:
        A :class:`~ppl_diffusion.Trace` with positions ``(chains, draws, *event_shape)``.

    Raises:
        ValueError, TypeError: an argument is invalid, or ``checkpoint`` is a file of another run or none of a walk; the
            message says what to write instead.
        FileNotFoundError, PermissionError: the folder of ``checkpoint`` does not exist, or cannot be written.
    """
    ladder = _check_arguments(potential, kernel, ladder, chains, draws, seed, resample, snapshots, progress)
    check_reverse("reverse_step", reverse_step)
    count = _check_islands(islands, chains, spread)
    if init is not None and count > 1:
        init = given(init, (chains, *potential.event_shape))
    descent = Descent(potential, kernel, ladder, draws, resample, reverse_step, islands=count, snapshots=snapshots)
    blocks = split(count, chains=chains, seed=seed, init=init, checkpoint=checkpoint)
    if spread is None:
        traces = [descent(block, progress) for block in blocks]
    else:
        traces = _spread_out(spread, descent, blocks, progress)
    trace = traces[0] if count == 1 else merge(traces, seed=seed)
    for note in trace.attributes["warnings"]:
        warn_caller(note)
    return trace


def _spread_out(
    spread: Spread, descent: Descent, blocks: Sequence[Island], progress: Callable[[Progress], None] | None
) -> list[Trace]:
    """Return the traces of islands that ``spread`` calls ``descent`` on, and tell the end of each."""
    traces = []
    for island, trace in zip(blocks, spread(descent, blocks), strict=True):
        if not isinstance(trace, Trace) or trace.attributes["seed"] != island.seed:
            raise ValueError(f"{spread!r} does not keep islands in order, as map does: give pool.map or the like")
        traces.append(trace)
        if progress is not None:
            rungs, rates = len(descent.ladder), trace.stats["acceptance_rate"].to_numpy()[-1]
            level, place = descent.ladder.levels[-1], (island.number, descent.islands)
            progress(Progress(rungs, rungs, level, descent.draws, descent.draws, float(np.mean(rates)), np.nan, *place))
    return traces


def reverse_diffusion(
    potential: Target,
    *,
    ladder: Ladder | None = None,
    chains: int,
    seed: int,
    init: Any = None,
    snapshots: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample by ancestral reverse diffusion with the composed score, a baseline that is right for mixtures only.

    It takes one evaluation at each level and no MCMC steps; ``ladder.steps`` is not used. Arguments, result and
    errors are those of :func:`anneal`; positions have shape ``(chains, 1, *event_shape)``.

    Source: Denoising Diffusion Probabilistic Models (Ho, Jain and Abbeel, 2020), https://arxiv.org/abs/2006.11239
    """
    return anneal(
        potential,
        Still(),
        ladder=ladder,
        chains=chains,
        seed=seed,
        init=init,
        reverse_step=True,
        snapshots=snapshots,
        progress=progress,
    )


def _check_arguments(
    potential: Target,
    kernel: Kernel,
    ladder: Ladder | None,
    chains: int,
    draws: int,
    seed: int,
    resample: float | None,
    snapshots: int,
    progress: Any,
) -> Ladder:
    if not isinstance(potential, Target):
        raise TypeError(f"anneal samples a potential, got {potential!r}: wrap a function in EnergyFunction")
    if not isinstance(kernel, Kernel) or isinstance(kernel, type):
        raise TypeError(f"kernel must be an MCMC kernel, got {kernel!r}: try bridges.blackjax.HMC(leapfrogs=3)")
    counts = (("chains", chains, 1), ("draws", draws, 1), ("seed", seed, 0), ("snapshots", snapshots, 0))
    for name, value, least in counts:
        check_count(name, value, least=least)
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


def _check_islands(islands: int | None, chains: int, spread: Any) -> int:
    """Return the number of islands, 1 by default.

    Raises:
        ValueError: it does not divide ``chains``, or islands are to be spread and there are none.
        TypeError: ``spread`` cannot be called.
    """
    if islands is None and spread is not None:
        raise ValueError("spread= is for islands, and all chains are one: add islands=8")
    if islands is None:
        return 1
    check_count("islands", islands, example=8)
    if chains % islands:
        more = -(-chains // islands) * islands
        raise ValueError(f"{chains} chains cannot be shared by {islands} islands of one size: try chains={more}")
    if spread is not None and not callable(spread):
        raise TypeError(f"spread is called as map is, got {spread!r}: give it the map of a pool, spread=pool.map")
    return int(islands)
