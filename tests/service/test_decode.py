"""POST /decode over a real socket: latents of every form to pictures of every form."""

from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.linear import Linear
from tests.service.wire import SAFETENSORS, assert_near, from_json, latents, opened, read_tensors, tensors, tiles


def nested(depth: int) -> object:
    """A number in a list in a list, so many deep."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def decoded(client: httpx.Client, **request: Any) -> dict[str, np.ndarray]:
    """images and z of an answer in safetensors."""
    request["params"] = {"format": "safetensors"} | request.get("params", {})
    answer = client.post("/decode", **request)
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


@pytest.mark.parametrize("n", [1, 2, 16, 17, 70])
def test_json_latents_become_their_pictures(client: httpx.Client, colour: Linear, n: int) -> None:
    z = latents(n, colour.latent_shape)
    named = decoded(client, json={"z": z.tolist()})
    np.testing.assert_array_equal(named["z"], z)
    assert_near(named["images"], colour.decode(z))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_tensor_of_latents_becomes_their_pictures(client: httpx.Client, colour: Linear, dtype: type) -> None:
    z = latents(5, colour.latent_shape).astype(dtype)
    named = decoded(client, content=tensors(z=z), headers={"content-type": SAFETENSORS})
    assert named["z"].dtype == np.float32
    np.testing.assert_array_equal(named["z"], z)
    assert_near(named["images"], colour.decode(z.astype(np.float32)))


@pytest.mark.parametrize("model", ["colour", "grey"])
@pytest.mark.parametrize("body", ["json", "safetensors"])
def test_a_single_latent_counts_as_one_row(
    client: httpx.Client, colour: Linear, grey: Linear, model: str, body: str
) -> None:
    linear = {"colour": colour, "grey": grey}[model]
    (z,) = latents(1, linear.latent_shape)
    request: dict[str, Any] = (
        {"json": {"z": z.tolist()}}
        if body == "json"
        else {"content": tensors(z=z), "headers": {"content-type": SAFETENSORS}}
    )
    named = decoded(client, params={"model": model}, **request)
    np.testing.assert_array_equal(named["z"], z[None])
    assert_near(named["images"], linear.decode(z[None]))


def test_latents_keep_their_nesting(client: httpx.Client, grey: Linear) -> None:
    z = latents(4, grey.latent_shape)
    document = client.post("/decode?model=grey&format=json", json={"z": z.tolist()}).json()
    np.testing.assert_array_equal(np.array(document["z"], np.float32), z)
    assert_near(from_json(document["images"], 1), grey.decode(z))
    assert "seed" not in document


@settings(max_examples=25)
@given(values=st.lists(st.floats(-1e4, 1e4, width=32) | st.integers(-100, 100), min_size=4, max_size=4))
def test_json_latents_are_read_and_answered_to_the_last_bit(client: httpx.Client, values: list[float]) -> None:
    document = client.post("/decode?format=json", json={"z": values}).json()
    assert np.array(document["z"][0], np.float32).tobytes() == np.array(values, np.float32).tobytes()


def test_what_was_encoded_can_be_decoded(client: httpx.Client, colour: Linear) -> None:
    image = np.random.default_rng(3).integers(0, 256, (3, *colour.shape), dtype=np.uint8)
    encoded = client.post("/encode", content=tensors(images=image), headers={"content-type": SAFETENSORS}).json()
    named = decoded(client, json={"z": encoded["mu"]})
    assert_near(named["images"], colour.decode(colour.encode(image)[0]))


def test_pictures_are_a_grid_by_default(client: httpx.Client, colour: Linear) -> None:
    z = latents(7, colour.latent_shape)
    answer = client.post("/decode", json={"z": z.tolist()})
    assert answer.headers["content-type"] == "image/png"
    canvas = opened(answer.content, 3)
    assert canvas.shape == (3 * 6, 3 * 5, 3)
    assert_near(tiles(canvas, colour.shape, 7), colour.decode(z))


@pytest.mark.parametrize(("label", "media_type"), [("webp", "image/webp"), ("jpeg", "image/jpeg")])
def test_other_forms_are_had_by_format_and_accept(client: httpx.Client, label: str, media_type: str) -> None:
    body = {"z": [0.1, 0.2, 0.3, 0.4]}
    by_format = client.post(f"/decode?format={label}", json=body)
    by_accept = client.post("/decode", json=body, headers={"accept": media_type})
    in_body = client.post("/decode", json=body | {"format": label})
    assert by_format.headers["content-type"] == by_accept.headers["content-type"] == media_type
    assert by_format.content == by_accept.content == in_body.content


def test_options_may_stand_beside_the_latents(client: httpx.Client, colour: Linear) -> None:
    z = latents(4, colour.latent_shape)
    in_body = client.post("/decode", json={"z": z.tolist(), "columns": 4, "scale": 2})
    in_query = client.post("/decode?columns=4&scale=2", json={"z": z.tolist()})
    assert in_body.content == in_query.content
    assert opened(in_body.content, 3).shape == (12, 40, 3)


@pytest.mark.parametrize(
    ("z", "where", "got"),
    [
        ([1, 2, 3], "z", "shape (3,)"),
        ([[1, 2, 3, 4, 5]], "z", "shape (1, 5)"),
        ([[[0.5, 2, 3, 4]]], "z", "shape (1, 1, 4)"),
        ([], "z", "shape (0,)"),
        (1.5, "z", "a number"),
        ("abc", "z", "a text"),
        ({"a": 1}, "z", "an object"),
        ([1, 2, 3, None], "z[3]", "null"),
        ([1, 2, 3, "4"], "z[3]", "a text"),
        ([True, False, True, False], "z[0]", "true"),
        ([[1, 2, 3, 4], [1, 2, "3", 4]], "z[1][2]", "a text"),
        ([[1, 2, 3, 4], [1, 2]], "z[1]", "(2,)"),
        ([[1, 2, 3, 4], [1, 2, 3, [4]]], "z[1]", "lists of unequal lengths, or too deep"),
        (nested(64), "z", f"shape {(1,) * 64}"),
        (nested(65), "z", "lists of unequal lengths, or too deep"),
        (nested(200), "z[0]", "lists of unequal lengths, or too deep"),
        ([[0, 0, 0, 0], [0, 0, 0, 0], [0, 1e39, 0, 0]], "z[2]", "NaN, infinity, or a number beyond float32"),
    ],
)
def test_latents_that_cannot_be_are_refused_with_what_was_found(
    client: httpx.Client, z: object, where: str, got: str
) -> None:
    answer = client.post("/decode", json={"z": z})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert (fault["where"], fault["got"]) == (f"body.{where}", got)


@pytest.mark.parametrize("z", [[1.0] * 3 + ["text"] * 1_000, [[1.0] * 3 + ["text"] * 1_000]])
def test_a_list_whose_length_is_wrong_is_not_looked_through(client: httpx.Client, z: list[Any]) -> None:
    answer = client.post("/decode", json={"z": z})
    shape = tuple(np.array(z).shape)
    assert answer.json()["detail"] == f"body.z: got shape {shape}, expected (n, 4), n ≥ 1, or one latent"


def test_more_rows_than_there_may_be_are_not_looked_through(client: httpx.Client) -> None:
    most = client.get("/models/colour").json()["limits"]["max_request_rows"]
    answer = client.post("/decode", json={"z": [[0] * 4] * most + ["text"]})
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith(f"rows: got {most + 1:,} rows, the limit is {most:,}")


@pytest.mark.parametrize(
    ("z", "where"),
    [
        (np.zeros((2, 5), np.float32), "z"),
        (np.zeros((0, 4), np.float32), "z"),
        (np.zeros((), np.float32), "z"),
        (np.zeros((2, 4), np.float64), "z"),
        (np.zeros((2, 4), np.int32), "z"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), "z[1]"),
        (np.array([[0, 0, 0, -np.inf]], np.float16), "z[0]"),
    ],
    ids=["width", "no rows", "scalar", "float64", "int32", "nan", "infinity"],
)
def test_a_tensor_that_cannot_be_is_refused(client: httpx.Client, z: np.ndarray, where: str) -> None:
    answer = client.post("/decode", content=tensors(z=z), headers={"content-type": SAFETENSORS})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == f"tensor.{where}"


@pytest.mark.parametrize(
    "request_parts",
    [{}, {"json": {}}, {"json": {"z": None}}, {"content": tensors(), "headers": {"content-type": SAFETENSORS}}],
    ids=["no body", "empty object", "null", "no tensor"],
)
def test_no_latents_are_refused(client: httpx.Client, request_parts: dict[str, Any]) -> None:
    answer = client.post("/decode", **request_parts)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"where": "body", "got": "no z", "expected": "at least one latent"}]
