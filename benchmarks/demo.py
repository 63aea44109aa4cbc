"""Claim: compositions of learned energies can be sampled with MCMC kernels that people trust, where reverse
diffusion goes wrong, and a digit model completes a real, half-hidden digit with honest uncertainty.

    python -m benchmarks demo [--mnist FILE.npz] [--out runs/demo] [--record]

(a) Product, mixture and quotient of the shipped planar models, compared with the truth. (b) The right half of a
handwritten digit, from the posterior of the prior ``digits`` given the left half. The digit is from the MNIST test set
if its file is there (key ``x_test``), otherwise an enlarged one of scikit-learn's. (c) Three cubes at chosen positions.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure

from benchmarks.harness import Record, check_choice, last, say
from benchmarks.pictures.cubes import target
from benchmarks.pictures.grid import draw_grid
from benchmarks.planar.problems import PROBLEMS, Truth
from bridges.arviz import Diagnosis, diagnose, to_inference_data
from bridges.arviz.convert import arviz
from bridges.arviz.diagnose import WORST_COORDINATE
from bridges.arviz.plots import image_grid, plot_ladder, plot_planar
from bridges.blackjax import HMC
from ppl_diffusion import Ladder, Progress, Trace, anneal, load, observation, reverse_diffusion
from ppl_diffusion.potentials.planar import exact

PARTS = ("compositions", "cubes", "digit")
QUICK = {"only": ["digit"], "chains": 3, "rungs": 6, "draws": 20, "out": "runs/quick"}
WHERE = ((0.5, 0.5), (0.2, 0.35), (0.8, 0.35))
"""Positions of three cubes, x to the right and y down."""
NOISE = 0.1
"""Standard deviation of the measurement noise of a pixel; pixels are in [-1, 1]."""


def planar(*, chains: int = 300, steps: int = 3) -> Figure:
    """Part (a): return one picture with a row each for product, mixture and quotient."""
    models = {name: load(name) for name in ("ring", "bar", "left", "right", "wide")}
    panels: dict[str, np.ndarray] = {}
    for key, problem in PROBLEMS.items():
        target = problem.build(models.__getitem__)
        ladder = Ladder.full(target.schedule, steps=steps)
        truth = Truth.of(problem.build(lambda name: exact(name, backend="jax")))
        panels[f"{problem.name}\ntruth"] = truth.sample(chains, seed=0)
        panels[f"{key}\nreverse diffusion"] = last(reverse_diffusion(target, ladder=ladder, chains=chains, seed=1))
        panels[f"{key}\nannealed HMC"] = last(anneal(target, HMC(), ladder=ladder, chains=chains, seed=2))
        weighted = anneal(target, HMC(), ladder=ladder, chains=chains, seed=3, resample=0.5)
        panels[f"{key}\nweighted HMC"] = last(weighted)
        say(f"{problem.name}: {weighted.gradient_calls} evaluations of each network for {chains} chains")
    return plot_planar(panels, columns=4)


def three_cubes(*, pictures: int = 6) -> Figure:
    """Part (c): draw cubes at three positions, by reverse diffusion and by annealed HMC."""
    potential = target(WHERE)
    ladder = Ladder(levels=(*range(99, 9, -3), 8, 6, 4, 3, 2, 1, 0), steps=3)
    traces = {
        "reverse": reverse_diffusion(potential, chains=pictures, seed=3),
        "HMC": anneal(potential, HMC(), ladder=ladder, chains=pictures, seed=3, reverse_step=True),
    }
    return draw_grid({name: [(x, WHERE) for x in last(trace)] for name, trace in traces.items()})


def hidden_digit(mnist: Path, *, index: int = 0) -> tuple[np.ndarray, str]:
    """Return a handwritten digit (28, 28) in [-1, 1] that no model was trained on, and a title with its source."""
    if mnist.is_file():
        with np.load(mnist, allow_pickle=False) as arrays:
            return arrays["x_test"][index] / 127.5 - 1, f"MNIST test digit {index}"
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(f"no {mnist}, and scikit-learn is not installed: pip install 'ppl-diffusion[demo]'") from error
    from scipy.ndimage import zoom

    small = load_digits().images[index + 3] / 16
    return np.pad(zoom(small, 2.5, order=3).clip(0, 1), 4) * 2 - 1, f"scikit-learn digit {index + 3}, enlarged"


def completion(digit: np.ndarray, *, chains: int, rungs: int, draws: int) -> Trace:
    """Part (b): sample the posterior of a digit whose left half was measured.

    Many steps are taken at the last rung, where the learned energy is by far the stiffest.
    """
    prior = load("digits")
    seen = np.zeros(digit.shape, dtype=bool)
    seen[:, :14] = True
    likelihood = observation(digit, seen=seen, scale=NOISE, schedule=prior.schedule, backend="torch")
    ladder = Ladder.spaced(prior.schedule, rungs=rungs, steps=(3,) * (rungs - 2) + (10, 50))

    def tell(state: Progress) -> None:
        if state.rung % 10 == 0:
            rate = f"acceptance {state.acceptance_rate:.2f}"
            say(f"  rung {state.rung} of {state.rungs}, {state.draw} draws, {rate}")

    return anneal(prior * likelihood, HMC(), ladder=ladder, chains=chains, draws=draws, seed=0, progress=tell)


def picture(digit: np.ndarray, trace: Trace, title: str) -> Figure:
    """Draw the digit, its measured half, posterior mean, posterior standard deviation, and samples."""
    seen = digit.copy()
    seen[:, 14:] = 0
    panels = {
        title: digit,
        "seen": seen,
        "posterior mean": trace.positions.mean((0, 1)),
        "posterior std": trace.positions.std((0, 1)),
        "last draw of 25 chains": image_grid(trace.positions[:25, -1]),
    }
    figure = Figure(figsize=(14, 3.2), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, 5), panels.items(), strict=True):
        spread = name == "posterior std"
        axes.imshow(image, cmap="magma" if spread else "gray", vmin=0 if spread else -1, vmax=1)
        axes.set_title(name, fontsize=10)
        axes.axis("off")
    return figure


def figures(digit: np.ndarray, trace: Trace, found: Diagnosis) -> dict[str, float]:
    """Return figures of merit of the completed half, and of the sampler."""
    drawn, truth = trace.positions[..., 14:], digit[:, 14:]
    low, high = np.quantile(drawn.reshape(-1, *truth.shape), [0.05, 0.95], axis=0)
    return {
        "rmse": float(np.sqrt(np.mean((drawn.mean((0, 1)) - truth) ** 2))),
        "std": float(drawn.std((0, 1)).mean()),
        "covered": float(np.mean((truth >= low) & (truth <= high))),
        "least acceptance": float(found.rungs.acceptance.min()),
        "r_hat": float(found.draws.r_hat.drop_sel(variable=WORST_COORDINATE).max()),
        "weight spread": float(found.rungs.spread[1:].median()),
    }


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(help="The MNIST data, if it is there.")] = Path("data/mnist.npz"),
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of pictures and tables.")] = Path("runs/demo"),
    keep: Annotated[bool, typer.Option("--record", help="Write pictures and figures to the results too.")] = False,
    only: Annotated[list[str], typer.Option(help="Parts to run.")] = list(PARTS),  # noqa: B006
    chains: Annotated[int, typer.Option(min=2, help="Chains that complete the digit.")] = 64,
    rungs: Annotated[int, typer.Option(min=3, help="Rungs of their ladder.")] = 40,
    draws: Annotated[int, typer.Option(min=20, help="Recorded draws of each.")] = 40,
) -> None:
    """Run all parts, and write pictures and tables to a folder."""
    check_choice("--only", only, PARTS)
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    if "compositions" in only:
        figure = planar()
        figure.savefig(out / "compositions.png", dpi=110)
        if keep:
            record.draw("compositions", figure, dpi=110)
        say(f"compositions: {time.perf_counter() - begun:.0f} s")
    if "cubes" in only:
        three_cubes().savefig(out / "cubes.png", dpi=110)
    if "digit" in only:
        digit, title = hidden_digit(mnist)
        trace = completion(digit, chains=chains, rungs=rungs, draws=draws)
        found = diagnose(trace)
        figure, values = picture(digit, trace, title), figures(digit, trace, found)
        figure.savefig(out / "completion.png", dpi=110)
        plot_ladder(trace).savefig(out / "ladder.png", dpi=110)
        summary = arviz().summary(to_inference_data(trace), var_names=["~x"]).to_string()
        report = f"{title}\n\n{found}\n\n{summary}\n\n" + "".join(f"{k}: {v:.3f}\n" for k, v in values.items())
        (out / "completion.txt").write_text(report, encoding="utf-8")
        say(f"\n{report}")
        if keep:
            record.draw("completion", figure, dpi=110)
            record.write("digits", values)
    say(f"{time.perf_counter() - begun:.0f} s; pictures in {out}/")
