"""Arrays become a response, in the form that the request asked for, with the headers every answer carries."""

import base64
from collections.abc import Mapping, Sequence
from math import ceil
from time import perf_counter
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from service import addresses, images, png, tensors
from service.batcher import Done
from service.budget import spend
from service.errors import too_large
from service.forms import ANIMATIONS, Form
from service.intake import Call
from service.schemas import Options, PathOptions, PictureOptions


async def numbers(
    call: Call[Options],
    named: Mapping[str, NDArray[np.floating[Any]] | None],
    *,
    runs: Sequence[Done],
    decoded_at: float,
    seed: int | None = None,
    dtype: str = "float32",
) -> Response:
    """Named arrays, a row for each image. What a model has not is null in JSON and left out of safetensors.

    Shapes:  named (n, …)
    """
    began = perf_counter()
    arrays = {name: np.ascontiguousarray(array, dtype) for name, array in named.items() if array is not None}
    count = sum(array.size for array in arrays.values())
    if call.form is Form.SAFETENSORS:
        content = await spend(20 + 0.002 * count, tensors.write, arrays)
    else:
        drawn = {} if seed is None else {"seed": seed}
        content = await spend(5 + 0.02 * count, _json, call, drawn | dict(named) | arrays)
    return _response(call, content, seeded=False, runs=runs, decoded_at=decoded_at, encoding_at=began)


async def pictures(
    call: Call[PictureOptions],
    *,
    image: NDArray[np.uint8],
    z: NDArray[np.float32],
    runs: Sequence[Done],
    decoded_at: float,
    seeded: bool,
    columns: int,
    seed: int | None = None,
    extra: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
) -> Response:
    """Pictures, `columns` in a line, and the latents that they came from; in JSON and safetensors also the pictures of
    `extra`, under their names.

    Shapes:  image (n, h, w, c); z (n, *latent_shape); extra (m, h, w, c)
    """
    began = perf_counter()
    options = call.options
    named = {"images": image, **extra}
    if call.form is Form.SAFETENSORS:
        values = sum(pictures.size for pictures in named.values())
        content = await spend(0.001 * values, tensors.write, {**named, "z": z})
    elif call.form is Form.JSON:
        drawn = {} if seed is None else {"seed": seed}
        n = sum(map(len, named.values()))
        cost = n * images.rendering_cost_us(image[:1], "png", options.scale)
        content = await spend(cost, _json_pictures, call, named, drawn, z, options.scale)
    else:
        encoding = cast("images.Encoding", call.form.label)
        content = await spend(
            images.rendering_cost_us(image, encoding, options.scale),
            images.render,
            image,
            encoding=encoding,
            columns=columns,
            scale=options.scale,
            quality=options.quality,
            frame_ms=options.frame_ms if isinstance(options, PathOptions) else 0,
        )
    return _response(call, content, seeded=seeded, runs=runs, decoded_at=decoded_at, encoding_at=began)


def arrange(call: Call[PictureOptions], n: int, *, shape: tuple[int, int, int], line: int | None = None) -> int:
    """How many of n pictures stand in a line: as asked, else as many as the verb puts there, else near square.

    Shapes:  shape (h, w, c) of one picture
    Raises:  TooLarge if the answer would be over a limit, ours or its format's, before anything is computed
    """
    height, width, _ = shape
    options, limit = call.options, call.deployment.settings.max_answer_pixels
    pixels = n * height * width * options.scale**2
    if pixels > limit:
        raise too_large("answer", got=pixels, limit=limit, unit="pixels")
    columns = min(options.columns or line or images.near_square(n), n)
    across, down = (1, 1) if call.form in ANIMATIONS else (columns, ceil(n / columns))
    side = max(across * width, down * height) * options.scale
    longest = images.LONGEST_SIDE.get(call.form.label, side)
    if side > longest:
        raise too_large(f"side of {call.form.label}, with {columns} columns", got=side, limit=longest, unit="pixels")
    return columns


def _json(call: Call[Options], members: dict[str, Any]) -> bytes:
    manifest = call.model.manifest
    document = {"model": manifest.name, "digest": manifest.digest} | members
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _json_pictures(
    call: Call[Options],
    named: Mapping[str, NDArray[np.uint8]],
    drawn: dict[str, int],
    z: NDArray[np.float32],
    scale: int,
) -> bytes:
    encoded = {
        name: [base64.b64encode(png.encode(picture)).decode("ascii") for picture in images.enlarge(image, scale)]
        for name, image in named.items()
    }
    return _json(call, drawn | encoded | {"z": np.ascontiguousarray(z)})


def _response(
    call: Call[Options],
    content: bytes,
    *,
    seeded: bool,
    runs: Sequence[Done],
    decoded_at: float,
    encoding_at: float,
) -> Response:
    headers = {
        **addresses.identity(call),
        **addresses.headers(call, seeded=seeded),
        "server-timing": _timing(call.began, decoded_at, runs, encoding_at),
    }
    return Response(content, media_type=call.form.media_type, headers=headers)


def _timing(began: float, decoded_at: float, runs: Sequence[Done], encoding_at: float) -> str:
    """Where the time went, in milliseconds.

    Source:  W3C Server Timing
    """
    spent = {
        "decode": decoded_at - began,
        "queue": sum(done.queue_s for done in runs),
        "run": sum(done.run_s for done in runs),
        "encode": perf_counter() - encoding_at,
    }
    batch = max(done.batch_rows for done in runs)
    parts = (f"{name};dur={1000 * seconds:.3f}" for name, seconds in spent.items())
    return ", ".join(parts) + f', batch;desc="{batch} rows"'
