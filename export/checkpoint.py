"""Our own checkpoint as the source of a bundle."""

import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from export.bundle import CannotWrite, bundle_files, manifest_of, write
from export.graphs import OPSET, decoder_module, encoder_module, freeze
from export.verify import Float32, Source, Uint8, measure, probe_of, require
from model import checkpoint
from model.checkpoint import Checkpoint
from model.likelihoods import Gaussian
from model.vae import VAE
from service.bundle import DECODER, ENCODER, Manifest, Tolerance
from service.engine import Graph, decoder_signature, encoder_signature

TOLERANCE = Tolerance(mu=1e-4, logvar=1e-4, image=1)
# Bernoulli.settle: white where x >= 1/2, which is from this grey level up.
_BINARISED_AT = 128
_PROBE_ROWS = 4


def make(run: Path, folder: Path, *, name: str, licence: str | None) -> Manifest:
    """A bundle of the checkpoint in `run`, measured against it with the engine that will serve.

    Raises:  BadCheckpoint if the run cannot be read, NotEqual if the graphs differ from it by more than TOLERANCE,
             CannotWrite if the folder exists or the run is one of an autoencoder; nothing is written then
    """
    trained = checkpoint.read(run)
    if trained.config.family != "vae":
        raise CannotWrite(f"{run}: got an {trained.config.family}, expected a vae: bundles hold mu and logvar")
    graphs, source = freeze(trained.vae), source_of(trained.vae)
    shapes = trained.config.image_shape, (trained.config.latent_dim,)
    encoder = Graph(graphs.encoder, encoder_signature(*shapes), path=Path(ENCODER), device="cpu", threads=0)
    decoder = Graph(graphs.decoder, decoder_signature(*shapes), path=Path(DECODER), device="cpu", threads=0)
    parity = measure(source, encoder, decoder, pictures=trained.probe)
    require(parity, TOLERANCE)
    probe = probe_of(source, trained.probe[:_PROBE_ROWS])
    files = bundle_files(encoder=graphs.encoder, decoder=graphs.decoder, probe=probe)
    manifest = manifest_of(
        files,
        {
            **_described(trained),
            "name": name,
            "licence": licence,
            "tolerance": {"fp32": TOLERANCE.model_dump()},
            "parity": {"fp32": parity.model_dump()},
        },
    )
    write(folder, files, manifest)
    return manifest


def source_of(vae: VAE) -> Source:
    """The VAE in torch, on arrays."""
    encoder, decoder = encoder_module(vae), decoder_module(vae)

    @torch.inference_mode()
    def encode(image: Uint8) -> tuple[Float32, Float32]:
        mu, logvar = encoder(torch.from_numpy(image))
        return mu.numpy(), logvar.numpy()

    @torch.inference_mode()
    def decode(z: Float32) -> Uint8:
        image: Uint8 = decoder(torch.from_numpy(z)).contiguous().numpy()
        return image

    return Source(encode, decode)


def _described(trained: Checkpoint) -> dict[str, Any]:
    """What a manifest says of a model, from its config and its evaluation."""
    config = trained.config
    height, width, channels = config.image_shape
    return {
        "family": "vae",
        "image": {"height": height, "width": width, "channels": channels},
        "latent_shape": (config.latent_dim,),
        "likelihood": {
            "kind": config.likelihood,
            "sigma": _sigma(trained),
            "binarised_at": _BINARISED_AT if config.likelihood == "bernoulli" else None,
        },
        "prior": "standard",
        "scale_head": config.scale_head,
        "logvar_range": config.logvar_range,
        "opset": OPSET,
        "source": {"kind": "vaeserve", "version": version("vaeserve"), "preset": config.preset},
        "diagnostics": _diagnostics(trained.metrics) if trained.metrics else None,
        "metrics": trained.metrics,
    }


def _sigma(trained: Checkpoint) -> float | None:
    """The standard deviation of a gaussian likelihood, also where training found it."""
    likelihood = trained.vae.likelihood
    if not isinstance(likelihood, Gaussian):
        return None
    if isinstance(trained.config.sigma, float | int):
        return trained.config.sigma
    return math.sqrt(likelihood.sigma(torch.zeros(())).item())


def _diagnostics(metrics: dict[str, Any]) -> dict[str, Any]:
    """How the latent space is used: the part of an evaluation that clients of a model ask about."""
    return {
        "kl_per_dimension": metrics["kl_per_dimension"],
        "active_units": metrics["active_units"],
        "mu_min": min(metrics["mu"]["min"]),
        "mu_max": max(metrics["mu"]["max"]),
    }
