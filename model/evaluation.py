"""How good a VAE is on test pictures: the bound and its parts, what its latents do, how near reconstructions come."""

import math
from typing import Any

import torch
from torch import Tensor

from model import fingerprints
from model.aggregate import clamp_share, discrepancy_to_prior, moments
from model.gaussian import DiagonalGaussian
from model.likelihoods import Likelihood
from model.objectives import elbo_terms
from model.parts import Images, rows_at_once
from model.pixels import pixels
from model.similarity import mse, psnr, ssim
from model.vae import VAE, ModelConfig

# A latent dimension is active if the mean of its posterior varies by more than this over the data.
ACTIVE_VARIANCE = 0.01
_BATCH_SIZE = 500


@torch.no_grad()
def evaluate(vae: VAE, images: Images, *, data: str, draws: int = 1, seed: int = 0) -> dict[str, Any]:
    """Figures over test pictures, with the protocol that gave them; the same seed gives the same figures.

    The bound is taken on pictures as training saw them: each draw binarises or dequantises anew, where the likelihood
    does that, and takes one z. Latents and reconstructions are those of pictures as they are served.

    Shapes:  images (n, h, w, c)
    Units:   elbo, recon, kl in nats, mean over pictures and draws; bpd in bits; mse where 1 is black to white; psnr in
             dB, mean over pictures
    Source:  active units: Burda et al. 2016, section 5.3, arXiv:1509.00519
    """
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    recon, kl, mu, logvar, likeness = [], [], [], [], []
    n = rows_at_once(vae.config.image_shape, most=_BATCH_SIZE)
    for start in range(0, len(images), n):
        x = pixels(images[start : start + n]).to(device)
        for _ in range(draws):
            eps = torch.randn(len(x), vae.config.latent_dim, generator=generator, device=device)
            terms = elbo_terms(vae, vae.likelihood.draw(x, generator), eps)
            recon.append(terms.recon)
            kl.append(terms.kl_per_dimension)
        settled = vae.likelihood.settle(x)
        posterior = vae.encode(settled)
        x_hat = vae.decode(posterior.mu)
        shown = settled if vae.config.likelihood == "bernoulli" else x
        likeness.append(torch.stack([mse(shown, x_hat), psnr(shown, x_hat), ssim(shown, x_hat)], dim=1))
        mu.append(posterior.mu)
        if isinstance(posterior, DiagonalGaussian):
            logvar.append(posterior.logvar)
    means = torch.cat(mu).double().cpu()
    bound = _bound(vae, recon=torch.cat(recon), kl_per_dimension=torch.cat(kl))
    return {
        "protocol": _protocol(vae, images, data=data, draws=draws, seed=seed),
        **bound,
        "active_units": int((means.var(0, correction=0) > ACTIVE_VARIANCE).sum()),
        "mu": {
            "min": means.amin(0).tolist(),
            "max": means.amax(0).tolist(),
            "mean": means.mean(0).tolist(),
            "variance": means.var(0, correction=0).tolist(),
        },
        "aggregate": _aggregate(vae.config, mu=means, logvar=torch.cat(logvar).cpu() if logvar else None, seed=seed),
        **dict(zip(("mse", "psnr", "ssim"), torch.cat(likeness).double().mean(0).tolist(), strict=True)),
    }


def bits_per_dimension(elbo: float, *, config: ModelConfig, likelihood: Likelihood) -> float | None:
    """-elbo in bits for each number of a picture: of a mass as it is, of a dequantised density with its 8 bits added.

    None for a density over pictures that are not dequantised: it is no bound of any mass.

    Units:   nats in, bits out
    Source:  Theis et al. 2016, section 3.1, arXiv:1511.01844
    """
    if not likelihood.is_mass and not config.dequantised:
        return None
    return -elbo / (math.prod(config.image_shape) * math.log(2)) + (0 if likelihood.is_mass else 8)


def _bound(vae: VAE, *, recon: Tensor, kl_per_dimension: Tensor) -> dict[str, Any]:
    """The bound and its parts; an autoencoder has a reconstruction term and no bound."""
    # In float64, or sums over ten thousand pictures would lose digits.
    mean_recon = recon.double().mean().item()
    if vae.config.family == "autoencoder":
        return {"elbo": None, "recon": mean_recon, "kl": None, "kl_per_dimension": None, "bpd": None}
    kl = kl_per_dimension.double().mean(0)
    elbo = -(mean_recon + kl.sum().item())
    return {
        "elbo": elbo,
        "recon": mean_recon,
        "kl": kl.sum().item(),
        "kl_per_dimension": kl.tolist(),
        "bpd": bits_per_dimension(elbo, config=vae.config, likelihood=vae.likelihood),
    }


def _aggregate(config: ModelConfig, *, mu: Tensor, logvar: Tensor | None, seed: int) -> dict[str, Any]:
    """What all posteriors together look like, beside N(0, I)."""
    generator = torch.Generator().manual_seed(seed)
    found = moments(mu, logvar)
    described: dict[str, Any] = {
        "mean": found.mean.tolist(),
        "variance": found.variance.tolist(),
        "largest_correlation": found.correlation_max,
        "mmd": None,
        "mmd_spread": None,
        "logvar_at_clamp": None,
    }
    if logvar is not None and len(mu) > 1:
        eps = torch.randn(mu.shape, generator=generator)
        discrepancy = discrepancy_to_prior(DiagonalGaussian(mu.float(), logvar).sample(eps), generator)
        share = clamp_share(logvar, config.logvar_range)
        described |= {"mmd": discrepancy.mmd, "mmd_spread": discrepancy.spread}
        described |= {"logvar_at_clamp": share.low + share.high}
    return described


def _protocol(vae: VAE, images: Images, *, data: str, draws: int, seed: int) -> dict[str, Any]:
    config = vae.config
    binarises = config.likelihood == "bernoulli"
    return {
        "data": data,
        "images": len(images),
        "draws": draws,
        "seed": seed,
        "likelihood": config.likelihood,
        "sigma": config.sigma,
        "bound_on": "fresh binarisations" if binarises else "dequantised" if config.dequantised else "as they are",
        "latents_and_reconstructions_of": "binarised at 128 of 255" if binarises else "as they are",
        "weights": "average",
        "device": next(vae.parameters()).device.type,
        "model_sha256": fingerprints.of_model(vae),
        "data_sha256": fingerprints.of_images(images),
    }
