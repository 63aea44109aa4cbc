"""Tapestries: a density over a large canvas as the product of densities of its windows.

    p(x) = prod_i p_i(x[window_i]) ** w_i            U(x) = sum_i w_i U_i(x[window_i])

Where windows overlap their densities multiply, so that each has to be content with what it shares with its neighbours.
Every window may have a condition of its own; windows of one network are evaluated by one call of it. The gradient
is that of the energy, and not rescaled by anything: kernels may trust it.

At the noisiest level a coordinate that several windows cover has the variance one over the sum of their weights,
which is where chains start.

Source: Reduce, Reuse, Recycle (Du et al., 2023), section 5.3, https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from operator import index
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from .arrays import Array
from .density import Density, common_device, common_reference, energy_of_each, evaluate_each
from .potential import Composite, Potential, common_ground


class Tapestry(Composite):
    """Windows of a canvas, each with a potential; built by :func:`tapestry`.

    Attributes:
        potentials: of the windows.
        windows: row and column of the upper left corner of each.
        weights: exponent of each.
    """

    def __init__(
        self,
        potentials: Sequence[Potential],
        canvas_shape: tuple[int, ...],
        windows: Sequence[tuple[int, int]],
        weights: Sequence[float],
        name: str,
    ) -> None:
        self.backend, self.schedule, self.window_shape = common_ground(potentials)
        self.potentials, self.windows, self.weights = tuple(potentials), tuple(windows), tuple(weights)
        self.event_shape, self.name = tuple(canvas_shape), name

    def parts(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(self.potentials))

    def rebuilt(self, replace: Callable[[Potential], Potential]) -> Tapestry:
        windows = [replace(potential) for potential in self.potentials]
        return Tapestry(windows, self.event_shape, self.windows, self.weights, self.name)

    def leaves(self) -> tuple[Potential, ...]:
        """Itself: the leaves of its windows are asked about other points than it is."""
        return (self,)

    @property
    def device(self) -> torch.device:
        """Where the networks of the windows are, and points must be."""
        return common_device(self.potentials)

    @property
    def exponent(self) -> Any:
        total = np.zeros(self.event_shape)
        for potential, window, weight in zip(self.potentials, self.windows, self.weights, strict=True):
            total[self._where(window)] += weight * potential.exponent
        return total

    @property
    def reference(self) -> tuple[Any, Any]:
        found = common_reference([leaf for potential in self.potentials for leaf in potential.leaves()])
        # What is known of single pixels of a window is not known of those of the canvas.
        return found if all(np.shape(value)[-2:] in ((), (1, 1)) for value in found) else (0.0, 1.0)

    def _where(self, window: tuple[int, int]) -> tuple[Any, ...]:
        (top, left), (height, width) = window, self.window_shape[-2:]
        return (..., slice(top, top + height), slice(left, left + width))

    @property
    def group(self) -> Any:
        """The networks of its windows: tapestries of the same ones are evaluated together."""
        return frozenset(leaf.group for potential in self.potentials for leaf in potential.leaves())

    def evaluate_group(
        self, members: Sequence[Density], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Energies and gradients of tapestries, by one call of each network for the windows of all of them."""
        leaves, crops = _pooled(members, points)
        found = iter(evaluate_each(leaves, crops, level))
        return [member._woven(x, found) for member, x in zip(members, points, strict=True)]  # type: ignore[attr-defined]

    def energy_group(self, members: Sequence[Density], points: Sequence[Array], level: Any) -> list[Array]:
        """As :meth:`evaluate_group`, energies only."""
        leaves, crops = _pooled(members, points)
        found = iter(energy_of_each(leaves, crops, level))
        return [member._summed(found) for member in members]  # type: ignore[attr-defined]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _woven(self, x: Array, found: Iterator[tuple[Array, Array]]) -> tuple[Array, Array]:
        """Energy and gradient from those of the leaves of the windows, which are taken from ``found``."""
        energy: Any = 0.0
        gradient: Any = 0.0
        for potential, window, weight in zip(self.potentials, self.windows, self.weights, strict=True):
            values: dict[Density, Any] = {leaf: next(found) for leaf in potential.leaves()}
            part, slope = potential._combine_with_gradient(values, x[self._where(window)])
            energy, gradient = energy + weight * part, gradient + weight * self._hung(slope, window)
        return energy, gradient

    def _summed(self, found: Iterator[Array]) -> Array:
        total: Any = 0.0
        for potential, weight in zip(self.potentials, self.weights, strict=True):
            part, _ = potential._combine({leaf: next(found) for leaf in potential.leaves()})
            total = total + weight * part
        return total

    def _windows(self, x: Array) -> tuple[list[Density], list[Array]]:
        """The leaves of every window, and the crop of the canvas that each is asked about."""
        pairs = [
            (leaf, x[self._where(window)])
            for potential, window in zip(self.potentials, self.windows, strict=True)
            for leaf in potential.leaves()
        ]
        return [leaf for leaf, _ in pairs], [crop for _, crop in pairs]

    def _hung(self, gradient: Array, window: tuple[int, int]) -> Array:
        """The gradient of a window on the canvas, zero elsewhere."""
        margins = [
            (begin, canvas - begin - size)
            for begin, canvas, size in zip(window, self.event_shape[-2:], self.window_shape[-2:], strict=True)
        ]
        if isinstance(gradient, torch.Tensor):
            return F.pad(gradient, (*margins[1], *margins[0]))
        return jnp.pad(gradient, [(0, 0)] * (gradient.ndim - 2) + margins)


def _pooled(members: Sequence[Density], points: Sequence[Array]) -> tuple[list[Density], list[Array]]:
    """The leaves of all windows of some tapestries, and what each is asked about."""
    leaves: list[Density] = []
    crops: list[Array] = []
    for member, x in zip(members, points, strict=True):
        here, there = member._windows(x)  # type: ignore[attr-defined]
        leaves, crops = leaves + here, crops + there
    return leaves, crops


def tapestry(
    potentials: Sequence[Potential],
    canvas_shape: Sequence[int],
    windows: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
    *,
    name: str = "tapestry",
) -> Tapestry:
    """The weighted product of densities of overlapping windows of a canvas.

    Args:
        potentials: one for each window, of one event shape ``(*channels, height, width)``.
        canvas_shape: shape of a point, ``(*channels, height, width)``, at least as large as a window.
        windows: row and column of the upper left corner of each window.
        weights: exponent of each window, positive; 1 by default.
        name: what it is called in expressions.

    Returns:
        A potential over the canvas, with one batched evaluation for all windows of a network.

    Raises:
        ValueError: as many windows or weights as there are not potentials, windows that leave the canvas, pixels that
            no window covers, weights that are not positive, or potentials that are not over pictures.
        TypeError: something else than potentials, or potentials of different backends.
    """
    try:
        canvas = tuple(index(size) for size in canvas_shape)
        corners = [tuple(index(place) for place in window) for window in windows]
        shares = [1.0] * len(potentials) if weights is None else list(weights)
    except TypeError as error:
        raise TypeError(
            f"a tapestry takes lists, and whole numbers for canvas and windows ({error}): "
            "tapestry([p, q], (28, 48), [(0, 0), (0, 20)], [1.0, 1.0])"
        ) from error
    _, _, shape = common_ground(potentials)
    if not len(potentials) == len(corners) == len(shares):
        raise ValueError(
            f"a tapestry needs one window and one weight for each potential, got {len(potentials)} potentials, "
            f"{len(corners)} windows and {len(shares)} weights"
        )
    if len(shape) < 2 or canvas[:-2] != shape[:-2] or len(canvas) != len(shape):
        raise ValueError(
            f"windows of shape {shape} do not tile a canvas of shape {canvas}: pictures are (height, width) or "
            "(channels, height, width), and a canvas has the channels of its windows"
        )
    if not all(isinstance(w, Real) and np.isfinite(float(w)) and float(w) > 0 for w in shares):
        raise ValueError(f"weights of windows must be positive numbers, got {shares}: leave out windows of weight zero")
    covered = np.zeros(canvas[-2:], dtype=bool)
    for corner in corners:
        if len(corner) != 2 or any(c < 0 or c + s > n for c, s, n in zip(corner, shape[-2:], canvas[-2:], strict=True)):
            raise ValueError(
                f"the window at {corner} of size {shape[-2:]} leaves the canvas of {canvas[-2:]}: "
                f"corners run from (0, 0) to {tuple(n - s for n, s in zip(canvas[-2:], shape[-2:], strict=True))}"
            )
        covered[corner[0] : corner[0] + shape[-2], corner[1] : corner[1] + shape[-1]] = True
    if not covered.all():
        row, column = (int(place) for place in np.argwhere(~covered)[0])
        raise ValueError(
            f"{np.mean(~covered):.0%} of the canvas lies in no window (first at row {row}, column {column}), and would "
            "have no density: add windows, or make the canvas smaller"
        )
    return Tapestry(potentials, canvas, corners, [float(w) for w in shares], name)  # type: ignore[arg-type]
