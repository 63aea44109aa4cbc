"""Metropolis tests without an energy: the work of the score along the trajectory's own leapfrog path.

Where only the score ``s`` is known, the gain of log-density from ``x`` to ``x'`` is replaced by the line integral of
the score over the straight lines between the points of the trajectory, ``d`` being such a line:

    trapezoid    (s(x) + s(x + d)) / 2 . d                          the scores of the leapfrogs, at no cost
    simpson      (s(x) + 4 s(x + d/2) + s(x + d)) / 6 . d           one more score a leapfrog

If the score is a gradient, a line's error is of third order in the step (trapezoid) or of fifth (Simpson), and that
of a trajectory of fixed length of second or fourth. With the reversed trajectory the work changes its sign, as a
difference of log-density does. Round a closed path it vanishes only if the score is a gradient: see
``ppl_diffusion.potentials.circulation``. Factors with an energy enter by its exact difference, only the others by work.

The work along a chain's accepted trajectories accumulates from its arrival at a level. The recorded energy is that of
the factors that have one minus this work.

Source: MCMC-Correction of Score-Based Diffusion Models for Model Composition (Sjoeberg et al., 2023),
https://arxiv.org/abs/2307.14012; Lam et al., 2026, arXiv 2605.09654
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.mcmc.integrators import IntegratorState

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.evaluation import evaluate
from ppl_diffusion.potentials.score import no_energy, split
from ppl_diffusion.potentials.target import Target

from ..torch_jax import to_jax

Rule = Literal["trapezoid", "simpson"]
"""How the work of the score along a line is computed."""


class LineIntegral(Target):
    """A target without an energy as a JAX target whose scores with and without an energy are known apart.

    Args:
        target: a target of which only the gradient is known; of a product, the factors that have an energy are told
            apart from the others.
    """

    backend = "jax"

    def __init__(self, target: Target) -> None:
        exact, rest = split(target)
        self.exact: Any = None if exact is None else to_jax(exact)
        self.rest: Any = to_jax(rest)
        self.schedule, self.event_shape, self.name = target.schedule, target.event_shape, target.name
        self._diffused = target.diffused

    @property
    def has_energy(self) -> bool:
        return False

    @property
    def diffused(self) -> Any:
        return self._diffused

    def parts(self) -> tuple[Any, ...]:
        return (self.rest,) if self.exact is None else (self.exact, self.rest)

    def forces(self, x: Array, level: Any) -> tuple[Array, Array, Array]:
        """Return the energy ``(*chains,)`` of the factors that have one, the gradient ``(*chains, *event_shape)`` of
        all, and that of the others, by one call of every network."""
        if self.exact is None:
            gradient = self.rest.value_and_grad(x, level=level)[1]
            return no_energy(gradient, len(self.event_shape)), gradient, gradient
        values = evaluate(tuple(dict.fromkeys(self.exact.leaves() + self.rest.leaves())), x, level)
        energy, known = self.exact._combine_with_gradient(_of(self.exact, values), x)
        _, rest = self.rest._combine_with_gradient(_of(self.rest, values), x)
        return energy, known + rest, rest

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.forces(x, level)[:2]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy(x, level=level)  # raises the error that says what to do


def _of(potential: Any, values: dict[Any, Any]) -> dict[Any, Any]:
    return {leaf: values[leaf] for leaf in potential.leaves()}


class Forces(NamedTuple):
    """What a chain carries in the place of the gradient of its log-density.

    Attributes:
        gradient: the score, shape ``(size,)``.
        rest: the score of the factors without an energy, shape ``(size,)``.
        work: work of ``rest`` along the accepted trajectories since arrival, a scalar.
    """

    gradient: Array
    rest: Array
    work: Array


class WorkDensity(NamedTuple):
    """The log-density of a :class:`LineIntegral` at one level for points ``z (size,) = x / scales``, and its scores.

    Attributes:
        target: the target, or a weak reference to it.
        level: the level.
        scales: length scales of coordinates, shape ``(size,)``.
    """

    target: Any
    level: Array
    scales: Array

    def at(self, z: Array) -> tuple[Array, Array, Array]:
        """Return the log-density of the factors that have an energy, minus infinity where something is not finite, the
        score of all factors, and that of the others."""
        energy, gradient, rest = self.target.forces(self._point(z), self.level)
        finite = jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient))
        return jnp.where(finite, -energy, -jnp.inf), self._score(gradient), self._score(rest)

    def rest_at(self, z: Array) -> Array:
        """Return the score ``(size,)`` of the factors without an energy."""
        return self._score(self.target.rest.value_and_grad(self._point(z), level=self.level)[1])

    def _point(self, z: Array) -> Array:
        return (z * self.scales).reshape(self.target.event_shape)

    def _score(self, gradient: Array) -> Array:
        return -gradient.reshape(-1) * self.scales


def init_state(density: WorkDensity, position: Array, momentum: Array) -> IntegratorState:
    """Return BlackJAX's state of a chain on arrival, from where its work is counted."""
    log_density, gradient, rest = density.at(position)
    return IntegratorState(position, momentum, log_density, Forces(gradient, rest, jnp.zeros_like(log_density)))


def velocity_verlet(
    density: WorkDensity, kinetic_energy: Callable[[Array], Array], rule: Rule
) -> Callable[[IntegratorState, Array], IntegratorState]:
    """Return BlackJAX's leapfrog integrator with a log-density that grows by the work of the score."""
    velocity = jax.grad(kinetic_energy)

    def leapfrog(state: IntegratorState, step: Array) -> IntegratorState:
        before: Any = state.logdensity_grad
        momentum = state.momentum + 0.5 * step * before.gradient
        line = step * velocity(momentum)
        position = state.position + line
        known, gradient, rest = density.at(position)
        middle = density.rest_at(state.position + 0.5 * line) if rule == "simpson" else 0.5 * (before.rest + rest)
        work = before.work + jnp.dot((before.rest + 4 * middle + rest) / 6, line)
        log_density = jnp.where(jnp.isfinite(work), known + work, -jnp.inf)
        momentum = momentum + 0.5 * step * gradient
        return IntegratorState(position, momentum, log_density, Forces(gradient, rest, work))

    return leapfrog
