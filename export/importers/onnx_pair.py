"""Any encoder and decoder in two ONNX files as the source of a bundle, from Keras, JAX or whatever writes ONNX."""

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import ModelProto

from export.foreign import files
from export.foreign.freezing import frozen
from export.foreign.pair import Pair, Part
from export.foreign.pixels import LAYOUTS, Layout, Pixels
from export.foreign.scales import Scale
from export.foreign.sizes import DEFAULT_SIDE, Sides
from export.frozen import CannotImport, Frozen
from model.gaussian import SCALE_HEADS
from service.manifest import ImageSpec, Source


def load(
    encoder: Path,
    decoder: Path,
    *,
    scale_head: str | None,
    pixel_range: tuple[float, float] | None,
    layout: str | None,
    max_side: int | None = None,
    stride: int | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Frozen:
    """Two files, frozen.

    `outputs` names mu and the scale among the encoder's outputs, or the code of an autoencoder; without it these are
    `mu` and `logvar` if it has both, else its first two, or its only one. The decoder's is `image`, else its first.
    What the files give beyond these is left out. `pixel_range` is black and white as the graphs have them.

    Raises:  CannotImport if bundles cannot be made of a file, or a flag is missing or wrong
    """
    _require_flags(pixel_range, max_side=max_side, stride=stride)
    axes = _layout(layout)
    encoder_model, decoder_model = files.read(encoder), files.read(decoder)
    posterior = outputs or _posterior(encoder_model)
    scale = _scale(posterior, scale_head, path=encoder)
    parts = Part.of(encoder, encoder_model, posterior), Part.of(decoder, decoder_model, [_picture(decoder_model)])
    pair = Pair(
        *parts,
        pixels_in=Pixels.at(parts[0].takes, layout=axes, black_white=pixel_range, path=encoder),
        pixels_out=Pixels.at(parts[1].gives[0], layout=axes, black_white=pixel_range, path=decoder),
        scale=scale,
    )
    _require_floats_for(pixel_range, pair)
    kept = f"mu from {posterior[0]}" + (f", {scale.head} from {posterior[1]}" if scale else "")
    source = Source(kind="onnx", version=onnx.__version__, network=f"{files.producer(encoder_model)}: {kept}")
    made = frozen(pair, Sides(max_side=max_side, default=DEFAULT_SIDE, stride=stride), source=source)
    _require_open_for(made.described.image, max_side=max_side, stride=stride)
    return made


def _posterior(model: ModelProto) -> tuple[str, ...]:
    names = tuple(value.name for value in model.graph.output)
    return ("mu", "logvar") if {"mu", "logvar"} <= set(names) else names[:2]


def _picture(model: ModelProto) -> str:
    first, *others = (str(value.name) for value in model.graph.output)
    return "image" if "image" in others else first


def _scale(posterior: Sequence[str], scale_head: str | None, *, path: Path) -> Scale | None:
    """How the second output states the posterior's scale; None if there is none."""
    if len(posterior) == 1:
        if scale_head is not None:
            raise CannotImport(f"{path}: gives {posterior[0]} alone, expected a second output, as --scale-head says")
        return None
    if len(posterior) != 2:
        raise CannotImport(f"{path}: --outputs names {', '.join(posterior)}, expected mu and a scale, or mu alone")
    if posterior[0] == posterior[1]:
        raise CannotImport(f"{path}: --outputs names {posterior[0]} twice, expected mu and a scale, or mu alone")
    said = scale_head or posterior[1]
    head = next((head for head in SCALE_HEADS if head == said), None)
    if head is None:
        found = f"--scale-head is {scale_head}" if scale_head else f"nothing says what {posterior[1]} is"
        raise CannotImport(f"{path}: {found}, expected --scale-head {', '.join(SCALE_HEADS[:-1])} or {SCALE_HEADS[-1]}")
    return Scale.of(head)


def _layout(said: str | None) -> Layout | None:
    layout = next((layout for layout in LAYOUTS if layout == said), None)
    if said is not None and layout is None:
        raise CannotImport(f"--layout: got {said}, expected {' or '.join(LAYOUTS)}")
    return layout


def _require_flags(pixel_range: tuple[float, float] | None, *, max_side: int | None, stride: int | None) -> None:
    if pixel_range and not (all(map(math.isfinite, pixel_range)) and pixel_range[0] != pixel_range[1]):
        got = f"{pixel_range[0]:g},{pixel_range[1]:g}"
        raise CannotImport(f"--pixel-range: got {got}, expected two different numbers, black and white")
    for flag, value in (("--max-side", max_side), ("--stride", stride)):
        if value is not None and value < 1:
            raise CannotImport(f"{flag}: got {value}, expected 1 or more")


def _require_floats_for(pixel_range: tuple[float, float] | None, pair: Pair) -> None:
    if pixel_range and pair.pixels_in.black_white is None and pair.pixels_out.black_white is None:
        got = f"{pixel_range[0]:g},{pixel_range[1]:g} for files that take and give bytes"
        raise CannotImport(f"--pixel-range: got {got}, expected it for floats alone")


def _require_open_for(image: ImageSpec, *, max_side: int | None, stride: int | None) -> None:
    for flag, value in (("--max-side", max_side), ("--stride", stride)):
        if value is not None and not image.is_open:
            got = f"{value} for pictures of {image.height}×{image.width} pixels"
            raise CannotImport(f"{flag}: got {got}, expected it where height and width are free alone")
