"""Where the training of ``captions`` starts: at the shipped model ``cubes``, with a token map that reads captions.

    python -m benchmarks.cube_factory.layouts runs/captions_start.safetensors

The map of a token (``ppl_diffusion.models.networks.TokenMap``) is taught, by least squares on all captions of the
grammar, to draw what a caption means: where it asks for a cube, and a vector of colour and material. What the U-Net
makes of these drawings, it learns in training. Started from random weights, the map had learned nearly nothing after
800 batches of 32, since a caption explains little of a picture's noise. Takes a minute.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cube_factory.captions import COLOR_WORDS, MATERIAL_WORDS, REGIONS, Meaning, pool
from benchmarks.cube_factory.scenes import COLORS
from ppl_diffusion import EnergyModel, load, save_weights
from ppl_diffusion.models.conditions import Captions
from ppl_diffusion.models.conditions.captions import words
from ppl_diffusion.models.conditions.encoder import MINILM, SIZE, embeddings
from ppl_diffusion.models.drawing import MAP_SIDE, TokenMap
from ppl_diffusion.models.networks import EnergyUNet, build_network
from ppl_diffusion.training.start import start_from

CHANNELS = 16
STEPS, BATCH, RATE = 800, 512, 3e-3
ANYWHERE = 0.4
"""What the map of where shows all over the picture if a caption names no place; a place it names is 1."""
EDGE = 0.06
"""Width of the soft border of a place, as a share of the picture's side."""


def meanings() -> list[Meaning]:
    """Return all meanings that the captions of the training data have."""
    found = [
        Meaning(color, material, place)
        for color in ("", *COLOR_WORDS)
        for material in ("", *MATERIAL_WORDS)
        for place in ("", *REGIONS)
    ]
    return [meaning for meaning in found if meaning != Meaning() and not meaning.held]


def what(meaning: Meaning) -> Tensor:
    """Return a vector ``(CHANNELS,)``: a cube is asked for, of metal or rubber, of one of the colours; red, green and
    blue of it; zeros."""
    metal = {"": 0.0, "rubber": -1.0, "metal": 1.0}[meaning.material]
    chosen = [float(color == meaning.color) for color in COLORS]
    shade = [value / 127.5 - 1 for value in COLORS[meaning.color]] if meaning.color else [0.0, 0.0, 0.0]
    vector = torch.tensor([1.0, metal, *chosen, *shade])
    return torch.cat([vector, torch.zeros(CHANNELS - len(vector))])


def where(meaning: Meaning) -> Tensor:
    """Return a map ``(MAP_SIDE, MAP_SIDE)``, rows down, that is about 1 in the place and 0 elsewhere."""
    if not meaning.place:
        return torch.full((MAP_SIDE, MAP_SIDE), ANYWHERE)
    axis = (torch.arange(MAP_SIDE) + 0.5) / MAP_SIDE
    right, down = (
        torch.sigmoid((axis - low) / EDGE) * torch.sigmoid((high - axis) / EDGE) for low, high in REGIONS[meaning.place]
    )
    return down[:, None] * right


def teach(network: TokenMap, texts: Sequence[str], asked: Sequence[Meaning], *, seed: int = 0) -> float:
    """Teach a map of tokens what texts mean; return the mean squared error of the last batch."""
    tokens = embeddings(MINILM, texts)
    vectors, maps = torch.stack([what(m) for m in asked]), torch.stack([where(m).flatten() for m in asked])
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=STEPS)
    for _ in range(STEPS):
        part = torch.randint(len(texts), (BATCH,), generator=rng)
        noisy = tokens[part] + 0.1 * torch.randn(BATCH, SIZE, generator=rng)
        errors = (network.what(noisy) - vectors[part]) ** 2, (network.where(noisy) - maps[part]) ** 2
        loss = errors[0].mean() + errors[1].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    return float(loss.detach())


def start() -> EnergyModel:
    """Return the model from which training starts."""
    cubes = load("cubes")
    options = json.loads(cubes.info["network"])
    del options["positions"]
    options |= {"token_size": SIZE, "token_map": CHANNELS}
    network = build_network(**options)
    assert isinstance(network, EnergyUNet)
    assert network.map is not None
    start_from(network, cubes.network.state_dict())
    pixels = 4 * cubes.event_shape[0]
    with torch.no_grad():  # a cube is asked for where the other model has the bump of a position
        network.enter.weight[:, pixels] = cubes.network.enter.weight[:, pixels]  # type: ignore[index, union-attr]
    asked = {text: meaning for meaning in meanings() for text in pool(meaning)}
    error = teach(network.map, list(asked), list(asked.values()))
    vocabulary = sorted({word for text in asked for word in words(text)})
    info = {"network": json.dumps(options), "description": "where the training of captions starts", "loss": f"{error}"}
    return EnergyModel(
        network,
        form=cubes.form,
        schedule=cubes.schedule,
        event_shape=cubes.event_shape,
        conditions=Captions(MINILM, tuple(vocabulary)),
        reference=cubes.reference,
        name="captions_start",
        info=info,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_weights(start(), Path(sys.argv[1]))
