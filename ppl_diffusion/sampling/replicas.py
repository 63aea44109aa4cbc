"""The replicas of a ladder: a state of a walker at every level, their kernel steps, and their swaps.

See :mod:`ppl_diffusion.sampling.exchange` for the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..ladder import Ladder
from ..potentials.quotients import check_quotient
from ..potentials.target import Target
from .advice import Advice, advise_on_failure, advise_on_start, check_last_draws
from .arrival import check_gradient
from .exchange_record import ExchangeRecord, Swap
from .importance import effective_sample_size
from .kernel import Kernel, State
from .levels import Levels, OneByOne, merged
from .transitions import Reverse, log_forward, log_reverse, told_share, widening
from .travels import Travels
from .walk import Walk

START_DRAWS = 2_000
"""Draws of the start density from which the log-normaliser of the noisiest level is estimated."""

LEAST_START, FEWEST_START = 0.1, 20
"""Effective share of these draws below which the start density fits badly, and their effective number below which the
log-normaliser has no known error."""

LEAST_SWAPS = 0.05
"""Rate of accepted swaps of a pair below which hardly a replica passes it."""


class Replicas:
    """All replicas of a ladder, one state of a walker for each rung.

    Attributes:
        states: the state of every rung; those of the rungs that the first walk down has not reached are missing.
        walk: the walk down, with the generators of random numbers and the warnings of the whole run.
        record: what is recorded.
        travels: who is where.
        told: what gradients of each rung told of the noise in all rounds of the warm-up, see ``told_share``.
        rounds: number of rounds so far.
        frozen: whether step sizes are fixed.

    Args:
        potential: the density.
        kernel: an adjusted MCMC kernel.
        ladder: two levels or more.
        chains: number of chains of every rung.
        init: starting positions at the first rung ``(chains, *event_shape)``, or None.
        seed: seed of all random numbers.
        accelerated: whether swaps go by the forward kernel and the reverse-diffusion proposal, "wide" for a wide one.

    Raises:
        TypeError: the kernel's walker has no ``place``.
    """

    def __init__(
        self,
        potential: Target,
        kernel: Kernel,
        ladder: Ladder,
        *,
        chains: int,
        init: Any,
        seed: int,
        accelerated: Reverse,
    ) -> None:
        self.walk = Walk(potential, kernel, ladder.levels[0], chains=chains, init=init, seed=int(seed))
        self.potential, self.ladder, self.accelerated = potential, ladder, accelerated
        self.walker, self.rng = self.walk.walker, self.walk.rng
        if not hasattr(self.walker, "place"):
            raise TypeError(
                f"{type(self.walker).__name__} has no place(state, positions, *, seed), with which swaps evaluate a "
                "level elsewhere: add it, see ppl_diffusion.sampling.kernel.Walker"
            )
        self.levels = self.walker if isinstance(self.walker, Levels) else OneByOne(self.walker)
        self.advice = Advice(ladder, started_at_init=init is not None, weighted=False, reverse_step=False, still=False)
        self.states: list[State] = []
        self.record, self.travels = ExchangeRecord(len(ladder)), Travels(len(ladder), chains)
        self.told: list[list[float]] = [[] for _ in ladder.levels]
        self.rate, self.rounds, self.frozen = np.nan, 0, False

    @property
    def swaps(self) -> list[Swap]:
        """What was found of the proposed swaps of each pair of neighbours."""
        return self.record.swaps

    def descend(self, passed: Callable[[Replicas], None] = lambda _: None) -> None:
        """Let each rung hold the chains of one annealed walk as they passed it; ``passed`` is told of every rung."""
        walk = self.walk
        if not self.states:
            self.advice.started(walk)
        for rung in range(len(self.states), len(self.ladder)):
            level, steps = self.ladder.levels[rung], self.ladder.steps_per_rung[rung]
            walk.arrive(level, reverse=False, resample=None, last=False)
            walk.move(max(steps, 1))
            assert walk.state is not None
            fresh = self._settled(walk.state)
            check_gradient(fresh, bool(self.accelerated), "accelerated")
            if not np.isfinite(fresh.energy).any():
                walk.note([advise_on_failure(self.potential, level, first=not self.states)])
            self.states.append(fresh)
            self._hear(rung)
            self.record.calls[rung] += 1 + float(walk.rungs[-1]["gradient_calls"])
            passed(self)

    def _settled(self, state: State) -> State:
        """Return the state of a level's own; with coordinates that are not diffused, their length scales are those that
        this level's gradients tell."""
        x, seed = np.asarray(state.positions), self.walk.next_seed()
        if np.all(self.potential.diffused):
            return self.walker.place(state, x, seed=seed)
        return self.walker.arrive(x, state.level, state, seed=seed)

    def freeze(self) -> None:
        """Fix all step sizes, for recorded rounds."""
        self.states, self.frozen = [self.walker.freeze(state) for state in self.states], True
        self.travels.begin()

    def round(self, *, recorded: bool) -> None:
        """Take the kernel steps of every rung, then propose the swaps of this round's pairs."""
        seeds, rates = [self.walk.next_seed() for _ in self.states], []
        for steps in dict.fromkeys(self.ladder.steps_per_rung):
            rungs = [rung for rung, its in enumerate(self.ladder.steps_per_rung) if its == steps]
            before, own = [self.states[rung] for rung in rungs], [seeds[rung] for rung in rungs]
            if not self.frozen:
                for rung, (state, found) in zip(rungs, self.levels.move_each(before, steps, seeds=own), strict=True):
                    self.states[rung] = state
                    self.record.calls[rung] += float(found["gradient_calls"])
                    self._hear(rung)
                    rates.append(float(np.mean(found["acceptance_rate"])))
            elif steps:
                done = self.levels.record_each(before, steps, seeds=own)
                for rung, old, (state, _, stats) in zip(rungs, before, done, strict=True):
                    self.states[rung] = state
                    self._keep(rung, stats, np.asarray(old.positions))
                    rates.append(float(np.mean(stats.get("acceptance_rate", np.nan))))
        self.rate = float(np.mean(rates)) if rates else np.nan
        self._swap(range(self.rounds % 2, len(self.ladder) - 1, 2), recorded=recorded)
        self.travels.follow()
        if recorded:
            self.record.positions.append(np.asarray(self.states[-1].positions))
            self.record.energies.append(np.asarray(self.states[-1].energy))
        self.rounds += 1

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
        self.record.calls[rung] += float(stats["gradient_calls"])
        self.record.moved[rung].append({**stats, "jump": jump, "final": np.asarray(self.states[rung].energy)})

    def _swap(self, pairs: Sequence[int], *, recorded: bool) -> None:
        """Propose to swap rungs ``pair``, the noisier, and ``pair + 1`` of each of ``pairs``, replica by replica.

        A whole point travels, with the coordinates that are not diffused; scales, masses and steps stay at their level.
        """
        if not pairs:
            return
        rungs = [rung for pair in pairs for rung in (pair, pair + 1)]
        states = [self.states[rung] for rung in rungs]
        proposed = [self._proposals(pair) for pair in pairs]
        positions = [x for to_s, to_t, _, _ in proposed for x in (to_s, to_t)]
        placed = self.levels.place_each(states, positions, seeds=[self.walk.next_seed() for _ in rungs])
        decided = [
            self._decide(pair, placed[2 * i], placed[2 * i + 1], proposed[i], recorded=recorded)
            for i, pair in enumerate(pairs)
        ]
        for i, rung in enumerate(rungs):
            self.states[rung] = merged(states[i], placed[i], decided[i // 2])
        self.record.calls[rungs] += 1

    def _decide(self, pair: int, at_s: State, at_t: State, proposed: tuple[Any, ...], *, recorded: bool) -> np.ndarray:
        """Return which replicas swap, bool, ``(chains,)``, given the proposed states and :meth:`_proposals`."""
        noisy, clean = self.states[pair : pair + 2]
        to_s, _, down, up = proposed
        if self.accelerated:
            x_t, gradient = (np.asarray(array, dtype=np.float64) for array in (clean.positions, at_s.gradient))
            widened = self._widened(pair)
            # log q(x_s'|x_t) - log r(x_t|x_s')
            up = up - log_reverse(self.potential, x_t, to_s, gradient, noisy.level, clean.level, widened=widened)
        with np.errstate(invalid="ignore"):
            work_down = np.asarray(noisy.energy) - np.asarray(at_t.energy) + down  # from x_s to x_t'
            work_up = np.asarray(clean.energy) - np.asarray(at_s.energy) - up  # from x_t to x_s'
            log_ratio = work_down + work_up
            taken = np.log(self.rng.random(len(to_s))) < np.where(np.isnan(log_ratio), -np.inf, log_ratio)
        self.travels.swap(pair, taken)
        if recorded:
            kept = self.record.swaps[pair]
            kept.down.append(work_down)
            kept.up.append(work_up)
            kept.taken.append(taken)
        return taken

    def _proposals(self, pair: int) -> tuple[np.ndarray, np.ndarray, Any, Any]:
        """Return ``x_s'`` and ``x_t'`` of the swap of a pair; and if it is accelerated
        ``log q(x_s|x_t') - log r(x_t'|x_s)`` and ``log q(x_s'|x_t)``, which are 0 in place."""
        noisy, clean = self.states[pair : pair + 2]
        s, t, widened = noisy.level, clean.level, self._widened(pair)
        x_s, x_t = (np.asarray(state.positions, dtype=np.float64) for state in (noisy, clean))
        if not self.accelerated:
            return x_t, x_s, 0.0, 0.0
        diffused = np.broadcast_to(self.potential.diffused, self.potential.event_shape)
        alpha, sigma = self.potential.schedule.forward(t, s)
        to_s = np.where(diffused, alpha * x_t + sigma * self.rng.standard_normal(x_t.shape), x_t)
        gradient = np.asarray(noisy.gradient, dtype=np.float64)
        mean, spread = self.potential.schedule.reverse(x_s, gradient, s, t)
        to_t = np.where(diffused, mean + spread * widened**0.5 * self.rng.standard_normal(x_s.shape), x_s)
        back = log_reverse(self.potential, to_t, x_s, gradient, s, t, widened=widened)
        down = log_forward(self.potential, x_s, to_t, s, t) - back
        return to_s, to_t, down, log_forward(self.potential, to_s, x_t, s, t)

    def statistics(self) -> tuple[xr.Dataset, float]:
        """Return statistics by rung and chain, and the standard error of the log-normaliser."""
        begin, begin_error = self._log_normaliser_of_the_start()
        stats, error = self.record.statistics(self.states)
        stats["log_normaliser"][0] = begin
        stats["round_trips"] = ("chain", self.travels.trips.copy())
        stats = stats.assign_coords(level=("rung", np.array(self.ladder.levels)))
        return stats, float(np.hypot(begin_error, error))

    def _log_normaliser_of_the_start(self) -> tuple[float, float]:
        """Return the log-normaliser of the noisiest level and its error, by importance from the start density.

        It is zero where the caller gave the starting positions.
        """
        if self.walk.start_log_density is None:
            return 0.0, 0.0
        level = self.ladder.levels[0]
        x, log_density = self.potential.start(level, chains=START_DRAWS, rng=self.rng)
        self.record.calls[0] += 1
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
        if self.travels.trips.any():
            return []
        return [
            f"no replica has travelled from level {levels[0]} to {levels[-1]} and back in "
            f"{len(self.record.positions)} rounds: take more draws, or more levels"
        ]
