"""Any BlackJAX MCMC kernel as a kernel for annealed sampling: ``from_blackjax(build_kernel, init, ...)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc import hmc

from ppl_diffusion.arrays import Array, check_count, digest
from ppl_diffusion.sampling.step import Adaptive, StepPolicy, StepState, centred

from .walker import BlackJAXKernel, Info, LogDensity, info_of

KEY_NAMES = ("rng_key", "random_generator_arg")
"""What BlackJAX calls the random key of an ``init``."""


@dataclass(frozen=True, repr=False)
class FromBlackJAX(BlackJAXKernel):
    """An arbitrary BlackJAX kernel; built by :func:`from_blackjax`."""

    build_kernel: Callable[..., Any] = hmc.build_kernel
    init: Callable[..., Any] = hmc.init
    parameters: tuple[tuple[str, Any], ...] = ()
    exact: bool = True
    evaluations: int | None = None
    init_takes: tuple[str, ...] = ("logdensity_fn",)

    @property
    def adjusted(self) -> bool:
        """Whether the kernel leaves the density invariant: the ``adjusted`` argument of :func:`from_blackjax`."""
        return self.exact

    def __repr__(self) -> str:
        given = {name: constant.value for name, constant in self.parameters}
        given |= {} if isinstance(self.step, _NoStep) else {"step_size": self.step}
        given |= {} if self.evaluations is None else {"evaluations": self.evaluations}
        shown = [f"{name}={_describe(value)}" for name, value in given.items()]
        return f"from_blackjax({', '.join([_describe(self.build_kernel), _describe(self.init), *shown])})"

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
        count = getattr(info, "num_integration_steps", jnp.nan if self.evaluations is None else self.evaluations)
        # What other kernels call energy may be that of a rejected proposal.
        return chain, info_of(rate, getattr(info, "is_divergent", jnp.nan), jnp.nan, count, jnp.nan)


def from_blackjax(
    build_kernel: Callable[..., Any],
    init: Callable[..., Any],
    *,
    adjusted: bool = True,
    evaluations: int | None = None,
    **parameters: Any,
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
        evaluations: number of evaluations of the density in a step, such as 1 for ``mala``, for a kernel that does not
            report ``num_integration_steps``. If neither is known, ``gradient_calls`` is NaN, unless the potential is
            a torch network, whose calls are counted.
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
    if evaluations is not None:
        check_count("evaluations", evaluations, example=1)
    needed = _required(init)[1:]
    others = [name for name in needed if name not in KEY_NAMES][1:]
    if others:
        raise TypeError(f"this init needs {', '.join(others)} beside position and logdensity_fn: wrap it in a function")
    kinds = [parameter.kind for parameter in inspect.signature(init).parameters.values()]
    if len(kinds) < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise TypeError("this init takes no logdensity_fn: from_blackjax takes MCMC kernels only")
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
        evaluations=evaluations,
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


def _describe(value: Any) -> str:
    """Return a text that tells values apart and is the same in every process; of a function only its name."""
    if isinstance(value, partial):
        parts = [_describe(value.func), *map(_describe, value.args)]
        return f"partial({', '.join(parts + [f'{name}={_describe(one)}' for name, one in value.keywords.items()])})"
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, (int, float, str, StepPolicy)):
        return repr(value)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value)]
    return f"<{digest(leaves)[:8]}>" if all(leaf.dtype != object for leaf in leaves) else "..."


@dataclass(frozen=True)
class _NoStep(StepPolicy):
    """Step policy of a kernel that has no step size."""

    def enter(self, previous: StepState | None, *, sigma: float, guess: float, rescale: float = 1.0) -> StepState:
        return centred(float("nan"))


@dataclass(frozen=True, eq=False)
class _Constant:
    """A kernel parameter compared by identity, so that kernels with array parameters can be compared and hashed."""

    value: Any
