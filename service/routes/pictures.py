"""The verbs that answer with pictures: /sample, /decode and /interpolate."""

from time import perf_counter
from typing import Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service import addresses, answers, intake, latents, payload
from service.batcher import Done
from service.bodies import Named, picture_bytes
from service.budget import spend
from service.errors import ModelCannot, invalid
from service.forms import PATH_FORMS, STILL_FORMS
from service.intake import Call, Verb
from service.openapi import VerbRoute, describe
from service.schemas import (
    DecodeBody,
    DecodeOptions,
    InterpolateBody,
    InterpolateOptions,
    PicturesAnswer,
    Point,
    SampleOptions,
)

router = APIRouter(tags=["pictures"], route_class=VerbRoute)

SAMPLE = Verb(SampleOptions, frozenset(), STILL_FORMS)
DECODE = Verb(DecodeOptions, frozenset({"z"}), STILL_FORMS)
INTERPOLATE = Verb(InterpolateOptions, frozenset({"images", "z", "points"}), PATH_FORMS)


@router.head("/sample", include_in_schema=False)
@router.get("/sample", operation_id="get_sample", **describe(SAMPLE, answer=PicturesAnswer))
@router.post("/sample", **describe(SAMPLE, body=SampleOptions, answer=PicturesAnswer))
async def sample(request: Request) -> Response:
    """Pictures from the prior. Picture i of a seed is the same wherever and whenever it is asked for."""
    call = await intake.read(request, SAMPLE)
    options = call.options
    if options.prior == "fitted":
        raise ModelCannot(f"prior=fitted: {call.model.label} carries no fitted prior")
    call.check_rows(options.n)
    columns = answers.arrange(call, options.n)
    if held := addresses.not_modified(call, seeded=options.seed is not None):
        return held
    seed = intake.chosen_seed(options.seed)
    shape = call.model.manifest.latent_shape
    z = await spend(
        latents.normals_cost_us(options.n * int(np.prod(shape))),
        latents.prior_sample,
        seed,
        n=options.n,
        latent_shape=shape,
        temperature=options.temperature,
    )
    decoded_at = perf_counter()
    with call.deployment.lane.admit(len(z)):
        done = await call.run(call.model.decoder, z)
    response = await answers.pictures(
        call,
        z=z,
        runs=(done,),
        decoded_at=decoded_at,
        seeded=options.seed is not None,
        columns=columns,
        seed=seed,
    )
    if options.seed is None:
        response.headers["x-seed"] = str(seed)
    return response


@router.post("/decode", **describe(DECODE, body=DecodeBody, answer=PicturesAnswer))
async def decode(request: Request) -> Response:
    """The picture of each latent: the mean of p(x given z). A single vector counts as one row."""
    call = await intake.read(request, DECODE)
    z = await payload.latents_of(call)
    if z is None:
        raise invalid("body", got="no z", expected="at least one latent")
    call.check_rows(len(z))
    columns = answers.arrange(call, len(z))
    decoded_at = perf_counter()
    with call.deployment.lane.admit(len(z)):
        done = await call.run(call.model.decoder, z)
    return await answers.pictures(call, z=z, runs=(done,), decoded_at=decoded_at, seeded=False, columns=columns)


@router.head("/interpolate", include_in_schema=False)
@router.get("/interpolate", operation_id="get_interpolate", **describe(INTERPOLATE, answer=PicturesAnswer))
@router.post("/interpolate", **describe(INTERPOLATE, body=InterpolateBody, answer=PicturesAnswer))
async def interpolate(request: Request) -> Response:
    """A path through two or more points (seeds, images or latents), decoded: one picture a step."""
    call = await intake.read(request, INTERPOLATE)
    options = call.options
    points = await _points(call)
    rows = latents.path_rows(len(points), steps=options.steps, loop=options.loop)
    encoded = sum(point.value.get("image") is not None for point in points)
    call.check_rows(rows + encoded)
    columns = answers.arrange(call, rows, path=True)
    if held := addresses.not_modified(call, seeded=True):
        return held
    image = await _point_images(call, points)
    decoded_at = perf_counter()
    with call.deployment.lane.admit(rows + encoded):
        runs = [await call.run(call.model.encoder, image)] if image is not None else []
        ends = _ends(call, points, runs)
        path = await spend(
            latents.path_cost_us(rows * ends[0].size),
            latents.path,
            ends,
            steps=options.steps,
            method=options.method,
            loop=options.loop,
        )
        runs.append(await call.run(call.model.decoder, path))
    return await answers.pictures(call, z=path, runs=runs, decoded_at=decoded_at, seeded=True, columns=columns)


async def _points(call: Call[InterpolateOptions]) -> list[Named]:
    """The points of the path, each as a dict with one of `image` (a file or a row of pixels), `z` and `seed`."""
    members = call.body.members or {}
    sources: dict[str, list[Named]] = {}
    if call.options.seeds is not None:
        sources["seeds"] = [Named(f"seeds[{i}]", {"seed": seed}) for i, seed in enumerate(call.options.seeds)]
    if call.body.pictures:
        sources["images"] = [Named(file.where, {"image": file.value}) for file in call.body.pictures]
    if members.get("images") is not None:
        tensor = payload.from_tensor(call, members["images"])
        sources["images"] = [Named(f"images[{i}]", {"image": row}) for i, row in enumerate(tensor)]
    if (z := await payload.latents_of(call)) is not None:
        sources["z"] = [Named(f"z[{i}]", {"z": row}) for i, row in enumerate(z)]
    if members.get("points") is not None:
        sources["points"] = _mixed_points(call, members["points"])
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
            raise invalid(where, got=str(item)[:80], expected="image, z or seed") from error
        if len(given) != 1:
            raise invalid(where, got=", ".join(given) or "nothing", expected="exactly one of image, z and seed")
        if "image" in given:
            given["image"] = picture_bytes(Named(f"{where}.image", given["image"]))
        if "z" in given:
            rows = payload.as_latents(given["z"], call.model.manifest.latent_shape, where=f"{where}.z")
            if len(rows) != 1:
                raise invalid(f"{where}.z", got=f"{len(rows)} latents", expected="one")
            given["z"] = rows[0]
        points.append(Named(where, given))
    return points


async def _point_images(call: Call[InterpolateOptions], points: list[Named]) -> NDArray[np.uint8] | None:
    """The pixels of those points that are images.

    Shapes:  -> (number of images, h, w, c)
    """
    found = [Named(point.where, point.value["image"]) for point in points if "image" in point.value]
    if not found:
        return None
    if isinstance(found[0].value, np.ndarray):
        return np.stack([point.value for point in found])
    return await payload.from_pictures(call, found)


def _ends(call: Call[InterpolateOptions], points: list[Named], runs: list[Done]) -> NDArray[np.float32]:
    """The latent of each point: its z, its seed's first latent, or the mu of its image.

    Shapes:  -> (p, *latent_shape)
    """
    shape = call.model.manifest.latent_shape
    mu = iter(runs[0].outputs[0]) if runs else iter(())
    ends: list[NDArray[np.float32]] = []
    for point in points:
        if "seed" in point.value:
            ends.append(latents.prior_sample(point.value["seed"], n=1, latent_shape=shape)[0])
        elif "z" in point.value:
            ends.append(point.value["z"])
        else:
            ends.append(next(mu))
    return np.stack(ends)
