"""What is sent to the servers that are compared, and that pictures are worth sending."""

import asyncio
import json

import numpy as np
import pytest
from safetensors.numpy import load
from starlette.datastructures import UploadFile
from starlette.requests import Request as Received
from starlette.types import Message

from benchmarks import pictures, requests
from benchmarks.contenders import as_form
from benchmarks.servers import SHIPPED_BUNDLE, Request
from benchmarks.subjects import Subject

SHAPES = [(28, 28, 1), (64, 64, 3)]


def subject(shape: tuple[int, int, int]) -> Subject:
    images = np.stack([pictures.drawn(shape, seed=seed) for seed in range(4)])
    return Subject("drawn", "0" * 64, SHIPPED_BUNDLE, images, np.arange(8, dtype=np.float32).reshape(4, 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_the_same_for_a_seed_and_differ_between_seeds(shape: tuple[int, int, int]) -> None:
    first, again, other = (pictures.drawn(shape, seed=seed) for seed in (0, 0, 1))
    assert first.shape == shape
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_as_hard_to_pack_as_photographs(shape: tuple[int, int, int]) -> None:
    for seed in range(4):
        image = pictures.drawn(shape, seed=seed)
        assert 0.3 * image.nbytes < len(pictures.as_png(image)) < image.nbytes


@pytest.mark.parametrize("shape", SHAPES)
def test_a_png_brings_its_pixels_back(shape: tuple[int, int, int]) -> None:
    sent = subject(shape)
    for request, image in zip(requests.encode(sent), sent.images, strict=True):
        np.testing.assert_array_equal(pictures.of_png(request.body, channels=shape[2]), image)


def test_bulk_requests_hold_the_same_rows_in_other_orders() -> None:
    first, second, *_ = (load(request.body)["images"] for request in requests.encode_in_bulk(subject((28, 28, 1))))
    assert first.shape == (256, 28, 28, 1)
    np.testing.assert_array_equal(first[:-1], second[1:])
    assert (first != second).any()


def test_latents_are_sent_as_they_are() -> None:
    assert [json.loads(request.body)["z"] for request in requests.decode(subject((28, 28, 1)))][1] == [[2.0, 3.0]]


def test_samples_are_asked_for_by_address() -> None:
    asked = requests.sample(subject((28, 28, 1)))
    assert {request.body for request in asked} == {b""}
    assert len({request.path for request in asked}) == len(asked)


def test_a_form_carries_the_picture_it_was_made_of() -> None:
    assert asyncio.run(parts(as_form(Request("/encode", "image/png", b"\r\n--\x00 bytes")))) == {
        "image": ("image/png", b"\r\n--\x00 bytes")
    }


async def parts(request: Request) -> dict[str, tuple[str | None, bytes]]:
    """The files of a form, as starlette reads it."""

    async def receive() -> Message:
        return {"type": "http.request", "body": request.body}

    headers = [(b"content-type", request.content_type.encode())]
    async with Received({"type": "http", "method": "POST", "headers": headers}, receive).form() as form:
        files = {name: part for name, part in form.items() if isinstance(part, UploadFile)}
        return {name: (part.content_type, await part.read()) for name, part in files.items()}
