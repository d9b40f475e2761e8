"""Every status of the closed list, over a real socket: a problem document that says where, got and expected."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import PROBLEMS, OutOfMemory, Problem
from service.settings import Settings
from service.wording import _EXPECTED, expectation, shown, shown_as_json
from tests.service.linear import Bundles, Linear
from tests.service.wire import SAFETENSORS, base64_png, form, pixels, png, read_tensors, tensors
from tests.serving import in_process

JSON = {"content-type": "application/json"}
PNG = {"content-type": "image/png"}


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The document of an error, after what is true of all of them."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    document: dict[str, Any] = answer.json()
    assert set(document) - {"errors"} == {"type", "title", "status", "detail", "instance"}
    assert document["type"] == f"urn:vaeserve:problem:{kind}"
    assert document["status"] == status
    assert unquote(document["instance"]) == answer.request.url.path
    assert document["title"] == next(known.title for known in PROBLEMS if known.kind == kind)
    for fault in document.get("errors", []):
        assert set(fault) == {"where", "got", "expected"}
        assert all(isinstance(text, str) and text for text in fault.values())
    return document


@pytest.mark.parametrize("path", ["/a%20b%22", "/a%3Fb", "/caf%C3%A9"])
def test_where_a_problem_was_is_a_reference_to_it(client: httpx.Client, path: str) -> None:
    assert problem(client.get(path), 404, "not-found")["instance"] == path


def test_the_list_is_closed_and_every_kind_is_one_of_it() -> None:
    assert set(PROBLEMS) == set(Problem.__subclasses__())
    assert len({known.kind for known in PROBLEMS}) == len(PROBLEMS)
    statuses = [400, 401, 403, 403, 404, 405, 406, 408, 409, 409, 413, 415, 422, 429, 429, 431, 500, 503, 503, 503, 504]
    assert sorted(known.status for known in PROBLEMS) == statuses


# 400: the body is not what its type says


@pytest.mark.parametrize("body", [b"{", b"{'z': 1}", b"\xff", b'{"z": [NaN]}', b'{"z": 1}]', b'{"z": 1e999}'])
def test_broken_json_is_400(client: httpx.Client, body: bytes) -> None:
    document = problem(client.post("/decode", content=body, headers=JSON), 400, "bad-body")
    assert document["detail"].startswith("not readable as JSON: ")


@pytest.mark.parametrize("verb", ["/encode", "/score", "/decode", "/reconstruct", "/interpolate", "/traverse"])
def test_truncated_safetensors_is_400(client: httpx.Client, verb: str) -> None:
    body = tensors(z=np.zeros((2, 4), np.float32))[:-1]
    document = problem(client.post(verb, content=body, headers={"content-type": SAFETENSORS}), 400, "bad-body")
    assert document["detail"].startswith("not readable as safetensors: ")


@pytest.mark.parametrize("verb", ["/score", "/reconstruct", "/traverse"])
def test_a_picture_that_is_none_is_400_of_every_verb_that_takes_some(kinds: httpx.Client, verb: str) -> None:
    document = problem(kinds.post(verb, content=b"not a picture", headers=PNG), 400, "bad-body")
    assert document["detail"] == "body: got no picture, expected one in PNG, JPEG, WEBP, BMP, GIF, TIFF"


def test_a_body_that_is_no_picture_is_400(client: httpx.Client) -> None:
    document = problem(client.post("/encode", content=b"not a picture", headers=PNG), 400, "bad-body")
    assert document["detail"] == "body: got no picture, expected one in PNG, JPEG, WEBP, BMP, GIF, TIFF"


def test_a_picture_cut_short_is_400(client: httpx.Client) -> None:
    body = png(pixels(1, (40, 40, 3))[0])[:-200]
    document = problem(client.post("/encode", content=body, headers=PNG), 400, "bad-body")
    assert document["detail"] == "body: got a broken or incomplete picture, expected a whole one"


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; boundary="]
)
def test_a_form_that_is_none_is_400(client: httpx.Client, content_type: str) -> None:
    answer = client.post("/encode", content=b"no form", headers={"content-type": content_type})
    assert problem(answer, 400, "bad-body")["detail"].startswith("not readable as multipart/form-data")


@pytest.mark.parametrize("form_body", ["json", "form"])
def test_one_bad_picture_is_named_by_its_index(client: httpx.Client, colour: Linear, form_body: str) -> None:
    image = pixels(3, colour.shape)
    files = form(image)
    files[1] = ("images", ("1.png", b"not a picture"))
    encoded = [base64_png(row) for row in image]
    encoded[1] = base64.b64encode(b"not a picture").decode()
    answer = (
        client.post("/encode", files=files) if form_body == "form" else client.post("/encode", json={"images": encoded})
    )
    where = "form.images[1]" if form_body == "form" else "body.images[1]"
    assert problem(answer, 400, "bad-body")["detail"].startswith(f"{where}: got no picture")


# 404 and 405: paths, models, methods


@pytest.mark.parametrize("path", ["/nothing", "/encode/", "/sample/", "/models/", "/health", "/v1/encode", "//sample"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_such_path_is_404_and_slashes_are_not_redirected(client: httpx.Client, path: str, method: str) -> None:
    answer = client.request(method, client.base_url.copy_with(path=path))
    document = problem(answer, 404, "not-found")
    assert document["detail"] == f"{path}: there is no such path, /docs lists those there are"


@pytest.mark.parametrize("asked", ["none", "colour@0000", "COLOUR", "", "colour,grey"])
def test_no_such_model_is_404_and_names_the_loaded_ones(client: httpx.Client, asked: str) -> None:
    latent = {"z": [0, 0, 0, 0]}
    for where, answer in (
        ("query.model", client.get("/sample", params={"model": asked, "seed": 1})),
        ("query.model", client.post("/decode", json=latent, params={"model": asked})),
        ("body.model", client.post("/decode", json=latent | {"model": asked})),
    ):
        document = problem(answer, 404, "not-found")
        assert document["errors"][0]["where"] == where
        assert document["detail"].startswith(f"{where}: got {asked or 'nothing'}, expected one of colour@")
        assert ", grey@" in document["detail"]


def test_no_such_model_page_is_404(client: httpx.Client) -> None:
    detail = problem(client.get("/models/none"), 404, "not-found")["detail"]
    assert detail.startswith("path.name: got none, expected one of colour@")


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/encode", "GET", "POST"),
        ("/encode", "HEAD", "POST"),
        ("/encode", "OPTIONS", "POST"),
        ("/decode", "PUT", "POST"),
        ("/score", "GET", "POST"),
        ("/reconstruct", "GET", "POST"),
        ("/traverse", "PUT", "GET, HEAD, POST"),
        ("/sample", "DELETE", "GET, HEAD, POST"),
        ("/interpolate", "PATCH", "GET, HEAD, POST"),
        ("/models", "POST", "GET, HEAD"),
        ("/models/colour", "DELETE", "GET, HEAD"),
        ("/health/live", "POST", "GET, HEAD"),
        ("/openapi.json", "POST", "GET, HEAD"),
    ],
)
def test_another_method_is_405_and_told_which_there_are(
    client: httpx.Client, path: str, method: str, allow: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        document = problem(answer, 405, "method-not-allowed")
        assert document["detail"] == f"{path}: got {method}, expected {allow}"


def test_a_method_on_the_documentations_files_is_405(client: httpx.Client) -> None:
    answer = client.post("/docs/assets/swagger-ui.css")
    assert answer.headers["allow"] == "GET, HEAD"
    problem(answer, 405, "method-not-allowed")


# 406 and 415: forms out and in


@pytest.mark.parametrize(
    "verb", ["/encode", "/score", "/sample", "/decode", "/reconstruct", "/interpolate", "/traverse"]
)
def test_a_form_that_the_verb_has_not_is_406(client: httpx.Client, colour: Linear, verb: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/encode": {"files": form(pixels(1, colour.shape))},
        "/score": {"files": form(pixels(1, colour.shape))},
        "/sample": {},
        "/decode": {"json": {"z": [0, 0, 0, 0]}},
        "/reconstruct": {"files": form(pixels(1, colour.shape))},
        "/interpolate": {"json": {"seeds": [1, 2]}},
        "/traverse": {"json": {"seed": 1}},
    }
    answer = client.post(verb, headers={"accept": "text/html;q=0.9, audio/*"}, **bodies[verb])
    detail = problem(answer, 406, "not-acceptable")["detail"]
    assert detail.startswith("Accept: got text/html;q=0.9, audio/*, expected one of ")
    assert "application/json" in detail


@pytest.mark.parametrize(
    ("verb", "content_type"),
    [
        ("/encode", "text/plain"),
        ("/encode", "image/svg+xml"),
        ("/encode", "image/x-portable-pixmap"),
        ("/encode", "application/x-www-form-urlencoded"),
        ("/encode", "application/octet-stream"),
        ("/decode", "image/png"),
        ("/decode", "multipart/form-data; boundary=x"),
        ("/sample", SAFETENSORS),
        ("/sample", "multipart/form-data; boundary=x"),
        ("/interpolate", "text/uri-list"),
        ("/traverse", "text/uri-list"),
        ("/score", "text/plain"),
        ("/reconstruct", "application/octet-stream"),
    ],
)
def test_a_body_that_the_verb_does_not_read_is_415(client: httpx.Client, verb: str, content_type: str) -> None:
    answer = client.post(verb, content=b"x", headers={"content-type": content_type})
    detail = problem(answer, 415, "unsupported-type")["detail"]
    assert detail.startswith(f"Content-Type: got {content_type.partition(';')[0]}, expected one of ")
    assert "application/json" in detail


def test_a_body_without_a_type_is_415(client: httpx.Client) -> None:
    answer = client.post("/encode", content=b"x")
    assert "Content-Type: got none" in problem(answer, 415, "unsupported-type")["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "gzip, gzip", "x"])
def test_a_compressed_body_is_415(client: httpx.Client, encoding: str) -> None:
    answer = client.post("/encode", content=b"x", headers=PNG | {"content-encoding": encoding})
    document = problem(answer, 415, "unsupported-type")
    assert document["detail"] == f"Content-Encoding: got {encoding}, expected none"


def test_a_body_whose_compression_stands_on_a_second_line_is_415(client: httpx.Client) -> None:
    lines = [("content-type", "image/png"), ("content-encoding", "identity"), ("content-encoding", "gzip")]
    document = problem(client.post("/encode", content=b"x", headers=lines), 415, "unsupported-type")
    assert document["detail"] == "Content-Encoding: got identity, gzip, expected none"


# 409: what this model lacks


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_prior_that_the_model_lacks_is_409(client: httpx.Client, method: str) -> None:
    document = problem(client.request(method, "/sample?prior=fitted&seed=1"), 409, "model-cannot")
    assert document["detail"].startswith("prior=fitted: colour@")


# 413: limits


def test_a_body_over_the_limit_is_413_before_it_is_read(tight: httpx.Client) -> None:
    answer = tight.post("/encode", content=bytes(4001), headers=PNG)
    document = problem(answer, 413, "too-large")
    assert document["detail"] == "body: got 4,001 bytes, the limit is 4,000"
    assert document["errors"] == [{"where": "body", "got": "4001 bytes", "expected": "at most 4000 bytes"}]


def test_a_body_of_megabytes_over_the_limit_is_413_and_the_next_request_works(tight: httpx.Client) -> None:
    problem(tight.post("/encode", content=bytes(5_000_000), headers=PNG), 413, "too-large")
    assert tight.get("/sample?seed=1").status_code == 200


def test_a_body_of_unknown_length_is_413_once_it_is_over(tight: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(41):
            yield bytes(100)

    document = problem(tight.post("/encode", content=chunks(), headers=PNG), 413, "too-large")
    assert document["errors"][0]["expected"] == "at most 4000 bytes"


def test_a_body_of_exactly_the_limit_is_read(tight: httpx.Client, colour: Linear) -> None:
    body = json.dumps({"z": [0, 0, 0, 0]}).encode().ljust(4000)
    assert tight.post("/decode", content=body, headers=JSON).status_code == 200


def test_a_picture_over_the_limit_is_413_by_its_place(tight: httpx.Client, colour: Linear) -> None:
    big = np.zeros((32, 32, 3), np.uint8)
    files = [*form(pixels(1, colour.shape)), ("images", ("b.png", png(big)))]
    document = problem(tight.post("/encode", files=files), 413, "too-large")
    assert document["detail"] == "form.images[1]: got 1,024 pixels, the limit is 1,000"


@pytest.mark.parametrize("n", [9, 10, 12])
@pytest.mark.parametrize("body", ["form", "json", "safetensors"])
def test_pictures_over_the_limit_of_rows_are_413(tight: httpx.Client, colour: Linear, n: int, body: str) -> None:
    image = np.zeros((n, *colour.shape), np.uint8)
    requests: dict[str, dict[str, Any]] = {
        "form": {"files": form(image)},
        "json": {"json": {"images": [base64_png(row) for row in image]}},
        "safetensors": {"content": tensors(images=image), "headers": {"content-type": SAFETENSORS}},
    }
    document = problem(tight.post("/encode", **requests[body]), 413, "too-large")
    (fault,) = document["errors"]
    assert (fault["where"], fault["expected"]) == ("rows", "at most 8 rows")


@pytest.mark.parametrize(
    ("request_parts", "rows"),
    [
        ({"url": "/sample?n=9"}, 9),
        ({"url": "/sample?n=99999999999"}, 99999999999),
        ({"url": "/interpolate?seeds=1,2&steps=9"}, 9),
        ({"url": "/interpolate?seeds=1,2,3&steps=5"}, 9),
        ({"url": "/interpolate?seeds=1,2,3&steps=4&loop=true"}, 9),
        ({"url": "/decode", "method": "POST", "json": {"z": [[0, 0, 0, 0]] * 9}}, 9),
    ],
)
def test_rows_over_the_limit_are_413(tight: httpx.Client, request_parts: dict[str, Any], rows: int) -> None:
    document = problem(tight.request(**{"method": "GET"} | request_parts), 413, "too-large")
    assert document["detail"] == f"rows: got {rows:,} rows, the limit is 8"


def test_the_rows_of_a_path_count_over_both_graphs(tight: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    assert tight.post("/interpolate?steps=6", files=form(image)).status_code == 200
    document = problem(tight.post("/interpolate?steps=7", files=form(image)), 413, "too-large")
    assert document["detail"] == "rows: got 9 rows, the limit is 8"


def test_draws_count_as_rows(tight: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    assert tight.post("/encode?draws=4", files=form(image)).status_code == 200
    problem(tight.post("/encode?draws=5", files=form(image)), 413, "too-large")


def test_a_device_without_memory_is_503_and_the_next_request_is_tried(bundles: Bundles) -> None:
    app = create_app(Settings(bundles=(bundles.colour,)))
    decoder = app.state.deployment.models.default.decoder
    run, fails = decoder.run, [True]

    def failing(*rows: object, **options: object) -> object:
        if fails[0]:
            raise OutOfMemory("decoder.onnx: the device has no memory for 1 rows now")
        return run(*rows, **options)

    decoder.run = failing

    async def scenario() -> None:
        async with in_process(app) as http:
            document = problem(await http.get("/sample?seed=1"), 503, "out-of-memory")
            assert document["detail"] == "decoder.onnx: the device has no memory for 1 rows now"
            fails[0] = False
            assert (await http.get("/sample?seed=1")).status_code == 200

    asyncio.run(scenario())


def test_draws_of_more_numbers_than_an_answer_may_have_are_413(bundles: Bundles, colour: Linear) -> None:
    app = create_app(Settings(bundles=(bundles.colour,), max_answer_pixels=100))

    async def scenario() -> None:
        async with in_process(app) as http:
            files = form(pixels(1, colour.shape))
            assert (await http.post("/encode?draws=25", files=files)).status_code == 200
            document = problem(await http.post("/encode?draws=26", files=files), 413, "too-large")
            assert document["detail"] == "answer: got 104 numbers, the limit is 100"

    asyncio.run(scenario())


def test_an_answer_of_too_many_pixels_is_413(tight: httpx.Client) -> None:
    assert tight.get("/sample?n=4&scale=2").status_code == 200
    document = problem(tight.get("/sample?n=6&scale=2"), 413, "too-large")
    assert document["detail"] == "answer: got 720 pixels, the limit is 600"


def test_the_black_places_of_a_grid_count_as_pixels(tight: httpx.Client) -> None:
    assert tight.get("/sample?n=5&scale=2&columns=5").status_code == 200
    document = problem(tight.get("/sample?n=5&scale=2&columns=4"), 413, "too-large")
    assert document["detail"] == "answer: got 960 pixels, the limit is 600"
    assert tight.get("/sample?n=5&scale=2&columns=4&format=json").status_code == 200


def test_arrays_are_not_enlarged_and_count_as_they_are(tight: httpx.Client, colour: Linear) -> None:
    answer = tight.get("/sample?n=6&scale=2&format=safetensors")
    assert answer.status_code == 200
    assert read_tensors(answer.content)["images"].shape == (6, *colour.shape)


def test_a_side_that_the_format_cannot_state_is_413(client: httpx.Client) -> None:
    query = "/interpolate?seeds=1,2&steps=110&scale=32"
    document = problem(client.get(f"{query}&format=webp"), 413, "too-large")
    said = document["detail"]
    assert said == "side of webp, with 110 columns: got 17,600 pixels, the limit is 16,383; format=png has room"
    assert [fault["where"] for fault in document["errors"]] == ["answer"]
    assert client.get(f"{query}&format=webp&columns=20").status_code == 200


# 422: well-formed but impossible


def test_no_picture_is_422(client: httpx.Client) -> None:
    for parts in ({}, {"json": {}}, {"json": {"images": []}}, {"json": {"images": None}}, {"data": {}, "headers": PNG}):
        document = problem(client.post("/encode", **parts), 422, "invalid")  # type: ignore[arg-type]
        assert document["errors"] == [{"where": "body", "got": "no images", "expected": "at least one picture"}]


@pytest.mark.parametrize(
    "url",
    ["http://example.com/cat.png", "https://127.0.0.1/", "file:///etc/passwd", "/etc/passwd", "data:image/png,abc"],
)
def test_no_address_is_ever_fetched(client: httpx.Client, colour: Linear, url: str) -> None:
    body = {"images": [base64_png(pixels(1, colour.shape)[0]), url]}
    for verb in ("/encode", "/reconstruct", "/interpolate", "/traverse"):
        document = problem(client.post(verb, json=body), 422, "invalid")
        expected = "a picture as base64, or as a base64 data: URI"
        assert document["errors"] == [{"where": "body.images[1]", "got": url, "expected": expected}]


@pytest.mark.parametrize("item", [5, None, ["a"], {"image": "a"}, "not base64!", "YQ"])
def test_an_item_that_is_no_base64_is_422(client: httpx.Client, item: object) -> None:
    document = problem(client.post("/encode", json={"images": [item]}), 422, "invalid")
    assert document["errors"][0]["where"] == "body.images[0]"


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((2, 6, 5, 1), np.uint8), "uint8 (2, 6, 5, 1)"),
        (np.zeros((6, 5, 3), np.uint8), "uint8 (6, 5, 3)"),
        (np.zeros((0, 6, 5, 3), np.uint8), "uint8 (0, 6, 5, 3)"),
        (np.zeros((2, 6, 5, 3), np.float32), "float32 (2, 6, 5, 3)"),
        (np.zeros((), np.uint8), "uint8 ()"),
    ],
)
def test_a_tensor_of_pictures_must_have_the_models_shape(client: httpx.Client, image: np.ndarray, got: str) -> None:
    answer = client.post("/encode", content=tensors(images=image), headers={"content-type": SAFETENSORS})
    document = problem(answer, 422, "invalid")
    expected = "uint8 (n, 6, 5, 3), n ≥ 1"
    assert document["errors"] == [{"where": "tensor.images", "got": got, "expected": expected}]


@pytest.mark.parametrize(
    ("body", "got"), [("[]", "a list"), ("3", "a number"), ('"z"', "a text"), ("null", "null"), ("true", "true")]
)
def test_json_that_is_no_object_is_422(client: httpx.Client, body: str, got: str) -> None:
    document = problem(client.post("/decode", content=body, headers=JSON), 422, "invalid")
    assert document["errors"] == [{"where": "body", "got": got, "expected": "a JSON object"}]


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        (
            "/sample",
            '{"seed": 99999999999999999999999}',
            "body.seed: got 1e+23, expected less than or equal to",
        ),
        ("/sample", '{"n": true}', "body.n: got true, expected a whole number"),
        ("/sample", '{"n": 1.5}', "body.n: got 1.5, expected a whole number"),
        ("/sample", '{"n": {"a": [1, null]}}', 'body.n: got {"a": [1, null]}, expected a whole number'),
        ("/sample", '{"temperature": []}', "body.temperature: got [], expected a finite number"),
        ("/sample", '{"format": true}', "body.format: got true, expected a text"),
        ("/sample", '{"prior": 5}', "body.prior: got 5, expected 'standard' or 'fitted'"),
        ("/interpolate", '{"seeds": 5}', "body.seeds: got 5, expected a list"),
        ("/interpolate", '{"seeds": [1, true]}', "body.seeds[1]: got true, expected a whole number"),
        ("/interpolate", '{"seeds": [1]}', "body.seeds: got [1], expected at least 2 items"),
        ("/interpolate", '{"loop": 1}', "body.loop: got 1, expected true or false"),
        ("/interpolate", '{"points": 5}', "body.points: got a number, expected a list of points"),
        ("/interpolate", '{"points": [{"seed": 1}, 5]}', "body.points[1]: got 5, expected an object"),
        ("/interpolate", '{"points": [{"seed": "3"}, 5]}', 'body.points[0].seed: got "3", expected a whole number'),
        ("/interpolate", '{"points": [{"z": {}}, 5]}', "body.points[0].z: got an object, expected a list of numbers"),
        ("/interpolate", '{"points": [{"image": 5}]}', "body.points[0].image: got 5, expected a text"),
        ("/encode", '{"images": [{"a": 1}]}', 'body.images[0]: got {"a": 1}, expected a picture as base64'),
        ("/encode", '{"images": 5}', "body.images: got a number, expected a list of base64 pictures"),
        ("/decode", '{"z": {}}', "body.z: got an object, expected a list of numbers, or of such lists"),
        ("/decode", '{"z": [1, null, 3, 4]}', "body.z[1]: got null, expected a number"),
    ],
)
def test_what_json_cannot_be_is_told_in_its_own_words(client: httpx.Client, path: str, body: str, detail: str) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert problem(answer, 422, "invalid")["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "null"),
        (True, "true"),
        (4, "4"),
        (1e23, "1e+23"),
        ("", "nothing"),
        ("4", "4"),
        ([1, True, "4", None], '[1, true, "4", null]'),
        ({"a": "\n"}, r'{"a": "\n"}'),
        (["a" * 31], f'["{"a" * 30}…"]'),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, …]"),
        ([[[[[]]]]], "[[[[…]]]]"),
        ({"a": {"b": {"c": {"d": 1}}}}, '{"a": {"b": {"c": {…}}}}'),
        (np.zeros((2, 3), np.uint8), "uint8 (2, 3)"),
        ((2, 3), "(2, 3)"),
    ],
)
def test_a_value_is_shown_as_json(value: object, said: str) -> None:
    assert shown(value) == said


def test_a_text_of_json_is_shown_with_its_quotes() -> None:
    assert shown_as_json("4") == '"4"'
    assert shown_as_json("é" * 100, most=20) == f'"{"é" * 19}'
    assert shown_as_json([1]) == "[1]"


@pytest.mark.parametrize("kind", sorted(_EXPECTED))
def test_what_was_expected_is_in_our_words_whatever_pydantics_are(kind: str) -> None:
    assert expectation("Input should be a valid instance of Point", kind=kind) == _EXPECTED[kind]


def test_json_nested_without_end_is_refused(client: httpx.Client) -> None:
    for depth in (50, 70, 1000):
        body = '{"z":' + "[" * depth + "]" * depth + "}"
        assert client.post("/decode", content=body, headers=JSON).status_code == 422
    body = "[" * 100_000
    problem(client.post("/decode", content=body, headers=JSON), 400, "bad-body")


def test_a_file_in_a_part_of_another_name_is_422(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=[("image", ("a.png", png(pixels(1, colour.shape)[0])))])
    assert problem(answer, 422, "invalid")["errors"][0]["where"] == "form.image"


def test_text_in_the_part_for_pictures_is_422(client: httpx.Client, colour: Linear) -> None:
    answer = client.post("/encode", files=form(pixels(1, colour.shape)), data={"images": "a.png"})
    assert problem(answer, 422, "invalid")["errors"][0]["where"] == "form.images"


def test_pictures_whose_parts_name_no_file_are_pictures(client: httpx.Client, colour: Linear) -> None:
    image = pixels(2, colour.shape)
    named = client.post("/encode", files=form(image))
    unnamed = client.post("/encode", files=[("images", (None, content)) for _, (_, content, *_) in form(image)])
    assert unnamed.status_code == 200, unnamed.text
    assert unnamed.json()["mu"] == named.json()["mu"]
    broken = client.post("/encode", files=[("images", (None, b"\x89 no picture"))])
    assert problem(broken, 400, "bad-body")["detail"].startswith("form.images[0]: got no picture, expected one in")


def test_base64_may_be_broken_into_lines(client: httpx.Client, colour: Linear) -> None:
    (image,) = pixels(1, colour.shape)
    whole = base64_png(image)
    lines = "\r\n".join(whole[at : at + 20] for at in range(0, len(whole), 20)) + "\n"
    answers = [client.post("/encode", json={"images": [sent]}) for sent in (whole, lines)]
    assert answers[0].json()["mu"] == answers[1].json()["mu"]


def test_a_picture_under_a_wrong_name_is_told_the_right_one(client: httpx.Client, colour: Linear) -> None:
    (image,) = pixels(1, colour.shape)
    answer = client.post("/encode", json={"image": base64_png(image)})
    detail = problem(answer, 422, "invalid")["detail"]
    assert detail == "body.image: got image, expected one of images, model, format, draws, seed, dtype"


def test_what_was_sent_is_never_echoed_at_length(client: httpx.Client) -> None:
    long = "~" * 10_000
    answers = [
        client.get("/sample", params={long: 1}),
        client.get("/sample", params=[(long, 1), (long, 2)]),
        client.post("/sample", json={long: 1}),
        client.post("/encode", files=[(long[:2000], ("a.png", b""))]),
        client.post("/interpolate", json={"seeds": [long] * 500}),
        client.post("/sample", json={str(number): 1 for number in range(10_000)}),
        client.get("/sample", params={"seed": long}),
        client.get("/sample", params={"model": long}),
        client.get("/sample", params={"format": long}),
        client.get("/sample", headers={"accept": long}),
        client.post("/encode", json={"images": [long]}),
        client.post("/encode", content=b"x", headers={"content-encoding": long}),
        client.post("/interpolate", json={"points": [{"colour": long}, {}]}),
        client.post("/traverse", json={"dims": [long] * 500}),
        client.get("/traverse", params={"seed": 1, "dims": "9" * 4000}),
    ]
    for answer in answers:
        assert answer.status_code in {404, 406, 415, 422}, (answer.request.url.path, answer.text)
        assert len(answer.content) < 2000


def test_one_bad_row_fails_its_own_request_alone(client: httpx.Client, colour: Linear) -> None:
    good = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    bad = good.copy()
    bad[1, 2] = np.nan

    async def ask(http: httpx.AsyncClient, z: np.ndarray) -> httpx.Response:
        return await http.post(
            "/decode?format=safetensors", content=tensors(z=z), headers={"content-type": SAFETENSORS}
        )

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as http:
            return await asyncio.gather(*(ask(http, bad if index % 2 else good) for index in range(20)))

    answers = asyncio.run(together())
    alone = client.post("/decode?format=safetensors", content=tensors(z=good), headers={"content-type": SAFETENSORS})
    for index, answer in enumerate(answers):
        if index % 2:
            assert problem(answer, 422, "invalid")["errors"][0]["where"] == "tensor.z[1]"
        else:
            assert answer.content == alone.content


# 429: the queue


POSTED = ("/encode", "/reconstruct", "/traverse?dims=0&steps=2")


def test_a_full_queue_answers_429(app: FastAPI, colour: Linear) -> None:
    """The engine waits for the test, so that the queue is as full as it says."""
    model = app.state.deployment.models.default
    run, gate, started = model.decoder.run, threading.Event(), threading.Event()

    def waiting(rows: np.ndarray) -> Any:
        started.set()
        assert gate.wait(20)
        return run(rows)

    async def scenario() -> None:
        model.decoder.run = waiting
        async with in_process(app, timeout=30) as client:
            whole = asyncio.create_task(client.get("/sample?n=6&seed=1&format=safetensors"))
            await asyncio.to_thread(started.wait, 20)
            second = asyncio.create_task(client.get("/sample?n=2&seed=2&format=safetensors"))
            await asyncio.sleep(0)
            paths = ("/sample?n=1", "/sample?n=8", "/interpolate?seeds=1,2", "/traverse?seed=1&dims=0&steps=2")
            refused = [await client.get(path) for path in paths]
            refused += [await client.post(path, files=form(pixels(1, colour.shape))) for path in POSTED]
            assert (await client.get("/health/live")).status_code == 200
            gate.set()
            for answer in refused:
                document = problem(answer, 429, "queue-full")
                assert document["detail"].startswith("queue: 8 rows wait, ")
                assert int(answer.headers["retry-after"]) >= 1
            for task, n, seed in ((whole, 6, 1), (second, 2, 2)):
                answer = await task
                assert answer.status_code == 200
                named = read_tensors(answer.content)
                np.testing.assert_array_equal(named["images"], run(named["z"])[0])
                assert len(named["z"]) == n, seed
            assert (await client.get("/sample?n=8")).status_code == 200

    asyncio.run(scenario())


def test_a_crowd_before_a_tiny_queue_is_served_or_sent_away(tight: httpx.Client) -> None:
    expected = tight.get("/sample?n=5&seed=3&format=safetensors").content

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=tight.base_url, timeout=30) as http:
            return await asyncio.gather(*(http.get("/sample?n=5&seed=3&format=safetensors") for _ in range(60)))

    answers = asyncio.run(crowd())
    assert {answer.status_code for answer in answers} <= {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            assert answer.content == expected
        else:
            assert int(answer.headers["retry-after"]) >= 1
            problem(answer, 429, "queue-full")


# 500: our fault


@pytest.mark.parametrize(
    ("method", "url", "parts"),
    [
        ("GET", "/sample?seed=1", {}),
        ("POST", "/decode", {"json": {"z": [0, 0, 0, 0]}}),
        ("GET", "/interpolate?seeds=1,2", {}),
        ("POST", "/encode", {"files": form(pixels(1, (6, 5, 3)))}),
        ("POST", "/reconstruct", {"files": form(pixels(1, (6, 5, 3)))}),
        ("GET", "/traverse?seed=1", {}),
        ("POST", "/traverse", {"files": form(pixels(1, (6, 5, 3)))}),
    ],
)
def test_an_engine_that_fails_is_500_with_the_request_id_and_no_internals(
    app: FastAPI, method: str, url: str, parts: dict[str, Any]
) -> None:
    def broken(_rows: np.ndarray) -> Any:
        raise RuntimeError("a secret of the engine")

    async def scenario() -> None:
        model = app.state.deployment.models.default
        kept = model.encoder.run, model.decoder.run
        async with in_process(app) as client:
            model.encoder.run = model.decoder.run = broken
            answer = await client.request(method, url, headers={"x-request-id": "mine-17"}, **parts)
            document = problem(answer, 500, "internal")
            assert document["detail"] == "The log tells more under request id mine-17."
            assert answer.headers.get_list("x-request-id") == ["mine-17"]
            assert answer.headers["connection"] == "close"
            assert "secret" not in answer.text
            model.encoder.run, model.decoder.run = kept
            assert (await client.request(method, url, **parts)).status_code == 200

    asyncio.run(scenario())


# The id of a request


@pytest.mark.parametrize("path", ["/sample?seed=1", "/nothing", "/sample?seed=x", "/health/live", "/docs"])
def test_your_request_id_comes_back(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"x-request-id": "trace/42:a"})
    assert answer.headers.get_list("x-request-id") == ["trace/42:a"]


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "two words", "caf\u00e9"])
def test_a_request_id_is_made_where_none_can_be_taken(client: httpx.Client, sent: str | None) -> None:
    headers = [] if sent is None else [(b"x-request-id", sent.encode())]
    first, second = (client.get("/health/live", headers=headers).headers["x-request-id"] for _ in range(2))
    assert first != second
    assert len(first) == 32
    assert int(first, 16)


def test_a_request_id_of_the_longest_length_is_taken(client: httpx.Client) -> None:
    assert client.get("/health/live", headers={"x-request-id": "x" * 128}).headers["x-request-id"] == "x" * 128


# What is not HTTP


def test_bytes_that_are_not_http_get_400_and_a_close(server_url: str) -> None:
    host, port = httpx.URL(server_url).host, httpx.URL(server_url).port
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        said = b""
        while chunk := connection.recv(4096):
            said += chunk
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/interpolate?seeds=1", "query.seeds: got 1, expected at least 2 items"),
        ("/sample?n=", "query.n: got nothing, expected a whole number"),
        ("/sample?temperature=x", "query.temperature: got x, expected a finite number"),
        ("/interpolate?seeds=1,2&loop=2", "query.loop: got 2, expected true or false"),
        ("/traverse?seed=1&dims=", "query.dims[0]: got nothing, expected a whole number"),
    ],
)
def test_lists_and_empty_values_are_refused_in_our_words(client: httpx.Client, path: str, detail: str) -> None:
    assert problem(client.get(path), 422, "invalid")["detail"].startswith(detail)
