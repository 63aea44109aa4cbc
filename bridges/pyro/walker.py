"""Pyro kernels bound to a potential, which step each chain by itself, in one process or in several.

While its cache is filled, Pyro's HMC ignores the position that it is given, and it keeps the energy of the previous
density when the target changes. The cache is therefore set before every step, from the position, energy and gradient
of the chain at the current level, so that nothing is stale and nothing is evaluated twice. Pyro draws from torch's
global generator. It is seeded for every chain and step inside ``fork_rng``, which restores it afterwards, so that the
trace does not depend on how chains are distributed over processes.

A rung of ``MASS_STEPS`` steps or more adapts a diagonal mass matrix, from the positions of all chains over the first
half of the rung. It is scaled so that the stiffest coordinate keeps unit mass, so the leapfrog step keeps its meaning
and continues to adapt. Every rung starts from unit mass, except that the latent sites without a diffusion prior start
from the scales of ``ppl_diffusion.sampling.step.block_scales``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.ops.welford import WelfordCovariance
from torch import Tensor

from ppl_diffusion.arrays import on_cpu
from ppl_diffusion.potentials.target import Target
from ppl_diffusion.sampling.kernel import State, SteppedKernel
from ppl_diffusion.sampling.step import as_policy, scaled

from ..torch_jax import to_torch

SITE = "x"
"""Name of the only site of the models that Pyro's kernels sample."""

ZERO_DENSITY_ENERGY = 1e300
"""Finite energy that stands for infinity in Pyro's kernels."""

MASS_STEPS = 20
"""Fewest steps of a rung that adapts a mass matrix."""


class Task(NamedTuple):
    """The inputs of one step of one chain; ``inverse_mass`` is diagonal, shape ``(size,)``."""

    level: int
    step: float
    inverse_mass: np.ndarray
    position: np.ndarray
    energy: float
    gradient: np.ndarray
    seed: int


class StepResult(NamedTuple):
    """The result of one step of one chain: its new state and statistics."""

    position: np.ndarray
    energy: float
    gradient: np.ndarray
    acceptance_rate: float
    diverging: float
    nonfinite: float
    n_steps: float


RunTasks = Callable[[Sequence[Task]], Sequence[StepResult]]
"""Function that runs tasks, possibly in other processes, and returns their results in order."""


@dataclass(frozen=True)
class PyroKernel(SteppedKernel):
    """Base class of Pyro's kernels; every chain takes its own steps."""

    adapt_mass_matrix: bool = field(default=True, kw_only=True)

    @abstractmethod
    def build(self, potential_fn: Callable[..., Any]) -> Any:
        """Return a Pyro kernel without adaptation."""

    @abstractmethod
    def set_step(self, sampler: Any, step: float) -> None:
        """Set the leapfrog step of a Pyro kernel."""

    def bind(self, potential: Target) -> PyroWalker:
        """Return the kernel bound to ``potential``, converted to torch."""
        return PyroWalker(self, to_torch(potential))


class PyroWalker:
    """A Pyro kernel bound to a potential; implements ``ppl_diffusion.sampling.kernel.Walker``.

    ``run_tasks`` may run the steps of chains in other processes; by default :meth:`step_chains` runs them in this one.
    """

    def __init__(self, kernel: PyroKernel, potential: Target, *, run_tasks: RunTasks | None = None) -> None:
        self.kernel, self.potential, self.policy = kernel, potential, as_policy(kernel.step)
        self.run_tasks = run_tasks or self.step_chains
        self.level, self.calls, self.nonfinite = 0, 0, 0
        self.sampler = self._build()
        self.diffused = np.broadcast_to(potential.diffused, potential.event_shape).ravel()

    def arrive(self, positions: Any, level: int, previous: State | None, *, seed: int) -> State:
        x, energy, gradient = self._evaluate(positions, level)
        scales = self.kernel.scales(previous, self.diffused)
        norms = None if previous is None else (_norms(previous.gradient, previous.scales), _norms(gradient, scales))
        step = self.kernel.enter(previous, norms, size=scales.size, sigma=self.potential.schedule.sigma(level))
        masses = np.tile(scales**2, (len(x), 1))
        return State(level, x, energy, gradient, step, masses, scales)

    def place(self, state: State, positions: Any, *, seed: int) -> State:
        x, energy, gradient = self._evaluate(positions, state.level)
        return state._replace(positions=x, energy=energy, gradient=gradient)

    def _evaluate(self, positions: Any, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions, their energies ``(chains,)``, infinite where something is not finite, and gradients."""
        x = np.asarray(positions, dtype=np.float64)
        energy, gradient = (value.detach().cpu().numpy() for value in self.potential.value_and_grad(x, level=level))
        finite = np.isfinite(energy) & np.isfinite(gradient.reshape(len(x), -1)).all(1)
        return x, np.where(finite, energy, np.inf), gradient

    def move(self, state: State, steps: int, *, seed: int) -> tuple[State, Mapping[str, np.ndarray]]:
        chains = len(state.energy)
        names = ("acceptance_rate", "diverging", "nonfinite", "jump_distance")
        totals = {name: np.zeros(chains) for name in names}
        midway, calls, seeds = state.energy, 0, _seeds(seed, steps, chains)
        variances = WelfordCovariance(diagonal=True)
        adapts = self.kernel.adapt_mass_matrix and steps >= MASS_STEPS
        for i in range(steps):
            before = state
            state, info = self._step(state, seeds[i])
            jump = np.linalg.norm((state.positions - before.positions).reshape(chains, -1), axis=1)
            for name, value in (info | {"jump_distance": jump}).items():
                if name in totals:
                    totals[name] = totals[name] + value
            calls += int(info["n_steps"].sum())
            # A chain that cannot leave where the density is zero rejects every step, however short.
            alive = np.isfinite(before.energy) | np.isfinite(state.energy)
            rate = float(info["acceptance_rate"][alive | ~alive.any()].mean())
            state = state._replace(step=self.policy.update(state.step, rate))
            if i < steps // 2:
                midway = state.energy
                for x in state.positions if adapts else ():
                    variances.update(torch.from_numpy(x.ravel()))
            if adapts and i + 1 == steps // 2:
                state = state._replace(carried=_inverse_mass(variances, chains))
        stats: dict[str, np.ndarray] = dict(totals)
        for name in ("acceptance_rate", "jump_distance"):
            stats[name] = totals[name] / steps if steps else np.full(chains, np.nan)
        stats["step_size"] = np.full(chains, np.exp(float(state.step.log_step)))
        return state, {**stats, "energy_midway": midway, "gradient_calls": np.array(calls)}

    def record(self, state: State, draws: int, *, seed: int) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        positions, rows = [], []
        for seeds in _seeds(seed, draws, len(state.energy)):
            state, info = self._step(state, seeds)
            positions.append(state.positions)
            rows.append(info | {"lp": -state.energy})
        stats = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        stats["step_size"] = np.full(stats["lp"].shape, np.exp(float(state.step.log_step)))
        calls = int(stats["n_steps"].sum())
        return state, np.stack(positions, axis=1), {**stats, "gradient_calls": np.array(calls)}

    def select(self, state: State, ancestors: np.ndarray) -> State:
        arrays = (state.positions[ancestors], state.energy[ancestors], state.gradient[ancestors])
        return State(state.level, *arrays, state.step, state.carried[ancestors], state.scales)

    def freeze(self, state: State) -> State:
        return state._replace(step=self.policy.freeze(state.step))

    @on_cpu()
    @torch.enable_grad()
    def step_chains(self, tasks: Sequence[Task]) -> list[StepResult]:
        """Run tasks one after the other, in this process."""
        with torch.random.fork_rng(devices=[]):
            return [self._step_chain(task) for task in tasks]

    def _step(self, state: State, seeds: Sequence[int]) -> tuple[State, dict[str, np.ndarray]]:
        """Take one step of every chain; return the new state and statistics, each ``(chains,)``."""
        step = float(np.exp(state.step.log_step))
        columns = (state.carried, state.positions, state.energy, state.gradient, seeds)
        steps = (self.policy.jittered(step, np.random.default_rng(one).random()) for one in seeds)
        rows = zip(steps, *columns, strict=True)
        moved = self.run_tasks([Task(state.level, *row) for row in rows])
        fields = {name: np.stack([getattr(one, name) for one in moved]) for name in StepResult._fields}
        position, energy, gradient = (fields.pop(name) for name in ("position", "energy", "gradient"))
        arrived = state._replace(positions=position, energy=energy, gradient=gradient)
        return arrived, {name: values.astype(float) for name, values in fields.items()}

    def _step_chain(self, task: Task) -> StepResult:
        sampler, x = self.sampler, torch.from_numpy(np.asarray(task.position))
        self.level = task.level
        torch.default_generator.manual_seed(task.seed)
        self.kernel.set_step(sampler, task.step)
        if not np.array_equal(sampler.mass_matrix_adapter.inverse_mass_matrix[(SITE,)], task.inverse_mass):
            sampler.mass_matrix_adapter.inverse_mass_matrix = {(SITE,): torch.from_numpy(task.inverse_mass)}
        sampler._t, sampler._mean_accept_prob, sampler._divergences = 0, 0.0, []
        # NUTS subtracts the energy of the initial point, and inf - inf would be NaN.
        energy = torch.tensor(min(task.energy, ZERO_DENSITY_ENERGY), dtype=torch.float64)
        sampler._cache({SITE: x}, energy, {SITE: torch.from_numpy(np.asarray(task.gradient))})
        self.calls = self.nonfinite = 0
        sampler.sample({SITE: x})
        z, energy_now, gradients = sampler._fetch_from_cache()
        return StepResult(
            z[SITE].detach().numpy(),
            float(energy_now) if energy_now < ZERO_DENSITY_ENERGY else np.inf,
            gradients[SITE].numpy(),
            float(sampler._mean_accept_prob),
            len(sampler._divergences) > 0,
            self.nonfinite,
            self.calls,
        )

    def _potential(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar energy of one chain; a value that is not finite becomes plus infinity and is counted."""
        self.calls += 1
        energy = self.potential.energy(params[SITE].to(self.potential.device), level=self.level).cpu()
        if not bool(torch.isfinite(energy)):
            self.nonfinite += 1
            return torch.inf + 0 * params[SITE].sum()
        return energy

    @on_cpu()
    @torch.enable_grad()
    def _build(self) -> Any:
        """Build and set up a Pyro kernel without evaluating the network."""
        origin = torch.zeros(self.potential.event_shape, dtype=torch.float64)
        sampler = self.kernel.build(lambda params: 0 * params[SITE].sum())
        sampler.initial_params = {SITE: origin}
        sampler.setup(warmup_steps=0)
        sampler.potential_fn = self._potential
        return sampler


def _inverse_mass(found: WelfordCovariance, chains: int) -> np.ndarray:
    """Return the variances divided by the smallest, the same for every chain: ``(chains, size)``."""
    variances = found.get_covariance(regularize=True).numpy()
    return np.tile(variances / variances.min(), (chains, 1))


def _seeds(seed: int, steps: int, chains: int) -> list[list[int]]:
    """Seeds of every step (outer list) and chain (inner lists)."""
    return np.random.default_rng(seed).integers(2**63, size=(steps, chains)).tolist()


def _norms(gradient: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Norms of gradients ``(chains, *event_shape)`` in coordinates divided by ``scales (size,)``: ``(chains,)``."""
    rows = scaled(np.asarray(gradient, dtype=np.float64).reshape(len(gradient), -1), scales)
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))
