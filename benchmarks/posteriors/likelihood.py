"""Claim: the likelihood of held-out digits lies between two bounds, whose gap says how far a normaliser can be trusted.

    python -m benchmarks likelihood [--mnist data/mnist.npz]

``bound_log_normaliser`` anneals down from noise and up from draws of the last rung, with reverse-diffusion steps and
the forward kernel, and HMC in between. Reported for each density at the last level: both bounds of its log-normaliser
in nats, their gap, and the bits per dimension of held-out digits, noised to that level, that follow from them.

* *mixture*: a Gaussian for each class in 784 dimensions, with the means and variances of its training pictures. It is
  known in closed form, its normaliser is 1 and its draws are exact: 0 must lie between the bounds.
* *digits*: ``load("digits")``, up from held-out digits, which are not draws of it: the upper value is a bound only as
  far as the model is right.
* *digits as 3*: the same model given the class 3, a wrong model of all digits. Up from held-out digits of all classes.

Source: Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse, Ghahramani and Adams, 2015),
https://arxiv.org/abs/1511.02543
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import Record, check_file, say
from benchmarks.pictures.levels import START, unseen
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, Potential, bound_log_normaliser, load

QUICK = {"chains": 4, "pictures": 16, "every": 30, "steps": 1}


def classes(mnist: Path, schedule: Any) -> GaussianMixture:
    """Return the mixture of a Gaussian for each class of digits."""
    with np.load(mnist) as arrays:
        pictures, labels = arrays["x_train"].reshape(-1, 784) / 127.5 - 1, arrays["y_train"]
    of_class = [pictures[labels == label] for label in range(10)]
    means, scales = (np.array([getattr(one, which)(0) for one in of_class]) for which in ("mean", "std"))
    shares = [len(one) for one in of_class]
    return GaussianMixture(means, scales + 0.02, weights=shares, schedule=schedule, backend="torch", name="mixture")


def bounded(density: Potential, exact: np.ndarray, shown: np.ndarray, ladder: Ladder) -> dict[str, float]:
    """Return the figures of a density at the last level of a ladder."""
    found = bound_log_normaliser(density, HMC(), exact=exact, ladder=ladder, seed=0, reverse_step=True)
    low, high = found.bits(shown)
    return {
        "lower": found.lower,
        "lower error": found.lower_error,
        "upper": found.upper,
        "upper error": found.upper_error,
        "gap": found.gap,
        "least bits": low,
        "most bits": high,
    }


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    last: Annotated[int, typer.Option(min=0, help="The last level.")] = 10,
    chains: Annotated[int, typer.Option(min=2, help="Chains in either direction.")] = 32,
    pictures: Annotated[int, typer.Option(min=4, help="Held-out digits that are judged.")] = 512,
    steps: Annotated[int, typer.Option(min=0, help="Kernel steps at a level.")] = 2,
    every: Annotated[int, typer.Option(min=1, help="Take every n-th level only.")] = 1,
) -> None:
    """Bound all normalisers, print the figures and write them."""
    check_file("--mnist", mnist, "the held-out digits")
    digits = load("digits")
    schedule = digits.schedule
    ladder = Ladder((*range(START, last, -every), last), steps=steps)
    rng = np.random.default_rng(0)
    clean = unseen(mnist, "x_test", pictures + chains).numpy().astype(np.float64)
    noised = schedule.alpha(last) * clean + schedule.sigma(last) * rng.standard_normal(clean.shape)
    shown, others = noised[:pictures], noised[pictures:]
    mixture = classes(mnist, schedule)
    cases: dict[str, tuple[Potential, np.ndarray, np.ndarray]] = {
        "mixture": (mixture, mixture.sample(chains, level=last, seed=0), shown.reshape(len(shown), -1)),
        "digits": (digits, others, shown),
        "digits as 3": (digits.given(3), others, shown),
    }
    settings = {"last": last, "chains": chains, "steps": steps, "every": every, "pictures": pictures}
    rows: dict[str, Any] = {}
    for name, (density, exact, points) in cases.items():
        rows[name] = record.kept(f"likelihood/{name}", settings, partial(bounded, density, exact, points, ladder))
        say(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in rows[name].items()))
    record.write("likelihood", settings | {"rows": rows})
