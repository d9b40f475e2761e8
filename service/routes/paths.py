"""The verbs that answer with pictures along lines of latents: /interpolate and /traverse."""

from math import prod
from time import perf_counter
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service import addresses, answers, images, intake, latents, payload, prior, trust
from service.batcher import Done
from service.bodies import Named, picture_bytes
from service.errors import expectation, invalid, shown
from service.forms import PATH_FORMS
from service.intake import Call, Verb
from service.openapi import VerbRoute, describe
from service.schemas import (
    InterpolateBody,
    InterpolateOptions,
    PathOptions,
    PicturesAnswer,
    Point,
    TraverseBody,
    TraverseOptions,
)

router = APIRouter(tags=["paths"], route_class=VerbRoute)

INTERPOLATE = Verb(InterpolateOptions, frozenset({"images", "z", "points"}), PATH_FORMS)
TRAVERSE = Verb(TraverseOptions, frozenset({"images", "z"}), PATH_FORMS)

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Shape = tuple[int, int, int]

# Lines of a traversal where no dimensions are asked for.
_LINES = 8


@router.head("/interpolate", include_in_schema=False)
@router.get("/interpolate", operation_id="get_interpolate", **describe(INTERPOLATE, answer=PicturesAnswer))
@router.post("/interpolate", **describe(INTERPOLATE, body=InterpolateBody, answer=PicturesAnswer))
async def interpolate(request: Request) -> Response:
    """A path through two or more points (seeds, images or latents), decoded: one picture a step."""
    call = trust.of_interpolation(await intake.read(request, INTERPOLATE))
    options = call.options
    points = await _points(call)
    image = await _images(call, points)
    shape = _picture_shape(call, points, image)
    rows = latents.path_rows(len(points), steps=options.steps, loop=options.loop)
    cost = call.engine_rows(rows + len(image), shape)
    call.check_rows(cost)
    columns = answers.arrange(call, rows, shape=shape, line=rows)
    points = await _drawn(call, points, shape)
    if held := addresses.not_modified(call, seeded=True):
        return held
    decoded_at = perf_counter()
    with call.admit(cost):
        encoded = [await call.run(call.model.encoder, image)] if len(image) else []
        ends = _latents(points, encoded)
        path = await call.spend(
            latents.path_cost_us(rows * ends[0].size),
            latents.path,
            ends,
            steps=options.steps,
            method=options.method,
            loop=options.loop,
        )
        done = await call.run(call.model.decoder, path)
    return await answers.pictures(
        call,
        image=done.outputs[0],
        z=path,
        runs=(*encoded, done),
        decoded_at=decoded_at,
        seeded=True,
        columns=columns,
    )


@router.head("/traverse", include_in_schema=False)
@router.get("/traverse", operation_id="get_traverse", **describe(TRAVERSE, answer=PicturesAnswer))
@router.post("/traverse", **describe(TRAVERSE, body=TraverseBody, answer=PicturesAnswer))
async def traverse(request: Request) -> Response:
    """What each dimension of a latent does: a line of pictures for each, in which it leads from -span to span while the
    others stay as they are in the start (a seed, an image or a latent).
    """
    call = await intake.read(request, TRAVERSE)
    options = call.options
    start = await _start(call)
    image = await _images(call, start)
    shape = _picture_shape(call, start, image)
    dims = _dims(call, call.model.manifest.latent_shape_of(*shape[:2]))
    rows = len(dims) * options.steps
    cost = call.engine_rows(rows + len(image), shape)
    call.check_rows(cost)
    columns = answers.arrange(call, rows, shape=shape, line=options.steps)
    start = await _drawn(call, start, shape)
    # Dimensions that were chosen are part of what the address's validator stands for.
    call = call._replace(options=options.model_copy(update={"dims": dims}))
    if held := addresses.not_modified(call, seeded=True):
        return held
    decoded_at = perf_counter()
    with call.admit(cost):
        encoded = [await call.run(call.model.encoder, image)] if len(image) else []
        (origin,) = _latents(start, encoded)
        path = await call.spend(
            latents.path_cost_us(rows * origin.size),
            latents.traverse,
            origin,
            dims=dims,
            span=options.span,
            steps=options.steps,
        )
        done = await call.run(call.model.decoder, path)
    response = await answers.pictures(
        call,
        image=done.outputs[0],
        z=path,
        runs=(*encoded, done),
        decoded_at=decoded_at,
        seeded=True,
        columns=columns,
    )
    if options.dims is None:
        response.headers["x-dims"] = ",".join(map(str, dims))
    return response


async def _points(call: Call[InterpolateOptions]) -> list[Named]:
    """The points of the path, each as a dict with one of `image` (a file or a row of pixels), `z` and `seed`."""
    sources: dict[str, list[Named]] = {}
    if call.options.seeds is not None:
        call.check_rows(len(call.options.seeds))
        sources["seeds"] = [Named(f"seeds[{i}]", {"seed": seed}) for i, seed in enumerate(call.options.seeds)]
    sources |= await _rows(call)
    sent = (call.body.members or {}).get("points")
    if sent is not None:
        sources["points"] = await call.spend(payload.nested_cost_us(call.body), _mixed_points, call, sent)
    if len(sources) != 1:
        raise invalid(
            "points",
            got=" and ".join(sources) or "none",
            expected="one of seeds, images, z and points, as in seeds=3,14",
        )
    (points,) = sources.values()
    if len(points) < 2:
        raise invalid("points", got=f"{len(points)} point", expected="two or more")
    return points


async def _start(call: Call[TraverseOptions]) -> list[Named]:
    """The one point that is traversed, as `_points` gives them."""
    sources = {} if call.options.seed is None else {"seed": [Named("seed", {"seed": call.options.seed})]}
    sources |= await _rows(call)
    if len(sources) != 1:
        got = " and ".join(sources) or "none"
        raise invalid("start", got=got, expected="one of an image, z and seed, as in seed=3")
    ((name, start),) = sources.items()
    if len(start) != 1:
        raise invalid(name, got=f"{len(start)} rows", expected="one, which is traversed")
    return start


async def _rows(call: Call[PathOptions]) -> dict[str, list[Named]]:
    """The rows of `images` and of `z` that the body carries, as points."""
    sources: dict[str, list[Named]] = {}
    if call.body.pictures:
        sources["images"] = [Named(file.where, {"image": file.value}) for file in call.body.pictures]
    tensor = (call.body.members or {}).get("images")
    if tensor is not None:
        image = payload.from_tensor(call, tensor)
        call.check_rows(len(image))  # each of which, if small, may cost the engine less than a row
        sources["images"] = [Named(f"images[{i}]", {"image": row}) for i, row in enumerate(image)]
    if (z := await payload.latents_of(call)) is not None:
        sources["z"] = [Named(f"z[{i}]", {"z": row}) for i, row in enumerate(z)]
    return sources


def _mixed_points(call: Call[InterpolateOptions], sent: Any) -> list[Named]:
    if not isinstance(sent, list):
        raise invalid("body.points", got=type(sent).__name__, expected="a list of points")
    call.check_rows(len(sent))
    points = []
    for index, item in enumerate(sent):
        where = f"body.points[{index}]"
        try:
            given = Point.model_validate(item).model_dump(exclude_none=True)
        except ValidationError as error:
            first, *_ = error.errors(include_url=False)
            at, told = ".".join([where, *map(str, first["loc"])])[:200], expectation(first["msg"])
            raise invalid(at, got=shown(first["input"], most=80), expected=told) from error
        if len(given) != 1:
            raise invalid(where, got=", ".join(given) or "nothing", expected="exactly one of image, z and seed")
        if "image" in given:
            given["image"] = picture_bytes(Named(f"{where}.image", given["image"]))
        if "z" in given:
            rows = payload.as_latents(call, given["z"], where=f"{where}.z")
            if len(rows) != 1:
                raise invalid(f"{where}.z", got=f"{len(rows)} latents", expected="one")
            given["z"] = rows[0]
        points.append(Named(where, given))
    return points


async def _images(call: Call[PathOptions], points: list[Named]) -> Uint8:
    """The pixels of those points that are images, all of one size.

    Shapes:  -> (number of images, h, w, c)
    """
    found = [Named(point.where, point.value["image"]) for point in points if "image" in point.value]
    call.check_rows(len(found))
    if not found:
        return np.empty((0, *call.model.manifest.image.default_shape), np.uint8)
    if isinstance(found[0].value, np.ndarray):
        return np.stack([point.value for point in found])
    return await payload.from_pictures(call, found)


def _picture_shape(call: Call[PathOptions], points: list[Named], image: Uint8) -> Shape:
    """The shape of each picture of the path: that of its points, or as asked where all of them are seeds.

    Raises:  Invalid if two points, or the points and the options, are of different sizes
    """
    options = call.options
    asked = call.picture_shape(options.height, options.width)
    given = [point for point in points if "seed" not in point.value]
    if not given:
        return asked
    shapes = [
        image.shape[1:] if "image" in point.value else payload.size_of_latents(call, point.value["z"][None])
        for point in given
    ]
    for point, shape in zip(given, shapes, strict=True):
        if shape != shapes[0]:
            found = images.size_in_words(shape)
            raise invalid(point.where, got=found, expected=f"{images.size_in_words(shapes[0])} as {given[0].where}")
    for name, side, found in zip(("height", "width"), (options.height, options.width), shapes[0], strict=False):
        if side not in (None, found):
            raise invalid(name, got=side, expected=f"{found}, as {given[0].where} has it")
    return shapes[0]


async def _drawn(call: Call[PathOptions], points: list[Named], shape: Shape) -> list[Named]:
    """The points, seeds being replaced by their first latents.

    Raises:  ModelCannot if there are seeds and the model has no prior for them
    """
    seeds = {point.value["seed"] for point in points if "seed" in point.value}
    if not seeds:
        return points
    manifest = call.model.manifest
    density = prior.choose(call.model.prior, manifest, asked=None, latent_shape=manifest.latent_shape_of(*shape[:2]))

    def first_latents() -> dict[int, Float32]:
        return {seed: density.sample(seed, n=1)[0] for seed in seeds}

    drawn = await call.spend(len(seeds) * density.cost_us(1), first_latents)
    return [
        Named(point.where, {"z": drawn[point.value["seed"]]}) if "seed" in point.value else point for point in points
    ]


def _latents(points: list[Named], encoded: list[Done]) -> Float32:
    """The latent of each point: its z, or the mu of its image.

    Shapes:  -> (len(points), *latent_shape)
    """
    mu = iter(encoded[0].outputs[0]) if encoded else iter(())
    return np.stack([point.value["z"] if "z" in point.value else next(mu) for point in points])


def _dims(call: Call[TraverseOptions], latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions to traverse, as indices into the flattened latent: as asked, else those that carry the most nats
    on average over test pictures, and the first ones where the manifest does not say.

    Raises:  Invalid if one is not of this latent
    """
    latent_dim = prod(latent_shape)
    if call.options.dims is not None:
        call.check_rows(len(call.options.dims))
        for dim in call.options.dims:
            if dim >= latent_dim:
                raise invalid("dims", got=dim, expected=f"0 to {latent_dim - 1}, the dimensions of a latent")
        return call.options.dims
    diagnostics = call.model.manifest.diagnostics
    nats = diagnostics.kl_per_dimension if diagnostics else None
    if nats is None or len(nats) != latent_dim:
        return tuple(range(min(_LINES, latent_dim)))
    return tuple(sorted(range(latent_dim), key=lambda dim: -nats[dim])[:_LINES])
