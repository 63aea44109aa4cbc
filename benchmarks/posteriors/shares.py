"""Claim: the shares of the ten classes among unconditional digits are the same by replica exchange, by weighted
annealing and between bounds, within their errors, down to the level at which chains mix.

    python -m benchmarks shares [--levels 80 70 60 50]

A classifier of noised digits gives every point of a level the probabilities of its class. Their means are the shares
of ``load("digits")`` at that level, whatever the classifier is worth. Of class k it is also the normaliser of
``digits`` times the classifier's factor ``p(k | x)``, divided by the normaliser of ``digits``.

* *exchange*: means over the draws of replicas, which are independent; errors are over replicas.
* *weighted*: means over the chains of a weighted walk down, errors over families.
* *bounds*: the interval in which the two normalisers leave the share. Walks up start from draws of exchange, for a
  class chosen with probabilities ``p(k | x)``.

Reported for each level: shares, how far exchange and weights are apart in standard errors (root mean square over
classes), the largest R-hat of energy, mean and projections, round trips, the least swap rate, and ancestors.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import Record, say
from benchmarks.pictures.levels import START
from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import EnergyModel, Ladder, Trace, anneal, bound_log_normaliser, exchange, load
from ppl_diffusion.sampling.ancestry import mean_error

CLASSES = 10
QUICK = {"levels": [90], "replicas": 2, "draws": 2, "warm_up": 2, "chains": 4, "bounded": [0]}


def probabilities(classifier: EnergyModel, x: np.ndarray, level: int) -> np.ndarray:
    """Return the probabilities ``(n, 10)`` of the classes of points ``x (n, *event_shape)``."""
    members, points = [classifier.given(k) for k in range(CLASSES)], torch.from_numpy(x)
    with torch.no_grad():
        energies = members[0].energy_group(members, [points] * CLASSES, level)
    return np.exp(-np.stack([np.asarray(energy) for energy in energies], axis=1))


def of_chains(trace: Trace, classifier: EnergyModel, level: int) -> np.ndarray:
    """Return the mean probabilities of the classes over the draws of each chain, ``(chains, 10)``."""
    chains, draws = trace.positions.shape[:2]
    flat = trace.positions.reshape(chains * draws, *trace.positions.shape[2:])
    return probabilities(classifier, flat, level).reshape(chains, draws, CLASSES).mean(1)


def described(values: np.ndarray, families: np.ndarray, **figures: Any) -> dict[str, Any]:
    """Return the means of ``values (chains, k)`` and their errors as lists, next to other figures. Families of chains,
    ``(chains,)``, are independent of one another; of a single one nothing is known, and its errors are 1."""
    errors = np.minimum(mean_error(values, families), 1)
    return {"shares": values.mean(0).tolist(), "errors": errors.tolist(), **figures}


def exchanged(
    digits: EnergyModel, classifier: EnergyModel, ladder: Ladder, *, replicas: int, draws: int, warm_up: int
) -> tuple[dict[str, Any], np.ndarray]:
    """Return the shares by exchange and how it mixed, and the draws ``(n, *event_shape)``."""
    given: dict[str, Any] = {"chains": replicas, "draws": draws, "warm_up": warm_up, "seed": 0, "accelerated": True}
    trace = exchange(digits, HMC(), ladder=ladder, **given)
    told, level = diagnose(trace).draws, ladder.levels[-1]
    figures = {
        "R-hat": float(told.r_hat.max()) if told.sizes.get("variable") else None,
        "round trips": float(trace.stats.round_trips.mean()),
        "least swap rate": float(np.nanmin(trace.stats.swap_rate)),
        "gradients": trace.gradient_calls,
    }
    values = of_chains(trace, classifier, level)
    return described(values, np.arange(replicas), **figures), trace.positions.reshape(-1, *digits.event_shape)


def weighted(digits: EnergyModel, classifier: EnergyModel, ladder: Ladder, *, chains: int) -> dict[str, Any]:
    """Return the shares by a weighted walk."""
    trace = anneal(digits, HMC(), ladder=ladder, chains=chains, draws=10, seed=1, resample=0.5, reverse_step=True)
    values = of_chains(trace, classifier, ladder.levels[-1])
    return described(values, trace.families, ancestors=len(np.unique(trace.families)), gradients=trace.gradient_calls)


def bounds(
    digits: EnergyModel, classifier: EnergyModel, ladder: Ladder, drawn: np.ndarray, *, chains: int, bounded: list[int]
) -> dict[str, list[float]]:
    """Return a lower and an upper bound of the share of some classes, by class."""
    rng, level = np.random.default_rng(2), ladder.levels[-1]
    of_class = probabilities(classifier, drawn, level)

    def walk(target: Any, chances: np.ndarray, seed: int) -> Any:
        exact = drawn[rng.choice(len(drawn), chains, p=chances / chances.sum())]
        return bound_log_normaliser(target, HMC(), exact=exact, ladder=ladder, seed=seed, reverse_step=True)

    whole, found = walk(digits, np.ones(len(drawn)), 0), {}
    for k in bounded:
        part = walk(digits * classifier.given(k), of_class[:, k], 1 + k)
        found[str(k)] = [float(np.exp(part.lower - whole.upper)), float(np.exp(part.upper - whole.lower))]
    return found


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return how far two estimates of shares are apart, in standard errors, as the root mean square over classes."""
    difference = np.subtract(one["shares"], other["shares"])
    return float(np.sqrt(np.mean(difference**2 / (np.square(one["errors"]) + np.square(other["errors"])))))


def main(
    record: Record,
    levels: Annotated[list[int], typer.Option(min=0, max=96, help="Levels.")] = [80, 70, 60, 50],  # noqa: B006
    model: Annotated[str, typer.Option(help="Or a weight file.")] = "digits",
    replicas: Annotated[int, typer.Option(min=2, help="Replicas of the ladder.")] = 16,
    draws: Annotated[int, typer.Option(min=2, help="Recorded rounds.")] = 200,
    warm_up: Annotated[int, typer.Option(min=1, help="Rounds before them.")] = 40,
    chains: Annotated[int, typer.Option(min=4, help="Chains of weighted walks; a quarter of them for bounds.")] = 256,
    bounded: Annotated[list[int], typer.Option(min=0, max=9, help="Classes with bounds.")] = [0, 1, 4],  # noqa: B006
) -> None:
    """Estimate the shares at every level in three ways; print and write them."""
    digits, classifier = load(model), load("digits_classifier")
    settings = {"model": model, "replicas": replicas, "draws": draws, "warm_up": warm_up, "chains": chains}
    content: dict[str, Any] = {**settings, "levels": {}}

    def estimated(level: int) -> dict[str, Any]:
        sparse = Ladder((*range(START, level, -3), level), steps=1)
        by_exchange, drawn = exchanged(digits, classifier, sparse, replicas=replicas, draws=draws, warm_up=warm_up)
        full = Ladder(tuple(range(START, level - 1, -1)), steps=2)
        by_weights = weighted(digits, classifier, full, chains=chains)
        between = bounds(digits, classifier, full, drawn, chains=max(2, chains // 4), bounded=bounded)
        return {
            "exchange": by_exchange,
            "weighted": by_weights,
            "bounds": between,
            "apart": apart(by_exchange, by_weights),
        }

    for level in levels:
        found = record.kept(f"shares/{level}", settings | {"bounded": bounded}, partial(estimated, level))
        content["levels"][str(level)] = found
        mixed = ", ".join(f"{key} {value:.3g}" for key, value in found["exchange"].items() if isinstance(value, float))
        say(f"level {level}: apart {found['apart']:.2f}, {mixed}, ancestors {found['weighted']['ancestors']}")
    record.write("shares", content)
