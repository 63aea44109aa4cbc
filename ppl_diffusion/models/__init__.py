"""Learned densities: networks as potentials, their conditions, and the library of weight files."""
