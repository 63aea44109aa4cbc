"""Expressions drawn at random: their energies and gradients are those of the formula, and their names are read back."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_diffusion import GaussianMixture, NoiseSchedule, UniformBox, load, mixture
from ppl_diffusion.potentials.expression import parse

SCHEDULE = NoiseSchedule.cosine(100)
POINTS = np.random.default_rng(0).standard_normal((6, 2)) * 0.7
NUMBERS = st.sampled_from([0.25, 0.4, 0.5, 1.5, 2.0, 3.0])

EXPRESSIONS = st.recursive(
    st.sampled_from(["p", "q", "box"]),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["*", "/", "+", "mix"]), inner, inner),
        st.tuples(st.just("**"), inner, st.one_of(NUMBERS, NUMBERS.map(lambda a: -a))),
        st.tuples(st.sampled_from(["scale", "over"]), inner, NUMBERS),
    ),
    max_leaves=6,
)
"""Trees of operations: ``over`` is a number divided by a density, ``mix`` a mixture of equal weights."""


@functools.cache
def parts(backend):
    given = {"schedule": SCHEDULE, "backend": backend}
    return {
        "p": GaussianMixture(
            [[0.4, -0.2], [-0.6, 0.5]], [[0.3, 0.2], [0.1, 0.4]], weights=[0.3, 0.7], name="p", **given
        ),
        "q": GaussianMixture([[0.1, 0.3]], covariances=[[[0.5, 0.2], [0.2, 0.3]]], name="q", **given),
        "box": UniformBox([-0.2, -1.0], [0.3, 1.0], name="box", **given),
    }


def build(tree, leaves):
    """Return the potential of a tree."""
    if isinstance(tree, str):
        return leaves[tree]
    operation, inner, other = tree
    left = build(inner, leaves)
    if operation in ("*", "/", "+", "mix"):
        right = build(other, leaves)
        if operation == "mix":
            return mixture([left, right])
        return left * right if operation == "*" else left / right if operation == "/" else left + right
    return left**other if operation == "**" else other * left if operation == "scale" else other / left


def formula(tree, leaves):
    """Return energies ``(n,)`` and gradients ``(n, 2)`` of a tree from those of the leaves, and a bound of the
    magnitude of the energies of which it is a sum."""
    if isinstance(tree, str):
        energy, gradient = leaves[tree]
        return energy, gradient, abs(energy)
    operation, inner, other = tree
    u, du, size = formula(inner, leaves)
    if operation in ("*", "/", "+", "mix"):
        v, dv, more = formula(other, leaves)
        if operation in ("+", "mix"):
            total = np.logaddexp(-u, -v)
            share = np.exp(-u - total)[:, None]
            halved = 0.0 if operation == "+" else np.log(2)
            return halved - total, share * du + (1 - share) * dv, size + more + halved
        sign = 1 if operation == "*" else -1
        return u + sign * v, du + sign * dv, size + more
    if operation == "**":
        return other * u, other * du, abs(other) * size
    sign = 1 if operation == "scale" else -1
    return sign * u - np.log(other), sign * du, size + abs(np.log(other))


def of_leaves(backend, level):
    return {
        name: tuple(np.asarray(found) for found in leaf.value_and_grad(POINTS, level=level))
        for name, leaf in parts(backend).items()
    }


def differences(tree, backend, level, formula=formula):
    """Return how far an expression is from its formula in energy and in gradient, relative to its parts."""
    with jax.enable_x64(True):
        potential = build(tree, parts(backend))
        value, gradient = (np.asarray(found) for found in potential.value_and_grad(POINTS, level=level))
        alone = np.asarray(potential.energy(POINTS, level=level))
        u, du, size = formula(tree, of_leaves(backend, level))
    np.testing.assert_allclose(alone, value, rtol=1e-12, atol=1e-12)
    scale = 1 + size.max() + abs(du).max()
    return abs(value - u).max() / scale, abs(gradient - du).max() / scale


@pytest.mark.parametrize("backend", ["torch", "jax"])
@settings(max_examples=40)
@given(tree=EXPRESSIONS, level=st.sampled_from([0, 3, 50, 99]))
def test_any_expression_is_what_it_says(backend, tree, level):
    assert max(differences(tree, backend, level)) < 1e-9


def test_a_wrong_formula_is_told_apart():
    def wrong(tree, leaves):
        u, du, size = formula(tree, leaves)
        return u, du * (1 + 1e-6), size

    assert max(differences(("+", "p", ("**", "q", 2.0)), "torch", 3, wrong)) > 1e-9


@settings(max_examples=100)
@given(tree=EXPRESSIONS)
def test_the_name_of_any_expression_is_read_as_itself(tree):
    leaves = parts("torch")
    potential = build(tree, leaves)
    again = parse(str(potential), load=leaves.__getitem__, known=list(leaves))
    assert str(again) == str(potential)
    size = formula(tree, of_leaves("torch", 3))[2]
    found, due = (np.asarray(one.energy(POINTS, level=3)) for one in (again, potential))
    assert np.all(abs(found - due) <= 1e-3 * (1 + size))  # numbers are printed to four digits


@pytest.mark.parametrize(
    ("tree", "name"),
    [
        (("over", ("over", ("+", "p", "p"), 0.25), 0.25), "p + p"),
        (("scale", ("scale", ("scale", "p", 0.1), 0.1), 100.0), "p"),
        (("mix", ("*", "p", "q"), "q"), "0.5 * p * q + 0.5 * q"),
        (("**", ("**", "p", 3.0), 1 / 3), "p"),
    ],
)
def test_a_factor_that_is_printed_as_one_is_left_out(tree, name):
    assert str(build(tree, parts("torch"))) == name


def test_names_with_conditions_and_large_scales_are_read_as_themselves():
    digits, leaves = load("digits"), parts("torch")
    text = str(digits.given(3) * digits.given(8) / digits**0.5)
    assert str(parse(text, load=load, known=["digits"])) == text
    huge = 1e200 * leaves["p"]
    assert parse(str(huge), load=leaves.__getitem__, known=list(leaves)).log_scale == pytest.approx(huge.log_scale)
