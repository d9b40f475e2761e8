"""POST /reconstruct over a real socket: decode(mu), and the comparison with what was sent."""

from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.linear import Linear, OpenLinear
from tests.service.wire import (
    SAFETENSORS,
    Uint8,
    assert_near,
    base64_png,
    form,
    from_json,
    opened,
    picture,
    pixels,
    png,
    read_tensors,
    saved,
    tensors,
    tiles,
)


def reconstructed(client: httpx.Client, image: Uint8, **params: Any) -> dict[str, np.ndarray]:
    answer = client.post(
        "/reconstruct",
        params={"format": "safetensors", **params},
        content=tensors(images=image),
        headers={"content-type": SAFETENSORS},
    )
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


@pytest.mark.parametrize("model", ["colour", "grey"])
@pytest.mark.parametrize("n", [1, 5, 17])
def test_a_reconstruction_is_the_picture_of_its_mu(
    client: httpx.Client, colour: Linear, grey: Linear, model: str, n: int
) -> None:
    linear = {"colour": colour, "grey": grey}[model]
    image = pixels(n, linear.shape)
    named = reconstructed(client, image, model=model)
    assert set(named) == {"images", "z"}
    np.testing.assert_allclose(named["z"], linear.encode(image)[0], atol=1e-5)
    assert_near(named["images"], linear.decode(linear.encode(image)[0]))


@pytest.mark.parametrize("body", ["picture", "form", "json"])
def test_every_body_gives_the_same_picture(client: httpx.Client, colour: Linear, body: str) -> None:
    image = pixels(1, colour.shape)
    requests: dict[str, dict[str, Any]] = {
        "picture": {"content": png(image[0]), "headers": {"content-type": "image/png"}},
        "form": {"files": form(image)},
        "json": {"json": {"images": [base64_png(row) for row in image]}},
    }
    answer = client.post("/reconstruct", **requests[body])
    assert answer.headers["content-type"] == "image/png"
    assert_near(opened(answer.content, 3)[None], colour.decode(colour.encode(image)[0]))


def test_several_make_a_grid_in_the_order_sent(client: httpx.Client, colour: Linear) -> None:
    image = pixels(5, colour.shape)
    canvas = opened(client.post("/reconstruct?scale=2", files=form(image)).content, 3)
    assert canvas.shape == (2 * 12, 3 * 10, 3)
    made = colour.decode(colour.encode(image)[0]).repeat(2, axis=1).repeat(2, axis=2)
    assert_near(tiles(canvas, (12, 10, 3), 5), made)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize(
    ("n", "columns", "expected_columns"), [(1, None, 1), (4, None, 2), (3, 2, 2), (5, 5, 5), (2, 9, 2)]
)
def test_compare_shows_each_picture_above_its_reconstruction(
    client: httpx.Client, colour: Linear, n: int, columns: int | None, expected_columns: int, scale: int
) -> None:
    image = pixels(n, colour.shape)
    params = {"compare": True, "scale": scale} | ({} if columns is None else {"columns": columns})
    canvas = opened(client.post("/reconstruct", params=params, files=form(image)).content, 3)
    pairs = -(-n // expected_columns)
    height, width, _ = (side * scale for side in colour.shape)
    assert canvas.shape == (2 * pairs * height, expected_columns * width, 3)
    made = colour.decode(colour.encode(image)[0])
    for index in range(n):
        pair, column = divmod(index, expected_columns)
        left = slice(column * width, (column + 1) * width)
        above = canvas[2 * pair * height :][:height, left]
        below = canvas[(2 * pair + 1) * height :][:height, left]
        np.testing.assert_array_equal(above[::scale, ::scale], image[index])
        assert_near(below[::scale, ::scale], made[index])
    unfilled = canvas[2 * (pairs - 1) * height :, (n - (pairs - 1) * expected_columns) * width :]
    assert not unfilled.any()


@pytest.mark.parametrize(("label", "media_type"), [("webp", "image/webp"), ("jpeg", "image/jpeg")])
def test_a_comparison_comes_as_webp_and_jpeg_too(
    client: httpx.Client, colour: Linear, label: str, media_type: str
) -> None:
    answer = client.post(f"/reconstruct?compare=true&format={label}", files=form(pixels(4, colour.shape)))
    assert answer.headers["content-type"] == media_type
    assert opened(answer.content, 3).shape == (24, 10, 3)


def test_numbers_carry_what_was_sent_beside_what_was_made(client: httpx.Client, colour: Linear) -> None:
    image = pixels(3, colour.shape)
    made = colour.decode(colour.encode(image)[0])
    named = reconstructed(client, image, compare=True)
    assert set(named) == {"images", "inputs", "z"}
    np.testing.assert_array_equal(named["inputs"], image)
    assert_near(named["images"], made)
    document = client.post("/reconstruct?compare=true&format=json", files=form(image)).json()
    np.testing.assert_array_equal(from_json(document["inputs"], 3), image)
    assert_near(from_json(document["images"], 3), made)
    assert "inputs" not in client.post("/reconstruct?format=json", files=form(image)).json()


def test_what_is_compared_is_the_picture_as_the_model_takes_it(client: httpx.Client, colour: Linear) -> None:
    large = saved(picture(pixels(1, (60, 40, 3))[0]), "PNG")
    answer = client.post("/reconstruct?compare=true", content=large, headers={"content-type": "image/png"})
    canvas = opened(answer.content, 3)
    assert canvas.shape == (12, 5, 3)
    assert_near(canvas[None, 6:], colour.decode(colour.encode(canvas[None, :6])[0]))


@pytest.mark.parametrize(("size", "kept"), [((16, 16), (16, 16)), ((21, 12), (20, 12)), ((4, 64), (4, 64))])
def test_a_picture_of_an_open_size_keeps_it(
    kinds: httpx.Client, patches: OpenLinear, size: tuple[int, int], kept: tuple[int, int]
) -> None:
    image = pixels(1, (*size, 3))
    answer = kinds.post("/reconstruct?compare=true&model=patches", files=form(image))
    canvas = opened(answer.content, 3)
    height, width = kept
    assert canvas.shape == (2 * height, width, 3)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    np.testing.assert_array_equal(canvas[:height], image[0, top : top + height, left : left + width])
    assert_near(canvas[None, height:], patches.decode(patches.encode(canvas[None, :height])[0]))


def test_latents_of_open_sizes_have_the_sides_of_their_picture(kinds: httpx.Client, patches: OpenLinear) -> None:
    image = pixels(2, (12, 20, 3))
    named = reconstructed(kinds, image, model="patches")
    assert named["z"].shape == (2, 2, 3, 5)
    np.testing.assert_allclose(named["z"], patches.encode(image)[0], atol=1e-5)


# What cannot be


def test_no_picture_is_422(client: httpx.Client) -> None:
    answer = client.post("/reconstruct", json={"compare": True})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "body: got no images, expected at least one picture"


@pytest.mark.parametrize(
    ("params", "where"),
    [({"compare": "perhaps"}, "query.compare"), ({"seed": 1}, "query.seed"), ({"format": "gif"}, "query.format")],
)
def test_an_option_that_cannot_be_is_422(
    client: httpx.Client, colour: Linear, params: dict[str, Any], where: str
) -> None:
    answer = client.post("/reconstruct", params=params, files=form(pixels(1, colour.shape)))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == where


def test_a_row_counts_for_both_graphs(tight: httpx.Client, colour: Linear) -> None:
    assert tight.post("/reconstruct", files=form(pixels(4, colour.shape))).status_code == 200
    answer = tight.post("/reconstruct", files=form(pixels(5, colour.shape)))
    assert answer.status_code == 413
    assert answer.json()["detail"] == "rows: got 10 rows, the limit is 8"


def test_the_pixels_of_a_comparison_count_twice(tight: httpx.Client, colour: Linear) -> None:
    image = form(pixels(4, colour.shape))
    assert tight.post("/reconstruct?scale=2", files=image).status_code == 200
    answer = tight.post("/reconstruct?scale=2&compare=true", files=image)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "answer: got 960 pixels, the limit is 600"


def test_a_comparison_has_twice_the_height_for_its_format_too(client: httpx.Client, grey: Linear) -> None:
    image = form(np.zeros((10, *grey.shape), np.uint8))
    query = "/reconstruct?model=grey&columns=1&scale=32&format=webp"
    assert client.post(query, files=image).status_code == 200
    answer = client.post(f"{query}&compare=true", files=image)
    assert answer.status_code == 413
    said = answer.json()["detail"]
    assert said == "side of webp, with 1 columns: got 17,920 pixels, the limit is 16,383; format=png has room"


def test_a_picture_smaller_than_one_place_of_a_latent_is_422(kinds: httpx.Client) -> None:
    body = saved(Image.new("RGB", (3, 16)), "PNG")
    answer = kinds.post("/reconstruct?model=patches", content=body, headers={"content-type": "image/png"})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert (fault["where"], fault["got"]) == ("body", "height 16, width 3")
