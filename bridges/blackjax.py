"""BlackJAX kernels for annealed sampling: HMC, MALA, NUTS, unadjusted HMC and Langevin, and any other kernel.

Chains are batched by ``vmap`` and compiled once per potential and kernel. A torch potential is evaluated from JAX
by one host callback per evaluation for all chains. Everything runs in 64-bit mode; the caller's setting is restored
on return.

The step size of every kernel is the leapfrog step ``eps``. MALA is HMC with one leapfrog: with
momentum p ~ N(0, I) the proposal is ``x - eps^2/2 grad U + eps p``, BlackJAX's MALA at step size
``eps^2 / 2``. The momentum is refreshed as ``p <- sqrt(1 - r) p + sqrt(r) z`` before each trajectory, flipped
on rejection where r < 1, and travels with its chain.

A trajectory of L leapfrog steps costs L evaluations: energy and gradient at its start are reused. A non-finite energy
or gradient is passed to the kernel as a log-density of minus infinity, and is counted.

Source: MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901;
A Generalized Guided Monte Carlo Algorithm (Horowitz, 1991), https://doi.org/10.1016/0370-2693(91)90812-5
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc, integrators, metrics, nuts, trajectory

from ppl_diffusion.arrays import Array
from ppl_diffusion.kernel import check_count
from ppl_diffusion.step import Adaptive, StepPolicy, StepState, centred

from .blackjax_walker import BlackJAXKernel, Info, LogDensity

__all__ = ["HMC", "MALA", "NUTS", "UHMC", "ULA", "FromBlackJAX", "from_blackjax"]

KEY_NAMES = ("rng_key", "random_generator_arg")
"""What BlackJAX calls the random key of an ``init``."""


@dataclass(frozen=True)
class HMC(BlackJAXKernel):
    """Hamiltonian Monte Carlo with unit mass, built on BlackJAX's HMC proposal.

    Latent sites of a Pyro model other than the diffusion prior are rescaled by adaptive length scales
    (``ppl_diffusion.step.block_scales``); all other coordinates are used as they are.

    Args:
        step: leapfrog step: a number, ``SigmaScaled(0.5)`` or ``Adaptive(...)``.
        leapfrogs: number of leapfrog steps of a trajectory; each costs one evaluation.
        refreshment: share ``r`` in (0, 1] of the momentum's variance that is redrawn before each trajectory.

    Raises:
        ValueError: ``leapfrogs`` below 1, or ``refreshment`` outside (0, 1].
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8)
    leapfrogs: int = 3
    refreshment: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leapfrogs", self.leapfrogs, example=3)
        if not 0 < self.refreshment <= 1:
            raise ValueError(f"refreshment must be in (0, 1], 1 draws a new momentum each time, got {self.refreshment}")

    @property
    def keeps_momentum(self) -> bool:
        """True if only a part of the momentum is redrawn before each trajectory."""
        return self.refreshment < 1

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        if not self.keeps_momentum:
            momentum = jnp.zeros_like(position)  # redrawn before it is used
        elif momentum is None:
            momentum = jax.random.normal(key, position.shape, position.dtype)
        return integrators.new_integrator_state(log_density, position, momentum)

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        key_momentum, key_accept = jax.random.split(key)
        kinetic = _unit_mass(chain.position).kinetic_energy
        generate = hmc.hmc_proposal(integrators.velocity_verlet(log_density, kinetic), kinetic, step, self.leapfrogs)
        chain, info, _ = generate(key_accept, _refresh_momentum(key_momentum, chain, self.refreshment))
        # BlackJAX returns an accepted chain with its momentum flipped, and a rejected chain with its initial momentum.
        # Flipping both makes an accepted chain continue in its direction and a rejected chain reverse.
        chain = chain._replace(momentum=-chain.momentum)
        nonfinite = ~jnp.isfinite(info.proposal.logdensity)
        energy = kinetic(chain.momentum) - chain.logdensity
        return chain, _info(info.acceptance_rate, info.is_divergent, nonfinite, self.leapfrogs, energy)


@dataclass(frozen=True)
class MALA(HMC):
    """The Metropolis-adjusted Langevin algorithm: HMC with one leapfrog step and a full momentum refreshment.

    Args:
        step: leapfrog step ``eps``; BlackJAX's own MALA calls ``eps**2 / 2`` its step size.

    Source: Exponential Convergence of Langevin Distributions (Roberts and Tweedie, 1996),
    https://doi.org/10.2307/3318418
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.7)
    leapfrogs: int = field(default=1, init=False)
    refreshment: float = field(default=1.0, init=False)


@dataclass(frozen=True)
class UHMC(HMC):
    """Unadjusted HMC with partial momentum refreshment: without an accept/reject step, the step size biases the draws.

    A trajectory that ends at a non-finite log-density is discarded.

    Args:
        step: leapfrog step; the default adapts to the acceptance rate that a Metropolis test would have had.
        leapfrogs: number of leapfrog steps of a trajectory.
        refreshment: share of the momentum's variance that is redrawn before each trajectory.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.9, jitter=1.0)
    refreshment: float = 0.5

    @property
    def adjusted(self) -> bool:
        """False: the step size biases the draws."""
        return False

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        kinetic = _unit_mass(chain.position).kinetic_energy
        integrate = trajectory.static_integration(integrators.velocity_verlet(log_density, kinetic))
        begun = _refresh_momentum(key, chain, self.refreshment)
        ended = integrate(begun, step, self.leapfrogs)
        finite = jnp.isfinite(ended.logdensity)
        before, after = (kinetic(state.momentum) - state.logdensity for state in (begun, ended))
        would_accept = jnp.where(finite, jnp.exp(jnp.minimum(before - after, 0.0)), 0.0)
        chain = jax.tree.map(lambda new, old: jnp.where(finite, new, old), ended, begun)
        info = _info(jnp.nan, jnp.nan, ~finite, self.leapfrogs, jnp.where(finite, after, before))
        return chain, info._replace(adaptation=would_accept)


@dataclass(frozen=True)
class ULA(UHMC):
    """The unadjusted Langevin algorithm, ``x - eps^2/2 grad U + eps z``: UHMC with one leapfrog step.

    Args:
        step: leapfrog step ``eps``.
    """

    leapfrogs: int = field(default=1, init=False)
    refreshment: float = field(default=1.0, init=False)


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
        return chain, _info(info.acceptance_rate, info.is_divergent, nonfinite, info.num_integration_steps, info.energy)


@dataclass(frozen=True, repr=False)
class FromBlackJAX(BlackJAXKernel):
    """An arbitrary BlackJAX kernel; built by :func:`from_blackjax`."""

    build_kernel: Callable[..., Any] = hmc.build_kernel
    init: Callable[..., Any] = hmc.init
    parameters: tuple[tuple[str, Any], ...] = ()
    exact: bool = True
    init_takes: tuple[str, ...] = ("logdensity_fn",)

    @property
    def adjusted(self) -> bool:
        """Whether the kernel leaves the density invariant: the ``adjusted`` argument of :func:`from_blackjax`."""
        return self.exact

    def __repr__(self) -> str:
        functions = [f"{f.__module__}.{getattr(f, '__qualname__', '')}" for f in (self.build_kernel, self.init)]
        step = [] if isinstance(self.step, _NoStep) else [f"step_size={self.step!r}"]
        return f"from_blackjax({', '.join([*functions, *step, *(name + '=...' for name, _ in self.parameters)])})"

    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        chain = self.init(position, *(key if name in KEY_NAMES else log_density for name in self.init_takes))
        for needed in ("position", "logdensity"):
            if not hasattr(chain, needed):
                raise TypeError(f"the state of {self.init} has no {needed}: from_blackjax takes MCMC kernels only")
        return chain

    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        given = {name: constant.value for name, constant in self.parameters}
        if not isinstance(self.step, _NoStep):
            given["step_size"] = step
        chain, info = self.build_kernel()(key, chain, log_density, **given)
        rate = getattr(info, "acceptance_rate", jnp.nan)
        if isinstance(self.step, Adaptive) and not hasattr(info, "acceptance_rate"):
            raise TypeError("this kernel reports no acceptance_rate to adapt its step by: give step_size= a number")
        count = getattr(info, "num_integration_steps", 1)
        energy = getattr(info, "energy", jnp.nan)
        return chain, _info(rate, getattr(info, "is_divergent", jnp.nan), jnp.nan, count, energy)


def from_blackjax(
    build_kernel: Callable[..., Any], init: Callable[..., Any], *, adjusted: bool = True, **parameters: Any
) -> FromBlackJAX:
    """Wrap any BlackJAX MCMC kernel, given its ``build_kernel`` and ``init``.

    Example: ``from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, step_size=0.01)``.

    Args:
        build_kernel: returns ``kernel(rng_key, state, logdensity_fn, **parameters)``.
        init: returns a state from ``(position, logdensity_fn)``, or from these and a random key of the chain's own, as
            those of ``ghmc``, ``dynamic_hmc`` and the unadjusted ``mclmc`` do; called on arrival at every rung. A key
            is known by its name, ``rng_key`` or ``random_generator_arg``, and may be the second or third. The
            state must have the fields ``position``, ``logdensity`` and, for ``reverse_step=True``,
            ``logdensity_grad``. Positions are flat, shape ``(size,)``. Kernels with a Gaussian prior of their own, such
            as ``elliptical_slice``, sample the density times that prior: divide the potential by it. The start, the
            weights and the log-normaliser are then those of the quotient: give ``init=``, and do not resample.
        adjusted: whether the kernel leaves the density invariant; if not, ``diagnose`` warns.
        parameters: passed to the kernel by name. ``step_size`` has BlackJAX's meaning for this kernel, and may also be
            ``SigmaScaled`` or ``Adaptive`` where it is a length (that of ``mala`` is half the square of one). Arrays
            are passed unchanged.

    Raises:
        TypeError: a parameter that the kernel does not take, or an ``init`` that needs further arguments.
    """
    if hasattr(build_kernel, "build_kernel"):
        raise TypeError(
            "from_blackjax takes an algorithm in parts: pass its .build_kernel and its .init, such as "
            "blackjax.mala.build_kernel, blackjax.mala.init"
        )
    needed = _required(init)[1:]
    others = [name for name in needed if name not in KEY_NAMES][1:]
    if others:
        raise TypeError(f"this init needs {', '.join(others)} beside position and logdensity_fn: wrap it in a function")
    if not [*inspect.signature(init).parameters][1:]:
        raise TypeError(f"{init.__module__}.init takes no logdensity_fn: from_blackjax takes MCMC kernels only")
    unbuilt = _required(build_kernel)
    if unbuilt:
        names = ", ".join(unbuilt)
        raise TypeError(f"this build_kernel needs {names}: give from_blackjax(lambda: build_kernel({names}), init)")
    known = inspect.signature(build_kernel()).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name in parameters:
        if name not in known and not takes_any:
            raise TypeError(f"this kernel takes no {name}: it has {', '.join(list(known)[3:]) or 'no parameters'}")
    lacking = [name for name in _required(build_kernel())[3:] if name not in parameters]
    if lacking:
        given = ", ".join(f"{name}=..." for name in lacking)
        raise TypeError(f"this kernel needs {', '.join(lacking)}: give from_blackjax(build_kernel, init, {given})")
    step = parameters.pop("step_size", None)
    frozen = tuple((name, _Constant(value)) for name, value in parameters.items())
    return FromBlackJAX(
        step=_NoStep() if step is None else step,
        build_kernel=build_kernel,
        init=init,
        parameters=frozen,
        exact=adjusted,
        init_takes=tuple(needed) or FromBlackJAX.init_takes,
    )


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters of a function that have no default."""
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
    ]


@dataclass(frozen=True)
class _NoStep(StepPolicy):
    """Step policy of a kernel that has no step size."""

    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        return centred(float("nan"))


@dataclass(frozen=True, eq=False)
class _Constant:
    """A kernel parameter compared by identity, so that kernels with array parameters can be compared and hashed."""

    value: Any


def _refresh_momentum(key: Array, chain: Any, refreshment: float) -> Any:
    fresh = jax.random.normal(key, chain.momentum.shape, chain.momentum.dtype)
    kept = 0.0 if refreshment == 1 else (1 - refreshment) ** 0.5 * chain.momentum
    return chain._replace(momentum=kept + refreshment**0.5 * fresh)


def _unit_mass(position: Array) -> Any:
    return metrics.default_metric(jnp.ones_like(position))


def _info(rate: Any, diverging: Any, nonfinite: Any, n_steps: Any, energy: Any) -> Info:
    real = partial(jnp.asarray, dtype=jnp.float64)
    return Info(real(rate), real(rate), real(diverging), real(nonfinite), real(n_steps), real(energy))
