"""BlackJAX kernels for annealed sampling: HMC, MALA, NUTS, unadjusted HMC and Langevin, and any other kernel.

Chains are batched by ``vmap`` and compiled once per potential and kernel. A torch potential is evaluated from JAX
by one host callback per evaluation for all chains. Everything runs in 64-bit mode; the caller's setting is restored
on return.

The step size of every kernel is the leapfrog step ``eps``. MALA is HMC with one leapfrog: with
momentum p ~ N(0, I) the proposal is ``x - eps^2/2 grad U + eps p``, BlackJAX's MALA at step size
``eps^2 / 2``. The momentum is refreshed as ``p <- sqrt(1 - r) p + sqrt(r) z`` before each trajectory, flipped
on rejection where r < 1, and travels with its chain.

Where only the score of a density is known, HMC and MALA accept by its work along the trajectory
(``bridges.blackjax.line_integral``).

A trajectory of L leapfrog steps costs L evaluations: energy and gradient at its start are reused. A non-finite energy
or gradient is passed to the kernel as a log-density of minus infinity, and is counted.

Source: MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901;
A Generalized Guided Monte Carlo Algorithm (Horowitz, 1991), https://doi.org/10.1016/0370-2693(91)90812-5
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final, get_args

import jax.numpy as jnp
from blackjax.mcmc import nuts

from ppl_diffusion.arrays import Array, check_count
from ppl_diffusion.sampling.step import Adaptive, StepPolicy

from .line_integral import Rule
from .trajectories import adjusted_step, init_chain, unadjusted_step
from .walker import BlackJAXKernel, Info, LogDensity, info_of


def _check_trajectory(leapfrogs: Any, refreshment: float) -> None:
    check_count("leapfrogs", leapfrogs, example=3)
    if not 0 < refreshment <= 1:
        raise ValueError(f"refreshment must be in (0, 1], 1 draws a new momentum each time, got {refreshment}")


def _check_work(work: Any) -> None:
    if work not in get_args(Rule):
        raise ValueError(f"unknown rule {work!r} of the work: use work='trapezoid' or work='simpson'")


@final
@dataclass(frozen=True)
class HMC(BlackJAXKernel):
    """Hamiltonian Monte Carlo with unit mass, built on BlackJAX's HMC proposal.

    Latent sites of a Pyro model other than the diffusion prior are rescaled by adaptive length scales
    (``ppl_diffusion.sampling.step.block_scales``); all other coordinates are used as they are.

    Args:
        step: leapfrog step: a number, ``SigmaScaled(0.5)`` or ``Adaptive(...)``.
        leapfrogs: number of leapfrog steps of a trajectory; each costs one evaluation.
        refreshment: share ``r`` in (0, 1] of the momentum's variance that is redrawn before each trajectory.
        work: how a density without an energy is tested: "simpson", with a second evaluation in each leapfrog, or
            "trapezoid", at no cost but with a bias that grows with the step. Not used for a density with an energy.

    Raises:
        ValueError: ``leapfrogs`` below 1, ``refreshment`` outside (0, 1], or an unknown ``work``.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8)
    leapfrogs: int = 3
    refreshment: float = 1.0
    work: Rule = "simpson"
    needs_energy: ClassVar[bool] = False
    counts_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_trajectory(self.leapfrogs, self.refreshment)
        _check_work(self.work)

    @property
    def keeps_momentum(self) -> bool:
        """True if only a part of the momentum is redrawn before each trajectory."""
        return self.refreshment < 1

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        return init_chain(key, position, momentum, log_density, keep=self.keeps_momentum)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        leapfrogs, refreshment, work = self.leapfrogs, self.refreshment, self.work
        return adjusted_step(key, chain, log_density, step, leapfrogs=leapfrogs, refreshment=refreshment, work=work)


@final
@dataclass(frozen=True)
class MALA(BlackJAXKernel):
    """The Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step and a full momentum refreshment.

    Args:
        step: leapfrog step ``eps``; BlackJAX's own MALA calls ``eps**2 / 2`` its step size.
        work: how a density without an energy is tested, see :class:`HMC`.

    Source: Exponential Convergence of Langevin Distributions (Roberts and Tweedie, 1996),
    https://doi.org/10.2307/3318418
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.7)
    work: Rule = "simpson"
    leapfrogs: ClassVar[int] = 1
    needs_energy: ClassVar[bool] = False
    counts_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_work(self.work)

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        return init_chain(key, position, momentum, log_density, keep=False)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        return adjusted_step(key, chain, log_density, step, leapfrogs=1, refreshment=1.0, work=self.work)


@final
@dataclass(frozen=True)
class UHMC(BlackJAXKernel):
    """Unadjusted HMC with partial momentum refreshment: without an accept/reject step, the step size biases the draws.

    A trajectory that diverges is discarded: one that ends at a non-finite log-density, or at a Hamiltonian that has
    grown by 1,000 nats, because a chain thrown so far would not come back.

    Args:
        step: leapfrog step; the default adapts to the acceptance rate that a Metropolis test would have had.
        leapfrogs: number of leapfrog steps of a trajectory.
        refreshment: share of the momentum's variance that is redrawn before each trajectory.

    Raises:
        ValueError: ``leapfrogs`` below 1, or ``refreshment`` outside (0, 1].
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.9, jitter=1.0)
    leapfrogs: int = 3
    refreshment: float = 0.5
    adjusted: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    counts_exactly: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_trajectory(self.leapfrogs, self.refreshment)

    @property
    def keeps_momentum(self) -> bool:
        """True if only a part of the momentum is redrawn before each trajectory."""
        return self.refreshment < 1

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        return init_chain(key, position, momentum, log_density, keep=self.keeps_momentum)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        return unadjusted_step(key, chain, log_density, step, leapfrogs=self.leapfrogs, refreshment=self.refreshment)


@final
@dataclass(frozen=True)
class ULA(BlackJAXKernel):
    """The unadjusted Langevin algorithm, ``x - eps^2/2 grad U + eps z``: UHMC with one leapfrog step.

    Args:
        step: leapfrog step ``eps``; the default adapts to the acceptance rate that a Metropolis test would have had.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.9, jitter=1.0)
    leapfrogs: ClassVar[int] = 1
    adjusted: ClassVar[bool] = False
    needs_energy: ClassVar[bool] = False
    counts_exactly: ClassVar[bool] = True

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        return init_chain(key, position, momentum, log_density, keep=False)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        return unadjusted_step(key, chain, log_density, step, leapfrogs=1, refreshment=1.0)


@final
@dataclass(frozen=True)
class NUTS(BlackJAXKernel):
    """BlackJAX's No-U-Turn sampler with unit mass.

    A batched step takes as long as the longest trajectory among the chains. By default the step size is therefore not
    jittered: a chain that drew a small step would have a long trajectory.

    Args:
        step: leapfrog step.
        max_doublings: a trajectory has at most ``2 ** max_doublings - 1`` leapfrog steps.

    Source: The No-U-Turn Sampler (Hoffman and Gelman, 2014), https://jmlr.org/papers/v15/hoffman14a.html
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8, jitter=1.0)
    max_doublings: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_doublings", self.max_doublings, example=6)

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        return nuts.init(position, log_density)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        kernel = nuts.build_kernel()
        chain, info = kernel(key, chain, log_density, step, jnp.ones_like(chain.position), self.max_doublings)
        ends = info.trajectory_leftmost_state.logdensity, info.trajectory_rightmost_state.logdensity
        nonfinite = ~(jnp.isfinite(ends[0]) & jnp.isfinite(ends[1]))
        count = info.num_integration_steps
        return chain, info_of(info.acceptance_rate, info.is_divergent, nonfinite, count, info.energy)
