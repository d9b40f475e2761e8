"""The fitted prior: its stream of the seed contract, its moments, what /sample makes of it, every file that is none."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from service.bundle import BadBundle
from service.latents import MAX_SEED, Purpose
from service.prior import FittedPrior, StandardPrior, read
from tests.service.linear import Linear, fitted_prior
from tests.service.seeds import normal, uniforms
from tests.service.wire import assert_near, read_tensors

PATH = Path("bundle") / "prior.safetensors"

# The first four rows of seed 7 and the first of the largest seed, of the mixture of `test_the_golden_vectors`.
GOLDEN = [
    [-11.282983, -18.075521, -34.374783],
    [-11.118731, -19.251131, -31.620914],
    [9.975231, 20.009315, 30.439735],
    [9.121067, 20.106716, 30.011791],
]
GOLDEN_MAX = [-10.548304, -21.803047, -32.340076]


def mixture(*, components: int = 3, latent_dim: int = 4, seed: int = 0) -> FittedPrior:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(components))
    means = 3 * generator.standard_normal((components, latent_dim))
    cholesky = np.tril(generator.standard_normal((components, latent_dim, latent_dim)))
    diagonal = np.arange(latent_dim)
    cholesky[:, diagonal, diagonal] = 0.5 + generator.random((components, latent_dim))
    return FittedPrior(*(array.astype(np.float32) for array in (weights, means, cholesky)))


def content(prior: FittedPrior, **changes: NDArray[Any] | None) -> bytes:
    """The bytes of `prior.safetensors`, with tensors replaced, or left out where None."""
    named = {"weights": prior.weights, "means": prior.means, "cholesky": prior.cholesky} | changes
    return save({name: np.ascontiguousarray(tensor) for name, tensor in named.items() if tensor is not None})


def test_the_golden_vectors() -> None:
    prior = FittedPrior(
        weights=np.array([0.25, 0.75], np.float32),
        means=np.array([[10, 20, 30], [-10, -20, -30]], np.float32),
        cholesky=np.array([[[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]], [[2, 0, 0], [-1, 2, 0], [1, -1, 2]]], np.float32),
    )
    z = prior.sample(7, n=4)
    assert z.dtype == np.float32
    assert z.tolist() == np.array(GOLDEN, np.float32).tolist()
    assert prior.sample(MAX_SEED, n=1)[0].tolist() == np.array(GOLDEN_MAX, np.float32).tolist()


@settings(max_examples=20)
@given(seed=st.integers(0, MAX_SEED), components=st.integers(1, 5), latent_dim=st.integers(1, 5))
def test_a_sample_follows_the_written_formula(seed: int, components: int, latent_dim: int) -> None:
    prior = mixture(components=components, latent_dim=latent_dim, seed=seed % 1000)
    found = prior.sample(seed, n=6, temperature=0.7)
    for row in range(6):
        _, v = uniforms(seed, Purpose.FITTED, row=row, draw=1, block=0)
        weights = prior.weights.tolist()
        component = next(k for k in range(components) if v < sum(weights[: k + 1]) / sum(weights))
        eps = [normal(seed, Purpose.FITTED, row=row, draw=0, element=element) for element in range(latent_dim)]
        factor, mean = prior.cholesky[component].tolist(), prior.means[component].tolist()
        expected = [mean[i] + 0.7 * sum(factor[i][j] * eps[j] for j in range(latent_dim)) for i in range(latent_dim)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, MAX_SEED), n=st.integers(1, 20), more=st.integers(0, 100))
def test_few_are_a_prefix_of_many(seed: int, n: int, more: int) -> None:
    prior = mixture()
    np.testing.assert_array_equal(prior.sample(seed, n=n), prior.sample(seed, n=n + more)[:n])


@pytest.mark.parametrize("seed", [3, 2**40])
def test_samples_have_the_mean_and_covariance_of_the_mixture(seed: int) -> None:
    """Mean: the sum of w m. Covariance: the sum of w (L L^T + m m^T), less the mean's outer product."""
    prior, n = mixture(components=4, latent_dim=3), 40_000
    z = prior.sample(seed, n=n).astype(np.float64)
    weights, means = prior.weights.astype(np.float64), prior.means.astype(np.float64)
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    second = sum(
        w * (factor @ factor.T + np.outer(m, m))
        for w, m, factor in zip(weights, means, prior.cholesky.astype(np.float64), strict=True)
    )
    covariance = second - np.outer(mean, mean)
    error = np.sqrt(np.diag(covariance) / n)
    assert (np.abs(z.mean(axis=0) - mean) < 4 * error).all()
    np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.03 * float(np.diag(covariance).max()))


def test_components_come_as_often_as_their_weights_say() -> None:
    prior = FittedPrior(
        weights=np.array([0, 0.2, 0, 0.5, 0.3, 0], np.float32),
        means=np.arange(6, dtype=np.float32)[:, None],
        cholesky=np.full((6, 1, 1), 1e-3, np.float32),
    )
    found, counts = np.unique(np.rint(prior.sample(1, n=10_000)), return_counts=True)
    assert found.tolist() == [1, 3, 4]
    np.testing.assert_allclose(counts / 10_000, [0.2, 0.5, 0.3], atol=0.02)


def test_temperature_scales_the_distance_from_a_components_mean() -> None:
    prior = mixture()
    one, half, none = (prior.sample(5, n=50, temperature=temperature).astype(np.float64) for temperature in (1, 0.5, 0))
    assert {tuple(row) for row in none} <= {tuple(row) for row in prior.means.astype(np.float64)}
    np.testing.assert_allclose(half - none, (one - none) / 2, atol=1e-6)


def test_the_fitted_stream_shares_no_normal_with_the_standard_one() -> None:
    prior = FittedPrior(np.ones(1, np.float32), np.zeros((1, 4), np.float32), np.eye(4, dtype=np.float32)[None])
    fitted, standard = prior.sample(7, n=50), StandardPrior((4,)).sample(7, n=50)
    assert not np.isin(fitted, standard).any()
    assert abs(np.corrcoef(fitted.ravel(), standard.ravel())[0, 1]) < 4 / np.sqrt(fitted.size)


# Over a socket


def sampled(client: httpx.Client, **options: Any) -> dict[str, np.ndarray]:
    answer = client.get("/sample", params={"format": "safetensors", **options})
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"temperature": 0}])
@pytest.mark.parametrize("n", [1, 17, 100])
def test_a_fitted_sample_is_the_seeds_latents_decoded(
    kinds: httpx.Client, full: Linear, n: int, options: dict[str, float]
) -> None:
    named = sampled(kinds, prior="fitted", seed=7, n=n, **options)
    np.testing.assert_array_equal(named["z"], FittedPrior(**fitted_prior(10)).sample(7, n=n, **options))
    assert_near(named["images"], full.decode(named["z"]))


def test_a_vae_takes_its_standard_prior_unless_told_otherwise(kinds: httpx.Client) -> None:
    default, standard, fitted = (
        sampled(kinds, seed=7, n=4, **asked)["z"] for asked in ({}, {"prior": "standard"}, {"prior": "fitted"})
    )
    np.testing.assert_array_equal(default, StandardPrior((10,)).sample(7, n=4))
    np.testing.assert_array_equal(default, standard)
    assert (default != fitted).all()


def test_the_tag_differs_by_prior(kinds: httpx.Client) -> None:
    tags = {kinds.get(f"/sample?seed=7{query}").headers["etag"] for query in ("", "&prior=fitted")}
    assert len(tags) == 2


def test_a_fitted_prior_that_the_model_lacks_is_409(kinds: httpx.Client) -> None:
    answer = kinds.get("/sample?prior=fitted&model=patches")
    assert answer.status_code == 409
    label = f"patches@{kinds.get('/models/patches').json()['digest']}"
    assert answer.json()["detail"] == f"prior=fitted: {label} carries no fitted prior"


# The file


def test_a_prior_reads_back_as_it_was_written() -> None:
    prior = mixture()
    found = read(content(prior), PATH, latent_dim=4)
    for name in ("weights", "means", "cholesky"):
        np.testing.assert_array_equal(getattr(found, name), getattr(prior, name))


def test_weights_whose_sum_float32_rounded_are_taken() -> None:
    prior = mixture(components=100, latent_dim=2)
    assert read(content(prior), PATH, latent_dim=2).weights.shape == (100,)
    scaled = (prior.weights * np.float32(1 - 5e-5)).astype(np.float32)
    z = read(content(prior, weights=scaled), PATH, latent_dim=2).sample(3, n=2000)
    assert np.isfinite(z).all()


def with_one(prior: FittedPrior, row: int, column: int, value: float) -> NDArray[np.float32]:
    cholesky = prior.cholesky.copy()
    cholesky[2, row, column] = value
    return cholesky


PRIOR = mixture()
SMALLEST_DIAGONAL = f"{PRIOR.cholesky.diagonal(axis1=1, axis2=2).min():.6g}"
HOLED = PRIOR.means.copy()
HOLED[1, 2] = np.nan
ENDLESS = PRIOR.cholesky.copy()
ENDLESS[0, 3, 0] = np.inf


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"means": None}, "its tensors are ['cholesky', 'weights'], expected cholesky, means, weights"),
        (
            {"scale": np.ones(3, np.float32)},
            "its tensors are ['cholesky', 'means', 'scale', 'weights'], expected cholesky, means, weights",
        ),
        ({"weights": np.ones((3, 1), np.float32)}, "weights is float32 (3, 1), expected float32 (k,), k ≥ 1"),
        ({"weights": np.ones(0, np.float32)}, "weights is float32 (0,), expected float32 (k,), k ≥ 1"),
        ({"weights": PRIOR.weights.astype(np.float64)}, "weights is float64 (3,), expected float32 (3,)"),
        ({"means": PRIOR.means[:2]}, "means is float32 (2, 4), expected float32 (3, 4)"),
        ({"means": PRIOR.means[:, :3]}, "means is float32 (3, 3), expected float32 (3, 4)"),
        ({"cholesky": PRIOR.cholesky[:, 0]}, "cholesky is float32 (3, 4), expected float32 (3, 4, 4)"),
        ({"cholesky": PRIOR.cholesky.astype(np.float16)}, "cholesky is float16 (3, 4, 4), expected float32 (3, 4, 4)"),
        ({"means": HOLED}, "means holds NaN or infinity, expected finite numbers"),
        ({"cholesky": ENDLESS}, "cholesky holds NaN or infinity, expected finite numbers"),
        (
            {"weights": np.array([0.5, 0.3, 0.1], np.float32)},
            "weights have the sum 0.9 and the smallest 0.1, expected sum 1 and none below 0",
        ),
        (
            {"weights": np.array([0.75, 0.5, -0.25], np.float32)},
            "weights have the sum 1 and the smallest -0.25, expected sum 1 and none below 0",
        ),
    ],
)  # fmt: skip
def test_what_is_no_density_is_refused_with_what_it_is(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadBundle) as refused:
        read(content(PRIOR, **changes), PATH, latent_dim=4)
    assert str(refused.value) == f"{PATH}: {sentence}"


@pytest.mark.parametrize(
    ("cholesky", "above_it", "on_it"),
    [
        (with_one(PRIOR, 0, 3, -0.5), "0.5", SMALLEST_DIAGONAL),
        (with_one(PRIOR, 1, 1, 0), "0", "0"),
        (with_one(PRIOR, 1, 1, -2), "0", "-2"),
    ],
)
def test_a_factor_that_is_no_triangle_is_refused(cholesky: NDArray[np.float32], above_it: str, on_it: str) -> None:
    with pytest.raises(BadBundle) as refused:
        read(content(PRIOR, cholesky=cholesky), PATH, latent_dim=4)
    found = f"cholesky has up to {above_it} above its diagonals and down to {on_it} on them"
    assert str(refused.value) == f"{PATH}: {found}, expected 0 above and numbers above 0 on them"


def test_a_prior_of_other_latents_is_refused() -> None:
    with pytest.raises(BadBundle, match=r"means is float32 \(3, 4\), expected float32 \(3, 5\)"):
        read(content(PRIOR), PATH, latent_dim=5)


@pytest.mark.parametrize("broken", [b"", b"not a prior", content(PRIOR)[:-1], content(PRIOR) + b"x"])
def test_bytes_that_are_no_safetensors_are_refused(broken: bytes) -> None:
    with pytest.raises(BadBundle, match=rf"^{PATH}: not readable as safetensors \("):
        read(broken, PATH, latent_dim=4)
