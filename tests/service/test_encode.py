"""POST /encode over a real socket: every body in, both forms out, against numpy."""

import base64
import re
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from PIL import Image

from service.latents import Purpose, normals, posterior_sample
from tests.service.linear import Linear
from tests.service.wire import (
    SAFETENSORS,
    base64_png,
    form,
    opened,
    picture,
    pixels,
    png,
    read_tensors,
    saved,
    tensors,
)


def assert_posterior(document: dict[str, Any], model: Linear, image: np.ndarray) -> None:
    """mu and logvar are numpy's, a row for each picture, nested as the latents are."""
    for name, expected in zip(("mu", "logvar"), model.encode(image), strict=True):
        found = np.array(document[name])
        assert found.shape == (len(image), *model.latent_shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_a_picture_is_a_body(client: httpx.Client, colour: Linear, file_format: str) -> None:
    body = saved(picture(pixels(1, colour.shape)[0]), file_format.upper())
    answer = client.post("/encode", content=body, headers={"content-type": f"image/{file_format}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert_posterior(answer.json(), colour, opened(body, 3)[None])


def test_a_picture_is_known_by_its_bytes_not_by_its_media_type(client: httpx.Client, colour: Linear) -> None:
    image = pixels(1, colour.shape)
    answer = client.post("/encode", content=png(image[0]), headers={"content-type": "image/JPEG; charset=none"})
    assert_posterior(answer.json(), colour, image)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 50])
def test_a_form_carries_several_pictures_in_order(client: httpx.Client, colour: Linear, n: int) -> None:
    image = pixels(n, colour.shape)
    assert_posterior(client.post("/encode", files=form(image)).json(), colour, image)


def test_a_form_may_mix_formats_and_sizes(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    big = Image.fromarray(image[1]).resize((50, 60), Image.Resampling.NEAREST)
    files = [("images", ("a.bmp", saved(picture(image[0]), "BMP"))), ("images", ("b.png", saved(big, "PNG")))]
    found = client.post("/encode", files=files).json()["mu"]
    np.testing.assert_allclose(found[0], colour.encode(image)[0][0], atol=1e-5)
    assert found[1] != found[0]


@pytest.mark.parametrize(
    "head",
    ["", "data:image/png;base64,", "DATA:Image/PNG;Base64,", "data:;base64,", "data:application/x;a=b;base64,"],
)
def test_json_carries_pictures_as_base64_or_data_uri(client: httpx.Client, colour: Linear, head: str) -> None:
    image = pixels(3, colour.shape)
    answer = client.post("/encode", json={"images": [head + base64_png(row) for row in image]})
    assert_posterior(answer.json(), colour, image)


def test_a_data_uri_may_have_the_signs_of_base64_escaped(client: httpx.Client, colour: Linear) -> None:
    image = pixels(3, colour.shape)
    encoded = [base64_png(row).replace("+", "%2B").replace("/", "%2f").replace("=", "%3D") for row in image]
    answer = client.post("/encode", json={"images": [f"data:image/png;base64,{each}" for each in encoded]})
    assert_posterior(answer.json(), colour, image)


@pytest.mark.parametrize("n", [1, 16, 33])
def test_safetensors_carries_the_pixels_themselves(client: httpx.Client, colour: Linear, n: int) -> None:
    image = pixels(n, colour.shape)
    answer = client.post("/encode", content=tensors(images=image), headers={"content-type": SAFETENSORS})
    assert_posterior(answer.json(), colour, image)


def test_every_body_form_gives_the_same_answer(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    answers = [
        client.post("/encode", files=form(image)),
        client.post("/encode", json={"images": [base64_png(row) for row in image]}),
        client.post("/encode", content=tensors(images=image), headers={"content-type": SAFETENSORS}),
    ]
    assert len({answer.content for answer in answers}) == 1


def test_an_upload_in_chunks_is_read_whole(client: httpx.Client, colour: Linear) -> None:
    image = pixels(1, colour.shape)
    body = png(image[0])
    chunks = (body[start : start + 7] for start in range(0, len(body), 7))
    answer = client.post("/encode", content=chunks, headers={"content-type": "image/png"})
    assert_posterior(answer.json(), colour, image)


def test_pictures_of_megabytes_in_a_form_are_read(client: httpx.Client, grey: Linear) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1100, 1100, 1), dtype=np.uint8)
    assert len(png(image)) > 2**20
    answer = client.post("/encode?model=grey", files=[("images", ("big.png", png(image)))])
    fitted = client.post("/encode?model=grey", content=png(image), headers={"content-type": "image/png"})
    assert answer.content == fitted.content
    assert np.array(answer.json()["mu"]).shape == (1, *grey.latent_shape)


def test_latents_keep_their_nesting(client: httpx.Client, grey: Linear) -> None:
    image = pixels(3, grey.shape)
    answer = client.post("/encode?model=grey", files=form(image))
    assert answer.headers["x-model"].startswith("grey@")
    assert_posterior(answer.json(), grey, image)


def test_json_says_which_model_answered(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=form(pixels(1, colour.shape)))
    document = answer.json()
    assert list(document) == ["model", "digest", "mu", "logvar"]
    assert answer.headers["x-model"] == f"{document['model']}@{document['digest']}"
    assert document["model"] == "colour"


@pytest.mark.parametrize("accepted", ["application/json", SAFETENSORS])
def test_of_two_headers_of_one_name_the_first_counts(client: httpx.Client, colour: Linear, accepted: str) -> None:
    body = png(pixels(1, colour.shape)[0])
    sent = [("accept", accepted), ("accept", "image/png"), ("content-type", "image/png"), ("content-type", "a/b")]
    assert client.post("/encode", content=body, headers=sent).headers["content-type"] == accepted


@pytest.mark.parametrize("asked", [{"params": {"format": "safetensors"}}, {"headers": {"accept": SAFETENSORS}}])
def test_safetensors_gives_the_same_numbers(client: httpx.Client, colour: Linear, asked: dict[str, Any]) -> None:
    image = pixels(20, colour.shape)
    answer = client.post("/encode", files=form(image), **asked)
    assert answer.headers["content-type"] == SAFETENSORS
    assert answer.headers.get("vary") == ("Accept" if "headers" in asked else None)
    named = read_tensors(answer.content)
    assert set(named) == {"mu", "logvar"}
    for name, expected in zip(("mu", "logvar"), colour.encode(image), strict=True):
        assert named[name].dtype == np.float32
        np.testing.assert_allclose(named[name], expected, atol=1e-5)
    as_json = client.post("/encode?format=json", files=form(image)).json()
    np.testing.assert_array_equal(np.array(as_json["mu"], np.float32), named["mu"])


def test_json_floats_are_the_shortest_text_of_their_float32(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=form(pixels(30, colour.shape)))
    start = answer.text.index('"mu":')
    texts = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", answer.text[start:])
    assert len(texts) == 2 * 30 * 4
    for text in texts:
        assert float(text) == float(str(np.float32(text)))
        assert len(text.lstrip("-")) <= len(np.format_float_positional(np.float32(text), unique=True).lstrip("-"))


def test_half_precision_halves_the_numbers(client: httpx.Client, colour: Linear) -> None:
    image = pixels(4, colour.shape)
    answer = client.post("/encode?dtype=float16&format=safetensors", files=form(image))
    named = read_tensors(answer.content)
    assert named["mu"].dtype == named["logvar"].dtype == np.float16
    np.testing.assert_allclose(named["mu"], colour.encode(image)[0], rtol=1e-3, atol=1e-4)
    as_json = client.post("/encode?dtype=float16", files=form(image)).json()
    np.testing.assert_array_equal(np.array(as_json["mu"], np.float16), named["mu"])


# Draws


def test_draws_are_reparameterised_from_the_posterior(client: httpx.Client, colour: Linear) -> None:
    image = pixels(3, colour.shape)
    answer = client.post("/encode?draws=5&seed=11&format=safetensors", files=form(image))
    named = read_tensors(answer.content)
    assert named["z"].shape == (3, 5, 4)
    np.testing.assert_array_equal(named["z"], posterior_sample(named["mu"], named["logvar"], seed=11, draws=5))
    mu, logvar = colour.encode(image)
    eps = normals(11, Purpose.POSTERIOR, rows=3, latent_shape=(4,), draws=5)
    np.testing.assert_allclose(named["z"], mu[:, None] + np.exp(logvar / 2)[:, None] * eps, atol=1e-5)
    assert "x-seed" not in answer.headers


def test_draws_keep_the_nesting_of_latents(client: httpx.Client, grey: Linear) -> None:
    document = client.post("/encode?model=grey&draws=2&seed=1", files=form(pixels(3, grey.shape))).json()
    assert np.array(document["z"]).shape == (3, 2, 2, 3, 2)
    assert document["seed"] == 1


def test_fewer_draws_and_fewer_pictures_are_a_prefix(client: httpx.Client, colour: Linear) -> None:
    image = pixels(4, colour.shape)

    def drawn(n: int, draws: int) -> np.ndarray:
        answer = client.post(f"/encode?draws={draws}&seed={2**40}", files=form(image[:n]))
        return np.array(answer.json()["z"])

    np.testing.assert_allclose(drawn(2, 3), drawn(4, 6)[:2, :3], atol=1e-5)


@pytest.mark.parametrize("answer_format", ["json", "safetensors"])
def test_a_seed_that_was_drawn_for_you_is_told_and_repeats_the_answer(
    client: httpx.Client, colour: Linear, answer_format: str
) -> None:
    files = form(pixels(2, colour.shape))
    first = client.post(f"/encode?draws=2&format={answer_format}", files=files)
    seed = int(first.headers["x-seed"])
    assert 0 <= seed < 2**53
    again = client.post(f"/encode?draws=2&format={answer_format}&seed={seed}", files=files)
    assert again.content == first.content
    other = client.post(f"/encode?draws=2&format={answer_format}", files=files)
    assert other.headers["x-seed"] != first.headers["x-seed"]


def test_without_draws_there_is_no_seed(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode?seed=3", files=form(pixels(1, colour.shape)))
    assert answer.status_code == 200
    assert "x-seed" not in answer.headers
    assert not {"seed", "z"} & answer.json().keys()


# Where options stand


def test_options_stand_in_the_query_the_json_or_the_form(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    options = {"draws": 2, "seed": 5, "dtype": "float16", "model": "colour", "format": "safetensors"}
    answers = [
        client.post("/encode", params=options, files=form(image)),
        client.post("/encode", data={name: str(value) for name, value in options.items()}, files=form(image)),
        client.post("/encode", json={"images": [base64_png(row) for row in image], **options}),
        client.post("/encode?draws=2&seed=5", data={"dtype": "float16", "format": "safetensors"}, files=form(image)),
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize(
    ("request_parts", "where", "first"),
    [
        ({"params": [("seed", 1), ("seed", 1)]}, "query.seed", "query.seed"),
        ({"params": {"seed": 1}, "data": {"seed": "1"}}, "form.seed", "query.seed"),
        ({"data": {"seed": ["1", "2"]}}, "form.seed", "form.seed"),
    ],
    ids=["query twice", "query and form", "form twice"],
)
def test_the_same_option_twice_is_refused(
    client: httpx.Client, colour: Linear, request_parts: dict[str, Any], where: str, first: str
) -> None:
    answer = client.post("/encode", files=form(pixels(1, colour.shape)), **request_parts)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"where": where, "got": f"seed once more, after {first}", "expected": "it once"}]


def test_the_same_option_in_query_and_json_is_refused(client: httpx.Client, colour: Linear) -> None:
    body = {"images": [base64_png(pixels(1, colour.shape)[0])], "draws": 2}
    answer = client.post("/encode?draws=2", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == "body.draws"


@pytest.mark.parametrize("place", ["query", "form", "body"])
def test_an_unknown_option_is_refused_wherever_it_stands(client: httpx.Client, colour: Linear, place: str) -> None:
    image = pixels(1, colour.shape)
    parts: dict[str, dict[str, Any]] = {
        "query": {"params": {"steps": 3}, "files": form(image)},
        "form": {"data": {"steps": "3"}, "files": form(image)},
        "body": {"json": {"images": [base64_png(image[0])], "steps": 3}},
    }
    answer = client.post("/encode", **parts[place])
    assert answer.status_code == 422
    members = "images, " if place == "body" else ""
    expected = f"one of {members}model, format, draws, seed, dtype"
    assert answer.json()["errors"] == [{"where": f"{place}.steps", "got": "steps", "expected": expected}]


@pytest.mark.parametrize("name", ["steps", "draws", "points"])
def test_a_tensor_that_the_verb_does_not_read_is_refused_an_option_too(
    client: httpx.Client, colour: Linear, name: str
) -> None:
    content = tensors(images=pixels(1, colour.shape), **{name: np.ones(2, np.int64)})
    answer = client.post("/encode", content=content, headers={"content-type": SAFETENSORS})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"where": f"tensor.{name}", "got": name, "expected": "one of images"}]


# Headers


def test_every_answer_tells_where_its_time_went(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=form(pixels(3, colour.shape)))
    number = r"\d+\.\d{3}"
    parts = [f"{name};dur={number}" for name in ("decode", "queue", "run", "encode")] + [r'batch;desc="\d+ rows"']
    assert re.fullmatch(", ".join(parts), answer.headers["server-timing"])


def test_a_post_is_not_for_caches(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=form(pixels(1, colour.shape)))
    assert not {"etag", "cache-control"} & answer.headers.keys()
    assert answer.headers["vary"] == "Accept"


def test_the_embedding_of_a_picture_takes_three_lines_of_python(server_url: str, colour: Linear) -> None:
    """As a service would do it that knows only base64 and JSON."""
    image = pixels(1, colour.shape)
    body = orjson.dumps({"images": [base64.b64encode(png(image[0])).decode()]})
    answer = httpx.post(f"{server_url}/encode", content=body, headers={"content-type": "application/json"})
    np.testing.assert_allclose(answer.json()["mu"], colour.encode(image)[0], atol=1e-5)
