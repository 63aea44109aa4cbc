"""A benchmark of MCMC kernels on targets with known answers: one protocol, gradients counted at the potential.

    from bridges.bench import Plan, comparison, find, load_targets, sweep

    data = sweep([find("hmc"), find("mymodule:kernel")], load_targets(["mixture_16"]), Plan(seeds=1), folder)

The command ``ppl-diffusion bench mymodule:kernel`` does this and prints a table.
"""

from .contenders import Contender, contenders, find, own
from .parts import Plan, load_targets, sweep
from .summary import comparison, leaderboard, stability

__all__ = [
    "Contender",
    "Plan",
    "comparison",
    "contenders",
    "find",
    "leaderboard",
    "load_targets",
    "own",
    "stability",
    "sweep",
]
