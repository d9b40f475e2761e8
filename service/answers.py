"""Arrays become a response, in the form that the request asked for, with the headers every answer carries."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from time import perf_counter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from service import addresses, json_text, png, rendering, tensors
from service.batcher import Done
from service.budget import in_turns
from service.call import Call
from service.errors import too_large
from service.forms import ANIMATIONS, GRIDS, Form
from service.observation import record
from service.observation.timing import Timing
from service.pieces import Pieces
from service.schemas import Options, PathOptions, PictureOptions
from service.seeds import ChosenSeed

# What a number takes to be rounded to another dtype, by `python -m benchmarks.wire`.
CONVERTED_NUMBER_US = 0.004

# What a value of a picture takes to be put above another one.
_STACKED_VALUE_US = 0.001

# Up to here, copying the pieces of an answer into one message costs less than sending more of them.
_ONE_MESSAGE_BYTES = 2**17


async def numbers(
    call: Call[Options],
    named: Mapping[str, NDArray[np.floating[Any]] | None],
    *,
    runs: Sequence[Done],
    decoded_at: float,
    seed: ChosenSeed | None = None,
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
        content = await _json(call, _told(seed) | rows)
    return _response(call, content, seed=seed, runs=runs, decoded_at=decoded_at, encoding_at=began)


async def pictures(
    call: Call[PictureOptions],
    *,
    image: NDArray[np.uint8],
    z: NDArray[np.float32],
    runs: Sequence[Done],
    decoded_at: float,
    columns: int,
    seed: ChosenSeed | None = None,
    inputs: NDArray[np.uint8] | None = None,
) -> Response:
    """Pictures, `columns` in a line, and the latents that they came from. The `inputs` that they were made of, where
    they are given, stand above them, in JSON and safetensors under a name of their own.

    Shapes:  image, inputs (n, h, w, c); z (n, *latent_shape)
    """
    began = perf_counter()
    named = {"images": image} if inputs is None else {"images": image, "inputs": inputs}
    if call.form is Form.SAFETENSORS:
        content = tensors.write({**named, "z": z})
    elif call.form is Form.JSON:
        encoded = {name: await _base64_pngs(call, rows) for name, rows in named.items()}
        warned = {"warnings": [warning.model_dump() for warning in call.warnings]} if call.warnings else {}
        content = await _json(call, _told(seed) | encoded | warned | {"z": np.ascontiguousarray(z)})
    else:
        shown = image
        if inputs is not None:
            shown = await call.spend(_STACKED_VALUE_US * image.size, np.concatenate, (inputs, image), axis=1)
        content = (await _file(call, shown, columns=columns),)
    return _response(call, content, seed=seed, runs=runs, decoded_at=decoded_at, encoding_at=began)


def arrange(call: Call[PictureOptions], n: int, *, shape: tuple[int, int, int], line: int | None = None) -> int:
    """How many of n pictures stand in a line: as asked, else as many as the verb puts there, else near square.

    Shapes:  shape (h, w, c) of one picture
    Raises:  TooLarge if the answer would be over a limit, ours or its format's, before anything is computed
    """
    height, width, _ = shape
    options, limit = call.options, call.deployment.settings.max_answer_pixels
    scale = 1 if call.form is Form.SAFETENSORS else options.scale
    columns = min(options.columns or line or rendering.near_square(n), n)
    pixels = _cells(call, n, columns=columns) * height * width * scale**2
    if pixels > limit:
        raise too_large("answer", got=pixels, limit=limit, unit="pixels")
    across, down = (1, 1) if call.form in ANIMATIONS else (columns, ceil(n / columns))
    side = max(across * width, down * height) * scale
    longest = rendering.LONGEST_SIDE.get(call.form.label, side)
    if side > longest:
        what, remark = f"side of {call.form.label}, with {columns} columns", "format=png has room"
        raise too_large(what, got=side, limit=longest, unit="pixels", remark=remark, where="answer")
    if call.form is Form.GIF and isinstance(options, PathOptions):
        lasts_ms, longest_ms = n * options.frame_ms, rendering.LONGEST_GIF_MS
        if lasts_ms > longest_ms:
            what, remark = f"time of gif, of {n:,} frames", "format=apng has time"
            raise too_large(what, got=lasts_ms, limit=longest_ms, unit="ms", remark=remark, where="answer")
    return columns


def _cells(call: Call[PictureOptions], n: int, *, columns: int) -> int:
    """Places for n pictures in an answer: in a grid also those of its last line that stay black."""
    return columns * ceil(n / columns) if call.form in GRIDS else n


def _told(seed: ChosenSeed | None) -> dict[str, Any]:
    """The member of JSON that tells the seed, where there is one."""
    return {} if seed is None else {"seed": seed.value}


def _rows(named: Mapping[str, NDArray[Any] | None], dtype: str) -> dict[str, NDArray[Any] | None]:
    """Arrays as orjson takes them: of this dtype and without gaps."""
    return {name: None if array is None else np.ascontiguousarray(array, dtype) for name, array in named.items()}


async def _file(call: Call[PictureOptions], image: NDArray[np.uint8], *, columns: int) -> bytes:
    """All pictures (n, h, w, c) as one file of the form that the request asked for."""
    options = call.options
    encoding = cast("rendering.Encoding", call.form.label)
    render = partial(
        rendering.render,
        image,
        encoding=encoding,
        columns=columns,
        scale=options.scale,
        quality=options.quality,
        frame_ms=options.frame_ms if isinstance(options, PathOptions) else 0,
    )
    _, height, width, channels = image.shape
    pixels = _cells(call, len(image), columns=columns) * height * width * options.scale**2
    return await call.spend_on_answer(pixels, rendering.cost_us(pixels * channels, encoding), render)


async def _base64_pngs(call: Call[PictureOptions], image: NDArray[np.uint8]) -> list[str]:
    """Each picture (n, h, w, c) as a file of its own, in base64."""
    scale = call.options.scale

    def encode() -> list[str]:
        return [base64.b64encode(png.encode(picture)).decode("ascii") for picture in rendering.enlarge(image, scale)]

    n, height, width, channels = image.shape
    pixels = height * width * scale**2
    return await call.spend_on_answer(n * pixels, n * rendering.cost_us(pixels * channels, "png"), encode)


async def _json(call: Call[Options], members: dict[str, Any]) -> tuple[bytes, ...]:
    manifest = call.model.manifest
    pieces = json_text.pieces({"model": manifest.name, "digest": manifest.digest} | members)
    return pieces if isinstance(pieces, tuple) else await in_turns(pieces)


def _response(
    call: Call[Options],
    content: tuple[tensors.Piece, ...],
    *,
    seed: ChosenSeed | None,
    runs: Sequence[Done],
    decoded_at: float,
    encoding_at: float,
) -> Response:
    timing = Timing(began=call.began, decoded_at=decoded_at, runs=runs, encoding_at=encoding_at)
    record.of(call.request.scope).timing = timing
    headers = addresses.identity(call) | {"server-timing": timing.header()}
    drawn = seed.value if seed is not None and seed.is_drawn else None
    if drawn is not None:
        headers["x-seed"] = str(drawn)
    if call.is_get:
        headers |= addresses.caching(call) if drawn is None else addresses.UNKEPT
    if len(content) == 1 or sum(map(len, content)) <= _ONE_MESSAGE_BYTES:
        return Response(b"".join(content), media_type=call.form.media_type, headers=headers)
    return Pieces(content, media_type=call.form.media_type, headers=headers)
