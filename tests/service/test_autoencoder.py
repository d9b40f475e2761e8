"""What an autoencoder answers: it has mu and reconstructions, a prior only where one was fitted, and no posterior."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from service.latents import path
from service.prior import FittedPrior
from tests.service.linear import Linear, fitted_prior
from tests.service.wire import SAFETENSORS, assert_near, form, pixels, read_tensors, tensors

Float32 = np.typing.NDArray[np.float32]


@pytest.fixture(scope="module")
def density() -> FittedPrior:
    return FittedPrior(**fitted_prior())


def label(client: httpx.Client, name: str) -> str:
    return f"{name}@{client.get(f'/models/{name}').json()['digest']}"


def arrays(client: httpx.Client, url: str, **request: Any) -> dict[str, np.ndarray]:
    request["headers"] = {"accept": SAFETENSORS} | request.get("headers", {})
    answer = client.request(request.pop("method", "POST"), url, **request)
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


# Pictures


def test_it_encodes_to_mu_and_no_logvar(kinds: httpx.Client, autoencoder: Linear) -> None:
    image = pixels(5, autoencoder.shape)
    document = kinds.post("/encode?model=autoencoder", files=form(image)).json()
    assert list(document) == ["model", "digest", "mu", "logvar"]
    assert document["logvar"] is None
    mu = autoencoder.encode(image)[0]
    np.testing.assert_allclose(document["mu"], mu, atol=1e-5)
    named = arrays(kinds, "/encode?model=autoencoder", files=form(image))
    assert set(named) == {"mu"}
    np.testing.assert_allclose(named["mu"], mu, atol=1e-5)


def test_it_scores_by_recon_alone(kinds: httpx.Client, autoencoder: Linear) -> None:
    image = pixels(5, autoencoder.shape)
    document = kinds.post("/score?model=autoencoder", files=form(image)).json()
    assert list(document) == ["model", "digest", "recon", "kl", "elbo"]
    assert document["kl"] is None
    assert document["elbo"] is None
    recon = -autoencoder.log_likelihood(image, autoencoder.encode(image)[0])
    np.testing.assert_allclose(document["recon"], recon, rtol=1e-4)
    named = arrays(kinds, "/score?model=autoencoder", files=form(image))
    assert set(named) == {"recon"}
    np.testing.assert_allclose(named["recon"], recon, rtol=1e-4)


def test_it_reconstructs_decodes_and_walks_between_pictures_as_any_model(
    kinds: httpx.Client, autoencoder: Linear
) -> None:
    image = pixels(2, autoencoder.shape)
    mu = autoencoder.encode(image)[0]
    for model in ("autoencoder", "bare"):
        named = arrays(kinds, f"/reconstruct?model={model}", files=form(image))
        assert_near(named["images"], autoencoder.decode(mu))
        named = arrays(kinds, f"/decode?model={model}", content=tensors(z=mu), headers={"content-type": SAFETENSORS})
        assert_near(named["images"], autoencoder.decode(mu))
        named = arrays(kinds, f"/interpolate?model={model}&steps=3", files=form(image))
        np.testing.assert_allclose(named["z"], [mu[0], mu.mean(axis=0), mu[1]], atol=1e-5)
        named = arrays(kinds, f"/traverse?model={model}&steps=3&dims=0", files=form(image[:1]))
        np.testing.assert_allclose(named["z"][:, 1:], mu[[0, 0, 0], 1:], atol=1e-5)


# Seeds


@pytest.mark.parametrize("prior", [{}, {"prior": "fitted"}])
def test_its_seeds_are_of_the_fitted_prior(
    kinds: httpx.Client, autoencoder: Linear, density: FittedPrior, prior: dict[str, str]
) -> None:
    params = {"model": "autoencoder", "seed": 7, "n": 20, "temperature": 0.5} | prior
    named = arrays(kinds, "/sample", method="GET", params=params)
    np.testing.assert_array_equal(named["z"], density.sample(7, n=20, temperature=0.5))
    assert_near(named["images"], autoencoder.decode(named["z"]))


def test_seeds_as_points_of_a_path_are_of_the_fitted_prior(kinds: httpx.Client, density: FittedPrior) -> None:
    ends = np.concatenate([density.sample(seed, n=1) for seed in (3, 14)])
    named = arrays(kinds, "/interpolate?model=autoencoder&seeds=3,14", method="GET")
    np.testing.assert_array_equal(named["z"], path(ends, steps=9, method="linear", loop=False))
    named = arrays(kinds, "/interpolate?model=autoencoder", json={"points": [{"seed": 14}, {"seed": 3}]})
    np.testing.assert_array_equal(named["z"][[0, -1]], ends[::-1])


def test_a_seed_as_the_start_of_a_traversal_is_of_the_fitted_prior(kinds: httpx.Client, density: FittedPrior) -> None:
    named = arrays(kinds, "/traverse?model=autoencoder&seed=3&dims=1&steps=2", method="GET")
    expected = density.sample(3, n=1).repeat(2, axis=0)
    expected[:, 1] = [-3, 3]
    np.testing.assert_array_equal(named["z"], expected)


# What it cannot


def draws(client: httpx.Client, **params: Any) -> httpx.Response:
    return client.post("/encode", params=params, files=form(pixels(1, (6, 5, 3))))


def bound(client: httpx.Client, **params: Any) -> httpx.Response:
    return client.post("/score", params=params, files=form(pixels(1, (6, 5, 3))))


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 409, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    detail: str = answer.json()["detail"]
    return detail


@pytest.mark.parametrize("model", ["autoencoder", "bare"])
def test_draws_from_a_posterior_are_409(kinds: httpx.Client, model: str) -> None:
    refusal = f"{label(kinds, model)} is an autoencoder, it has no posterior to draw from"
    assert refused(draws(kinds, model=model, draws=2)) == f"draws=2: {refusal}"


def test_the_bound_of_draws_is_409(kinds: httpx.Client) -> None:
    refusal = f"{label(kinds, 'autoencoder')} is an autoencoder, it has no posterior to draw from"
    assert refused(bound(kinds, model="autoencoder", k=3)) == f"k=3: {refusal}"


def test_a_score_without_a_scorer_is_409(kinds: httpx.Client) -> None:
    assert refused(bound(kinds, model="bare")) == f"score: {label(kinds, 'bare')} carries no scorer"


@pytest.mark.parametrize("model", ["autoencoder", "bare"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_standard_prior_is_409(kinds: httpx.Client, model: str, method: str) -> None:
    refusal = f"prior=standard: {label(kinds, model)} is an autoencoder, its latents know no N(0, I)"
    for headers in ({}, {"if-none-match": "*"}):
        answer = kinds.request(method, f"/sample?seed=1&prior=standard&model={model}", headers=headers)
        assert refused(answer) == refusal


WITHOUT: list[Callable[[httpx.Client], httpx.Response]] = [
    lambda client: client.get("/sample?model=bare"),
    lambda client: client.get("/sample?model=bare&seed=1", headers={"if-none-match": "*"}),
    lambda client: client.get("/interpolate?model=bare&seeds=1,2", headers={"if-none-match": "*"}),
    lambda client: client.post("/interpolate?model=bare", json={"points": [{"z": [0] * 4}, {"seed": 1}]}),
    lambda client: client.get("/traverse?model=bare&seed=1", headers={"if-none-match": "*"}),
]


@pytest.mark.parametrize("ask", WITHOUT, ids=["sample", "held", "seeds", "points", "traverse"])
def test_seeds_without_a_fitted_prior_are_409(
    kinds: httpx.Client, ask: Callable[[httpx.Client], httpx.Response]
) -> None:
    refusal = f"prior: {label(kinds, 'bare')} is an autoencoder without a fitted one, no seed has latents"
    assert refused(ask(kinds)) == refusal


def test_a_fitted_prior_that_it_lacks_is_409(kinds: httpx.Client) -> None:
    refusal = f"prior=fitted: {label(kinds, 'bare')} carries no fitted prior"
    assert refused(kinds.get("/sample?model=bare&prior=fitted")) == refusal
