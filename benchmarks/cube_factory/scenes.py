"""Random scenes of one to five cubes on a floor, as numbers: positions, visibility, camera and lights.

Centres in the picture are drawn uniformly from [.12, .88] squared, at least .12 apart; in the world they are at least
1.2 apart, so that only corners can touch, in fewer than one scene of a hundred. Scenes in which more than half of a
cube is hidden are drawn again. After CLEVR (Johnson et al., 2017), https://arxiv.org/abs/1612.06890, but with cubes,
lights and materials of our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

COLORS = {
    "gray": (48, 48, 48),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
CUBES = 5
"""Largest number of cubes in a scene."""
HALF = 0.48
"""Half the side of a cube, which is also the height of its centre above the floor."""
MARGIN, APART, CLEARANCE, VISIBLE = 0.12, 0.12, 1.25, 0.5
"""Least distance of a centre to the edges of the picture, to other centres in the picture, and to other centres in the
world (in sides of a cube); least visible share of each cube."""
ORIGIN, TARGET, FIELD_OF_VIEW = np.array([6.6, -5.8, 7.2]), np.array([0.25, -0.2, 0.3]), 33.0
ENVIRONMENT, FLOOR, METAL = 0.16, 0.5, 0.5
"""Radiance of the environment, reflectance of the floor, probability of a metal cube."""


@dataclass(frozen=True)
class Light:
    """A square lamp outside the picture that faces the origin; ``half`` is half its side."""

    position: tuple[float, float, float]
    half: float
    color: tuple[float, float, float]
    radiance: float


LIGHTS = {
    "key": Light((8.6, -0.4, 8.2), 0.8, (1.0, 0.93, 0.82), 46.0),
    "fill": Light((-5.0, -4.5, 4.5), 0.8, (0.78, 0.84, 1.0), 7.0),
    "back": Light((-1.2, 6.0, 7.0), 0.9, (1.0, 1.0, 1.0), 11.0),
}


@dataclass(frozen=True, eq=False)
class Camera:
    """An upright pinhole camera at ``origin`` (3,) that looks at ``target`` (3,)."""

    origin: np.ndarray
    target: np.ndarray

    @cached_property
    def forward(self) -> np.ndarray:
        """Unit vector (3,) of the viewing direction."""
        away = self.target - self.origin
        return away / np.linalg.norm(away)

    @cached_property
    def right(self) -> np.ndarray:
        """Unit vector (3,) to the right of the picture."""
        right = np.cross(self.forward, [0, 0, 1.0])
        return right / np.linalg.norm(right)

    @cached_property
    def up(self) -> np.ndarray:
        """Unit vector (3,) to the top of the picture."""
        return np.cross(self.right, self.forward)

    @property
    def slope(self) -> float:
        """Half the width of the visible area at distance one."""
        return math.tan(math.radians(FIELD_OF_VIEW) / 2)

    def project(self, world: np.ndarray) -> np.ndarray:
        """Project points ``(..., 3)`` to positions in the picture ``(..., 2)``: x right, y down, [0, 1] inside it."""
        away = np.asarray(world, float) - self.origin
        depth = away @ self.forward * self.slope
        return np.stack([0.5 + 0.5 * (away @ self.right) / depth, 0.5 - 0.5 * (away @ self.up) / depth], -1)

    def rays(self, position: np.ndarray) -> np.ndarray:
        """Return directions ``(..., 3)``, not normalised, to positions ``(..., 2)`` in the picture."""
        position = np.asarray(position, float)
        across = (2 * position[..., :1] - 1) * self.slope * self.right
        return self.forward + across - (2 * position[..., 1:] - 1) * self.slope * self.up

    def unproject(self, position: np.ndarray, height: float) -> np.ndarray:
        """Return the points ``(..., 3)`` at ``height`` that project to positions ``(..., 2)`` in the picture."""
        rays = self.rays(position)
        return self.origin + rays * ((height - self.origin[2]) / rays[..., 2:3])


@dataclass(frozen=True, eq=False)
class Layout:
    """A camera and ``n`` cubes: ``position`` (n, 2) in the picture, ``world`` (n, 3), ``yaw`` and ``visible`` (n,).

    ``yaw`` is the rotation about the vertical in radians, ``visible`` the share that no other cube hides.
    """

    camera: Camera
    position: np.ndarray
    world: np.ndarray
    yaw: np.ndarray
    visible: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """A layout, ``color`` (an index) and ``metal`` (0 or 1) of its cubes (n,), positions (3,) of lights by name."""

    layout: Layout
    color: np.ndarray
    metal: np.ndarray
    lights: Mapping[str, np.ndarray]

    def labels(self) -> dict[str, np.ndarray]:
        """Return the labels of the cubes by their names in a scene file: arrays of length ``n``."""
        cubes = self.layout
        places = {"pos": cubes.position, "world": cubes.world, "yaw": cubes.yaw, "visible": cubes.visible}
        return places | {"color": self.color, "metal": self.metal}


def visible_shares(camera: Camera, world: np.ndarray, yaw: np.ndarray, *, size: int = 128) -> np.ndarray:
    """Return the share ``(n,)`` of each cube, centred at ``world`` (n, 3), that no other cube hides.

    It is counted on a grid of ``size`` by ``size`` pixels; a cube outside the picture counts as hidden.
    """
    grid = (np.arange(size) + 0.5) / size
    rays = camera.rays(np.stack(np.meshgrid(grid, grid), -1)).reshape(-1, 3)
    distances = np.stack([hit_distances(camera.origin, rays, c, y) for c, y in zip(world, yaw, strict=True)])
    hit, nearest = np.isfinite(distances), distances.argmin(0)
    seen = np.array([(hit[i] & (nearest == i)).sum() for i in range(len(world))])
    return seen / np.maximum(hit.sum(1), 1)


def hit_distances(origin: np.ndarray, rays: np.ndarray, centre: np.ndarray, yaw: float) -> np.ndarray:
    """Return the distances ``(m,)`` at which rays ``(m, 3)`` enter a cube, in lengths of the ray; infinite if never."""
    turn = turned(-yaw)
    start, ray = turn @ (origin - centre), rays @ turn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = (-HALF - start) / ray, (HALF - start) / ray
    enter, leave = np.minimum(one, other).max(1), np.maximum(one, other).min(1)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def turned(yaw: float) -> np.ndarray:
    """Return the rotation matrix (3, 3) by ``yaw`` radians about the vertical."""
    return np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])


def sample_layout(rng: np.random.Generator, count: int) -> Layout:
    """Draw a camera and positions of ``count`` cubes, until no cube is more than half hidden.

    Raises ``ValueError`` unless there are 1 to 5 cubes: more do not fit.
    """
    if not 1 <= count <= CUBES:
        raise ValueError(f"a scene has 1 to {CUBES} cubes, not {count}")
    while True:
        camera = Camera(ORIGIN + rng.uniform(-0.2, 0.2, 3), TARGET)
        position, world = _sample_places(rng, camera, count)
        if len(position) < count:
            continue
        yaw = rng.uniform(0, math.pi / 2, count)
        visible = visible_shares(camera, world, yaw)
        if visible.min() >= VISIBLE:
            return Layout(camera, position, world, yaw, visible)


def _sample_places(rng: np.random.Generator, camera: Camera, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` centres, in the picture (n, 2) and in the world (n, 3); fewer if 200 proposals do not suffice."""
    position, world = np.empty((0, 2)), np.empty((0, 3))
    for _ in range(200):
        place = rng.uniform(MARGIN, 1 - MARGIN, 2)
        centre = camera.unproject(place, HALF)
        if len(position):
            near = np.hypot(*(position - place).T).min() < APART
            if near or np.hypot(*(world - centre)[:, :2].T).min() < 2 * HALF * CLEARANCE:
                continue
        position, world = np.vstack([position, place]), np.vstack([world, centre])
        if len(position) == count:
            break
    return position, world


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw the number of cubes, their positions, colours and materials, and the positions of the lights."""
    count = int(rng.integers(1, CUBES + 1))
    layout = sample_layout(rng, count)
    color, metal = rng.integers(0, len(COLORS), count), (rng.random(count) < METAL).astype(int)
    lights = {name: np.array(light.position) + rng.uniform(-0.7, 0.7, 3) for name, light in LIGHTS.items()}
    return Scene(layout, color, metal, lights)
