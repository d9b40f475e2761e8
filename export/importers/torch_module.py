"""A person's own torch module as the source of a bundle: code that is run, weights that are only read."""

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from export.frozen import CannotImport, Described, Float32, Frozen, Source, Uint8
from export.graphs import freeze, source
from export.importers.weights import matched, read
from export.verify import finite
from model.pixels import to_image, to_x
from service import manifest
from service.manifest import ImageSpec

# Imported before a person's code is, so that a file of that name is never looked for.
_OURS = ("model", "export", "service")
_TRIED_ROWS = 3
_LARGEST_AXIS = 2**16
# Of one row alone and the same among others: sums in another order, but nothing else.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


class Model(Protocol):
    """What `build()` returns: a torch.nn.Module with these two attributes and two methods, in 32 bits on the CPU.

    Its evaluation mode is what is frozen. A row's answer depends on that row alone, and on no noise.
    """

    image_shape: tuple[int, int, int]
    """(h, w, c) of a picture; c is 1 or 3."""
    latent_shape: tuple[int, ...]
    """Shape of one z."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """Mean and natural log of the variance of q(z given x); or the code alone, which makes it an autoencoder.

        Shapes:  x (n, c, h, w) in [0, 1] -> mu, logvar (n, *latent_shape), or mu
        """
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x given z); what is outside [0, 1] is cut to it in the graph.

        Shapes:  z (n, *latent_shape) -> x_hat (n, c, h, w)
        """
        ...


class Encoder(nn.Module):
    """Pictures to the posterior, or to the code of an autoencoder.

    Shapes:  image (n, h, w, c) uint8 -> mu, logvar (n, *latent_shape), or mu alone
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """As the class says."""
        return self.model.encode(to_x(image))


class Decoder(nn.Module):
    """Latents to pictures.

    Shapes:  z (n, *latent_shape) -> image (n, h, w, c) uint8
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        return to_image(finite(self.model.decode(z)).clamp(0, 1))


def load(target: str, *, weights: Path | None) -> Frozen:
    """The module that a function of a person's own code builds, frozen. Runs that code.

    `target` is `package.module:build`, imported from wherever Python finds it and from the current directory.

    Raises:  CannotImport with one sentence
    """
    module = _built(target)
    with _own_code(target, doing="taking its state"):
        _require_initialised(module, target=target)
        if weights is not None:
            module.load_state_dict(matched(read(weights), module, path=weights))
        module.eval().requires_grad_(False)
    model = cast("Model", module)
    image, latent_shape = _image_spec(model, target=target), _latent_shape(model, target=target)
    has_posterior = _try(model, image=image, latent_shape=latent_shape, target=target)
    modules = Encoder(model).eval(), Decoder(model).eval(), None
    with _own_code(target, doing="exporting it"):
        graphs = freeze(*modules, image=image, latent_shape=latent_shape)
    return Frozen(
        graphs=graphs,
        source=_told(source(*modules), target=target),
        described=Described(
            family="vae" if has_posterior else "autoencoder",
            image=image,
            latent_shape=latent_shape,
            prior="standard" if has_posterior else "none",
            source=manifest.Source(kind="torch", version=version("torch"), network=type(module).__name__),
            scale_head="logvar" if has_posterior else None,
        ),
    )


def _built(target: str) -> nn.Module:
    """What the function that is named gives."""
    place, _, name = target.partition(":")
    if not all(part.isidentifier() for part in (*place.split("."), name)):
        raise CannotImport(f"{target}: names no function, expected package.module:build")
    if (package := place.partition(".")[0]) in _OURS:
        raise CannotImport(f"{target}: {package} is vaeserve's own package, expected one of yours; rename your file")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with _own_code(target, doing=f"importing {place}"):
        code = importlib.import_module(place)
        build = getattr(code, name, None)
    if not callable(build):
        found = f"no {name}" if build is None else f"{name}, which is {_kind(build)}"
        raise CannotImport(f"{target}: {place} has {found}, expected a function that returns a torch.nn.Module")
    with _own_code(target, doing=f"{name}()"):
        module = build()
    if not isinstance(module, nn.Module):
        raise CannotImport(f"{target}: {name}() gives {_kind(module)}, expected a torch.nn.Module")
    return module


def _require_initialised(module: nn.Module, *, target: str) -> None:
    """Nothing, if every parameter and buffer has numbers: one of a lazy layer has none before the first run."""
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(own):
            raise CannotImport(f"{target}: {name} has no shape yet, expected build() to run what is lazy once")


def _told(source: Source, *, target: str) -> Source:
    """A source of a person's own code, whose errors are told as those of its methods."""

    def encode(image: Uint8) -> tuple[Float32, Float32 | None]:
        with _own_code(target, doing="encode(x)"):
            return source.encode(image)

    def decode(z: Float32) -> Uint8:
        with _own_code(target, doing="decode(z)"):
            return source.decode(z)

    return Source(encode, decode)


def _image_spec(model: Model, *, target: str) -> ImageSpec:
    shape = _attribute(model, "image_shape", target=target)
    if not (_is_shape(shape) and len(shape) == 3 and shape[2] in (1, 3)):
        raise CannotImport(
            f"{target}: image_shape is {shape!r:.200}, expected (height, width, channels), 1 or 3 of these"
        )
    height, width, channels = shape
    return ImageSpec(height=height, width=width, channels=channels)


def _latent_shape(model: Model, *, target: str) -> tuple[int, ...]:
    shape = _attribute(model, "latent_shape", target=target)
    if not _is_shape(shape):
        raise CannotImport(
            f"{target}: latent_shape is {shape!r:.200}, expected the shape of one z, as (16,) or (4, 8, 8)"
        )
    return tuple(shape)


def _attribute(model: Model, name: str, *, target: str) -> Any:
    """An attribute, None where there is none; a property is a person's own code too."""
    with _own_code(target, doing=f"reading {name}"):
        return getattr(model, name, None)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(axis, int) and 1 <= axis <= _LARGEST_AXIS for axis in value)
    )


@torch.inference_mode()
def _try(model: Model, *, image: ImageSpec, latent_shape: tuple[int, ...], target: str) -> bool:
    """Whether the model has a posterior, found by running it on a few pictures of noise.

    Raises:  CannotImport if it fails on them, or gives something else than the protocol says
    """
    for method in ("encode", "decode"):
        if not callable(_attribute(model, method, target=target)):
            raise CannotImport(f"{target}: {_kind(model)} has no method {method}, expected encode(x) and decode(z)")
    noise = torch.randint(256, (_TRIED_ROWS, *image.default_shape), generator=torch.Generator().manual_seed(0))
    x = to_x(noise)
    with _own_code(target, doing="encode(x)"):
        posterior, alone = model.encode(x), model.encode(x[:1])
    has_posterior = isinstance(posterior, tuple) and len(posterior) == 2
    if not has_posterior and not isinstance(posterior, Tensor):
        raise CannotImport(f"{target}: encode(x) gives {_kind(posterior)}, expected a tuple of mu and logvar, or mu")
    latent = (_TRIED_ROWS, *latent_shape)
    if has_posterior:
        mu, logvar = posterior
        _require(mu, alone[0], shape=latent, what=f"{target}: mu of encode(x)")
        _require(logvar, alone[1], shape=latent, what=f"{target}: logvar of encode(x)")
    else:
        mu = cast("Tensor", posterior)
        _require(mu, alone, shape=latent, what=f"{target}: encode(x)")
    with _own_code(target, doing="decode(z)"):
        x_hat, alone = model.decode(mu), model.decode(mu[:1])
    _require(x_hat, alone, shape=tuple(x.shape), what=f"{target}: decode(z)")
    return has_posterior


def _require(given: Any, alone: Any, *, shape: tuple[int, ...], what: str) -> None:
    """Nothing, if a method gave finite rows of this shape, the first of which it gives for that row alone too."""
    expected = f"float32 {shape}"
    if not isinstance(given, Tensor):
        raise CannotImport(f"{what} is {_kind(given)}, expected a tensor, {expected}")
    if given.dtype != torch.float32 or given.shape != shape or given.device.type != "cpu":
        found = f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)} on {given.device.type}"
        raise CannotImport(f"{what} is {found} for {_TRIED_ROWS} rows, expected {expected} on cpu")
    if not given.isfinite().all():
        raise CannotImport(f"{what} holds NaN or infinity, expected finite numbers")
    if not torch.allclose(given[:1], alone, rtol=_RELATIVE, atol=_ABSOLUTE):
        raise CannotImport(
            f"{what} differs for one picture alone and among others, expected no noise and nothing that rows share"
        )


@contextmanager
def _own_code(target: str, *, doing: str) -> Iterator[None]:
    """A person's own code: what it raises becomes one sentence, with the line of it that raised."""
    try:
        yield
    except CannotImport:  # a sentence already
        raise
    except (Exception, SystemExit) as error:
        raise CannotImport(
            f"{target}: {doing} raised {type(error).__name__}{_place(error)}: {_first_line(error)}"
        ) from error


def _place(error: BaseException) -> str:
    """The last line outside Python, torch and vaeserve that an error came through."""
    ours = [f"{Path(__file__).parents[2] / package}{os.sep}" for package in _OURS]
    machinery = ("<frozen", importlib.__file__, str(Path(torch.__file__).parent), *ours)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(machinery)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__name__}"
