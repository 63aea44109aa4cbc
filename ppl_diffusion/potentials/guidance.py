"""Named compositions of a base and its conditions.

    guidance       p_u^(1-w) p_c^w                      U_u + w (U_c - U_u)
    conjunction    base prod_i (p_i / base)             U_base + sum_i (U_i - U_base)

Both are composed level by level: they define an annealing path whose last rung is the target.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from collections.abc import Sequence

from .algebra import Potential, Product


def guidance(conditional: Potential, unconditional: Potential, *, scale: float) -> Product:
    """Return ``unconditional ** (1 - scale) * conditional ** scale``, level by level.

    At scale 1 this is the conditional density, as with diffusers' ``guidance_scale``; the source's weight is
    ``scale - 1``. A scale above 1 divides by the unconditional density: see :func:`check_quotient`.

    >>> from ppl_diffusion import load
    >>> guidance(load("ring"), load("wide"), scale=1.5)
    ring**1.5 / wide**0.5

    Source: Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
    """
    return conditional**scale * unconditional ** (1 - scale)  # type: ignore[return-value]


def conjunction(potentials: Sequence[Potential], base: Potential) -> Product:
    """Return ``base * prod_i (p_i / base)``, which imposes all conditions ``p_i`` at once; ``base`` is unconditional.

    >>> from ppl_diffusion import load
    >>> cubes = load("cubes")
    >>> conjunction([cubes.given(x=0.3, y=0.4), cubes.given(x=0.7, y=0.6)], cubes).exponents
    (-1.0, 1.0, 1.0)

    Raises:
        ValueError, TypeError: there are no potentials, or they cannot be composed.
    """
    if isinstance(potentials, Potential):
        raise TypeError(f"a conjunction takes a list of potentials, got {potentials}: conjunction([p1, p2], base)")
    if not potentials:
        raise ValueError("a conjunction needs at least one potential: conjunction([p1, p2], base)")
    return Product([base, *potentials], [1.0 - len(potentials), *([1.0] * len(potentials))])
