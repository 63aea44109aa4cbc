"""Replica exchange: chains at all levels of a ladder at once, which exchange their positions.

    start     anneal down the ladder, and leave a copy of every chain at every level
    round     kernel steps at every level, then swaps of neighbours: pairs (0, 1), (2, 3), ... in even rounds, and
              (1, 2), (3, 4), ... in odd ones
    at the last rung: record a draw a round

A ladder has ``chains`` independent replicas of itself: replica ``i`` of a level swaps with replica ``i`` of the next.
Alternating even and odd swaps make a replica travel in one direction for as long as its swaps are accepted. A swap of
``x_s`` and ``x_t``, s the noisier level, is one of

    in place       x_s' = x_t, x_t' = x_s
    accelerated    x_s' ~ q(. | x_t), the forward kernel; x_t' ~ r(. | x_s), the reverse-diffusion proposal

and is accepted with probability min(1, e^w),

    w = U_s(x_s) + U_t(x_t) - U_s(x_s') - U_t(x_t')  [+ log q(x_s|x_t') r(x_t|x_s') - log q(x_s'|x_t) r(x_t'|x_s)]

Both leave the product of the densities of all levels invariant. In place, a swap is accepted where the two densities
overlap, which needs many levels in many dimensions; an accelerated one where the reverse proposal is nearly right. A
swap costs one evaluation at either level. Where a walker can (``ppl_diffusion.sampling.levels``), all levels move in
one call of a network. Log-normalisers come from the work of all proposed swaps in both directions, by Bennett's
acceptance ratio.

Source: Non-reversible parallel tempering (Syed et al., 2022), https://arxiv.org/abs/1905.02939; accelerated swaps:
Generalised Parallel Tempering (Zhang et al., 2025), https://arxiv.org/abs/2502.10328, and CREPE (He et al., 2025),
https://arxiv.org/abs/2509.23265; log-normalisers: Efficient Estimation of Free Energy Differences (Bennett, 1976),
https://doi.org/10.1016/0021-9991(76)90078-4
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import check_count, outside_inference_mode
from ..files import versions
from ..ladder import Ladder
from ..potentials.target import Target, require_energy
from .advice import warn_caller
from .exchange_checkpoint import ExchangeCheckpoint
from .kernel import Kernel
from .progress import Progress
from .replicas import Replicas
from .trace import Trace
from .transitions import Reverse, check_reverse


@outside_inference_mode()
def exchange(
    potential: Target,
    kernel: Kernel,
    *,
    ladder: Ladder | None = None,
    chains: int,
    draws: int,
    seed: int,
    warm_up: int = 100,
    accelerated: Reverse = False,
    init: Any = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample a potential by replica exchange over its noise levels.

    Args:
        potential: the target density; its level at the last rung is sampled.
        kernel: an adjusted MCMC kernel, from ``bridges.blackjax`` or ``bridges.pyro``.
        ladder: levels, and kernel steps between two rounds of swaps; by default every level with one step.
        chains: number of independent replicas of the ladder.
        draws: number of rounds that are recorded, two or more: pairs take turns.
        seed: the same seed gives the same trace, on the same device and with the same library versions.
        warm_up: rounds before them, in which step sizes adapt.
        accelerated: whether swaps go by the forward kernel and the reverse-diffusion proposal. "wide" gives the
            proposal also the variance of the clean point, as ``reverse_step="wide"`` of :func:`ppl_diffusion.anneal`
            does; it is estimated in the ``warm_up`` rounds and then fixed, so that recorded swaps are exact.
        init: starting positions at the first rung, shape ``(chains, *event_shape)``.
        checkpoint: a file that keeps the run, written about every minute, on an interruption or error, and at the end.
            If it exists, the run goes on from there and gives the trace of an uninterrupted one, as that of
            :func:`ppl_diffusion.anneal` does. It costs an evaluation at the start, and one at every level when the run
            goes on, which are not counted.
        progress: called with a :class:`Progress` after every round.

    Returns:
        A :class:`~ppl_diffusion.Trace` with positions ``(chains, draws, *event_shape)``. Its statistics by rung are
        those of the recorded rounds, with ``swap_rate`` (of the pair with the rung before; NaN at the first) and
        ``log_normaliser`` (increments); ``round_trips`` (a replica's travels from the noisiest level to the last and
        back) is by chain. There are no weights, and no relatives: replicas of the ladder are independent.

    Raises:
        ValueError, TypeError: an argument is invalid, the kernel is unadjusted, only a gradient is known, or
            ``checkpoint`` is a file of another run or none of an exchange.
        FileNotFoundError, PermissionError: the folder of ``checkpoint`` does not exist, or cannot be written.
    """
    begun = time.perf_counter()
    check_reverse("accelerated", accelerated)
    ladder = _check_arguments(potential, kernel, ladder, chains, draws, seed, warm_up)
    run = Replicas(potential, kernel, ladder, chains=chains, init=init, seed=seed, accelerated=accelerated)
    settings = _settings(run, kernel, warm_up)
    sizes = {"chains": int(chains), "draws": int(draws), "schedule": potential.schedule}
    with ExchangeCheckpoint(checkpoint, settings | sizes, run.walk.start) as kept:
        kept.restore(run)
        run.descend(kept.mark)
        _take_rounds(run, kept, warm_up, draws, progress)
    positions, sample_stats = run.record.drawn()
    stats, error = run.statistics()
    run.walk.note(kept.complaints(), about="nothing")
    notes = run.advise(stats, positions, sample_stats)
    for note in notes:
        warn_caller(note)
    attributes = settings | {
        "log_normaliser_error": error,
        "still": False,
        "init": init is not None,
        "has_energy": True,
        "circulation": None,
        **run.walk.facts,
        "versions": versions(),
        "warnings": notes,
        "seconds": round(run.walk.seconds + time.perf_counter() - begun, 3),
    }
    return Trace(positions, stats, sample_stats, attributes)


def _take_rounds(
    run: Replicas,
    kept: ExchangeCheckpoint,
    warm_up: int,
    draws: int,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Take the rounds that are left, of which those after ``warm_up`` are recorded."""
    rungs, level = len(run.ladder), run.ladder.levels[-1]
    while run.rounds < warm_up + draws:
        if run.rounds == warm_up:
            run.freeze()
        run.round(recorded=run.rounds >= warm_up)
        kept.mark(run)
        if progress is not None:
            progress(Progress(rungs, rungs, level, max(0, run.rounds - warm_up), draws, run.rate, np.nan))


def _settings(run: Replicas, kernel: Kernel, warm_up: int) -> dict[str, Any]:
    """Return what the trace's attributes record of the arguments."""
    return {
        "potential": str(run.potential),
        "kernel": str(kernel),
        "adjusted": True,
        "seed": int(run.walk.seed),
        "levels": list(run.ladder.levels),
        "steps": list(run.ladder.steps_per_rung),
        "resample": None,
        "reverse_step": False,
        "exchange": {False: "in place", True: "accelerated", "wide": "accelerated, wide"}[run.accelerated],
        "warm_up": int(warm_up),
    }


def _check_arguments(
    potential: Target, kernel: Kernel, ladder: Ladder | None, chains: int, draws: int, seed: int, warm_up: int
) -> Ladder:
    if not isinstance(potential, Target):
        raise TypeError(f"exchange samples a potential, got {potential!r}: wrap a function in EnergyFunction")
    if not isinstance(kernel, Kernel) or isinstance(kernel, type):
        raise TypeError(f"kernel must be an MCMC kernel, got {kernel!r}: try bridges.blackjax.HMC(leapfrogs=3)")
    require_energy(potential, "swaps")
    if not kernel.adjusted:
        raise ValueError(f"{kernel} is unadjusted, and its draws at a level are not of its density: try HMC()")
    counts: Sequence[tuple[str, Any, int]] = (
        ("chains", chains, 1),
        ("draws", draws, 2),
        ("seed", seed, 0),
        ("warm_up", warm_up, 0),
    )
    for name, value, least in counts:
        check_count(name, value, least=least)
    found = Ladder.full(potential.schedule, steps=1) if ladder is None else ladder
    if not isinstance(found, Ladder):
        raise TypeError(f"ladder must be a Ladder, got {found!r}: try Ladder.full(potential.schedule, steps=1)")
    if len(found) < 2:
        raise ValueError("an exchange needs two levels or more: try Ladder.full(potential.schedule, steps=1)")
    return found
