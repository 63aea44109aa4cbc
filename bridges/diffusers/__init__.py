"""Diffusion models of the diffusers library as potentials; needs the extra ``diffusers``."""

from .load import decode, from_diffusers

__all__ = ["decode", "from_diffusers"]
