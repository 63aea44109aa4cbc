"""Claim: a small network says where the cubes of a picture are well enough to judge pictures that a sampler composed.

    python -m benchmarks detector --data data/cubes32.npz [--judge-only]

The detector is trained on scenes that the energy model is not trained on, and judged on rendered scenes that neither is
trained on. Composed pictures may contain what renders never do. Training therefore includes soft blobs and cubes faded
to near transparency ("ghosts"), which do not count as cubes; the results say how many of these, and of discs that are
not in the training data, are taken for cubes. Training takes a quarter of an hour on one core, without checkpoints.

Source of the loss on soft targets: Generalized Focal Loss (Li et al., 2020), https://arxiv.org/abs/2006.04388
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
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cube_factory.detector import (
    FORMAT,
    RADIUS,
    SIDE,
    WEIGHTS,
    Detector,
    HeatMap,
    load_detector,
    matched,
    matched_exactly,
    places,
)
from benchmarks.harness import Record, check_file, say

QUICK = {"judge_only": True, "scenes": 20}
PEAK = 1.0
"""Standard deviation of a peak of the heat map, in pixels."""
HELD = 400
"""Number of scenes of the detector's part that choose the threshold instead of training it."""
GHOST = 0.25
"""Largest opacity of a faded cube that does not count as a cube."""
NOISE = 0.05
"""Standard deviation of the noise added to pictures, in [-1, 1], to imitate those of a sampler."""


def to_range(images: np.ndarray) -> Tensor:
    """Convert uint8 images to float32 in [-1, 1]."""
    return torch.from_numpy(images).float() / 127.5 - 1


def targets(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return heat maps ``(n, 32, 32)`` and pixel offsets to a centre ``(n, 2, 32, 32)`` for positions ``(n, 5, 2)``."""
    axis = torch.arange(SIDE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    way = (positions * SIDE).nan_to_num(1e3)[..., None, None] - pixels
    squares = (way**2).sum(2)
    nearest = squares.argmin(1)[:, None, None].expand(-1, 1, 2, -1, -1)
    return torch.exp(-squares.amin(1) / (2 * PEAK**2)), way.gather(1, nearest)[:, 0]


def loss_of(network: nn.Module, pictures: Tensor, positions: Tensor) -> Tensor:
    """Return the focal loss of the heat map per cube, plus the weighted offset error near centres, in pixels."""
    heat, way = targets(positions)
    logits, guess = network(pictures)
    focal = (logits.sigmoid() - heat) ** 2 * F.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    near = (heat > 0.3)[:, None] * heat[:, None]
    error = ((guess - way).abs() * near).sum() / near.sum().clamp(min=1)
    return 10 * focal.sum() / positions[..., 0].isfinite().sum() + 0.3 * error


def with_blobs(pictures: Tensor, centres: Tensor, rng: torch.Generator, *, edge: float = 1.0) -> Tensor:
    """Add a soft blob of random colour, of standard deviation 2.5 to 5 pixels, to each picture at ``centres (n, 2)``; a
    large ``edge`` makes it a disc."""
    n = len(pictures)
    width = (2.5 + 2.5 * torch.rand(n, 1, 1, generator=rng)) / SIDE
    colours = 1.6 * torch.rand(n, 3, 1, 1, generator=rng) - 0.8
    shape = torch.exp(-((_squares(centres) / (2 * width**2)) ** edge))
    return pictures.lerp(colours.expand_as(pictures), shape[:, None])


def _squares(centres: Tensor) -> Tensor:
    """Return squared distances ``(n, 32, 32)`` of the pixels from ``centres (n, 2)``, in widths of the picture."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    return (axis - centres[:, 1:, None]).transpose(1, 2) ** 2 + (axis - centres[:, :1, None]) ** 2


def with_decoys(pictures: Tensor, positions: Tensor, bare: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add a blob to up to half of the pictures, where no cube is, and fade a cube that stands apart in some of the
    others; return the pictures and the positions of the remaining cubes ``(n, 5, 2)``."""
    n = len(pictures)
    centres = 0.05 + 0.9 * torch.rand(n, 2, generator=rng)
    apart = (positions - centres[:, None]).norm(dim=2).nan_to_num(1.0).amin(1) > 4 * RADIUS
    shown = apart & (torch.rand(n, generator=rng) < 0.5)
    x = torch.where(shown[:, None, None, None], with_blobs(pictures, centres, rng), pictures)
    first = positions[:, :1]
    alone = (positions[:, 1:] - first).norm(dim=2).nan_to_num(1.0).amin(1) > 5 * RADIUS
    faded = alone & ~shown & (torch.rand(n, generator=rng) < 0.5)
    around = torch.exp(-((_squares(first[:, 0].nan_to_num(0.0)) / (3 * RADIUS) ** 2) ** 4))
    kept = GHOST * torch.rand(n, 1, 1, generator=rng)
    ghost = x.lerp(bare.expand_as(x), ((1 - kept) * around)[:, None])
    left = torch.cat([torch.where(faded[:, None, None], torch.nan, first), positions[:, 1:]], 1)
    return torch.where(faded[:, None, None, None], ghost, x), left


def augment(pictures: Tensor, positions: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, shift by up to two pixels, recolour and add noise; return pictures and the positions of their cubes."""
    n = len(pictures)
    flip = torch.rand(n, generator=rng) < 0.5
    x = torch.where(flip[:, None, None, None], pictures.flip(3), pictures)
    places = torch.where(flip[:, None, None], torch.stack([1 - positions[..., 0], positions[..., 1]], 2), positions)
    right, down = torch.randint(-2, 3, (2,), generator=rng).tolist()
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = padded[:, :, 2 - down : 2 - down + SIDE, 2 - right : 2 - right + SIDE]
    places = places + torch.tensor([right, down]) / SIDE
    colours = torch.rand(n, 3, generator=rng).argsort(1)[:, :, None, None].expand_as(x)
    recolour = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
    x = torch.where(recolour, x.gather(1, colours), x)
    gain = 0.8 + 0.4 * torch.rand(n, 1, 1, 1, generator=rng) + 0.1 * torch.randn(n, 3, 1, 1, generator=rng)
    x = x * gain + 0.1 * torch.randn(n, 1, 1, 1, generator=rng)
    noise = 0.08 * torch.rand(n, 1, 1, 1, generator=rng)
    return (x + noise * torch.randn(x.shape, generator=rng)).clamp(-1, 1), places


def train(images: np.ndarray, positions: np.ndarray, *, epochs: int, batch: int = 64, seed: int = 0) -> Detector:
    """Train on images ``(n, 3, 32, 32)`` uint8 with cubes at ``(n, 5, 2)``; the last 400 choose the threshold."""
    rng, began = torch.Generator().manual_seed(seed), time.time()
    pictures, places = to_range(images[:-HELD]), torch.from_numpy(positions[:-HELD])
    bare = pictures.median(0).values
    # every scene has a cube, but a composed picture may have none
    pictures = torch.cat([pictures, bare.expand(40, -1, -1, -1)])
    places = torch.cat([places, torch.full((40, 5, 2), torch.nan)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = HeatMap()
    steps = epochs * (len(pictures) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        losses = []
        for part in torch.randperm(len(pictures), generator=rng)[: len(pictures) // batch * batch].split(batch):
            shown, left = with_decoys(pictures[part], places[part], bare, rng)
            loss = loss_of(network, *augment(shown, left, rng))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}, {time.time() - began:.0f} s", flush=True)
    network = network.half().float().eval()  # round as in the weight file
    held = noisy(to_range(images[-HELD:]), NOISE, seed=seed)
    threshold, share = best_threshold(network, held, positions[-HELD:])
    info = {"epochs": epochs, "seed": seed, "loss": f"{np.mean(losses):.4f}", "seconds": f"{time.time() - began:.0f}"}
    return Detector(network, threshold, {k: str(v) for k, v in info.items()} | {"exact on held scenes": f"{share:.4f}"})


def best_threshold(network: nn.Module, pictures: Tensor, positions: np.ndarray) -> tuple[float, float]:
    """Return the threshold that finds exactly the true cubes in most pictures (the middle of ties), and their share."""
    grid = [round(0.1 + 0.02 * i, 2) for i in range(31)]
    shares = np.array([exact_share(Detector(network, t, {}).locate(pictures), positions) for t in grid])
    best = np.flatnonzero(shares == shares.max())
    return grid[best[len(best) // 2]], float(shares.max())


def noisy(pictures: Tensor, noise: float, *, seed: int) -> Tensor:
    """Add Gaussian noise of standard deviation ``noise`` to pictures in [-1, 1]."""
    return pictures + noise * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))


def exact_share(found: list[np.ndarray], positions: np.ndarray) -> float:
    """Return the share of pictures in which exactly the true cubes are found."""
    return float(np.mean([matched_exactly(f, p) for f, p in zip(found, positions, strict=True)]))


def elsewhere(positions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many positions ``(k, 2)`` as there are cubes, in the cubes' range but none within .12 of a cube."""
    true = places(positions, "positions")
    found: list[np.ndarray] = []
    while len(found) < len(true):
        place = rng.uniform(0.12, 0.88, size=2)
        if np.linalg.norm(true - place, axis=1).min() >= 2 * RADIUS:
            found.append(place)
    return np.array(found)


def accuracy(found: list[np.ndarray], positions: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Return figures of merit of the centres found in scenes with cubes at ``(n, 5, 2)``: shares, and a distance."""
    rng = np.random.default_rng(seed)
    pairs = list(zip(found, positions, strict=True))
    counts = np.isfinite(positions[..., 0]).sum(1)
    errors = [np.linalg.norm(f - q, axis=1).min() for f, ps in pairs for q in places(ps, "positions") if len(f)]
    there = sum(matched(f, [p]) for f, ps in pairs for p in places(ps, "positions")) / counts.sum()
    not_there = sum(not matched(f, [p]) for f, ps in pairs for p in elsewhere(ps, rng)) / counts.sum()
    exact = np.array([matched_exactly(f, p) for f, p in pairs])
    return {
        "is there a cube": float(there + not_there) / 2,
        "said yes at a cube": float(there),
        "said no elsewhere": float(not_there),
        "distance, 99 %": float(np.quantile(errors, 0.99)) if errors else np.nan,
        "count right": float(np.mean([len(f) == n for f, n in zip(found, counts, strict=True)])),
        "all found": float(np.mean([matched(f, p) for f, p in pairs])),
        "all found, no others": float(exact.mean()),
        "all found, no others, by number": {str(n): float(exact[counts == n].mean()) for n in np.unique(counts)},
    }


def main(
    record: Record,
    data: Annotated[Path, typer.Option(dir_okay=False, help="What prepare makes.")] = Path("data/cubes32.npz"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 24,
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Judge the shipped weights, train nothing.")] = False,
    scenes: Annotated[int, typer.Option(min=1, max=1000, help="Test scenes to judge it on.")] = 1000,
) -> None:
    """Train the detector, judge it on the test scenes, and write the results."""
    torch.set_num_threads(1)
    with np.load(check_file("--data", data, "the scenes")) as stored:
        keys = ("detector_images", "detector_positions", "test_images", "test_positions")
        arrays = {key: stored[key][: scenes if key.startswith("test") else None] for key in keys}
    if not judge_only:
        store(train(arrays["detector_images"], arrays["detector_positions"], epochs=epochs))
    detector, pictures = load_detector(), to_range(arrays["test_images"])
    judged = {"clean": pictures} | {f"noise {n}": noisy(pictures, n, seed=1) for n in (NOISE, 0.1, 0.2)}
    rows = {name: accuracy(detector.locate(x), arrays["test_positions"]) for name, x in judged.items()}
    bare = to_range(np.median(arrays["detector_images"], axis=0))
    rows["said yes to faint cubes and to blobs"] = decoys(detector, pictures, arrays["test_positions"], bare)
    found = {"scenes": len(pictures), "threshold": detector.threshold, "training": detector.info, **rows}
    record.write("detector", found)
    say(json.dumps(rows, indent=1))


def decoys(detector: Detector, pictures: Tensor, positions: np.ndarray, bare: Tensor) -> dict[str, float]:
    """Return the share of faint cubes that are found, and of blobs and discs on a bare scene taken for cubes."""
    rows = {}
    for opacity in (0.1, 0.2, 0.3, 0.5, 0.7):
        faint = detector.locate(bare + opacity * (pictures - bare))
        rows[f"cubes of opacity {opacity}"] = accuracy(faint, positions)["said yes at a cube"]
    rng = torch.Generator().manual_seed(2)
    centres = 0.12 + 0.76 * torch.rand(len(pictures), 2, generator=rng)
    for name, edge in (("blobs", 1.0), ("discs", 8.0)):
        found = detector.locate(with_blobs(bare.expand_as(pictures), centres, rng, edge=edge))
        rows[name] = float(np.mean([len(f) > 0 for f in found]))
    return rows


def store(detector: Detector) -> None:
    """Write the shipped weights in half precision, with their provenance."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}
    header = {
        "format": FORMAT,
        "command": f"python -m benchmarks detector --data data/cubes32.npz --epochs {detector.info['epochs']}",
        "threshold": str(detector.threshold),
        "versions": json.dumps(versions),
    }
    tensors = {key: value.half().contiguous() for key, value in detector.network.state_dict().items()}
    save_file(tensors, WEIGHTS, metadata=header | dict(detector.info))
