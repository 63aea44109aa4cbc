"""A BlackJAX kernel bound to a potential: compiled functions for arriving at a level, moving and recording.

Chains are batched by ``vmap`` in 64-bit mode. The kernel works in coordinates divided by their length scales
(``ppl_diffusion.sampling.step.block_scales``), which replaces a mass matrix. Energy and gradient of a position come
from one evaluation; where either is not finite, the kernel sees a log-density of minus infinity.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.target import Target, require_energy
from ppl_diffusion.sampling.kernel import State, SteppedKernel
from ppl_diffusion.sampling.step import StepState, as_policy, scaled

from ..torch_jax import to_jax
from ..torch_jax.convert import crossings
from .context import chosen_device, in_jax_context
from .density import LogDensity, flat_log_density
from .each_level import EachLevel
from .line_integral import Forces, LineIntegral

MOVE_STATS = ("acceptance_rate", "diverging", "nonfinite", "jump_distance", "energy_midway", "step_size")
"""Statistics of the steps at a rung, each ``(chains,)``; ``diverging`` and ``nonfinite`` are counts."""


class Info(NamedTuple):
    """Scalar statistics of one step of one chain; NaN for what a kernel does not report.

    ``adaptation`` is the acceptance rate that step size adaptation uses; ``n_steps`` counts leapfrog steps; ``energy``
    is the Hamiltonian of the draw, its energy and the kinetic energy of its momentum.
    """

    acceptance_rate: Array
    adaptation: Array
    diverging: Array
    nonfinite: Array
    n_steps: Array
    energy: Array


def info_of(rate: Any, diverging: Any, nonfinite: Any, n_steps: Any, energy: Any) -> Info:
    """Return statistics as float64; the step size adapts to ``rate``, the acceptance rate."""
    real = partial(jnp.asarray, dtype=jnp.float64)
    return Info(real(rate), real(rate), real(diverging), real(nonfinite), real(n_steps), real(energy))


@dataclass(frozen=True)
class BlackJAXKernel(SteppedKernel):
    """Base class of kernels; subclasses define how a single chain is initialised and takes a step."""

    counts_exactly: ClassVar[bool] = False
    """Whether every chain takes the same number of leapfrogs, so that ``n_steps`` says what a step costs."""

    @property
    def keeps_momentum(self) -> bool:
        """Whether a chain takes its momentum to the next level; False where every step draws a new one."""
        return False

    @abstractmethod
    def init_chain(self, key: Array, position: Array, momentum: Array | None, log_density: LogDensity) -> Any:
        """Return the BlackJAX state of a chain at ``position (size,)``; costs one evaluation.

        ``momentum`` is None at the first level, and for kernels that do not keep it.
        """

    @abstractmethod
    def step_chain(self, key: Array, chain: Any, log_density: LogDensity, step: Array) -> tuple[Any, Info]:
        """Take one step of one chain; return its new BlackJAX state and statistics."""

    def bind(self, potential: Target) -> BlackJAXWalker:
        """Return the kernel bound to ``potential``; compiled functions are reused for an equal kernel.

        Raises:
            TypeError: only the gradient of ``potential`` is known, and the kernel needs energies.
        """
        if self.needs_energy:
            require_energy(potential, f"kernels such as {self}")
        crossed = to_jax if potential.has_energy else LineIntegral
        return potential.memo(self, lambda: BlackJAXWalker(self, crossed(potential)))


class BlackJAXWalker(EachLevel):
    """A BlackJAX kernel bound to a potential; implements ``ppl_diffusion.sampling.kernel.Walker``."""

    def __init__(self, kernel: BlackJAXKernel, potential: Target) -> None:
        self.kernel, self.potential, self.crossings = kernel, potential, list(crossings(potential))
        self.policy = as_policy(kernel.step)
        midpoints = isinstance(potential, LineIntegral) and getattr(kernel, "work", "") == "simpson"
        self.evaluations_per_leapfrog = 2 if midpoints else 1
        self.diffused = np.broadcast_to(potential.diffused, potential.event_shape).ravel()
        self._arrive_compiled = jax.jit(self._arrive)
        self._move_compiled = jax.jit(self._move)
        self._record_compiled = jax.jit(self._record, static_argnames="draws")
        self._compile_each()

    @in_jax_context
    def arrive(self, positions: Array, level: int, previous: State | None, *, seed: int) -> State:
        scales, sigma = self.kernel.scales(previous, self.diffused), self.potential.schedule.sigma(level)
        x = positions if isinstance(positions, jax.Array) else np.asarray(positions)
        momentum = previous.carried.momentum if previous is not None and self.kernel.keeps_momentum else None
        chains, found = self._arrive_compiled(x, momentum, level, seed, scales)
        norms = None if previous is None else (self._norms(previous.carried), self._norms(chains))
        step = self.kernel.enter(previous, norms, size=scales.size, sigma=sigma)
        return self._state(level, chains, found, step, scales)

    @in_jax_context
    def place(self, state: State, positions: Array, *, seed: int) -> State:
        x = positions if isinstance(positions, jax.Array) else np.asarray(positions)
        chains, found = self._arrive_compiled(x, None, state.level, seed, state.scales)
        return self._state(state.level, chains, found, state.step, state.scales)

    @in_jax_context
    def move(self, state: State, steps: int, *, seed: int) -> tuple[State, Mapping[str, np.ndarray]]:
        begun = self._calls()
        done = self._move_compiled(
            state.carried, np.array(state.step, dtype=np.float64), state.level, steps, seed, state.scales
        )
        return self._moved(state, done, begun)

    @in_jax_context
    def record(self, state: State, draws: int, *, seed: int) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        step, begun = np.exp(np.float64(state.step.log_step)), self._calls()
        done = self._record_compiled(state.carried, step, state.level, seed, state.scales, draws=draws)
        return self._recorded(state, done, begun)

    def _moved(self, state: State, done: Any, begun: Any) -> tuple[State, Mapping[str, np.ndarray]]:
        """Return the state behind what ``_move`` has done from ``state``, and statistics; see :meth:`_calls`."""
        chains, found, step, moved, calls = done
        stats = dict(zip(MOVE_STATS, np.asarray(moved), strict=True))
        stats["gradient_calls"] = (
            _as_count(calls * self.evaluations_per_leapfrog) if begun is None else np.array(self._calls() - begun)
        )
        return self._state(state.level, chains, found, StepState(*np.asarray(step).tolist()), state.scales), stats

    def _recorded(self, state: State, done: Any, begun: Any) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        """Return the state behind what ``_record`` has done from ``state``, positions and statistics."""
        chains, found, (flat, log_density, info) = done
        step = np.exp(np.float64(state.step.log_step))
        positions = scaled(np.asarray(flat), state.scales).reshape(*flat.shape[:2], *self.potential.event_shape)
        stats = {name: np.asarray(value) for name, value in info._asdict().items() if name != "adaptation"}
        made = stats["n_steps"].max(axis=0).sum() * self.evaluations_per_leapfrog
        calls = _as_count(made) if begun is None else np.array(self._calls() - begun)
        stats |= {"lp": np.asarray(log_density), "step_size": np.full(log_density.shape, float(step))}
        return (
            self._state(state.level, chains, found, state.step, state.scales),
            positions,
            {**stats, "gradient_calls": calls},
        )

    @in_jax_context
    def select(self, state: State, ancestors: np.ndarray) -> State:
        arrays = (state.positions, state.energy, state.gradient, state.carried)
        x, energy, gradient, chains = jax.tree.map(lambda array: array[ancestors], arrays)
        return state._replace(positions=x, energy=energy, gradient=gradient, carried=chains)

    def freeze(self, state: State) -> State:
        return state._replace(step=self.policy.freeze(state.step))

    def _calls(self) -> Any:
        """Evaluations of torch potentials so far, all of which take part in each; None if they need not be counted or
        cannot be."""
        counted = not self.kernel.counts_exactly and self.crossings
        return max(crossing.calls for crossing in self.crossings) if counted else None

    def _state(self, level: int, chains: Any, found: tuple[Array, ...], step: StepState, scales: np.ndarray) -> State:
        """Assemble the state of all chains; positions and gradients stay on JAX's device until somebody reads them."""
        positions, energy, gradient = found
        return State(level, positions, np.asarray(energy), gradient, step, chains, scales)

    def _describe(self, chains: Any, scales: Array) -> tuple[Array, Array, Array]:
        """Positions ``(chains, *event_shape)``, energies and their gradients; NaN if the kernel keeps no gradient."""
        shape = (chains.position.shape[0], *self.potential.event_shape)
        gradient = _gradient_of(chains)
        gradient = jnp.full(shape, jnp.nan) if gradient is None else -(gradient / scales[None]).reshape(shape)
        return (chains.position * scales[None]).reshape(shape), -chains.logdensity, gradient

    def _norms(self, chains: Any) -> np.ndarray:
        """Norms of the gradients of all chains, shape ``(chains,)``; NaN if the kernel keeps no gradient."""
        gradient = _gradient_of(chains)
        return np.full(len(chains.position), np.nan) if gradient is None else np.asarray(_row_norms(gradient))

    def _log_density(self, level: Array, scales: Any = 1.0) -> LogDensity:
        return flat_log_density(self.potential, level, scales)

    def _arrive(self, positions: Array, momentum: Array | None, level: Array, seed: Array, scales: Array) -> Any:
        flat = positions.astype(jnp.float64).reshape(-1, scales.size) / scales[None]
        keys = jax.random.split(jax.random.key(seed), flat.shape[0])

        def init(key: Array, position: Array, momentum: Array | None, level: Array, scales: Array) -> Any:
            return self.kernel.init_chain(key, position, momentum, self._log_density(level, scales))

        chains = self._each(init)(keys, flat, momentum)(level, scales)
        return chains, self._describe(chains, scales)

    def _step(self, key: Array, chains: Any, level: Array, step: Array, scales: Any = 1.0) -> tuple[Any, Info]:
        key_chains, key_steps = jax.random.split(key)
        keys = jax.random.split(key_chains, chains.position.shape[0])
        uniform = jax.random.uniform(key_steps, keys.shape, dtype=jnp.float64)
        steps = jnp.broadcast_to(self.policy.jittered(step, uniform), uniform.shape)

        def advance(key: Array, chain: Any, step: Array, level: Array, scales: Array) -> tuple[Any, Info]:
            return self.kernel.step_chain(key, chain, self._log_density(level, scales), step)

        return self._each(advance)(keys, chains, steps)(level, scales)

    def _each(self, function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
        """Return ``function`` of the values of a chain and of further ones that all chains share, for all chains at
        once: ``each(function)(*of_chains)(*shared)``.

        Chains are divided among the devices that JAX has on this machine, if their number allows and no default device
        was chosen, and if none of their evaluations takes place in torch, which all devices would wait for.
        """

        def of_chains(*chains: Any) -> Callable[..., Any]:
            def with_shared(*shared: Any) -> Any:
                axes = (*(0 if jax.tree.leaves(each) else None for each in chains), *(None for _ in shared))
                mapped = jax.vmap(function, in_axes=axes)
                devices = self._devices(len(chains[0]))
                if len(devices) < 2:
                    return mapped(*chains, *shared)
                mesh = jax.sharding.Mesh(np.array(devices), ("chains",))
                split, whole = jax.sharding.PartitionSpec("chains"), jax.sharding.PartitionSpec()
                places = (*(split for _ in chains), *(whole for _ in shared))
                spread = jax.shard_map(mapped, mesh=mesh, in_specs=places, out_specs=split, check_vma=False)
                return spread(*chains, *shared)

            return with_shared

        return of_chains

    def _devices(self, chains: int) -> list[Any]:
        """Return the devices among which so many chains are divided, one or none if they are not."""
        devices = [] if self.crossings or chosen_device() else jax.local_devices()
        return devices if devices and chains % len(devices) == 0 else []

    def _move(self, chains: Any, step: Array, level: Array, steps: Array, seed: Array, scales: Array) -> Any:
        key, count = jax.random.key(seed), chains.position.shape[0]
        totals = dict.fromkeys(MOVE_STATS[:4], jnp.zeros(count))
        totals |= {"energy_midway": -chains.logdensity, "gradient_calls": jnp.zeros(())}

        def body(i: Array, carry: Any) -> Any:
            chains, step, totals = carry
            moved, info = self._step(jax.random.fold_in(key, i), chains, level, jnp.exp(step.log_step), scales)
            jump = jnp.linalg.norm((moved.position - chains.position) * scales[None], axis=1)
            totals = {
                "acceptance_rate": totals["acceptance_rate"] + info.acceptance_rate,
                "diverging": totals["diverging"] + info.diverging,
                "nonfinite": totals["nonfinite"] + info.nonfinite,
                "jump_distance": totals["jump_distance"] + jump,
                "energy_midway": jnp.where(i < steps // 2, -moved.logdensity, totals["energy_midway"]),
                "gradient_calls": totals["gradient_calls"] + jnp.max(info.n_steps),
            }
            # A chain that cannot leave where the density is zero rejects every step, however short.
            alive = jnp.isfinite(chains.logdensity) | jnp.isfinite(moved.logdensity)
            rate = jnp.nanmean(jnp.where(alive | ~alive.any(), info.adaptation, jnp.nan))
            return moved, self.policy.update(step, rate), totals

        chains, after, totals = jax.lax.fori_loop(0, steps, body, (chains, StepState(*step), totals))
        totals["acceptance_rate"] = totals["acceptance_rate"] / steps  # NaN for no steps
        totals["jump_distance"] = totals["jump_distance"] / steps
        totals["step_size"] = jnp.full(count, jnp.exp(after.log_step))
        moved = jnp.stack([totals[name] for name in MOVE_STATS])
        return chains, self._describe(chains, scales), jnp.stack(after), moved, totals["gradient_calls"]

    def _record(self, chains: Any, step: Array, level: Array, seed: Array, scales: Array, draws: int) -> Any:
        def body(chains: Any, key: Array) -> Any:
            chains, info = self._step(key, chains, level, step, scales)
            return chains, (chains.position, chains.logdensity, info)

        chains, drawn = jax.lax.scan(body, chains, jax.random.split(jax.random.key(seed), draws))
        return chains, self._describe(chains, scales), jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), drawn)


def _gradient_of(chains: Any) -> Any:
    """Gradients of the log-density of all chains, shape ``(chains, size)``; None if the kernel keeps none."""
    gradient = getattr(chains, "logdensity_grad", None)
    return gradient.gradient if isinstance(gradient, Forces) else gradient


def _as_count(calls: Any) -> np.ndarray:
    """Return a number of evaluations as an integer, or NaN if it is not known."""
    return np.array(int(calls) if np.isfinite(calls) else np.nan)


@jax.jit
def _row_norms(rows: Array) -> Array:
    return jnp.linalg.norm(rows, axis=1)
