"""Claim: on noised data the learned energies of neighbouring levels agree to within what the noise alone spreads, but
for the cleanest levels; and a few hundred steps of telling levels apart do not mend those.

    python -m benchmarks levels [--models digits cubes] [--shipped-only] [--mnist FILE.npz] [--cubes FILE.npz]

Training of the shipped models continues from their weights, with several weights of the level classification loss
(``ppl_diffusion.training.objective``); weight 0 is the control. Reported for each, and for the shipped model:

* *spread*: standard deviation of the log-weight increment ``U_s(x) - U_t(x)`` of held-out pictures noised to level
  ``s``, ``t`` being the next cleaner level. *noise*: standard deviation of the part that depends on the noise alone,
  ``|z|^2 / 2 (1 - (sigma_s / sigma_t)^2)``. The exact density of data on a low-dimensional surface has this part too,
  so no energy can be much below it. *excess*: standard deviation of the remainder.
* *walk*: the spread along annealed HMC, by rung, as ``diagnose`` reports it.
* *denoising loss* of held-out pictures, with the same noise for all models.

Weights and checkpoints are kept in ``runs/levels``; an interrupted run resumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness import Record, check_choice, check_file, say, thinned
from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import Config, EnergyModel, Ladder, anneal, load, load_config, save_weights, train
from ppl_diffusion.training.objective import denoising_loss

LEVELS = (80, 50, 20, 5, 1)
LADDER = Ladder(levels=(*range(99, 9, -3), 8, 6, 4, 3, 2, 1, 0), steps=2)
FURTHER: dict[str, dict[str, Any]] = {
    "digits": {"steps": 600},
    "cubes": {"steps": 250},
}
WEIGHTS = {"digits": (0.0, 0.3, 3.0), "cubes": (0.0, 3.0, 30.0)}
QUICK = {"models": ["digits"], "shipped_only": True, "pictures": 8, "chains": 2, "every": 20}
KEYS = {"digits": "x_test", "cubes": "test_images"}


def configuration(name: str, weight: float) -> Config:
    """Return the shipped configuration, but starting from the shipped weights, with a weight of the second loss."""
    further = {"init": name, "batch": 32, "learning_rate": 3e-4, "warm_up": 50, "seed": 1, **FURTHER[name]}
    return replace(load_config(name), agreement=weight, **further)


def trained(name: str, weight: float, data: Path, folder: Path) -> EnergyModel:
    """Return the model of a configuration: trained, or loaded if its weights are kept in a folder."""
    path = folder / f"{name}-{weight:g}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_suffix(".checkpoint.safetensors")
        save_weights(train(configuration(name, weight), checkpoint=checkpoint, data=data, every=50), path)
    return load(path)


def unseen(data: Path, key: str, count: int) -> torch.Tensor:
    """Load held-out pictures ``(count, *event_shape)``, scaled to [-1, 1]."""
    with np.load(data) as arrays:
        return torch.from_numpy(arrays[key][:count]).float() / 127.5 - 1


def spreads(model: EnergyModel, pictures: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return spread, noise and excess (see the top) of noised pictures ``(n, *event_shape)`` by level, in nats."""
    found, schedule = {}, model.schedule
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    square = (noise.double() ** 2).flatten(1).sum(1).numpy()
    for level in LEVELS:
        x = (schedule.alpha(level) * pictures + schedule.sigma(level) * noise).numpy()
        with torch.no_grad():
            above, below = (np.asarray(model.energy(x, level=i)) for i in (level, level - 1))
        part = 0.5 * square * (1 - (schedule.sigma(level) / schedule.sigma(level - 1)) ** 2)
        parts = {"spread": above - below, "noise": part, "excess": above - below - part}
        found[str(level)] = {key: float(value.std()) for key, value in parts.items()}
    return found


def held_out(model: EnergyModel, pictures: torch.Tensor) -> float:
    """Return the denoising loss of the unconditional model, with the same noise for all models."""
    generator, losses = torch.Generator().manual_seed(3), []
    for part in pictures.split(64):
        condition = model.conditions.stack([model.conditions.anything] * len(part), torch.device("cpu"))
        inputs: dict[str, Any] = {"condition": condition, "reference": model.reference, "generator": generator}
        losses.append(float(denoising_loss(model.network, model.form, model.schedule, part, **inputs).detach()))
    return float(np.mean(losses))


def walk(model: EnergyModel, *, ladder: Ladder, chains: int) -> dict[str, Any]:
    """Return the spread of log-weights along annealed HMC: median, largest, by rung; and the least acceptance."""
    rungs = diagnose(anneal(model, HMC(), ladder=ladder, chains=chains, seed=0)).rungs
    spread = rungs.spread.to_numpy()[1:]
    by_level = {str(int(level)): float(value) for level, value in zip(rungs.level[1:], spread, strict=True)}
    figures = {"median": float(np.median(spread)), "largest": float(spread.max())}
    return {**figures, "least acceptance": float(rungs.acceptance.min()), "by level": by_level}


def judged(model: EnergyModel, pictures: torch.Tensor, *, ladder: Ladder, chains: int) -> dict[str, Any]:
    """Return all figures that are reported for a model."""
    return {
        "denoising loss": held_out(model, pictures),
        "in place": spreads(model, pictures[:128]),
        "walk": walk(model, ladder=ladder, chains=chains),
    }


def tell(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures of one model's variants as a Markdown table."""
    columns = [f"level {level}" for level in LEVELS]
    lines = [f"| {name} | denoising loss | {' | '.join(columns)} | walk, median | walk, largest |", "|---" * 9 + "|"]
    for key, row in rows.items():
        cells = [f"{row['in place'][str(level)]['spread']:.3g}" for level in LEVELS]
        cells += [f"{row['walk'][which]:.3g}" for which in ("median", "largest")]
        lines.append(f"| {key} | {row['denoising loss']:.5f} | {' | '.join(cells)} |")
    noise = [f"{figures['noise']:.3g}" for figures in next(iter(rows.values()))["in place"].values()]
    lines.append(f"| noise alone | | {' | '.join(noise)} | | |")
    return "\n".join(lines)


def main(
    record: Record,
    models: Annotated[list[str], typer.Option(help=f"Of {', '.join(WEIGHTS)}.")] = list(WEIGHTS),  # noqa: B006
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    cubes: Annotated[Path, typer.Option(dir_okay=False, help="What prepare makes.")] = Path("data/cubes32.npz"),
    shipped_only: Annotated[bool, typer.Option("--shipped-only", help="Train nothing.")] = False,
    pictures: Annotated[int, typer.Option(min=2, help="Held-out pictures.")] = 256,
    chains: Annotated[int, typer.Option(min=2, help="Chains of the walks.")] = 24,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 1,
) -> None:
    """Train the models that are not kept, judge all, print the tables and write the results."""
    check_choice("--models", models, WEIGHTS)
    data = {"digits": ("--mnist", mnist), "cubes": ("--cubes", cubes)}
    files = {name: check_file(*data[name], f"the pictures of {name}") for name in models}
    content = record.read("levels")
    for name, file in files.items():
        config = configuration(name, 0.0)
        content[name] = {"steps": config.steps, "batch": config.batch, "learning rate": config.learning_rate}
        rows = content[name]["rows"] = {}
        shown = unseen(file, KEYS[name], pictures)
        for weight in (None, *(() if shipped_only else WEIGHTS[name])):
            key = "shipped" if weight is None else f"weight {weight:g}"
            model = load(name) if weight is None else trained(name, weight, file, record.runs / "levels")
            rows[key] = judged(model, shown, ladder=thinned(LADDER, every), chains=chains)
            say(f"\n{tell(name, rows)}")
            record.write("levels", content)
