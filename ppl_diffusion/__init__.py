"""Energy diffusion models as densities at every noise level: compose them, sample them, check the samples."""

from .advice import SamplingWarning
from .analytic import GaussianMixture, UniformBox
from .anneal import Progress, anneal, reverse_diffusion
from .compose import check_quotient, conjunction, guidance, observation
from .energy import EnergyModel
from .function import EnergyFunction
from .kernel import Kernel
from .potential import Mixture, Potential, Product, mixture, product
from .schedule import Ladder, NoiseSchedule
from .step import Adaptive, Fixed, SigmaScaled
from .tapestry import tapestry
from .trace import Trace, versions
from .training import Config, load_config, train
from .zoo import load, save_weights

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
    "Mixture",
    "NoiseSchedule",
    "Potential",
    "Product",
    "Progress",
    "SamplingWarning",
    "SigmaScaled",
    "Trace",
    "UniformBox",
    "anneal",
    "check_quotient",
    "conjunction",
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
