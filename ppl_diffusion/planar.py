"""The planar densities of the paper's first experiment, exactly: training data, and truth to compare with.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552, and its released notebook.
"""

from __future__ import annotations

import numpy as np

from .analytic import GaussianMixture, UniformBox
from .arrays import Backend
from .schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.cosine(100)
"""The schedule that all planar densities and their learned models share."""

BOXES = {
    "bar": ((-0.2, -1.0), (0.2, 1.0)),
    "left": ((-0.3, -1.0), (-0.1, 1.0)),
    "right": ((0.1, -1.0), (0.3, 1.0)),
    "box": ((-0.7, -0.7), (0.7, 0.7)),
    "inner_box": ((-0.3, -0.3), (0.3, 0.3)),
}
"""Corners of the uniform densities."""

NAMES = ("ring", *BOXES, "wide")


def exact(name: str, *, backend: Backend) -> GaussianMixture | UniformBox:
    """A planar density, exact at every level.

    ``ring``: eight Gaussians of standard deviation .03 on a circle of radius .5. ``wide``: a Gaussian of mean
    (.3, .2) and standard deviation .5. ``bar``, ``left``, ``right``, ``box``, ``inner_box``: uniform on boxes.

    Raises:
        ValueError: an unknown name.
    """
    if name in BOXES:
        return UniformBox(*BOXES[name], schedule=SCHEDULE, backend=backend, name=name)
    if name == "ring":
        angles = np.arange(8) * np.pi / 4
        means = 0.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return GaussianMixture(means, np.full(8, 0.03), schedule=SCHEDULE, backend=backend, name=name)
    if name == "wide":
        return GaussianMixture([[0.3, 0.2]], [0.5], schedule=SCHEDULE, backend=backend, name=name)
    raise ValueError(f"no planar density is called {name!r}: use one of {', '.join(NAMES)}")
