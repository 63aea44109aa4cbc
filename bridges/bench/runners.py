"""Compiled chains of a contender on a target: once per target, for all levels, starts and seeds.

:class:`JaxRunner` moves several groups of chains in lockstep, each with its adaptation and random keys of its own, so
that one crossing into torch serves all of them. :class:`WalkerRunner` moves one group by any walker of
``ppl_diffusion.sampling.kernel``, such as Pyro's. Both have the same methods; arrays begin with groups and chains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl_diffusion.arrays import Array
from ppl_diffusion.sampling.kernel import Kernel

from ..blackjax.density import flat_log_density
from ..torch_jax import to_jax
from ..torch_jax.convert import reraise_torch_errors
from .counting import Counted
from .samplers import Drawn, Sampler

QUICKLY_COMPILED = {"xla_cpu_use_fusion_emitters": False}
"""XLA:CPU compiles in a third of the time with its simpler emitters."""


class Runner(Protocol):
    """Chains of a contender on the target that has the place.

    Attributes:
        adapts: whether :meth:`adapt` changes anything.
        block: number of draws that :meth:`record` takes.
    """

    adapts: bool
    block: int

    def begin(self, positions: np.ndarray, level: int, *, seed: int) -> Any:
        """Return the state of chains at ``positions (groups, chains, *event_shape)``."""

    def adapt(self, state: Any, steps: int, *, seed: int) -> Any:
        """Return the state after at least ``steps`` adapting steps."""

    def freeze(self, state: Any) -> Any:
        """Return the state for draws."""

    def record(self, state: Any, *, seed: int) -> tuple[Any, Drawn]:
        """Return the state after a block of steps, and its draws: positions ``(groups, chains, block, size)``, others
        ``(groups, chains, block)``."""


class JaxRunner:
    """Groups of chains that a :class:`Sampler` moves in lockstep."""

    def __init__(self, sampler: Sampler, place: Counted, *, block: int) -> None:
        self.sampler, self.adapts, self.block = sampler, sampler.adapts, block
        self.target, self.place = to_jax(place), place
        self._begin = jax.jit(self._begin_groups, compiler_options=QUICKLY_COMPILED)
        self._record = jax.jit(self._record_groups, compiler_options=QUICKLY_COMPILED)

    def begin(self, positions: np.ndarray, level: int, *, seed: int) -> Any:
        groups, chains = positions.shape[:2]
        with self._in_context():
            settings = self.sampler.settings(self.place.potential, level)
            x = jnp.asarray(positions.reshape(groups, chains, -1), dtype=jnp.float64)
            return level, jax.block_until_ready(self._begin(level, _keys(seed, groups), x, settings))

    def adapt(self, state: Any, steps: int, *, seed: int) -> Any:
        for i in range(-(-steps // self.block)):
            state, _ = self.record(state, seed=seed + i)
        return state

    def freeze(self, state: Any) -> Any:
        level, walks = state
        with self._in_context():
            return level, jax.vmap(self.sampler.freeze)(walks)

    def record(self, state: Any, *, seed: int) -> tuple[Any, Drawn]:
        level, walks = state
        with self._in_context():
            groups = len(jax.tree.leaves(walks)[0])
            walks, drawn = self._record(level, _keys(seed, groups), walks)
            return (level, walks), Drawn(*(np.asarray(each) for each in drawn))

    @contextmanager
    def _in_context(self) -> Iterator[None]:
        with reraise_torch_errors(self.target), jax.enable_x64(True):
            yield

    def _begin_groups(self, level: Array, keys: Array, positions: Array, settings: Any) -> Any:
        begin = partial(self.sampler.begin, flat_log_density(self.target, level))
        return jax.vmap(begin, in_axes=(0, 0, None))(keys, positions, settings)

    def _record_groups(self, level: Array, keys: Array, walks: Any) -> tuple[Any, Drawn]:
        move = jax.vmap(partial(self.sampler.step, flat_log_density(self.target, level)))

        def body(walks: Any, i: Array) -> tuple[Any, Drawn]:
            walks, drawn = move(jax.vmap(partial(jax.random.fold_in, data=i))(keys), walks)
            return walks, drawn._replace(position=drawn.position.astype(jnp.float32))

        walks, drawn = jax.lax.scan(body, walks, jnp.arange(self.block))
        return walks, jax.tree.map(lambda each: jnp.moveaxis(each, 0, 2), drawn)


def _keys(seed: int, groups: int) -> Array:
    return jax.random.split(jax.random.key(seed), groups)


class WalkerRunner:
    """One group of chains, moved by a kernel of any library that ``anneal`` takes."""

    adapts = True

    def __init__(self, kernel: Kernel, place: Counted, *, block: int) -> None:
        self.kernel, self.place, self.block = kernel, place, block

    def begin(self, positions: np.ndarray, level: int, *, seed: int) -> Any:
        (group,) = positions
        self.walker = self.kernel.bind(self.place)
        return self.walker.arrive(group.reshape(len(group), -1), level, None, seed=seed)

    def adapt(self, state: Any, steps: int, *, seed: int) -> Any:
        return self.walker.move(state, steps, seed=seed)[0]

    def freeze(self, state: Any) -> Any:
        return self.walker.freeze(state)

    def record(self, state: Any, *, seed: int) -> tuple[Any, Drawn]:
        state, positions, stats = self.walker.record(state, self.block, seed=seed)
        missing = np.full(positions.shape[:2], np.nan)
        names = ("lp", "acceptance_rate", "diverging", "n_steps")
        told = [np.asarray(stats.get(name, missing), dtype=float)[None] for name in names]
        return state, Drawn(positions.reshape(1, *positions.shape[:2], -1).astype(np.float32), *told)
