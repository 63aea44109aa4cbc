"""Captions of scenes: they are true, in many words, and what is held out is not said; pictures are judged by them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.cube_factory import layouts
from benchmarks.cube_factory.captions import (
    COLOR_WORDS,
    HELD,
    HELD_WORDINGS,
    MATERIAL_WORDS,
    POOL,
    REGIONS,
    WORDINGS,
    Meaning,
    captions_of,
    phrases,
    places_of,
    pool,
)
from benchmarks.cube_factory.detector import load_detector
from benchmarks.cube_factory.layouts import meanings, teach, what, where
from benchmarks.cube_factory.looks import Cube, describe, load_looks, says
from benchmarks.cube_factory.scenes import COLORS
from benchmarks.cube_factory.train_detector import to_range
from benchmarks.cube_factory.train_looks import accuracy
from benchmarks.harness import Record
from benchmarks.pictures import captions
from benchmarks.pictures.album import album
from benchmarks.pictures.asking import ROWS, Asked, asked, plain
from ppl_diffusion import EnergyModel, NoiseSchedule, save_weights
from ppl_diffusion.models.conditions import Captions
from ppl_diffusion.models.conditions.captions import words
from ppl_diffusion.models.conditions.encoder import MINILM, SIZE, embeddings
from ppl_diffusion.models.drawing import MAP_SIDE, TokenMap
from ppl_diffusion.models.networks import build_network

SCENES = Path(__file__).parent.parent / "data" / "cubes32_test.npz"
MEANINGS = [
    meaning
    for color in ("", *COLOR_WORDS)
    for material in ("", *MATERIAL_WORDS)
    for place in ("", *REGIONS)
    if (meaning := Meaning(color, material, place)) != Meaning() and not meaning.held
]
SAID = {text: meaning for meaning in MEANINGS for text in pool(meaning)}
"""All captions of the training data, and what they mean."""


def test_no_caption_has_two_meanings_and_all_meanings_are_said():
    assert sum(len(pool(meaning)) for meaning in MEANINGS) == len(SAID)
    assert all(2 <= len(pool(meaning)) <= POOL for meaning in MEANINGS)
    assert {"a red metal cube on the left", "the left holds a shiny red block"} <= set(
        phrases(Meaning("red", "metal", "left"))
    )


@pytest.mark.parametrize("text", ["a red metal cube on the left", "a matt grey block", "at the top, a cube"])
def test_a_caption_says_what_it_says(text):
    meaning = next(m for m in MEANINGS if text in phrases(m))
    expected = {
        "a red metal cube on the left": Meaning("red", "metal", "left"),
        "a matt grey block": Meaning("gray", "rubber"),
        "at the top, a cube": Meaning(place="back"),
    }
    assert meaning == expected[text]


def scenes(n, seed=0):
    rng = np.random.default_rng(seed)
    colors, metals = rng.integers(8, size=(n, 5)), rng.integers(2, size=(n, 5))
    colors[np.arange(5) >= rng.integers(1, 6, size=n)[:, None]] = -1
    return colors, metals, rng.uniform(0.12, 0.88, size=(n, 5, 2))


def is_true(text, scene):
    return any(
        color >= 0 and SAID[text].holds(list(COLORS)[color], list(MATERIAL_WORDS)[metal], position)
        for color, metal, position in zip(*scene, strict=True)
    )


def test_captions_of_a_scene_are_true_of_it_and_those_of_another_mostly_are_not():
    arrays = scenes(200)
    texts = captions_of(*arrays)
    assert texts.shape == (200, 20)
    assert ((texts != "").sum(1) == 4 * (arrays[0] >= 0).sum(1)).all()
    truths = {0: [], 1: []}
    for shift, told in truths.items():
        for row, scene in zip(np.roll(texts, shift, axis=0), zip(*arrays, strict=True), strict=True):
            told += [is_true(text, scene) for text in row if text]
    assert all(truths[0])
    assert np.mean(truths[1]) < 0.5
    np.testing.assert_array_equal(texts, captions_of(*arrays))
    assert (texts != captions_of(*arrays, seed=1)).mean() > 0.3


def test_every_wording_is_used_and_what_is_held_out_is_not_said():
    told = set(captions_of(*scenes(1000)).ravel()) - {""}
    assert told <= set(SAID)
    for wording in WORDINGS:
        assert any(text in told for text in phrases(Meaning("red", place="left"), [wording]))
    for color, material, side in HELD:
        assert Meaning(color, material, side).held
        assert Meaning(color, material, f"back {side}").held
        assert not Meaning(color, "", side).held
        assert not any(
            {SAID[text].color, SAID[text].material} == {color, material} and side in SAID[text].place.split()
            for text in told
        )
    held = {text for meaning in MEANINGS if meaning.place for text in phrases(meaning, HELD_WORDINGS)}
    assert not held & set(SAID)
    known = {word for text in SAID for word in words(text)}
    assert {word for text in held for word in words(text)} <= known, "other wordings, but of known words"


def test_places_are_regions_of_the_picture():
    assert places_of((0.2, 0.5)) == ["left"]
    assert places_of((0.2, 0.2)) == ["left", "back", "back left"]
    assert places_of((0.5, 0.5)) == ["middle"]
    assert places_of((0.5, 0.8)) == ["front"]
    near = Meaning("red", "metal", "left")
    assert near.holds("red", "metal", (0.39, 0.9), slack=0.02)
    assert not near.holds("red", "metal", (0.39, 0.9))
    assert not near.holds("blue", "metal", (0.2, 0.9))
    assert not near.holds("red", "rubber", (0.2, 0.9))


CUBES = [Cube("red", "rubber", np.array([0.2, 0.2])), Cube("blue", "metal", np.array([0.8, 0.8]))]


def test_what_was_asked_for_is_judged_by_and_or_and_not():
    left, right, metal = Meaning("red", "rubber", "left"), Meaning("blue", "metal", "right"), Meaning(material="metal")
    wrong = Meaning("red", "metal", "left")
    assert says(CUBES, left)
    assert not says(CUBES, wrong)
    for right_, case in (
        (True, Asked(every=(plain(left), plain(right)))),
        (False, Asked(every=(plain(left), plain(wrong)))),
        (True, Asked(either=(plain(wrong), plain(right)))),
        (False, Asked(either=(plain(wrong), plain(Meaning("green"))))),
        (False, Asked(every=(plain(left),), never=(plain(metal),))),
        (True, Asked(every=(plain(left),), never=(plain(Meaning("green")),))),
    ):
        assert case.shown(CUBES) == right_, case
    assert not Asked(every=(plain(left),)).shown([])


@pytest.mark.parametrize("row", ROWS)
def test_a_case_asks_the_same_every_time_and_others_ask_for_other_things(row):
    assert asked(row, 0) == asked(row, 0)
    assert len({str(asked(row, case)) for case in range(8)}) == (2 if row == "held-out combinations" else 8)
    for case in range(8):
        found = asked(row, case)
        meanings = [meaning for meaning, _ in (*found.every, *found.either)]
        assert len({meaning.color for meaning in meanings}) == len({m.place for m in meanings}) == len(meanings)
        assert all(meaning.held == (row == "held-out combinations") for meaning in meanings)
        unseen = {word for m, text in found.every for word in words(text)} - {w for t in SAID for w in words(t)}
        assert bool(unseen) == (row == "words never seen")


@pytest.fixture(scope="module")
def looked():
    with np.load(SCENES) as stored:
        arrays = dict(stored)
    return arrays, describe(load_detector(), load_looks(), to_range(arrays["images"]).numpy())


def test_looks_of_the_cubes_of_rendered_scenes_are_told(looked):
    arrays, seen = looked
    truth = (arrays["positions"], arrays["colors"], arrays["metals"])
    right = accuracy(seen, *truth)
    assert right["cubes"] == right["found"] * 30 == 30
    assert min(right["colour"], right["material"]) >= 0.9
    wrong = accuracy(seen[1:] + seen[:1], *truth)
    assert wrong["both"] < 0.2, "those of another scene"


def test_pictures_that_are_not_finite_or_empty_show_nothing(looked):
    arrays, seen = looked
    pictures = to_range(arrays["images"]).numpy()
    pictures[0, 0, 0, 0] = np.nan
    again = describe(load_detector(), load_looks(), pictures)
    assert again[0] == []
    assert [len(cubes) for cubes in again[1:]] == [len(cubes) for cubes in seen[1:]]
    assert describe(load_detector(), load_looks(), np.full((2, 3, 32, 32), -0.03)) == [[], []]


def test_an_album_has_a_line_for_each_row():
    rows = {"one": {"reverse": np.zeros((2, 3, 8, 8)), "HMC": np.full((2, 3, 8, 8), np.nan)}}
    figure = album(rows, {"one": "a red cube"})
    assert isinstance(figure, Figure)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["", "reverse", "", "HMC", ""]
    assert "a red cube" in figure.axes[0].texts[0].get_text()


def test_a_drawing_is_about_one_in_the_place_and_names_what_is_there():
    drawn = where(Meaning(place="back left"))
    assert drawn.shape == (MAP_SIDE, MAP_SIDE)
    assert drawn[1, 1] > 0.8 > 0.1 > max(drawn[0, -1], drawn[-1, 0], drawn[-1, -1])
    assert where(Meaning("red")).std() < 1e-6, "anywhere"
    torch.testing.assert_close(where(Meaning(place="left")).flip(1), where(Meaning(place="right")), atol=1e-5, rtol=0)
    vectors = torch.stack([what(meaning) for meaning in meanings()])
    assert len(torch.unique(vectors, dim=0)) == 9 * 3, "colours and materials, and each of them left out"


@pytest.mark.long
def test_a_map_is_taught_what_captions_mean_also_in_wordings_that_are_held_out(monkeypatch):
    monkeypatch.setattr(layouts, "STEPS", 200)
    asked = [Meaning("red", "metal", "left"), Meaning("blue", "rubber", "right"), Meaning("green", "metal", "front")]
    said = {text: meaning for meaning in asked for text in pool(meaning)}
    torch.manual_seed(0)
    network = TokenMap(SIZE, layouts.CHANNELS)
    assert teach(network, list(said), list(said.values())) < 0.1
    for meaning in asked:
        for text in phrases(meaning, HELD_WORDINGS)[:3]:
            tokens = embeddings(MINILM, [text])
            looks = [(network.what(tokens)[0].detach() - what(other)).norm() for other in asked]
            places = [(network.where(tokens)[0].detach() - where(other).flatten()).norm() for other in asked]
            assert np.argmin([float(v) for v in looks]) == np.argmin([float(v) for v in places]) == asked.index(meaning)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The weight file of a small model of pictures by caption that has learned nothing."""
    options = {"kind": "unet", "shape": [3, 32, 32], "widths": [8, 8], "blocks": 1, "token_size": SIZE, "token_map": 2}
    model = EnergyModel(
        build_network(**options),
        form="squared_norm",
        schedule=NoiseSchedule.cosine(100),
        event_shape=(3, 32, 32),
        conditions=Captions(MINILM, ("a", "cube")),
        name="untrained",
        info={"network": json.dumps(options), "steps": "0", "loss": "1"},
    )
    return save_weights(model, tmp_path_factory.mktemp("model") / "untrained.safetensors")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ppl_diffusion.models.conditions.ConditionWarning")
@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
def test_the_benchmark_goes_on_case_by_case_and_judges_what_is_kept(untrained, tmp_path, monkeypatch):
    record = Record(tmp_path / "results", tmp_path / "runs")
    options = {"rows": ["two joined", "nested"], "samplers": ["reverse", "weighted HMC"], "cases": 2, "chains": 2}
    options |= {"rungs": 8, "model": str(untrained)}
    real, made = captions.draw, []

    def draw(row, case, sampler, **settings):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append((row, case, sampler))
        return real(row, case, sampler, **settings)

    monkeypatch.setattr(captions, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        captions.main(record, **options)
    assert not record.read("captions")
    captions.main(record, **options, judge_only=True)
    told = record.read("captions")["rows"]
    assert told["two joined"]["samplers"]["reverse"]["pictures"] == 4
    assert told["nested"]["samplers"]["weighted HMC"]["pictures"] == 2
    made.clear()
    captions.main(record, **options)
    assert len(made) == 3, "what was kept is not drawn again"
    rows = record.read("captions")["rows"]
    for row in rows.values():
        assert row["samplers"]["reverse"]["evaluations"] == 8
        assert 28 <= row["samplers"]["weighted HMC"]["evaluations"] <= 40
        assert all(figures["right"]["mean"] == 0 for figures in row["samplers"].values()), "it has learned nothing"
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "captions.json",
        "captions.png",
        "captions_tapestry.png",
    }
    record.forget()
    drawn = (tmp_path / "results" / "captions.png").stat().st_mtime_ns
    captions.main(record, **{**options, "samplers": ["ULA"], "cases": 1})
    again = record.read("captions")["rows"]
    assert [set(again[row]["samplers"]) - set(rows[row]["samplers"]) for row in rows] == [{"ULA"}] * len(rows)
    assert [again[row]["by chance"] for row in rows] == [rows[row]["by chance"] for row in rows]
    assert (tmp_path / "results" / "captions.png").stat().st_mtime_ns == drawn, "it shows all samplers"


def test_pictures_are_kept_as_bytes_and_counted_as_they_were_asked_for():
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4))
    stored = np.round(127.5 * (pictures + 1)).astype(np.uint8)
    kept = {"pictures": base64.b64encode(stored.tobytes()).decode(), "finite": [True, False]}
    again = captions.pictures_of(kept, (3, 4, 4))
    np.testing.assert_allclose(again[0], pictures[0], atol=1 / 255)
    assert np.isnan(again[1]).all()
    (meaning, _), *_ = asked("one caption", 0).every
    cube = Cube(meaning.color, meaning.material, np.mean(REGIONS[meaning.place], axis=1))
    parts = {0: {"acceptance": [0.5, 0.7], "evaluations": 10}}
    told = captions.judge("one caption", parts, {0: [[cube], [], [cube], [cube]]})
    assert (told["right"]["mean"], told["pictures"], told["evaluations"]) == (0.75, 4, 10)
    assert told["acceptance"] == pytest.approx(0.6)
    other = cube._replace(material="metal" if meaning.material == "rubber" else "rubber")
    dull = captions.judge("one caption", parts, {0: [[other], []]})
    assert (dull["right"]["mean"], dull["but for material"]) == (0, 0.5)
    seen = {"one caption": {"HMC": {0: [[], []]}}, "either": {"HMC": {0: [[cube], []]}}}
    assert captions.by_chance("one caption", seen) == 0.5
