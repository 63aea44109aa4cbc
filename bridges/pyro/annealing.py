"""Annealed MCMC for the posterior of a Pyro model with a diffusion prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppl_diffusion.arrays import on_cpu, outside_inference_mode
from ppl_diffusion.ladder import Ladder
from ppl_diffusion.sampling.anneal import anneal
from ppl_diffusion.sampling.islands import Spread
from ppl_diffusion.sampling.kernel import Kernel
from ppl_diffusion.sampling.progress import Progress
from ppl_diffusion.sampling.trace import Trace
from ppl_diffusion.sampling.transitions import Reverse

from .joint import JointPotential
from .likelihood import Likelihood
from .model_runs import run_of_model, with_sites


@outside_inference_mode()
@on_cpu()
def anneal_model(
    model: Callable[..., Any] | JointPotential,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    kernel: Kernel,
    ladder: Ladder | None = None,
    chains: int,
    draws: int = 1,
    seed: int,
    init: Any = None,
    resample: float | None = None,
    reverse_step: Reverse = False,
    snapshots: int = 0,
    likelihood: Likelihood = "widened",
    workers: int = 1,
    islands: int | None = None,
    spread: Spread | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample the posterior of a Pyro model with a :class:`DiffusionPrior` by annealed MCMC.

    Args:
        model: a Pyro model. It runs once for each evaluation, batched over chains by ``torch.func.vmap``. Or, to run a
            model on one data set after the other without compiling again, its ``JointPotential(model, args,
            likelihood="widened")``, whose ``args`` and ``kwargs`` are replaced if one of them is given.
        args, kwargs: arguments of the model.
        kernel: a kernel of ``bridges.pyro``, which moves one chain after the other, or of ``bridges.blackjax``, which
            moves all chains together.
        ladder, chains, draws, seed, resample, reverse_step, snapshots, islands, spread, checkpoint, progress: as in
            :func:`ppl_diffusion.anneal`.
        init: starting points: constrained values of every latent site by name, each ``(chains, *shape)``, or flat,
            unconstrained positions ``(chains, size)`` as in ``trace.positions``. Give ``x`` with the noise of the first
            level, ``alpha * x + sigma * z``.
        likelihood: how the observed sites enter at level ``k``; all options are exact at level 0. "widened": at
            ``E[x | x_k]``, with a covariance enlarged by the remaining uncertainty of ``x``; sites that are not linear
            in ``x`` over several points: take ``resample=0.5``, which counts modes right. "tempered": at
            ``x_k / alpha_k``, raised to the power ``alpha_k ** 2 / (alpha_k ** 2 + sigma_k ** 2)``. "rescaled": at
            ``x_k / alpha_k``, which constrains ``x`` too early. "tweedie": at the network's estimate of the clean
            ``x``, which costs second derivatives. Where priors of latent sites depend on ``x``, only "widened" is of
            use; the others warn.
        workers: number of processes that share the chains of a kernel of ``bridges.pyro``. More than one requires a
            model that can be imported; the trace does not depend on it. They stay here, so leave them out with
            ``spread``.

    Returns:
        A :class:`~ppl_diffusion.Trace`: ``sites`` holds constrained values ``(chains, draws, *shape)`` by name,
        ``positions`` flat, unconstrained ones ``(chains, draws, size)``, ``groups`` the log-likelihood and the data.

    Raises:
        ValueError, TypeError: a model without a diffusion prior, with discrete latent sites, or that cannot be
            batched; invalid arguments.
    """
    if spread is not None and workers != 1:
        raise ValueError(
            "workers= move the chains of islands here, and spread= takes islands elsewhere: give one of them"
        )
    with run_of_model(model, args, kwargs, kernel=kernel, init=init, likelihood=likelihood, workers=workers) as run:
        trace = anneal(
            run.joint,
            run.kernel,
            ladder=ladder,
            chains=chains,
            draws=draws,
            seed=seed,
            init=run.init,
            resample=resample,
            reverse_step=reverse_step,
            snapshots=snapshots,
            islands=islands,
            spread=spread,
            checkpoint=checkpoint,
            progress=progress,
        )
    return with_sites(trace, run.joint)
