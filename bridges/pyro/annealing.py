"""The posterior of a Pyro model with a diffusion prior, by annealed MCMC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from ppl_diffusion.anneal import Progress, anneal, warn_caller
from ppl_diffusion.arrays import on_cpu, outside_inference_mode
from ppl_diffusion.kernel import Kernel, check_count
from ppl_diffusion.schedule import Ladder
from ppl_diffusion.trace import Trace

from ..blackjax_walker import BlackJAXKernel
from ..torch_jax import holds_jax
from .joint import JointPotential
from .likelihood import Likelihood
from .walker import PyroKernel
from .workers import over_processes


@outside_inference_mode()
@on_cpu()
def anneal_model(
    model: Callable[..., Any],
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
    reverse_step: bool = False,
    likelihood: Likelihood = "widened",
    workers: int = 1,
    progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample the posterior of a Pyro model with a :class:`DiffusionPrior` by annealed MCMC.

    Args:
        model: a Pyro model; run once for each evaluation of all chains, batched by ``torch.func.vmap``.
        args, kwargs: of the model.
        kernel: of this module, chain by chain, or of ``bridges.blackjax``, all chains at once.
        ladder, chains, draws, seed, resample, reverse_step, progress: as in :func:`ppl_diffusion.anneal`.
        init: values of every latent site by name, constrained, each ``(chains, *shape)``, to start from; or what
            ``trace.positions`` holds, flat and unconstrained, ``(chains, size)``; ``x`` as at the first level.
        likelihood: the path on which observed sites come in; at level 0 all are the exact density. "widened": of the
            mean of ``x`` given its noised self, with a covariance grown by what is left uncertain. "tempered": of
            ``x_k / alpha_k``, to the power ``alpha_k ** 2``. "rescaled": of ``x_k / alpha_k``, which binds ``x`` too
            early. "tweedie": of the network's estimate of the clean ``x``, which costs second derivatives.
        workers: processes that the chains of a kernel of this module are spread over; more than one needs a model that
            can be imported, and gives the same trace.

    Returns:
        A :class:`~ppl_diffusion.trace.Trace`: ``sites`` holds constrained values ``(chains, draws, ...)`` by name,
        ``positions`` the flat, unconstrained ones, ``groups`` the log-likelihood and the observed data.

    Raises:
        ValueError, TypeError: a model without a diffusion prior, with discrete latent sites, or that cannot be
            batched; arguments that do not fit.
    """
    check_count("workers", workers, example=2)
    if workers > 1 and not isinstance(kernel, PyroKernel):
        raise ValueError(f"{kernel} moves all chains by one call: leave workers= out, or use bridges.pyro.HMC()")
    if not isinstance(args, (tuple, list)) or not isinstance(kwargs or {}, Mapping):
        raise TypeError(f"args is a tuple and kwargs a dictionary of what {model} takes: give (y,) for one argument y")
    joint = JointPotential(model, tuple(args), kwargs, likelihood=likelihood)
    home = [str(prior) for prior in joint.priors if holds_jax(prior)]
    if home and isinstance(kernel, BlackJAXKernel):
        raise ValueError(
            f"{home[0]} computes with JAX, which a call from JAX cannot: use a kernel of bridges.pyro, or "
            "backend='torch' for it"
        )
    if isinstance(init, Mapping):
        init = joint.flatten(init)
    joint.one_by_one = isinstance(kernel, PyroKernel)
    with over_processes(kernel, joint, workers) if workers > 1 else nullcontext(kernel) as moving:
        trace = anneal(
            joint,
            moving,
            ladder=ladder,
            chains=chains,
            draws=draws,
            seed=seed,
            init=init,
            resample=resample,
            reverse_step=reverse_step,
            progress=progress,
        )
    attributes = {**trace.attributes, "likelihood": likelihood, "dims": joint.dims}
    sites, groups = joint.report(trace.positions)
    last = attributes["levels"][-1]
    if last > 0:
        note = (
            f"the ladder ends at level {last}: the draws of {joint.name} are noised, x_k and not x, and of another "
            "density than its posterior; let it end at level 0"
        )
        warn_caller(note)
        attributes["warnings"] = [*attributes["warnings"], note]
        del groups["log_likelihood"]
    return dataclasses.replace(trace, sites=sites, groups=groups, attributes=attributes)
