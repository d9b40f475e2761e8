"""POST /score over a real socket, against the formulas written out in numpy."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.app import create_app
from service.latents import Purpose, normals
from service.routes import latents as routes
from service.settings import Settings
from tests.service.linear import Linear, OpenLinear
from tests.service.wire import SAFETENSORS, base64_png, form, pixels, png, read_tensors, tensors
from tests.serving import in_process

Float64 = NDArray[np.float64]


def expected(model: Linear | OpenLinear, image: NDArray[np.uint8]) -> dict[str, Float64]:
    """recon, kl and elbo at the posterior's mean."""
    mu, logvar = (array.astype(np.float64) for array in model.encode(image))
    recon = -model.log_likelihood(image, mu.astype(np.float32)).astype(np.float64)
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).reshape(len(image), -1).sum(axis=1)
    return {"recon": recon, "kl": kl, "elbo": -(recon + kl)}


def expected_bound(model: Linear | OpenLinear, image: NDArray[np.uint8], *, seed: int, k: int) -> Float64:
    """log 1/k sum of p(x given z) p(z) / q(z given x), density by density."""
    mu, logvar = model.encode(image)
    eps = normals(seed, Purpose.SCORE, rows=len(image), latent_shape=mu.shape[1:], draws=k)
    bounds = []
    for row, (mean, log_variance, noise) in enumerate(zip(mu, logvar, eps, strict=True)):
        sigma = np.exp(log_variance.astype(np.float64) / 2)
        weights = []
        for draw in noise:
            z = mean + sigma * draw
            log_p = -0.5 * (z**2 + np.log(2 * np.pi)).sum()
            log_q = -0.5 * (((z - mean) / sigma) ** 2 + np.log(2 * np.pi * sigma**2)).sum()
            (log_likelihood,) = model.log_likelihood(image[row : row + 1], z[None].astype(np.float32))
            weights.append(log_likelihood + log_p - log_q)
        largest = max(weights)
        bounds.append(largest + np.log(np.mean(np.exp(np.array(weights) - largest))))
    return np.array(bounds)


def scored(client: httpx.Client, image: NDArray[np.uint8], **params: Any) -> dict[str, np.ndarray]:
    answer = client.post(
        "/score",
        params={"format": "safetensors", **params},
        content=tensors(images=image),
        headers={"content-type": SAFETENSORS},
    )
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


@pytest.mark.parametrize("n", [1, 16, 17, 50])
def test_scores_are_the_formulas(kinds: httpx.Client, full: Linear, n: int) -> None:
    image = pixels(n, full.shape)
    found = scored(kinds, image)
    assert set(found) == {"recon", "kl", "elbo"}
    for name, values in expected(full, image).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("body", ["picture", "form", "json", "safetensors"])
def test_every_body_gives_the_same_scores(kinds: httpx.Client, full: Linear, body: str) -> None:
    image = pixels(1, full.shape)
    requests: dict[str, dict[str, Any]] = {
        "picture": {"content": png(image[0]), "headers": {"content-type": "image/png"}},
        "form": {"files": form(image)},
        "json": {"json": {"images": [base64_png(row) for row in image]}},
        "safetensors": {"content": tensors(images=image), "headers": {"content-type": SAFETENSORS}},
    }
    document = kinds.post("/score", **requests[body]).json()
    assert list(document) == ["model", "digest", "recon", "kl", "elbo"]
    for name, values in expected(full, image).items():
        np.testing.assert_allclose(document[name], values, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_draws_add_the_importance_weighted_bound(kinds: httpx.Client, full: Linear, k: int) -> None:
    image = pixels(3, full.shape)
    found, without = scored(kinds, image, k=k, seed=11), scored(kinds, image)
    assert set(found) == {"recon", "kl", "elbo", "log_likelihood"}
    np.testing.assert_allclose(found["log_likelihood"], expected_bound(full, image, seed=11, k=k), rtol=1e-4)
    for name, values in without.items():
        np.testing.assert_array_equal(found[name], values)


def test_a_seed_repeats_a_score_and_another_does_not(kinds: httpx.Client, full: Linear) -> None:
    image = pixels(2, full.shape)
    first, again, other = (scored(kinds, image, k=3, seed=seed)["log_likelihood"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_a_seed_that_was_drawn_for_you_is_told(kinds: httpx.Client, full: Linear) -> None:
    image = pixels(1, full.shape)
    answer = kinds.post("/score?k=4", files=form(image))
    document = answer.json()
    assert document["seed"] == int(answer.headers["x-seed"]) < 2**53
    again = kinds.post("/score", params={"k": 4, "seed": document["seed"]}, files=form(image))
    assert again.json() == document
    assert "x-seed" not in again.headers


def test_without_draws_there_is_no_seed(kinds: httpx.Client, full: Linear) -> None:
    for params in ({}, {"seed": 3}):
        answer = kinds.post("/score", params=params, files=form(pixels(1, full.shape)))
        assert "seed" not in answer.json()
        assert "x-seed" not in answer.headers


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (64, 4)])
def test_pictures_of_open_sizes_are_scored_in_their_own(
    kinds: httpx.Client, patches: OpenLinear, size: tuple[int, int]
) -> None:
    image = pixels(2, (*size, 3))
    found = scored(kinds, image, k=2, seed=5, model="patches")
    for name, values in expected(patches, image).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4)
    bound = expected_bound(patches, image, seed=5, k=2)
    np.testing.assert_allclose(found["log_likelihood"], bound, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_pictures_are_copied_a_few_at_a_time_and_each_keeps_its_own_draws(
    kinds: httpx.Client, kinds_folder: Path, full: Linear, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    image = pixels(3, full.shape)
    whole = scored(kinds, image, k=5, seed=1)
    monkeypatch.setattr(routes, "_COPIES_BYTES", rows * image[0].nbytes)
    app = create_app(Settings(bundles=(kinds_folder / "full",), max_batch_rows=16))

    async def ask() -> httpx.Response:
        async with in_process(app) as client:
            return await client.post("/score?k=5&seed=1&format=safetensors", files=form(image))

    found = read_tensors(asyncio.run(ask()).content)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_everyone_gets_the_scores_of_their_own_pictures(kinds: httpx.Client, full: Linear) -> None:
    crowd = [pixels(n, full.shape, seed=n) for n in range(1, 12)]

    async def ask(http: httpx.AsyncClient, image: np.ndarray) -> httpx.Response:
        return await http.post("/score?k=2&seed=9", files=form(image))

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=kinds.base_url, timeout=30) as http:
            return await asyncio.gather(*(ask(http, image) for image in crowd))

    for image, answer in zip(crowd, asyncio.run(together()), strict=True):
        document = answer.json()
        np.testing.assert_allclose(document["recon"], expected(full, image)["recon"], rtol=1e-4)
        bound = expected_bound(full, image, seed=9, k=2)
        np.testing.assert_allclose(document["log_likelihood"], bound, rtol=1e-4)


# What cannot be


def test_a_model_without_a_scorer_is_409(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/score", files=form(pixels(1, colour.shape)))
    assert answer.status_code == 409
    label = client.get("/sample?seed=1").headers["x-model"]
    assert answer.json()["detail"] == f"score: {label} carries no scorer"


def test_the_rows_of_a_score_count_over_both_graphs(kinds: httpx.Client, full: Linear) -> None:
    """Of each picture one for the encoder, and 1 + k for the scorer."""
    image = pixels(2, full.shape)
    assert len(scored(kinds, image, k=126, seed=1)["log_likelihood"]) == 2
    answer = kinds.post("/score?k=127", files=form(image))
    assert answer.status_code == 413
    assert answer.json()["detail"] == "rows: got 258 rows, the limit is 256"


def test_rows_of_open_sizes_count_pixels(kinds: httpx.Client) -> None:
    """A picture of 64 × 64 counts as sixteen of the default size."""
    image = form(pixels(1, (64, 64, 3)))
    assert kinds.post("/score?k=14&model=patches", files=image).status_code == 200
    answer = kinds.post("/score?k=15&model=patches", files=image)
    assert answer.status_code == 413
    assert (
        answer.json()["detail"]
        == "rows: got 272 rows, the limit is 256; rows are counted in pictures of the default size"
    )


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"k": -1}, ("query.k", "-1", "greater than or equal to 0")),
        ({"k": "many"}, ("query.k", "many", "a whole number")),
        ({"seed": -1}, ("query.seed", "-1", "greater than or equal to 0")),
        ({"draws": 1}, ("query.draws", "draws", "one of model, format, k, seed")),
        ({"format": "png"}, ("query.format", "png", "one of json, safetensors")),
    ],
)
def test_an_option_that_cannot_be_is_422(
    kinds: httpx.Client, full: Linear, params: dict[str, Any], fault: tuple[str, str, str]
) -> None:
    answer = kinds.post("/score", params=params, files=form(pixels(1, full.shape)))
    assert answer.status_code == 422
    (found,) = answer.json()["errors"]
    assert (found["where"], found["got"], found["expected"]) == fault


def test_no_picture_is_422(kinds: httpx.Client) -> None:
    answer = kinds.post("/score", json={"k": 1})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "body: got no images, expected at least one picture"


def test_pictures_of_two_sizes_are_422_where_sizes_are_open(kinds: httpx.Client) -> None:
    files = [*form(pixels(2, (8, 8, 3))), *form(pixels(1, (8, 12, 3)))]
    answer = kinds.post("/score?model=patches", files=files)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "form.images[2]"


def test_a_scorer_that_fails_is_500_and_the_next_request_works(kinds_folder: Path, full: Linear) -> None:
    app = create_app(Settings(bundles=(kinds_folder / "full",), max_batch_rows=16))
    scorer, image = app.state.deployment.models.default.scorer, form(pixels(1, full.shape))
    run = scorer.run

    def broken(*_inputs: np.ndarray) -> Any:
        raise RuntimeError("a secret of the scorer")

    async def scenario() -> None:
        async with in_process(app) as client:
            scorer.run = broken
            answer = await client.post("/score", files=image)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            scorer.run = run
            assert (await client.post("/score", files=image)).status_code == 200

    asyncio.run(scenario())
