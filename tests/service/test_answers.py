"""Answers that are too long for one message, over a real socket."""

import httpx
import numpy as np
import pytest

from tests.service.linear import Linear
from tests.service.wire import SAFETENSORS, from_json, latents, pixels, read_tensors, tensors

ROWS = 4096
BINARY = {"content-type": SAFETENSORS, "accept": SAFETENSORS}


@pytest.fixture(scope="module")
def image(colour: Linear) -> np.ndarray:
    return pixels(ROWS, colour.shape)


@pytest.fixture(scope="module")
def encoded(client: httpx.Client, image: np.ndarray) -> httpx.Response:
    return client.post("/encode", content=tensors(images=image), headers=BINARY)


def test_a_long_safetensors_answer_has_a_length_and_every_row(
    encoded: httpx.Response, colour: Linear, image: np.ndarray
) -> None:
    assert encoded.headers["content-length"] == str(len(encoded.content))
    assert len(encoded.content) > 2**16
    found = read_tensors(encoded.content)
    for name, expected in zip(("mu", "logvar"), colour.encode(image), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_long_json_answer_has_a_length_and_the_numbers_of_safetensors(
    client: httpx.Client, encoded: httpx.Response, image: np.ndarray, dtype: str
) -> None:
    asked = {"dtype": dtype, "format": "json"}
    answer = client.post("/encode", params=asked, content=tensors(images=image), headers=BINARY)
    assert answer.headers["content-length"] == str(len(answer.content))
    document = answer.json()
    assert list(document) == ["model", "digest", "mu", "logvar"]
    for name, expected in read_tensors(encoded.content).items():
        np.testing.assert_array_equal(np.array(document[name], dtype), expected.astype(dtype))


def test_a_long_safetensors_answer_in_half_precision_is_half_as_long(
    client: httpx.Client, encoded: httpx.Response, image: np.ndarray
) -> None:
    answer = client.post("/encode?dtype=float16", content=tensors(images=image), headers=BINARY)
    found = read_tensors(answer.content)
    for name, expected in read_tensors(encoded.content).items():
        assert found[name].dtype == np.float16
        np.testing.assert_array_equal(found[name], expected.astype(np.float16))


@pytest.mark.parametrize("form", ["json", "safetensors"])
def test_a_long_answer_of_pictures_has_a_length_and_every_picture(
    client: httpx.Client, colour: Linear, form: str
) -> None:
    z = latents(ROWS // 4, colour.latent_shape)
    answer = client.post(f"/decode?format={form}", content=tensors(z=z), headers=BINARY)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert len(answer.content) > 2**16
    found = answer.json() if form == "json" else read_tensors(answer.content)
    images = from_json(found["images"], channels=3) if form == "json" else found["images"]
    assert np.abs(images.astype(int) - colour.decode(z)).max() <= 1
    np.testing.assert_array_equal(np.array(found["z"], np.float32), z)


def test_a_head_of_a_long_answer_tells_its_length_and_sends_nothing(client: httpx.Client) -> None:
    url = "/sample?n=1024&seed=1&format=safetensors"
    headed, got = client.head(url), client.get(url)
    assert headed.content == b""
    assert headed.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
