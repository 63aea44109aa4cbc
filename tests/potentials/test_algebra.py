"""The algebra of potentials: identities, gradients, start exponents, and rejected arguments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats

from ppl_diffusion import (
    EnergyFunction,
    EnergyModel,
    GaussianMixture,
    NoiseSchedule,
    UniformBox,
    conjunction,
    guidance,
    load,
    mixture,
    observation,
    product,
)

SCHEDULE = NoiseSchedule.cosine(100)
LEVELS = (0, 3, 50, 99)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def parts(backend):
    p = GaussianMixture(
        [[0.4, -0.2], [-0.6, 0.5]],
        [[0.3, 0.2], [0.1, 0.4]],
        weights=[0.3, 0.7],
        schedule=SCHEDULE,
        backend=backend,
        name="p",
    )
    q = GaussianMixture(
        [[0.1, 0.3]], covariances=[[[0.5, 0.2], [0.2, 0.3]]], schedule=SCHEDULE, backend=backend, name="q"
    )
    box = UniformBox([-0.2, -1.0], [0.3, 1.0], schedule=SCHEDULE, backend=backend, name="box")
    return p, q, box


def points(count=40, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 2)) * 0.7


def energies(potential, x, level):
    return np.asarray(potential.energy(x, level=level))


EXPRESSIONS = {
    "product": (lambda p, q, b: p * q, lambda u, v, w: u + v),
    "power": (lambda p, q, b: p**1.7, lambda u, v, w: 1.7 * u),
    "quotient": (lambda p, q, b: p / q**0.4, lambda u, v, w: u - 0.4 * v),
    "scaled": (lambda p, q, b: 3.0 * p, lambda u, v, w: u - np.log(3.0)),
    "divided": (lambda p, q, b: p / 4, lambda u, v, w: u + np.log(4.0)),
    "sum": (lambda p, q, b: p + q, lambda u, v, w: -np.logaddexp(-u, -v)),
    "sum of a list": (lambda p, q, b: sum([p, q]), lambda u, v, w: -np.logaddexp(-u, -v)),
    "mixture": (
        lambda p, q, b: mixture([p, q, b], log_weights=[0.5, -1.0, 0.0]),
        lambda u, v, w: -np.logaddexp(np.logaddexp(0.5 - u, -1.0 - v), -w),
    ),
    "weighted": (lambda p, q, b: 0.3 * p + 0.7 * q, lambda u, v, w: -np.logaddexp(np.log(0.3) - u, np.log(0.7) - v)),
    "nested": (
        lambda p, q, b: (p + 2 * (q * b)) ** 0.5 * q / p**0.1,
        lambda u, v, w: -0.5 * np.logaddexp(-u, np.log(2) - v - w) + v - 0.1 * u,
    ),
    "guidance": (lambda p, q, b: guidance(p, q, scale=1.5), lambda u, v, w: 1.5 * u - 0.5 * v),
    "conjunction": (lambda p, q, b: conjunction([p, b], q), lambda u, v, w: u + w - v),
    "many": (lambda p, q, b: product([p, q, b, p]), lambda u, v, w: 2 * u + v + w),
    "cancelled": (lambda p, q, b: p * q / p, lambda u, v, w: v),
    "power of a scaled": (lambda p, q, b: (3.0 * p) ** 2, lambda u, v, w: 2 * u - 2 * np.log(3.0)),
    "divided by a scaled": (lambda p, q, b: q / (3.0 * p), lambda u, v, w: v - u + np.log(3.0)),
    "sum of sums": (
        lambda p, q, b: 2 * (0.3 * p + 0.7 * q) + b,
        lambda u, v, w: -np.logaddexp(np.logaddexp(np.log(0.6) - u, np.log(1.4) - v), -w),
    ),
    "a shared factor": (
        lambda p, q, b: p * q + 2 * (p**2 * b),
        lambda u, v, w: -np.logaddexp(-u - v, np.log(2) - 2 * u - w),
    ),
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_what_they_say(expression, backend):
    """Expressions drawn at random are in ``test_expressions``."""
    build, formula = EXPRESSIONS[expression]
    leaves = parts(backend)
    x = points()
    expected = formula(*(energies(leaf, x, 3) for leaf in leaves))
    np.testing.assert_allclose(energies(build(*leaves), x, 3), expected, rtol=1e-10, atol=1e-10)


def test_a_component_without_mass_at_a_point_leaves_the_gradient_to_the_others(backend):
    """Also where it is a mixture itself, none of whose components has mass there, inside of a product."""
    where, infinite = (jnp.where, jnp.inf) if backend == "jax" else (torch.where, torch.inf)

    def walls(centre):
        return EnergyFunction(
            lambda x, level: where(abs(x[..., 0] - centre) < 0.5, 0.0 * x[..., 0], infinite),
            schedule=SCHEDULE,
            event_shape=(2,),
            backend=backend,
            exponent=0,
        )

    p, q, _ = parts(backend)
    x = np.array([[3.0, 0.1], [-1.0, 0.2]])  # outside of both walls, and inside of one
    for inner in ((walls(-1) + walls(1)) * p, (p * walls(-1) + p * walls(1)) ** 2 / p):
        value, gradient = (np.asarray(found) for found in (inner + q).value_and_grad(x, level=3))
        outside, slope = (np.asarray(found) for found in q.value_and_grad(x, level=3))
        np.testing.assert_allclose(value[0], outside[0], rtol=1e-12)
        np.testing.assert_allclose(gradient[0], slope[0], rtol=1e-12)
        share = np.exp(value - outside)[1]  # of q
        np.testing.assert_allclose(
            gradient[1], share * slope[1] + (1 - share) * np.asarray(p.value_and_grad(x, level=3)[1])[1], rtol=1e-10
        )


def test_exponents_that_cancel_but_for_rounding_cancel(backend):
    p, q, box = parts(backend)
    for expression in (box**0.1 * box**0.2 / box**0.3 * q, p * q * box**0.3 / box**0.1 / box**0.2 / p):
        assert expression.factors == (q,)
    assert (p**1e-9 * q).factors == (p, q)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_are_those_of_the_energy(level, backend):
    x, step = points(), 1e-6
    for potential in (*parts(backend), EXPRESSIONS["nested"][0](*parts(backend))):
        value, gradient = potential.value_and_grad(x, level=level)
        np.testing.assert_allclose(np.asarray(value), energies(potential, x, level), rtol=1e-12, atol=1e-12)
        for i, unit in enumerate(np.eye(2)):
            above, below = (energies(potential, x + sign * step * unit, level) for sign in (1, -1))
            np.testing.assert_allclose(np.asarray(gradient)[:, i], (above - below) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_energies_can_be_differentiated_with_the_backends_own_tools():
    for expression, (build, _) in EXPRESSIONS.items():
        potential = build(*parts("torch"))
        x = torch.from_numpy(points()).requires_grad_()
        (found,) = torch.autograd.grad(potential.energy(x, level=7).sum(), x)
        np.testing.assert_allclose(found, potential.value_and_grad(points(), level=7)[1], rtol=1e-8, err_msg=expression)
        potential = build(*parts("jax"))
        found = jax.grad(lambda x, p=potential: p.energy(x, level=7).sum())(jnp.asarray(points()))
        np.testing.assert_allclose(found, potential.value_and_grad(points(), level=7)[1], rtol=1e-8, err_msg=expression)


def test_backends_agree():
    for build, _ in EXPRESSIONS.values():
        one, other = build(*parts("jax")), build(*parts("torch"))
        np.testing.assert_allclose(energies(one, points(), 20), energies(other, points(), 20), rtol=1e-10)


def test_the_exact_densities_are_the_noised_ones(backend):
    """Each equals the convolution of its clean density with the noise, by quadrature."""
    axis = (np.arange(1600) + 0.5) / 200 - 4
    for density, clean in (
        (
            GaussianMixture([[0.4], [-0.6]], [0.3, 0.1], weights=[0.3, 0.7], schedule=SCHEDULE, backend=backend),
            0.3 * np.exp(-0.5 * ((axis - 0.4) / 0.3) ** 2) / 0.3 + 0.7 * np.exp(-0.5 * ((axis + 0.6) / 0.1) ** 2) / 0.1,
        ),
        (UniformBox([-0.5], [0.7], schedule=SCHEDULE, backend=backend), 1.0 * ((axis >= -0.5) & (axis <= 0.7))),
    ):
        clean = clean / clean.sum()
        for level in (20, 60, 95):
            alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
            x = np.linspace(-1.5, 1.5, 13)
            kernel = np.exp(-0.5 * ((x[:, None] - alpha * axis) / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
            np.testing.assert_allclose(energies(density, x[:, None], level), -np.log(kernel @ clean), atol=3e-3)


def test_references_are_the_moments_of_the_data(backend):
    modes, _, box = parts(backend)
    for density in (modes, box):
        clean = density.sample_clean(100_000, seed=0)
        np.testing.assert_allclose(density.reference[0], clean.mean(0), atol=0.02)
        np.testing.assert_allclose(density.reference[1], clean.var(0), rtol=0.02)


def test_a_likelihood_that_knows_no_data_leaves_the_moments_of_the_others(backend):
    p, q, _ = parts(backend)
    kwargs = {"schedule": SCHEDULE, "event_shape": (2,), "backend": backend}
    likelihood = EnergyFunction(lambda x, level: 0.5 * (x**2).sum(-1), exponent=0, **kwargs)
    seen = observation([0.1, 0.2], scale=0.1, schedule=SCHEDULE, backend=backend)
    for composite in (p * likelihood, likelihood * p * seen, p**2):
        for found, due in zip(composite.reference, p.reference, strict=True):
            np.testing.assert_array_equal(found, due)
    assert (p * q).reference == (0.0, 1.0)


def test_boxes_are_stable_far_outside(backend):
    box = parts(backend)[2]
    value, gradient = (np.asarray(v) for v in box.value_and_grad(np.array([[40.0, 0.0], [-40.0, 0.0]]), level=0))
    sigma = SCHEDULE.sigma(0)
    assert np.all(np.isfinite(value))
    np.testing.assert_allclose(gradient[:, 0], [(40 - 0.3) / sigma**2, -(40 - 0.2) / sigma**2], rtol=2e-3)


def test_a_component_without_support_leaves_the_others_alone(backend):
    """A component of density zero at a point has a NaN gradient there, which is ignored."""

    def half(x, level):
        where, sqrt, inf = (jnp.where, jnp.sqrt, jnp.inf) if backend == "jax" else (torch.where, torch.sqrt, torch.inf)
        return where(x[..., 0] > 0, sqrt(x[..., 0]) + x[..., 1] ** 2, inf)

    p, _, _ = parts(backend)
    right = EnergyFunction(half, schedule=SCHEDULE, event_shape=(2,), backend=backend)
    x = np.array([[-1.0, 0.2], [0.5, 0.1]])
    value, gradient = (np.asarray(v) for v in mixture([p, right], log_weights=[0.0, -1.0]).value_and_grad(x, level=0))
    alone, slope = (np.asarray(v) for v in p.value_and_grad(x, level=0))
    np.testing.assert_allclose(value[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], slope[0], rtol=1e-6)
    assert np.isfinite(gradient[1]).all()


def test_exponents_say_where_chains_start():
    p, q, box = parts("jax")
    assert (p * q / box**0.5).exponent == pytest.approx(1.5)
    assert conjunction([p, q, box], p).exponent == pytest.approx(1.0)
    assert (p + q).exponent == 1.0
    with pytest.raises(ValueError, match="init="):
        _ = (p * q + box).exponent
    seen = observation([0.1, 0.2], seen=[True, False], scale=0.1, schedule=SCHEDULE, backend="jax")
    np.testing.assert_array_equal((p * seen).exponent, [2.0, 1.0])
    kwargs = {"schedule": SCHEDULE, "event_shape": (2,), "backend": "jax"}
    likelihood = EnergyFunction(lambda x, level: 0.5 * (x**2).sum(-1), exponent=0, **kwargs)
    assert (p * likelihood).exponent == 1.0


def test_an_observation_is_noised_as_the_data_are_and_exact_at_the_last_rung(backend):
    y = observation([0.4, np.nan], seen=[True, False], scale=0.2, schedule=SCHEDULE, backend=backend)
    x = points()
    constant = 0.5 * np.log(2 * np.pi * 0.2**2)
    np.testing.assert_allclose(energies(y, x, 0), -stats.norm(x[:, 0], 0.2).logpdf(0.4), rtol=1e-12)
    alpha, sigma = SCHEDULE.alpha(40), SCHEDULE.sigma(40)
    expected = (x[:, 0] - alpha * 0.4) ** 2 / (2 * (alpha**2 * 0.2**2 + sigma**2)) + constant
    np.testing.assert_allclose(energies(y, x, 40), expected, rtol=1e-12)
    _, gradient = y.value_and_grad(x, level=40)
    assert np.all(np.asarray(gradient)[:, 1] == 0)


@pytest.mark.slow
def test_chains_may_have_any_leading_shape(backend):
    potential = EXPRESSIONS["nested"][0](*parts(backend))
    x = points(12)
    flat, gradient = potential.value_and_grad(x, level=5)
    value, folded = potential.value_and_grad(x.reshape(3, 4, 2), level=5)
    assert tuple(value.shape) == (3, 4)
    assert tuple(folded.shape) == (3, 4, 2)
    np.testing.assert_allclose(np.asarray(value).ravel(), flat, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(folded).reshape(12, 2), gradient, rtol=1e-12)
    assert np.shape(potential.energy(x[0], level=5)) == ()


def test_there_may_be_no_chains(backend):
    y = observation(np.zeros((2, 3)), scale=0.2, schedule=SCHEDULE, backend=backend)
    value, gradient = y.value_and_grad(np.empty((0, 2, 3)), level=5)
    assert tuple(value.shape) == (0,)
    assert tuple(gradient.shape) == (0, 2, 3)


def test_names_read_as_expressions():
    p, q, box = parts("jax")
    assert str(p * q) == "p * q"
    assert str(p / q**0.5) == "p / q**0.5"
    assert str(p**2) == "p**2"
    assert str(0.5 * p + 0.5 * q) == "0.5 * p + 0.5 * q"
    assert str((p + q) * box) == "(p + q) * box"


def test_a_function_is_a_potential(backend):
    u = EnergyFunction(lambda x, level: 0.5 * (x**2).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend=backend)
    value, gradient = u.value_and_grad(points(), level=0)
    np.testing.assert_allclose(value, 0.5 * (points() ** 2).sum(1))
    np.testing.assert_allclose(gradient, points())


def test_energies_of_a_function_in_single_precision_are_float64_as_all_are():
    u = EnergyFunction(lambda x, level: (x.float() ** 2).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend="torch")
    assert u.energy(torch.zeros(3, 2), level=0).dtype == torch.float64
    assert u.value_and_grad(torch.zeros(3, 2), level=0)[0].dtype == torch.float64


def test_a_level_may_be_a_number_of_jax(backend):
    p, _, _ = parts(backend)
    np.testing.assert_array_equal(p.energy(points(), level=jnp.array(3)), p.energy(points(), level=3))
    with pytest.raises(ValueError, match=r"0 \(cleanest\) to 99"):
        p.energy(points(), level=jnp.array(100))


def test_levels_that_are_an_array_are_refused_under_transformations_too():
    """Broadcast against the coordinates they gave energies that were wrong."""
    density, x = GaussianMixture([[0.0, 0.0]], [0.5], schedule=SCHEDULE, backend="jax"), jnp.zeros((2, 2))
    for level in (jnp.array([3, 7]), jnp.array(3.0), jnp.array(True)):
        for method in (density.energy, density.value_and_grad):
            with pytest.raises(TypeError, match="level must be an integer"):
                jax.jit(lambda x, level, method=method: method(x, level=level))(x, level)
    several = jax.vmap(lambda x, level: density.energy(x, level=level))(x, jnp.array([3, 7]))
    np.testing.assert_allclose(
        several, [density.energy(x[i], level=level) for i, level in enumerate((3, 7))], rtol=1e-6
    )
    assert density.energy(x, level=np.array(3)).shape == (2,)


def test_conditions_that_are_equal_are_one_factor():
    digits = load("digits")
    assert (digits.given(3) * digits.given(3)).exponents == (2.0,)
    network, shape = digits.network, digits.event_shape
    one, other = (
        EnergyModel(network, schedule=schedule, event_shape=shape, form=digits.form, conditions=digits.conditions)
        for schedule in (NoiseSchedule.cosine(100), NoiseSchedule.linear(100))
    )
    with pytest.raises(ValueError, match="different noise schedules"):
        one / other
    (left,) = (digits.given(3) * digits.given(4) / digits.given(3)).factors
    assert left.identity == digits.given(4).identity
    assert (digits.given(3) / digits.given(4)).exponents == (1.0, -1.0)


P, Q, BOX = parts("jax")
OTHER = GaussianMixture([[0.0, 0.0]], [1.0], schedule=NoiseSchedule.linear(100), backend="jax")
TORCH = parts("torch")[0]
LINE = GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="jax")


def bad_function(x, level):
    return (x**2).sum()


REFUSED = {
    "mixed backends": (lambda: P * TORCH, TypeError, "to_jax"),
    "other schedule": (lambda: P * OTHER, ValueError, "schedule"),
    "other space": (lambda: P + LINE, ValueError, "same space"),
    "not a potential": (lambda: product([P, 3]), TypeError, "EnergyFunction"),
    "no list": (lambda: mixture(P), TypeError, r"write \[p, q\]"),
    "no list of factors": (lambda: product(P), TypeError, r"write \[p, q\]"),
    "no list of conditions": (lambda: conjunction(P, Q), TypeError, r"takes a list .*conjunction\(\[p1"),
    "nothing": (lambda: product([]), ValueError, "at least one"),
    "negative scale": (lambda: -2.0 * P, ValueError, "quotient"),
    "zero scale": (lambda: 0 * P, ValueError, "positive"),
    "infinite scale": (lambda: P * np.inf, ValueError, "positive"),
    "text as exponent": (lambda: P ** "2", TypeError, "0.5"),
    "infinite exponent": (lambda: P ** float("nan"), TypeError, "finite"),
    "number plus density": (lambda: 1.0 + P, TypeError, r"0\.5 \* p"),
    "density plus number": (lambda: P + 1.0, TypeError, r"0\.5 \* p"),
    "too few weights": (lambda: mixture([P, Q], log_weights=[0.0]), ValueError, "one finite log weight"),
    "infinite weight": (lambda: mixture([P, Q], log_weights=[0.0, -np.inf]), ValueError, "leave out"),
    "empty conjunction": (lambda: conjunction([], P), ValueError, r"conjunction\(\[p1"),
    "wrong shape": (lambda: P.energy(np.zeros((5, 3)), level=0), ValueError, r"\(\*chains, 2\)"),
    "a scalar": (lambda: P.energy(np.float64(0.0), level=0), ValueError, "chains"),
    "integers": (lambda: P.energy(np.zeros((5, 2), dtype=int), level=0), TypeError, "astype"),
    "integer tensor": (
        lambda: TORCH.energy(torch.zeros((5, 2), dtype=torch.int64), level=0),
        TypeError,
        r"x\.double\(\)",
    ),
    "no number of draws": (lambda: LINE.sample(-3, seed=0), ValueError, "draws must be a whole number >= 1, got -3"),
    "text as seed": (lambda: LINE.sample(3, seed="a"), ValueError, "seed must be a whole number >= 0, got 'a'"),
    "torch tensor": (lambda: P.energy(torch.zeros(5, 2), level=0), TypeError, "numpy"),
    "jax array": (lambda: TORCH.energy(jnp.zeros((5, 2)), level=0), TypeError, "asarray"),
    "level too high": (lambda: P.energy(np.zeros((5, 2)), level=100), ValueError, "0 .cleanest. to 99"),
    "negative level": (lambda: P.energy(np.zeros((5, 2)), level=-1), ValueError, "0 .cleanest. to 99"),
    "half a level": (lambda: P.energy(np.zeros((5, 2)), level=0.5), TypeError, "integer"),
    "one energy for all": (
        lambda: EnergyFunction(bad_function, schedule=SCHEDULE, event_shape=(2,), backend="jax").energy(
            points(), level=0
        ),
        ValueError,
        "one energy per chain",
    ),
    "an event that is a number": (
        lambda: EnergyFunction(bad_function, schedule=SCHEDULE, event_shape=2, backend="jax"),
        TypeError,
        r"try event_shape=\(2,\)",
    ),
    "an exponent that is none": (
        lambda: EnergyFunction(bad_function, schedule=SCHEDULE, event_shape=(2,), backend="jax", exponent=np.nan),
        ValueError,
        "0 for a likelihood",
    ),
    "no function": (
        lambda: EnergyFunction(3, schedule=SCHEDULE, event_shape=(2,), backend="jax"),
        TypeError,
        "callable",
    ),
    "unknown backend": (
        lambda: EnergyFunction(bad_function, schedule=SCHEDULE, event_shape=(2,), backend="numpy"),
        ValueError,
        "torch",
    ),
    "a device of torch": (
        lambda: EnergyFunction(bad_function, schedule=SCHEDULE, event_shape=(2,), backend="jax", device="cuda"),
        ValueError,
        "leave it out",
    ),
    "no gradient": (
        lambda: EnergyFunction(
            lambda x, level: torch.zeros(len(x)), schedule=SCHEDULE, event_shape=(2,), backend="torch"
        ).value_and_grad(points(), level=0),
        ValueError,
        "no gradient",
    ),
    "a mean that is none": (
        lambda: GaussianMixture([[0.0, np.nan]], [1.0], schedule=SCHEDULE, backend="jax"),
        ValueError,
        "must be finite",
    ),
    "weights of means": (
        lambda: GaussianMixture([[0.0, 1.0]], [1.0], weights=[0.5, 0.5], schedule=SCHEDULE, backend="jax"),
        ValueError,
        "weights",
    ),
    "negative scales": (
        lambda: GaussianMixture([[0.0]], [-1.0], schedule=SCHEDULE, backend="jax"),
        ValueError,
        "positive",
    ),
    "indefinite": (
        lambda: GaussianMixture([[0.0, 0.0]], covariances=[[[1.0, 2.0], [2.0, 1.0]]], schedule=SCHEDULE, backend="jax"),
        ValueError,
        "positive definite",
    ),
    "inverted box": (lambda: UniformBox([1.0], [0.0], schedule=SCHEDULE, backend="jax"), ValueError, "below"),
    "nothing seen": (
        lambda: observation([1.0], seen=[False], scale=1.0, schedule=SCHEDULE, backend="jax"),
        ValueError,
        "seen",
    ),
    "seen is nan": (lambda: observation([np.nan], scale=1.0, schedule=SCHEDULE, backend="jax"), ValueError, "finite"),
    "bytes": (
        lambda: observation(np.uint8([0, 200]), scale=1.0, schedule=SCHEDULE, backend="jax"),
        ValueError,
        "127.5",
    ),
    "no scale": (lambda: observation([1.0], scale=0.0, schedule=SCHEDULE, backend="jax"), ValueError, "scale=0.1"),
    "several scales": (
        lambda: observation([1.0, 2.0], scale=[0.1, 0.2], schedule=SCHEDULE, backend="jax"),
        ValueError,
        "one number",
    ),
    "seen of another shape": (
        lambda: observation([1.0, 2.0], seen=[True], scale=1.0, schedule=SCHEDULE, backend="jax"),
        ValueError,
        "shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    act, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


def test_what_a_density_is_made_of_cannot_be_changed_behind_compiled_code(backend):
    density = GaussianMixture([[0.0, 0.0]], [1.0], schedule=SCHEDULE, backend=backend)
    box = UniformBox([-1.0, -1.0], [1.0, 1.0], schedule=SCHEDULE, backend=backend)
    likelihood = observation(np.zeros(2), scale=1.0, schedule=SCHEDULE, backend=backend)
    for table in (density.means, density.variances, density.weights, box.low, box.high, likelihood.values):
        with pytest.raises(ValueError, match="read-only"):
            table += 1.0


def test_schedules_that_differ_by_rounding_are_told_apart():
    schedule = NoiseSchedule.cosine(100)
    alphas = [*schedule.alphas]
    alphas[7] = float(np.float32(alphas[7]))
    other = NoiseSchedule(tuple(alphas), schedule.sigmas)
    one, two = (GaussianMixture([[0.0]], [1.0], schedule=s, backend="jax") for s in (schedule, other))
    with pytest.raises(ValueError, match=r"alpha of level 7 is 0\.\d+ and 0\.\d+, which differ by \d\.?\d*e-0\d"):
        one * two
