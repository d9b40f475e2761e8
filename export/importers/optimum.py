"""A folder that optimum exported a VAE of diffusers to, one graph each way, as the source of a bundle."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.foreign import draws, files
from export.foreign.freezing import frozen
from export.foreign.original import Original
from export.foreign.pair import Pair, Part
from export.foreign.pixels import Pixels
from export.foreign.scales import Scale
from export.foreign.sizes import DEFAULT_SIDE, Sides
from export.foreign.surgery import split
from export.frozen import CannotImport, Frozen
from export.importers.diffusers import LOGVAR_RANGE, MAX_SIDE
from service.manifest import Source

ENCODER, DECODER, CONFIG = "vae_encoder/model.onnx", "vae_decoder/model.onnx", "vae_encoder/config.json"

# What optimum's encoders give: mean and logvar, one after the other in the channels, or in older ones a draw of z.
_MOMENTS, _DRAWN = "latent_parameters", "latent_sample"
_DECODED = "sample"
_BLACK_WHITE = (-1.0, 1.0)
# Of the pictures with which a draw is tried, where a graph takes any.
_TRIED = (2, 3, 64, 64)

_Positive = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """What is asked of the config of diffusers that optimum puts beside the encoder. All of it may be missing."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    in_channels: _Positive | None = None
    latent_channels: _Positive | None = None
    block_out_channels: Annotated[list[_Positive], Field(min_length=1, max_length=8)] | None = None
    sample_size: _Positive | Annotated[list[_Positive], Field(min_length=1)] | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None

    @property
    def sides(self) -> Sides:
        """Open sizes up to MAX_SIDE: every block but the last halves them, and training was at `sample_size`."""
        trained_at = self.sample_size or DEFAULT_SIDE
        default = trained_at if isinstance(trained_at, int) else min(trained_at)
        stride = 2 ** (len(self.block_out_channels) - 1) if self.block_out_channels else None
        return Sides(max_side=MAX_SIDE, default=min(default, DEFAULT_SIDE), stride=stride)


def recognises(folder: Path) -> bool:
    """Whether a folder holds the two graphs that optimum writes of a VAE."""
    return (folder / ENCODER).is_file() and (folder / DECODER).is_file()


def load(folder: Path) -> Frozen:
    """The two graphs, frozen; for pictures of any height and width up to MAX_SIDE if they take such.

    Raises:  CannotImport with one sentence
    """
    config = _config(folder / CONFIG)
    paths = folder / ENCODER, folder / DECODER
    models = [files.read(path) for path in paths]
    for model, channels in zip(models, (config.in_channels, config.latent_channels), strict=True):
        _pin_channels(model, channels)
    decoder = Part.of(paths[1], models[1], [_DECODED])
    if len(decoder.axes) != 4:
        raise CannotImport(f"{paths[1]}: its latent has {len(decoder.axes)} axes, expected four")
    encoder = _encoder(paths[0], models[0], latent_channels=decoder.axes[1])
    said: dict[str, Any] = {"layout": "nchw", "black_white": _BLACK_WHITE}
    pair = Pair(
        encoder,
        decoder,
        pixels_in=Pixels.at(encoder.takes, path=encoder.path, **said),
        pixels_out=Pixels.at(decoder.gives[0], path=decoder.path, **said),
        scale=Scale("logvar", LOGVAR_RANGE),
    )
    return frozen(
        pair,
        config.sides,
        source=Source(kind="optimum", version=onnx.__version__, network=files.producer(models[0])),
        latent_scale=config.scaling_factor,
        latent_shift=config.shift_factor,
    )


def _encoder(path: Path, model: ModelProto, *, latent_channels: int | None) -> Part:
    """The encoder, giving mean and logvar whichever way it has them."""
    names = [value.name for value in model.graph.output]
    if _MOMENTS in names:
        if latent_channels is None:
            raise CannotImport(
                f"{path.parent}: latents have any number of channels, expected latent_channels in {CONFIG}"
            )
        return _of_moments(Part.of(path, model, [_MOMENTS]), channels=latent_channels)
    if _DRAWN in names:
        return _before_the_draw(path, model)
    raise CannotImport(f"{path}: its outputs are {', '.join(names)}, expected {_MOMENTS} or {_DRAWN}")


def _of_moments(part: Part, *, channels: int) -> Part:
    def run(x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (moments,) = part.run(x)
        if moments.ndim < 2 or moments.shape[1] != 2 * channels:
            expected = f"{2 * channels} channels, a mean and a logvar for each of the decoder's"
            raise CannotImport(f"{part.path}: {_MOMENTS} is {moments.shape}, expected {expected}")
        return tuple(np.split(moments, 2, axis=1))

    names = f"{_MOMENTS}.mean", f"{_MOMENTS}.logvar"
    return Part(part.path, split(part.model, channels=channels, names=names), run)


def _before_the_draw(path: Path, model: ModelProto) -> Part:
    draw = draws.found(model, _DRAWN, path=path)
    if draw is None:
        sought = "mean + exp(0.5 * logvar) * RandomNormalLike to cut it before"
        raise CannotImport(f"{path}: gives {_DRAWN}, which is or may be drawn, and holds no {sought}")
    posterior = [draw.mean, draw.logvar]
    exposed = draws.exposed(model, draw, path=path)
    part = files.cut(exposed, posterior, path=path)
    for value in (*part.graph.input, *part.graph.output):
        files.require_floats(value, path=path)
    (picture,) = part.graph.input
    shape = [stated or tried for stated, tried in zip(files.axes(picture, path=path), _TRIED, strict=False)]
    x = np.random.default_rng(0).uniform(*_BLACK_WHITE, shape)
    draws.require(exposed, draw, takes=picture.name, x=x, path=path)
    original = Original(path, takes=picture.name, gives=posterior, content=exposed.SerializeToString())
    return Part(path, part, original.run)


def _pin_channels(model: ModelProto, channels: int | None) -> None:
    """State the channels of a graph's input, which older optimum left free."""
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if channels is not None and len(axes) == 4 and not axes[1].HasField("dim_value"):
            axes[1].dim_value = channels


def _config(path: Path) -> Config:
    try:
        return Config.model_validate_json(path.read_bytes().decode(errors="replace"))
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise CannotImport(f"{path}: {error.strerror or error}, expected the config of a VAE of diffusers") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join([str(path), *map(str, first["loc"])])
        raise CannotImport(f"{place}: got {first['input']!r:.200}, {first['msg']}") from error
