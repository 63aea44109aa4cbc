"""Claim: colour and material of a rendered cube of six pixels can be told well enough to judge pictures by captions.

    python -m benchmarks looks --data data/cubes32.npz [--judge-only]

The network is trained on the scenes of the detector, which no energy model is trained on, and judged on test scenes: at
the centres that the detector finds there. Half hidden cubes count too. Training takes minutes on one core.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cube_factory.captions import MATERIAL_WORDS
from benchmarks.cube_factory.detector import RADIUS, SIDE, Detector, load_detector
from benchmarks.cube_factory.looks import FORMAT, WEIGHTS, Cube, Looks, LooksNetwork, around, describe, load_looks
from benchmarks.cube_factory.scenes import COLORS
from benchmarks.cube_factory.train_detector import NOISE, noisy, to_range
from benchmarks.harness import Record, check_file, say

QUICK = {"judge_only": True, "scenes": 20}
JITTER = 0.4
"""Standard deviation of the centre's error in training, in pixels: more than that of the detector."""
WANTED = ("images", "positions", "colors", "metals")


def train(
    images: np.ndarray, positions: np.ndarray, colors: np.ndarray, metals: np.ndarray, *, epochs: int, seed: int = 0
) -> Looks:
    """Train on images ``(n, 3, 32, 32)`` uint8 with cubes ``(n, 5)`` at ``(n, 5, 2)`` of these colours and metals."""
    rng, began = torch.Generator().manual_seed(seed), time.time()
    pictures = to_range(images)
    scene, cube = (torch.from_numpy(rows) for rows in np.nonzero(colors >= 0))
    centres, hues, shine = (torch.from_numpy(values)[scene, cube] for values in (positions, colors, metals))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LooksNetwork()
    batch = 128
    steps = epochs * (len(scene) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for epoch in range(epochs):
        losses = []
        for part in torch.randperm(len(scene), generator=rng)[: len(scene) // batch * batch].split(batch):
            there = centres[part] + JITTER / SIDE * torch.randn(len(part), 2, generator=rng)
            colour, metal = network(augment(around(pictures, scene[part], there), rng))
            loss = F.cross_entropy(colour, hues[part].long()) + F.binary_cross_entropy_with_logits(
                metal, shine[part].float()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            losses.append(loss.item())
        say(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}, {time.time() - began:.0f} s")
    network = network.half().float().eval()  # round as in the weight file
    info = {"epochs": epochs, "seed": seed, "loss": f"{np.mean(losses):.4f}", "seconds": f"{time.time() - began:.0f}"}
    return Looks(network, {k: str(v) for k, v in info.items()})


def augment(squares: Tensor, rng: torch.Generator) -> Tensor:
    """Change brightness a little and add noise, as a sampler does; colours and materials stay what they are."""
    n = len(squares)
    gain = 0.95 + 0.1 * torch.rand(n, 1, 1, 1, generator=rng)
    noise = 0.08 * torch.rand(n, 1, 1, 1, generator=rng)
    shift = 0.03 * torch.randn(n, 1, 1, 1, generator=rng)
    return (gain * squares + shift + noise * torch.randn(squares.shape, generator=rng)).clamp(-1, 1)


def accuracy(seen: list[list[Cube]], positions: np.ndarray, colors: np.ndarray, metals: np.ndarray) -> dict[str, Any]:
    """Return the shares of the cubes of scenes ``(n, 5)`` that were found, and of these with the right looks."""
    names, materials = list(COLORS), list(MATERIAL_WORDS)
    rows: list[tuple[bool, bool, bool]] = []
    wrong: dict[str, int] = {}
    scenes, cubes = np.nonzero(colors >= 0)
    for scene, cube in zip(scenes, cubes, strict=True):
        there = [c for c in seen[scene] if np.linalg.norm(c.position - positions[scene, cube]) <= RADIUS]
        if not there:
            rows.append((False, False, False))
            continue
        nearest = min(there, key=lambda c: float(np.linalg.norm(c.position - positions[scene, cube])))
        color = names[colors[scene, cube]]
        rows.append((True, nearest.color == color, nearest.material == materials[metals[scene, cube]]))
        if nearest.color != color:
            wrong[f"{color} as {nearest.color}"] = wrong.get(f"{color} as {nearest.color}", 0) + 1
    found, color_right, material_right = np.array(rows).T
    return {
        "cubes": len(rows),
        "found": float(found.mean()),
        "colour": float(color_right.mean()),
        "material": float(material_right.mean()),
        "both": float((color_right & material_right).mean()),
        "colours taken for others": dict(sorted(wrong.items(), key=lambda item: -item[1])),
    }


def main(
    record: Record,
    data: Annotated[Path, typer.Option(dir_okay=False, help="What prepare makes.")] = Path("data/cubes32.npz"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 20,
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Judge the shipped weights, train nothing.")] = False,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Test scenes to judge it on.")] = 1000,
) -> None:
    """Train the network, judge it on the test scenes, and write the results."""
    torch.set_num_threads(1)
    with np.load(check_file("--data", data, "the scenes")) as stored:
        missing = [key for key in WANTED if f"test_{key}" not in stored]
        if missing:
            raise ValueError(f"{data} lacks test_{missing[0]}: make it anew, python -m benchmarks prepare")
        ours, test = ([stored[f"{part}_{key}"] for key in WANTED] for part in ("detector", "test"))
    test = [values[:scenes] for values in test]
    if not judge_only:
        store(train(*ours, epochs=epochs))
    detector, looks, pictures = load_detector(), load_looks(), to_range(test[0])
    rows = {name: judge(detector, looks, x, *test[1:]) for name, x in noised(pictures).items()}
    record.write("looks", {"scenes": len(pictures), "training": dict(looks.info), **rows})
    say(json.dumps(rows, indent=1))


def noised(pictures: Tensor) -> dict[str, Tensor]:
    """Return test pictures as they are and with noise."""
    return {"clean": pictures} | {f"noise {n}": noisy(pictures, n, seed=1) for n in (NOISE, 0.1)}


def judge(detector: Detector, looks: Looks, pictures: Tensor, *truth: np.ndarray) -> dict[str, Any]:
    """Return figures of merit at true positions, colours and metals ``(n, 5)``."""
    return accuracy(describe(detector, looks, pictures.numpy()), *truth)


def store(looks: Looks) -> None:
    """Write the shipped weights in half precision, with their provenance."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    header = {
        "format": FORMAT,
        "command": f"python -m benchmarks looks --data data/cubes32.npz --epochs {looks.info['epochs']}",
        "versions": json.dumps(versions),
    }
    tensors = {key: value.half().contiguous() for key, value in looks.network.state_dict().items()}
    save_file(tensors, WEIGHTS, metadata=header | dict(looks.info))
