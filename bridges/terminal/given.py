"""What commands are given in words: models and teachers by name, file or folder, and kernels by name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any


class KernelName(StrEnum):
    """Values of ``--kernel``; ``reverse`` is reverse diffusion without MCMC."""

    hmc = "hmc"
    mala = "mala"
    nuts = "nuts"
    uhmc = "uhmc"
    ula = "ula"
    reverse = "reverse"


class Engine(StrEnum):
    """Values of ``--engine``, the library that the kernel is from."""

    blackjax = "blackjax"
    pyro = "pyro"


def parse_models(models: list[str]) -> dict[str, str]:
    """Parse ``NAME=FILE`` values of ``--model``; a folder is a pipeline of diffusers."""
    named = dict(text.partition("=")[::2] for text in models)
    if len(named) < len(models):
        raise ValueError(f"--model names a model twice ({', '.join(models)}): give each a name of its own")
    for name, file in named.items():
        if not name.isidentifier() or not (file.endswith(".safetensors") or (file and Path(file).is_dir())):
            raise ValueError(
                f"--model {name}={file} names no weight file and no folder: write --model mine=mine.safetensors"
            )
    return named


def load_teacher(source: str) -> Any:
    """Return a shipped model by its name, whatever lies in the working directory; else as :func:`load_model`."""
    from ppl_diffusion.models import library

    return library.load(source) if source in library.names() else load_model(source, "theirs")


def load_model(source: str, name: str) -> Any:
    """Return the model of a weight file, or a pipeline of diffusers in a folder."""
    if Path(source).is_dir():
        from ..diffusers import from_diffusers

        return from_diffusers(source, name=name)
    from ppl_diffusion.models import library

    return library.load(source)


def build_kernel(engine: Engine, name: KernelName, leapfrogs: int | None, step: float | None) -> Any:
    """Return the kernel of a name, with the options that were given."""
    from .. import pyro
    from ..blackjax import kernels as blackjax

    kernel = getattr(pyro if engine is Engine.pyro else blackjax, name.value.upper(), None)
    if kernel is None:
        raise ValueError(f"Pyro has no {name.value}: use --kernel hmc or --kernel nuts, or leave --engine out")
    if leapfrogs is not None and name not in (KernelName.hmc, KernelName.uhmc):
        raise ValueError(f"the number of leapfrogs of {name.value} is its own affair: leave --leapfrogs out")
    options = {"step": step, "leapfrogs": leapfrogs}
    return kernel(**{option: value for option, value in options.items() if value is not None})
