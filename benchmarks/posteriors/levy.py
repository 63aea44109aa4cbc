"""Claim: the regions of highest density of annealed posteriors of Levy processes hold the truth as often as they say,
as those of exact draws do, and those of diffusion posterior sampling (DPS) with an exact denoiser do not.

    python -m benchmarks levy [--simulations 200] [--guided 100] [--laws Gauss Laplace spikes]

Signals of 64 samples are sums of independent jumps: Gaussian, Laplace, or *spikes*, nine in ten of them narrow and the
others Laplace. They are seen whole, blurred, at two fifths of their samples, or by a third of their Fourier
coefficients, with noise at 25 decibels. In each simulation a signal and its measurement are drawn, and nineteen draws
of the posterior: the truth is among the 90 % of highest posterior density if fewer than 18 of them are likelier. If all
is exact, this happens in 90 % of simulations, and the rank of the truth is uniform.

* *Gibbs*: the reference, exact up to the length of its chains. *Gibbs, half the noise*: the wrong twin.
* *annealed*: HMC down a ladder on which the jumps, and not the samples, are diffused: their densities are known in
  closed form at every level. The likelihood is the same at all levels, so that the noisiest one is a Gaussian, whose
  draws the walk starts from in its own coordinates. *annealed, weighted*: the same draws with the log-weights of the
  walk, each simulation for itself.
* *pseudoinverse guided*, *DPS*: reverse diffusion of the same jumps, guided (``benchmarks.posteriors.guided``). The
  strength of DPS is the one of smallest squared error on other signals.

Source: A Statistical Benchmark for Diffusion Posterior Sampling Algorithms (Zach, Haouchat and Unser, 2025),
https://arxiv.org/abs/2509.12821. Laws, operators and noise follow its description; nothing of its code is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.harness import Record, cell, check_choice, double_precision, say, thinned
from benchmarks.posteriors.coverage import covered, density_ranks, uniformity
from benchmarks.posteriors.guided import PseudoinverseGuided, dps
from benchmarks.posteriors.jumps import LAWS, OPERATORS, SIZE, Law, Measurement
from bridges.blackjax import HMC
from ppl_diffusion import EnergyFunction, Ladder, NoiseSchedule, anneal, reverse_diffusion
from ppl_diffusion.sampling.importance import effective_sample_size, normalise

DRAWS = 19
SCHEDULE = NoiseSchedule.cosine(1000)
STEPS, DPS_STEPS = 333, 100
"""Steps of reverse diffusion, guided by the pseudoinverse and by DPS."""
STRENGTHS = (0.03, 0.1, 0.3, 1.0)
"""Strengths of DPS that are tried, on ``TUNED`` signals."""
TUNED = 8
SWEEPS = {"Gauss": (1, 0), "Laplace": (8, 40), "spikes": (30, 300)}
"""Gibbs sweeps from one draw to the next, and before the first."""


def _ladder(rungs: int, steps: int, last: int) -> Ladder:
    levels = Ladder.spaced(SCHEDULE, rungs=rungs).levels
    return Ladder(levels=levels, steps=(*(steps,) * (rungs - 1), last))


LADDERS = {"Gauss": _ladder(10, 2, 12), "Laplace": _ladder(20, 2, 12), "spikes": _ladder(40, 20, 80)}
QUICK = {"simulations": 4, "guided": 2, "laws": ["Gauss"], "operators": ["imputation"], "every": 3}


@dataclass(frozen=True)
class Simulated:
    """Signals of a law and their measurements.

    Attributes:
        law: name of the law of jumps.
        made: how they are measured.
        truth: jumps ``(n, SIZE)``.
        y: measurements ``(n, m)``.
    """

    law: str
    made: Measurement
    truth: np.ndarray
    y: np.ndarray

    @classmethod
    def draw(cls, law: str, made: Measurement, count: int, seed: int) -> Simulated:
        """Return ``count`` signals of a law."""
        rng = np.random.default_rng(seed)
        truth = LAWS[law].draw(count, rng)
        return cls(law, made, truth, made.draw(truth, rng))

    def __getitem__(self, first: slice) -> Simulated:
        return Simulated(self.law, self.made, self.truth[first], self.y[first])

    @property
    def repeated(self) -> Tensor:
        """The measurement of each chain, ``(n * DRAWS, m)``."""
        return torch.from_numpy(np.repeat(self.y, DRAWS, axis=0))

    def energies(self, u: np.ndarray) -> np.ndarray:
        """Return energies ``(n, ...)`` under the posterior of jumps ``u (n, ..., SIZE)``."""
        y = torch.from_numpy(self.y).reshape(len(self.y), *(1,) * (u.ndim - 2), -1)
        jumps = torch.from_numpy(u)
        return (LAWS[self.law].energy(jumps) + self.made.energy(jumps, y)).numpy()


def diffused(law: Law, schedule: NoiseSchedule) -> EnergyFunction:
    """Return the density of jumps at every level, exact; that of level 0 is without noise."""

    def energy(u: Tensor, level: int) -> Tensor:
        return law.energy(u) if level == 0 else law.energy(u, schedule.alpha(level), schedule.sigma(level))

    return EnergyFunction(energy, schedule=schedule, event_shape=(SIZE,), backend="torch", name="jumps")


def gibbs(simulated: Simulated, *, claimed: float = 1.0, seed: int) -> np.ndarray:
    """Return draws ``(n, DRAWS, SIZE)`` of jumps by Gibbs sampling; ``claimed`` multiplies the scale of the noise."""
    made, (thin, first) = simulated.made, SWEEPS[simulated.law]
    believed = Measurement(made.gain, claimed * made.scale)
    rng = np.random.default_rng(seed)
    return believed.gibbs(LAWS[simulated.law], simulated.y, draws=DRAWS, thin=thin, first=first, rng=rng)


def annealed(simulated: Simulated, ladder: Ladder, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return draws ``(n, DRAWS, SIZE)`` of jumps, their log-weights ``(n, DRAWS)``, and figures of the walk.

    All simulations walk at once, in the coordinates z in which the posterior of Gaussian jumps is N(0, I).
    """
    prior, (mean, root) = diffused(LAWS[simulated.law], SCHEDULE), simulated.made.gaussian(simulated.y)
    centre, spread = torch.from_numpy(np.repeat(mean, DRAWS, axis=0)), torch.from_numpy(root).T

    def energy(z: Tensor, level: int) -> Tensor:
        u = centre + z @ spread
        # Of Gaussian jumps of variance 1, prior and likelihood together are z^2 / 2 + constant.
        return prior.energy(u, level=level) + 0.5 * (z**2 - u**2).sum(-1)

    posterior = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(SIZE,), backend="torch", name="posterior")
    trace = anneal(posterior, HMC(leapfrogs=3), ladder=ladder, chains=len(centre), seed=seed)
    shape = (len(simulated.y), DRAWS)
    weights = trace.stats["log_weight"].to_numpy().sum(0).reshape(shape)
    figures = {
        "least acceptance": float(trace.stats["acceptance_rate"].mean("chain").min()),
        "effective draws": float(np.mean([effective_sample_size(row) for row in weights])),
        "gradients": trace.gradient_calls,
    }
    return (centre + torch.from_numpy(trace.positions[:, -1]) @ spread).numpy().reshape(*shape, SIZE), weights, figures


def by_pseudoinverse(simulated: Simulated, seed: int) -> np.ndarray:
    """Return draws ``(n, DRAWS, SIZE)`` of jumps by reverse diffusion with pseudoinverse guidance."""
    made, y = simulated.made, simulated.repeated
    guided = PseudoinverseGuided(diffused(LAWS[simulated.law], SCHEDULE), made.gain, y, scale=made.scale)
    ladder = Ladder.spaced(SCHEDULE, rungs=STEPS)
    trace = reverse_diffusion(guided, ladder=ladder, chains=len(y), seed=seed)
    return trace.positions.reshape(len(simulated.y), DRAWS, SIZE)


def by_dps(simulated: Simulated, strength: float, seed: int) -> np.ndarray:
    """Return draws ``(n, DRAWS, SIZE)`` of jumps by DPS, whose guidance steps are taken in the metric of signals."""
    prior, gain = diffused(LAWS[simulated.law], NoiseSchedule.cosine(DPS_STEPS)), torch.from_numpy(simulated.made.gain)
    steps, y = torch.eye(SIZE) - torch.diag(torch.ones(SIZE - 1), -1), simulated.repeated
    metric = steps @ steps.T  # a step of x = L u down its own gradient, in jumps
    settings: dict[str, Any] = {"draws": len(y), "strength": strength, "seed": seed}
    drawn = dps(prior, lambda u: u @ gain.T, y, turned=lambda pull: pull @ metric, **settings)
    return drawn.reshape(len(simulated.y), DRAWS, SIZE)


def squared_error(simulated: Simulated, drawn: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Return the mean squared error of the posterior mean of the signal, ``(n,)``."""
    mean = drawn.mean(1) if shares is None else (drawn * shares[..., None]).sum(1)
    return (np.cumsum(mean - simulated.truth, axis=1) ** 2).mean(1)


def judged(simulated: Simulated, drawn: np.ndarray, shares: np.ndarray | None = None) -> dict[str, Any]:
    """Return ranks of the truth and squared errors, one of each simulation."""
    ranks = density_ranks(simulated.energies(simulated.truth), simulated.energies(drawn), shares)
    finite = np.where(np.isfinite(drawn).all((1, 2)), squared_error(simulated, drawn, shares), np.inf)
    return {"ranks": ranks.tolist(), "errors": finite.tolist()}


def walks(simulated: Simulated, ladder: Ladder, seed: int) -> dict[str, Any]:
    """Return what is judged of Gibbs and annealed draws, and of the wrong twin for half of the signals."""
    half = simulated[: (len(simulated.y) + 1) // 2]
    drawn, log_weights, figures = annealed(simulated, ladder, seed)
    shares = np.stack([normalise(row) for row in log_weights])
    return {
        "Gibbs": judged(simulated, gibbs(simulated, seed=seed)),
        "Gibbs, half the noise": judged(half, gibbs(half, claimed=0.5, seed=seed)),
        "annealed": judged(simulated, drawn) | {"walk": figures},
        "annealed, weighted": judged(simulated, drawn, shares),
    }


def guidance(simulated: Simulated, others: Simulated, seed: int) -> dict[str, Any]:
    """Return what is judged of guided reverse diffusion, with the strength of DPS that is best for ``others``."""
    errors = [float(squared_error(others, by_dps(others, strength, seed)).mean()) for strength in STRENGTHS]
    best = STRENGTHS[int(np.nanargmin(errors))]
    return {
        "pseudoinverse guided": judged(simulated, by_pseudoinverse(simulated, seed)),
        "DPS": judged(simulated, by_dps(simulated, best, seed)) | {"walk": {"strength": best}},
    }


def summary(found: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return coverage, the p-value of uniform ranks, and the squared error by that of the reference."""
    ranks, errors = np.array(found["ranks"]), np.array(found["errors"])
    return {
        "covered": covered(ranks, DRAWS),
        "p": uniformity(ranks, DRAWS, bins=10),
        "error": float(errors.mean() / np.mean(reference["errors"][: len(errors)])),
        "simulations": len(ranks),
        **found.get("walk", {}),
    }


def main(
    record: Record,
    simulations: Annotated[int, typer.Option(min=2, help="Signals of each task.")] = 200,
    guided: Annotated[int, typer.Option(min=0, help="Signals that guided reverse diffusion is run on.")] = 100,
    laws: Annotated[list[str], typer.Option(help="Laws of jumps: Gauss, Laplace, spikes.")] = list(LAWS),  # noqa: B006
    operators: Annotated[list[str], typer.Option(help="What is measured.")] = list(OPERATORS),  # noqa: B006
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 1,
) -> None:
    """Sample posteriors of simulated signals; print and write how often regions hold the truth."""
    check_choice("--laws", laws, LAWS)
    check_choice("--operators", operators, OPERATORS)
    content: dict[str, Any] = {"draws": DRAWS, "tasks": record.read("levy").get("tasks", {})}  # others keep figures
    for law in laws:
        ladder = thinned(LADDERS[law], every)
        for name in operators:
            made = Measurement.of(name, LAWS[law])
            simulated, others = (Simulated.draw(law, made, n, seed) for n, seed in ((simulations, 3), (TUNED, 4)))
            part, settings = f"levy/{law}-{name}", {"simulations": simulations, "every": every}
            with double_precision():
                found = record.kept(f"{part}-walks", settings, partial(walks, simulated, ladder, 5))
                if guided:
                    ours, settings = partial(guidance, simulated[:guided], others, 6), {"guided": guided}
                    found |= record.kept(f"{part}-guided", settings, ours)
            rows = {sampler: summary(row, found["Gibbs"]) for sampler, row in found.items()}
            content["tasks"][f"{law}: {name}"] = rows
            say(f"{law}, {name}: " + ", ".join(f"{sampler} {cell(row['covered'])}" for sampler, row in rows.items()))
    record.write("levy", content)
