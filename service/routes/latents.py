"""The verbs that answer with numbers: /encode and /score."""

from math import prod
from time import perf_counter

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service import answers, intake, latents, payload, seeds
from service.batcher import Done, Queue
from service.call import Call
from service.errors import ModelCannot, too_large
from service.forms import LATENT_FORMS
from service.intake import Verb
from service.latents import Purpose
from service.openapi import VerbRoute, describe
from service.schemas import EncodeAnswer, EncodeBody, EncodeOptions, Options, ScoreAnswer, ScoreBody, ScoreOptions

router = APIRouter(tags=["latents"], route_class=VerbRoute)

ENCODE = Verb(EncodeOptions, frozenset({"images"}), LATENT_FORMS)
SCORE = Verb(ScoreOptions, frozenset({"images"}), LATENT_FORMS)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# The scorer takes a picture once for each draw; the copies that exist at a time have about so many bytes.
_COPIES_BYTES = 2**25


@router.post("/encode", **describe(ENCODE, body=EncodeBody, answer=EncodeAnswer))
async def encode(request: Request) -> Response:
    """Posterior of each image: mu and logvar, one row each, in the order sent. An autoencoder has no logvar."""
    call = await intake.read(request, ENCODE)
    options = call.options
    _check_posterior(call, "draws", number=options.draws)
    image = await payload.some_images_of(call)
    call.check_rows(call.model.engine_rows(len(image) * max(1, options.draws), image.shape[1:]))
    _check_draws(call, image, options.draws)
    decoded_at = perf_counter()
    with call.admit(call.model.engine_rows(len(image), image.shape[1:])):
        done = await call.run(call.model.encoder, image)
    mu, logvar = _posterior(done)
    named = {"mu": mu, "logvar": logvar}
    if options.draws == 0 or logvar is None:
        return await answers.numbers(call, named, runs=(done,), decoded_at=decoded_at, dtype=options.dtype)
    seed = seeds.choose(options.seed)
    cost_us = latents.normals_cost_us(mu.size * options.draws)
    named["z"] = await call.spend(cost_us, latents.posterior_sample, mu, logvar, seed=seed.value, draws=options.draws)
    return await answers.numbers(call, named, runs=(done,), decoded_at=decoded_at, seed=seed, dtype=options.dtype)


@router.post("/score", **describe(SCORE, body=ScoreBody, answer=ScoreAnswer))
async def score(request: Request) -> Response:
    """How well the model explains each image, in nats: recon and kl at the posterior's mean, elbo = -(recon + kl), and
    with k draws also the importance-weighted bound of log p(x). An autoencoder has recon alone.
    """
    call = await intake.read(request, SCORE)
    options = call.options
    scorer = call.model.scorer
    if scorer is None:
        raise ModelCannot(f"score: {call.model.label} carries no scorer")
    _check_posterior(call, "k", number=options.k)
    image = await payload.some_images_of(call)
    # Each picture passes the encoder once, and the scorer at mu and at each draw.
    engine_rows = call.model.engine_rows(len(image) * (2 + options.k), image.shape[1:])
    call.check_rows(engine_rows)
    seed = seeds.choose(options.seed) if options.k else None
    decoded_at = perf_counter()
    with call.admit(engine_rows):
        encoded = await call.run(call.model.encoder, image)
        mu, logvar = _posterior(encoded)
        runs, at_mu = await _log_likelihood(call, scorer, image, z=mu[:, None])
        named = await call.spend(latents.scores_cost_us(mu.size), _scores, at_mu[:, 0], mu, logvar)
        if seed is not None and logvar is not None:
            drawn, named["log_likelihood"] = await _bound(call, scorer, image, mu=mu, logvar=logvar, seed=seed.value)
            runs += drawn
    return await answers.numbers(call, named, runs=[encoded, *runs], decoded_at=decoded_at, seed=seed)


def _check_draws(call: Call[EncodeOptions], image: NDArray[np.uint8], draws: int) -> None:
    """Refuse draws that would be more numbers than an answer may have pixels.

    Raises:  TooLarge
    """
    if draws == 0:
        return
    height, width = image.shape[1:3]
    numbers = len(image) * draws * prod(call.model.manifest.latent_shape_of(height, width))
    limit = call.deployment.settings.max_answer_pixels
    if numbers > limit:
        raise too_large("answer", got=numbers, limit=limit, unit="numbers")


def _check_posterior(call: Call[Options], option: str, *, number: int) -> None:
    """Refuse draws from the posterior that an autoencoder has not.

    Raises:  ModelCannot
    """
    if number and call.model.manifest.family == "autoencoder":
        lacking = f"{call.model.label} is an autoencoder, it has no posterior to draw from"
        raise ModelCannot(f"{option}={number}: {lacking}")


def _posterior(done: Done) -> tuple[Float32, Float32 | None]:
    """mu and logvar of an encoder's run; an autoencoder's has mu alone."""
    mu, *logvar = done.outputs
    return mu, logvar[0] if logvar else None


def _scores(at_mu: Float32, mu: Float32, logvar: Float32 | None) -> dict[str, Float32 | Float64 | None]:
    """recon, kl and elbo, from the log-likelihood at mu.

    Shapes:  at_mu (n,); mu, logvar (n, *latent_shape) -> (n,) each
    """
    recon = -at_mu
    if logvar is None:
        return {"recon": recon, "kl": None, "elbo": None}
    kl = latents.kl(mu, logvar)
    return {"recon": recon, "kl": kl, "elbo": -(recon + kl)}


async def _bound(
    call: Call[ScoreOptions], scorer: Queue, image: NDArray[np.uint8], *, mu: Float32, logvar: Float32, seed: int
) -> tuple[list[Done], Float64]:
    """The importance-weighted bound of log p(x) of k draws for each picture, and the runs that found it.

    Shapes:  image (n, h, w, c); mu, logvar (n, *latent_shape) -> (n,)
    """
    k, cost_us = call.options.k, latents.normals_cost_us(mu.size * call.options.k)
    eps = await call.spend(
        cost_us, latents.normals, seed, Purpose.SCORE, rows=len(mu), latent_shape=mu.shape[1:], draws=k
    )
    z = await call.spend(cost_us, latents.reparameterise, mu, logvar, eps)
    runs, log_likelihood = await _log_likelihood(call, scorer, image, z=z)
    cost_us = latents.scores_cost_us(z.size)
    bound = await call.spend(cost_us, latents.importance_weighted_bound, log_likelihood, z=z, eps=eps, logvar=logvar)
    return runs, bound


async def _log_likelihood(
    call: Call[Options], scorer: Queue, image: NDArray[np.uint8], *, z: Float32
) -> tuple[list[Done], Float32]:
    """log p(x given z) of each picture at each of its latents, and the runs that found it.

    Shapes:  image (n, h, w, c), z (n, k, *latent_shape) -> (n, k)
    """
    n, k = z.shape[:2]
    latent, owner = z.reshape(n * k, *z.shape[2:]), np.arange(n).repeat(k)
    slab = max(1, _COPIES_BYTES // image[0].nbytes)
    runs = []
    for start in range(0, n * k, slab):
        part = slice(start, start + slab)
        copies = await call.spend(0.0001 * image[0].nbytes * len(owner[part]), image.take, owner[part], axis=0)
        runs.append(await call.run(scorer, copies, latent[part]))
    return runs, np.concatenate([done.outputs[0] for done in runs]).reshape(n, k)
