"""One step of training: a batch, its losses, an update of AdamW, and the moving averages."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..schedule import NoiseSchedule
from .agreement import agreement_losses
from .checkpoint import Run
from .config import Config
from .data import Data
from .objective import classification_loss, denoising_loss
from .teacher import Teacher


def take_step(run: Run, config: Config, source: Data, schedule: NoiseSchedule, teacher: Teacher | None) -> None:
    """Draw a batch, compute the losses and their gradients, and update parameters and averages."""
    rate = _relative_rate(run.step, config)
    for group in run.optimiser.param_groups:
        group["lr"] = config.learning_rate * rate
    device = run.loss.device
    drawn = [_to_device(part, device) for part in source.draw(run.generator) if part is not None]
    if run.noise is not run.generator:
        run.noise.manual_seed(int(torch.randint(2**62, (), generator=run.generator)))
    parameters = [parameter for group in run.optimiser.param_groups for parameter in group["params"]]

    def losses(clean: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        given: dict[str, Any] = {"condition": condition, "reference": source.reference, "generator": run.noise}
        if config.form == "classifier":
            assert condition is not None
            loss = error = classification_loss(run.network, schedule, clean, label=condition, generator=run.noise)
        elif not config.agreement:
            given |= {"teacher": teacher, "relative": config.relative}
            loss = error = denoising_loss(run.network, config.form, schedule, clean, **given)
        else:
            error, disagreement = agreement_losses(
                run.network, config.form, schedule, clean, relative=config.relative, **given
            )
            loss = error + config.agreement * disagreement
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return error.detach(), *map(_with_strides_of, gradients, parameters)

    error, *gradients = run.launch(losses, *drawn, kind=config.agreement > 0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    run.optimiser.step()
    run.step += 1
    _update_averages(run, min(config.ema, (run.step + 1) / (run.step + 10)), error.double())


def _with_strides_of(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return ``gradient`` with the strides of ``parameter``, as fused optimisers require."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


@torch.no_grad()
def _update_averages(run: Run, decay: float, loss: Tensor) -> None:
    """Update the moving averages of the parameters and of the loss."""
    values = run.network.state_dict()
    get_ema_multi_avg_fn(decay)([run.average[name] for name in values], list(values.values()), None)
    run.loss = torch.where(run.loss.isnan(), loss, 0.99 * run.loss + 0.01 * loss)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to ``device``; to a GPU from pinned memory, so that the copy is asynchronous."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def _relative_rate(step: int, config: Config) -> float:
    """Return the learning rate as a fraction of its peak: linear warm-up times cosine decay to .01."""
    warm_up = min(1.0, (step + 1) / config.warm_up)
    return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
