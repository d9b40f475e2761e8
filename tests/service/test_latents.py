"""The seed contract, the geometry of paths and the scores, against Random123's vectors, plain arithmetic, numerical
integrals and hand-worked cases.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from service.latents import (
    MAX_SEED,
    Purpose,
    importance_weighted_bound,
    kl,
    linear,
    normals,
    path,
    path_rows,
    philox4x32,
    posterior_sample,
    prior_sample,
    reparameterise,
    slerp,
    traverse,
    uniforms,
)
from tests.service.seeds import normal
from tests.service.seeds import uniforms as plain_uniforms

seeds = st.integers(0, MAX_SEED)
latent_shapes = st.sampled_from([(1,), (2,), (3,), (5,), (2, 3, 2), (3, 1, 3)])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox4x32(np.array(counter, np.uint32).reshape(4, 1), key)
    assert words.dtype == np.uint32
    assert tuple(words[:, 0].tolist()) == expected


def test_philox_treats_each_column_alone() -> None:
    counters = np.random.default_rng(0).integers(0, 2**32, (4, 50), dtype=np.uint32)
    together = philox4x32(counters, (1, 2))
    apart = [philox4x32(counters[:, i : i + 1], (1, 2)) for i in range(50)]
    np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))


@pytest.mark.parametrize(
    ("seed", "purpose", "row", "draw", "expected"),
    [
        (0, Purpose.PRIOR, 0, 0, [-0.12151798, -1.3500327, -0.08187421, -0.22270906, 1.7764243]),
        (7, Purpose.PRIOR, 0, 0, [0.22970816, 0.20041439, 0.6326746, 1.1822866, 1.1322135]),
        (7, Purpose.PRIOR, 63, 0, [0.29543567, 0.055403307, -0.54467916, -0.95230937, -0.2989994]),
        (7, Purpose.POSTERIOR, 0, 0, [0.0757446, 0.58873534, 0.5068528, 0.5885575, -0.5096342]),
        (7, Purpose.POSTERIOR, 2, 3, [2.3700926, -0.67095065, 0.5561421, 0.2490299, 0.57427543]),
        (7, Purpose.SCORE, 0, 0, [1.5622392, 0.81255513, -2.3186843, -1.1321223, -0.75190204]),
        (7, Purpose.FITTED, 0, 0, [-0.6414914, 0.64149326, -1.5458981, 0.28343168, 0.2540727]),
        (2**32, Purpose.PRIOR, 0, 0, [0.03904599, 0.12328969, -0.022050157, -0.66659063, -0.7358224]),
        (2**32 + 7, Purpose.POSTERIOR, 5, 1, [-0.28455478, 0.85428816, -0.28778815, -0.8788104, -1.8627733]),
        (2**32 + 7, Purpose.SCORE, 5, 63, [0.2674071, 0.89764774, -1.2795098, 0.5440223, 2.129113]),
        (MAX_SEED, Purpose.PRIOR, 4095, 0, [0.83844054, -1.1905175, 1.6966733, -0.6366522, -0.17778775]),
        (MAX_SEED, Purpose.FITTED, 63, 0, [0.418598, -0.085424885, -0.8194951, -0.85537714, 1.0234606]),
    ],
)
def test_normals_are_the_golden_vectors(
    seed: int, purpose: Purpose, row: int, draw: int, expected: list[float]
) -> None:
    found = normals(seed, purpose, rows=row + 1, latent_shape=(5,), draws=draw + 1)[row, draw]
    assert found.dtype == np.float32
    assert found.tolist() == np.array(expected, np.float32).tolist()


@settings(max_examples=30)
@given(seed=seeds, shape=latent_shapes, row=st.integers(0, 4), draw=st.integers(0, 3), purpose=st.sampled_from(Purpose))
def test_normals_follow_the_written_formula(
    seed: int, shape: tuple[int, ...], row: int, draw: int, purpose: Purpose
) -> None:
    found = normals(seed, purpose, rows=5, latent_shape=shape, draws=4)[row, draw]
    size = int(np.prod(shape))
    expected = [normal(seed, int(purpose), row=row, draw=draw, element=element) for element in range(size)]
    # CPUs may differ in the last bit of a logarithm or a cosine.
    np.testing.assert_array_max_ulp(found.ravel(), np.array(expected, np.float32), maxulp=1)


@settings(max_examples=30)
@given(seed=seeds, row=st.integers(0, 2**32 - 1), draw=st.integers(0, 2**32 - 1), purpose=st.sampled_from(Purpose))
def test_uniforms_follow_the_written_formula_to_the_last_bit(seed: int, row: int, draw: int, purpose: Purpose) -> None:
    u, v = uniforms(seed, purpose, row=np.array([5, row]), draw=np.array([0, draw]), blocks=3)
    expected = [plain_uniforms(seed, int(purpose), row=row, draw=draw, block=block) for block in range(3)]
    assert list(zip(u[1].tolist(), v[1].tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("rows", "size"), [(70_000, 1), (300, 1001), (3, 70_000)], ids=["many rows", "some of each", "large latents"]
)
def test_many_normals_are_those_that_each_of_them_is_alone(rows: int, size: int) -> None:
    """More than are computed at a time."""
    found = normals(9, Purpose.SCORE, rows=rows, latent_shape=(size,))
    for row in (0, 1, rows // 2, rows - 1):
        for element in {0, size // 2, size - 1}:
            expected = np.float32(normal(9, Purpose.SCORE, row=row, draw=0, element=element))
            np.testing.assert_array_max_ulp(found[row, 0, element], expected, maxulp=1)


@settings(max_examples=50)
@given(seed=seeds, shape=latent_shapes, n=st.integers(1, 30), more=st.integers(0, 30))
def test_fewer_rows_are_a_prefix_of_more(seed: int, shape: tuple[int, ...], n: int, more: int) -> None:
    few = prior_sample(seed, n=n, latent_shape=shape)
    many = prior_sample(seed, n=n + more, latent_shape=shape)
    np.testing.assert_array_equal(few, many[:n])


@settings(max_examples=50)
@given(seed=seeds, shape=latent_shapes, draws=st.integers(1, 8), more=st.integers(0, 8))
def test_fewer_draws_are_a_prefix_of_more(seed: int, shape: tuple[int, ...], draws: int, more: int) -> None:
    few = normals(seed, Purpose.POSTERIOR, rows=3, latent_shape=shape, draws=draws)
    many = normals(seed, Purpose.POSTERIOR, rows=3, latent_shape=shape, draws=draws + more)
    np.testing.assert_array_equal(few, many[:, :draws])


@settings(max_examples=30)
@given(seed=seeds, size=st.integers(1, 9), more=st.integers(0, 9))
def test_an_element_is_the_same_in_latents_of_any_size_and_shape(seed: int, size: int, more: int) -> None:
    short = normals(seed, Purpose.PRIOR, rows=2, latent_shape=(size,))
    long = normals(seed, Purpose.PRIOR, rows=2, latent_shape=(1, size + more, 1))
    np.testing.assert_array_equal(short[:, 0], long[:, 0, 0, :size, 0])


@settings(max_examples=30)
@given(seed=seeds)
def test_purposes_rows_and_draws_never_repeat_each_other(seed: int) -> None:
    values = [normals(seed, purpose, rows=8, latent_shape=(3,), draws=8) for purpose in Purpose]
    assert len(np.unique(np.stack(values).view(np.uint32))) > 0.99 * len(Purpose) * 8 * 8 * 3


@pytest.mark.parametrize("other", [1, 2**31, 2**32, 2**62, MAX_SEED])
def test_every_bit_of_a_seed_counts(other: int) -> None:
    first = prior_sample(0, n=4, latent_shape=(4,))
    assert not np.isin(first, prior_sample(other, n=4, latent_shape=(4,))).any()


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 1, MAX_SEED])
def test_normals_are_standard_normal(seed: int) -> None:
    values = normals(seed, Purpose.PRIOR, rows=2000, latent_shape=(5,), draws=4).ravel()
    assert np.isfinite(values).all()
    assert stats.kstest(values.astype(np.float64), "norm").pvalue > 1e-3
    assert abs(values.mean()) < 4 / math.sqrt(values.size)
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / values.size)


@pytest.mark.parametrize("axis", ["rows", "draws", "elements", "pair"])
def test_neighbouring_normals_are_uncorrelated(axis: str) -> None:
    values = normals(11, Purpose.POSTERIOR, rows=300, latent_shape=(20,), draws=20).astype(np.float64)
    neighbours = {
        "rows": (values[:-1], values[1:]),
        "draws": (values[:, :-1], values[:, 1:]),
        "elements": (values[..., :-1], values[..., 1:]),
        "pair": (values[..., ::2], values[..., 1::2]),  # cosine and sine of one radius
    }
    one, other = neighbours[axis]
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / math.sqrt(one.size)
    assert abs(np.corrcoef(one.ravel() ** 2, other.ravel() ** 2)[0, 1]) < 4 / math.sqrt(one.size)


def test_seeds_next_to_each_other_are_uncorrelated() -> None:
    one, other = (normals(seed, Purpose.PRIOR, rows=5000, latent_shape=(4,)).ravel() for seed in (41, 42))
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(one.size)


def test_temperature_scales_the_prior() -> None:
    z = prior_sample(5, n=6, latent_shape=(2, 3))
    np.testing.assert_array_equal(z, normals(5, Purpose.PRIOR, rows=6, latent_shape=(2, 3))[:, 0])
    np.testing.assert_array_equal(prior_sample(5, n=6, latent_shape=(2, 3), temperature=0.5), z * np.float32(0.5))
    assert not prior_sample(5, n=6, latent_shape=(2, 3), temperature=0).any()


def test_a_posterior_sample_is_mu_plus_sigma_times_noise() -> None:
    mu = np.array([[1.0, -2.0], [0.0, 10.0]], np.float32)
    logvar = np.log(np.array([[4.0, 9.0], [1.0, 0.25]], np.float32))
    eps = normals(3, Purpose.POSTERIOR, rows=2, latent_shape=(2,), draws=3)
    z = posterior_sample(mu, logvar, seed=3, draws=3)
    assert z.shape == (2, 3, 2)
    assert z.dtype == np.float32
    sigma = np.array([[2.0, 3.0], [1.0, 0.5]])
    np.testing.assert_allclose(z, mu[:, None] + sigma[:, None] * eps, rtol=1e-6)


def test_a_certain_posterior_gives_its_mean() -> None:
    mu = np.array([[0.5, -3.0]], np.float32)
    z = posterior_sample(mu, np.full((1, 2), -200, np.float32), seed=1, draws=2)
    np.testing.assert_array_equal(z, np.stack([mu, mu], axis=1))


def test_a_line_worked_by_hand() -> None:
    z1, z2 = np.array([0.0, 8.0], np.float32), np.array([4.0, 0.0], np.float32)
    alpha = np.array([0, 0.25, 0.5, 1], np.float32)
    assert linear(z1, z2, alpha).tolist() == [[0, 8], [1, 6], [2, 4], [4, 0]]


def test_an_arc_worked_by_hand() -> None:
    z1, z2 = np.array([2.0, 0.0], np.float32), np.array([0.0, 2.0], np.float32)
    found = slerp(z1, z2, np.array([0, 1 / 3, 0.5, 1], np.float32))
    expected = [[2, 0], [math.sqrt(3), 1], [math.sqrt(2), math.sqrt(2)], [0, 2]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


points = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).standard_normal((2, 3, 2)))


@settings(max_examples=50)
@given(ends=points, length=st.sampled_from([1e-3, 1.0, 1e3]))
def test_an_arc_turns_at_a_constant_rate_and_keeps_its_length(ends: NDArray[np.float64], length: float) -> None:
    z1, z2 = (length * end / np.linalg.norm(end) for end in ends)
    alpha = np.linspace(0, 1, 7, dtype=np.float32)
    arc = slerp(z1.astype(np.float32), z2.astype(np.float32), alpha).reshape(7, -1).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(arc, axis=1), length, rtol=1e-5)
    cosines = (arc[:-1] * arc[1:]).sum(axis=1) / length**2
    turned = np.arccos(np.clip(cosines, -1, 1))
    whole = math.acos(np.clip(np.vdot(z1, z2) / length**2, -1, 1))
    np.testing.assert_allclose(turned, whole / 6, atol=2e-3)


@settings(max_examples=50)
@given(ends=points, alpha=st.floats(0, 1, width=32))
def test_an_arc_is_a_rotation_in_the_plane_of_its_ends(ends: NDArray[np.float64], alpha: float) -> None:
    """Gram-Schmidt makes the plane; the ends then stand at angles 0 and omega."""
    z1, z2 = ends.astype(np.float32)
    a, b = z1.ravel().astype(np.float64), z2.ravel().astype(np.float64)
    first = a / np.linalg.norm(a)
    across = b - (b @ first) * first
    second = across / np.linalg.norm(across)
    omega = math.atan2(b @ second, b @ first)
    weight_a, weight_b = math.sin((1 - alpha) * omega) / math.sin(omega), math.sin(alpha * omega) / math.sin(omega)
    at_b = np.linalg.norm(b) * (math.cos(omega) * first + math.sin(omega) * second)
    expected = weight_a * np.linalg.norm(a) * first + weight_b * at_b
    found = slerp(z1, z2, np.array([alpha], np.float32))[0].ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("z1", "z2"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([1e-30, 0.0], [1e30, 0.0]),
    ],
    ids=["both zero", "first zero", "second zero", "same", "same way", "opposite", "far apart in length"],
)
def test_where_no_arc_is_defined_the_line_is_taken(z1: list[float], z2: list[float]) -> None:
    one, other = np.array(z1, np.float32), np.array(z2, np.float32)
    alpha = np.linspace(0, 1, 5, dtype=np.float32)
    np.testing.assert_array_equal(slerp(one, other, alpha), linear(one, other, alpha))


@pytest.mark.parametrize("method", ["linear", "slerp"])
@settings(max_examples=30)
@given(count=st.integers(2, 5), steps=st.integers(2, 7), loop=st.booleans(), seed=st.integers(0, 1000))
def test_a_path_visits_every_point_in_order(method: str, count: int, steps: int, loop: bool, seed: int) -> None:
    ends = np.random.default_rng(seed).standard_normal((count, 2, 2)).astype(np.float32)
    walked = path(ends, steps=steps, method=method, loop=loop)  # type: ignore[arg-type]
    expected_rows = count * (steps - 1) if loop else (count - 1) * (steps - 1) + 1
    assert len(walked) == expected_rows == path_rows(count, steps=steps, loop=loop)
    assert walked.dtype == np.float32
    np.testing.assert_array_equal(walked[:: steps - 1], ends)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_a_loop_is_the_path_back_to_the_first_point_without_it(method: str) -> None:
    ends = prior_sample(1, n=3, latent_shape=(4,))
    loop = path(ends, steps=5, method=method, loop=True)  # type: ignore[arg-type]
    closed = path(np.concatenate([ends, ends[:1]]), steps=5, method=method, loop=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(loop, closed[:-1])


@settings(max_examples=30)
@given(steps=st.integers(2, 9), seed=st.integers(0, 1000))
def test_a_linear_path_is_numpys_linspace(steps: int, seed: int) -> None:
    z1, z2 = np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
    walked = path(np.stack([z1, z2]), steps=steps, method="linear", loop=False)
    np.testing.assert_allclose(walked, np.linspace(z1, z2, steps), atol=1e-6)


# Traversals


def test_a_traversal_worked_by_hand() -> None:
    start = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    found = traverse(start, dims=(3, 0), span=2.0, steps=3)
    expected = [[[1, 2], [3, value]] for value in (-2, 0, 2)] + [[[value, 2], [3, 4]] for value in (-2, 0, 2)]
    assert found.dtype == np.float32
    assert found.tolist() == expected


@settings(max_examples=30)
@given(span=st.floats(0.01, 100), steps=st.integers(2, 12), dim=st.integers(0, 5), seed=st.integers(0, 1000))
def test_a_line_of_a_traversal_is_symmetric_and_leaves_the_other_dimensions(
    span: float, steps: int, dim: int, seed: int
) -> None:
    (start,) = prior_sample(seed, n=1, latent_shape=(3, 2))
    found = traverse(start, dims=(dim,), span=span, steps=steps).reshape(steps, 6)
    np.testing.assert_allclose(found[:, dim], np.linspace(-span, span, steps), rtol=1e-6, atol=1e-6 * span)
    np.testing.assert_array_equal(found[:, dim], -found[::-1, dim])
    others = np.delete(found, dim, axis=1)
    np.testing.assert_array_equal(others, np.tile(np.delete(start.ravel(), dim), (steps, 1)))


# Scores


def test_the_divergence_of_hand_worked_normals() -> None:
    mu = np.array([[0, 0], [1, 0], [0, 0], [2, -1]], np.float32)
    logvar = np.log(np.array([[1, 1], [1, 1], [4, 1], [0.25, 1]])).astype(np.float32)
    found = kl(mu, logvar)
    assert found.dtype == np.float64
    expected = [0, 0.5, 0.5 * (4 - 1 - math.log(4)), 0.5 * (4 + 0.25 - 1 + math.log(4)) + 0.5]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=30)
@given(mu=st.floats(-4, 4, width=32), logvar=st.floats(-6, 2, width=32))
def test_the_divergence_is_the_integral_that_defines_it(mu: float, logvar: float) -> None:
    sigma = math.exp(logvar / 2)
    x = np.linspace(mu - 12 * sigma, mu + 12 * sigma, 20_001)
    log_q, log_p = _log_normal(x, mu, sigma), _log_normal(x, 0, 1)
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), x)
    found = kl(np.array([[mu]], np.float32), np.array([[logvar]], np.float32))
    np.testing.assert_allclose(found, [integral], rtol=1e-6, atol=1e-9)


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), size=st.sampled_from([1e-12, 1e-7, 1e-3, 1.0, 10.0]))
def test_a_divergence_is_never_below_zero(seed: int, size: float) -> None:
    mu, logvar = size * np.random.default_rng(seed).standard_normal((2, 5, 3, 2)).astype(np.float32)
    assert (kl(mu.astype(np.float32), logvar.astype(np.float32)) >= 0).all()


def _log_normal(x: NDArray[np.float64], mu: float | NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    return -0.5 * (((x - mu) / sigma) ** 2 + math.log(2 * math.pi)) - math.log(sigma)


def bound_of(x: float, *, mu: float, logvar: float, k: int, n: int = 1, noise: float = 1.0) -> NDArray[np.float64]:
    """The bound of n equal rows where p(x given z) = N(z, noise²) in one dimension.

    Shapes:  -> (n,)
    """
    means, logvars = np.full((n, 1), mu, np.float32), np.full((n, 1), logvar, np.float32)
    eps = normals(5, Purpose.SCORE, rows=n, latent_shape=(1,), draws=k)
    z = reparameterise(means, logvars, eps)
    log_likelihood = _log_normal(np.array(x), z[..., 0].astype(np.float64), noise).astype(np.float32)
    return importance_weighted_bound(log_likelihood, z=z, eps=eps, logvar=logvars)


@pytest.mark.parametrize("k", [1, 2, 50])
@pytest.mark.parametrize("x", [-3.0, 0.0, 1.5])
def test_the_bound_is_log_p_of_x_itself_where_q_is_the_true_posterior(x: float, k: int) -> None:
    """z ~ N(0, 1) and x ~ N(z, 1) give p(z given x) = N(x/2, 1/2) and p(x) = N(0, 2): every weight is p(x)."""
    found = bound_of(x, mu=x / 2, logvar=math.log(0.5), k=k, n=4)
    np.testing.assert_allclose(found, _log_normal(np.array(x), 0, math.sqrt(2)), atol=1e-5)


def test_one_draw_gives_the_weight_of_that_draw() -> None:
    mu, logvar = np.array([[0.5, -1.0]], np.float32), np.array([[-2.0, 1.0]], np.float32)
    eps = np.array([[[0.3, -1.2]]], np.float32)
    z = reparameterise(mu, logvar, eps)
    found = importance_weighted_bound(np.array([[-7.0]], np.float32), z=z, eps=eps, logvar=logvar)
    ratio = sum(
        float(_log_normal(np.array(value), 0, 1) - _log_normal(np.array(value), m, math.exp(v / 2)))
        for value, m, v in zip(z.ravel().tolist(), (0.5, -1.0), (-2.0, 1.0), strict=True)
    )
    np.testing.assert_allclose(found, [-7.0 + ratio], rtol=1e-6)


def test_the_bound_rises_with_draws_to_the_integral_that_it_bounds() -> None:
    """q is neither where nor as wide as the true posterior."""
    z = np.linspace(-12, 12, 100_001)
    log_p_of_x = math.log(np.trapezoid(np.exp(_log_normal(np.array(1.0), z, 0.5) + _log_normal(z, 0, 1)), z))
    elbo, few, many = (
        bound_of(1.0, mu=0.4, logvar=0.0, k=k, n=rows, noise=0.5).mean()
        for k, rows in ((1, 4000), (10, 4000), (4000, 40))
    )
    assert elbo < few - 0.1 < many - 0.1
    assert abs(many - log_p_of_x) < 0.01


def test_weights_that_are_far_below_the_smallest_float_still_have_their_mean() -> None:
    zeros = np.zeros((1, 2, 3), np.float32)
    found = importance_weighted_bound(
        np.array([[-100_000.0, -100_001.0]], np.float32), z=zeros, eps=zeros, logvar=zeros[:, 0]
    )
    np.testing.assert_allclose(found, [-100_000 + math.log((1 + math.exp(-1)) / 2)])


def test_the_rounding_of_z_is_no_distance_from_mu() -> None:
    """sigma is a tenth of the distance between two float32 at mu."""
    mu, logvar = np.full((1, 8), 1000, np.float32), np.full((1, 8), 2 * math.log(6e-6), np.float32)
    eps = normals(1, Purpose.SCORE, rows=1, latent_shape=(8,), draws=1)
    z = reparameterise(mu, logvar, eps)
    found = importance_weighted_bound(np.zeros((1, 1), np.float32), z=z, eps=eps, logvar=logvar)
    exact = 1000 + 6e-6 * eps.astype(np.float64)
    expected = (_log_normal(exact, 0, 1) - _log_normal(exact, 1000, 6e-6)).sum()
    np.testing.assert_allclose(found, [expected], rtol=1e-7)
