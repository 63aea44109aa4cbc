"""Energy diffusion models as densities at every noise level: compose them, sample them, check the samples."""

from .files import versions
from .ladder import Ladder
from .models.classifier import classifier_potential
from .models.energy import EnergyModel
from .models.library import load, save_weights
from .models.noise import ScorePotential
from .potentials.algebra import Mixture, Potential, Product, mixture, product
from .potentials.analytic import GaussianMixture, UniformBox
from .potentials.function import EnergyFunction
from .potentials.guidance import conjunction, guidance
from .potentials.leaf import Leaf
from .potentials.observation import observation
from .potentials.quotients import check_quotient
from .potentials.tapestry import tapestry
from .potentials.target import Target
from .sampling.advice import SamplingWarning
from .sampling.anneal import anneal, reverse_diffusion
from .sampling.bounds import bound_log_normaliser
from .sampling.exchange import exchange
from .sampling.kernel import Kernel
from .sampling.progress import Progress
from .sampling.step import Adaptive, Fixed, SigmaScaled
from .sampling.trace import Trace
from .schedule import NoiseSchedule
from .training.train import Config, load_config, train

__version__ = versions().get("ppl-diffusion", "unknown")

__all__ = [
    "Adaptive",
    "Config",
    "EnergyFunction",
    "EnergyModel",
    "Fixed",
    "GaussianMixture",
    "Kernel",
    "Ladder",
    "Leaf",
    "Mixture",
    "NoiseSchedule",
    "Potential",
    "Product",
    "Progress",
    "SamplingWarning",
    "ScorePotential",
    "SigmaScaled",
    "Target",
    "Trace",
    "UniformBox",
    "anneal",
    "bound_log_normaliser",
    "check_quotient",
    "classifier_potential",
    "conjunction",
    "exchange",
    "guidance",
    "load",
    "load_config",
    "mixture",
    "observation",
    "product",
    "reverse_diffusion",
    "save_weights",
    "tapestry",
    "train",
]
