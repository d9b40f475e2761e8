"""How good a VAE is: the bound and its parts, what its latents do, and how near its reconstructions come."""

from typing import Any

import numpy as np
import torch

from model.training import Images, pixels
from model.vae import VAE

# A latent dimension is active if the mean of its posterior varies by more than this over the data.
ACTIVE_VARIANCE = 0.01
_BATCH_SIZE = 500


@torch.no_grad()
def evaluate(vae: VAE, images: Images, *, data: str, draws: int = 1, seed: int = 0) -> dict[str, Any]:
    """Figures over test pictures, with the protocol that gave them; the same seed gives the same figures.

    Shapes:  images (n, h, w, c)
    Units:   elbo, recon, kl in nats, mean over pictures (and draws); mse where 1 is black to white; psnr in dB,
             mean over pictures
    Source:  active units: Burda et al. 2016, section 5.3, arXiv:1509.00519
    """
    generator = torch.Generator().manual_seed(seed)
    # In float64, or sums over ten thousand pictures would lose digits.
    recon = np.zeros(len(images))
    mse = np.zeros(len(images))
    mu = np.zeros((len(images), vae.config.latent_dim))
    kl = np.zeros_like(mu)
    for start in range(0, len(images), _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        x = pixels(images[rows])
        posterior = vae.encode(x)
        x = vae.likelihood.settle(x)
        for _ in range(draws):
            eps = torch.randn(posterior.mu.shape, generator=generator)
            recon[rows] += vae.likelihood.recon(vae.logits(posterior.sample(eps)), x).numpy() / draws
        mse[rows] = (vae.decode(posterior.mu) - x).square().flatten(1).mean(1).numpy()
        mu[rows] = posterior.mu.numpy()
        kl[rows] = posterior.kl_per_dimension().numpy()
    variance = mu.var(axis=0)
    return {
        "protocol": {
            "data": data,
            "images": len(images),
            "draws": draws,
            "seed": seed,
            "likelihood": vae.config.likelihood,
            "sigma": vae.config.sigma,
            "binarised": "at 128 of 255" if vae.config.likelihood == "bernoulli" else None,
            "weights": "average",
        },
        "elbo": -float(recon.mean() + kl.sum(axis=1).mean()),
        "recon": float(recon.mean()),
        "kl": float(kl.sum(axis=1).mean()),
        "kl_per_dimension": kl.mean(axis=0).tolist(),
        "active_units": int((variance > ACTIVE_VARIANCE).sum()),
        "mu": {
            "min": mu.min(axis=0).tolist(),
            "max": mu.max(axis=0).tolist(),
            "mean": mu.mean(axis=0).tolist(),
            "variance": variance.tolist(),
        },
        "mse": float(mse.mean()),
        # A reconstruction without error would be infinitely good, which JSON cannot say: at most 100 dB.
        "psnr": float(np.mean(-10 * np.log10(np.maximum(mse, 1e-10)))),
    }
