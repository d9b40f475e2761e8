"""Arrays become a response, in the form that the request asked for, with the headers every answer carries."""

import base64
from collections.abc import Sequence
from math import ceil
from time import perf_counter
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from service import addresses, images, tensors
from service.batcher import Done
from service.budget import spend
from service.errors import too_large
from service.forms import ANIMATIONS, Form
from service.intake import Call
from service.schemas import EncodeOptions, InterpolateOptions, Options, PictureOptions


async def latents(
    call: Call[EncodeOptions],
    done: Done,
    *,
    decoded_at: float,
    z: NDArray[np.float32] | None,
    seed: int | None,
) -> Response:
    """mu and logvar of each image, and the draws where some were asked.

    Shapes:  done.outputs mu, logvar (n, *latent_shape); z (n, draws, *latent_shape)
    """
    began = perf_counter()
    named = dict(zip(("mu", "logvar"), done.outputs, strict=True)) | ({} if z is None else {"z": z})
    dtype = np.dtype(call.options.dtype)
    arrays = {name: np.ascontiguousarray(array, dtype) for name, array in named.items()}
    numbers = sum(array.size for array in arrays.values())
    if call.form is Form.SAFETENSORS:
        content = await spend(20 + 0.002 * numbers, tensors.write, arrays)
    else:
        drawn = {} if seed is None else {"seed": seed}
        content = await spend(5 + 0.02 * numbers, _json, call, drawn | arrays)
    return _response(call, content, seeded=False, runs=(done,), decoded_at=decoded_at, encoding_at=began)


async def pictures(
    call: Call[PictureOptions],
    *,
    z: NDArray[np.float32],
    runs: Sequence[Done],
    decoded_at: float,
    seeded: bool,
    columns: int,
    seed: int | None = None,
) -> Response:
    """Pictures of the last run, `columns` in a line, and the latents that they came from.

    Shapes:  z (n, *latent_shape); the last run's output (n, h, w, c)
    """
    began = perf_counter()
    (image,) = runs[-1].outputs
    options = call.options
    if call.form is Form.SAFETENSORS:
        content = await spend(0.001 * image.size, tensors.write, {"images": image, "z": z})
    elif call.form is Form.JSON:
        drawn = {} if seed is None else {"seed": seed}
        cost = len(image) * images.rendering_cost_us(image[:1], options.scale)
        content = await spend(cost, _json_pictures, call, image, drawn, z, options.scale)
    else:
        content = await spend(
            images.rendering_cost_us(image, options.scale),
            images.render,
            image,
            encoding=cast("images.Encoding", call.form.label),
            columns=columns,
            scale=options.scale,
            quality=options.quality,
            frame_ms=options.frame_ms if isinstance(options, InterpolateOptions) else 0,
        )
    return _response(call, content, seeded=seeded, runs=runs, decoded_at=decoded_at, encoding_at=began)


def arrange(call: Call[PictureOptions], n: int, *, path: bool = False) -> int:
    """How many of n pictures stand in a line: as asked, else near square, and a path in one line.

    Raises:  TooLarge if the answer would be over a limit, ours or its format's, before anything is computed
    """
    height, width, _ = call.model.manifest.image.shape
    options, limit = call.options, call.deployment.settings.max_answer_pixels
    pixels = n * height * width * options.scale**2
    if pixels > limit:
        raise too_large("answer", got=pixels, limit=limit, unit="pixels")
    columns = min(options.columns or (n if path else images.near_square(n)), n)
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
    call: Call[Options], image: NDArray[np.uint8], drawn: dict[str, int], z: NDArray[np.float32], scale: int
) -> bytes:
    files = [images.png(picture) for picture in images.enlarge(image, scale)]
    encoded = [base64.b64encode(file).decode("ascii") for file in files]
    return _json(call, drawn | {"images": encoded, "z": np.ascontiguousarray(z)})


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
