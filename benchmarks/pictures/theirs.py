"""Claim: a pipeline of diffusers that knows nothing of this library is composed, conditioned on data and guided by it,
and annealed HMC costs what the calls of its network cost.

    python -m benchmarks theirs [--mnist data/mnist.npz]

A ``UNet2DModel`` with class labels is trained on digits by diffusers' own loop, with its schedule of 1,000 levels, and
saved as a pipeline. ``from_diffusers`` reads it as a score; energies are not used anywhere. Drawn are its own reverse
diffusion, a class with guidance, and what stands beside the left half of a digit that it has not seen.

Acceptance is by the work along the path (Simpson). Time is a ratio in one run: a walk by HMC, to a bare loop of as many
calls of the same U-Net on as many pictures.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.nn import functional as F

from benchmarks.harness import Record, check_file, last, say, thinned
from benchmarks.pictures.distillation import draw
from benchmarks.pictures.judge import load_judge, look
from benchmarks.pictures.levels import unseen
from benchmarks.speed.stopwatch import fastest
from bridges.blackjax import HMC
from bridges.diffusers import from_diffusers
from ppl_diffusion import Ladder, ScorePotential, anneal, guidance, observation, reverse_diffusion
from ppl_diffusion.training.data import image_data

ANY = 10
"""The label by which the network is trained for any class."""
SHOWN = (2, 3, 4, 7)
"""The classes that are drawn; each costs the compilation of its walks."""
QUICK = {"steps": 3, "each": 1, "every": 25, "rounds": 1}
LEVELS, NOISE = 1000, 0.1


def trained(folder: Path, mnist: Path, *, steps: int) -> None:
    """Train a pipeline as diffusers' examples do, and save it."""
    diffusers: Any = import_module("diffusers")  # an extra
    optimization, training_utils = (import_module(f"diffusers.{part}") for part in ("optimization", "training_utils"))
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=ANY + 1,
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=LEVELS, beta_schedule="squaredcos_cap_v2")
    keys: dict[str, Any] = {"images": "x_train", "labels": "y_train", "positions": None}
    source = image_data(mnist, **keys, batch=64, label_dropout=0.15)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    rate = optimization.get_cosine_schedule_with_warmup(optimiser, num_warmup_steps=50, num_training_steps=steps)
    average, generator = training_utils.EMAModel(unet.parameters(), decay=0.99), torch.Generator().manual_seed(0)
    for _ in range(steps):
        clean, label = source.draw(generator)
        noise = torch.randn(len(clean), 1, 28, 28, generator=generator)
        time = torch.randint(LEVELS, (len(clean),), generator=generator)
        noisy = scheduler.add_noise(clean[:, None], noise, time)
        loss = F.mse_loss(unet(noisy, time, class_labels=label).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)


def ladder_of(model: ScorePotential, every: int) -> Ladder:
    """Return a hundred rungs of two steps each, or every so-manieth of them."""
    return thinned(Ladder.spaced(model.schedule, rungs=100, steps=2), every)


def accuracy(x: np.ndarray, label: int | np.ndarray) -> dict[str, float]:
    """Return the share of pictures ``(n, 1, 28, 28)`` that the judge takes for their label."""
    right = look(load_judge(), x[:, 0])[0] == label
    return {"mean": float(right.mean()), "se": float(right.std() / np.sqrt(len(right)))}


def drawn(model: ScorePotential, digit: torch.Tensor, label: int, *, each: int, every: int) -> dict[str, Any]:
    """Return pictures and figures of the three compositions."""
    ladder, kernel = ladder_of(model, every), HMC()
    half = torch.zeros(1, 28, 28, dtype=torch.bool)
    half[..., :14] = True
    seen = observation(digit[None], seen=half, scale=NOISE, schedule=model.schedule, backend="torch")
    options: dict[str, Any] = {"ladder": ladder, "chains": each}
    classes = [(model.given(k), guidance(model.given(k), model, scale=2.0)) for k in SHOWN]
    traces = {
        "reverse diffusion": [reverse_diffusion(one, **options, seed=k) for k, (one, _) in enumerate(classes)],
        "annealed HMC": [anneal(one, kernel, **options, seed=k) for k, (one, _) in enumerate(classes)],
        "guidance 2, annealed HMC": [anneal(one, kernel, **options, seed=k) for k, (_, one) in enumerate(classes)],
        "left half seen": [anneal(model * seen, kernel, ladder=ladder, chains=4 * each, seed=0)],
    }
    labels = np.repeat(SHOWN, each)
    found: dict[str, Any] = {}
    for name, runs in traces.items():
        x = np.concatenate([last(trace) for trace in runs])
        rates = np.concatenate([trace.stats.acceptance_rate.mean("chain") for trace in runs])
        found[name] = {
            "accuracy": accuracy(x, label if len(runs) == 1 else labels),
            "acceptance": None if np.isnan(rates).all() else float(np.nanmean(rates)),
            "shown": np.round(x[:: max(len(x) // 20, 1), 0][:20], 2).tolist(),
        }
    x = last(traces["left half seen"][0])[:, 0]
    found["left half seen"]["distance to what was seen"] = float(np.sqrt(np.mean((x - digit.numpy())[:, :, :14] ** 2)))
    found["left half seen"]["circulation"] = traces["left half seen"][0].attributes["circulation"]
    return found


def timed(model: ScorePotential, rounds: int, *, chains: int = 64, steps: int = 10) -> dict[str, float]:
    """Return seconds of a walk and of a bare loop of its calls, and their ratio."""
    target, ladder = model.given(3), Ladder.spaced(model.schedule, rungs=2, steps=steps)
    unet: Any = model.network.network
    x, label = torch.randn(chains, 1, 28, 28), torch.full((chains,), 3)
    calls = int(anneal(target, HMC(), ladder=ladder, chains=chains, seed=0).gradient_calls)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(calls):
                unet(x, torch.full((chains,), 500), class_labels=label)

    seconds = fastest(
        rounds, {"walk": lambda: anneal(target, HMC(), ladder=ladder, chains=chains, seed=0), "bare": bare}
    )
    return {"calls": calls, **seconds, "walk / bare": seconds["walk"] / seconds["bare"]}


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    steps: Annotated[int, typer.Option(min=2, help="Training steps.")] = 2000,
    each: Annotated[int, typer.Option(min=1, help="Pictures of every class.")] = 20,
    every: Annotated[int, typer.Option(min=1, help="Let walks take every n-th rung only.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the fastest counts.")] = 3,
) -> None:
    """Train the pipeline unless it is kept, compose it, time a walk, and write the results."""
    check_file("--mnist", mnist, "the digits")
    folder = record.runs / "theirs" / f"pipeline-{steps}"
    if not (folder / "model_index.json").is_file():
        trained(folder, mnist, steps=steps)
    model = from_diffusers(folder, unconditional=ANY)
    digit, label = unseen(mnist, "x_test", 1)[0], 7  # the first digit of the test set
    content: dict[str, Any] = {
        "steps": steps,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "rows": record.kept(
            "theirs/drawn",
            {"steps": steps, "each": each, "every": every},
            lambda: drawn(model, digit, label, each=each, every=every),
        ),
    }
    content["speed"] = timed(model, rounds)
    for name, row in content["rows"].items():
        say(f"{name}: accuracy {row['accuracy']['mean']:.2f}, acceptance {row['acceptance']}")
    say(f"walk / bare calls: {content['speed']['walk / bare']:.3f}")
    record.draw("theirs", draw({name: np.array(row.pop("shown")) for name, row in content["rows"].items()}))
    record.write("theirs", content)
