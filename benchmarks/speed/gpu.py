"""Claim: on a GPU annealed HMC costs what its network calls cost, for 64x64 pictures and five conditions.

    XLA_PYTHON_CLIENT_PREALLOCATE=false python -m benchmarks gpu [--weights FILE] [--rounds 3] [--only cubes]

Three measurements on a model of 64x64 cubes (without ``--weights`` an untrained network, since time does not depend on
the weights). (a) Those of ``benchmarks.speed.overhead``, on CUDA. (b) A gradient and a training step with kernels
launched one by one instead of as a CUDA graph (``ppl_diffusion.devices.cuda_graphs``). (c) The network in TF32, in
bfloat16, with channels last, and compiled: time, and the change of acceptance probabilities by rounding, compared with
float64. Without a GPU nothing is measured; with ``--device cpu`` the same code runs on a CPU, on small batches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest.mock import patch

import jax
import numpy as np
import torch
import typer

from benchmarks.harness import Record, check_choice, say
from benchmarks.speed.overhead import by_chains, cubes, five_cubes
from benchmarks.speed.stopwatch import fastest, wait
from ppl_diffusion import EnergyModel, NoiseSchedule, load, load_config, train
from ppl_diffusion.files import versions
from ppl_diffusion.models.conditions import Positions
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.training import train as training

PARTS = ("cubes", "launches", "precision")
QUICK = {"device": "cpu", "rounds": 1, "only": ["cubes"]}
LEVEL = 20
"""Level at which rounding is measured: energies are large there, and acceptance still matters."""


def model(weights: str | None) -> EnergyModel:
    """Return the model of 64x64 cubes, from a weight file or untrained."""
    if weights:
        return load(weights)
    config, conditions = load_config("cubes64"), Positions(0.12, 0.88)
    return EnergyModel(
        build_network(**config.network, **conditions.options),
        form=config.form,
        schedule=NoiseSchedule.cosine(config.levels),
        event_shape=config.network["shape"],
        conditions=conditions,
        name="cubes64",
    )


VARIANTS: dict[str, tuple[torch.dtype, torch.memory_format, bool, bool]] = {
    "float32": (torch.float32, torch.contiguous_format, False, False),
    "float32, channels last": (torch.float32, torch.channels_last, False, False),
    "TF32": (torch.float32, torch.contiguous_format, True, False),
    "TF32, channels last": (torch.float32, torch.channels_last, True, False),
    "bfloat16": (torch.bfloat16, torch.contiguous_format, False, False),
    "bfloat16, channels last": (torch.bfloat16, torch.channels_last, False, False),
    "float32, compiled": (torch.float32, torch.contiguous_format, False, True),
    "TF32, channels last, compiled": (torch.float32, torch.channels_last, True, True),
}
"""How the network computes: its precision, its layout, whether TF32 is allowed, and whether torch compiles it."""


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context in which TF32 is allowed, or not, for convolutions and matrix products; restored on exit."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def gradient(variant: EnergyModel, x: torch.Tensor) -> None:
    """Evaluate energy and gradient at ``x (chains, *event)``, and wait until the device has finished."""
    variant.value_and_grad(x, level=LEVEL)
    wait(x.device.type)


def precisions(weights: str | None, *, device: str, chains: int, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield by variant: seconds of a gradient, largest and mean change of acceptance probabilities by rounding.

    Each chain moves by one leapfrog step. The variant and the same network in float64 evaluate its energy at the same
    two points, and the acceptance probabilities that follow are compared.
    """
    exact = model(weights).to(device)
    exact.network.double()
    generator = torch.Generator().manual_seed(0)
    noise, momentum = (
        torch.randn(chains, *exact.event_shape, generator=generator, dtype=torch.float64).to(device) for _ in range(2)
    )
    (mean, variance), alpha, sigma = exact.reference, exact.schedule.alpha(LEVEL), exact.schedule.sigma(LEVEL)
    x = alpha * mean + (alpha**2 * variance + sigma**2) ** 0.5 * noise
    before, slope = exact.value_and_grad(x, level=LEVEL)
    step = 0.2 * sigma
    moved = x + step * (momentum - 0.5 * step * slope)
    after, _ = exact.value_and_grad(moved, level=LEVEL)
    for name, (dtype, layout, fast, compiled) in VARIANTS.items():
        variant = model(weights).to(device)
        variant.network.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
        if compiled:
            variant.network.compile(dynamic=False)
        with tf32(fast):
            changed = variant.value_and_grad(x, level=LEVEL)[0] - variant.value_and_grad(moved, level=LEVEL)[0]
            seconds = fastest(rounds, {name: partial(gradient, variant, x)})[name]
        # Only the energy change is rounded; the kinetic energy is chosen so that exact probabilities are 1/2.
        offset = torch.log(torch.tensor(2.0)) + (before - after)
        apart = (torch.exp((changed - offset).clamp(max=0)) - 0.5).abs()
        yield name, {"seconds": seconds, "largest change": float(apart.max()), "mean change": float(apart.mean())}


def launches(weights: str | None, *, device: str, most: int) -> dict[str, Any]:
    """Return milliseconds of a gradient with kernels launched one by one, by the number of chains, and milliseconds of
    a training step with kernels launched one by one and recorded."""
    plain = model(weights).to(device)
    plain.record_calls(False)
    found: dict[str, Any] = {"milliseconds per chain": by_chains(five_cubes(plain), most=most, device=device)}
    config = load_config("cubes64")
    config = replace(config, steps=40, batch=config.batch if device.startswith("cuda") else 2)
    generator = np.random.default_rng(0)
    scenes = {
        "images": generator.integers(0, 256, (512, *config.network["shape"]), dtype=np.uint8),
        "positions": generator.uniform(0.12, 0.88, (512, 1, 2)),
    }
    with TemporaryDirectory() as folder:
        data = Path(folder) / "scenes.npz"
        np.savez(data, **scenes)  # type: ignore[arg-type]
        for name, most in (("one by one", 0), ("recorded", training.RECORDED)):
            times: list[float] = []
            with patch.object(training, "RECORDED", most):
                train(
                    config,
                    checkpoint=Path(folder) / f"{most}.safetensors",
                    data=data,
                    device=device,
                    progress=lambda _, times=times: times.append(time.perf_counter()),  # type: ignore[misc]
                )
            found[f"a training step, {name}"] = 1e3 * (times[-1] - times[0]) / 30  # 4 reports, 10 steps apart
    return found | {"pictures a step": config.batch}


def main(
    record: Record,
    weights: Annotated[str | None, typer.Option(help="Of a 64x64 model of cubes; a fresh network by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the fastest counts.")] = 3,
    device: Annotated[str, typer.Option(help="Where to measure.")] = "cuda",
    only: Annotated[list[str], typer.Option(help="Parts to run; the others keep their figures.")] = list(PARTS),  # noqa: B006
) -> None:
    """Measure, print and write the results, if the device is there."""
    check_choice("--only", only, PARTS)
    gpu = device.startswith("cuda")
    if gpu and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here: --device cpu runs the same code on a processor")
    chains, most = (64, 256) if gpu else (2, 4)
    content = record.read("gpu") if gpu else {}
    content |= {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "JAX": jax.default_backend(),
        "versions": versions(),
        "trained": weights is not None,
    }

    def keep() -> None:
        say(json.dumps(content, indent=1))
        if gpu:
            record.write("gpu", content)

    measured: dict[str, Any] = {"chains": chains, "device": device, "rounds": rounds}
    if "cubes" in only:
        content["cubes"] = cubes(model=model(weights).to(device), most=most, **measured)
        keep()
    if "launches" in only:
        content["launches"] = launches(weights, device=device, most=most)
        keep()
    if "precision" in only:
        content["precision"] = {}
        for name, row in precisions(weights, **measured):
            content["precision"][name] = row
            keep()
