"""Our own checkpoint as the source of a bundle: every family, network, likelihood and scale head."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from export import card
from export.frozen import CannotImport, Described, Frozen
from export.graphs import freeze, source
from export.verify import finite
from model import checkpoint, fingerprints
from model.checkpoint import Checkpoint
from model.coverage import EXPECTED_DENSITY
from model.errors import BadCheckpoint
from model.evaluation import ACTIVE_VARIANCE
from model.gaussian import DiagonalGaussian
from model.likelihoods import Gaussian
from model.pixels import to_image, to_x
from model.prior import FittedPrior
from model.trust import judge
from model.vae import VAE
from service.manifest import PRIOR, ImageSpec, Likelihood, Source

# Bernoulli.settle: white where x >= 1/2, which is from this grey level up.
_BINARISED_AT = 128
# What a manifest says of all posteriors together.
_AGGREGATE = ("mean", "variance", "largest_correlation", "mmd", "mmd_spread")


class Encoder(nn.Module):
    """Pictures to the posterior, or to the code of an autoencoder.

    Shapes:  image (n, h, w, c) uint8 -> mu, logvar (n, latent_dim), or mu alone
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """As the class says."""
        posterior = self.vae.encode(self.vae.likelihood.settle(to_x(image)))
        return (posterior.mu, posterior.logvar) if isinstance(posterior, DiagonalGaussian) else posterior.mu


class Decoder(nn.Module):
    """Latents to pictures: the mean of p(x given z), rounded to a byte.

    Shapes:  z (n, latent_dim) -> image (n, h, w, c) uint8
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        return to_image(finite(self.vae.decode(z)))


class Scorer(nn.Module):
    """log p(x given z) of pictures as the encoder sees them.

    Shapes:  image (n, h, w, c) uint8, z (n, latent_dim) -> (n,) nats
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, z: Tensor) -> Tensor:
        """As the class says."""
        likelihood = self.vae.likelihood
        return -likelihood.recon(self.vae.logits(z), likelihood.settle(to_x(image)))


def recognises(folder: Path) -> bool:
    """Whether a folder holds a run of vae-train."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "model", "training"} <= set(config)


def load(run: Path) -> Frozen:
    """A checkpoint, frozen; with it travels what its evaluation made: figures, fitted prior, card and pictures.

    Raises:  BadCheckpoint if the run cannot be read, CannotImport if its weights are not finite, if other weights were
             evaluated, or if the card or the fitted prior is not whole
    """
    trained = checkpoint.read(run)
    _require_finite(run, trained.vae)
    files: dict[str, bytes] = {}
    if trained.metrics is not None:
        _require_its_own(run, trained.vae, trained.metrics)
        files = card.files(run) | _fitted_prior(run, trained.config.model.latent_dim)
    modules = Encoder(trained.vae).eval(), Decoder(trained.vae).eval(), Scorer(trained.vae).eval()
    described = _described(run, trained)
    return Frozen(
        graphs=freeze(*modules, image=described.image, latent_shape=described.latent_shape),
        source=source(*modules),
        described=described,
        pictures=trained.probe,
        files=files,
    )


def diagnostics(family: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's diagnostics, from what an evaluation found.

    Raises:  AttributeError, KeyError, TypeError or ValueError if that is not what vae-train evaluate finds
    """
    mu, aggregate, samples = metrics["mu"], metrics.get("aggregate"), metrics.get("samples")
    return {
        "kl_per_dimension": metrics["kl_per_dimension"],
        "active_units": metrics["active_units"],
        "active_dimensions": [dim for dim, variance in enumerate(mu["variance"]) if variance > ACTIVE_VARIANCE],
        "mu_min": min(mu["min"]),
        "mu_max": max(mu["max"]),
        "aggregate": aggregate and {name: aggregate[name] for name in _AGGREGATE},
        "samples": samples and {prior: _realism(samples.get(prior)) for prior in ("standard", "fitted")},
        "trust": asdict(judge(family, metrics)),
    }


def _realism(samples: Mapping[str, Any] | None) -> dict[str, float] | None:
    if samples is None:
        return None
    measured = {name: samples[name] for name in ("density", "coverage", "expected_coverage")}
    return measured | {"expected_density": EXPECTED_DENSITY}


def _require_finite(run: Path, vae: VAE) -> None:
    for name, weight in vae.state_dict().items():
        if not torch.isfinite(weight).all():
            raise CannotImport(f"{run}, weight {name}: got numbers that are not finite, expected finite ones")


def _require_its_own(run: Path, vae: VAE, metrics: Mapping[str, Any]) -> None:
    """Nothing, if it was these weights that an evaluation measured: a run may have gone on since."""
    protocol = metrics.get("protocol")
    measured = protocol.get("model_sha256") if isinstance(protocol, dict) else None
    if measured != fingerprints.of_model(vae):
        raise CannotImport(
            f"{run / 'metrics.json'}: got figures of other weights, expected those of model.safetensors;"
            f" `vae-train evaluate {run} --data …` measures these"
        )


def _fitted_prior(run: Path, latent_dim: int) -> dict[str, bytes]:
    """The prior that an evaluation fitted and kept, as a file of the bundle."""
    path = run / PRIOR
    if not path.exists():
        return {}
    try:
        prior = FittedPrior.from_tensors(safetensors.torch.load_file(path))
    except (BadCheckpoint, OSError, SafetensorError) as error:
        raise CannotImport(f"{path}: {error}; vae-train evaluate writes another") from error
    if prior.means.shape[1] != latent_dim:
        raise CannotImport(f"{path}: got {prior.means.shape[1]} latent dimensions, expected {latent_dim}")
    return {PRIOR: safetensors.torch.save(prior.tensors())}


def _described(run: Path, trained: Checkpoint) -> Described:
    """What a manifest says of a model, from its config and its evaluation."""
    config = trained.config.model
    height, width, channels = config.image_shape
    has_posterior = config.family == "vae"
    return Described(
        family=config.family,
        image=ImageSpec(height=height, width=width, channels=channels),
        latent_shape=(config.latent_dim,),
        prior="standard" if has_posterior else "none",
        source=Source(kind="vaeserve", version=version("vaeserve"), network=config.preset),
        likelihood=Likelihood(
            kind=config.likelihood,
            sigma=_sigma(trained),
            binarised_at=_BINARISED_AT if config.likelihood == "bernoulli" else None,
        ),
        scale_head=config.scale_head if has_posterior else None,
        logvar_range=config.logvar_range if has_posterior else None,
        diagnostics=_diagnostics(run, config.family, trained.metrics),
        metrics=trained.metrics,
    )


def _sigma(trained: Checkpoint) -> float | None:
    """The standard deviation of a gaussian likelihood, also where training found it."""
    likelihood = trained.vae.likelihood
    if not isinstance(likelihood, Gaussian):
        return None
    sigma = trained.config.model.sigma
    if isinstance(sigma, float | int):
        return sigma
    return math.sqrt(likelihood.sigma(torch.zeros(())).item())


def _diagnostics(run: Path, family: str, metrics: dict[str, Any] | None) -> dict[str, Any] | None:
    """How the latent space is used: the part of an evaluation that clients of a model ask about."""
    if metrics is None or "kl_per_dimension" not in metrics:
        return None
    try:
        return diagnostics(family, metrics)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        expected = "what vae-train evaluate writes"
        raise CannotImport(
            f"{run / 'metrics.json'}: got no figures of latents ({error!r}), expected {expected}"
        ) from error
