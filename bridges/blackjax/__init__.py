"""BlackJAX kernels for annealed sampling: HMC, MALA, NUTS, unadjusted HMC and Langevin, and any other kernel."""

from .any_kernel import FromBlackJAX, from_blackjax
from .kernels import HMC, MALA, NUTS, UHMC, ULA

__all__ = ["HMC", "MALA", "NUTS", "UHMC", "ULA", "FromBlackJAX", "from_blackjax"]
