"""Claim: one line of Pyro, ``x = pyro.sample("x", DiffusionPrior(load("digits")))``, gives posteriors of real digits
with unknown noise whose 90 % intervals hold at least nine in ten of the true pixels, and more of them than those of
guided reverse diffusion with the same network and at least as many network calls.

    python -m benchmarks inverse --mnist mnist.npz [--digits 100] [--guided 10] [--recorded 3]

Digits of the MNIST test set are half hidden, blurred, or measured at half the resolution. The scale of the measurement
noise is unknown to the model, a HalfNormal latent. Nineteen chains give nineteen draws. If they were exact, the truth
of every pixel would lie between their minimum and maximum with probability 18/20: that is the 90 % interval. For the
first digits 200 more steps are recorded at level 0, to measure how well chains mix there. Interrupted runs resume.

Compared with diffusion posterior sampling (DPS): reverse diffusion guided by the gradient of the misfit of Tweedie's
estimate of the clean digit (``benchmarks.posteriors.guided``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Record, check_choice, check_file, say, summarise, thinned
from benchmarks.posteriors.guided import dps
from bridges.arviz import diagnose
from bridges.arviz.convert import arviz
from bridges.arviz.diagnose import WORST_COORDINATE
from bridges.blackjax import HMC
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model
from ppl_diffusion import Ladder, Trace, load

PRIOR = load("digits")
NOISE = 0.1
"""True standard deviation of the measurement noise; the model knows only that it is HalfNormal(0.5)."""
DRAWS = 19
"""Chains of a posterior: the range of n exchangeable draws holds the next one with probability (n - 1) / (n + 1)."""
LEVELS = (*range(99, 9, -2), 8, 6, 4, 3, 2, 1, 0)
OPENING = 41
"""Level from which down the walk decides what is noise and what is digit, if half of the digit is hidden."""


def _ladder(clean: int) -> Ladder:
    """Return a ladder over ``LEVELS``: 3 steps a rung above ``OPENING``, ``clean`` from there down, 20 at level 0."""
    return Ladder(levels=LEVELS, steps=(*(3 if level > OPENING else clean for level in LEVELS[:-1]), 20))


LADDERS = {"inpainting": _ladder(6), "deblurring": _ladder(3), "super-resolution": _ladder(6)}
"""With fewer steps the prior does not form digits; without blur, 3 clean steps misjudge the noise in some chains."""
QUICK = {
    "digits": 3,
    "guided": 0,
    "recorded": 0,
    "problems": ["super-resolution"],
    "every": 20,
    "drawn": False,
}
STRENGTHS = {"inpainting": 3.0, "deblurring": 3.0, "super-resolution": 1.0}
"""Guidance step of DPS by problem: the best of .3, 1 and 3 on digits of the training set, see ``--tune``."""


def _gaussian(size: int, width: float) -> Tensor:
    x = torch.arange(size) - (size - 1) / 2
    one = torch.exp(-0.5 * (x / width) ** 2)
    return (one[:, None] * one / one.sum() ** 2)[None, None]


@dataclass(frozen=True)
class Settings:
    """How the measurement enters at noise levels, and that walks take every so-manieth rung."""

    likelihood: Any
    every: int = 1

    def ladder(self, problem: str) -> Ladder:
        """Return the ladder of a problem."""
        return thinned(LADDERS[problem], self.every)


BLUR = _gaussian(9, 1.5)
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "inpainting": lambda x: x[..., :14],
    "deblurring": lambda x: F.conv2d(x.reshape(-1, 1, 28, 28), BLUR.to(x), padding=4).reshape(x.shape),
    "super-resolution": lambda x: F.avg_pool2d(x.reshape(-1, 1, 28, 28), 2).reshape(*x.shape[:-2], 14, 14),
}
HIDDEN = {"inpainting": (slice(None), slice(14, 28))}
"""Pixels (rows, columns) that are judged, for problems where not all are."""


def model(y: Tensor, operator: Callable[[Tensor], Tensor]) -> None:
    """A digit that is measured as ``y`` through an operator, with noise of unknown scale."""
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    noise = pyro.sample("noise", dist.HalfNormal(0.5))
    pyro.sample("y", dist.Normal(operator(x), noise).to_event(2), obs=y)


def walk(joint: JointPotential, y: Tensor, ladder: Ladder, seed: int, *, draws: int = 1) -> Trace:
    """Run annealed HMC with ``DRAWS`` chains on one digit."""
    settings: dict[str, Any] = {"ladder": ladder, "chains": DRAWS, "draws": draws, "seed": seed}
    settings |= {"likelihood": joint.likelihood}
    return anneal_model(joint, (y, *joint.args[1:]), kernel=HMC(), **settings)


def posterior(joint: JointPotential, y: Tensor, ladder: Ladder, seed: int) -> dict[str, Any]:
    """Return posterior draws ``(DRAWS, 28, 28)`` of one digit, and statistics of the walk."""
    trace = walk(joint, y, ladder, seed)
    rates = trace.stats.acceptance_rate.mean("chain").to_numpy()
    return {
        "x": trace.sites["x"][:, -1],
        "noise": trace.sites["noise"][:, -1],
        "calls": DRAWS * trace.gradient_calls,
        "acceptance": rates.tolist(),
    }


def figures(problem: str, truth: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return PSNR of the mean in dB (for a range of 2), and coverage of the judged pixels by the 90 % interval."""
    where = HIDDEN.get(problem, (slice(None), slice(None)))
    truth, drawn = truth[where], drawn[:, *where]
    squares = np.mean((drawn.mean(0) - truth) ** 2)
    # The k-th smallest of n exchangeable draws is a k / (n + 1) quantile: of 19, the minimum and the maximum.
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0, method="weibull")
    ink = truth > -0.9
    inside = (truth >= low) & (truth <= high)
    return {
        "PSNR": float(10 * np.log10(4 / squares)),
        "covered": float(inside.mean()),
        "covered ink": float(inside[ink].mean()) if ink.any() else float("nan"),
        "width": float((high - low).mean()),
    }


def measure(problem: str, truth: np.ndarray, seed: int) -> Tensor:
    """Return the noisy measurement of a digit ``(28, 28)``: a float32 tensor."""
    seen = OPERATORS[problem](torch.from_numpy(truth).float())
    return seen + NOISE * torch.randn(seen.shape, generator=torch.Generator().manual_seed(seed))


def compare(record: Record, problem: str, pictures: np.ndarray, *, beside: int, settings: Settings) -> dict[str, Any]:
    """Return figures over all digits, and of DPS over the first ``beside``."""
    operator = OPERATORS[problem]
    joint = JointPotential(model, (measure(problem, pictures[0], 0), operator), likelihood=settings.likelihood)

    def ours(index: int) -> dict[str, Any]:
        begun = time.perf_counter()
        found = posterior(joint, measure(problem, pictures[index], index), settings.ladder(problem), index)
        return {
            "ours": figures(problem, pictures[index], found["x"]),
            "noise": np.sort(found["noise"]).tolist(),
            "acceptance": found["acceptance"],
            "calls": found["calls"],
            "seconds": time.perf_counter() - begun,
        }

    def theirs(index: int, calls: int) -> dict[str, Any]:
        begun = time.perf_counter()
        draws = -(-calls // len(PRIOR.schedule))  # so that DPS makes no fewer network calls
        y = measure(problem, pictures[index], index)
        drawn = dps(PRIOR, operator, y, draws=draws, strength=STRENGTHS[problem], seed=index)
        found = figures(problem, pictures[index], drawn)
        return {"DPS": found, "DPS seconds": time.perf_counter() - begun, "DPS calls": draws * len(PRIOR.schedule)}

    rows: list[dict[str, Any]] = []
    for index in range(len(pictures)):
        part, options = f"inverse/{settings.likelihood}/{problem}-{index}", {"every": settings.every}
        rows.append(record.kept(part, options, partial(ours, index)))
        if index < beside:
            rows[-1] |= record.kept(f"{part}-DPS", options, partial(theirs, index, rows[-1]["calls"]))
        if (index + 1) % 10 == 0:
            say(f"{problem}: {index + 1} digits, PSNR {np.mean([r['ours']['PSNR'] for r in rows]):.2f}")
    pairs = [row for row in rows if "DPS" in row]
    noise = np.array([row["noise"] for row in rows])
    found_figures = {
        "ours": summarise([row["ours"] for row in rows]),
        "noise": float(np.median(noise)),
        "chains with noise off by half or more": float(np.mean(np.abs(np.log(noise / NOISE)) > np.log(1.5))),
        "digits": len(rows),
        "calls": float(np.mean([row["calls"] for row in rows])),
        "acceptance by rung": np.mean([row["acceptance"] for row in rows], axis=0).round(3).tolist(),
    }
    if pairs:
        found_figures |= {
            "ours, same digits": summarise([row["ours"] for row in pairs]),
            "DPS": summarise([row["DPS"] for row in pairs]),
            "DPS digits": len(pairs),
            "DPS calls": float(np.mean([row["DPS calls"] for row in pairs])),
            "DPS time / ours": float(np.median([row["DPS seconds"] / row["seconds"] for row in pairs])),
        }
    return found_figures


def mixed(problem: str, pictures: np.ndarray, settings: Settings, *, draws: int = 200) -> dict[str, Any]:
    """Return R-hat of draws recorded at level 0: of the noise scale, and the worst of energy, mean and projections."""
    operator, rows = OPERATORS[problem], []
    joint = JointPotential(model, (measure(problem, pictures[0], 0), operator), likelihood=settings.likelihood)
    for index, truth in enumerate(pictures):
        trace = walk(joint, measure(problem, truth, index), settings.ladder(problem), index, draws=draws)
        worst = float(diagnose(trace).draws.r_hat.drop_sel(variable=WORST_COORDINATE).max())
        rows.append({"noise": float(arviz().rhat(trace.sites["noise"])), "worst": worst})
    say(f"{problem}: R-hat {rows}")
    return {"draws": draws, "digits": len(rows)} | {key: [row[key] for row in rows] for key in ("noise", "worst")}


def picture(digits: np.ndarray, settings: Settings) -> Figure:
    """Draw one digit for each problem: truth, measurement, means of DPS and posterior, spread, three draws."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    axes = figure.subplots(len(OPERATORS), 8)
    for row, (problem, operator) in enumerate(OPERATORS.items()):
        truth, y = digits[row], measure(problem, digits[row], row)
        joint = JointPotential(model, (y, operator), likelihood=settings.likelihood)
        drawn = posterior(joint, y, settings.ladder(problem), row)["x"]
        beside = dps(PRIOR, operator, y, draws=DRAWS, strength=STRENGTHS[problem], seed=row)
        panels = {"truth": truth, "seen": y.numpy(), "DPS mean": beside.mean(0), "posterior mean": drawn.mean(0)}
        panels |= {"posterior std": drawn.std(0)} | {f"draw {i + 1}": drawn[i] for i in range(3)}
        for axis, (name, image) in zip(axes[row], panels.items(), strict=True):
            spread = name == "posterior std"
            axis.imshow(image, cmap="magma" if spread else "gray", vmin=0 if spread else -1, vmax=1)
            axis.set(xticks=[], yticks=[], title=name if row == 0 else "")
        axes[row][0].set_ylabel(problem)
    return figure


def tune(digits: np.ndarray) -> None:
    """Print the PSNR of DPS by its strength."""
    for problem, operator in OPERATORS.items():
        for strength in (0.3, 1.0, 3.0):
            found = [
                figures(
                    problem, x, dps(PRIOR, operator, measure(problem, x, i), draws=DRAWS, strength=strength, seed=i)
                )
                for i, x in enumerate(digits)
            ]
            say(f"{problem}: strength {strength}: PSNR {np.mean([f['PSNR'] for f in found]):.2f}")


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    digits: Annotated[int, typer.Option(min=3, help="Digits of the test set.")] = 100,
    guided: Annotated[int, typer.Option(min=0, help="Digits that DPS is run on too.")] = 10,
    recorded: Annotated[int, typer.Option(min=0, help="Digits that further steps are recorded of.")] = 3,
    likelihood: Annotated[str, typer.Option(help="How the measurement enters at noise levels.")] = "widened",
    tuning: Annotated[bool, typer.Option("--tune", help="Print PSNR of DPS by strength, on training digits.")] = False,
    problems: Annotated[list[str], typer.Option(help="Problems to solve.")] = list(OPERATORS),  # noqa: B006
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 1,
    drawn: Annotated[bool, typer.Option("--picture/--no-picture", help="Draw a digit of each problem.")] = True,
) -> None:
    """Run every problem on every digit; write figures and a picture."""
    check_choice("--problems", problems, OPERATORS)
    settings = Settings(likelihood, every)
    with np.load(check_file("--mnist", mnist, "the digits"), allow_pickle=False) as arrays:
        train, test = (arrays[key][:digits] / 127.5 - 1 for key in ("x_train", "x_test"))
    if tuning:
        tune(train[:2])
        return
    content: dict[str, Any] = {"noise": NOISE, "draws": DRAWS, "likelihood": likelihood, "problems": {}}
    before = record.read("inverse")
    if before.get("likelihood") == likelihood:  # problems that are not run keep their figures
        content |= {key: before[key] for key in ("problems", "R-hat") if key in before}
    for problem in problems:
        content["problems"][problem] = compare(record, problem, test, beside=guided, settings=settings)
        record.write("inverse", content)
    for problem in OPERATORS if recorded else ():
        content["R-hat"] = content.get("R-hat", {}) | {problem: mixed(problem, test[:recorded], settings)}
        record.write("inverse", content)
    if drawn:
        record.draw("inverse", picture(test, settings))
