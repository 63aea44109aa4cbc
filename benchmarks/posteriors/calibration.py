"""Claim: posteriors of Pyro models with a diffusion prior are calibrated, and the check sees one that is not.

    python -m benchmarks calibration [--simulations 200]

Simulation-based calibration: parameters are drawn from the prior and data from the model given them; the rank of each
parameter among draws of the posterior must then be uniform. The model has a diffusion prior (an exact Gaussian mixture,
so that prior draws are exact), a latent noise scale and a plate of observations. The negative control, "wrong twin",
computes its posterior with half the noise scale.

Source: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
https://arxiv.org/abs/1804.06788
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import typer

from benchmarks.harness import Record, double_precision, say
from benchmarks.posteriors.coverage import uniformity
from bridges.blackjax import HMC
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule

SCHEDULE = NoiseSchedule.cosine(100)
PRIOR = GaussianMixture(
    [[-0.7, 0.2], [0.6, -0.3]], [0.4, 0.6], weights=[0.4, 0.6], schedule=SCHEDULE, backend="torch", name="prior"
)
LADDER = Ladder.spaced(SCHEDULE, rungs=16, steps=5)
QUICK = {"simulations": 2}
DRAWS, COUNT = 39, 4
"""Posterior draws of a simulation, one from each chain; number of observations of a simulation."""


def model(y: torch.Tensor | None, *, claimed: float = 1.0) -> torch.Tensor:
    """Noisy sums and differences ``y (COUNT,)`` of two unknowns; ``claimed`` multiplies the scale of the noise."""
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    seen = torch.stack([x[0] + x[1], x[0] - x[1]]).repeat(COUNT // 2)
    with pyro.plate("observations", COUNT):
        return pyro.sample("y", dist.Normal(seen, claimed * (noise + 0.1)), obs=y)


def simulate(seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Draw parameters ``(x_0, x_1, noise)`` from the prior, and data ``(COUNT,)`` from the model given them."""
    x = torch.from_numpy(PRIOR.sample(1, level=0, seed=seed)[0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        noise = dist.HalfNormal(0.5).sample()
        y = pyro.condition(model, {"x": x, "noise": noise})(None)
    return np.array([*x.tolist(), float(noise)]), y.detach()


def ranks(record: Record, name: str, simulations: int, *, claimed: float) -> np.ndarray:
    """Return ranks ``(simulations, 3)`` of the true parameters among ``DRAWS`` posterior draws."""
    joint = JointPotential(partial(model, claimed=claimed), (simulate(0)[1],), likelihood="widened")

    def rank(seed: int) -> list[int]:
        truth, y = simulate(seed)
        sites = anneal_model(joint, (y,), kernel=HMC(), ladder=LADDER, chains=DRAWS, seed=seed).sites
        drawn = np.column_stack([sites["x"][:, 0], sites["noise"][:, 0]])
        return (drawn < truth).sum(0).tolist()

    found = []
    for seed in range(simulations):
        found.append(record.kept(f"calibration/{name}-{seed}", {"claimed": claimed}, partial(rank, seed)))
        if (seed + 1) % 50 == 0:
            say(f"  {seed + 1} of {simulations}")
    return np.array(found)


def main(
    record: Record,
    simulations: Annotated[int, typer.Option(min=1, help="Data sets that are simulated.")] = 200,
) -> None:
    """Test the model and the negative control; print and write the p-values."""
    content: dict[str, Any] = {"simulations": simulations, "draws": DRAWS}
    for name, claimed in (("model", 1.0), ("wrong twin", 0.5)):
        with double_precision():
            found = ranks(record, name, simulations, claimed=claimed)
        content[name] = {
            parameter: uniformity(found[:, i], DRAWS) for i, parameter in enumerate(("x_0", "x_1", "noise"))
        }
        say(f"{name}: " + ", ".join(f"{k} p = {v:.2g}" for k, v in content[name].items()))
    record.write("calibration", content)
