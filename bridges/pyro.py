"""Diffusion models as priors in Pyro models, annealed with Pyro's or BlackJAX's kernels.

    prior = load("digits")

    def model(y):
        x = pyro.sample("x", DiffusionPrior(prior))
        noise = pyro.sample("noise", dist.HalfNormal(0.5))
        pyro.sample("y", dist.Normal(x[..., 14:], noise).to_event(2), obs=y)

    trace = anneal_model(model, (y,), kernel=HMC(), chains=8, draws=100, seed=0)

The last rung, level 0, is the exact joint density of the model; the levels above are a path to it, see
``bridges.pyro_path``. Other latent sites are unconstrained inside, start from their priors, and come back
constrained in ``trace.sites``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from pyro.infer.mcmc import HMC as _HMC
from pyro.infer.mcmc import NUTS as _NUTS

from ppl_diffusion.anneal import Progress, anneal, warn_caller
from ppl_diffusion.arrays import on_the_processor, outside_inference_mode
from ppl_diffusion.kernel import Kernel, check_count
from ppl_diffusion.schedule import Ladder
from ppl_diffusion.step import Adaptive, StepPolicy
from ppl_diffusion.trace import Trace

from .blackjax_walker import BlackJAXKernel
from .pyro_expression import from_model
from .pyro_model import JointPotential
from .pyro_path import Likelihood
from .pyro_prior import DiffusionPrior, at_level
from .pyro_walker import PyroKernel
from .pyro_workers import over_processes
from .torch_jax import holds_jax

__all__ = ["HMC", "NUTS", "DiffusionPrior", "JointPotential", "anneal_model", "at_level", "from_model"]


@dataclass(frozen=True)
class HMC(PyroKernel):
    """Pyro's Hamiltonian Monte Carlo.

    Args:
        step: leapfrog step: a number, ``SigmaScaled(0.5)`` or ``Adaptive(...)``.
        adapt_mass_matrix: adapt a diagonal mass matrix at rungs of twenty steps or more; elsewhere mass is one.
        leapfrogs: leapfrogs of a trajectory, exactly.

    Raises:
        ValueError: no leapfrogs.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8)
    leapfrogs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leapfrogs", self.leapfrogs, example=3)

    def build(self, potential_fn: Callable[..., Any]) -> Any:
        return _HMC(potential_fn=potential_fn, adapt_step_size=False, adapt_mass_matrix=False)

    def set_step(self, sampler: Any, step: float) -> None:
        sampler._adapter.step_size = step
        # Pyro takes int(length / step) leapfrogs, which rounding makes one too few: aim at the middle.
        sampler.trajectory_length = step * (self.leapfrogs + 0.5)


@dataclass(frozen=True)
class NUTS(PyroKernel):
    """Pyro's No-U-Turn sampler.

    Args:
        step: leapfrog step.
        adapt_mass_matrix: adapt a diagonal mass matrix at rungs of twenty steps or more; elsewhere mass is one.
        max_doublings: a trajectory has at most ``2 ** max_doublings - 1`` leapfrogs.

    Raises:
        ValueError: no doublings.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8, jitter=1.0)
    max_doublings: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_doublings", self.max_doublings, example=6)

    def build(self, potential_fn: Callable[..., Any]) -> Any:
        return _NUTS(
            potential_fn=potential_fn, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=self.max_doublings
        )

    def set_step(self, sampler: Any, step: float) -> None:
        sampler._adapter.step_size = step


@outside_inference_mode()
@on_the_processor()
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
