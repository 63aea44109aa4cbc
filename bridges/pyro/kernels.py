"""Pyro's own HMC and NUTS as kernels for annealed sampling, one chain after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.infer.mcmc as mcmc

from ppl_diffusion.arrays import check_count
from ppl_diffusion.sampling.step import Adaptive, StepPolicy

from .walker import PyroKernel


@dataclass(frozen=True)
class HMC(PyroKernel):
    """Pyro's Hamiltonian Monte Carlo.

    Args:
        step: leapfrog step: a number, ``SigmaScaled(0.5)`` or ``Adaptive(...)``.
        adapt_mass_matrix: adapt a diagonal mass matrix at rungs of twenty steps or more; other rungs use unit mass.
        leapfrogs: exact number of leapfrog steps of a trajectory.

    Raises:
        ValueError: ``leapfrogs`` below 1.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8)
    leapfrogs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("leapfrogs", self.leapfrogs, example=3)

    def build(self, potential_fn: Callable[..., Any]) -> Any:
        return mcmc.HMC(potential_fn=potential_fn, adapt_step_size=False, adapt_mass_matrix=False)

    def set_step(self, sampler: Any, step: float) -> None:
        sampler._adapter.step_size = step
        # Pyro takes int(length / step) leapfrog steps; the extra half step keeps rounding from losing one.
        sampler.trajectory_length = step * (self.leapfrogs + 0.5)


@dataclass(frozen=True)
class NUTS(PyroKernel):
    """Pyro's No-U-Turn sampler.

    Args:
        step: leapfrog step.
        adapt_mass_matrix: adapt a diagonal mass matrix at rungs of twenty steps or more; other rungs use unit mass.
        max_doublings: a trajectory has at most ``2 ** max_doublings - 1`` leapfrog steps.

    Raises:
        ValueError: ``max_doublings`` below 1.
    """

    step: StepPolicy | float = Adaptive(target_acceptance=0.8, jitter=1.0)
    max_doublings: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_doublings", self.max_doublings, example=6)

    def build(self, potential_fn: Callable[..., Any]) -> Any:
        return mcmc.NUTS(
            potential_fn=potential_fn, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=self.max_doublings
        )

    def set_step(self, sampler: Any, step: float) -> None:
        sampler._adapter.step_size = step
