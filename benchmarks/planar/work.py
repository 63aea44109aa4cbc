"""Claim: where only the score is known, acceptance by the work along the path stands in for the difference of energies:
its error falls at its order in the step, and at the paper's step it leaves as many chains outside of the product.

    python -m benchmarks work [--chains 2000] [--seeds 5]

The exact product of ring and bar is walked on by its energy, and by its score alone with Simpson's rule (one more score
a leapfrog) and with the trapezoid (none). Reported are the share of chains outside of the density after ten steps of
HMC a level, for the paper's step and for the adaptive one, and the root mean square error of the work of a single
leapfrog and of a trajectory of fixed length, beside the difference of energies, on a mixture of three Gaussians.

Source: MCMC-Correction of Score-Based Diffusion Models for Model Composition (Sjoeberg et al., 2023),
https://arxiv.org/abs/2307.14012
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, last, say, summarise, table
from benchmarks.planar.problems import PROBLEMS, Truth, judge, log_constant
from bridges.blackjax import HMC
from bridges.blackjax.line_integral import LineIntegral, Rule, WorkDensity, init_state, velocity_verlet
from ppl_diffusion import GaussianMixture, Ladder, Potential, anneal
from ppl_diffusion.arrays import Array
from ppl_diffusion.potentials.planar import SCHEDULE, exact
from ppl_diffusion.potentials.score import ScoreLeaf

LEVEL, LENGTH = 30, 0.16
"""Noise level, and length of the trajectories, of the errors."""
STEPS = (0.005, 0.01, 0.02, 0.04, 0.08)
KERNELS: dict[str, HMC] = {"the paper's step": HMC(step=0.03), "adaptive step": HMC()}
QUICK = {"chains": 50, "seeds": 1}


class ScoreOf(ScoreLeaf):
    """The score of a density whose energy is not used."""

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.backend, self.schedule = potential.backend, potential.schedule
        self.event_shape, self.name = potential.event_shape, f"score of {potential}"

    def _gradient(self, x: Array, level: Any) -> Array:
        return self.potential._evaluate(x, level)[1]


def errors(rule: Rule, points: int = 500) -> dict[str, list[float]]:
    """Return root mean square errors of the work of one leapfrog, and of a trajectory, for each of the steps."""
    modes = GaussianMixture(
        [[-1.2, 0.3], [1.0, -0.5], [0.4, 1.6]],
        [[0.3, 0.6], [0.5, 0.2], [0.4, 0.4]],
        weights=[0.2, 0.5, 0.3],
        schedule=SCHEDULE,
        backend="jax",
    )
    found: dict[str, list[float]] = {"one leapfrog": [], "trajectory": []}
    with jax.enable_x64(True):
        density = WorkDensity(LineIntegral(ScoreOf(modes)), jnp.asarray(LEVEL), jnp.ones(2))
        leapfrog = velocity_verlet(density, lambda p: 0.5 * jnp.sum(p**2), rule)
        x = jnp.asarray(modes.sample(points, level=LEVEL, seed=0))
        p = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))

        def error(x: Any, p: Any, step: float, count: int) -> Any:
            begun = init_state(density, x, p)
            state: Any = jax.lax.fori_loop(0, count, lambda _, state: leapfrog(state, jnp.asarray(step)), begun)
            gain = modes.energy(x, level=LEVEL) - modes.energy(state.position, level=LEVEL)
            return state.logdensity - gain

        for step in STEPS:
            for name, count in (("one leapfrog", 1), ("trajectory", round(LENGTH / step))):
                apart = jax.jit(jax.vmap(partial(error, step=step, count=count)))(x, p)
                found[name].append(float(jnp.sqrt(jnp.mean(apart**2))))
    return found


def slope(values: list[float]) -> float:
    """Return the order of errors in the step, over its three smallest values."""
    return float(np.polyfit(np.log(STEPS[:3]), np.log(values[:3]), 1)[0])


def draw(content: dict[str, Any]) -> Figure:
    """Plot the errors against the step."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("one leapfrog", "trajectory"), strict=True):
        for rule, found in content.items():
            axes.loglog(STEPS, found[name], marker="o", ms=3, label=f"{rule}, order {slope(found[name]):.1f}")
        axes.set(title=f"work of {name if name[0] == 'o' else 'a ' + name}", xlabel="step", ylabel="error, nats")
        axes.legend(fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main(
    record: Record,
    chains: Annotated[int, typer.Option(min=2, help="Chains of each walk.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of each walk.")] = 5,
) -> None:
    """Run all walks, compute the errors, print the table and write the results."""
    problem = PROBLEMS["product"]
    by_energy = problem.build(lambda name: exact(name, backend="jax"))
    by_score = problem.build(lambda name: cast(Any, ScoreOf(exact(name, backend="jax"))))
    truth, constant = Truth.of(by_energy), log_constant(problem)
    reference, ladder = truth.sample(4000, seed=1), Ladder.full(SCHEDULE, steps=10)

    def repetition(target: Potential, kernel: HMC, seed: int) -> dict[str, float]:
        trace = anneal(target, kernel, ladder=ladder, chains=chains, seed=seed)
        costs = {"acceptance": float(trace.stats.acceptance_rate.mean()), "calls": float(trace.gradient_calls)}
        return judge(problem, last(trace), reference, constant) | costs

    rows: dict[str, Any] = {}
    for words, kernel in KERNELS.items():
        walks: dict[str, tuple[Potential, HMC]] = {"energy": (by_energy, kernel)}
        walks |= {rule: (by_score, HMC(step=kernel.step, work=rule)) for rule in reversed(get_args(Rule))}
        for name, (target, its) in walks.items():
            each = [
                record.kept(f"work/{words}-{name}-{seed}", {"chains": chains}, partial(repetition, target, its, seed))
                for seed in range(seeds)
            ]
            rows[f"{name}, {words}"] = summarise(each)
            say(f"{name}, {words}: out {rows[f'{name}, {words}']['out']['mean']:.4f}")
    say(table(rows, ("out", "MMD", "acceptance", "calls")))
    orders = {rule: errors(rule) for rule in get_args(Rule)}
    record.draw("work", draw(orders))
    content = {"chains": chains, "seeds": seeds, "rows": rows, "steps": list(STEPS), "errors": orders}
    record.write("work", content | {"orders": {r: {k: slope(v) for k, v in e.items()} for r, e in orders.items()}})
