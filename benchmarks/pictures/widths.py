"""Claim: with reverse steps as wide as the clean point is unknown, log-weights serve down to the last level where the
energies agree; with those of DDPM's variance they do not.

    python -m benchmarks widths [--parts "2 dimensions" "64 dimensions" digits] [--mnist data/mnist.npz]

* *2 dimensions*, *64 dimensions*: three modes in closed form, whose normaliser is 1, on ``cosine(100)`` and on
  ``edm(40)``. ``anneal(..., reverse_step=)`` takes 64 chains down all levels to level 0, with a step of HMC on each and
  resampling. Reported of many walks: the mean of the log-normaliser (0 is right), its standard deviation, the
  error that the walks state (root mean square), the share of walks whose error is at most 1.96 of the stated one, and
  the least effective share of the chains on any level.
* *digits*: ``load("digits")``, unconditional, with held-out digits. From ``x_t``, a digit noised to level
  ``t = s - 1``, the forward kernel takes it to ``x_s``. Reported by level s is the standard deviation over digits, in
  nats, of

      U_s(x_s) - U_t(x_t) + log q(x_s | x_t) - log r(x_t | x_s)

  for reverse steps of DDPM's variance, wide ones, and ones that are wide pixel by pixel, by the gradients of other
  digits. *widening* is the factor between the first two variances, of at most *largest*.

Source: Analytic-DPM (Bao, Li, Zhu and Zhang, 2022), https://arxiv.org/abs/2201.06503
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.harness import Record, check_choice, check_file, say
from benchmarks.pictures.levels import unseen
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Potential, SamplingWarning, anneal, load
from ppl_diffusion.sampling.transitions import (
    Reverse,
    largest_widening,
    log_forward,
    log_reverse,
    told_share,
    widening,
)

SCHEDULES = {"cosine(100)": NoiseSchedule.cosine(100), "edm(40)": NoiseSchedule.edm(40)}
PARTS = {"2 dimensions": 2, "64 dimensions": 64, "digits": 784}
STEPS: dict[str, Reverse] = {"narrow": True, "wide": "wide"}
LEVELS = (20, 10, 5, 3, 2, 1)
QUICK = {"parts": ["2 dimensions"], "walks": 2, "chains": 8}


def modes(dimensions: int, schedule: NoiseSchedule) -> GaussianMixture:
    """Return three modes of unlike widths and weights, in closed form."""
    means = np.zeros((3, dimensions))
    means[0, 0], means[1, 0], means[2, 1] = -2, 2, 2.5
    return GaussianMixture(means, [0.2, 0.3, 0.25], weights=[0.2, 0.5, 0.3], schedule=schedule, backend="jax")


def walked(target: Potential, reverse: Reverse, *, walks: int, chains: int) -> dict[str, float]:
    """Return the figures of walks down all levels of a target of the normaliser 1."""
    found, stated, least = np.empty(walks), np.empty(walks), np.empty(walks)
    for seed in range(walks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            ladder = Ladder.full(target.schedule, steps=1)
            trace = anneal(target, HMC(), ladder=ladder, chains=chains, seed=seed, resample=0.5, reverse_step=reverse)
        found[seed], stated[seed] = trace.log_normaliser, trace.log_normaliser_error
        least[seed] = float(trace.stats.ess.min()) / chains
    return {
        "walks": walks,
        "mean": float(found.mean()),
        "mean error": float(found.std() / np.sqrt(walks)),
        "deviation": float(found.std()),
        "stated": float(np.sqrt(np.mean(stated**2))),
        "covered": float(np.mean(np.abs(found) < 1.96 * stated)),
        "least ess": float(least.mean()),
    }


def evaluated(target: Potential, x: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return energies ``(n,)`` and gradients at points ``x (n, *event_shape)``, in float64."""
    parts = np.array_split(x, max(1, len(x) // 48))
    energies, gradients = zip(*(target.value_and_grad(part, level=level) for part in parts), strict=True)
    energy, gradient = (np.concatenate([np.asarray(v, np.float64) for v in found]) for found in (energies, gradients))
    return energy, gradient


def by_pixel(target: Potential, gradient: np.ndarray, s: int, t: int) -> np.ndarray:
    """Return the factor of the variance of each pixel by gradients ``(n, *event_shape)`` at level s."""
    told = np.mean((target.schedule.sigma(s) * gradient) ** 2, axis=0)
    return 1 + (largest_widening(target, s, t) - 1) * np.clip(1 - told, 0, 1)


def weighed(target: Potential, clean: np.ndarray, s: int) -> dict[str, float]:
    """Return the figures of a level s by held-out pictures ``clean (n, *event_shape)``."""
    schedule, t, rng, half = target.schedule, s - 1, np.random.default_rng(s), len(clean) // 2
    x_t = schedule.alpha(t) * clean + schedule.sigma(t) * rng.standard_normal(clean.shape)
    alpha, sigma = schedule.forward(t, s)
    x_s = alpha * x_t + sigma * rng.standard_normal(clean.shape)
    above, gradient = evaluated(target, x_s, s)
    below, _ = evaluated(target, x_t, t)
    base = above - below + log_forward(target, x_s, x_t, s, t)
    wide = widening(target, s, t, told_share(target, gradient, s))
    mean, spread = schedule.reverse(x_s, gradient, s, t)
    pixels = np.where(
        (np.arange(len(clean)) < half)[:, None, None],
        by_pixel(target, gradient[half:], s, t),
        by_pixel(target, gradient[:half], s, t),
    )
    axes = tuple(range(1, clean.ndim))
    apart = -0.5 * np.sum((x_t - mean) ** 2 / (spread**2 * pixels) + np.log(spread**2 * pixels), axis=axes)
    return {
        "largest": largest_widening(target, s, t),
        "widening": wide,
        "narrow": float(np.std(base - log_reverse(target, x_t, x_s, gradient, s, t))),
        "wide": float(np.std(base - log_reverse(target, x_t, x_s, gradient, s, t, widened=wide))),
        "by pixel": float(np.std(base - apart)),
    }


def main(
    record: Record,
    parts: Annotated[list[str], typer.Option(help=f"Of {', '.join(PARTS)}.")] = list(PARTS),  # noqa: B006
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    walks: Annotated[int, typer.Option(min=2, help="Walks in 2 dimensions; a quarter of them in 64.")] = 200,
    chains: Annotated[int, typer.Option(min=2, help="Chains of a walk.")] = 64,
    pictures: Annotated[int, typer.Option(min=4, help="Held-out digits.")] = 192,
) -> None:
    """Walk, weigh, print the figures and write them."""
    check_choice("--parts", parts, PARTS)
    if "digits" in parts:
        check_file("--mnist", mnist, "the held-out digits")
    for part in parts:
        rows, settings = {}, {"walks": max(2, walks if PARTS[part] == 2 else walks // 4), "chains": chains}
        if part == "digits":
            clean, settings = unseen(mnist, "x_test", pictures).numpy().astype(np.float64), {"pictures": pictures}
            acts = {str(s): partial(weighed, load("digits"), clean, s) for s in LEVELS}
        else:
            acts = {
                f"{name}, {kind}": partial(walked, modes(PARTS[part], schedule), reverse, **settings)
                for name, schedule in SCHEDULES.items()
                for kind, reverse in STEPS.items()
            }
        for name, act in acts.items():
            rows[name] = record.kept(f"widths/{part} {name}", settings, act)
            say(f"{part}, {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rows[name].items()))
        record.write("widths", record.read("widths") | {part: settings | {"rows": rows}})
