"""Pyro kernels bound to a potential: one Pyro kernel for each chain, walked in turn.

Pyro's HMC ignores the position that it is given while its cache is warm, and keeps the energy of the density
before when the target changes. So the cache is set anew before every step, from the state of the walk,
whose energy and gradient belong to this very level: nothing stale can survive, and nothing is evaluated
twice. Pyro draws from torch's global generator; it is seeded inside a fork and left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_diffusion.kernel import State, as_policy, rescaling
from ppl_diffusion.potential import Potential

if TYPE_CHECKING:
    from .pyro import PyroKernel

SITE = "x"


class PyroWalker:
    """See ``ppl_diffusion.kernel.Walker``."""

    def __init__(self, kernel: PyroKernel, potential: Potential) -> None:
        self.kernel, self.potential, self.policy = kernel, potential, as_policy(kernel.step)
        self.level, self.calls, self.nonfinite = 0, 0, 0
        self.sampler = self._build()

    def arrive(self, positions: Any, level: int, previous: State | None, *, seed: int) -> State:
        x = np.asarray(positions, dtype=np.float64)
        energy, gradient = (value.detach().cpu().numpy() for value in self.potential.value_and_grad(x, level=level))
        finite = np.isfinite(energy) & np.isfinite(gradient.reshape(len(x), -1)).all(1)
        sigma = self.potential.schedule.sigma(level)
        guess = max(1.0, sigma) * float(np.prod(self.potential.event_shape)) ** -0.25
        rescale = 1.0 if previous is None else rescaling(previous.gradient, gradient)
        step = self.policy.enter(None if previous is None else previous.step, sigma=sigma, guess=guess, rescale=rescale)
        return State(level, x, np.where(finite, energy, np.inf), gradient, step)

    def move(self, state: State, steps: int, *, seed: int) -> tuple[State, Mapping[str, np.ndarray]]:
        chains = len(state.energy)
        names = ("acceptance_rate", "diverging", "nonfinite", "jump_distance")
        totals = {name: np.zeros(chains) for name in names}
        midway, calls = state.energy, 0
        with _seeded(seed):
            for i in range(steps):
                before = state.positions
                state, info = self._step(state)
                jump = np.linalg.norm((state.positions - before).reshape(chains, -1), axis=1)
                for name, value in (info | {"jump_distance": jump}).items():
                    if name in totals:
                        totals[name] = totals[name] + value
                calls += int(info["n_steps"].max())
                state = state._replace(step=self.policy.update(state.step, float(info["acceptance_rate"].mean())))
                if i < steps // 2:
                    midway = state.energy
        stats: dict[str, np.ndarray] = dict(totals)
        for name in ("acceptance_rate", "jump_distance"):
            stats[name] = totals[name] / steps if steps else np.full(chains, np.nan)
        stats["step_size"] = np.full(chains, np.exp(float(state.step.log_step)))
        return state, {**stats, "energy_midway": midway, "gradient_calls": np.array(calls)}

    def record(self, state: State, draws: int, *, seed: int) -> tuple[State, np.ndarray, Mapping[str, np.ndarray]]:
        positions, rows = [], []
        with _seeded(seed):
            for _ in range(draws):
                state, info = self._step(state)
                positions.append(state.positions)
                rows.append(info | {"lp": -state.energy})
        stats = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        stats["step_size"] = np.full(stats["lp"].shape, np.exp(float(state.step.log_step)))
        calls = int(stats["n_steps"].max(0).sum())
        return state, np.stack(positions, axis=1), {**stats, "gradient_calls": np.array(calls)}

    def select(self, state: State, ancestors: np.ndarray) -> State:
        arrays = (state.positions[ancestors], state.energy[ancestors], state.gradient[ancestors])
        return State(state.level, *arrays, state.step)

    def freeze(self, state: State) -> State:
        return state._replace(step=self.policy.freeze(state.step))

    def _step(self, state: State) -> tuple[State, dict[str, np.ndarray]]:
        """One step of every chain in turn."""
        self.level = state.level
        self.kernel.set_step(self.sampler, float(np.exp(state.step.log_step)))
        rows: list[tuple[Any, ...]] = []
        for x, energy, gradient in zip(state.positions, state.energy, state.gradient, strict=True):
            rows.append(self._step_chain(torch.from_numpy(x), float(energy), torch.from_numpy(gradient)))
        positions, energies, gradients, *info = (np.stack(column) for column in zip(*rows, strict=True))
        names = ("acceptance_rate", "diverging", "nonfinite", "n_steps")
        moved = State(state.level, positions, energies, gradients, state.step)
        return moved, {name: values.astype(float) for name, values in zip(names, info, strict=True)}

    def _step_chain(self, x: Tensor, energy: float, gradient: Tensor) -> tuple[Any, ...]:
        sampler = self.sampler
        sampler._t, sampler._mean_accept_prob, sampler._divergences = 0, 0.0, []
        sampler._cache({SITE: x}, torch.tensor(energy, dtype=torch.float64), {SITE: gradient})
        self.calls = self.nonfinite = 0
        sampler.sample({SITE: x})
        z, energy_now, gradients = sampler._fetch_from_cache()
        rate, diverged = float(sampler._mean_accept_prob), len(sampler._divergences) > 0
        return (
            z[SITE].detach().numpy(),
            float(energy_now),
            gradients[SITE].numpy(),
            rate,
            diverged,
            self.nonfinite,
            self.calls,
        )

    def _potential(self, params: Mapping[str, Tensor]) -> Tensor:
        """The energy of one chain; whatever is not finite is plus infinity, and counted."""
        self.calls += 1
        energy = self.potential.energy(params[SITE], level=self.level)
        if not bool(torch.isfinite(energy)):
            self.nonfinite += 1
            return torch.inf + 0 * params[SITE].sum()
        return energy

    def _build(self) -> Any:
        """A Pyro kernel that adapts nothing, set up without evaluating the network."""
        origin = torch.zeros(self.potential.event_shape, dtype=torch.float64)
        sampler = self.kernel.build(lambda params: 0 * params[SITE].sum())
        sampler.initial_params = {SITE: origin}
        sampler.setup(warmup_steps=0)
        sampler.potential_fn = self._potential
        return sampler


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
