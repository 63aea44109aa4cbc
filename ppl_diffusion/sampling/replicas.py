"""The replicas of a ladder: a state of a walker at every level, their kernel steps, and their swaps.

See :mod:`ppl_diffusion.sampling.exchange` for the walk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..ladder import Ladder
from ..potentials.quotients import check_quotient
from ..potentials.target import Target
from .advice import Advice, advise_on_failure, advise_on_start, check_last_draws
from .arrival import check_gradient
from .bennett import bennett
from .importance import effective_sample_size
from .kernel import Kernel, State, Walker
from .transitions import Reverse, log_forward, log_reverse, told_share, widening
from .walk import Walk, joined

START_DRAWS = 2_000
"""Draws of the start density from which the log-normaliser of the noisiest level is estimated."""

LEAST_START, FEWEST_START = 0.1, 20
"""Effective share of these draws below which the start density fits badly, and their effective number below which the
log-normaliser has no known error."""

LEAST_SWAPS = 0.05
"""Rate of accepted swaps of a pair below which hardly a replica passes it."""


@dataclass
class Swap:
    """What was found of all proposed swaps of a pair, in each round ``(chains,)``.

    Attributes:
        down, up: works from the noisier level to the cleaner one, and from the cleaner one to the noisier.
        taken: whether the swap was accepted.
    """

    down: list[np.ndarray] = field(default_factory=list)
    up: list[np.ndarray] = field(default_factory=list)
    taken: list[np.ndarray] = field(default_factory=list)


class Replicas:
    """All replicas of a ladder, one state of a walker for each rung."""

    def __init__(
        self, potential: Target, walker: Walker, states: list[State], ladder: Ladder, walk: Walk, accelerated: Reverse
    ) -> None:
        self.potential, self.walker, self.states, self.ladder = potential, walker, states, ladder
        self.walk, self.accelerated, self.rng = walk, accelerated, walk.rng
        chains = len(walk.start)
        self.swaps = [Swap() for _ in ladder.levels[1:]]
        self.acceptance: list[np.ndarray] = []
        self.moved: list[list[Mapping[str, np.ndarray]]] = [[] for _ in ladder.levels]
        self.positions: list[np.ndarray] = []
        self.energies: list[np.ndarray] = []
        self.names = np.tile(np.arange(len(ladder))[:, None], (1, chains))
        self.heading = np.zeros((len(ladder), chains), dtype=int)  # 1 on the way to the last rung, by name
        self.trips = np.zeros(chains)
        self.calls = np.zeros(len(ladder), dtype=np.float64)
        self.frozen = False
        self.told: list[list[float]] = [[] for _ in ladder.levels]
        """What gradients of each rung told of the noise in all rounds of the warm-up, see ``told_share``."""
        for rung in range(len(ladder)):
            self._hear(rung)

    @classmethod
    def annealed(
        cls,
        potential: Target,
        kernel: Kernel,
        ladder: Ladder,
        *,
        chains: int,
        init: Any,
        seed: int,
        accelerated: Reverse,
    ) -> Replicas:
        """Return replicas of which each rung holds the chains of one annealed walk as they passed it."""
        walk = Walk(potential, kernel, ladder.levels[0], chains=chains, init=init, seed=int(seed))
        advice = Advice(ladder, started_at_init=init is not None, weighted=False, reverse_step=False, still=False)
        advice.started(walk)
        states: list[State] = []
        for level, steps in zip(ladder.levels, ladder.steps_per_rung, strict=True):
            walk.arrive(level, reverse=False, resample=None, last=False)
            walk.move(max(steps, 1))
            assert walk.state is not None
            fresh = walk.walker.arrive(np.asarray(walk.state.positions), level, None, seed=walk.next_seed())
            check_gradient(fresh, bool(accelerated), "accelerated")
            if not np.isfinite(fresh.energy).any():
                walk.note([advise_on_failure(potential, level, first=not states)])
            states.append(fresh._replace(step=walk.state.step))
        replicas = cls(potential, walk.walker, states, ladder, walk, accelerated)
        replicas.calls += [1 + float(record["gradient_calls"]) for record in walk.rungs]
        return replicas

    def freeze(self) -> None:
        """Fix all step sizes, for recorded rounds."""
        self.states, self.frozen = [self.walker.freeze(state) for state in self.states], True
        self.trips[:], self.heading[:] = 0, 0

    def round(self, number: int, *, recorded: bool) -> None:
        """Take the kernel steps of every rung, then propose the swaps of this round's pairs."""
        rates = []
        for rung, steps in enumerate(self.ladder.steps_per_rung):
            seed = self.walk.next_seed()
            if not self.frozen:
                self.states[rung], found = self.walker.move(self.states[rung], steps, seed=seed)
                self.calls[rung] += float(found["gradient_calls"])
                self._hear(rung)
                rates.append(float(np.mean(found["acceptance_rate"])))
            elif steps:
                before = np.asarray(self.states[rung].positions)
                self.states[rung], _, stats = self.walker.record(self.states[rung], steps, seed=seed)
                self._keep(rung, stats, before)
                rates.append(float(np.mean(stats.get("acceptance_rate", np.nan))))
        self.acceptance.append(np.array(rates))
        for pair in range(number % 2, len(self.ladder) - 1, 2):
            self._swap(pair, recorded=recorded)
        self._follow()
        if recorded:
            self.positions.append(np.asarray(self.states[-1].positions))
            self.energies.append(np.asarray(self.states[-1].energy))

    def _hear(self, rung: int) -> None:
        """Note what the gradients of a rung tell of the noise, if the width of swaps depends on it."""
        if self.accelerated == "wide":
            state = self.states[rung]
            gradient = np.asarray(state.gradient, dtype=np.float64)
            self.told[rung].append(told_share(self.potential, gradient, state.level))

    def _widened(self, pair: int) -> float:
        """Return the factor of the variance of the reverse proposal from rung ``pair`` to the next one."""
        if self.accelerated != "wide":
            return 1.0
        s, t = self.ladder.levels[pair : pair + 2]
        return widening(self.potential, s, t, float(np.mean(self.told[pair])))

    def _keep(self, rung: int, stats: Mapping[str, np.ndarray], before: np.ndarray) -> None:
        after = np.asarray(self.states[rung].positions)
        jump = np.linalg.norm((after - before).reshape(len(after), -1), axis=1)
        self.calls[rung] += float(stats["gradient_calls"])
        self.moved[rung].append({**stats, "jump": jump, "final": np.asarray(self.states[rung].energy)})

    def _swap(self, pair: int, *, recorded: bool) -> None:
        """Propose to swap rung ``pair``, the noisier, and the next one, replica by replica."""
        noisy, clean = self.states[pair], self.states[pair + 1]
        s, t, widened = noisy.level, clean.level, self._widened(pair)
        x_s, x_t = (np.asarray(state.positions, dtype=np.float64) for state in (noisy, clean))
        to_s, to_t = x_t, x_s
        down: Any = 0.0
        up: Any = 0.0
        if self.accelerated:
            to_s, to_t, down, up = self._proposals(noisy, clean, widened)
        at_s = self.walker.arrive(to_s, s, None, seed=self.walk.next_seed())._replace(step=noisy.step)
        at_t = self.walker.arrive(to_t, t, None, seed=self.walk.next_seed())._replace(step=clean.step)
        if self.accelerated:
            gradient = np.asarray(at_s.gradient, dtype=np.float64)
            # log q(x_s'|x_t) - log r(x_t|x_s')
            up = up - log_reverse(self.potential, x_t, to_s, gradient, s, t, widened=widened)
        with np.errstate(invalid="ignore"):
            work_down = np.asarray(noisy.energy) - np.asarray(at_t.energy) + down  # from x_s to x_t'
            work_up = np.asarray(clean.energy) - np.asarray(at_s.energy) - up  # from x_t to x_s'
            log_ratio = work_down + work_up
            taken = np.log(self.rng.random(len(x_s))) < np.where(np.isnan(log_ratio), -np.inf, log_ratio)
        self.states[pair], self.states[pair + 1] = _merged(noisy, at_s, taken), _merged(clean, at_t, taken)
        names = self.names[[pair + 1, pair]]
        self.names[[pair, pair + 1]] = np.where(taken, names, self.names[[pair, pair + 1]])
        self.calls[[pair, pair + 1]] += 1
        if recorded:
            kept = self.swaps[pair]
            kept.down.append(work_down)
            kept.up.append(work_up)
            kept.taken.append(taken)

    def _proposals(self, noisy: State, clean: State, widened: float) -> tuple[np.ndarray, np.ndarray, Any, Any]:
        """Return ``x_s'`` and ``x_t'`` of accelerated swaps, ``log q(x_s|x_t') - log r(x_t'|x_s)``, and
        ``log q(x_s'|x_t)``."""
        s, t = noisy.level, clean.level
        x_s, x_t = (np.asarray(state.positions, dtype=np.float64) for state in (noisy, clean))
        diffused = np.broadcast_to(self.potential.diffused, self.potential.event_shape)
        alpha, sigma = self.potential.schedule.forward(t, s)
        to_s = np.where(diffused, alpha * x_t + sigma * self.rng.standard_normal(x_t.shape), x_t)
        gradient = np.asarray(noisy.gradient, dtype=np.float64)
        mean, spread = self.potential.schedule.reverse(x_s, gradient, s, t)
        to_t = np.where(diffused, mean + spread * widened**0.5 * self.rng.standard_normal(x_s.shape), x_s)
        back = log_reverse(self.potential, to_t, x_s, gradient, s, t, widened=widened)
        down = log_forward(self.potential, x_s, to_t, s, t) - back
        return to_s, to_t, down, log_forward(self.potential, to_s, x_t, s, t)

    def _follow(self) -> None:
        """Follow who has been to the noisiest level last (heading for the clean end), and who has come back."""
        columns = np.arange(self.names.shape[1])
        first, last = self.names[0], self.names[-1]
        self.trips += self.heading[first, columns] == -1
        self.heading[first, columns] = 1
        arrived = self.heading[last, columns] == 1
        self.heading[last[arrived], columns[arrived]] = -1

    def drawn(self) -> tuple[np.ndarray, xr.Dataset]:
        """Return all recorded draws ``(chains, draws, *event_shape)`` and their statistics."""
        kept = [{k: v[:, -1:] for k, v in found.items() if np.ndim(v) == 2} for found in self.moved[-1]]
        energies = {"lp": -np.stack(self.energies, axis=1)}
        columns = joined([{**found, "gradient_calls": np.array(0)} for found in kept]) if kept else {}
        columns.pop("gradient_calls", None)
        variables = {name: (("chain", "draw"), value) for name, value in (columns | energies).items()}
        return np.stack(self.positions, axis=1), xr.Dataset(variables, attrs={"gradient_calls": 0})

    def statistics(self) -> tuple[xr.Dataset, float]:
        """Return statistics by rung and chain, and the standard error of the log-normaliser."""
        begin, begin_error = self._log_normaliser_of_the_start()
        rows = [self._row(rung) for rung in range(len(self.ladder))]
        columns = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
        stats = xr.Dataset({name: (("rung", "chain")[: v.ndim], v) for name, v in columns.items()})
        ratios, error = bennett([(np.array(swap.down), np.array(swap.up)) for swap in self.swaps])
        stats["log_normaliser"] = ("rung", np.array([begin, *ratios]))
        rates = [np.nan, *(float(np.mean(swap.taken)) if swap.taken else np.nan for swap in self.swaps)]
        stats["swap_rate"] = ("rung", np.array(rates))
        stats["round_trips"] = ("chain", self.trips.copy())
        stats = stats.assign_coords(level=("rung", np.array(self.ladder.levels)))
        return stats, float(np.hypot(begin_error, error))

    def _row(self, rung: int) -> dict[str, Any]:
        """Return the statistics of one rung, under the names of a trace."""
        found, state, chains = self.moved[rung], self.states[rung], self.names.shape[1]
        missing = np.full(chains, np.nan)

        def mean(name: str) -> np.ndarray:
            rows = [one[name] for one in found if name in one]
            return np.mean([row.mean(1) if row.ndim == 2 else row for row in rows], axis=0) if rows else missing

        def total(name: str) -> np.ndarray:
            rows = [one[name] for one in found if name in one]
            return np.sum([row.sum(1) for row in rows], axis=0) if rows else missing

        energies = [one["final"] for one in found] or [np.asarray(state.energy)]
        return {
            "acceptance_rate": mean("acceptance_rate"),
            "step_size": np.full(chains, np.exp(float(state.step.log_step))),
            "diverging": total("diverging"),
            "nonfinite": total("nonfinite"),
            "jump_distance": mean("jump"),
            "energy_arrival": energies[0],
            "energy_midway": energies[len(energies) // 2],
            "energy": energies[-1],
            "log_weight": missing,
            "ancestor": np.arange(chains),
            "ess": np.nan,
            "resampled": False,
            "gradient_calls": self.calls[rung],
        }

    def _log_normaliser_of_the_start(self) -> tuple[float, float]:
        """Return the log-normaliser of the noisiest level and its error, by importance from the start density.

        It is zero where the caller gave the starting positions.
        """
        if self.walk.start_log_density is None:
            return 0.0, 0.0
        level = self.ladder.levels[0]
        x, log_density = self.potential.start(level, chains=START_DRAWS, rng=self.rng)
        self.calls[0] += 1
        state = self.walker.arrive(x, level, None, seed=self.walk.next_seed())
        weights = -np.asarray(state.energy) - log_density
        found, ess = float(np.logaddexp.reduce(weights) - np.log(START_DRAWS)), effective_sample_size(weights)
        if ess < LEAST_START * START_DRAWS:
            self.walk.note(advise_on_start(self.potential, level, ess, START_DRAWS), about="nothing")
        if ess < FEWEST_START:  # such weights do not know how wrong they are
            return found, float("inf")
        return found, float(np.std(np.exp(weights - found)) / np.sqrt(START_DRAWS))

    def advise(self, stats: xr.Dataset, positions: np.ndarray, sample_stats: xr.Dataset) -> list[str]:
        """Return all warnings, each once, also those about recorded draws ``(chains, draws, *event_shape)``."""
        walk = self.walk
        if all(np.isfinite(state.energy).any() for state in self.states):
            walk.note(self._advise_on_swaps(stats["swap_rate"].to_numpy()[1:]), about="length")
        walk.note(check_last_draws(self.potential, positions, sample_stats, still=False))
        with jax.enable_x64(True):
            last = self.ladder.levels[-1]
            walk.note(check_quotient(self.potential, levels=(), positions=positions[:256, -1], level=last))
        return list(dict.fromkeys(walk.notes))

    def _advise_on_swaps(self, rates: np.ndarray) -> list[str]:
        """Return a warning of a pair that hardly swaps, or of a ladder that no replica has travelled."""
        levels = self.ladder.levels
        if np.nanmin(rates) < LEAST_SWAPS:
            worst = int(np.nanargmin(rates))
            other = "accelerated=True, " if not self.accelerated else ""
            return [
                f"levels {levels[worst]} and {levels[worst + 1]} swap in {rates[worst]:.1%} of the rounds, so that "
                f"hardly a replica passes there: take {other}more levels there, or end the ladder above them"
            ]
        if self.trips.any():
            return []
        return [
            f"no replica has travelled from level {levels[0]} to {levels[-1]} and back in {len(self.positions)} "
            "rounds: take more draws, or more levels"
        ]


def _merged(old: State, new: State, taken: np.ndarray) -> State:
    """Return the state whose chains are those of ``new`` where ``taken (chains,)``, and of ``old`` elsewhere."""

    def choose(one: Any, other: Any) -> Any:
        where: Any = np.where if isinstance(one, np.ndarray) else jax.numpy.where
        return where(taken.reshape(-1, *[1] * (np.ndim(one) - 1)), other, one)

    with jax.enable_x64(True):
        parts = ((s.positions, s.gradient, s.carried) for s in (old, new))
        positions, gradient, carried = jax.tree.map(choose, *parts)
    energy = np.where(taken, new.energy, old.energy)
    return old._replace(positions=positions, gradient=gradient, carried=carried, energy=energy)
