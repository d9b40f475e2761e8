"""The verbs that answer with pictures along lines of latents: /interpolate and /traverse."""

from collections.abc import Callable
from math import prod
from time import perf_counter

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service import addresses, answers, intake, latents, points, trust
from service.call import Call
from service.errors import invalid
from service.forms import PATH_FORMS
from service.intake import Verb
from service.openapi import VerbRoute, describe
from service.points import Points
from service.schemas import (
    InterpolateBody,
    InterpolateOptions,
    PathOptions,
    PicturesAnswer,
    TraverseBody,
    TraverseOptions,
)

router = APIRouter(tags=["paths"], route_class=VerbRoute)

INTERPOLATE = Verb(InterpolateOptions, frozenset({"images", "z", "points"}), PATH_FORMS)
TRAVERSE = Verb(TraverseOptions, frozenset({"images", "z"}), PATH_FORMS)

Float32 = NDArray[np.float32]

# Lines of a traversal where no dimensions are asked for.
_LINES = 8


@router.head("/interpolate", include_in_schema=False)
@router.get("/interpolate", operation_id="get_interpolate", **describe(INTERPOLATE, answer=PicturesAnswer))
@router.post("/interpolate", **describe(INTERPOLATE, body=InterpolateBody, answer=PicturesAnswer))
async def interpolate(request: Request) -> Response:
    """A path through two or more points (seeds, images or latents), decoded: one picture a step."""
    call = trust.of_interpolation(await intake.read(request, INTERPOLATE))
    options = call.options
    anchors = await points.of_interpolation(call)
    rows = latents.path_rows(len(anchors.each), steps=options.steps, loop=options.loop)

    def path(z: Float32) -> Float32:
        return latents.path(z, steps=options.steps, method=options.method, loop=options.loop)

    return await _decoded(call, anchors, path, rows=rows, line=rows)


@router.head("/traverse", include_in_schema=False)
@router.get("/traverse", operation_id="get_traverse", **describe(TRAVERSE, answer=PicturesAnswer))
@router.post("/traverse", **describe(TRAVERSE, body=TraverseBody, answer=PicturesAnswer))
async def traverse(request: Request) -> Response:
    """What each dimension of a latent does: a line of pictures for each, in which it leads from -span to span while the
    others stay as they are in the start (a seed, an image or a latent).
    """
    call = await intake.read(request, TRAVERSE)
    options = call.options
    start = await points.of_traversal(call)
    dims = _dims(call, call.model.manifest.latent_shape_of(*start.shape[:2]))
    # Dimensions that were chosen are part of what the address's validator stands for, and not of the digest.
    chosen = call._replace(options=options.model_copy(update={"dims": dims}), is_of_digest=options.dims is not None)

    def path(z: Float32) -> Float32:
        return latents.traverse(z[0], dims=dims, span=options.span, steps=options.steps)

    response = await _decoded(chosen, start, path, rows=len(dims) * options.steps, line=options.steps)
    if options.dims is None:
        response.headers["x-dims"] = ",".join(map(str, dims))
    return response


async def _decoded(
    call: Call[PathOptions], anchors: Points, path: Callable[[Float32], Float32], *, rows: int, line: int
) -> Response:
    """The pictures of a path of so many rows, which `path` makes of the latents of the points that it leads through;
    `line` of them stand in a line where no other number is asked for.
    """
    engine_rows = call.model.engine_rows(rows + len(anchors.image), anchors.shape)
    call.check_rows(engine_rows)
    columns = answers.arrange(call, rows, shape=anchors.shape, line=line)
    density = points.prior_of_seeds(call, anchors)
    if held := addresses.not_modified(call):
        return held
    with call.admit(engine_rows):
        drawn = await points.drawn(call, anchors, density)
        decoded_at = perf_counter()
        encoded = [await call.run(call.model.encoder, anchors.image)] if len(anchors.image) else []
        given = anchors.latents(drawn=drawn, mu=encoded[0].outputs[0] if encoded else ())
        z = await call.spend(latents.path_cost_us(rows * given[0].size), _within_float32, path, given)
        done = await call.run(call.model.decoder, z)
    return await answers.pictures(
        call, image=done.outputs[0], z=z, runs=(*encoded, done), decoded_at=decoded_at, columns=columns
    )


def _within_float32(path: Callable[[Float32], Float32], given: Float32) -> Float32:
    """The rows of a path.

    Raises:  Invalid if it leads so far out that they are not finite, as an arc between huge points may
    """
    z = path(given)
    if not np.isfinite(z).all():
        expected = "points whose path stays within it"
        raise invalid("points", got="a path that leads beyond float32", expected=expected)
    return z


def _dims(call: Call[TraverseOptions], latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions to traverse, as indices into the flattened latent: as asked, else those that carry the most nats
    on average over test pictures, and the first ones where the manifest does not say.

    Raises:  Invalid if one is not of this latent
    """
    latent_dim = prod(latent_shape)
    if call.options.dims is not None:
        call.check_rows(len(call.options.dims))
        for index, dim in enumerate(call.options.dims):
            if dim >= latent_dim:
                place = f"{call.body.place_of('dims')}[{index}]"
                raise invalid(place, got=dim, expected=f"0 to {latent_dim - 1}, the dimensions of a latent")
        return call.options.dims
    diagnostics = call.model.manifest.diagnostics
    nats = diagnostics.kl_per_dimension if diagnostics else None
    if nats is None or len(nats) != latent_dim:
        return tuple(range(min(_LINES, latent_dim)))
    return tuple(sorted(range(latent_dim), key=lambda dim: -nats[dim])[:_LINES])
