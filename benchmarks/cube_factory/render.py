"""Render scenes of one to five rounded cubes on a grey floor, on which the energy model of cubes is trained.

    python -m benchmarks render --scenes 200 --seed 0 --out data/scenes.npz

Needs ``pip install 'ppl-diffusion[render]'`` (Mitsuba 3, Open Image Denoise) and a recent LLVM library, its path in
``DRJIT_LIBLLVM_PATH``: version 19 works (Debian's ``libllvm19``), 14 and 15 abort. A picture of 64x64 takes .09 seconds
on one core, 10,000 about 15 minutes; the file is written when all are done. For more scenes, make several files with
different seeds; ``benchmarks.cube_factory.prepare`` takes any number. A seed determines every scene and, with the same
versions, every pixel. Arrays of the file, NaN or -1 where there is no cube:

    images       (n, size, size, 3) uint8
    count        (n,) int8, cubes in the scene
    pos          (n, 5, 2) float32, centres in the picture: x right, y down, both in [0, 1]
    world        (n, 5, 3) float32, centres in the world: z up, the floor at 0, a cube has sides of .96
    yaw          (n, 5) float32, rotation about the vertical in radians
    visible      (n, 5) float32, share of the cube that no other cube hides
    color        (n, 5) int8, index into ``color_names`` (8,)
    metal        (n, 5) int8, 1 for metal, 0 for rubber

Scenes are drawn at random by ``benchmarks.cube_factory.scenes``; this module makes the rounded cube, lights and
materials.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.cube_factory.scenes import (
    COLORS,
    CUBES,
    ENVIRONMENT,
    FIELD_OF_VIEW,
    FLOOR,
    HALF,
    LIGHTS,
    ORIGIN,
    TARGET,
    Layout,
    Light,
    Scene,
    sample_scene,
    turned,
)
from benchmarks.harness import say, write_arrays

Paint = Callable[[Scene, int], np.ndarray]
"""Renders the picture ``(size, size, 3)`` uint8 of a scene, with the seed of the path tracer."""


def make_scenes(
    paint: Paint, scenes: int, *, seed: int, size: int, progress: Callable[[int], None] | None = None
) -> dict[str, np.ndarray]:
    """Return the arrays of a scene file by name, see the top; ``progress`` gets the number of scenes done."""
    rng, arrays = np.random.default_rng(seed), _blank(scenes, size)
    for k in range(scenes):
        scene = sample_scene(rng)
        arrays["images"][k] = paint(scene, (seed * 1_000_003 + k) & 0x7FFFFFFF)
        arrays["count"][k] = len(scene.color)
        for name, values in scene.labels().items():
            arrays[name][k, : len(values)] = values
        if progress is not None:
            progress(k + 1)
    return arrays | {"color_names": np.array(list(COLORS))}


def _blank(scenes: int, size: int) -> dict[str, np.ndarray]:
    """Return the arrays of scenes without cubes."""
    reals = {"pos": (2,), "world": (3,), "yaw": (), "visible": ()}
    return {
        "images": np.zeros((scenes, size, size, 3), np.uint8),
        "count": np.zeros(scenes, np.int8),
        **{name: np.full((scenes, CUBES, *shape), np.nan, np.float32) for name, shape in reals.items()},
        **{name: np.full((scenes, CUBES), -1, np.int8) for name in ("color", "metal")},
    }


def rounded_cube(radius: float = 0.12, points: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a cube from -1 to 1 with round edges: vertices and normals ``(v, 3)``, faces ``(f, 3)``."""
    grid = np.linspace(-1, 1, points)
    grid = np.sign(grid) * (1 - (1 - np.abs(grid)) ** 1.8)  # denser near the round edges
    row, column = np.meshgrid(np.arange(points - 1), np.arange(points - 1), indexing="ij")
    corner = (row * points + column).ravel()
    ahead = corner + points
    triangles = np.concatenate([np.stack([corner, ahead, ahead + 1], 1), np.stack([corner, ahead + 1, corner + 1], 1)])
    vertices, normals, faces = [], [], []
    for side in range(6):
        flat = _side(grid, axis=side // 2, sign=2 * (side % 2) - 1)
        core = np.clip(flat, -(1 - radius), 1 - radius)
        normal = (flat - core) / np.linalg.norm(flat - core, axis=1, keepdims=True)
        vertices.append(core + radius * normal)
        normals.append(normal)
        faces.append((triangles if side % 2 else triangles[:, ::-1]) + side * points**2)
    return np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces)


def _side(grid: np.ndarray, *, axis: int, sign: int) -> np.ndarray:
    """Return points ``(len(grid)**2, 3)`` on one side of a cube from -1 to 1."""
    side = np.full((len(grid), len(grid), 3), float(sign))
    side[..., (axis + 1) % 3], side[..., (axis + 2) % 3] = np.meshgrid(grid, grid, indexing="ij")
    return side.reshape(-1, 3)


class Renderer:
    """A path tracer with a denoiser; calling it renders a scene.

    The scene is built once, with five cubes; those not needed are placed below the floor. Only parameters change from
    picture to picture, and all of them are opaque to Dr.Jit, so that it compiles once. Raises ``ImportError`` where
    Mitsuba, Open Image Denoise or LLVM is missing.
    """

    def __init__(self, size: int = 64, *, samples: int = 25, threads: int = 1) -> None:
        self._drjit, self._mitsuba, self._denoise = _libraries()
        self._mitsuba.set_variant("llvm_ad_rgb")
        self._drjit.set_thread_count(threads)
        self._samples = samples
        self._vertices, self._normals, faces = rounded_cube()
        with tempfile.TemporaryDirectory() as folder:
            cube = f"{folder}/cube.ply"
            self._mesh(faces).write_ply(cube)
            parts = self._surroundings(size) | {f"cube{i}": _cube(cube) for i in range(CUBES)}
            self._scene = self._mitsuba.load_dict(parts, optimize=False)  # or equal cubes would be merged
        self._parameters = self._mitsuba.traverse(self._scene)
        self._names = list(self._parameters.keys())

    def __call__(self, scene: Scene, seed: int) -> np.ndarray:
        """Return the picture ``(size, size, 3)`` of a scene, uint8, sRGB."""
        camera = scene.layout.camera
        changes = {"sensor.to_world": self._looking(camera.origin, camera.origin + camera.forward)}
        changes |= {f"{k}.to_world": self._shining(v, LIGHTS[k].half) for k, v in scene.lights.items()}
        changes = {key: self._mitsuba.Transform4f(value) for key, value in changes.items()}
        for slot in range(CUBES):
            changes |= self._material(slot, scene)
            self._place(slot, scene.layout)
        for key, value in changes.items():
            self._parameters[key] = value
        self._drjit.make_opaque([self._parameters[key] for key in changes])
        self._parameters.update()
        return self._develop(self._trace(seed))

    def _mesh(self, faces: np.ndarray) -> Any:
        mesh = self._mitsuba.Mesh("cube", len(self._vertices), len(faces), has_vertex_normals=True)
        parameters = self._mitsuba.traverse(mesh)
        parameters["vertex_positions"] = self._vertices.astype(np.float32).ravel()
        parameters["vertex_normals"] = self._normals.astype(np.float32).ravel()
        parameters["faces"] = faces.astype(np.uint32).ravel()
        parameters.update()
        return mesh

    def _surroundings(self, size: int) -> dict[str, Any]:
        """Return everything in the scene except the cubes, as Mitsuba's dictionary."""
        film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb", "rfilter": {"type": "box"}}
        sensor = {"type": "perspective", "fov": FIELD_OF_VIEW, "to_world": self._looking(ORIGIN, TARGET), "film": film}
        wide = self._mitsuba.ScalarTransform4f().scale([60, 60, 1])
        gray = {"type": "diffuse", "reflectance": _rgb([FLOOR] * 3)}
        tracer = {"type": "path", "max_depth": 4}
        return {
            "type": "scene",
            "integrator": {"type": "aov", "aovs": "albedo:albedo,normal:sh_normal", "image": tracer},
            "sensor": sensor | {"sampler": {"type": "multijitter", "sample_count": self._samples}},
            "floor": {"type": "rectangle", "to_world": wide, "bsdf": gray},
            "environment": {"type": "constant", "radiance": _rgb(ENVIRONMENT)},
            **{name: self._lamp(light) for name, light in LIGHTS.items()},
        }

    def _lamp(self, light: Light) -> dict[str, Any]:
        emitter = {"type": "area", "radiance": _rgb([light.radiance * c for c in light.color])}
        return {"type": "rectangle", "to_world": self._shining(light.position, light.half), "emitter": emitter}

    def _looking(self, origin: np.ndarray, target: np.ndarray) -> Any:
        from_, to = ([float(v) for v in point] for point in (origin, target))
        return self._mitsuba.ScalarTransform4f().look_at(origin=from_, target=to, up=[0, 0, 1])

    def _shining(self, position: Any, half: float) -> Any:
        transform, from_ = self._mitsuba.ScalarTransform4f(), [float(v) for v in position]
        turned = transform.look_at(origin=from_, target=[0, 0, 0], up=[0, 1, 0.01])
        return turned @ transform.scale([half, half, 1])

    def _key(self, slot: int, suffix: str) -> str:
        (key,) = (k for k in self._names if k.startswith(f"cube{slot}.") and k.endswith(suffix))
        return key

    def _material(self, slot: int, scene: Scene) -> dict[str, Any]:
        there = slot < len(scene.color)
        metal = float(scene.metal[slot]) if there else 0.0
        color = np.array(list(COLORS.values())[scene.color[slot]]) / 255.0 if there else np.full(3, 0.5)
        return {
            self._key(slot, "base_color.value"): self._mitsuba.Color3f(*[float(c) for c in color]),
            self._key(slot, "metallic.value"): self._mitsuba.Float(metal),
            self._key(slot, "roughness.value"): self._mitsuba.Float(0.32 if metal else 0.6),
        }

    def _place(self, slot: int, layout: Layout) -> None:
        """Move a cube to its place in the layout, or below the floor if the layout has fewer cubes."""
        there = slot < len(layout.yaw)
        turn = turned(layout.yaw[slot] if there else 0.0)
        if there:
            vertices = self._vertices @ turn.T * HALF + layout.world[slot]
        else:
            vertices = self._vertices * 0.1 + [0, 0, -50 - 3 * slot]
        for suffix, values in (("vertex_positions", vertices), ("vertex_normals", self._normals @ turn.T)):
            self._parameters[self._key(slot, suffix)] = self._mitsuba.Float(values.astype(np.float32).ravel())

    def _trace(self, seed: int) -> np.ndarray:
        """Render radiance, albedo and normals of each pixel, ``(size, size, 9)`` float32."""
        opaque = self._mitsuba.UInt32(seed)
        self._drjit.make_opaque(opaque)
        return np.array(self._mitsuba.render(self._scene, seed=opaque, spp=self._samples), dtype=np.float32)

    def _develop(self, traced: np.ndarray) -> np.ndarray:
        """Clip fireflies in rendered pixels ``(size, size, 9)`` and denoise; return ``(size, size, 3)`` uint8, sRGB."""
        light, albedo, normal = np.minimum(traced[..., :3], 1.2), np.clip(traced[..., 3:6], 0, 1), traced[..., 6:9]
        light = self._denoise(*(np.ascontiguousarray(v) for v in (light, albedo, normal)), hdr=True)
        light = np.clip(light, 0, 1)
        tone = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        return (tone * 255 + 0.5).astype(np.uint8)


def _libraries() -> tuple[Any, Any, Any]:
    """Return Dr.Jit, Mitsuba, and the function that denoises."""
    try:
        import drjit
        import mitsuba
        from pyoidn import denoise
    except ImportError as error:
        raise ImportError(f"{error}; to render: pip install 'ppl-diffusion[render]'") from error
    return drjit, mitsuba, denoise


def _cube(file: str) -> dict[str, Any]:
    """Return a cube as Mitsuba's dictionary; its colour and material are set per scene."""
    shares = {name: {"type": "uniform", "value": 0.5} for name in ("metallic", "roughness")}
    material = {"type": "principled", "base_color": _rgb([0.5] * 3), "specular": 0.5, **shares}
    return {"type": "ply", "filename": file, "bsdf": material}


def _rgb(value: Any) -> dict[str, Any]:
    return {"type": "rgb", "value": value}


def _teller(scenes: int) -> Callable[[int], None]:
    """Return a callback that reports progress on the error stream, twenty times in total."""
    begun = time.monotonic()

    def tell(done: int) -> None:
        if 20 * done // scenes > 20 * (done - 1) // scenes:
            left = (time.monotonic() - begun) * (scenes - done) / done
            typer.echo(f"{done} of {scenes} scenes, {left / 60:.1f} minutes left", err=True)

    return tell


def main(
    scenes: Annotated[int, typer.Option(min=1, help="How many.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(dir_okay=False, help="File to write.")] = Path("data/scenes.npz"),
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures, in pixels.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Paths for each pixel.")] = 25,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Render scenes of cubes."""
    paint = Renderer(size, samples=samples, threads=threads)
    write_arrays(out, make_scenes(paint, scenes, seed=seed, size=size, progress=_teller(scenes)))
    say(f"{out}: {scenes} scenes, {size}x{size}")
