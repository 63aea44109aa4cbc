"""Scenes of cubes: properties of layouts, occlusion, and the arrays for training."""

from __future__ import annotations

import io
import sys
from functools import cache

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks.cube_factory import prepare as prepare_cubes
from benchmarks.cube_factory import render as render_cubes
from benchmarks.cube_factory import scenes
from benchmarks.cube_factory.prepare import prepare
from benchmarks.cube_factory.render import make_scenes, rounded_cube
from benchmarks.cube_factory.scenes import HALF, ORIGIN, TARGET, Camera, sample_layout, sample_scene, visible_shares
from benchmarks.harness import command

CAMERA = Camera(ORIGIN, TARGET)
SIZE = 24


def paint(scene, seed):
    """A picture that encodes its scene and its seed, made without a renderer."""
    rng = np.random.default_rng([seed, len(scene.color)])
    return rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)


@cache
def made(scenes=6, seed=3):
    return make_scenes(paint, scenes, seed=seed, size=SIZE)


def run(module, *arguments):
    app = typer.Typer()
    app.command()(command(module, module.__name__.rpartition(".")[2]))
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def layouts():
    rng = np.random.default_rng(0)
    return [sample_layout(rng, count) for count in (1, 2, 3, 4, 5) for _ in range(4)]


def apart(points):
    """Return the smallest distance between two of the points."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return (distances + np.diag(np.full(len(points), np.inf))).min()


def test_layouts_keep_their_promises(layouts):
    assert [len(layout.position) for layout in layouts] == [n for n in (1, 2, 3, 4, 5) for _ in range(4)]
    for layout in layouts:
        assert ((layout.position >= 0.12) & (layout.position <= 0.88)).all()
        assert apart(layout.position) >= 0.12
        assert apart(layout.world[:, :2]) >= 1.2
        assert ((layout.yaw >= 0) & (layout.yaw <= np.pi / 2)).all()
        np.testing.assert_allclose(layout.world[:, 2], HALF, rtol=1e-12)
        np.testing.assert_allclose(layout.camera.project(layout.world), layout.position, rtol=1e-12)


def test_every_cube_is_at_least_half_visible(layouts):
    for layout in layouts:
        shares = visible_shares(layout.camera, layout.world, layout.yaw, size=96)
        np.testing.assert_allclose(shares, layout.visible, atol=0.04)
        assert layout.visible.min() >= 0.5
        assert layout.visible.max() <= 1


def test_wrong_twin_a_hidden_box_is_found_hidden():
    front = CAMERA.unproject(np.array([0.5, 0.7]), HALF)
    away = (front - CAMERA.origin) * [1, 1, 0]
    behind = front + 1.2 * away / np.linalg.norm(away)
    hidden = CAMERA.origin + 1.4 * (front - CAMERA.origin)
    yaw = np.zeros(2)
    assert visible_shares(CAMERA, np.stack([front, hidden]), yaw).tolist() == [1, 0]
    assert visible_shares(CAMERA, np.stack([hidden, front]), yaw).tolist() == [0, 1]
    one, other = visible_shares(CAMERA, np.stack([front, behind]), yaw)
    assert one == 1
    assert 0.3 < other < 0.9
    assert visible_shares(CAMERA, front[None] + [0, 0, 50.0], yaw[:1]).tolist() == [0]


def test_hidden_cubes_are_drawn_again(monkeypatch):
    least = {}
    for share in (0.0, 0.9):
        monkeypatch.setattr(scenes, "VISIBLE", share)
        least[share] = [sample_layout(np.random.default_rng(seed), 5).visible.min() for seed in range(4)]
    assert min(least[0.9]) >= 0.9
    assert min(least[0.0]) < 0.9, "nothing was hidden, so this shows nothing"


def test_rays_enter_a_turned_box_where_it_was_put():
    centre, turn = CAMERA.unproject(np.array([0.4, 0.6]), HALF), scenes.turned(0.4)
    top = centre + np.array([[x, y, HALF] for x in (-0.47, 0.47) for y in (-0.47, 0.47)]) @ turn.T
    rays = CAMERA.rays(CAMERA.project(top))
    entered = scenes.hit_distances(CAMERA.origin, rays, centre, 0.4)
    np.testing.assert_allclose(CAMERA.origin + rays * entered[:, None], top, atol=1e-12)
    wrong = scenes.hit_distances(CAMERA.origin, rays, centre, -0.4)
    assert np.abs(wrong - entered).min() > 0.01


def test_projection_and_unprojection_are_inverse():
    position = np.random.default_rng(0).uniform(0, 1, (50, 2))
    for height in (0.0, HALF, 2.0):
        world = CAMERA.unproject(position, height)
        np.testing.assert_allclose(world[:, 2], height, atol=1e-12)
        np.testing.assert_allclose(CAMERA.project(world), position, atol=1e-12)
    np.testing.assert_allclose(CAMERA.project(TARGET), [0.5, 0.5], atol=1e-12)
    assert CAMERA.project(TARGET + CAMERA.right)[0] > 0.5
    assert CAMERA.project(TARGET + CAMERA.up)[1] < 0.5


def test_the_cube_is_closed_round_and_faces_outwards():
    vertices, normals, faces = rounded_cube()
    corners = vertices[faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((outward * corners.mean(1)).sum(-1) > 0).all()
    volume = (corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert 7.7 < volume < 8
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-12)
    assert np.abs(vertices).max() <= 1


def test_a_seed_decides_the_scenes_of_the_shipped_models():
    scene = sample_scene(np.random.default_rng(20))
    places = [[0.430968, 0.174446], [0.195215, 0.869579], [0.647492, 0.461003], [0.606534, 0.325572]]
    np.testing.assert_allclose(scene.layout.position, [*places, [0.738112, 0.123778]], atol=1e-6)
    assert scene.color.tolist() == [2, 7, 1, 3, 5]
    assert scene.metal.tolist() == [0, 1, 1, 0, 1]


def test_a_scene_file_tells_what_is_in_each_picture():
    arrays = made()
    there = np.arange(5) < arrays["count"][:, None]
    for name in ("pos", "world", "yaw", "visible"):
        assert arrays[name].dtype == np.float32
        assert (np.isfinite(arrays[name]).reshape(6, 5, -1).all(-1) == there).all()
    assert ((arrays["color"] >= 0) == there).all()
    assert ((arrays["metal"] >= 0) == there).all()
    assert len(set(arrays["color_names"])) == 8
    assert arrays["images"].shape == (6, SIZE, SIZE, 3)
    again, other, told = made.__wrapped__(), made(seed=4), []
    assert all(np.array_equal(arrays[k], again[k], equal_nan=arrays[k].dtype.kind == "f") for k in arrays)
    assert not np.array_equal(arrays["images"], other["images"])
    make_scenes(paint, 2, seed=0, size=SIZE, progress=told.append)
    assert told == [1, 2]


def packed(arrays):
    """The same scenes with lossless WebP pictures."""
    pieces = []
    for image in arrays["images"]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True)
        pieces.append(buffer.getvalue())
    offset = np.cumsum([0, *map(len, pieces)])
    told = {key: arrays[key] for key in ("pos", "color", "metal")}
    return {"webp": np.frombuffer(b"".join(pieces), np.uint8), "offset": offset, **told}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, arrays = tmp_path_factory.mktemp("scenes"), made()
    np.savez(folder / "images.npz", **arrays)
    np.savez(folder / "webp.npz", **packed(arrays))
    return folder / "images.npz", folder / "webp.npz"


def test_both_kinds_of_file_give_the_same_arrays(files):
    plain, webp = (prepare([file], 12, test=1, detector=2) for file in files)
    parts, looks = ("detector_", "test_"), ("colors", "metals")
    assert set(plain) == {"captions", "images", "positions"} | {
        f"{part}{what}" for part in parts for what in ("images", "positions", *looks)
    }
    for name in plain:
        np.testing.assert_array_equal(plain[name], webp[name])
    scenes = made()
    box = scenes["images"].reshape(6, 12, 2, 12, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    for part, rows in {"": slice(0, 3), "detector_": slice(3, 5), "test_": slice(5, 6)}.items():
        np.testing.assert_allclose(plain[f"{part}images"], box[rows], atol=1)  # two roundings
        np.testing.assert_array_equal(plain[f"{part}positions"], scenes["pos"][rows])
        for name, what in (("colors", "color"), ("metals", "metal")) if part else ():
            np.testing.assert_array_equal(plain[f"{part}{name}"], scenes[what][rows])
    assert ((plain["captions"] != "").sum(1) == 4 * scenes["count"][:3]).all()


def test_files_follow_each_other(files):
    alone, both = prepare([files[0]], 12, test=1, detector=2), prepare([*files], 12, test=1, detector=2)
    assert both["images"].shape == (9, 3, 12, 12)
    np.testing.assert_array_equal(both["images"][:3], alone["images"])
    np.testing.assert_array_equal(both["images"][6:], alone["images"])
    np.testing.assert_array_equal(both["test_images"], alone["test_images"])


def test_refused_layouts_of_too_many_cubes():
    for count in (0, 6):
        with pytest.raises(ValueError, match="1 to 5 cubes"):
            sample_layout(np.random.default_rng(0), count)


def test_refused_files(files, tmp_path):
    with pytest.raises(ValueError, match=r"5000 scenes are kept.* only 12 in all.*benchmarks render --scenes"):
        prepare([*files], 12)
    bare, short = tmp_path / "bare.npz", tmp_path / "short.npz"
    np.savez(bare, pos=np.zeros((2, 5, 2)), offset=np.zeros(3))
    looks = {"color": np.zeros((2, 5), np.int8), "metal": np.zeros((2, 5), np.int8)}
    np.savez(short, images=made()["images"], pos=np.zeros((2, 5, 2)), **looks)
    with pytest.raises(ValueError, match=r"bare\.npz holds no scenes: it needs pos, color, metal, and either images"):
        prepare([files[0], bare], 12)
    with pytest.raises(ValueError, match=r"short\.npz has 6 pictures and positions for 2"):
        prepare([short], 12)
    result = run(prepare_cubes, bare, "--out", tmp_path / "out.npz")
    assert result.exit_code == 2
    assert result.stderr.startswith("benchmarks prepare:")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_refused_without_a_renderer(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    result = run(render_cubes, "--scenes", 1, "--out", tmp_path / "scenes.npz")
    assert result.exit_code == 2
    assert "pip install 'ppl-diffusion[render]'" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_rendering_writes_all_or_nothing(monkeypatch, tmp_path):
    out = tmp_path / "new" / "scenes.npz"
    monkeypatch.setattr(render_cubes, "Renderer", lambda size, samples, threads: paint)
    options = ("--scenes", 3, "--seed", 3, "--size", SIZE, "--out", out)
    result = run(render_cubes, *options)
    assert result.exit_code == 0, result.output
    assert "3 of 3 scenes" in result.stderr
    with np.load(out) as stored:
        assert set(stored) == set(made())
        np.testing.assert_array_equal(stored["images"], made()["images"][:3])
    before = out.read_bytes()

    def broken(scene, seed):
        raise OSError("no light")

    monkeypatch.setattr(render_cubes, "Renderer", lambda size, samples, threads: broken)
    assert run(render_cubes, *options).exit_code == 2
    assert [path.name for path in out.parent.iterdir()] == ["scenes.npz"]
    assert out.read_bytes() == before
