"""Captions as conditions: the encoder, the tokens, training on texts, files, and what is refused on one line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ppl_diffusion import Config, conjunction, load, save_weights, train
from ppl_diffusion.models.conditions import Captions, ConditionWarning, Positions, dump, encoder, parse
from ppl_diffusion.models.conditions.captions import words
from ppl_diffusion.models.conditions.encoder import MINILM, SIZE, embedding, embeddings
from ppl_diffusion.models.networks import EnergyUNet
from ppl_diffusion.potentials.expression import parse as expression
from ppl_diffusion.training.start import start_from

CATS = ("a cat on the left", "the left holds a cat", "on the left, a small cat")
DOGS = ("a dog on the right", "the right holds a dog", "on the right, a small dog")
CONFIG = Config(
    name="pets",
    data="npz",
    images="x",
    conditions={"captions": "captions"},
    network={"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 1},
    form="squared_distance",
    steps=250,
    batch=128,
    learning_rate=5e-3,
    warm_up=10,
    ema=0.99,
)
SEEN = Captions(MINILM, ("a", "cat", "dog"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The weight file of a model whose cats are on the left and whose dogs are on the right, one to three captions
    each."""
    folder, rng = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    cat = np.arange(400) % 2 == 0
    captions = np.array([[*(CATS if left else DOGS)[: rng.integers(1, 4)], "", ""][:3] for left in cat])
    x = 0.2 * rng.normal(size=(400, 2)) + np.where(cat, -1.0, 1.0)[:, None]
    np.savez(folder / "pets.npz", x=x, captions=captions)
    model = train(CONFIG, checkpoint=folder / "c.safetensors", data=folder / "pets.npz")
    return save_weights(model, folder / "pets.safetensors")


@pytest.mark.slow
def test_a_model_learns_from_captions_and_reads_them_in_wordings_of_its_own(pets):
    model = load(pets)
    parsed = expression('pets["a cat on the left"]', load=lambda name: model, known=["pets"])
    assert str(parsed) == "pets['a cat on the left']"
    named = {"cat": parsed, "dog": model.given("a dog on the right"), "any": model}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named["small cat"] = model.given("the left holds a small cat")  # words that it knows, in another order
    slopes = {k: float(p.value_and_grad(np.zeros((1, 2)), level=50)[1].sum()) for k, p in named.items()}
    right = 2 * model.schedule.alpha(50) / (0.04 * model.schedule.alpha(50) ** 2 + model.schedule.sigma(50) ** 2)
    assert slopes["cat"] == pytest.approx(right, rel=0.3), "up to the right, from cats to dogs"
    assert slopes["small cat"] == pytest.approx(right, rel=0.3)
    assert slopes["dog"] == pytest.approx(-right, rel=0.3)
    assert abs(slopes["any"]) < 0.3 * right


@pytest.mark.slow
def test_a_weight_file_tells_encoder_and_vocabulary(pets):
    model = load(pets)
    known = ("a", "cat", "dog", "holds", "left", "on", "right", "small", "the")
    assert model.conditions == Captions(MINILM, known)
    with pytest.warns(ConditionWarning, match="pets was trained on captions without the words huge, horse: ") as told:
        model.given("a Huge huge horse on the left")
    assert len(told) == 1
    assert told[0].filename == __file__


@pytest.mark.slow
def test_several_captions_are_one_call_of_the_network(pets):
    model = load(pets)
    rows = []
    model.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    x = np.random.default_rng(0).normal(size=(5, 2))
    parts = [model.given(text) for text in ("a cat on the left", "a dog", "a small cat")]
    together = conjunction(parts, model).energy(x, level=3)
    assert rows == [20]
    alone = [p.energy(x, level=3) for p in (*parts, model)]
    torch.testing.assert_close(together, sum(alone[:3]) - 2 * alone[3], rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_embeddings_are_those_of_sentence_transformers():
    """An independent implementation reads the same weights: the same directions, scaled to unit mean square."""
    texts = ["a red cube", "the left holds a shiny red block", "a cat"]
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(encoder._folder(MINILM)), device="cpu").encode(texts, convert_to_tensor=True)
    ours = embeddings(MINILM, texts)
    torch.testing.assert_close(ours / SIZE**0.5, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours[:1] / SIZE**0.5, theirs[1:], atol=1e-2)
    for text, row in zip(texts, ours, strict=True):
        torch.testing.assert_close(embedding(MINILM, text), row, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_tokens_are_stacked_as_embeddings_and_no_caption_is_zeros():
    stacked = SEEN.stack(["a cat", "", "a dog"], torch.device("cpu"))
    assert stacked.shape == (3, SIZE)
    assert not stacked[1].any()
    torch.testing.assert_close(stacked[0].square().mean(), torch.tensor(1.0))
    assert (stacked[0] - stacked[2]).square().mean() > 0.1


@pytest.mark.long
def test_the_encoder_is_read_quietly_and_offline_and_touches_no_global_state():
    code = """
import os, socket, sys, torch
def refused(*_): raise OSError("no network here")
socket.socket.connect = refused
torch.set_default_dtype(torch.float64)
before = torch.get_rng_state()
from ppl_diffusion.models.conditions.encoder import MINILM, embedding
found = embedding(MINILM, "a red cube")
assert embedding(MINILM, "a red cube") is found, "kept for later calls"
assert found.dtype == torch.float32 and torch.get_default_dtype() == torch.float64
assert torch.equal(before, torch.get_rng_state())
"""
    told = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_a_missing_extra_is_told_where_the_caption_is_given(monkeypatch):
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    encoder._cached_embedding.cache_clear()
    encoder._parts.cache_clear()
    assert not SEEN.stack([""], torch.device("cpu")).any(), "no caption needs no encoder"
    for act in (lambda: SEEN.token("pets", "a cat"), lambda: Captions.learned(np.array(["a cat"]), "f.npz")):
        with pytest.raises(ImportError, match=r"not installed: pip install 'ppl-diffusion\[text\]'$") as caught:
            act()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no encoder of captions is called 'word2vec'"):
        Captions("word2vec", ()).token("pets", "a cat")


def test_the_extra_of_the_package_is_the_one_that_is_named():
    assert all(find_spec(package) is not None for package, _ in encoder.PACKAGES.values())
    assert encoder.EXTRA == "pip install 'ppl-diffusion[text]'"


@pytest.mark.parametrize("values", [(3,), (), ("a cat", "a dog"), (None,)])
def test_what_is_no_caption_is_refused(values):
    with pytest.raises(TypeError, match=r'pets takes one caption: pets\.given\("a red cube on the left"\)'):
        SEEN.token("pets", *values)
    with pytest.raises(TypeError, match="takes one caption"):
        SEEN.token("pets", x=0.3)


@pytest.mark.parametrize("text", ["", "  ", "...", "_"])
def test_a_caption_without_words_is_refused(text):
    with pytest.raises(ValueError, match=r"has no words: .*, or pets for any picture"):
        SEEN.token("pets", text)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1, 2]),
        np.array([["a cat", ""], ["", ""]]),
        np.array([["a cat", ""], ["", "a dog"]]),
        np.array([[["a cat"]]]),
    ],
    ids=["numbers", "a picture without", "a gap", "three axes"],
)
def test_training_data_that_are_no_captions_are_refused(values):
    with pytest.raises(ValueError, match=r"captions in f\.npz must be texts \(n, most\)"):
        Captions.learned(values, "f.npz")


def test_each_caption_of_a_picture_is_drawn_equally_often_and_never_that_of_another(monkeypatch):
    module = sys.modules[Captions.__module__]
    monkeypatch.setattr(module, "embeddings", lambda name, texts: torch.tensor([[float(len(t))] for t in texts]))
    conditions, pick = Captions.learned(np.array([["a", "bb", "ccc"], ["dddd", "", ""]]), "f.npz")
    assert conditions.vocabulary == ("a", "bb", "ccc", "dddd")
    drawn = pick(torch.tensor([0, 1]).repeat(3000), torch.Generator().manual_seed(0)).reshape(-1, 2)
    assert (drawn[:, 1] == 4).all()
    counts = torch.bincount(drawn[:, 0].long(), minlength=4)[1:]
    assert counts.sum() == 3000
    assert ((counts - 1000).abs() < 5 * (3000 * 2 / 9) ** 0.5).all(), counts


def test_headers_come_back_as_they_went_and_others_are_refused():
    assert parse(dump(SEEN)) == SEEN
    assert json.loads(dump(SEEN)) == {"captions": {"encoder": MINILM, "vocabulary": ["a", "cat", "dog"]}}
    for wrong in ("[1]", "3", '{"encoder": 3, "vocabulary": []}', '{"encoder": "e", "vocabulary": [1]}'):
        with pytest.raises(ValueError):
            parse(f'{{"captions": {wrong}}}')


def test_words_are_those_of_a_reader():
    assert words("There, on the Left: a cube's corner!") == ["there", "on", "the", "left", "a", "cube's", "corner"]


SMALL = {"widths": (8, 16), "blocks": 1}


def test_a_token_is_drawn_into_the_picture_where_it_asks_for_something():
    torch.manual_seed(0)
    network = EnergyUNet((1, 16, 16), token_size=5, token_map=3, **SMALL)
    assert network.map is not None
    h, tokens = torch.zeros(2, 7, 8, 8), torch.stack([torch.zeros(5), torch.randn(5)])
    drawn = network.map(tokens, h)
    assert drawn.shape == (2, 3, 8, 8)
    assert not drawn[0].any(), "zeros are no condition"
    assert drawn[1].std((1, 2)).min() > 0, "it differs from place to place"
    torch.testing.assert_close(network.map(tokens[1:], h), drawn[1:].expand(2, -1, -1, -1))
    for level in (torch.zeros(1), torch.zeros(2)):
        out = network(torch.randn(2, 1, 16, 16), level, tokens)
        assert out.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="give token_size="):
        EnergyUNet((1, 16, 16), token_map=3, **SMALL)


def test_training_starts_from_a_network_with_other_conditions():
    torch.manual_seed(0)
    old = EnergyUNet((1, 16, 16), positions=True, **SMALL)
    new = EnergyUNet((1, 16, 16), token_size=5, token_map=3, **SMALL)
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    start_from(new, old.state_dict())
    for name, value in new.state_dict().items():
        if name.startswith(("embedding.tokens.", "map.")):
            assert torch.equal(value, fresh[name]), name
        elif name == "enter.weight":
            assert torch.equal(value[:, :4], old.enter.weight[:, :4])
            assert torch.equal(value[:, 4:], fresh[name][:, 4:])
        else:
            assert torch.equal(value, old.state_dict()[name]), name
    same = EnergyUNet((1, 16, 16), positions=True, **SMALL)
    start_from(same, old.state_dict())
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in same.state_dict().items())
    for other in (
        EnergyUNet((1, 16, 16), widths=(8, 24), blocks=1),
        EnergyUNet((1, 16, 16), widths=(16, 16), blocks=1),
    ):
        with pytest.raises(RuntimeError):
            start_from(other, old.state_dict())


def test_kinds_of_conditions_do_not_read_each_others_brackets():
    with pytest.raises(TypeError, match="takes one caption"):
        SEEN.token("pets", *SEEN.arguments("pets", [0.3, 0.6])[0])
    with pytest.raises(TypeError, match="takes a position"):
        Positions(0.1, 0.9).arguments("cubes", ["a red cube"])
