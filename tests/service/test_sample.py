"""GET and POST /sample over a real socket: seeds, every form out, and how pictures are put together."""

import json
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.latents import MAX_SEED, prior_sample
from tests.service.linear import Linear
from tests.service.wire import SAFETENSORS, assert_near, from_json, opened, read_tensors, tiles


def sampled(client: httpx.Client, **options: Any) -> dict[str, np.ndarray]:
    """z and images of a sample."""
    answer = client.get("/sample", params={"format": "safetensors", **options})
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


@pytest.mark.parametrize("model", ["colour", "grey"])
@pytest.mark.parametrize("n", [1, 5, 16, 17, 40, 130])
def test_a_sample_is_the_seeds_latents_decoded(
    client: httpx.Client, colour: Linear, grey: Linear, model: str, n: int
) -> None:
    linear = colour if model == "colour" else grey
    named = sampled(client, model=model, n=n, seed=7)
    np.testing.assert_array_equal(named["z"], prior_sample(7, n=n, latent_shape=linear.latent_shape))
    assert_near(named["images"], linear.decode(named["z"]))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**53, MAX_SEED])
def test_any_seed_of_sixty_three_bits_is_taken_exactly(client: httpx.Client, seed: int) -> None:
    np.testing.assert_array_equal(sampled(client, seed=seed)["z"], prior_sample(seed, n=1, latent_shape=(4,)))
    posted = client.post("/sample", json={"seed": seed, "format": "safetensors"})
    np.testing.assert_array_equal(read_tensors(posted.content)["z"], prior_sample(seed, n=1, latent_shape=(4,)))


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64, "1.5", "x", ""])
def test_any_other_seed_is_refused(client: httpx.Client, seed: object) -> None:
    answer = client.get("/sample", params={"seed": seed})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "query.seed"


def test_few_are_a_prefix_of_many(client: httpx.Client) -> None:
    few, many = sampled(client, n=4, seed=3), sampled(client, n=100, seed=3)
    np.testing.assert_array_equal(few["z"], many["z"][:4])
    assert_near(few["images"], many["images"][:4])


def test_temperature_scales_the_latents(client: httpx.Client, colour: Linear) -> None:
    one, half, none = (sampled(client, n=3, seed=3, temperature=t) for t in (1, 0.5, 0))
    np.testing.assert_array_equal(half["z"], one["z"] * np.float32(0.5))
    assert not none["z"].any()
    assert_near(none["images"], colour.decode(np.zeros((3, 4), np.float32)))


def test_a_seed_that_was_drawn_for_you_is_told_and_repeats_the_answer(client: httpx.Client) -> None:
    first = client.get("/sample?n=3")
    seed = int(first.headers["x-seed"])
    assert 0 <= seed < 2**53
    again = client.get(f"/sample?n=3&seed={seed}")
    assert again.content == first.content
    assert "x-seed" not in again.headers
    assert client.get("/sample?n=3").headers["x-seed"] != str(seed)


def test_json_tells_the_seed_the_latents_and_each_picture(client: httpx.Client, colour: Linear) -> None:
    answer = client.get("/sample?n=3&format=json")
    document = answer.json()
    assert list(document) == ["model", "digest", "seed", "images", "z"]
    assert document["seed"] == int(answer.headers["x-seed"])
    z = np.array(document["z"], np.float32)
    np.testing.assert_array_equal(z, prior_sample(document["seed"], n=3, latent_shape=(4,)))
    assert_near(from_json(document["images"], 3), colour.decode(z))


def test_json_nests_the_latents_as_the_model_does(client: httpx.Client) -> None:
    document = client.get("/sample?n=3&model=grey&seed=1&format=json").json()
    assert np.array(document["z"]).shape == (3, 2, 3, 2)
    assert from_json(document["images"], 1).shape == (3, 28, 28, 1)


def test_an_options_json_posted_is_the_same_sample(client: httpx.Client) -> None:
    options = {"n": 5, "seed": 9, "temperature": 0.7, "columns": 2, "scale": 3}
    assert client.post("/sample", json=options).content == client.get("/sample", params=options).content


def test_a_post_without_a_body_takes_its_options_from_the_query(client: httpx.Client) -> None:
    assert client.post("/sample?n=2&seed=4").content == client.get("/sample?n=2&seed=4").content


@pytest.mark.parametrize("options", [{"height": 6}, {"width": 5}, {"height": 6, "width": 5}])
def test_the_models_own_size_may_be_asked_for(client: httpx.Client, options: dict[str, int]) -> None:
    named = sampled(client, seed=7, **options)
    np.testing.assert_array_equal(named["images"], sampled(client, seed=7)["images"])


@pytest.mark.parametrize(("name", "side", "own"), [("height", 12, 6), ("width", 6, 5), ("width", 1, 5)])
def test_a_model_of_one_size_makes_no_other(client: httpx.Client, name: str, side: int, own: int) -> None:
    answer = client.get("/sample", params={"seed": 7, name: side})
    assert answer.status_code == 422
    assert answer.json()["detail"] == f"query.{name}: got {side}, expected {own}"


# Forms


@pytest.mark.parametrize(
    ("label", "media_type"), [("png", "image/png"), ("webp", "image/webp"), ("jpeg", "image/jpeg")]
)
@pytest.mark.parametrize("by", ["format", "accept"])
def test_every_still_form_can_be_had(client: httpx.Client, grey: Linear, label: str, media_type: str, by: str) -> None:
    params = {"model": "grey", "n": 1, "seed": 5} | ({"format": label} if by == "format" else {})
    headers = {"accept": media_type if by == "accept" else "text/html"}
    answer = client.get("/sample", params=params, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers.get("vary") == (None if by == "format" else "Accept")
    with Image.open(BytesIO(answer.content)) as image:
        assert image.format == label.upper()
    expected = grey.decode(prior_sample(5, n=1, latent_shape=grey.latent_shape))[0]
    difference = np.abs(opened(answer.content, 1).astype(int) - expected)
    assert difference.mean() < (1 if label == "png" else 20)


@pytest.mark.parametrize(("accept", "media_type"), [("application/json", "application/json"), (SAFETENSORS,) * 2])
def test_numbers_can_be_had_by_accept(client: httpx.Client, accept: str, media_type: str) -> None:
    answer = client.get("/sample?seed=5", headers={"accept": accept})
    assert answer.headers["content-type"] == media_type
    assert answer.headers["vary"] == "Accept"


def test_png_is_the_default_for_curl_and_for_a_browser(client: httpx.Client) -> None:
    curl = client.get("/sample?seed=5")
    address_bar = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    assert curl.headers["content-type"] == "image/png"
    assert client.get("/sample?seed=5", headers={"accept": address_bar}).content == curl.content


def test_an_animation_of_a_sample_is_no_form(client: httpx.Client) -> None:
    assert client.get("/sample?format=gif").status_code == 422
    assert client.get("/sample", headers={"accept": "image/gif"}).status_code == 406


# Grids


@pytest.mark.parametrize(
    ("n", "options", "lines", "columns"),
    [
        (1, {}, 1, 1),
        (5, {}, 2, 3),
        (16, {}, 4, 4),
        (6, {"columns": 6}, 1, 6),
        (6, {"columns": 1}, 6, 1),
        (6, {"columns": 4}, 2, 4),
        (3, {"columns": 100}, 1, 3),
        (5, {"scale": 4}, 2, 3),
        (5, {"scale": 32, "columns": 5}, 1, 5),
    ],
)
def test_a_grid_shows_the_pictures_in_order(
    client: httpx.Client, colour: Linear, n: int, options: dict[str, int], lines: int, columns: int
) -> None:
    answer = client.get("/sample", params={"n": n, "seed": 8, **options})
    scale = options.get("scale", 1)
    canvas = opened(answer.content, 3)
    assert canvas.shape == (lines * 6 * scale, columns * 5 * scale, 3)
    expected = colour.decode(prior_sample(8, n=n, latent_shape=(4,))).repeat(scale, axis=1).repeat(scale, axis=2)
    assert_near(tiles(canvas, (6 * scale, 5 * scale, 3), n), expected)
    filled = n * 6 * 5 * scale**2
    assert not tiles(canvas, (6 * scale, 5 * scale, 3), lines * columns)[n:].any()
    assert filled <= canvas.shape[0] * canvas.shape[1]


def test_scale_enlarges_the_pictures_of_json_too(client: httpx.Client) -> None:
    plain, large = (client.get(f"/sample?n=2&seed=8&format=json&scale={scale}").json() for scale in (1, 3))
    assert plain["z"] == large["z"]
    expected = from_json(plain["images"], 3).repeat(3, axis=1).repeat(3, axis=2)
    assert_near(from_json(large["images"], 3), expected, levels=0)


def test_safetensors_holds_the_models_own_pixels_at_any_scale(client: httpx.Client) -> None:
    np.testing.assert_array_equal(sampled(client, seed=8, scale=4)["images"], sampled(client, seed=8)["images"])


@pytest.mark.parametrize("label", ["jpeg", "webp"])
def test_quality_costs_bytes(client: httpx.Client, label: str) -> None:
    sizes = [
        len(client.get(f"/sample?model=grey&n=9&seed=1&format={label}&quality={quality}").content)
        for quality in (1, 50, 100)
    ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n", 0), ("n", -1), ("n", "two"), ("temperature", -0.1), ("temperature", "nan"), ("temperature", "inf"),
        ("columns", 0), ("scale", 0), ("scale", 33), ("quality", 0), ("quality", 101), ("prior", "none"),
        ("format", "svg"), ("frame_ms", 50), ("seeds", "1,2"), ("images", "x"),
    ],
)  # fmt: skip
def test_an_option_out_of_its_range_is_named(client: httpx.Client, option: str, value: object) -> None:
    answer = client.get("/sample", params={option: value})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["where"] in {f"query.{option}", option}
    assert fault["got"] in {str(value), option}
    assert fault["expected"]


@pytest.mark.parametrize(
    ("path", "option", "value", "expected"),
    [
        ("/sample", "n", True, "a whole number"),
        ("/sample", "seed", False, "a whole number"),
        ("/sample", "temperature", True, "a finite number"),
        ("/interpolate", "loop", 1, "true or false"),
        ("/interpolate", "loop", 0.0, "true or false"),
    ],
)
def test_a_truth_is_no_number_and_a_number_no_truth(
    client: httpx.Client, path: str, option: str, value: object, expected: str
) -> None:
    answer = client.post(path, json={option: value})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert (fault["where"], fault["expected"]) == (f"body.{option}", expected)
    assert fault["got"] == (json.dumps(value) if isinstance(value, bool) else str(value))


@pytest.mark.parametrize("place", ["query", "body"])
def test_more_options_than_any_verb_knows_are_refused_by_their_number(client: httpx.Client, place: str) -> None:
    options = {f"a{index}": index for index in range(65)}
    answer = client.post("/sample", **({"params": options} if place == "query" else {"json": options}))
    assert (answer.status_code, answer.json()["detail"]) == (422, "options: got 65 of them, expected at most 64")


def test_every_wrong_option_is_named_at_once(client: httpx.Client) -> None:
    answer = client.get("/sample?n=0&scale=99&colour=red")
    assert {fault["where"] for fault in answer.json()["errors"]} == {"query.n", "query.scale", "query.colour"}
