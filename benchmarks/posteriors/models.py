"""Claim: posteriors of Pyro models with a diffusion prior agree with the exact ones where those are known, with Pyro's
own kernels and with BlackJAX's; a hierarchical model of real photographs finds what it should; and batched chains
cost what their gradients cost.

    python -m benchmarks models --mnist mnist.npz [--only linear photographs speed]

(a) ``linear``: a mixture of two Gaussians as prior, a linear-Gaussian likelihood, in 3 and 16 dimensions; the largest
error of means, covariances and mode masses, in standard errors. (b) ``photographs``: five noisy photographs of one
digit of the MNIST test set, each of unknown brightness, with unknown noise. (c) ``speed``: ratios of wall time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

import bridges.blackjax as batched
import bridges.pyro as in_turn
from benchmarks.harness import Record, check_choice, check_file, double_precision, say
from benchmarks.speed.stopwatch import fastest
from bridges.arviz import to_inference_data
from bridges.arviz.convert import arviz
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Potential, anneal, load
from ppl_diffusion.sampling.kernel import Kernel

SCHEDULE = NoiseSchedule.cosine(100)
SCALE = 0.6
KERNELS: dict[str, tuple[Kernel, int, int, float | None]] = {
    "BlackJAX HMC": (batched.HMC(), 1500, 1, None),
    "BlackJAX HMC, weighted": (batched.HMC(), 1500, 1, 0.5),
    "Pyro HMC": (in_turn.HMC(), 100, 10, None),
    "Pyro NUTS": (in_turn.NUTS(max_doublings=3), 100, 10, None),
}
"""Kernel, number of chains, number of draws, and resampling threshold, by name."""
PARTS = ("linear", "photographs", "speed")
QUICK = {"only": ["linear"], "seeds": 1, "kernels": ["BlackJAX HMC"]}
DIGITS = load("digits")
PHOTOGRAPHS, NOISE = 5, 0.5


def linear_problem(size: int) -> tuple[GaussianMixture, Tensor, Tensor]:
    """Return a prior of two modes in ``size`` dimensions, a design matrix ``(m, size)`` and data ``(m,)``."""
    rng = np.random.default_rng(size)
    prior = GaussianMixture(
        0.6 * rng.standard_normal((2, size)),
        rng.uniform(0.4, 0.8, (2, size)),
        weights=[0.4, 0.6],
        schedule=SCHEDULE,
        backend="torch",
        name="prior",
    )
    seen = max(2, size // 3)
    design = torch.from_numpy(rng.standard_normal((seen, size)) / 2)
    return prior, design, torch.from_numpy(0.6 * rng.standard_normal(seen))


def linear_model(y: Tensor, design: Tensor, prior: Potential) -> None:
    """Data ``y (m,)`` that depend linearly on the unknown ``x``, with Gaussian noise."""
    x = pyro.sample("x", DiffusionPrior(prior))
    pyro.sample("y", dist.Normal(design @ x, SCALE).to_event(1), obs=y)


def exact(prior: GaussianMixture, design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return masses ``(k,)``, means ``(k, D)`` and covariances ``(k, D, D)`` of the posterior's modes at level 0."""
    alpha, sigma, size = SCHEDULE.alpha(0), SCHEDULE.sigma(0), design.shape[1]
    logs, means, covariances = [], [], []
    for weight, mean, covariance in zip(prior.weights, prior.means, prior.covariances, strict=True):
        centre, spread = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(size)
        signal = design @ spread @ design.T + SCALE**2 * np.eye(len(y))
        gain = np.linalg.solve(signal, design @ spread).T
        residual = y - design @ centre
        logs.append(
            np.log(weight) - 0.5 * residual @ np.linalg.solve(signal, residual) - 0.5 * np.linalg.slogdet(signal)[1]
        )
        means.append(centre + gain @ residual)
        covariances.append(spread - gain @ design @ spread)
    masses = np.exp(logs - np.logaddexp.reduce(logs))
    return masses, np.array(means), np.array(covariances)


def errors(x: np.ndarray, modes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return errors ``(moments,)`` of mean, covariance and mode mass in standard errors; ``x (chains, draws, D)``."""
    masses, means, covariances = modes
    mean = masses @ means
    spread = np.einsum("k,kij->ij", masses, covariances + np.einsum("ki,kj->kij", means - mean, means - mean))
    centred, upper = x - mean, np.triu_indices(x.shape[-1])
    products = np.einsum("cdi,cdj->cdij", centred, centred) - spread
    offsets = x[..., None, :] - means
    logs = np.log(masses) - 0.5 * np.linalg.slogdet(covariances)[1]
    logs = logs - 0.5 * np.einsum("...ki,kij,...kj->...k", offsets, np.linalg.inv(covariances), offsets)
    shares = np.exp(logs - np.logaddexp.reduce(logs, axis=-1, keepdims=True))[..., :1] - masses[0]
    features = [centred.mean(1), products.mean(1)[:, upper[0], upper[1]], shares.mean(1)]
    values = np.concatenate(features, axis=1)
    return values.mean(0) / (values.std(0, ddof=1) / np.sqrt(len(values)))


@double_precision()
def linear(seeds: int = 3, kernels: Sequence[str] = tuple(KERNELS)) -> dict[str, Any]:
    """Return the largest errors over seeds, by dimension and kernel."""
    found: dict[str, Any] = {}
    for size in (3, 16):
        prior, design, y = linear_problem(size)
        modes = exact(prior, design.numpy(), y.numpy())
        for name in kernels:
            kernel, chains, draws, resample = KERNELS[name]
            begun, all_errors, rates = time.perf_counter(), [], []
            ladder = Ladder.spaced(SCHEDULE, rungs=25, steps=6)
            for seed in range(seeds):
                options: dict[str, Any] = {"kernel": kernel, "ladder": ladder, "chains": chains, "draws": draws}
                trace = anneal_model(linear_model, (y, design, prior), seed=seed, resample=resample, **options)
                all_errors.append(errors(trace.sites["x"], modes))
                rates.append(float(trace.stats.acceptance_rate.mean()))
            worst = np.abs(all_errors)
            found[f"{size}: {name}"] = {
                "largest error": float(worst.max()),
                "mode mass error": float(worst[:, -1].max()),
                "root mean square error": float(np.sqrt(np.mean(np.square(all_errors)))),
                "moments": int(worst.shape[1] * seeds),
                "acceptance": float(np.mean(rates)),
                "seconds": (time.perf_counter() - begun) / seeds,
            }
            say(f"{size} dimensions, {name}: {found[f'{size}: {name}']}")
    return found


def photograph_model(y: Tensor) -> None:
    """Photographs ``y (count, 28, 28)`` of one digit, each with its own brightness, which adds to every pixel."""
    x = pyro.sample("x", DiffusionPrior(DIGITS))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    with pyro.plate("photographs", len(y)):
        brightness = pyro.sample("brightness", dist.Normal(0.0, 0.5))
        pyro.sample("y", dist.Normal(x.unsqueeze(-3) + brightness[..., None, None], noise).to_event(2), obs=y)


def photographs(mnist: Path, record: Record, *, index: int = 4, chains: int = 24, draws: int = 600) -> dict[str, Any]:
    """Sample the posterior of one digit; save a picture, and return ArviZ's summary of brightness and noise."""
    with np.load(mnist, allow_pickle=False) as arrays:
        truth = arrays["x_test"][index] / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    brightness = 0.5 * torch.randn(PHOTOGRAPHS, generator=generator)
    y = torch.from_numpy(truth).float() + brightness[:, None, None]
    y = y + NOISE * torch.randn(y.shape, generator=generator)
    ladder = Ladder(levels=(*range(99, 9, -2), 8, 6, 4, 3, 2, 1, 0), steps=(12,) * 51 + (60,))
    trace = anneal_model(
        photograph_model, (y,), kernel=batched.HMC(), ladder=ladder, chains=chains, draws=draws, seed=0
    )
    data = to_inference_data(trace)
    summary = arviz().summary(data, var_names=["brightness", "noise"])
    x = trace.sites["x"]
    figure = Figure(figsize=(13, 2.2), layout="constrained")
    axes = figure.subplots(1, PHOTOGRAPHS + 4)
    panels = {"truth": truth} | {f"photograph {i + 1}": y[i].numpy() for i in range(PHOTOGRAPHS)}
    panels |= {"posterior mean": x.mean((0, 1)), "posterior std": x.std((0, 1)), "one draw": x[0, -1]}
    for axis, (name, image) in zip(axes, panels.items(), strict=True):
        axis.imshow(image, cmap="magma" if "std" in name else "gray")
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    record.draw("photographs", figure)
    rows = {name: np.asarray(summary[name], dtype=float).tolist() for name in summary.columns}
    mse = np.mean((x.mean((0, 1)) - truth) ** 2)
    averaged = (y - brightness[:, None, None]).mean(0).numpy()
    say(str(summary))
    return {
        "truth": [*brightness.tolist(), NOISE],
        "names": [str(name) for name in summary.index],
        "summary": rows,
        "PSNR": float(10 * np.log10(4 / mse)),
        "PSNR of the average, brightness known": float(10 * np.log10(4 / np.mean((averaged - truth) ** 2))),
        "least acceptance": float(trace.stats.acceptance_rate.mean("chain").min()),
    }


def completion(y: Tensor) -> None:
    """A digit whose right half is measured as ``y (28, 14)``, with noise of unknown scale."""
    x = pyro.sample("x", DiffusionPrior(DIGITS))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    pyro.sample("y", dist.Normal(x[..., 14:], noise).to_event(2), obs=y)


def timed(model: Callable[..., None], args: tuple[Any, ...], *, rungs: int, rounds: int) -> dict[str, Any]:
    """Return times of annealing 64 chains, relative to bare gradient calls and to Pyro's kernels per chain and step."""
    joint = JointPotential(model, args, likelihood="widened")
    ladder, chains, few = Ladder.spaced(joint.schedule, rungs=rungs, steps=4), 64, 2
    x, _ = joint.start(ladder.levels[0], chains=chains, rng=np.random.default_rng(0))
    points, calls = torch.from_numpy(x), len(ladder) * (1 + 4 * 3) + 3

    def walk() -> None:
        trace = anneal(joint, batched.HMC(), ladder=ladder, chains=chains, seed=0)
        assert trace.gradient_calls == calls, f"{trace.gradient_calls} calls where {calls} are due"

    def bare() -> None:
        for level in ladder.levels:
            for _ in range(1 + 4 * 3 + 3 * (level == ladder.levels[-1])):
                joint.value_and_grad(points, level=level)

    def one_by_one() -> None:
        anneal(joint, in_turn.HMC(), ladder=ladder, chains=few, seed=0)

    def twenty(points: Tensor) -> None:
        for _ in range(20):
            joint.value_and_grad(points, level=50)

    seconds = fastest(
        rounds,
        {
            "walk": walk,
            "bare": bare,
            "Pyro": one_by_one,
            "single": lambda: twenty(points[:1]),
            "batch": lambda: twenty(points),
        },
    )
    return {
        "seconds": seconds,
        "walk / bare gradient calls": seconds["walk"] / seconds["bare"],
        "Pyro / walk, per chain and step": seconds["Pyro"] / few / (seconds["walk"] / chains),
        "one chain alone / in a batch, bare": seconds["single"] / (seconds["batch"] / chains),
    }


def speed(rounds: int = 3) -> dict[str, Any]:
    """Return the times of both problems: a half-hidden digit, and a closed form in double precision."""
    found = {"digits": timed(completion, (torch.zeros(28, 14),), rungs=6, rounds=rounds)}
    with double_precision():
        prior, design, seen = linear_problem(3)
        found["closed form"] = timed(linear_model, (seen, design, prior), rungs=25, rounds=rounds)
    for name, row in found.items():
        say(f"{name} {row}")
    return found


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    only: Annotated[list[str], typer.Option(help="Parts to run; the others keep their figures.")] = list(PARTS),  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions of linear.")] = 3,
    kernels: Annotated[list[str], typer.Option(help="Kernels of linear.")] = list(KERNELS),  # noqa: B006
) -> None:
    """Run all parts, or those of ``--only``; the other parts keep their figures in the results."""
    check_choice("--only", only, PARTS)
    check_choice("--kernels", kernels, KERNELS)
    if "photographs" in only:
        check_file("--mnist", mnist, "the digits")
    content = record.read("models")
    parts: dict[str, Callable[[], Any]] = {
        "linear": lambda: linear(seeds, kernels),
        "photographs": lambda: photographs(mnist, record),
        "speed": speed,
    }
    for name in PARTS:
        if name in only:
            content[name] = parts[name]()
            record.write("models", content)
