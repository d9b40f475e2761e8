"""A stranger's pair as what a bundle is made of: graphs wired to bytes and logvar, and the files to prove them by."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from export.foreign.pair import Pair, Part
from export.foreign.pixels import TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from export.foreign.sizes import Sides, Sizes, pictures, sizes
from export.foreign.surgery import Port, Step, cast, rewired, with_free_rows
from export.frozen import CannotImport, Described, Float32, Frozen, Graphs, Source, Uint8
from service import manifest
from service.bundle import BadBundle
from service.engine import signatures
from service.graph import Graph
from service.machine import available_cores
from service.manifest import DECODER, ENCODER

# Odd, and more than the one or two that a batch axis is most often fixed at.
_TRIED_ROWS = 3
# Rows alone and rows together may be summed in another order: units of the output, relative to values above 1.
_NEIGHBOURS = 1e-3


def frozen(
    pair: Pair,
    sides: Sides,
    *,
    source: manifest.Source,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
) -> Frozen:
    """Both graphs as bundles have them, and both files as the source to compare them with.

    `source`, `latent_scale` and `latent_shift` go into the manifest as they are.

    Raises:  CannotImport if the files do not fit each other or what was said of them
    """
    measured = sizes(pair, sides)
    graphs = Graphs(encoder=_encoder(pair, measured), decoder=_decoder(pair, measured))
    described = Described(
        family="autoencoder" if pair.scale is None else "vae",
        image=measured.image,
        latent_shape=measured.latent_shape,
        prior="none" if pair.scale is None else "standard",
        source=source,
        scale_head=pair.scale.head if pair.scale else None,
        logvar_range=pair.scale.logvar_range if pair.scale else None,
        latent_scale=latent_scale,
        latent_shift=latent_shift,
    )
    _require_rows(pair, graphs, measured, described.family)
    return Frozen(graphs=graphs, source=_source(pair, measured), described=described)


def _encoder(pair: Pair, measured: Sizes) -> bytes:
    part, latent = pair.encoder, _latent_axes(measured)
    dtypes = [value.type.tensor_type.elem_type for value in part.gives]
    heads = [cast(dtypes[0], TensorProto.FLOAT)]
    if pair.scale is not None:
        heads.append(pair.scale.steps(dtypes[1]))
    move = [Step("Transpose", attributes={"perm": TO_CHANNELS_FIRST})] if measured.channels_move else []
    takes = Port("image", part.takes.name, TensorProto.UINT8, _image_axes(measured), pair.pixels_in.steps_of())
    gives = [
        Port(name, value.name, TensorProto.FLOAT, latent, [*steps, *move])
        for name, value, steps in zip(("mu", "logvar"), part.gives, heads, strict=False)
    ]
    return rewired(_with_free_rows(part), takes=takes, gives=gives, path=part.path)


def _decoder(pair: Pair, measured: Sizes) -> bytes:
    part = pair.decoder
    move = [Step("Transpose", attributes={"perm": TO_CHANNELS_LAST})] if measured.channels_move else []
    steps = [*move, *cast(TensorProto.FLOAT, part.takes.type.tensor_type.elem_type)]
    takes = Port("z", part.takes.name, TensorProto.FLOAT, _latent_axes(measured), steps)
    (given,) = part.gives
    gives = Port("image", given.name, TensorProto.UINT8, _image_axes(measured), pair.pixels_out.steps_image())
    return rewired(_with_free_rows(part), takes=takes, gives=[gives], path=part.path)


def _image_axes(measured: Sizes) -> tuple[int | str, ...]:
    height, width, channels = measured.image.shape
    return "n", height or "h", width or "w", channels


def _latent_axes(measured: Sizes) -> tuple[int | str, ...]:
    free = iter(("latent_h", "latent_w"))
    return "n", *(axis or next(free) for axis in measured.latent_shape)


def _with_free_rows(part: Part) -> ModelProto:
    return part.model if part.axes[0] is None else with_free_rows(part.model, path=part.path)


def _require_rows(pair: Pair, graphs: Graphs, measured: Sizes, family: str) -> None:
    """Nothing, if both graphs take one row and several, and give each row what it gets alone."""
    expected = signatures(measured.image.shape, measured.latent_shape, family=family)
    x: NDArray[Any] = pictures(_TRIED_ROWS, (*measured.tried, measured.image.channels))
    for part, content, name in ((pair.encoder, graphs.encoder, ENCODER), (pair.decoder, graphs.decoder, DECODER)):
        try:
            graph = Graph(content, expected[name], path=part.path, device="cpu", threads=available_cores())
            together = graph.tried(x)
            alone = [graph.tried(x[row : row + 1]) for row in range(_TRIED_ROWS)]
        except BadBundle as error:
            fixed = part.axes[0]
            why = f"; its batch axis is fixed at {fixed}, expected a free one" if fixed else ""
            raise CannotImport(f"{error}{why}") from error
        for output, found, rows in zip(expected[name].outputs, together, zip(*alone, strict=True), strict=True):
            apart = np.abs(found.astype(np.float64) - np.concatenate(rows))
            if (apart > (1 if found.dtype == np.uint8 else _NEIGHBOURS * np.maximum(1, np.abs(found)))).any():
                told = f"{output} of a row changes by {apart.max():.3g} from run to run or with the rows beside it"
                raise CannotImport(f"{part.path}: {told}, expected one answer to one row")
        x = together[0]


def _source(pair: Pair, measured: Sizes) -> Source:
    """The files as they came, on what a bundle takes and gives."""

    def encode(image: Uint8) -> tuple[Float32, Float32 | None]:
        mu, emitted = pair.encode(image)
        logvar = None if pair.scale is None or emitted is None else pair.scale.logvar(emitted)
        return moved(mu.astype(np.float32)), None if logvar is None else moved(logvar)

    def decode(z: Float32) -> Uint8:
        return pair.decode(z.transpose(TO_CHANNELS_LAST) if measured.channels_move else z)

    def moved(latents: Float32) -> Float32:
        return np.ascontiguousarray(latents.transpose(TO_CHANNELS_FIRST)) if measured.channels_move else latents

    return Source(encode, decode)
