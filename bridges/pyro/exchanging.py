"""Replica exchange for the posterior of a Pyro model with a diffusion prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppl_diffusion.arrays import on_cpu, outside_inference_mode
from ppl_diffusion.ladder import Ladder
from ppl_diffusion.sampling.exchange import exchange
from ppl_diffusion.sampling.kernel import Kernel
from ppl_diffusion.sampling.progress import Progress
from ppl_diffusion.sampling.trace import Trace
from ppl_diffusion.sampling.transitions import Reverse

from .joint import JointPotential
from .likelihood import Likelihood
from .model_runs import run_of_model, with_sites


@outside_inference_mode()
@on_cpu()
def exchange_model(
    model: Callable[..., Any] | JointPotential,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    kernel: Kernel,
    ladder: Ladder | None = None,
    chains: int,
    draws: int,
    seed: int,
    warm_up: int = 100,
    accelerated: Reverse = False,
    init: Any = None,
    likelihood: Likelihood = "widened",
    workers: int = 1,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample the posterior of a Pyro model with a :class:`DiffusionPrior` by replica exchange over its noise levels.

    At a swap the whole point of a replica travels: ``x``, and the latent sites without a diffusion prior as they are.
    Length scales, masses and step sizes stay at their level. ``accelerated`` proposals move ``x`` alone.

    Args:
        model, args, kwargs, init, likelihood, workers: as in :func:`anneal_model`.
        kernel: an adjusted kernel of ``bridges.pyro`` or of ``bridges.blackjax``.
        ladder, chains, draws, seed, warm_up, accelerated, checkpoint, progress: as in :func:`ppl_diffusion.exchange`.

    Returns:
        A :class:`~ppl_diffusion.Trace` like that of :func:`anneal_model`, with ``swap_rate`` and ``round_trips`` among
        its statistics. Its log-normaliser is the log-evidence.

    Raises:
        ValueError, TypeError: as in :func:`anneal_model`; or the kernel is unadjusted, or a prior has no energy.
    """
    with run_of_model(model, args, kwargs, kernel=kernel, init=init, likelihood=likelihood, workers=workers) as run:
        trace = exchange(
            run.joint,
            run.kernel,
            ladder=ladder,
            chains=chains,
            draws=draws,
            seed=seed,
            warm_up=warm_up,
            accelerated=accelerated,
            init=run.init,
            checkpoint=checkpoint,
            progress=progress,
        )
    return with_sites(trace, run.joint)
