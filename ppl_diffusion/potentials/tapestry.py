"""Tapestries: the density of a large canvas as a product of densities of its windows.

    p(x) = prod_i p_i(x[window_i]) ** w_i            U(x) = sum_i w_i U_i(x[window_i])

Where windows overlap, their densities multiply, so that samples are plausible under every window. Windows may have
different conditions, and all windows of one network are evaluated by one call of it. The gradient is the exact gradient
of the energy, without rescaling in overlaps, so that Metropolis-adjusted kernels remain valid.

At the noisiest level, from which chains start, a coordinate has about the variance ``1 / sum_i w_i``, summed over the
windows that cover it (for windows whose own exponents sum to one).

Source: Reduce, Reuse, Recycle (Du et al., 2023), section 5.3, https://arxiv.org/abs/2302.11552
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional as F

from ..arrays import Array
from .algebra import Composite, Potential
from .common_ground import common_ground, tell_doubts
from .evaluation import energy_of_each, evaluate_each
from .target import Target, common_device, common_reference


class Tapestry(Composite):
    """The weighted product of densities of windows of a canvas; built by :func:`tapestry`.

    Attributes:
        potentials: one potential per window.
        windows: row and column of the upper left corner of each window.
        weights: exponent of each window.
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
        tell_doubts(potentials)
        self.potentials, self.windows, self.weights = tuple(potentials), tuple(windows), tuple(weights)
        self.event_shape, self.name = tuple(canvas_shape), name

    def parts(self) -> tuple[Potential, ...]:
        return tuple(dict.fromkeys(self.potentials))

    def rebuilt(self, replace: Callable[[Potential], Potential]) -> Tapestry:
        windows = [replace(potential) for potential in self.potentials]
        return Tapestry(windows, self.event_shape, self.windows, self.weights, self.name)

    def leaves(self) -> tuple[Potential, ...]:
        """Return itself as the only leaf, since leaves share their points and its windows have points of their own."""
        return (self,)

    def _combine(self, energies: Mapping[Potential, Array]) -> tuple[Array, dict[Potential, Any]]:
        return energies[self], {self: 1.0}

    @property
    def device(self) -> torch.device:
        """Device of the networks of the windows, on which torch points must be."""
        return common_device(self.potentials)

    @property
    def exponent(self) -> Any:
        total = np.zeros(self.event_shape)
        for potential, window, weight in zip(self.potentials, self.windows, self.weights, strict=True):
            total[self._window_slices(window)] += weight * potential.exponent
        return total

    @property
    def reference(self) -> tuple[Any, Any]:
        found = common_reference([leaf for potential in self.potentials for leaf in potential.leaves()])
        # Per-pixel statistics of a window do not apply to the pixels of the canvas.
        return found if all(np.shape(value)[-2:] in ((), (1, 1)) for value in found) else (0.0, 1.0)

    def _window_slices(self, window: tuple[int, int]) -> tuple[Any, ...]:
        (top, left), (height, width) = window, self.window_shape[-2:]
        return (..., slice(top, top + height), slice(left, left + width))

    @property
    def group(self) -> Any:
        """Set of the groups of its windows' leaves: tapestries of the same networks are evaluated together."""
        return frozenset(leaf.group for potential in self.potentials for leaf in potential.leaves())

    def evaluate_group(
        self, members: Sequence[Target], points: Sequence[Array], level: Any
    ) -> list[tuple[Array, Array]]:
        """Return energies and gradients of tapestries, with one call of each network for all of their windows."""
        leaves, crops = _leaves_and_crops_of_all(members, points)
        found = iter(evaluate_each(leaves, crops, level))
        return [member._combine_windows(x, found) for member, x in zip(members, points, strict=True)]  # type: ignore[attr-defined]

    def energy_group(self, members: Sequence[Target], points: Sequence[Array], level: Any) -> list[Array]:
        """Return only the energies of :meth:`evaluate_group`."""
        leaves, crops = _leaves_and_crops_of_all(members, points)
        found = iter(energy_of_each(leaves, crops, level))
        return [member._combine_window_energies(found) for member in members]  # type: ignore[attr-defined]

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        return self.evaluate_group([self], [x], level)[0]

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return self.energy_group([self], [x], level)[0]

    def _combine_windows(self, x: Array, found: Iterator[tuple[Array, Array]]) -> tuple[Array, Array]:
        """Return energy and gradient at ``x``, taking those of the leaves of each window in turn from ``found``."""
        energy: Any = 0.0
        gradient: Any = 0.0
        for potential, window, weight in zip(self.potentials, self.windows, self.weights, strict=True):
            values: dict[Potential, Any] = {leaf: next(found) for leaf in potential.leaves()}
            part, slope = potential._combine_with_gradient(values, x[self._window_slices(window)])
            energy, gradient = energy + weight * part, gradient + weight * self._pad_to_canvas(slope, window)
        return energy, gradient

    def _combine_window_energies(self, found: Iterator[Array]) -> Array:
        total: Any = 0.0
        for potential, weight in zip(self.potentials, self.weights, strict=True):
            part, _ = potential._combine({leaf: next(found) for leaf in potential.leaves()})
            total = total + weight * part
        return total

    def _leaves_and_crops(self, x: Array) -> tuple[list[Target], list[Array]]:
        """Return the leaves of every window, and for each the crop ``(*chains, *window_shape)`` to evaluate it at."""
        pairs = [
            (leaf, x[self._window_slices(window)])
            for potential, window in zip(self.potentials, self.windows, strict=True)
            for leaf in potential.leaves()
        ]
        return [leaf for leaf, _ in pairs], [crop for _, crop in pairs]

    def _pad_to_canvas(self, gradient: Array, window: tuple[int, int]) -> Array:
        """Pad the gradient of a window with zeros to the shape ``(*chains, *event_shape)`` of the canvas."""
        margins = [
            (begin, canvas - begin - size)
            for begin, canvas, size in zip(window, self.event_shape[-2:], self.window_shape[-2:], strict=True)
        ]
        if isinstance(gradient, torch.Tensor):
            return F.pad(gradient, (*margins[1], *margins[0]))
        return jnp.pad(gradient, [(0, 0)] * (gradient.ndim - 2) + margins)


def _leaves_and_crops_of_all(members: Sequence[Target], points: Sequence[Array]) -> tuple[list[Target], list[Array]]:
    """Return the leaves of all windows of several tapestries, and the crop to evaluate each at."""
    leaves: list[Target] = []
    crops: list[Array] = []
    for member, x in zip(members, points, strict=True):
        own_leaves, own_crops = member._leaves_and_crops(x)  # type: ignore[attr-defined]
        leaves, crops = leaves + own_leaves, crops + own_crops
    return leaves, crops


def tapestry(
    potentials: Sequence[Potential],
    canvas_shape: Sequence[int],
    windows: Sequence[tuple[int, int]],
    weights: Sequence[float] | None = None,
    *,
    name: str = "tapestry",
) -> Tapestry:
    """Return the weighted product of densities of overlapping windows of a canvas.

    Args:
        potentials: one per window, all of the same event shape ``(*channels, height, width)``.
        canvas_shape: shape of a point, ``(*channels, height, width)``, at least as large as a window.
        windows: row and column of the upper left corner of each window.
        weights: exponent of each window, positive; 1 by default.
        name: name in expressions and reports.

    Returns:
        A potential with event shape ``canvas_shape``; all windows of one network are evaluated in one batch.

    Raises:
        ValueError: the numbers of potentials, windows and weights differ, a window extends beyond the canvas, a pixel
            is in no window, a weight is not positive, or the event of the potentials is not an image.
        TypeError: an argument has the wrong type, or the potentials have different backends.

    >>> from ppl_diffusion import load
    >>> digits = load("digits")
    >>> tapestry([digits.given(1), digits.given(7)], (28, 48), windows=[(0, 0), (0, 20)]).event_shape
    (28, 48)
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
    if any(n < s for n, s in zip(canvas[-2:], shape[-2:], strict=True)):
        raise ValueError(
            f"a canvas of {canvas[-2:]} is smaller than its windows of {shape[-2:]}: make it at least as large"
        )
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
