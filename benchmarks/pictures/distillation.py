"""Claim: an energy that learns from a denoiser of its own architecture is as good as one that was trained as an energy
at the same cost.

    python -m benchmarks distillation [--mnist data/mnist.npz]

Digits by class, with the network of ``load("digits")``. The denoiser has no energy: its estimate of the noise is that
of the reference Gaussian plus ``2 s``, which is the gradient of ``sigma U_ref + <x, s>`` where ``s`` is linear and
symmetric in ``x``, so that ``train(config, teacher=...)`` starts from weights that are right in the linear case. The
cost is counted in forward passes, a backward pass as two (as one with respect to ``x`` only): 3 for a training step of
the denoiser, 6 for one of an energy, 7 for one of a lesson.

Reported are the denoising loss on held-out digits, the accuracy of annealed HMC given a class by a classifier that
knows clean digits, the spread of log-weights between neighbouring levels, and how much of the denoiser's field is no
gradient: the ratio of the work round small loops to that along their sides.

Source: Composition and Control with Distilled Energy Diffusion Models and Sequential Monte Carlo (Thornton et
al., 2025), https://arxiv.org/abs/2502.12786
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.harness import Record, check_file, last, say, thinned
from benchmarks.pictures.forms import PASSES, fit, imitation_steps
from benchmarks.pictures.judge import load_judge, look
from benchmarks.pictures.levels import START, held_out, spreads, unseen
from bridges.arviz.plots import image_grid
from bridges.blackjax import HMC
from ppl_diffusion import (
    Config,
    EnergyModel,
    Ladder,
    NoiseSchedule,
    ScorePotential,
    anneal,
    load,
    load_config,
    save_weights,
)
from ppl_diffusion.models.networks import EnergyUNet
from ppl_diffusion.training.data import Data, image_data
from ppl_diffusion.training.objective import noised
from ppl_diffusion.training.train import train

SCHEDULE = NoiseSchedule.cosine(100)
TIMES = [float(SCHEDULE.log_snr(level)) for level in range(len(SCHEDULE))]
LADDER = Ladder(levels=(*range(START, 9, -3), 8, 6, 4, 3, 2, 1, 0), steps=2)
CONFIG = replace(load_config("digits"), warm_up=50, ema=0.99)
QUICK = {"steps": 4, "pictures": 64, "each": 1, "every": 20}


class Denoiser(EnergyUNet):
    """The network of an energy as a denoiser ``network(x, log_snr, condition)``, which predicts the noise."""

    def __init__(self, reference: Any, **options: Any) -> None:
        super().__init__(**options)
        self.mean, self.variance = (torch.as_tensor(value).float() for value in reference)

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the estimate of the noise, of the shape of ``x (batch, 1, 28, 28)``."""
        alpha, sigma = (torch.sigmoid(sign * log_snr).sqrt().reshape(-1, 1, 1, 1) for sign in (1, -1))
        gaussian = sigma * (x - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
        return gaussian + 2 * super().forward(x, log_snr, condition)


def denoiser(source: Data) -> Denoiser:
    """Return an untrained denoiser."""
    torch.manual_seed(0)
    options: dict[str, Any] = {key: value for key, value in CONFIG.network.items() if key != "kind"}
    return Denoiser(source.reference, **options, **source.conditions.options)


def denoiser_loss(network: Any, clean: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the mean squared error of the predicted noise."""
    level = torch.randint(len(SCHEDULE), (len(clean),), generator=generator)
    x, noise = noised(SCHEDULE, clean, level, generator)
    found = network(x.detach()[:, None], SCHEDULE.log_snr(level).float(), condition)
    return ((found[:, 0] - noise) ** 2).mean()


def potential(network: Denoiser, source: Data) -> ScorePotential:
    """Return a denoiser as a potential without an energy."""
    given: dict[str, Any] = {"conditions": source.conditions, "reference": source.reference, "name": "denoiser"}
    return ScorePotential(
        network, predicts="noise", schedule=SCHEDULE, event_shape=source.event_shape, times=TIMES, **given
    )


def drawn(model: Any, *, each: int, every: int) -> np.ndarray:
    """Return pictures ``(10 * each, 28, 28)`` of annealed HMC, ``each`` of every class."""
    ladder = thinned(LADDER, every)
    found = [
        last(anneal(model.given(k), HMC(), ladder=ladder, chains=each, seed=k, reverse_step=True)) for k in range(10)
    ]
    return np.concatenate(found)


def judged(model: Any, pictures: Tensor, *, each: int, every: int) -> dict[str, Any]:
    """Return class accuracy and pictures of a model, and of an energy also held-out loss and spreads."""
    shown = drawn(model, each=each, every=every)
    labels, _ = look(load_judge(), shown)
    right = labels == np.repeat(np.arange(10), each)
    figures: dict[str, Any] = {
        "accuracy": {"mean": float(right.mean()), "se": float(right.std() / np.sqrt(len(right)))},
        "shown": np.round(shown[:: max(each // 2, 1)][:20], 2).tolist(),
    }
    if isinstance(model, EnergyModel):
        figures |= {"denoising loss": held_out(model, pictures), "in place": spreads(model, pictures[:128])}
    return figures


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    steps: Annotated[int, typer.Option(min=3, help="Training steps of an energy from scratch.")] = 1500,
    pictures: Annotated[int, typer.Option(min=64, help="Held-out pictures.")] = 256,
    each: Annotated[int, typer.Option(min=1, help="Pictures drawn of every class.")] = 20,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 2,
) -> None:
    """Train a denoiser, energies from it and from scratch, judge all and write the results."""
    check_file("--mnist", mnist, "the digits")
    source = image_data(
        mnist,
        images="x_train",
        labels="y_train",
        positions=None,
        batch=CONFIG.batch,
        label_dropout=CONFIG.label_dropout,
    )
    shown, folder = unseen(mnist, "x_test", pictures), record.runs / "distillation"
    folder.mkdir(parents=True, exist_ok=True)
    network, weights = denoiser(source), folder / f"denoiser-{steps}.pt"
    if weights.is_file():
        network.load_state_dict(torch.load(weights, weights_only=True))
    else:
        network = fit(network, denoiser_loss, source, steps=steps)  # type: ignore[assignment]
        torch.save(network.state_dict(), weights)
    teacher = potential(network, source)
    lengths = {"denoiser": steps, "energy": steps, "lesson": imitation_steps(steps)}
    content: dict[str, Any] = {"passes": PASSES, "steps": lengths, "batch": CONFIG.batch, "rows": {}}
    taught = replace(CONFIG, form="inner_product", steps=lengths["lesson"], name="distilled")
    energies: dict[str, tuple[Config, ScorePotential | None]] = {
        "from scratch": (replace(CONFIG, steps=steps, name="scratch"), None),
        "from scratch, inner product": (replace(CONFIG, form="inner_product", steps=steps, name="product"), None),
        "distilled": (taught, teacher),
    }
    settings = {"steps": steps, "pictures": pictures, "each": each, "every": every}

    def row(name: str) -> dict[str, Any]:
        config, tutor = energies[name]
        kept = folder / f"{config.name}-{steps}.safetensors"
        if not kept.is_file():
            checkpoint = kept.with_suffix(".checkpoint.safetensors")
            save_weights(train(config, checkpoint=checkpoint, data=mnist, teacher=tutor), kept)
        model = load(kept)
        turning = json.loads(model.info.get("circulation", "{}"))
        return judged(model, shown, each=each, every=every) | {"circulation": turning, "form": model.form}

    content["rows"]["the denoiser"] = record.kept(
        "distillation/denoiser", settings, lambda: judged(teacher, shown, each=each, every=every)
    )
    for name in energies:
        content["rows"][name] = record.kept(f"distillation/{name}", settings, partial(row, name))
    for name, figures in content["rows"].items():
        say(f"{name}: accuracy {figures['accuracy']['mean']:.2f}, loss {figures.get('denoising loss', np.nan):.4f}")
    record.draw("distillation", draw({name: np.array(r.pop("shown")) for name, r in content["rows"].items()}))
    record.write("distillation", content)


def draw(rows: dict[str, np.ndarray]) -> Figure:
    """Draw pictures ``(n, 28, 28)`` in a panel for each name."""
    figure = Figure(figsize=(2.4 * len(rows), 2.9), layout="constrained")
    for axes, (name, x) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        axes.imshow(image_grid(x), cmap="gray", vmin=-1, vmax=1)
        axes.set_title(name, fontsize=8)
        axes.axis("off")
    return figure
