"""GET and POST /traverse over a real socket: starts of every kind, the choice of dimensions, lines and frames."""

import asyncio
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from service.latents import prior_sample
from tests.service.conftest import KL_PER_DIMENSION
from tests.service.linear import Linear, OpenLinear
from tests.service.wire import (
    SAFETENSORS,
    assert_near,
    base64_png,
    form,
    frames,
    from_json,
    latents,
    opened,
    pixels,
    png,
    read_tensors,
    tensors,
    tiles,
)
from tests.serving import in_process

Float32 = NDArray[np.float32]


def traversed(client: httpx.Client, method: str = "POST", **request: Any) -> dict[str, np.ndarray]:
    """z and images of a traversal."""
    request["params"] = {"format": "safetensors"} | request.get("params", {})
    answer = client.request(method, "/traverse", **request)
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


def lines(start: Float32, dims: list[int], *, span: float = 3, steps: int = 9) -> np.ndarray:
    """One copy of the start after the other, one number of each replaced.

    Shapes:  start (*latent_shape) -> (len(dims) · steps, *latent_shape)
    """
    rows = []
    for dim in dims:
        for value in np.linspace(-span, span, steps):
            row = start.copy()
            row.flat[dim] = value
            rows.append(row)
    return np.stack(rows)


def start_of(seed: int, latent_shape: tuple[int, ...] = (4,)) -> Float32:
    return prior_sample(seed, n=1, latent_shape=latent_shape)[0]


# Starts


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_seed_starts_at_what_sample_shows(client: httpx.Client, colour: Linear, method: str) -> None:
    named = traversed(client, method, params={"seed": 7})
    np.testing.assert_allclose(named["z"], lines(start_of(7), [0, 1, 2, 3]), atol=1e-6)
    assert_near(named["images"], colour.decode(named["z"]))


@pytest.mark.parametrize("body", ["picture", "form", "json", "safetensors"])
def test_a_picture_starts_at_its_mu(client: httpx.Client, colour: Linear, body: str) -> None:
    image = pixels(1, colour.shape)
    requests: dict[str, dict[str, Any]] = {
        "picture": {"content": png(image[0]), "headers": {"content-type": "image/png"}},
        "form": {"files": form(image)},
        "json": {"json": {"images": [base64_png(image[0])]}},
        "safetensors": {"content": tensors(images=image), "headers": {"content-type": SAFETENSORS}},
    }
    named = traversed(client, params={"dims": "2,0", "steps": 4, "span": 1.5}, **requests[body])
    expected = lines(colour.encode(image)[0][0], [2, 0], span=1.5, steps=4)
    np.testing.assert_allclose(named["z"], expected, atol=1e-5)
    assert_near(named["images"], colour.decode(named["z"]))


@pytest.mark.parametrize("body", ["json", "one", "safetensors"])
def test_a_latent_starts_where_it_is(client: httpx.Client, grey: Linear, body: str) -> None:
    z = latents(1, grey.latent_shape)
    requests: dict[str, dict[str, Any]] = {
        "json": {"json": {"z": z.tolist()}},
        "one": {"json": {"z": z[0].tolist()}},
        "safetensors": {"content": tensors(z=z), "headers": {"content-type": SAFETENSORS}},
    }
    named = traversed(client, params={"model": "grey", "dims": "11,0,5", "steps": 3}, **requests[body])
    assert named["z"].shape == (9, 2, 3, 2)
    np.testing.assert_allclose(named["z"], lines(z[0], [11, 0, 5], steps=3), atol=1e-6)
    assert_near(named["images"], grey.decode(named["z"]))


# Dimensions


def test_the_most_active_dimensions_are_the_default(kinds: httpx.Client) -> None:
    answer = kinds.get("/traverse?seed=7&format=safetensors&steps=2")
    most = sorted(range(10), key=lambda dim: KL_PER_DIMENSION[dim], reverse=True)[:8]
    assert answer.headers["x-dims"] == "8,5,1,3,2,6,9,7" == ",".join(map(str, most))
    expected = lines(start_of(7, (10,)), most, steps=2)
    np.testing.assert_allclose(read_tensors(answer.content)["z"], expected, atol=1e-6)


def test_the_first_dimensions_are_the_default_where_nothing_is_known_of_them(
    client: httpx.Client, grey: Linear
) -> None:
    answer = client.get("/traverse?seed=7&model=grey&format=safetensors&steps=2")
    assert answer.headers["x-dims"] == "0,1,2,3,4,5,6,7"
    expected = lines(start_of(7, grey.latent_shape), list(range(8)), steps=2)
    np.testing.assert_allclose(read_tensors(answer.content)["z"], expected, atol=1e-6)
    assert client.get("/traverse?seed=7").headers["x-dims"] == "0,1,2,3"


@pytest.mark.parametrize("dims", [[3], [3, 0, 3]])
@pytest.mark.parametrize("spelt", ["address", "json", "text"])
def test_dimensions_are_taken_as_asked(client: httpx.Client, dims: list[int], spelt: str) -> None:
    text = ",".join(map(str, dims))
    requests: dict[str, dict[str, Any]] = {
        "address": {"method": "GET", "params": {"seed": 7, "dims": text}},
        "json": {"json": {"seed": 7, "dims": dims}},
        "text": {"json": {"seed": 7, "dims": text}},
    }
    np.testing.assert_allclose(traversed(client, **requests[spelt])["z"], lines(start_of(7), dims), atol=1e-6)
    assert "x-dims" not in client.get("/traverse", params={"seed": 7, "dims": text}).headers


@pytest.mark.parametrize(("span", "steps"), [(3, 9), (0.5, 2), (1000, 5), (2.5, 40)])
def test_a_line_leads_from_one_end_of_the_span_to_the_other(client: httpx.Client, span: float, steps: int) -> None:
    named = traversed(client, "GET", params={"seed": 1, "dims": 2, "span": span, "steps": steps})
    np.testing.assert_allclose(named["z"], lines(start_of(1), [2], span=span, steps=steps), rtol=1e-5, atol=1e-5)
    assert named["z"][0, 2] == -span
    assert named["z"][-1, 2] == span


# Forms


def test_each_dimension_is_a_line_of_the_picture(client: httpx.Client, colour: Linear) -> None:
    answer = client.get("/traverse?seed=7&dims=0,2,1&steps=5&scale=2")
    assert answer.headers["content-type"] == "image/png"
    canvas = opened(answer.content, 3)
    assert canvas.shape == (3 * 12, 5 * 10, 3)
    expected = colour.decode(lines(start_of(7), [0, 2, 1], steps=5).astype(np.float32))
    assert_near(tiles(canvas, (12, 10, 3), 15), expected.repeat(2, axis=1).repeat(2, axis=2))


def test_columns_wrap_the_lines(client: httpx.Client) -> None:
    canvas = opened(client.get("/traverse?seed=7&dims=0,2,1&steps=5&columns=15").content, 3)
    assert canvas.shape == (6, 15 * 5, 3)


@pytest.mark.parametrize(
    ("label", "media_type", "pillow"), [("gif", "image/gif", "GIF"), ("apng", "image/apng", "PNG")]
)
@pytest.mark.parametrize("by", ["format", "accept"])
def test_a_traversal_can_move(
    client: httpx.Client, grey: Linear, label: str, media_type: str, pillow: str, by: str
) -> None:
    params = {"seed": 3, "model": "grey", "dims": "4,1", "steps": 4, "frame_ms": 250, "scale": 2}
    asked: dict[str, Any] = {"params": params | {"format": label}}
    if by == "accept":
        asked = {"params": params, "headers": {"accept": f"text/html, {media_type}"}}
    answer = client.get("/traverse", **asked)
    assert answer.headers["content-type"] == media_type
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, image.n_frames, image.info["duration"]) == (pillow, 8, 250)
    expected = grey.decode(lines(start_of(3, grey.latent_shape), [4, 1], steps=4).astype(np.float32))
    assert_near(frames(answer.content, 1), expected.repeat(2, axis=1).repeat(2, axis=2))


def test_json_tells_the_latents_and_each_picture(client: httpx.Client, colour: Linear) -> None:
    document = client.get("/traverse?seed=7&format=json&steps=3").json()
    assert list(document) == ["model", "digest", "images", "z"]
    z = np.array(document["z"], np.float32)
    np.testing.assert_allclose(z, lines(start_of(7), [0, 1, 2, 3], steps=3), atol=1e-6)
    assert_near(from_json(document["images"], 3), colour.decode(z))


# Open sizes


def test_a_seed_of_an_open_size_is_traversed_in_the_size_that_is_asked_for(
    kinds: httpx.Client, patches: OpenLinear
) -> None:
    for params, places in (({}, (4, 4)), ({"height": 8, "width": 20}, (2, 5)), ({"height": 64}, (16, 4))):
        named = traversed(kinds, "GET", params={"seed": 7, "model": "patches", "dims": "0,7", "steps": 3} | params)
        np.testing.assert_allclose(named["z"], lines(start_of(7, (2, *places)), [0, 7], steps=3), atol=1e-6)
        assert_near(named["images"], patches.decode(named["z"]))


@pytest.mark.parametrize("start", ["picture", "latent"])
def test_a_picture_or_latent_of_an_open_size_keeps_it(kinds: httpx.Client, patches: OpenLinear, start: str) -> None:
    image = pixels(1, (8, 12, 3))
    z = patches.encode(image)[0]
    request: dict[str, Any] = {"files": form(image)} if start == "picture" else {"json": {"z": z.tolist()}}
    named = traversed(kinds, params={"model": "patches", "dims": "11", "steps": 3}, **request)
    np.testing.assert_allclose(named["z"], lines(z[0], [11], steps=3), atol=1e-5)
    assert named["images"].shape == (3, 8, 12, 3)
    params = {"model": "patches", "height": 8, "width": 12}
    assert kinds.post("/traverse", params=params, **request).status_code == 200


# Addresses

SEEDED = "/traverse?seed=7&dims=1,0"


def test_an_address_is_asked_for_again_and_answered_by_304(client: httpx.Client) -> None:
    first = client.get(SEEDED)
    assert first.headers["cache-control"] == "no-cache"
    for method in ("GET", "HEAD"):
        again = client.request(method, SEEDED, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert {name: again.headers[name] for name in ("etag", "cache-control", "vary", "x-model")} == {
            name: first.headers[name] for name in ("etag", "cache-control", "vary", "x-model")
        }
    pinned = client.get(f"{SEEDED}&model={first.headers['x-model']}")
    assert pinned.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_dimensions_that_the_manifest_chose_are_asked_for_again_even_of_a_pinned_model(client: httpx.Client) -> None:
    """They are of its diagnostics, which may change while the digest does not."""
    first = client.get("/traverse?seed=7")
    pinned = client.get(f"/traverse?seed=7&model={first.headers['x-model']}")
    assert pinned.headers["cache-control"] == "no-cache"
    assert pinned.headers["x-dims"] == first.headers["x-dims"]


def test_head_is_get_without_its_body(client: httpx.Client) -> None:
    got, headed = client.get("/traverse?seed=7"), client.head("/traverse?seed=7")
    assert headed.status_code == 200
    assert headed.content == b""
    for name in ("content-type", "content-length", "etag", "x-dims", "x-model"):
        assert headed.headers[name] == got.headers[name]


def test_what_is_held_never_touches_the_engine(app: FastAPI) -> None:
    def broken(*_rows: object) -> Any:
        raise RuntimeError("the engine was touched")

    async def scenario() -> None:
        async with in_process(app) as client:
            tag = (await client.get("/traverse?seed=7&dims=0&steps=2")).headers["etag"]
            app.state.deployment.models.default.decoder.run = broken
            held = await client.get("/traverse?seed=7&dims=0&steps=2", headers={"if-none-match": tag})
            assert held.status_code == 304
            assert (await client.get("/traverse?seed=7&dims=0&steps=2")).status_code == 500

    asyncio.run(scenario())


def test_the_tag_differs_by_every_option(kinds: httpx.Client) -> None:
    queries = [
        "seed=7", "seed=8", "seed=7&dims=0", "seed=7&dims=0,1", "seed=7&dims=1,0", "seed=7&span=2", "seed=7&steps=5",
        "seed=7&columns=2", "seed=7&scale=2", "seed=7&frame_ms=50", "seed=7&format=gif", "seed=7&model=patches",
        "seed=7&model=patches&height=8", "seed=7&model=patches&width=8",
    ]  # fmt: skip
    assert len({kinds.get(f"/traverse?{query}").headers["etag"] for query in queries}) == len(queries)


def test_the_tag_is_the_same_where_the_default_dimensions_are_asked_for(kinds: httpx.Client) -> None:
    default = kinds.get("/traverse?seed=7&steps=2")
    asked = kinds.get(f"/traverse?seed=7&steps=2&dims={default.headers['x-dims']}")
    assert asked.content == default.content
    assert asked.headers["etag"] == default.headers["etag"]


def test_a_post_has_no_address(client: httpx.Client) -> None:
    answer = client.post("/traverse", json={"seed": 7}, headers={"if-none-match": "*"})
    assert answer.status_code == 200
    assert not {"etag", "cache-control"} & answer.headers.keys()


# What cannot be


@pytest.mark.parametrize(
    ("query", "where", "got", "expected"),
    [
        ("", "start", "none", "one of an image, z and seed, as in seed=3"),
        ("seed=1&dims=4", "query.dims[0]", "4", "0 to 3, the dimensions of a latent"),
        (
            "seed=1&dims=0,99999999999999999999",
            "query.dims[1]",
            "99999999999999999999",
            "0 to 3, the dimensions of a latent",
        ),
        ("seed=1&dims=-1", "query.dims[0]", "-1", "greater than or equal to 0"),
        ("seed=1&dims=", "query.dims[0]", "nothing", "a whole number"),
        ("seed=1&dims=0,x", "query.dims[1]", "x", "a whole number"),
        ("seed=-1", "query.seed", "-1", "greater than or equal to 0"),
        ("seed=1&steps=1", "query.steps", "1", "greater than or equal to 2"),
        ("seed=1&span=0", "query.span", "0", "greater than 0"),
        ("seed=1&span=nan", "query.span", "nan", "a finite number"),
        ("seed=1&span=1001", "query.span", "1001", "less than or equal to 1000"),
        ("seed=1&format=bmp", "query.format", "bmp", "one of png, webp, jpeg, json, safetensors, gif, apng"),
    ],
)
def test_an_address_that_cannot_be_is_refused_by_its_place(
    client: httpx.Client, query: str, where: str, got: str, expected: str
) -> None:
    answer = client.get(f"/traverse?{query}")
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault == {"where": where, "got": got, "expected": expected}


@pytest.mark.parametrize(
    ("body", "where", "got"),
    [
        ({}, "start", "none"),
        ({"z": [0, 0, 0, 0], "seed": 1}, "start", "seed and z"),
        ({"z": [[0, 0, 0, 0]] * 2}, "z", "2 rows"),
        ({"z": [0, 0, 0, 1e39]}, "body.z[0]", "NaN, infinity, or a number beyond float32"),
        ({"z": [0, 0, 0]}, "body.z", "shape (3,)"),
        ({"dims": [], "seed": 1}, "body.dims", "[]"),
    ],
)
def test_a_start_that_cannot_be_is_refused(client: httpx.Client, body: dict[str, Any], where: str, got: str) -> None:
    answer = client.post("/traverse", json=body)
    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["where"], answer.json()["errors"][0]["got"]) == (where, got)


def test_two_pictures_are_no_start(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    answer = client.post("/traverse", files=form(image))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "images: got 2 rows, expected one, which is traversed"
    both = client.post("/traverse?seed=1", files=form(image[:1]))
    assert both.json()["detail"] == "start: got seed and images, expected one of an image, z and seed, as in seed=3"


@pytest.mark.parametrize(
    ("params", "detail"),
    [
        ({"height": 16}, "query.height: got 16, expected 8, as form.images[0] has it"),
        ({"height": 8, "width": 16}, "query.width: got 16, expected 12, as form.images[0] has it"),
    ],
)
def test_a_size_that_the_picture_has_not_is_refused(kinds: httpx.Client, params: dict[str, int], detail: str) -> None:
    answer = kinds.post("/traverse", params={"model": "patches"} | params, files=form(pixels(1, (8, 12, 3))))
    assert answer.status_code == 422
    assert answer.json()["detail"] == detail


def test_a_dimension_is_one_of_the_latent_in_its_size(kinds: httpx.Client) -> None:
    query = "/traverse?seed=1&model=patches&height=8&width=4&dims="
    assert kinds.get(f"{query}3").status_code == 200
    answer = kinds.get(f"{query}4")
    assert answer.json()["detail"] == "query.dims[0]: got 4, expected 0 to 3, the dimensions of a latent"


@pytest.mark.parametrize(
    ("request_parts", "rows"),
    [
        ({"params": {"seed": 1, "dims": "0", "steps": 9}}, 9),
        ({"params": {"seed": 1, "dims": "0,1,2", "steps": 3}}, 9),
        ({"params": {"seed": 1, "dims": "0", "steps": 10**400}}, 10**400),
        ({"method": "POST", "params": {"dims": "0", "steps": 8}, "files": form(pixels(1, (6, 5, 3)))}, 9),
    ],
)
def test_rows_over_the_limit_are_413(tight: httpx.Client, request_parts: dict[str, Any], rows: int) -> None:
    answer = tight.request(**{"method": "GET", "url": "/traverse"} | request_parts)
    assert answer.status_code == 413
    assert answer.json()["detail"] == f"rows: got {rows:,} rows, the limit is 8"


def test_the_pixels_of_all_lines_count(tight: httpx.Client) -> None:
    assert tight.get("/traverse?seed=1&dims=0,1&steps=2&scale=2").status_code == 200
    answer = tight.get("/traverse?seed=1&dims=0,1&steps=3&scale=2")
    assert answer.status_code == 413
    assert answer.json()["detail"] == "answer: got 720 pixels, the limit is 600"
