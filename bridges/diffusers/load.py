"""Pipelines of diffusers as potentials without an energy, from a folder or from memory, offline.

Weights are read from safetensors files only: a pickled checkpoint can run any code when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_diffusion.models.conditions import Classes, Conditions
from ppl_diffusion.models.noise import ScorePotential

from .schedules import Preconditioning, levels_of
from .text import Prompts

EXTRA = "pip install 'ppl-diffusion[diffusers]'"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")


class Denoiser(nn.Module):
    """A denoiser of diffusers as ``network(x, time, condition)``.

    Attributes:
        network: the U-Net or transformer.
        decoder: the autoencoder of a latent model, not a part of the module; or None.
    """

    def __init__(self, network: nn.Module, given: str | None, preconditioning: Preconditioning | None, decoder: Any):
        super().__init__()
        self.network, self.given, self.preconditioning = network, given, preconditioning
        self.__dict__["decoder"] = decoder

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the prediction for ``x (batch, channels, height, width)`` at ``time (batch,)``, of its shape."""
        named = {} if self.given is None else {self.given: condition}
        if self.preconditioning is None:
            return self._call(x, time, named)
        sigma = time.reshape(-1, *[1] * (x.ndim - 1))
        into, skip, out = self.preconditioning.scales(sigma)
        return skip * x + out * self._call(into * x, time.log() / 4, named)

    def _call(self, x: Tensor, time: Tensor, named: dict[str, Any]) -> Tensor:
        output = self.network(x, time, **named, return_dict=False)[0]
        return output[:, : x.shape[1]]  # without a learned variance, which follows


def from_diffusers(source: Any, *, name: str = "theirs", unconditional: int | None = None) -> ScorePotential:
    """Return a pipeline of diffusers as a potential at its scheduler's training levels.

    Class labels are given by ``.given(3)``, prompts by ``.given("a red cube")``. Clipping and thresholding of a
    scheduler are left out: with them the output is no score.

    Args:
        source: a pipeline, or the folder in which ``pipeline.save_pretrained`` has written it.
        name: name of the model in expressions.
        unconditional: for a U-Net with class labels, the label by which it was trained for any class; without it the
            model is used under a class only.

    Returns:
        A potential of pictures, or for a latent model of latents, which :func:`decode` turns into pictures.

    Raises:
        ImportError: diffusers is not installed.
        FileNotFoundError: there is no such folder, or no pipeline in it.
        ValueError: weights are pickled, or the scheduler or the denoiser is not known.
    """
    pipeline = _load(source) if isinstance(source, (str, Path)) else source
    scheduler = getattr(pipeline, "scheduler", None)
    network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if scheduler is None or network is None:
        raise ValueError(
            f"{type(pipeline).__name__} has no scheduler with a unet or a transformer: give a pipeline of these, or "
            "ScorePotential(network, ...)"
        )
    levels = levels_of(type(scheduler).from_config(scheduler.config))  # of training, not of the last run
    given, conditions = _conditions(pipeline, network, unconditional)
    return ScorePotential(
        Denoiser(
            network, given, levels.preconditioning, getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        ),
        predicts=levels.predicts,
        schedule=levels.schedule,
        event_shape=_event_shape(network.config),
        times=levels.times,
        conditions=conditions,
        name=name,
    )


def decode(potential: ScorePotential, latents: Any) -> Tensor:
    """Return the pictures ``(chains, channels, height, width)`` in about [-1, 1] of latents of a latent model.

    Args:
        potential: what :func:`from_diffusers` returned, also under a condition.
        latents: shape ``(chains, *event_shape)``.

    Raises:
        ValueError: the model has no autoencoder.
    """
    decoder = getattr(potential.network, "decoder", None)
    if decoder is None:
        raise ValueError(f"{potential} is not a latent model, its points are pictures: use them as they are")
    weights = next(decoder.parameters())
    x = torch.as_tensor(latents).to(weights.device, weights.dtype)
    with torch.no_grad():
        shift = decoder.config.get("shift_factor") or 0.0
        return decoder.decode(x / decoder.config.scaling_factor + shift, return_dict=False)[0]


def _load(source: str | Path) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"from_diffusers needs diffusers: {EXTRA}") from error
    folder = Path(source)
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} holds no pipeline: give a folder that pipeline.save_pretrained has written")
    for part in (path for path in folder.iterdir() if path.is_dir()):
        pickled = [file for file in part.iterdir() if file.suffix in PICKLED]
        if pickled and not any(part.glob("*.safetensors")):
            raise ValueError(
                f"{pickled[0]} is a pickled checkpoint, which may run any code when it is read: convert it where you "
                "trust it, pipeline.save_pretrained(folder, safe_serialization=True)"
            )
    bars, given = diffusers.utils.logging, {"use_safetensors": True, "local_files_only": True}
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        return diffusers.DiffusionPipeline.from_pretrained(str(folder), low_cpu_mem_usage=False, **given)
    finally:
        if shown:
            bars.enable_progress_bar()


def _conditions(pipeline: Any, network: Any, unconditional: int | None) -> tuple[str | None, Conditions | None]:
    """Return the name by which the denoiser takes conditions, and the conditions; None without any."""
    kind, config = type(network).__name__, network.config
    if kind == "UNet2DModel":
        count = config.get("num_class_embeds")
        if count is None:
            return None, None
        return "class_labels", Labels(count, unconditional)
    if kind == "DiTTransformer2DModel":
        return "class_labels", Classes(config.num_embeds_ada_norm)  # with one more label for any class
    if (
        kind == "UNet2DConditionModel"
        and config.get("addition_embed_type") is None
        and hasattr(pipeline, "encode_prompt")
    ):
        return "encoder_hidden_states", Prompts(pipeline)
    raise ValueError(
        f"{kind} of {type(pipeline).__name__} takes inputs that this bridge does not know: wrap it in a module "
        "network(x, time, condition) and use ScorePotential(network, ...)"
    )


class Labels(Classes):
    """Class labels of a U-Net, of which one may stand for any class."""

    def __init__(self, count: int, unconditional: int | None) -> None:
        super().__init__(count)
        object.__setattr__(self, "unconditional", unconditional)

    @property
    def anything(self) -> Any:
        return getattr(self, "unconditional", None)

    def stack(self, tokens: Sequence[Any], device: torch.device) -> Tensor:
        if None in tokens:
            raise ValueError(
                "the model takes a class: use .given(0), or name the label for any class, "
                "from_diffusers(folder, unconditional=...)"
            )
        return super().stack(tokens, device)


def _event_shape(config: Any) -> tuple[int, ...]:
    size = config.sample_size
    if size is None:
        raise ValueError("the denoiser does not say its sample_size: set it, pipeline.unet.register_to_config(...)")
    height, width = (size, size) if isinstance(size, int) else size
    return (config.in_channels, height, width)
