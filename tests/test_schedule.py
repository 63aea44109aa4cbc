"""Noise schedules and ladders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_diffusion import Ladder, NoiseSchedule


def test_cosine_is_nichol_and_dhariwals(schedule):
    assert schedule.sigma(0) == pytest.approx(0.0251, abs=5e-5)
    time = np.arange(101) / 100
    bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.square(schedule.alphas[:99]), bar[1:100] / bar[0], rtol=1e-12)
    assert schedule.alphas[99] ** 2 / schedule.alphas[98] ** 2 == pytest.approx(0.001), "betas are clipped at .999"


def test_linear_ends_in_noise():
    for levels in (50, 100, 1000):
        assert NoiseSchedule.linear(levels).alpha(levels - 1) < 0.01
    assert NoiseSchedule.linear(1000).alpha(0) ** 2 == pytest.approx(1 - 1e-4)


def test_edm_explodes():
    schedule = NoiseSchedule.edm(40)
    assert (schedule.sigma(0), schedule.sigma(39), schedule.alpha(7)) == pytest.approx((0.002, 80.0, 1.0))


@pytest.mark.parametrize("make", [NoiseSchedule.cosine, NoiseSchedule.linear, NoiseSchedule.edm])
def test_forward_kernels_compose(make):
    schedule = make(100)
    for clean, noisy in ((0, 1), (10, 60), (3, 99)):
        alpha, sigma = schedule.forward(clean, noisy)
        assert alpha * schedule.alpha(clean) == pytest.approx(schedule.alpha(noisy))
        assert np.hypot(alpha * schedule.sigma(clean), sigma) == pytest.approx(schedule.sigma(noisy))


def test_levels_may_be_arrays_or_traced(schedule):
    assert schedule.sigma(torch.tensor([0, 99])).tolist() == [schedule.sigma(0), schedule.sigma(99)]
    with jax.enable_x64(True):
        assert float(jax.jit(schedule.alpha)(jnp.asarray(42))) == schedule.alpha(42)
        outside = jax.jit(schedule.alpha)(jnp.asarray([-1, 100]))
    assert np.isnan(outside).all(), "JAX itself would take the nearest, or count from the end"


def test_what_inference_mode_has_looked_up_can_be_differentiated_through():
    schedule = NoiseSchedule.cosine(23)
    with torch.inference_mode():
        schedule.alpha(torch.tensor([3]))
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    (x * schedule.alpha(torch.tensor([3]))).sum().backward()
    assert float(x.grad) == schedule.alpha(3)


def test_schedules_are_equal_by_their_tables():
    assert NoiseSchedule.cosine(30) == NoiseSchedule.cosine(30) != NoiseSchedule.linear(30)
    assert hash(NoiseSchedule.cosine(30)) == hash(NoiseSchedule.cosine(30))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (lambda: NoiseSchedule((1.0,), ()), "one alpha and one sigma"),
        (lambda: NoiseSchedule((1.0, -1.0), (0.1, 0.2)), "positive"),
        (lambda: NoiseSchedule((1.0, 1.0), (0.2, 0.1)), "increase"),
        (lambda: NoiseSchedule.cosine(0), "whole number"),
        (lambda: NoiseSchedule.edm(10, sigma_min=3, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: NoiseSchedule.cosine(10).sigma(10), "use 0 .cleanest. to 9"),
        (lambda: NoiseSchedule.cosine(10).sigma(np.array([3, -1])), "not all inside this schedule"),
        (lambda: NoiseSchedule.cosine(10).forward(5, 5), "clean < noisy"),
        (lambda: Ladder(levels=(1, 2)), "must decrease"),
        (lambda: Ladder(levels=()), "must decrease"),
        (lambda: Ladder(levels=(3, 1), steps=(1,)), "one for each of 2 rungs"),
        (lambda: Ladder(levels=(3, 1), steps=-1), "steps must be"),
        (lambda: Ladder.spaced(NoiseSchedule.cosine(10), rungs=11), "rungs must be 2 to 10"),
    ],
)
def test_bad_input_says_what_to_type(wrong, hint):
    with pytest.raises(ValueError, match=hint) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_ladders(schedule):
    assert Ladder.full(schedule).levels == tuple(range(99, -1, -1))
    spaced = Ladder.spaced(schedule, rungs=20, steps=5)
    assert (len(spaced), spaced.levels[0], spaced.levels[-1]) == (20, 99, 0)
    assert Ladder(levels=(40, 20, 0), steps=(3, 2, 1)).steps_per_rung == (3, 2, 1)
    assert Ladder.spaced(NoiseSchedule.cosine(1), rungs=1, steps=4) == Ladder(levels=(0,), steps=4)


@pytest.mark.parametrize("lookup", ["alpha", "sigma", "log_snr"])
@pytest.mark.parametrize(
    "wrap", [np.array, torch.tensor, jnp.array, lambda levels: levels[0]], ids=["numpy", "torch", "jax", "int"]
)
@pytest.mark.parametrize("level", [-101, -100, -1, 100, 101])
def test_levels_outside_of_the_schedule_are_errors_for_every_kind_of_array(lookup, wrap, level):
    schedule = NoiseSchedule.cosine(100)
    for levels in ([level], [level, 3]):
        with pytest.raises(ValueError, match=r"outside this schedule|not all inside this schedule"):
            getattr(schedule, lookup)(wrap(levels))
    assert np.all(np.isfinite(np.asarray(getattr(schedule, lookup)(wrap([99, 0])))))


def test_levels_whose_values_cannot_be_read_give_nan_outside():
    schedule = NoiseSchedule.cosine(100)
    for value in (jax.jit(schedule.sigma)(jnp.array([-1, 3, 100])), jax.vmap(schedule.sigma)(jnp.array([-1, 3, 100]))):
        assert np.isnan(np.asarray(value)).tolist() == [True, False, True]
    levels = torch.tensor([-1, 3, 100])
    assert torch.func.vmap(schedule.sigma)(levels).isnan().tolist() == [True, False, True]


@pytest.mark.parametrize(
    "levels", [np.array([1.0]), torch.tensor([1.0]), jnp.array([1.0]), torch.tensor([True]), "3", True]
)
def test_levels_that_are_no_integers_are_refused(levels):
    with pytest.raises(TypeError, match="levels are integers"):
        NoiseSchedule.cosine(100).alpha(levels)


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, jnp.array], ids=["numpy", "torch", "jax"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_small_integers_are_levels_like_others(wrap, dtype):
    schedule = NoiseSchedule.cosine(300)
    library = {np.array: np, torch.tensor: torch, jnp.array: jnp}[wrap]
    levels = wrap([7, 100], dtype=getattr(library, dtype))
    assert np.asarray(schedule.sigma(levels)) == pytest.approx([schedule.sigma(7), schedule.sigma(100)], rel=1e-6)


@given(st.lists(st.integers(0, 99), min_size=3, max_size=3, unique=True).map(sorted))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_forward_kernels_of_any_three_levels_compose(levels):
    """From t to s and from s to r is from t to r."""
    schedule = NoiseSchedule.cosine(100)
    t, s, r = levels
    (first, noise), (second, more), (whole, total) = (schedule.forward(*pair) for pair in ((t, s), (s, r), (t, r)))
    assert first * second == pytest.approx(whole, rel=1e-9)
    assert second**2 * noise**2 + more**2 == pytest.approx(total**2, rel=1e-9)
