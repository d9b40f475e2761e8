"""The seed contract and the geometry of paths, against Random123's vectors, plain arithmetic and hand-worked cases."""

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
    linear,
    normals,
    path,
    path_rows,
    philox4x32,
    posterior_sample,
    prior_sample,
    slerp,
)

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
        (2**32, Purpose.PRIOR, 0, 0, [0.03904599, 0.12328969, -0.022050157, -0.66659063, -0.7358224]),
        (2**32 + 7, Purpose.POSTERIOR, 5, 1, [-0.28455478, 0.85428816, -0.28778815, -0.8788104, -1.8627733]),
        (MAX_SEED, Purpose.PRIOR, 4095, 0, [0.83844054, -1.1905175, 1.6966733, -0.6366522, -0.17778775]),
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
    expected = [_normal(seed, purpose, row=row, draw=draw, element=element) for element in range(size)]
    # CPUs may differ in the last bit of a logarithm or a cosine.
    np.testing.assert_array_max_ulp(found.ravel(), np.array(expected, np.float32), maxulp=1)


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


def _normal(seed: int, purpose: int, *, row: int, draw: int, element: int) -> float:
    """The formula of docs/api.md for one value, in Python's own integers."""
    words = _philox([element // 2, draw, row, int(purpose)], [seed % 2**32, seed // 2**32])
    u = ((words[0] * 2**32 + words[1]) // 2**11 + 1) / 2**53
    v = ((words[2] * 2**32 + words[3]) // 2**11) / 2**53
    turn = math.cos if element % 2 == 0 else math.sin
    return math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v)


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as the paper writes it: a round multiplies two words and swaps in the others' high halves."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c
