"""Claim: a small network that was trained on clean digits, of another make than the classifier that steers a walk,
knows held-out digits well enough to judge what was drawn.

    python -m benchmarks judge --mnist data/mnist.npz [--judge-only]

It has max pooling, batch norms and rectifiers, where ``load("digits_classifier")`` has strides, group norms and SiLU,
and has seen no noise but a little that imitates that of the cleanest level. Training takes two minutes on one core,
without checkpoints. Reported are the shares of 10,000 held-out digits that the judge and the steering classifier know,
with noise of several levels of the schedule.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Record, check_file, say
from ppl_diffusion import EnergyModel, load

WEIGHTS = Path(__file__).with_name("judge.safetensors")
LEVELS = (0, 5, 20, 40, 60, 80)
NOISE = 0.05
"""Largest standard deviation of the noise added in training, twice that of the cleanest level."""
QUICK = {"judge_only": True, "digits": 200}


class Judge(nn.Module):
    """A network of two convolutions and two dense layers, from digits ``(n, 1, 28, 28)`` to ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
        self.dense, self.head = nn.Linear(32 * 49, 32), nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        """Return the features ``(n, 32)`` of the last layer but one, before its rectifier."""
        return self.dense(self.second(self.first(x)).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(n, 10)``."""
        return self.head(F.relu(self.features(x)))


def load_judge() -> Judge:
    """Load the judge with its shipped weights, in evaluation mode."""
    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(WEIGHTS).items()})
    return judge.eval().requires_grad_(False)


def look(judge: Judge, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels ``(n,)`` and the features ``(n, 32)`` that the judge gives ``pictures (n, 28, 28)``.

    Pictures are clipped to [-1, 1], as the noise of a sampler exceeds it.
    """
    x = torch.from_numpy(np.clip(pictures, -1, 1)).float()[:, None]
    with torch.no_grad():
        found = [judge.features(part) for part in x.split(500)]
        labels = [judge.head(F.relu(part)).argmax(1) for part in found]
    return torch.cat(labels).numpy(), torch.cat(found).numpy()


def read_digits(mnist: Path, which: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures ``(n, 28, 28)`` in [-1, 1] and labels ``(n,)``, "train" or "test"."""
    with np.load(check_file("--mnist", mnist, "the digits")) as stored:
        return stored[f"x_{which}"].astype(np.float32) / 127.5 - 1, stored[f"y_{which}"].astype(np.int64)


def fit(pictures: np.ndarray, labels: np.ndarray, *, epochs: int, batch: int = 128) -> Judge:
    """Train a judge by AdamW, with a falling rate, on digits with a little noise, moved by up to two pixels."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Judge()
    steps = epochs * (len(pictures) // batch)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    x, y = torch.from_numpy(pictures)[:, None], torch.from_numpy(labels)
    for index in _batches(len(x), batch, epochs, rng):
        dx, dy = torch.randint(-2, 3, (2,), generator=rng).tolist()
        clean = x[index].roll((dx, dy), dims=(2, 3))
        share = torch.rand(len(index), 1, 1, 1, generator=rng)
        loss = F.cross_entropy(judge(clean + NOISE * share * torch.randn(clean.shape, generator=rng)), y[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        rate.step()
    return judge.eval()


def _batches(count: int, batch: int, epochs: int, rng: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=rng)
        yield from order[: count // batch * batch].split(batch)


def named(classifier: EnergyModel, pictures: np.ndarray, level: int) -> np.ndarray:
    """Return the likeliest labels ``(n,)`` of noised ``pictures (n, *event_shape)`` by a classifier of this library."""
    log_snr = torch.full((1,), classifier.schedule.log_snr(level))
    with torch.no_grad():
        x = torch.from_numpy(pictures).float()
        parts = (x[:, None] if x.ndim == 3 else x).split(500)
        return torch.cat([classifier.network(part, log_snr).argmax(1) for part in parts]).numpy()


def knows(judge: Judge, classifier: EnergyModel, pictures: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the shares of digits that both know, by noise level; the judge also without noise."""
    noise = np.random.default_rng(0).standard_normal(pictures.shape)
    found: dict[str, Any] = {"clean": {"judge": float(np.mean(look(judge, pictures)[0] == labels))}}
    for level in LEVELS:
        alpha, sigma = classifier.schedule.alpha(level), classifier.schedule.sigma(level)
        x = (alpha * pictures + sigma * noise).astype(np.float32)
        shares = {"classifier": float(np.mean(named(classifier, x, level) == labels))}
        if level <= 5:
            shares["judge"] = float(np.mean(look(judge, x)[0] == labels))
        found[str(level)] = shares
    return found


def main(
    record: Record,
    mnist: Annotated[Path, typer.Option(dir_okay=False, help="The MNIST data.")] = Path("data/mnist.npz"),
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.")] = 2,
    judge_only: Annotated[bool, typer.Option("--judge-only", help="Judge the shipped weights, train nothing.")] = False,
    digits: Annotated[int, typer.Option(min=1, max=10_000, help="Held-out digits.")] = 10_000,
) -> None:
    """Train the judge, test it and the steering classifier on held-out digits, and write the results."""
    torch.set_num_threads(1)
    pictures, labels = read_digits(mnist, "test")
    if not judge_only:
        trained = fit(*read_digits(mnist, "train"), epochs=epochs)
        header = {
            "command": f"python -m benchmarks judge --mnist data/mnist.npz --epochs {epochs}",
            "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        }
        save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, WEIGHTS, metadata=header)
    shares = knows(load_judge(), load("digits_classifier"), pictures[:digits], labels[:digits])
    record.write("judge", {"digits": digits, "shares": shares})
    for level, row in shares.items():
        say(f"level {level}: {', '.join(f'{name} {share:.4f}' for name, share in row.items())}")
