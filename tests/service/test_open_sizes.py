"""A model that leaves sizes open, over a real socket and in this process: pictures keep theirs, and pixels are counted.

Its stride is 4, its default size 16×16, its largest side 64, its latents (2, h / 4, w / 4).
"""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.app import create_app
from service.latents import prior_sample
from service.settings import Settings
from tests.service.linear import OpenLinear, open_linear, write_linear
from tests.service.wire import (
    SAFETENSORS,
    assert_near,
    base64_png,
    form,
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
from tests.serving import Server, in_process, serving

Size = tuple[int, int]

BINARY = {"content-type": SAFETENSORS, "accept": SAFETENSORS}
SIZES = [(16, 16), (4, 4), (64, 64), (8, 60), (36, 20)]

sides = st.integers(1, 16).map(lambda places: 4 * places)


@pytest.fixture(scope="module")
def model() -> OpenLinear:
    return open_linear(stride=4, default_side=16, max_side=64)


@pytest.fixture(scope="module")
def folder(model: OpenLinear, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "open"
    write_linear(path, model, scorer=model.scorer())
    return path


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Server]:
    with serving([str(folder), "--max-batch-rows", "8", "--max-run-pixels", "4096"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(running: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=30) as http:
        yield http


@pytest.fixture
def app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """In this process, for what needs an engine that waits: one run at a time, in a thread, of 8 rows and 4096 pixels;
    requests of 64 engine rows, a queue of 40.
    """
    monkeypatch.setattr("service.lane.loop_budget_us", lambda _cores: -1.0)
    limits = {"max_batch_rows": 8, "max_run_pixels": 4096, "max_request_rows": 64, "max_queue_rows": 40}
    return create_app(Settings(bundles=(folder,), **limits), cores=1)


def noise(n: int, size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """n pictures of a size.

    Shapes:  -> (n, h, w, 3)
    """
    return pixels(n, (*size, 3), seed)


def encoded(client: httpx.Client, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """mu of pictures that are sent as a tensor."""
    answer = client.post("/encode", content=tensors(images=image), headers=BINARY)
    assert answer.status_code == 200, answer.text
    return read_tensors(answer.content)["mu"]


def refusal(answer: httpx.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    detail: str = answer.json()["detail"]
    return detail


# Pictures in


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_keeps_its_size(client: httpx.Client, model: OpenLinear, size: Size) -> None:
    image = noise(1, size)
    document = client.post("/encode", content=png(image[0]), headers={"content-type": "image/png"}).json()
    for name, expected in zip(("mu", "logvar"), model.encode(image), strict=True):
        assert np.shape(document[name]) == (1, 2, size[0] // 4, size[1] // 4)
        np.testing.assert_allclose(document[name], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(18, 39), (7, 16), (63, 63)])
def test_what_is_over_a_multiple_of_the_stride_is_cut_from_the_edges(
    client: httpx.Client, model: OpenLinear, size: Size
) -> None:
    whole = noise(1, size)
    top, left = (side % 4 // 2 for side in size)
    kept = whole[:, top : top + size[0] // 4 * 4, left : left + size[1] // 4 * 4]
    found = client.post("/encode", content=png(whole[0]), headers={"content-type": "image/png"}).json()["mu"]
    np.testing.assert_allclose(found, model.encode(kept)[0], atol=1e-5)


def test_a_picture_is_turned_upright_before_its_size_counts(client: httpx.Client, model: OpenLinear) -> None:
    upright = noise(1, (64, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    lying = saved(picture(np.rot90(upright[0])), "PNG", exif=exif)
    files = [("images", ("a.png", lying)), ("images", ("b.png", png(upright[0])))]
    found = client.post("/encode", files=files).json()["mu"]
    np.testing.assert_allclose(found, model.encode(upright.repeat(2, axis=0))[0], atol=1e-5)


def test_pictures_that_are_cut_to_one_size_go_together(client: httpx.Client, model: OpenLinear) -> None:
    wide, high = noise(1, (16, 19))[0], noise(1, (17, 16))[0]
    files = [("images", ("a.png", png(wide))), ("images", ("b.png", png(high)))]
    kept = np.stack([wide[:, 1:17], high[:16]])
    np.testing.assert_allclose(client.post("/encode", files=files).json()["mu"], model.encode(kept)[0], atol=1e-5)


@pytest.mark.parametrize("body", ["form", "json"])
def test_the_first_picture_of_another_size_is_named(client: httpx.Client, body: str) -> None:
    image = [noise(1, size)[0] for size in [(16, 16), (19, 16), (16, 20), (64, 64)]]
    parts: dict[str, Any] = {
        "form": {"files": [("images", ("a.png", png(row))) for row in image]},
        "json": {"json": {"images": [base64_png(row) for row in image]}},
    }
    assert refusal(client.post("/encode", **parts[body])) == (
        "{0}.images[2]: got height 16, width 20, expected height 16, width 16 as {0}.images[0]".format(
            {"form": "form", "json": "body"}[body]
        )
    )


@pytest.mark.parametrize("size", [(3, 16), (16, 3), (65, 16), (16, 200), (1, 1)])
def test_a_picture_too_small_or_too_large_is_refused_by_its_index(client: httpx.Client, size: Size) -> None:
    files = [*form(noise(1, (16, 16))), ("images", ("b.png", png(noise(1, size)[0])))]
    expected = f"form.images[1]: got height {size[0]}, width {size[1]}, expected sides from 4 to 64"
    assert refusal(client.post("/encode", files=files)) == expected


@settings(max_examples=25)
@given(n=st.integers(1, 9), height=sides, width=sides)
def test_a_tensor_of_any_size_is_taken_as_it_is(
    client: httpx.Client, model: OpenLinear, n: int, height: int, width: int
) -> None:
    image = noise(n, (height, width))
    np.testing.assert_allclose(encoded(client, image), model.encode(image)[0], atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 18, 16, 3), np.uint8),
        np.zeros((1, 16, 68, 3), np.uint8),
        np.zeros((1, 0, 16, 3), np.uint8),
        np.zeros((1, 16, 16, 1), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((1, 16, 16, 3), np.float32),
    ],
    ids=["no multiple", "too large", "no height", "grey", "no rows axis", "no rows", "float32"],
)
def test_a_tensor_is_never_cut(client: httpx.Client, image: NDArray[Any]) -> None:
    answer = client.post("/encode", content=tensors(images=image), headers=BINARY)
    assert refusal(answer) == (
        f"tensor.images: got {image.dtype} {image.shape}, "
        "expected uint8 (n, h, w, 3), h and w a multiple of 4 up to 64, n ≥ 1"
    )


# Latents in


@settings(max_examples=25)
@given(n=st.integers(1, 9), a=st.integers(1, 16), b=st.integers(1, 16))
def test_latents_of_any_size_become_pictures_of_theirs(
    client: httpx.Client, model: OpenLinear, n: int, a: int, b: int
) -> None:
    z = latents(n, (2, a, b))
    named = read_tensors(client.post("/decode", content=tensors(z=z), headers=BINARY).content)
    assert named["images"].shape == (n, 4 * a, 4 * b, 3)
    assert_near(named["images"], model.decode(z))
    np.testing.assert_array_equal(named["z"], z)


@pytest.mark.parametrize("body", ["json", "safetensors"])
def test_a_single_latent_counts_as_one_row(client: httpx.Client, model: OpenLinear, body: str) -> None:
    (z,) = latents(1, (2, 3, 5))
    parts: dict[str, Any] = {
        "json": {"json": {"z": z.tolist()}},
        "safetensors": {"content": tensors(z=z), "headers": {"content-type": SAFETENSORS}},
    }
    document = client.post("/decode?format=json", **parts[body]).json()
    np.testing.assert_array_equal(np.array(document["z"], np.float32), z[None])
    assert_near(from_json(document["images"], 3), model.decode(z[None]))


@pytest.mark.parametrize(
    "z",
    [
        np.zeros((3, 4, 4), np.float32),
        np.zeros((1, 2, 17, 4), np.float32),
        np.zeros((1, 2, 0, 4), np.float32),
        np.zeros((2, 16), np.float32),
        np.zeros((0, 2, 4, 4), np.float32),
        np.zeros((1, 2, 4, 4), np.int32),
    ],
    ids=["channels", "too large", "no places", "flat", "no rows", "int32"],
)
def test_latents_that_cannot_be_are_refused_with_what_may_be(client: httpx.Client, z: NDArray[Any]) -> None:
    answer = client.post("/decode", content=tensors(z=z), headers=BINARY)
    assert refusal(answer) == (
        f"tensor.z: got {z.dtype} {z.shape}, expected float32 or float16 (n, 2, h, w), h and w from 1 to 16, n ≥ 1,"
        " or one latent"
    )


def test_the_first_latent_of_another_size_is_named(client: httpx.Client) -> None:
    z = [np.zeros((2, 4, width)).tolist() for width in (4, 4, 5, 6)]
    assert refusal(client.post("/decode", json={"z": z})) == "body.z[2]: got (2, 4, 5), expected (2, 4, 4) as body.z[0]"


def test_a_latent_that_is_not_finite_is_named(client: httpx.Client) -> None:
    z = latents(3, (2, 2, 2))
    z[2, 1, 0, 1] = np.nan
    answer = client.post("/decode", content=tensors(z=z), headers=BINARY)
    assert (
        refusal(answer)
        == "tensor.z[2]: got NaN, infinity, or a number beyond float32, expected finite numbers in float32"
    )


# Sizes of what is made from seeds


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, (16, 16)), ({"height": 8}, (8, 16)), ({"width": 64}, (16, 64)), ({"height": 24, "width": 40}, (24, 40))],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_sample_has_the_size_that_was_asked_for(
    client: httpx.Client, model: OpenLinear, options: dict[str, int], size: Size, method: str
) -> None:
    asked = {"n": 3, "seed": 7, **options}
    parts: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
    named = read_tensors(client.request(method, "/sample", headers={"accept": SAFETENSORS}, **parts).content)
    z = prior_sample(7, n=3, latent_shape=(2, size[0] // 4, size[1] // 4))
    np.testing.assert_array_equal(named["z"], z)
    assert_near(named["images"], model.decode(z))


def test_pictures_of_any_size_are_a_grid(client: httpx.Client, model: OpenLinear) -> None:
    canvas = opened(client.get("/sample?n=5&seed=1&height=8&width=12&columns=3").content, 3)
    assert canvas.shape == (2 * 8, 3 * 12, 3)
    expected = model.decode(prior_sample(1, n=5, latent_shape=(2, 2, 3)))
    assert_near(tiles(canvas, (8, 12, 3), 5), expected)


@pytest.mark.parametrize("path", ["/sample?seed=1", "/interpolate?seeds=1,2"])
@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("side", [2, 18, 68])
def test_a_side_that_the_model_does_not_know_is_refused(client: httpx.Client, path: str, name: str, side: int) -> None:
    expected = f"query.{name}: got {side}, expected a multiple of 4 up to 64"
    assert refusal(client.get(f"{path}&{name}={side}")) == expected


def test_the_validator_of_an_address_hangs_on_the_size(client: httpx.Client) -> None:
    paths = ["/sample?seed=1", "/sample?seed=1&height=8", "/sample?seed=1&width=8", "/interpolate?seeds=1,2"]
    paths += ["/interpolate?seeds=1,2&height=8", "/interpolate?seeds=1,2&width=8"]
    tags = {path: client.get(path).headers["etag"] for path in paths}
    assert len(set(tags.values())) == len(paths)
    for path, tag in tags.items():
        assert client.get(path, headers={"if-none-match": tag}).status_code == 304


def test_a_path_of_pictures_keeps_their_size(client: httpx.Client, model: OpenLinear) -> None:
    image = noise(2, (20, 8))
    answer = client.post("/interpolate?steps=3&format=safetensors", files=form(image))
    named = read_tensors(answer.content)
    first, last = model.encode(image)[0]
    np.testing.assert_allclose(named["z"], [first, (first + last) / 2, last], atol=1e-5)
    assert_near(named["images"], model.decode(named["z"]))


def test_points_of_every_kind_share_the_size_of_those_that_have_one(client: httpx.Client, model: OpenLinear) -> None:
    image, (z,) = noise(1, (8, 20)), latents(1, (2, 2, 5))
    points = [{"seed": 3}, {"image": base64_png(image[0])}, {"z": z.tolist()}]
    answer = client.post("/interpolate", json={"points": points, "steps": 2, "width": 20, "format": "safetensors"})
    (seeded,) = prior_sample(3, n=1, latent_shape=(2, 2, 5))
    named = read_tensors(answer.content)
    np.testing.assert_allclose(named["z"], [seeded, model.encode(image)[0][0], z], atol=1e-5)
    assert_near(named["images"], model.decode(named["z"]))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"points": [{"z": np.zeros((2, 4, 4)).tolist()}, {"seed": 1}, {"z": np.zeros((2, 4, 5)).tolist()}]},
            "body.points[2]: got height 16, width 20, expected height 16, width 16 as body.points[0]",
        ),
        (
            {"points": [{"z": np.zeros((2, 4, 4)).tolist()}, {"image": base64_png(noise(1, (20, 16))[0])}]},
            "body.points[1]: got height 20, width 16, expected height 16, width 16 as body.points[0]",
        ),
        (
            {"points": [{"image": base64_png(noise(1, size)[0])} for size in [(20, 16), (20, 16), (24, 16)]]},
            "body.points[2]: got height 24, width 16, expected height 20, width 16 as body.points[0]",
        ),
        (
            {"z": np.zeros((2, 2, 4, 4)).tolist(), "height": 20},
            "body.height: got 20, expected 16, as body.z[0] has it",
        ),
    ],
    ids=["latents", "a latent and an image", "images", "an option"],
)
def test_points_of_two_sizes_are_refused(client: httpx.Client, body: dict[str, Any], expected: str) -> None:
    assert refusal(client.post("/interpolate", json=body)) == expected


# Spatial latents, end to end


@pytest.mark.parametrize("size", SIZES)
def test_what_was_encoded_can_be_decoded(client: httpx.Client, model: OpenLinear, size: Size) -> None:
    image = noise(2, size)
    document = client.post("/encode", json={"images": [base64_png(row) for row in image]}).json()
    answer = client.post("/decode", json={"z": document["mu"], "format": "safetensors"})
    assert_near(read_tensors(answer.content)["images"], model.decode(model.encode(image)[0]))


def test_draws_keep_the_nesting_of_latents(client: httpx.Client) -> None:
    answer = client.post("/encode?draws=3&seed=5&format=safetensors", files=form(noise(2, (8, 24))))
    assert read_tensors(answer.content)["z"].shape == (2, 3, 2, 2, 6)


@pytest.mark.parametrize("size", SIZES)
def test_reconstructions_and_scores_are_had_at_any_size(client: httpx.Client, model: OpenLinear, size: Size) -> None:
    image = noise(3, size)
    mu = model.encode(image)[0]
    made = client.post("/reconstruct", content=tensors(images=image), headers=BINARY)
    assert_near(read_tensors(made.content)["images"], model.decode(mu))
    scored = client.post("/score", content=tensors(images=image), headers=BINARY)
    recon = read_tensors(scored.content)["recon"]
    np.testing.assert_allclose(recon, -model.log_likelihood(image, mu), rtol=1e-4)


def test_a_latent_of_any_size_is_traversed(client: httpx.Client, model: OpenLinear) -> None:
    (z,) = latents(1, (2, 3, 2))
    body = {"z": z.tolist(), "dims": [7], "steps": 3, "format": "safetensors"}
    named = read_tensors(client.post("/traverse", json=body).content)
    expected = np.stack([z] * 3)
    expected[:, 1, 0, 1] = [-3, 0, 3]  # the eighth value of (2, 3, 2)
    np.testing.assert_allclose(named["z"], expected, atol=1e-6)
    assert_near(named["images"], model.decode(named["z"]))


# What is said of it


def test_the_process_says_which_sizes_it_takes(running: Server) -> None:
    said = "".join(running.said)
    assert "sizes up to 64x64, multiples of 4, 3 channels, latents 2x?x?, CPUExecutionProvider" in said


def test_a_model_shows_that_its_sizes_are_open_and_how_much_runs_at_a_time(client: httpx.Client) -> None:
    document = client.get("/models/open").json()
    assert document["image"] == {
        "height": None, "width": None, "channels": 3, "stride": 4, "default_side": 16, "max_side": 64,
    }  # fmt: skip
    assert document["latent_shape"] == [2, None, None]
    assert document["limits"]["max_run_pixels"] == 4096


# Neighbours


def test_callers_of_all_sizes_and_verbs_at_once_get_their_own(running: Server, model: OpenLinear) -> None:
    async def encode(http: httpx.AsyncClient, n: int, size: Size, seed: int) -> None:
        image = noise(n, size, seed)
        answer = await http.post("/encode", content=tensors(images=image), headers=BINARY)
        np.testing.assert_allclose(read_tensors(answer.content)["mu"], model.encode(image)[0], atol=1e-5)

    async def decode(http: httpx.AsyncClient, n: int, size: Size, seed: int) -> None:
        z = latents(n, (2, size[0] // 4, size[1] // 4), seed)
        answer = await http.post("/decode", content=tensors(z=z), headers=BINARY)
        assert_near(read_tensors(answer.content)["images"], model.decode(z))

    async def sample(http: httpx.AsyncClient, n: int, size: Size, seed: int) -> None:
        options = {"n": n, "seed": seed, "height": size[0], "width": size[1]}
        answer = await http.get("/sample", params=options, headers=BINARY)
        z = prior_sample(seed, n=n, latent_shape=(2, size[0] // 4, size[1] // 4))
        assert_near(read_tensors(answer.content)["images"], model.decode(z))

    async def score(http: httpx.AsyncClient, n: int, size: Size, seed: int) -> None:
        image = noise(n, size, seed)
        answer = await http.post("/score", content=tensors(images=image), headers=BINARY)
        expected = -model.log_likelihood(image, model.encode(image)[0])
        np.testing.assert_allclose(read_tensors(answer.content)["recon"], expected, rtol=1e-4)

    async def together() -> None:
        rows = np.random.default_rng(0).integers(1, 12, 120).tolist()
        verbs = (encode, decode, sample, score)
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
            calls = (verbs[i % 4](http, n, SIZES[i // 4 % len(SIZES)], i) for i, n in enumerate(rows))
            await asyncio.gather(*calls)

    asyncio.run(together())


def test_encoding_together_equals_encoding_apart(running: Server, client: httpx.Client) -> None:
    """The same row alone, in a request with others, and beside requests of other sizes."""
    image = {size: noise(6, size) for size in SIZES}
    apart = {size: np.concatenate([encoded(client, row[None]) for row in rows]) for size, rows in image.items()}

    async def ask(http: httpx.AsyncClient, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        answer = await http.post("/encode", content=tensors(images=rows), headers=BINARY)
        return read_tensors(answer.content)["mu"]

    async def together() -> list[NDArray[np.float32]]:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
            return await asyncio.gather(*(ask(http, image[size]) for _ in range(4) for size in SIZES))

    for size, mu in zip(SIZES * 4, asyncio.run(together()), strict=True):
        np.testing.assert_allclose(mu, apart[size], atol=1e-5)


# What runs together, and what it costs


def recorded(app: FastAPI) -> list[tuple[int, ...]]:
    """The shapes of the first inputs of all runs to come, of every graph."""
    shapes: list[tuple[int, ...]] = []
    model = app.state.deployment.models.default

    def recording(run: Any) -> Any:
        def record(*inputs: NDArray[Any]) -> Any:
            shapes.append(inputs[0].shape)
            return run(*inputs)

        return record

    for queue in (model.encoder, model.decoder, model.scorer):
        queue.run = recording(queue.run)
    return shapes


def test_no_run_is_over_the_budget_of_rows_or_pixels(app: FastAPI) -> None:
    shapes = recorded(app)

    async def scenario() -> None:
        async with in_process(app) as http:
            image = {size: tensors(images=noise(2, size)) for size in SIZES}
            posted = [
                http.post(f"/{verb}", content=body, headers=BINARY)
                for verb in ("encode", "score", "reconstruct")
                for body in image.values()
            ]
            options = [(1, 64, 64), (3, 32, 32), (2, 8, 60), (20, 16, 16), (30, 4, 4)]
            sampled = [http.get(f"/sample?n={n}&height={height}&width={width}") for n, height, width in options]
            # One after the other, as the queue would be full otherwise.
            assert {(await call).status_code for call in [*posted, *sampled]} == {200}

    asyncio.run(scenario())
    # Pictures end with their colours, latents begin with their channels.
    sizes = [(n, *rest[:2]) if rest[-1] == 3 else (n, 4 * rest[1], 4 * rest[2]) for n, *rest in shapes]
    assert all(n <= 8 and (n == 1 or n * height * width <= 4096) for n, height, width in sizes)
    assert {(1, 64, 64), (3, 32, 32), (8, 16, 16), (8, 4, 4), (2, 8, 60)} <= set(sizes)


def test_a_lone_picture_of_a_rare_size_is_not_starved(app: FastAPI) -> None:
    """Eight callers of one size that come back at once; the engine waits until all and the rare one are there."""
    shapes = recorded(app)
    deployment = app.state.deployment
    gate, queue = threading.Event(), deployment.models.default.encoder
    run = queue.run

    def waiting(*inputs: NDArray[Any]) -> Any:
        assert gate.wait(20)
        return run(*inputs)

    async def scenario() -> None:
        queue.run = waiting
        rare, answered = tensors(images=noise(1, (8, 8))), asyncio.Event()
        async with in_process(app) as http:

            async def crowd(body: bytes) -> None:
                while not answered.is_set():
                    assert (await http.post("/encode", content=body, headers=BINARY)).status_code == 200

            callers = [asyncio.create_task(crowd(tensors(images=noise(4, (16, 16), seed)))) for seed in range(8)]
            await until(lambda: deployment.lane._admitted_rows == 32)  # noqa: SLF001
            lone = asyncio.create_task(http.post("/encode", content=rare, headers=BINARY))
            await until(lambda: deployment.lane._admitted_rows == 33)  # noqa: SLF001
            gate.set()
            assert (await lone).status_code == 200
            answered.set()
            await asyncio.gather(*callers)

    asyncio.run(scenario())
    # What ran while the others arrived, then one batch of a row of each of the eight.
    assert shapes.index((1, 8, 8, 3)) <= 2


@pytest.mark.parametrize(
    ("n", "size", "rows"), [(1, (16, 16), 1), (3, (16, 16), 3), (1, (64, 64), 16), (3, (4, 4), 1), (17, (4, 4), 2)]
)
def test_a_request_costs_its_pixels_in_pictures_of_the_default_size(
    app: FastAPI, n: int, size: Size, rows: int
) -> None:
    """Seen while its run waits: /encode costs them once, /decode too."""
    deployment = app.state.deployment
    gate = threading.Event()
    model = deployment.models.default
    runs = {"encode": model.encoder.run, "decode": model.decoder.run}

    def waiting(verb: str) -> Any:
        def run(*inputs: NDArray[Any]) -> Any:
            assert gate.wait(20)
            return runs[verb](*inputs)

        return run

    async def scenario() -> None:
        model.encoder.run, model.decoder.run = waiting("encode"), waiting("decode")
        bodies = {
            "encode": tensors(images=noise(n, size)),
            "decode": tensors(z=latents(n, (2, size[0] // 4, size[1] // 4))),
        }
        async with in_process(app) as http:
            for verb, body in bodies.items():
                gate.clear()
                asked = asyncio.create_task(http.post(f"/{verb}", content=body, headers=BINARY))
                await until(lambda: deployment.lane._admitted_rows > 0)  # noqa: SLF001
                found = deployment.lane._admitted_rows  # noqa: SLF001
                gate.set()
                assert (await asked).status_code == 200
                assert found == rows

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "parts", "rows"),
    [
        ("POST", "/encode", {"content": tensors(images=noise(5, (64, 64))), "headers": BINARY}, 80),
        ("POST", "/encode", {"files": form(noise(5, (66 - 3, 64)))}, 75),
        ("POST", "/encode", {"files": form(noise(65, (4, 4)))}, 65),
        ("POST", "/encode?draws=17", {"content": tensors(images=noise(4, (16, 16))), "headers": BINARY}, 68),
        ("POST", "/decode", {"content": tensors(z=latents(5, (2, 16, 16))), "headers": BINARY}, 80),
        ("GET", "/sample?n=5&height=64&width=64", {}, 80),
        ("GET", "/sample?n=65", {}, 65),
        ("GET", "/interpolate?seeds=1,2&height=64&width=64", {}, 144),
    ],
)
def test_a_request_over_the_limit_in_engine_rows_is_refused(
    app: FastAPI, method: str, path: str, parts: dict[str, Any], rows: int
) -> None:
    async def scenario() -> httpx.Response:
        async with in_process(app) as http:
            return await http.request(method, path, **parts)

    assert refusal(asyncio.run(scenario()), 413).startswith(f"rows: got {rows} rows, the limit is 64")


def test_rows_are_counted_before_a_picture_is_decoded(app: FastAPI) -> None:
    """Five headers of 64 × 64 with nothing behind them."""
    files = [("images", (f"{index}.png", png(noise(1, (64, 64))[0])[:60])) for index in range(5)]

    async def scenario() -> httpx.Response:
        async with in_process(app) as http:
            return await http.post("/encode", files=files)

    said = "rows: got 80 rows, the limit is 64; rows are counted in pictures of the default size"
    assert refusal(asyncio.run(scenario()), 413) == said


def test_a_hundred_small_pictures_cost_less_than_the_limit(app: FastAPI) -> None:
    async def scenario() -> httpx.Response:
        async with in_process(app) as http:
            return await http.get("/sample?n=100&height=4&width=8&format=safetensors")

    assert asyncio.run(scenario()).status_code == 200


def test_a_queue_that_is_full_of_pixels_answers_429(app: FastAPI) -> None:
    deployment = app.state.deployment
    gate = threading.Event()
    model = deployment.models.default
    run = model.encoder.run

    def waiting(*inputs: NDArray[Any]) -> Any:
        assert gate.wait(20)
        return run(*inputs)

    async def scenario() -> None:
        model.encoder.run = waiting
        deployment.lane._rows_per_s = 8.0  # as if measured  # noqa: SLF001
        async with in_process(app) as http:
            asked = {"content": tensors(images=noise(2, (64, 64))), "headers": BINARY}
            first = asyncio.create_task(http.post("/encode", **asked))
            await until(lambda: deployment.lane._admitted_rows == 32)  # noqa: SLF001
            answer = await http.post("/encode", content=tensors(images=noise(1, (48, 48))), headers=BINARY)
            assert refusal(answer, 429) == "queue: 32 rows wait, 9 more exceed 40; try again in 4 s"
            assert answer.headers["retry-after"] == "4"
            gate.set()
            assert (await first).status_code == 200

    asyncio.run(scenario())


async def until(true: Any) -> None:
    """Wait for what must become true; a test that waits for ever fails."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  other tasks and threads make it true
            await asyncio.sleep(0.005)


def test_a_row_counts_and_takes_by_its_pixels(app: FastAPI) -> None:
    model = app.state.deployment.models.default
    default, largest, smallest = (model.encoder._load((side, side, 3)) for side in (16, 64, 4))  # noqa: SLF001
    assert (default.engine_rows, largest.engine_rows, smallest.engine_rows) == (1, 16, 1 / 16)
    assert largest.row_us == pytest.approx(16 * default.row_us)
    assert largest.run_us == default.run_us
