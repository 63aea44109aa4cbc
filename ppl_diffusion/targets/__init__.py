"""Benchmark targets for MCMC kernels: densities with known answers, at several noise levels.

from ppl_diffusion import targets

target = targets.load("mixture_64")
print(target.card(20))
"""

from .benchmark import BenchmarkTarget, Card
from .catalogue import load, names, overview
from .reference import Expectation, Modes, Reference

__all__ = ["BenchmarkTarget", "Card", "Expectation", "Modes", "Reference", "load", "names", "overview"]
