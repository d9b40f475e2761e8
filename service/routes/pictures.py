"""The verbs that answer with a picture for each row: /sample, /decode and /reconstruct."""

from time import perf_counter

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import addresses, answers, intake, payload, prior, seeds, trust
from service.errors import invalid
from service.forms import STILL_FORMS
from service.intake import Verb
from service.openapi import VerbRoute, describe
from service.schemas import (
    DecodeBody,
    DecodeOptions,
    PicturesAnswer,
    ReconstructBody,
    ReconstructOptions,
    SampleOptions,
)

router = APIRouter(tags=["pictures"], route_class=VerbRoute)

SAMPLE = Verb(SampleOptions, frozenset(), STILL_FORMS)
DECODE = Verb(DecodeOptions, frozenset({"z"}), STILL_FORMS)
RECONSTRUCT = Verb(ReconstructOptions, frozenset({"images"}), STILL_FORMS)


@router.head("/sample", include_in_schema=False)
@router.get("/sample", operation_id="get_sample", **describe(SAMPLE, answer=PicturesAnswer))
@router.post("/sample", **describe(SAMPLE, body=SampleOptions, answer=PicturesAnswer))
async def sample(request: Request) -> Response:
    """Pictures from the prior. Picture i of a seed is the same wherever and whenever it is asked for."""
    call = await intake.read(request, SAMPLE)
    options = call.options
    manifest = call.model.manifest
    shape = call.picture_shape(options.height, options.width)
    latent_shape = manifest.latent_shape_of(*shape[:2])
    density = prior.choose(call.model.prior, manifest, asked=options.prior, latent_shape=latent_shape)
    call = trust.of_samples(call, density)
    engine_rows = call.model.engine_rows(options.n, shape)
    call.check_rows(engine_rows)
    columns = answers.arrange(call, options.n, shape=shape)
    seed = seeds.choose(options.seed)
    if not seed.is_drawn and (held := addresses.not_modified(call)):
        return held
    cost_us = density.cost_us(options.n)
    with call.admit(engine_rows):
        z = await call.spend(cost_us, density.sample, seed.value, n=options.n, temperature=options.temperature)
        decoded_at = perf_counter()
        done = await call.run(call.model.decoder, z)
    return await answers.pictures(
        call, image=done.outputs[0], z=z, runs=(done,), decoded_at=decoded_at, columns=columns, seed=seed
    )


@router.post("/decode", **describe(DECODE, body=DecodeBody, answer=PicturesAnswer))
async def decode(request: Request) -> Response:
    """The picture of each latent: the mean of p(x given z). A single vector counts as one row."""
    call = await intake.read(request, DECODE)
    z = await payload.latents_of(call)
    if z is None:
        raise invalid("body", got="no z", expected="at least one latent")
    shape = call.model.manifest.image_shape_of(z.shape[1:])
    engine_rows = call.model.engine_rows(len(z), shape)
    call.check_rows(engine_rows)
    columns = answers.arrange(call, len(z), shape=shape)
    decoded_at = perf_counter()
    with call.admit(engine_rows):
        done = await call.run(call.model.decoder, z)
    return await answers.pictures(
        call, image=done.outputs[0], z=z, runs=(done,), decoded_at=decoded_at, columns=columns
    )


@router.post("/reconstruct", **describe(RECONSTRUCT, body=ReconstructBody, answer=PicturesAnswer))
async def reconstruct(request: Request) -> Response:
    """Each picture as the model sees it: encoded, and its mu decoded."""
    call = await intake.read(request, RECONSTRUCT)
    image = await payload.some_images_of(call)
    n, height, width, channels = image.shape
    engine_rows = call.model.engine_rows(2 * n, image.shape[1:])
    call.check_rows(engine_rows)
    compare = call.options.compare
    columns = answers.arrange(call, n, shape=(2 * height if compare else height, width, channels))
    decoded_at = perf_counter()
    with call.admit(engine_rows):
        encoded = await call.run(call.model.encoder, image)
        mu = encoded.outputs[0]
        decoded = await call.run(call.model.decoder, mu)
    return await answers.pictures(
        call,
        image=decoded.outputs[0],
        z=mu,
        runs=(encoded, decoded),
        decoded_at=decoded_at,
        columns=columns,
        inputs=image if compare else None,
    )
