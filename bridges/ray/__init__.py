"""Spread islands, or the parts of any work, over the processes and machines of a Ray cluster."""

from .workers import Workers

__all__ = ["Workers"]
