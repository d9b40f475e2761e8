"""GET and POST /interpolate over a real socket: points of every kind, paths of every kind, strips and animations."""

from io import BytesIO
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.latents import path, prior_sample
from tests.service.linear import Linear, OpenLinear
from tests.service.test_errors import problem
from tests.service.wire import (
    SAFETENSORS,
    assert_near,
    base64_png,
    form,
    frames,
    from_json,
    latents,
    opened,
    picture,
    pixels,
    png,
    read_tensors,
    saved,
    tensors,
    tiles,
)

Float32 = NDArray[np.float32]


def walked(client: httpx.Client, method: str = "POST", **request: Any) -> dict[str, np.ndarray]:
    """z and images along a path."""
    request["params"] = {"format": "safetensors"} | request.get("params", {})
    answer = client.request(method, "/interpolate", **request)
    assert answer.status_code == 200, answer.text
    return dict(read_tensors(answer.content))


def ends_of(seeds: list[int], latent_shape: tuple[int, ...] = (4,)) -> Float32:
    return np.concatenate([prior_sample(seed, n=1, latent_shape=latent_shape) for seed in seeds])


def straight(ends: Float32, steps: int) -> np.ndarray:
    """A linear path, leg by leg, with numpy's own linspace."""
    legs = [np.linspace(start, end, steps)[:-1] for start, end in pairwise(ends)]
    return np.concatenate([*legs, ends[-1:]])


# Points


@pytest.mark.parametrize("model", ["colour", "grey"])
@pytest.mark.parametrize("seeds", [[3, 14], [3, 14, 15], [2**40, 0, 1, 1]])
def test_seeds_in_an_address_are_the_points(
    client: httpx.Client, colour: Linear, grey: Linear, model: str, seeds: list[int]
) -> None:
    linear = {"colour": colour, "grey": grey}[model]
    params = {"seeds": ",".join(map(str, seeds)), "model": model}
    named = walked(client, "GET", params=params)
    ends = ends_of(seeds, linear.latent_shape)
    assert named["z"].shape == ((len(seeds) - 1) * 8 + 1, *linear.latent_shape)
    np.testing.assert_array_equal(named["z"][::8], ends)
    np.testing.assert_allclose(named["z"], straight(ends, 9), atol=1e-6)
    assert_near(named["images"], linear.decode(named["z"]))


@pytest.mark.parametrize("seeds", [[3, 14], "3,14", ["3", 14]])
def test_seeds_in_json_are_the_same_points(client: httpx.Client, seeds: object) -> None:
    posted = client.post("/interpolate", json={"seeds": seeds})
    assert posted.status_code == 200
    assert posted.content == client.get("/interpolate?seeds=3,14").content


def test_a_point_of_a_seed_is_what_sample_shows(client: httpx.Client) -> None:
    sample = read_tensors(client.get("/sample?seed=14&format=safetensors").content)
    named = walked(client, "GET", params={"seeds": "3,14"})
    np.testing.assert_array_equal(named["z"][-1:], sample["z"])
    assert_near(named["images"][-1:], sample["images"])


@pytest.mark.parametrize("body", ["form", "json", "safetensors"])
@pytest.mark.parametrize("n", [2, 3])
def test_pictures_are_points_by_their_mu(client: httpx.Client, colour: Linear, body: str, n: int) -> None:
    image = pixels(n, colour.shape)
    requests: dict[str, dict[str, Any]] = {
        "form": {"files": form(image)},
        "json": {"json": {"images": [base64_png(row) for row in image]}},
        "safetensors": {"content": tensors(images=image), "headers": {"content-type": SAFETENSORS}},
    }
    named = walked(client, params={"steps": 4}, **requests[body])
    np.testing.assert_allclose(named["z"], straight(colour.encode(image)[0], 4), atol=1e-5)
    assert_near(named["images"], colour.decode(named["z"]))


@pytest.mark.parametrize("body", ["json", "safetensors"])
def test_latents_are_points(client: httpx.Client, grey: Linear, body: str) -> None:
    z = latents(3, grey.latent_shape)
    requests: dict[str, dict[str, Any]] = {
        "json": {"json": {"z": z.tolist()}},
        "safetensors": {"content": tensors(z=z), "headers": {"content-type": SAFETENSORS}},
    }
    named = walked(client, params={"steps": 3, "model": "grey"}, **requests[body])
    np.testing.assert_array_equal(named["z"][::2], z)
    np.testing.assert_allclose(named["z"], straight(z, 3), atol=1e-6)


def test_points_of_every_kind_mix_in_one_path(client: httpx.Client, colour: Linear) -> None:
    image, (z,) = pixels(2, colour.shape), latents(1, colour.latent_shape)
    points = [
        {"seed": 3},
        {"image": base64_png(image[0])},
        {"z": z.tolist()},
        {"image": "data:image/png;base64," + base64_png(image[1])},
        {"seed": 2**62},
    ]
    named = walked(client, json={"points": points, "steps": 5})
    mu = colour.encode(image)[0]
    ends = np.stack([ends_of([3])[0], mu[0], z, mu[1], ends_of([2**62])[0]])
    np.testing.assert_allclose(named["z"], straight(ends, 5), atol=1e-5)
    assert_near(named["images"], colour.decode(named["z"]))


def test_points_of_other_sizes_and_formats_are_fitted(client: httpx.Client, colour: Linear) -> None:
    image = pixels(1, colour.shape)[0]
    large = saved(picture(image).resize((50, 60), Image.Resampling.NEAREST), "BMP")
    named = walked(client, files=[("images", ("a", png(image))), ("images", ("b", large))])
    encoded = client.post("/encode", files=[("images", ("b", large))]).json()
    np.testing.assert_allclose(named["z"][0], colour.encode(image[None])[0][0], atol=1e-5)
    np.testing.assert_allclose(named["z"][-1:], np.array(encoded["mu"], np.float32), atol=1e-5)


def test_seeds_beside_pictures_and_latents_of_open_sizes_have_theirs(kinds: httpx.Client, patches: OpenLinear) -> None:
    image, (z,) = pixels(1, (8, 20, 3)), latents(1, (2, 2, 5))
    points = [{"seed": 3}, {"image": base64_png(image[0])}, {"seed": 4}, {"z": z.tolist()}]
    for size in ({}, {"height": 8}, {"height": 8, "width": 20}):
        named = walked(kinds, json={"points": points, "steps": 2, "model": "patches"} | size)
        three, four = ends_of([3, 4], (2, 2, 5))
        np.testing.assert_allclose(named["z"], [three, patches.encode(image)[0][0], four, z], atol=1e-5)
        assert_near(named["images"], patches.decode(named["z"]))


# Paths


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("steps", [2, 9, 40])
def test_method_steps_and_loop_make_the_path(client: httpx.Client, method: str, loop: bool, steps: int) -> None:
    params = {"seeds": "3,14,15", "method": method, "loop": loop, "steps": steps}
    named = walked(client, "GET", params=params)
    expected = path(ends_of([3, 14, 15]), steps=steps, method=method, loop=loop)  # type: ignore[arg-type]
    assert len(expected) == (3 if loop else 2) * (steps - 1) + (not loop)
    np.testing.assert_array_equal(named["z"], expected)


def test_slerp_of_unit_latents_stays_on_the_sphere(client: httpx.Client) -> None:
    z = latents(2, (4,))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    named = walked(client, json={"z": z.tolist(), "method": "slerp"})
    np.testing.assert_allclose(np.linalg.norm(named["z"], axis=1), 1, atol=1e-5)


def test_an_arc_that_leads_beyond_float32_between_ends_that_do_not_is_422(client: httpx.Client) -> None:
    z = [[3e38, 0, 0, 0], [-1e30, 1e25, 0, 0]]
    document = problem(client.post("/interpolate", json={"z": z, "method": "slerp", "steps": 3}), 422, "invalid")
    said = "points: got a path that leads beyond float32, expected points whose path stays within it"
    assert document["detail"] == said


# Forms


def test_a_path_is_a_strip_by_default(client: httpx.Client, colour: Linear) -> None:
    answer = client.get("/interpolate?seeds=3,14&scale=2")
    assert answer.headers["content-type"] == "image/png"
    canvas = opened(answer.content, 3)
    assert canvas.shape == (12, 9 * 10, 3)
    expected = colour.decode(path(ends_of([3, 14]), steps=9, method="linear", loop=False))
    assert_near(tiles(canvas, (12, 10, 3), 9), expected.repeat(2, axis=1).repeat(2, axis=2))


def test_columns_wrap_the_strip(client: httpx.Client, colour: Linear) -> None:
    canvas = opened(client.get("/interpolate?seeds=3,14&columns=4").content, 3)
    assert canvas.shape == (3 * 6, 4 * 5, 3)
    expected = colour.decode(path(ends_of([3, 14]), steps=9, method="linear", loop=False))
    assert_near(tiles(canvas, colour.shape, 9), expected)


@pytest.mark.parametrize(
    ("label", "media_type", "pillow"), [("gif", "image/gif", "GIF"), ("apng", "image/apng", "PNG")]
)
@pytest.mark.parametrize("by", ["format", "accept"])
def test_a_path_can_move(client: httpx.Client, grey: Linear, label: str, media_type: str, pillow: str, by: str) -> None:
    params = {"seeds": "3,14", "model": "grey", "steps": 5, "loop": True, "frame_ms": 250, "scale": 2}
    asked: dict[str, Any] = {"params": params | {"format": label}}
    if by == "accept":
        asked = {"params": params, "headers": {"accept": f"text/html, {media_type}"}}
    answer = client.get("/interpolate", **asked)
    assert answer.headers["content-type"] == media_type
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, image.n_frames) == (pillow, 8)
        assert image.info["duration"] == 250
    ends = ends_of([3, 14], grey.latent_shape)
    expected = grey.decode(path(ends, steps=5, method="linear", loop=True))
    assert_near(frames(answer.content, 1), expected.repeat(2, axis=1).repeat(2, axis=2))


def test_a_film_of_one_picture_lasts_as_long_as_a_gif_can_say(client: httpx.Client) -> None:
    asked = "/interpolate?seeds=3,3&format=gif&frame_ms=10000&steps="
    assert client.get(f"{asked}65").status_code == 200
    refused = client.get(f"{asked}66")
    assert refused.status_code == 413
    said = refused.json()["detail"]
    assert said == "time of gif, of 66 frames: got 660,000 ms, the limit is 655,350; format=apng has time"
    assert [fault["where"] for fault in refused.json()["errors"]] == ["answer"]
    assert client.get(f"{asked.replace('gif', 'apng')}66").status_code == 200


def test_a_browser_gets_the_strip_not_the_film(client: httpx.Client) -> None:
    accept = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
    answer = client.get("/interpolate?seeds=3,14", headers={"accept": accept})
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(("label", "media_type"), [("webp", "image/webp"), ("jpeg", "image/jpeg")])
def test_the_strip_comes_as_webp_and_jpeg_too(client: httpx.Client, label: str, media_type: str) -> None:
    answer = client.get(f"/interpolate?seeds=3,14&format={label}")
    assert answer.headers["content-type"] == media_type
    assert opened(answer.content, 3).shape == (6, 45, 3)


def test_json_tells_the_latents_and_each_picture(client: httpx.Client, colour: Linear) -> None:
    document = client.get("/interpolate?seeds=3,14&format=json").json()
    assert list(document) == ["model", "digest", "images", "z"]
    z = np.array(document["z"], np.float32)
    np.testing.assert_array_equal(z, path(ends_of([3, 14]), steps=9, method="linear", loop=False))
    assert_near(from_json(document["images"], 3), colour.decode(z))


# What cannot be


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("", "points"),
        ("seeds=3", "query.seeds"),
        ("seeds=", "query.seeds[0]"),
        ("seeds=3,,4", "query.seeds[1]"),
        ("seeds=3,-1", "query.seeds[1]"),
        ("seeds=3,x", "query.seeds[1]"),
        ("seeds=3&seeds=4", "query.seeds"),
        ("seeds=3,4&steps=1", "query.steps"),
        ("seeds=3,4&steps=0", "query.steps"),
        ("seeds=3,4&method=cubic", "query.method"),
        ("seeds=3,4&loop=perhaps", "query.loop"),
        ("seeds=3,4&frame_ms=1", "query.frame_ms"),
        ("seeds=3,4&n=2", "query.n"),
        ("seeds=3,4&format=bmp", "query.format"),
        ("points=[]", "query.points"),
    ],
)
def test_an_address_that_cannot_be_is_refused_by_its_place(client: httpx.Client, query: str, where: str) -> None:
    answer = client.get(f"/interpolate?{query}")
    assert answer.status_code == 422
    assert where in [fault["where"] for fault in answer.json()["errors"]]


SEED = {"seed": 1}


@pytest.mark.parametrize(
    ("body", "where", "got"),
    [
        ({}, "points", "none"),
        ({"seeds": None}, "points", "none"),
        ({"points": []}, "points", "0 point"),
        ({"points": [SEED]}, "points", "1 point"),
        ({"z": [1, 2, 3, 4]}, "points", "1 point"),
        ({"seeds": [1, 2], "z": [[0, 0, 0, 0]] * 2}, "points", "seeds and z"),
        ({"points": "seeds"}, "body.points", "a text"),
        ({"points": [SEED, {}]}, "body.points[1]", "nothing"),
        ({"points": [SEED, {"seed": 1, "z": [0, 0, 0, 0]}]}, "body.points[1]", "z, seed"),
        ({"points": [SEED, {"seed": -1}]}, "body.points[1].seed", "-1"),
        ({"points": [SEED, {"seed": 1.5}]}, "body.points[1].seed", "1.5"),
        ({"points": [SEED, {"colour": "red"}]}, "body.points[1].colour", "colour"),
        ({"points": [SEED, dict.fromkeys(map(str, range(90_000)), 0)]}, "body.points[1].0", "0"),
        ({"points": [SEED, 7]}, "body.points[1]", "7"),
        ({"points": [SEED, {"z": [1, 2]}]}, "body.points[1].z", "shape (2,)"),
        ({"points": [SEED, {"z": [[0, 0, 0, 0]] * 2}]}, "body.points[1].z", "2 latents"),
        (
            {"points": [SEED, {"z": [0, 0, 0, 1e39]}]},
            "body.points[1].z[0]",
            "NaN, infinity, or a number beyond float32",
        ),
        ({"points": [SEED, {"image": "http://example.com/a.png"}]}, "body.points[1].image", "http://example.com/a.png"),
        ({"z": [[0, 0, 0, 0], [0, 0, 0, 1e39]]}, "body.z[1]", "NaN, infinity, or a number beyond float32"),
        ({"images": "abc"}, "body.images", "a text"),
    ],
)
def test_points_that_cannot_be_are_refused_by_their_index(
    client: httpx.Client, body: dict[str, Any], where: str, got: str
) -> None:
    answer = client.post("/interpolate", json=body)
    assert answer.status_code == 422
    assert (answer.json()["errors"][0]["where"], answer.json()["errors"][0]["got"]) == (where, got)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (
            {"points": [SEED, {"z": np.zeros((2, 2, 5)).tolist()}, {"z": np.zeros((2, 2, 4)).tolist()}]},
            "body.points[2]: got height 8, width 16, expected height 8, width 20 as body.points[1]",
        ),
        (
            {"points": [{"image": base64_png(np.zeros((8, 8, 3), np.uint8))}, {"z": np.zeros((2, 2, 5)).tolist()}]},
            "body.points[1]: got height 8, width 20, expected height 8, width 8 as body.points[0]",
        ),
        ({"z": np.zeros((3, 2, 2, 5)).tolist(), "width": 24}, "body.width: got 24, expected 20, as body.z[0] has it"),
        ({"z": np.zeros((3, 2, 2, 5)).tolist(), "height": 6}, "body.height: got 6, expected a multiple of 4 up to 64"),
    ],
)
def test_points_and_options_of_two_sizes_are_refused_by_their_place(
    kinds: httpx.Client, body: dict[str, Any], detail: str
) -> None:
    answer = kinds.post("/interpolate?model=patches", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"] == detail


def test_a_point_that_is_no_picture_is_named(client: httpx.Client) -> None:
    answer = client.post("/interpolate", json={"points": [SEED, {"image": "bm90IGEgcGljdHVyZQ=="}]})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("body.points[1]: got no picture")


def test_one_picture_is_no_path(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/interpolate", content=png(pixels(1, colour.shape)[0]), headers={"content-type": "image/png"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "points: got 1 point, expected two or more"
