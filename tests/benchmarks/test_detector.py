"""The detector that judges composed pictures: it finds the cubes of rendered scenes, and rejects wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cube_factory.detector import RADIUS, Detector, load_detector, matched, matched_exactly, served
from benchmarks.cube_factory.train_detector import (
    GHOST,
    accuracy,
    elsewhere,
    targets,
    to_range,
    with_blobs,
    with_decoys,
)

SCENES = Path(__file__).parent.parent / "data" / "cubes32_test.npz"
"""The first two test scenes of each number of cubes; the detector was not trained on them."""


@pytest.fixture(scope="module")
def scenes():
    with np.load(SCENES) as stored:
        return to_range(stored["images"]), stored["positions"]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector()


def places(positions):
    return positions[np.isfinite(positions[:, 0])]


def seeded():
    return np.random.default_rng(0)


def test_finds_the_cubes_and_no_others(detector, scenes):
    pictures, positions = scenes
    found = detector.locate(pictures)
    assert [len(f) for f in found] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(matched_exactly(f, p) for f, p in zip(found, positions, strict=True))


def test_wrong_twin_positions_of_other_scenes_and_shifted_ones(detector, scenes):
    pictures, positions = scenes
    found = detector.locate(pictures)
    assert not any(matched_exactly(f, p) for f, p in zip(found, np.roll(positions, 1, axis=0), strict=True))
    for shift in ([0.12, 0], [0, -0.12], [0.09, 0.09]):
        assert not any(matched_exactly(f, p + np.array(shift)) for f, p in zip(found, positions, strict=True))
    assert not any(matched(f, [q]) for f, p in zip(found, positions, strict=True) for q in elsewhere(p, seeded()))


def test_a_cube_painted_over_is_missed(detector, scenes):
    pictures, positions = scenes
    picture, place = pictures[:1].clone(), places(positions[0])[0]
    column, row = (place * 32).astype(int)
    picture[:, :, max(row - 5, 0) : row + 6, max(column - 5, 0) : column + 6] = picture[:, :, :3, :3].mean((2, 3))[
        ..., None, None
    ]
    assert not matched(detector.locate(picture)[0], [place])


def test_no_cube_in_an_empty_scene(detector, scenes):
    empty = scenes[0].median(0).values[None]
    assert [f.shape for f in detector.locate(empty)] == [(0, 2)]


def test_blobs_are_where_they_are_put():
    bare, centre = torch.full((1, 3, 32, 32), 0.9), torch.tensor([[0.2, 0.7]])
    painted = with_blobs(bare, centre, torch.Generator().manual_seed(0))
    row, column = divmod(int((bare - painted)[0].sum(0).argmax()), 32)
    assert (column, row) == (6, 22)


def test_a_faded_cube_is_no_longer_listed_and_the_others_are_as_they_were(scenes):
    pictures, positions = scenes
    x, where, bare = pictures.repeat(8, 1, 1, 1), torch.from_numpy(positions).repeat(8, 1, 1), pictures.median(0).values
    shown, left = with_decoys(x, where, bare, torch.Generator().manual_seed(0))
    faded, blobs = 0, 0
    for before, after, was, now in zip(x, shown, where, left, strict=True):
        for place, kept in zip(was[~was.isnan().any(1)], now[~was.isnan().any(1)], strict=True):
            column, row = (place * 32).long().clamp(max=31).tolist()
            if kept.isnan().any():
                faded += 1
                ghost = (after - bare)[:, row, column].abs()
                assert bool((ghost <= GHOST * (before - bare)[:, row, column].abs() + 1e-2).all())
            else:
                torch.testing.assert_close(after[:, row, column], before[:, row, column], atol=0.25, rtol=0)
        blobs += not bool(now.isnan().ne(was.isnan()).any()) and bool((after != before).any())
    assert 5 < faded < 40
    assert 10 < blobs < 50


def test_blobs_and_ghosts_are_no_cubes(detector, scenes):
    pictures, _ = scenes
    bare, rng = pictures.median(0).values, torch.Generator().manual_seed(1)
    centres = 0.12 + 0.76 * torch.rand(60, 2, generator=rng)
    taken = [len(f) > 0 for f in detector.locate(with_blobs(bare.expand(60, -1, -1, -1), centres, rng))]
    assert np.mean(taken) < 0.1
    assert not any(len(f) for f in detector.locate(bare + 0.1 * (pictures - bare)))


def test_mirrored_pictures_have_mirrored_cubes(detector, scenes):
    pictures, positions = scenes
    found = detector.locate(pictures.flip(3))
    assert all(matched_exactly(f, [1, 0] + p * [-1, 1]) for f, p in zip(found, positions, strict=True))


def test_noise_of_a_sampler_and_what_oversteps_the_range_are_borne(detector, scenes):
    pictures, positions = scenes
    noisy = pictures + 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    found = detector.locate(noisy.numpy())
    assert sum(matched_exactly(f, p) for f, p in zip(found, positions, strict=True)) >= 9


def test_one_picture_alone_or_with_others_as_array_or_tensor_of_twice_the_side(detector, scenes):
    pictures = scenes[0]
    large = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for one, other in zip(detector.locate(pictures.numpy()), detector.locate(large.double()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(detector.locate(pictures[3:4])[0], detector.locate(pictures)[3], atol=1e-4)
    assert detector.locate(pictures[:0]) == []


def test_a_cube_serves_one_position_only():
    cube, pair = [[0.5, 0.5]], [[0.46, 0.5], [0.54, 0.5]]
    assert matched(cube, pair[:1])
    assert matched(cube, pair[1:])
    assert not matched(cube, pair)
    assert served(cube, pair) == 1
    assert served(pair, cube) == 1


def test_matching_is_not_greedy():
    """The cube nearest to the first position is the only one close enough to the second."""
    found, wanted = [[0.50, 0.5], [0.44, 0.5]], [[0.49, 0.5], [0.55, 0.5]]
    assert matched_exactly(found, wanted)


def test_others_are_told_apart():
    found, wanted = [[0.2, 0.2], [0.8, 0.8]], [[0.8, 0.79]]
    assert matched(found, wanted)
    assert not matched_exactly(found, wanted)
    assert matched_exactly(found, [*wanted, [0.2, 0.21]])
    assert matched_exactly([], [])
    assert matched(found, [])
    assert not matched_exactly(found, [])
    assert not matched([], wanted)


def test_the_radius_is_a_radius():
    assert matched([[0.5, 0.5]], [[0.5, 0.5 + 0.99 * RADIUS]])
    assert not matched([[0.5, 0.5]], [[0.5 + 0.99 * RADIUS, 0.5 + 0.99 * RADIUS]])
    assert matched([[0.5, 0.5]], [[0.7, 0.5]], radius=0.21)


def test_positions_that_pad_are_no_positions():
    assert matched_exactly([[0.3, 0.4]], [[0.3, 0.4], [np.nan, np.nan]])


def test_accuracy_sees_a_miss_and_an_invention(scenes):
    positions = scenes[1]
    truth = [places(p) for p in positions]
    assert accuracy(truth, positions)["is there a cube"] == accuracy(truth, positions)["all found, no others"] == 1
    missed = accuracy([t[1:] for t in truth], positions)
    assert missed["said yes at a cube"] == pytest.approx(20 / 30)
    assert missed["count right"] == missed["all found"] == 0
    invented = accuracy(
        [np.vstack([t, elsewhere(p, seeded())[:1]]) for t, p in zip(truth, positions, strict=True)], positions
    )
    assert invented["all found"] == 1
    assert invented["all found, no others"] == invented["count right"] == 0


def test_targets_peak_at_the_centre_and_point_to_it():
    heat, way = targets(torch.tensor([[[0.25, 0.5], [torch.nan, torch.nan]]]))
    row, column = divmod(int(heat[0].argmax()), 32)
    assert (column + 0.5 + way[0, 0, row, column], row + 0.5 + way[0, 1, row, column]) == (8, 16)
    assert heat[0].sum() == pytest.approx(2 * np.pi, rel=0.01)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x[0], r"picture\[None\]"),
        (lambda x: x.transpose(0, 2, 3, 1), "channels last"),
        (lambda x: x[:, :, :28, :28], r"\(n, 3, 32, 32\)"),
        (lambda x: (127.5 * (x + 1)).astype(np.uint8), r"pictures / 127.5 - 1"),
        (lambda x: 127.5 * (x + 1), r"far from \[-1, 1\].*clip"),
        (lambda x: np.where(np.arange(10)[:, None, None, None] == 3, np.nan, x), "1 of 10 pictures hold NaN"),
        (lambda x: np.where(x > 0, np.inf, x), "infinity.*isfinite"),
    ],
)
def test_bad_pictures_are_refused(detector, scenes, spoil, words):
    with pytest.raises(ValueError, match=words):
        detector.locate(spoil(scenes[0].numpy()))


def test_bad_positions_are_refused():
    with pytest.raises(ValueError, match=r"wanted has shape \(2,\).*give \[\(x, y\)\]"):
        matched([[0.5, 0.5]], [0.5, 0.5])
    with pytest.raises(ValueError, match="found has shape"):
        matched(np.zeros((4, 3)), [[0.5, 0.5]])
    with pytest.raises(ValueError, match="radius is 0"):
        matched([[0.5, 0.5]], [[0.5, 0.5]], radius=0)


def test_weights_that_are_missing_or_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"benchmarks detector --data"):
        load_detector(tmp_path / "none.safetensors")
    other = Path(__file__).parents[2] / "ppl_diffusion" / "weights" / "ring.safetensors"
    with pytest.raises(ValueError, match="no cube detector"):
        load_detector(other)


def test_weights_say_where_they_come_from(detector):
    assert detector.info["command"].startswith("python -m benchmarks detector --data")
    assert {"versions", "epochs", "seed", "loss", "exact on held scenes"} <= set(detector.info)
    assert 0 < detector.threshold < 1
