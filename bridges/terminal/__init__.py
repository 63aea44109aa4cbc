"""The command ``ppl-diffusion``."""
