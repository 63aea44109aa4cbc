"""The two-dimensional densities of the paper's first experiment in closed form: training data and ground truth.

Source: Reduce, Reuse, Recycle (Du et al., 2023), https://arxiv.org/abs/2302.11552, and its released notebook.
"""

from __future__ import annotations

import numpy as np

from ..arrays import Backend
from ..schedule import NoiseSchedule
from .analytic import GaussianMixture, UniformBox

SCHEDULE = NoiseSchedule.cosine(100)
"""Noise schedule of all planar densities and of the models trained on them."""

BOXES = {
    "bar": ((-0.2, -1.0), (0.2, 1.0)),
    "left": ((-0.3, -1.0), (-0.1, 1.0)),
    "right": ((0.1, -1.0), (0.3, 1.0)),
    "box": ((-0.7, -0.7), (0.7, 0.7)),
    "inner_box": ((-0.3, -0.3), (0.3, 0.3)),
}
"""Lower and upper corner ``((x, y), (x, y))`` of every uniform density."""

NAMES = ("ring", *BOXES, "wide")


def exact(name: str, *, backend: Backend) -> GaussianMixture | UniformBox:
    """Return a planar density, exact at every level, with points of shape ``(2,)``.

    ``ring``: eight Gaussians of standard deviation .03 on a circle of radius .5. ``wide``: a Gaussian of mean
    (.3, .2) and standard deviation .5. ``bar``, ``left``, ``right``, ``box``, ``inner_box``: uniform on boxes.

    Raises:
        ValueError: ``name`` is not in ``NAMES``, or ``backend`` is unknown.
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
