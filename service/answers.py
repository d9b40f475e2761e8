"""Arrays become a response, in the form that the request asked for, with the headers every answer carries."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from time import perf_counter
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from service import addresses, json_text, png, rendering, tensors
from service.batcher import Done
from service.budget import in_turns
from service.errors import too_large
from service.forms import ANIMATIONS, Form
from service.intake import Call
from service.observation import record
from service.observation.timing import Timing
from service.pieces import Pieces
from service.schemas import Options, PathOptions, PictureOptions

# What a number takes to be rounded to another dtype, by `python -m benchmarks.wire`.
CONVERTED_NUMBER_US = 0.002

# Up to here, copying the pieces of an answer into one message costs less than sending more of them.
_ONE_MESSAGE_BYTES = 2**17


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
    converted = sum([array.size for array in named.values() if array is not None and array.dtype != dtype])
    rows = await call.spend(CONVERTED_NUMBER_US * converted, _rows, named, dtype)
    if call.form is Form.SAFETENSORS:
        content = tensors.write({name: array for name, array in rows.items() if array is not None})
    else:
        drawn = {} if seed is None else {"seed": seed}
        content = await _json(call, drawn | rows)
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
        content = tensors.write({**named, "z": z})
    elif call.form is Form.JSON:
        document: dict[str, Any] = {} if seed is None else {"seed": seed}
        for name, rows in named.items():
            cost_us = len(rows) * rendering.cost_us(rows[:1], "png", options.scale)
            work = partial(_base64_pngs, rows, options.scale)
            document[name] = await call.spend_on_answer(_pixels(rows, options.scale), cost_us, work)
        warned = {"warnings": [warning.model_dump() for warning in call.warnings]} if call.warnings else {}
        content = await _json(call, document | warned | {"z": np.ascontiguousarray(z)})
    else:
        encoding = cast("rendering.Encoding", call.form.label)
        cost_us = rendering.cost_us(image, encoding, options.scale)
        render = partial(
            rendering.render,
            image,
            encoding=encoding,
            columns=columns,
            scale=options.scale,
            quality=options.quality,
            frame_ms=options.frame_ms if isinstance(options, PathOptions) else 0,
        )
        file = await call.spend_on_answer(_pixels(image, options.scale), cost_us, render)
        content = (file,)
    return _response(call, content, seeded=seeded, runs=runs, decoded_at=decoded_at, encoding_at=began)


def arrange(call: Call[PictureOptions], n: int, *, shape: tuple[int, int, int], line: int | None = None) -> int:
    """How many of n pictures stand in a line: as asked, else as many as the verb puts there, else near square.

    Shapes:  shape (h, w, c) of one picture
    Raises:  TooLarge if the answer would be over a limit, ours or its format's, before anything is computed
    """
    height, width, _ = shape
    options, limit = call.options, call.deployment.settings.max_answer_pixels
    scale = 1 if call.form is Form.SAFETENSORS else options.scale
    pixels = n * height * width * scale**2
    if pixels > limit:
        raise too_large("answer", got=pixels, limit=limit, unit="pixels")
    columns = min(options.columns or line or rendering.near_square(n), n)
    across, down = (1, 1) if call.form in ANIMATIONS else (columns, ceil(n / columns))
    side = max(across * width, down * height) * scale
    longest = rendering.LONGEST_SIDE.get(call.form.label, side)
    if side > longest:
        raise too_large(f"side of {call.form.label}, with {columns} columns", got=side, limit=longest, unit="pixels")
    if call.form is Form.GIF and isinstance(options, PathOptions):
        lasts_ms, longest_ms = n * options.frame_ms, rendering.LONGEST_GIF_MS
        if lasts_ms > longest_ms:
            raise too_large(f"time of gif, of {n:,} frames", got=lasts_ms, limit=longest_ms, unit="ms")
    return columns


def _rows(named: Mapping[str, NDArray[Any] | None], dtype: str) -> dict[str, NDArray[Any] | None]:
    """Arrays as orjson takes them: of this dtype and without gaps."""
    return {name: None if array is None else np.ascontiguousarray(array, dtype) for name, array in named.items()}


def _pixels(image: NDArray[np.uint8], scale: int) -> int:
    """The pixels of pictures (n, h, w, c) as they are shown."""
    return image[..., 0].size * scale**2


def _base64_pngs(image: NDArray[np.uint8], scale: int) -> list[str]:
    return [base64.b64encode(png.encode(picture)).decode("ascii") for picture in rendering.enlarge(image, scale)]


async def _json(call: Call[Options], members: dict[str, Any]) -> tuple[bytes, ...]:
    manifest = call.model.manifest
    pieces = json_text.pieces({"model": manifest.name, "digest": manifest.digest} | members)
    return pieces if isinstance(pieces, tuple) else await in_turns(pieces)


def _response(
    call: Call[Options],
    content: tuple[tensors.Piece, ...],
    *,
    seeded: bool,
    runs: Sequence[Done],
    decoded_at: float,
    encoding_at: float,
) -> Response:
    timing = Timing(began=call.began, decoded_at=decoded_at, runs=runs, encoding_at=encoding_at)
    record.of(call.request.scope).timing = timing
    headers = addresses.identity(call) | {"server-timing": timing.header()}
    if call.is_get:
        headers |= addresses.caching(call, seeded=seeded)
    if len(content) == 1 or sum(map(len, content)) <= _ONE_MESSAGE_BYTES:
        return Response(b"".join(content), media_type=call.form.media_type, headers=headers)
    return Pieces(content, media_type=call.form.media_type, headers=headers)
