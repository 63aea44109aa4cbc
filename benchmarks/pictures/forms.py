"""Claim: which form of the energy learns fastest is measured, not believed, and so is whether an ordinary denoiser that
is made into an energy afterwards learns faster still.

    python -m benchmarks forms [--cubes data/cubes32.npz]

Energy models of cubes with the same small network are trained at equal cost: the three forms from random weights, and
two distilled models, of the inner product and of the best form, which start from the weights of a teacher and imitate
it. The teacher is a denoiser without an energy. It estimates the noise by that of the reference Gaussian plus ``2 s``,
which is the gradient of ``sigma U_ref + <x, s>`` where ``s`` is linear and symmetric in ``x``. The cost is counted in
forward passes, a backward pass as two (as one with respect to ``x`` only): 3 for a training step of the denoiser, 6 for
one of an energy, 7 for one of an imitation.

Source: Composition and Control with Distilled Energy Diffusion Models and Sequential Monte Carlo (Thornton et
al., 2025), https://arxiv.org/abs/2502.12786
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from torch import Tensor, nn

from benchmarks.cube_factory.detector import load_detector
from benchmarks.harness import Record, check_file, last, say, thinned
from benchmarks.pictures.levels import KEYS, LADDER, held_out, spreads, unseen
from bridges.blackjax import HMC
from ppl_diffusion import EnergyModel, Ladder, NoiseSchedule, anneal, save_weights
from ppl_diffusion.models.forms import DENSITIES, Form, noise_potential
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.training.data import Data, image_data
from ppl_diffusion.training.objective import denoising_loss, noised

SCHEDULE = NoiseSchedule.cosine(100)
NETWORK = {"kind": "unet", "shape": [3, 32, 32], "widths": [32, 64, 96], "blocks": 1, "positions": True}
PASSES = {"denoiser": 3, "energy": 6, "imitation": 7}
STEPS = 400
QUICK = {"steps": 3, "pictures": 64, "chains": 2, "every": 20}
RATE, WARM_UP, EMA, BATCH = 1e-3, 50, 0.99, 32

Loss = Callable[[nn.Module, Tensor, Tensor | None, torch.Generator], Tensor]


def fit(network: nn.Module, loss: Loss, source: Data, *, steps: int) -> nn.Module:
    """Train ``network`` by AdamW with warm-up and cosine decay; return a copy with the averaged parameters."""
    optimiser, generator = torch.optim.AdamW(network.parameters(), lr=RATE), torch.Generator().manual_seed(0)
    average = deepcopy(network)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = (
            RATE * min(1, (step + 1) / WARM_UP) * (0.505 + 0.495 * math.cos(math.pi * step / steps))
        )
        clean, condition = source.draw(generator)
        optimiser.zero_grad(set_to_none=True)
        loss(network, clean, condition, generator).backward()
        optimiser.step()
        with torch.no_grad():
            for kept, value in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(value, 1 - min(EMA, (step + 1) / (step + 10)))
    return average


def energy_loss(form: Form, source: Data) -> Loss:
    """Return the denoising loss of the gradient of an energy."""

    def loss(network: nn.Module, clean: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        inputs: dict[str, Any] = {"condition": condition, "reference": source.reference, "generator": generator}
        return denoising_loss(network, form, SCHEDULE, clean, **inputs)

    return loss


def estimate(network: nn.Module, x: Tensor, level: Tensor, condition: Tensor | None, source: Data) -> Tensor:
    """Return the teacher's estimate of the noise, of the shape of ``x``: the reference Gaussian's plus ``2 s``."""
    alpha, sigma = (scale(level).float().reshape(-1, 1, 1, 1) for scale in (SCHEDULE.alpha, SCHEDULE.sigma))
    mean, variance = source.reference
    gaussian = sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)
    return gaussian + 2 * network(x, SCHEDULE.log_snr(level).float(), condition)


def teacher_loss(source: Data) -> Loss:
    """Return the denoising loss of the teacher, which has no energy."""

    def loss(network: nn.Module, clean: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        level = torch.randint(len(SCHEDULE), (len(clean),), generator=generator)
        x, noise = noised(SCHEDULE, clean, level, generator)
        return ((estimate(network, x.detach(), level, condition, source) - noise) ** 2).mean()

    return loss


def imitation_loss(form: Form, teacher: nn.Module, source: Data) -> Loss:
    """Return the mean squared difference of the energy's gradient from the teacher's estimate, as a loss."""

    def loss(network: nn.Module, clean: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        level = torch.randint(len(SCHEDULE), (len(clean),), generator=generator)
        x, _ = noised(SCHEDULE, clean, level, generator)
        with torch.no_grad():
            wanted = estimate(teacher, x, level, condition, source)
        f = noise_potential(network, form, SCHEDULE, x, level, condition, source.reference)
        (found,) = torch.autograd.grad(f.sum(), x, create_graph=True)
        return ((found - wanted) ** 2).mean()

    return loss


def model(network: nn.Module, form: Form, source: Data, name: str, folder: Path) -> EnergyModel:
    """Return the energy model of a network, and save its weights in a folder."""
    made = EnergyModel(
        network,
        form=form,
        schedule=SCHEDULE,
        event_shape=source.event_shape,
        conditions=source.conditions,
        reference=source.reference,
        name=name.replace(" ", "_"),
        info={
            "network": json.dumps(NETWORK),
            "name": name,
            "description": name,
            "command": "python -m benchmarks forms",
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(made, folder / f"{made.name}.safetensors")
    return made


def sliced_distance(x: np.ndarray, y: np.ndarray, *, directions: int = 200) -> float:
    """Return the sliced Wasserstein distance (p = 1) of two sets of pictures ``(n, *event)`` of equal size."""
    chosen = np.random.default_rng(0).standard_normal((x[0].size, directions)) / np.sqrt(x[0].size)
    first, second = (np.sort(pictures.reshape(len(pictures), -1) @ chosen, axis=0) for pictures in (x, y))
    return float(np.abs(first - second).mean())


def quality(pictures: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Judge pictures ``(n, *event)`` by the detector, and by their distance to equally many real ones."""
    sound = np.isfinite(pictures).all((1, 2, 3)) & (np.abs(pictures) < 2).all((1, 2, 3))
    counts = np.array([len(found) for found in load_detector().locate(pictures[sound])])
    return {
        "pictures in range": float(sound.mean()),
        "cubes found": float(counts.mean()) if len(counts) else float("nan"),
        "one to five": float(np.sum((counts >= 1) & (counts <= 5)) / len(pictures)),
        "sliced distance": sliced_distance(np.clip(pictures, -1, 1), real),
    }


def judged(energy: EnergyModel, pictures: Tensor, *, ladder: Ladder, chains: int) -> dict[str, Any]:
    """Return held-out loss, spread of log-weights, acceptance, and quality of the pictures of one energy model."""
    trace = anneal(energy, HMC(), ladder=ladder, chains=chains, seed=0, reverse_step=True)
    return {
        "denoising loss": held_out(energy, pictures),
        "in place": spreads(energy, pictures[:128]),
        "least acceptance": float(trace.stats.acceptance_rate.mean("chain").min()),
        **quality(last(trace), pictures[:chains].numpy()),
    }


def main(
    record: Record,
    cubes: Annotated[Path, typer.Option(dir_okay=False, help="What prepare makes.")] = Path("data/cubes32.npz"),
    steps: Annotated[int, typer.Option(min=3, help="Training steps of an energy.")] = STEPS,
    pictures: Annotated[int, typer.Option(min=64, help="Held-out pictures.")] = 256,
    chains: Annotated[int, typer.Option(min=2, max=64, help="Chains of the walks.")] = 32,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 1,
) -> None:
    """Train and judge every form, and write the results."""
    check_file("--cubes", cubes, "the scenes")
    options: dict[str, Any] = {"images": "images", "labels": "", "positions": "positions"}
    source = image_data(cubes, **options, batch=BATCH, label_dropout=0.25)
    shown = unseen(cubes, KEYS["cubes"], pictures)
    lengths = {"denoiser": steps, "energy": steps, "imitation": imitation_steps(steps)}
    content: dict[str, Any] = {"passes": PASSES, "steps": lengths, "batch": BATCH, "rows": {}}
    content["real pictures"] = quality(shown[32:64].numpy(), shown[:32].numpy())

    def train(name: str, form: Form, begin: nn.Module, loss: Loss, kind: str) -> None:
        def row() -> dict[str, Any]:
            begun = time.process_time()
            network = fit(deepcopy(begin), loss, source, steps=lengths[kind])
            seconds = {"processor seconds": time.process_time() - begun}
            energy = model(network, form, source, name, record.runs / "forms")
            return seconds | judged(energy, shown, ladder=thinned(LADDER, every), chains=chains)

        settings = {"steps": steps, "pictures": pictures, "chains": chains, "every": every}
        content["rows"][name] = record.kept(f"forms/{name}", settings, row)
        say(f"{name}: held-out loss {content['rows'][name]['denoising loss']:.4f}")

    begin = build_network(seed=0, **cast(dict[str, Any], NETWORK))
    for form in DENSITIES:
        train(form, form, begin, energy_loss(form, source), "energy")
    begun = time.process_time()
    teacher = fit(deepcopy(begin), teacher_loss(source), source, steps=lengths["denoiser"]).requires_grad_(False)
    content["teacher"] = {"processor seconds": time.process_time() - begun, "denoising loss": teach(teacher, source)}
    best = min(content["rows"], key=lambda name: content["rows"][name]["denoising loss"])
    for form in dict.fromkeys(["inner_product", best]):
        imitation = imitation_loss(form, teacher, source)
        trainable = deepcopy(teacher).requires_grad_(True)
        train(f"{form} distilled", form, trainable, imitation, "imitation")
    record.write("forms", content)


def imitation_steps(steps: int) -> int:
    """Return training steps of an imitation: with its teacher's ``steps`` they cost as much as those of an energy."""
    return steps * (PASSES["energy"] - PASSES["denoiser"]) // PASSES["imitation"]


def teach(teacher: nn.Module, source: Data) -> float:
    """Return the denoising loss of the teacher on sixteen batches."""
    generator, loss = torch.Generator().manual_seed(3), teacher_loss(source)
    with torch.no_grad():
        return float(np.mean([float(loss(teacher, *source.draw(generator), generator)) for _ in range(16)]))
