"""Kinds of conditions: each owns its tokens, its place in files and data, and its form in brackets."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from ppl_diffusion import Config, conjunction, load, save_weights, train
from ppl_diffusion.models.conditions import KINDS, Classes, Conditions, ConditionWarning, Positions, dump, parse
from ppl_diffusion.models.conditions.base import stacked
from ppl_diffusion.models.library import names
from ppl_diffusion.potentials.common_ground import warn_outside
from ppl_diffusion.potentials.expression import parse as expression


@dataclass(frozen=True)
class Words(Conditions):
    """A third kind: one word of a list, as a vector of as many numbers; it is known to this file only."""

    kind: ClassVar[str] = "words"

    known: tuple[str, ...]

    @property
    def anything(self):
        return (0.0,) * len(self.known)

    @property
    def options(self):
        return {"token_size": len(self.known)}

    def token(self, model, *values, **named):
        if len(values) != 1 or named or values[0] not in self.known:
            raise ValueError(f"{model} takes one word of {', '.join(self.known)}: use .given('{self.known[0]}')")
        return tuple(float(word == values[0]) for word in self.known), repr(values[0])

    def content(self):
        return list(self.known)

    @classmethod
    def restored(cls, content):
        return cls(tuple(content))

    @classmethod
    def learned(cls, values, source):
        if values.dtype.kind != "U":
            raise ValueError(f"words in {source} must be texts, got {values.dtype}")
        known, which = np.unique(values, return_inverse=True)
        tokens = torch.eye(len(known))[torch.from_numpy(which)]
        return cls(tuple(map(str, known))), lambda index, generator: tokens[index]

    def __str__(self):
        return f"words {', '.join(self.known)}"


OWN = (*KINDS, Words)
CONFIG = Config(
    name="pets",
    data="npz",
    images="x",
    conditions={"words": "word"},
    network={"kind": "mlp", "size": 2, "width": 16, "hidden": 16, "blocks": 1},
    form="squared_distance",
    steps=250,
    batch=128,
    learning_rate=5e-3,
    warm_up=10,
    ema=0.99,
)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The weight file of a model whose cats are on the left and whose dogs are on the right."""
    folder = tmp_path_factory.mktemp("pets")
    words = np.array(["cat", "dog"])[np.arange(400) % 2]
    x = 0.2 * np.random.default_rng(0).normal(size=(400, 2)) + np.where(words == "cat", -1.0, 1.0)[:, None]
    np.savez(folder / "pets.npz", x=x, word=words)
    model = train(CONFIG, checkpoint=folder / "c.safetensors", data=folder / "pets.npz", kinds=OWN)
    return save_weights(model, folder / "pets.safetensors")


def test_a_third_kind_is_trained_stored_and_written_in_brackets(pets):
    model = load(pets, kinds=OWN)
    assert model.conditions == Words(("cat", "dog"))
    assert json.loads(model.info["config"])["conditions"] == {"words": "word"}
    parsed = expression("pets['cat']", load=lambda name: model, known=["pets"])
    slopes = {
        which: float(p.value_and_grad(np.zeros((1, 2)), level=50)[1].sum())
        for which, p in {"cat": parsed, "dog": model.given("dog"), "any": model}.items()
    }
    right = 2 * model.schedule.alpha(50) / (0.04 * model.schedule.alpha(50) ** 2 + model.schedule.sigma(50) ** 2)
    assert slopes["cat"] == pytest.approx(right, rel=0.3), "up to the right, from cats to dogs"
    assert slopes["dog"] == pytest.approx(-right, rel=0.3)
    assert abs(slopes["any"]) < 0.3 * right
    assert str(parsed) == "pets['cat']"


def test_tokens_of_a_third_kind_are_stacked_into_one_call(pets):
    model = load(pets, kinds=OWN)
    rows = []
    model.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    x = np.random.default_rng(0).normal(size=(5, 2))
    together = conjunction([model.given("cat"), model.given("dog")], model).energy(x, level=3)
    assert rows == [15]
    alone = [p.energy(x, level=3) for p in (model.given("cat"), model.given("dog"), model)]
    torch.testing.assert_close(together, alone[0] + alone[1] - alone[2], rtol=1e-5, atol=1e-4)


def test_conditions_that_nobody_uses_any_more_are_freed():
    """They may hold a pipeline of gigabytes."""

    class Heavy(Classes):
        pass

    conditions = Heavy(3)
    once = stacked(conditions, [0, 2], [1, 2], torch.device("cpu"))
    assert once.tolist() == stacked(conditions, [0, 2], [1, 2], torch.device("cpu")).tolist() == [0, 2, 2]
    once.zero_()
    assert stacked(conditions, [0, 2], [1, 2], torch.device("cpu")).tolist() == [0, 2, 2], "a copy was modified"
    for label in range(200):
        stacked(conditions, [0, 2], [1, label + 1], torch.device("cpu"))
    gone = weakref.ref(conditions)
    del conditions
    gc.collect()
    assert gone() is None


def test_code_without_a_module_is_warned_too():
    names = {"warn": warn_outside}
    with pytest.warns(ConditionWarning, match="look here"):
        exec("warn('look here', kind)", names | {"kind": ConditionWarning})


def test_kinds_are_passed_and_not_left_behind(pets):
    for act in (lambda: load(pets), lambda: parse('{"words": ["cat"]}')):
        with pytest.raises(ValueError, match=r"no kind of condition is called 'words': use one of .*kinds=\(\*KINDS"):
            act()


@pytest.mark.parametrize("brackets", ["'cow'", "3", "'cat', 'dog'"])
def test_what_is_not_a_condition_of_the_kind_is_refused_in_its_words(pets, brackets):
    model = load(pets, kinds=OWN)
    with pytest.raises(ValueError, match="at position 1: pets takes one word of cat, dog") as caught:
        expression(f"pets[{brackets}]", load=lambda name: model, known=["pets"])
    assert "\n" not in str(caught.value)


def test_a_model_has_conditions_of_one_kind(pets):
    data, checkpoint = pets.parent / "pets.npz", pets.parent / "none.safetensors"
    with pytest.raises(ValueError, match="conditions of one kind, not of words and positions"):
        train(replace(CONFIG, positions="x"), checkpoint=checkpoint, data=data, kinds=OWN)
    with pytest.raises(ValueError, match=r"words in .* must be texts, got float64"):
        train(replace(CONFIG, conditions={"words": "x"}), checkpoint=checkpoint, data=data, kinds=OWN)


@pytest.mark.parametrize("conditions", [Classes(0), Classes(7), Positions(0.1, 0.9), Words(("a", "b"))])
def test_conditions_come_back_from_a_header_as_they_went(conditions):
    assert parse(dump(conditions), OWN) == conditions


def test_headers_are_written_as_they_were():
    assert dump(Classes(10)) == '{"classes": 10}'
    assert dump(Positions(0.25, 0.75)) == '{"positions": [0.25, 0.75]}'


@pytest.mark.parametrize(
    "text", ["3", "{}", '{"classes": "ten"}', '{"classes": -1}', '{"positions": 3}', '{"positions": [1]}', "[1, 2]"]
)
def test_headers_that_describe_no_conditions_are_refused(text):
    with pytest.raises(ValueError):
        parse(text)


def test_shipped_models_say_what_they_are_and_warn_of_nothing():
    kinds = {name: load(name).conditions.kind for name in names()}
    assert {name for name, kind in kinds.items() if kind == "positions"} == {"cubes", "cubes64"}
    assert kinds["captions"] == "captions"
    assert load("digits").conditions == Classes(10)
    for name in names():
        assert (load(name).doubts() == ()) == (load(name).form != "classifier"), "which is nothing without a label"


def test_brackets_are_read_by_the_kind():
    digits, cubes = Classes(10), Positions(0.1, 0.9)
    assert digits.arguments("digits", [3]) == ((3,), {})
    assert cubes.arguments("cubes", [0.3, 0.6]) == ((), {"x": 0.3, "y": 0.6})
    for wrong in ([3], [0.1, 0.2, 0.3], ["a", "b"]):
        with pytest.raises(TypeError, match=r"cubes\[0\.3, 0\.6\], which is cubes\.given\(x=0\.3, y=0\.6\)"):
            cubes.arguments("cubes", wrong)
    with pytest.warns(ConditionWarning, match="has seen positions"):
        load("cubes").in_brackets(0.02, 0.5)
