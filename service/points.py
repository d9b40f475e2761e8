"""The points that a path of latents leads through: seeds, pictures and latents, as a request names them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from service import images, payload, prior, schemas
from service.bodies import Placed, picture_bytes
from service.call import Call
from service.errors import invalid
from service.prior import Prior
from service.schemas import InterpolateOptions, PathOptions, TraverseOptions
from service.wording import expectation, shown_as_json, type_in_words

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Shape = tuple[int, int, int]

# What a point of JSON may be.
_KINDS = tuple(schemas.Point.model_fields)


class Seed(NamedTuple):
    """A point that is the first latent of a seed."""

    where: str
    seed: int


class Latent(NamedTuple):
    """A point that is there as it is.

    Shapes:  z (*latent_shape)
    """

    where: str
    z: Float32


class Picture(NamedTuple):
    """A point that is the mu of a picture, a file that nobody has opened."""

    where: str
    content: bytes


class Pixels(NamedTuple):
    """A point that is the mu of a picture.

    Shapes:  image (h, w, c)
    """

    where: str
    image: Uint8


AnyPoint = Seed | Latent | Picture | Pixels


@dataclass(frozen=True)
class Points:
    """Points of one size, and what is known of them before a graph has run: the pixels of those that are pictures, in
    their order, and the shape of each picture of the path.

    Shapes:  image (number of pictures, h, w, c)
    """

    each: Sequence[AnyPoint]
    image: Uint8
    shape: Shape

    @property
    def seeds(self) -> set[int]:
        """The seeds among them."""
        return {point.seed for point in self.each if isinstance(point, Seed)}

    def latents(self, *, drawn: Mapping[int, Float32], mu: Iterable[Float32]) -> Float32:
        """The latent of each point, by the first one of each seed and the mu of each picture.

        Shapes:  drawn, mu (*latent_shape) each -> (len(each), *latent_shape)
        """
        of_pictures = iter(mu)
        found = []
        for point in self.each:
            match point:
                case Seed(seed=seed):
                    found.append(drawn[seed])
                case Latent(z=z):
                    found.append(z)
                case Picture() | Pixels():
                    found.append(next(of_pictures))
        return np.stack(found)


async def of_interpolation(call: Call[InterpolateOptions]) -> Points:
    """The two points or more of a path, of the one source that the request names.

    Raises:  Invalid, TooLarge, BadBody
    """
    sources: dict[str, list[AnyPoint]] = {}
    if call.options.seeds is not None:
        call.check_rows(len(call.options.seeds))
        sources["seeds"] = [Seed(f"seeds[{index}]", seed) for index, seed in enumerate(call.options.seeds)]
    sources |= await _rows(call)
    sent = call.body.members.get("points")
    if sent is not None:
        sources["points"] = await call.spend(payload.nested_cost_us(call.body), _mixed, call, sent)
    if len(sources) != 1:
        raise invalid(
            "points",
            got=" and ".join(sources) or "none",
            expected="one of seeds, images, z and points, as in seeds=3,14",
        )
    (points,) = sources.values()
    if len(points) < 2:
        raise invalid("points", got=f"{len(points)} point", expected="two or more")
    return await _read(call, points)


async def of_traversal(call: Call[TraverseOptions]) -> Points:
    """The one point that is traversed.

    Raises:  Invalid, TooLarge, BadBody
    """
    sources: dict[str, list[AnyPoint]] = {}
    if call.options.seed is not None:
        sources["seed"] = [Seed("seed", call.options.seed)]
    sources |= await _rows(call)
    if len(sources) != 1:
        got = " and ".join(sources) or "none"
        raise invalid("start", got=got, expected="one of an image, z and seed, as in seed=3")
    ((name, start),) = sources.items()
    if len(start) != 1:
        raise invalid(name, got=f"{len(start)} rows", expected="one, which is traversed")
    return await _read(call, start)


def prior_of_seeds(call: Call[PathOptions], points: Points) -> Prior | None:
    """What the seeds among the points are drawn from; None where there are none.

    Raises:  ModelCannot if there are seeds and the model has no prior for them
    """
    if not points.seeds:
        return None
    manifest = call.model.manifest
    latent_shape = manifest.latent_shape_of(*points.shape[:2])
    return prior.choose(call.model.prior, manifest, asked=None, latent_shape=latent_shape)


async def drawn(call: Call[PathOptions], points: Points, density: Prior | None) -> dict[int, Float32]:
    """The first latent of each seed among the points.

    Shapes:  -> (*latent_shape) each
    """
    if density is None:
        return {}

    def first_latents() -> dict[int, Float32]:
        return {seed: density.sample(seed, n=1)[0] for seed in points.seeds}

    return await call.spend(len(points.seeds) * density.cost_us(1), first_latents)


async def _rows(call: Call[PathOptions]) -> dict[str, list[AnyPoint]]:
    """The rows of `images` and of `z` that the body carries, as points."""
    sources: dict[str, list[AnyPoint]] = {}
    if call.body.pictures:
        sources["images"] = [Picture(*file) for file in call.body.pictures]
    tensor = call.body.members.get("images")
    if tensor is not None:
        image = payload.from_tensor(call, tensor)
        call.check_rows(len(image))  # each of which, if small, may cost the engine less than a row
        sources["images"] = [Pixels(f"{call.body.place}.images[{index}]", row) for index, row in enumerate(image)]
    if (z := await payload.latents_of(call)) is not None:
        sources["z"] = [Latent(f"{call.body.place}.z[{index}]", row) for index, row in enumerate(z)]
    return sources


def _mixed(call: Call[InterpolateOptions], sent: Any) -> list[AnyPoint]:
    """Points of JSON, each of which says what it is."""
    if not isinstance(sent, list):
        raise invalid("body.points", got=type_in_words(sent), expected="a list of points")
    call.check_rows(len(sent))
    return [_point(call, item, where=f"body.points[{index}]") for index, item in enumerate(sent)]


def _point(call: Call[InterpolateOptions], item: Any, *, where: str) -> AnyPoint:
    unknown = [name for name in islice(item, len(_KINDS) + 1) if name not in _KINDS] if isinstance(item, dict) else []
    if unknown:  # told before pydantic tells of each that there is
        name = unknown[0][:80]
        raise invalid(f"{where}.{name}", got=name, expected="one of image, z and seed")
    try:
        given = schemas.Point.model_validate(item)
    except ValidationError as error:
        first, *_ = error.errors(include_url=False)
        at, told = ".".join([where, *map(str, first["loc"])]), expectation(first["msg"], kind=first["type"])
        raise invalid(at, got=shown_as_json(first["input"], most=80), expected=told) from error
    named = [name for name in _KINDS if getattr(given, name) is not None]
    if len(named) != 1:
        raise invalid(where, got=", ".join(named) or "nothing", expected="exactly one of image, z and seed")
    if given.seed is not None:
        return Seed(where, given.seed)
    if given.image is not None:
        return Picture(where, picture_bytes(Placed(f"{where}.image", given.image)))
    rows = payload.as_latents(call, given.z, where=f"{where}.z")
    if len(rows) != 1:
        raise invalid(f"{where}.z", got=f"{len(rows)} latents", expected="one")
    return Latent(where, rows[0])


async def _read(call: Call[PathOptions], points: Sequence[AnyPoint]) -> Points:
    image = await _pixels(call, points)
    return Points(points, image, _picture_shape(call, points, image))


async def _pixels(call: Call[PathOptions], points: Sequence[AnyPoint]) -> Uint8:
    """The pixels of those points that are pictures, all of one size.

    Shapes:  -> (number of pictures, h, w, c)
    """
    files = [Placed(point.where, point.content) for point in points if isinstance(point, Picture)]
    rows = [point.image for point in points if isinstance(point, Pixels)]
    call.check_rows(len(files) + len(rows))
    if files:
        return await payload.from_pictures(call, files)
    return np.stack(rows) if rows else np.empty((0, *call.model.manifest.image.default_shape), np.uint8)


def _picture_shape(call: Call[PathOptions], points: Sequence[AnyPoint], image: Uint8) -> Shape:
    """The shape of each picture of the path: that of its points, or as asked where all of them are seeds.

    Raises:  Invalid if two points, or the points and the options, are of different sizes
    """
    options = call.options
    asked = call.picture_shape(options.height, options.width)
    of_latent = call.model.manifest.image_shape_of
    shapes = [
        (point.where, of_latent(point.z.shape) if isinstance(point, Latent) else image.shape[1:])
        for point in points
        if not isinstance(point, Seed)
    ]
    if not shapes:
        return asked
    first, expected = shapes[0]
    for where, shape in shapes:
        if shape != expected:
            found = images.size_in_words(shape)
            raise invalid(where, got=found, expected=f"{images.size_in_words(expected)} as {first}")
    for name, side, found in zip(("height", "width"), (options.height, options.width), expected, strict=False):
        if side not in (None, found):
            raise invalid(call.body.place_of(name), got=side, expected=f"{found}, as {first} has it")
    return expected
