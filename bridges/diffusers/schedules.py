"""Schedulers of diffusers as noise schedules: the levels on which their models were trained.

Solvers, spacings and the number of inference steps are ways down the levels; here a ladder and a kernel take their
place. What is left of a scheduler is its training levels, the time that the network takes at each, and what it
predicts. Four families:

    sqrt(abar)   alpha = sqrt(abar), sigma = sqrt(1 - abar): DDPM, DDIM, PNDM, DPMSolver*, DEIS, UniPC, SASolver
    x / alpha    the same levels: Euler*, Heun, KDPM2* and LMS walk in x / alpha, s = sigma / alpha, and scale the
                 network's input by 1 / sqrt(s^2 + 1) = alpha, so that it sees the x of this library
    EDM          alpha = 1, sigma from the scheduler, with its preconditioning (``Preconditioning``)
    flow         alpha = 1 - sigma, FlowMatch*, and the solvers with use_flow_sigmas
    VE           alpha = 1, ScoreSdeVe, whose networks predict the score

Levels at which nothing is left of the data, abar = 0 or sigma = 1, have no score in x_0: a flow leaves its last one
out, and a scheduler with zero terminal SNR is refused.

Source: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
https://arxiv.org/abs/2206.00364
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ppl_diffusion.potentials.score import Prediction
from ppl_diffusion.schedule import NoiseSchedule

SQRT_ABAR = (
    "DDPM",
    "DDPMParallel",
    "DDIM",
    "DDIMParallel",
    "PNDM",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
)
SCALED = (
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "LMSDiscrete",
)
EDM = ("EDMEuler", "EDMDPMSolverMultistep")
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")

REFUSED = {
    "LCM": "its network was distilled to few steps, and its output is not the score",
    "TCD": "its network was distilled to few steps, and its output is not the score",
    "FlowMatchLCM": "its network was distilled to few steps, and its output is not the score",
    "CMStochasticIterative": "a consistency model maps noise to data, and has no score",
    "VQDiffusion": "its data are discrete",
    "Amused": "its data are discrete",
    "BlockRefinement": "its data are discrete",
}

PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "sample",
    "flow_prediction": "flow",
}


@dataclass(frozen=True)
class Preconditioning:
    """The preconditioning of EDM: the denoised ``x_0`` is ``c_skip x + c_out network(c_in x, log(sigma) / 4)``.

    Attributes:
        data: standard deviation of the data.
        velocity: whether ``c_out`` has the sign of a velocity.
    """

    data: float
    velocity: bool

    def scales(self, sigma: Any) -> tuple[Any, Any, Any]:
        """Return ``c_in``, ``c_skip`` and ``c_out`` at ``sigma``."""
        total = sigma**2 + self.data**2
        out = sigma * self.data / total**0.5
        return 1 / total**0.5, self.data**2 / total, -out if self.velocity else out


@dataclass(frozen=True)
class Levels:
    """What a scheduler says of its network.

    Attributes:
        schedule: the noise levels, cleanest first.
        times: what the network takes as the time of each level; sigma with a ``preconditioning``.
        predicts: what the network predicts; "sample" with a ``preconditioning``, after it.
        preconditioning: that of EDM, or None.
    """

    schedule: NoiseSchedule
    times: tuple[float, ...]
    predicts: Prediction
    preconditioning: Preconditioning | None = None


def levels_of(scheduler: Any) -> Levels:
    """Return the levels of a scheduler of diffusers.

    Raises:
        ValueError: its models have no score, it ends in pure noise, or it is not known.
    """
    kind, config = type(scheduler).__name__.removesuffix("Scheduler"), scheduler.config
    if kind in REFUSED:
        raise ValueError(f"{type(scheduler).__name__} is no scheduler of a score: {REFUSED[kind]}; give another model")
    if kind == "ScoreSdeVe":
        sigmas = np.sort(np.asarray(scheduler.discrete_sigmas, dtype=np.float64))
        return Levels(NoiseSchedule((1.0,) * len(sigmas), tuple(sigmas)), tuple(sigmas), "score")
    if kind in EDM:
        sigmas = np.unique(np.asarray(scheduler.sigmas, dtype=np.float64))
        sigmas = sigmas[sigmas > 0]
        shape = Preconditioning(float(config.sigma_data), _predicts(scheduler) == "velocity")
        return Levels(NoiseSchedule((1.0,) * len(sigmas), tuple(sigmas)), tuple(sigmas), "sample", shape)
    if kind in FLOW or config.get("use_flow_sigmas", False):
        return _flow(scheduler, kind)
    if kind in SQRT_ABAR + SCALED:
        if config.get("timestep_type", "discrete") == "continuous":
            raise ValueError(
                f"{type(scheduler).__name__} with timestep_type='continuous' is not known: give another one"
            )
        abar = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)
        if config.get("rescale_betas_zero_snr", False) or abar[-1] <= 0:
            raise ValueError(
                f"{type(scheduler).__name__} ends in pure noise (zero terminal SNR), where x says nothing of the data "
                "and the score nothing of x_0: give a scheduler with rescale_betas_zero_snr=False"
            )
        schedule = NoiseSchedule(tuple(np.sqrt(abar)), tuple(np.sqrt(1 - abar)))
        return Levels(schedule, tuple(range(len(abar))), _predicts(scheduler))
    known = ", ".join((*SQRT_ABAR, *SCALED, *EDM, *FLOW, "ScoreSdeVe"))
    raise ValueError(f"{type(scheduler).__name__} is not known: take a scheduler of {known}, or use ScorePotential")


def _flow(scheduler: Any, kind: str) -> Levels:
    """Levels of flow matching, shifted as in training, without the one that is pure noise."""
    count = scheduler.config.num_train_timesteps
    if kind in FLOW:
        sigmas = np.asarray(scheduler.sigmas, dtype=np.float64)
    else:
        shift, plain = scheduler.config.flow_shift, np.arange(1, count + 1) / count
        sigmas = shift * plain / (1 + (shift - 1) * plain)
    sigmas = np.unique(sigmas)
    sigmas = sigmas[(sigmas > 0) & (sigmas < 1)]
    return Levels(NoiseSchedule(tuple(1 - sigmas), tuple(sigmas)), tuple(sigmas * count), "flow")


def _predicts(scheduler: Any) -> Prediction:
    given = scheduler.config.get("prediction_type", "epsilon")
    if given not in PREDICTIONS:
        raise ValueError(f"prediction_type {given!r} is not known: it must be one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[given]
