"""Claim: a second stage of training with a loss of agreement lowers the spread of log-weights most at the clean end,
where energies of neighbouring levels disagree most; it is measured what that costs.

    python -m benchmarks levels [--models digits cubes] [--mnist FILE.npz] [--cubes FILE.npz] [--steps 1500]

``digits`` is judged as shipped, and after a second stage of training, the configuration ``digits_agreement``
(``ppl_diffusion.training.agreement``), with some weights of the loss, 0 being denoising alone. Models without a second
stage are judged as shipped. Reported are:

* *reverse step*: standard deviation of the log-weight of a reverse step from level ``s`` to the next cleaner one, of
  held-out pictures noised to that level and one further.
* *in place*: that of ``U_s(x) - U_t(x)``, ``t`` being the next cleaner level. *noise*: the part that depends on the
  noise alone, ``|z|^2 / 2 (1 - (sigma_s / sigma_t)^2)``. The exact density of data on a low-dimensional surface has
  this part too, so no energy can be much below it. *excess*: standard deviation of the remainder.
* *cumulative*: that of the log-weights of reverse diffusion from level 97 down to some levels, without resampling, by
  two reverse steps for each level. (From level 99, where next to nothing is left of the signal, a step multiplies the
  error of the estimated noise by thirty, one of half a level by six.)
* *ancestors*: how many chains of level 97 have descendants at some levels, as a share of all chains, where annealed HMC
  with reverse steps is resampled by its weights.
* *denoising loss* of held-out pictures, with the same noise for all models.
* *accuracy*, *Frechet distance*: of digits that are drawn by reverse diffusion under each label, in the eyes of a
  second classifier (``benchmarks.pictures.judge``).

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

from benchmarks.harness import Record, check_choice, check_file, last, say
from benchmarks.pictures.fidelity import frechet_distance
from benchmarks.pictures.judge import load_judge, look, read_digits
from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import Config, EnergyModel, Ladder, anneal, load, load_config, reverse_diffusion, save_weights, train
from ppl_diffusion.sampling.transitions import log_forward, log_reverse
from ppl_diffusion.training.objective import denoising_loss

LEVELS = (80, 50, 20, 5, 1)
FROM = (80, 50, 20, 10, 5, 3, 2, 1)
"""Levels that a reverse step starts from."""
DOWN_TO = (60, 40, 20, 10, 5)
"""Levels down to which log-weights are added up."""
START, FINER = 97, 2
LADDER = Ladder(levels=(*range(99, 9, -3), 8, 6, 4, 3, 2, 1, 0), steps=2)
SECOND = {"digits": "digits_agreement"}
"""Configurations of a second stage of training, by the model that it begins with."""
KEYS = {"digits": "x_test", "cubes": "test_images"}
QUICK = {"models": ["digits"], "steps": 0, "pictures": 8, "chains": 2, "labels": 1}


def trained(name: str, weight: float, steps: int, data: Path, folder: Path) -> EnergyModel:
    """Return the model of so many steps of a second stage: trained, or loaded if its weights are kept in a folder."""
    config: Config = replace(load_config(SECOND[name]), agreement=weight, steps=steps)
    path = folder / f"{name}-{weight:g}-{steps}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = path.with_suffix(".checkpoint.safetensors")
        save_weights(train(config, checkpoint=checkpoint, data=data, every=50), path)
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


def reverse_spreads(model: EnergyModel, pictures: torch.Tensor) -> dict[str, float]:
    """Return the spread of the log-weights of reverse steps (see the top) of ``pictures (n, *event_shape)`` by the
    level that they start from, in nats."""
    found, schedule, rng = {}, model.schedule, np.random.default_rng(2)
    clean = pictures.double().numpy()
    for s in FROM:
        t = s - 1
        x_t = schedule.alpha(t) * clean + schedule.sigma(t) * rng.standard_normal(clean.shape)
        alpha, sigma = schedule.forward(t, s)
        x_s = alpha * x_t + sigma * rng.standard_normal(clean.shape)
        energy, gradient = (np.asarray(part, dtype=np.float64) for part in model.value_and_grad(x_s, level=s))
        below = np.asarray(model.energy(x_t, level=t), dtype=np.float64)
        ratio = log_forward(model, x_s, x_t, s, t) - log_reverse(model, x_t, x_s, gradient, s, t)
        found[str(s)] = float(np.std(energy - below + ratio))
    return found


def cumulative(model: EnergyModel, *, chains: int) -> dict[str, float]:
    """Return the spread of the log-weights of reverse diffusion down to some levels, in nats."""
    fine = model.at(model.schedule.finer(FINER))
    levels = range(FINER * START, FINER * min(DOWN_TO) - 1, -1)
    trace = reverse_diffusion(fine, ladder=Ladder(levels=tuple(levels)), chains=chains, seed=0)
    total = trace.stats.log_weight.to_numpy().cumsum(0)
    return {str(level): float(np.std(total[levels.index(FINER * level)])) for level in DOWN_TO}


def ancestors(model: EnergyModel, *, chains: int) -> dict[str, float]:
    """Return the share of chains that have descendants at some levels of a weighted walk."""
    fine = model.at(model.schedule.finer(FINER))
    near = FINER * DOWN_TO[-2]
    levels = (*range(FINER * START, near, -FINER), *range(near, FINER * min(DOWN_TO) - 1, -1))
    given: dict[str, Any] = {"chains": chains, "seed": 0, "resample": 0.5, "reverse_step": True}
    trace = anneal(fine, HMC(), ladder=Ladder(levels=levels, steps=1), **given)
    left = diagnose(trace).rungs.ancestors.to_numpy()
    return {str(level): float(left[levels.index(FINER * level)]) / chains for level in DOWN_TO}


def drawn(model: EnergyModel, mnist: Path, *, labels: int, chains: int) -> dict[str, float]:
    """Return accuracy and Frechet distance of digits that are drawn under each of the first labels."""
    real, classes = read_digits(mnist, "test")
    judge, right, apart = load_judge(), [], []
    for label in range(labels):
        pictures = last(reverse_diffusion(model.given(label), chains=chains, seed=label))
        named, features = look(judge, pictures.astype(np.float32))
        right.append(float(np.mean(named == label)))
        apart.append(frechet_distance(features, look(judge, real[classes == label])[1]))
    return {"accuracy": float(np.mean(right)), "Frechet distance": float(np.mean(apart))}


def judged(model: EnergyModel, pictures: torch.Tensor, *, chains: int) -> dict[str, Any]:
    """Return the figures that are reported for every model."""
    return {
        "denoising loss": held_out(model, pictures),
        "in place": spreads(model, pictures[:128]),
        "reverse step": reverse_spreads(model, pictures[:192]),
        "cumulative": cumulative(model, chains=chains),
    }


def tell(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the figures of one model's variants as a Markdown table."""
    columns = [f"from {level}" for level in FROM] + [f"down to {level}" for level in DOWN_TO]
    drawn = any("accuracy" in row for row in rows.values())
    columns += ["accuracy", "Frechet distance"] if drawn else []
    lines = [f"| {name} | denoising loss | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for key, row in rows.items():
        cells = [f"{row['reverse step'][str(level)]:.3g}" for level in FROM]
        cells += [f"{row['cumulative'][str(level)]:.3g}" for level in DOWN_TO]
        if drawn:
            cells += [f"{row['accuracy']:.1%}", f"{row['Frechet distance']:.3g}"] if "accuracy" in row else ["", ""]
        lines.append(f"| {key} | {row['denoising loss']:.5f} | {' | '.join(cells)} |")
    weighted = {key: row["ancestors"] for key, row in rows.items() if "ancestors" in row}
    if weighted:
        lines += ["", f"| ancestors of {name} | {' | '.join(f'level {level}' for level in DOWN_TO)} |"]
        lines.append("|---" * (len(DOWN_TO) + 1) + "|")
        for key, shares in weighted.items():
            lines.append(f"| {key} | {' | '.join(f'{shares[str(level)]:.0%}' for level in DOWN_TO)} |")
    return "\n".join(lines)


def main(
    record: Record,
    models: Annotated[list[str], typer.Option(help=f"Of {', '.join(KEYS)}.")] = list(KEYS),  # noqa: B006
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    cubes: Annotated[Path, typer.Option(dir_okay=False, help="What prepare makes.")] = Path("data/cubes32.npz"),
    steps: Annotated[int, typer.Option(min=0, help="Steps of the second stage; 0 for none.")] = 1500,
    weights: Annotated[list[float], typer.Option(help="Of the loss of agreement.")] = [0.003],  # noqa: B006
    pictures: Annotated[int, typer.Option(min=2, help="Held-out pictures.")] = 256,
    chains: Annotated[int, typer.Option(min=2, help="Chains of the walks.")] = 64,
    labels: Annotated[int, typer.Option(min=1, max=10, help="Labels under which digits are drawn.")] = 10,
) -> None:
    """Train the models that are not kept, judge all, print the tables and write the results."""
    check_choice("--models", models, KEYS)
    data = {"digits": ("--mnist", mnist), "cubes": ("--cubes", cubes)}
    files = {name: check_file(*data[name], f"the pictures of {name}") for name in models}
    content = record.read("levels")
    for name, file in files.items():
        content[name] = {"pictures": pictures, "chains": chains, "rows": {}}
        rows, shown = content[name]["rows"], unseen(file, KEYS[name], pictures)
        further = {f"{steps} steps, weight {weight:g}": weight for weight in weights if steps and name in SECOND}
        for words in (name, *further):
            folder = record.runs / "levels"
            model = load(name) if words == name else trained(name, further[words], steps, file, folder)
            rows[words] = judged(model, shown, chains=chains)
            if name in SECOND:
                rows[words]["ancestors"] = ancestors(model, chains=4 * chains)
                rows[words] |= drawn(model, file, labels=labels, chains=chains)
            say(f"\n{tell(name, rows)}")
            record.write("levels", content)
