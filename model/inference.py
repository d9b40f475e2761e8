"""A model over any number of pictures or latents: on its device, in batches that fit into memory, without gradients."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.gaussian import DiagonalGaussian, Point
from model.parts import Images, rows_at_once
from model.pixels import pixels, to_image
from model.vae import VAE

Rows = npt.NDArray[np.int64]

# Rows in a batch, fewer where pictures are large.
_ROWS = 200


def pixel_parts(images: Images, rows: Rows | None = None) -> Iterator[Tensor]:
    """Pictures as networks take them, a batch at a time: all, or these rows.

    Shapes:  images (n, h, w, c), rows (k,) -> (m, c, h, w) in [0, 1] each
    """
    n = rows_at_once(images.shape[1:], most=_ROWS)
    for start in range(0, len(images) if rows is None else len(rows), n):
        part = slice(start, start + n)
        yield pixels(images[part] if rows is None else images[rows[part]])


@torch.no_grad()
def encode(vae: VAE, images: Images, rows: Rows | None = None) -> DiagonalGaussian | Point:
    """The posteriors of pictures, as they are served: of all, or of these rows.

    Shapes:  images (n, h, w, c), rows (k,) -> mu, logvar (n or k, latent_dim), on the CPU
    """
    device = next(vae.parameters()).device
    found = [vae.encode(vae.likelihood.settle(x.to(device))) for x in pixel_parts(images, rows)]
    mu = torch.cat([posterior.mu for posterior in found]).cpu()
    logvar = [posterior.logvar for posterior in found if isinstance(posterior, DiagonalGaussian)]
    return DiagonalGaussian(mu, torch.cat(logvar).cpu()) if logvar else Point(mu)


@torch.no_grad()
def decoded_parts(vae: VAE, z: Tensor) -> Iterator[Tensor]:
    """x_hat of each z, a batch at a time, for whoever keeps something smaller.

    Shapes:  z (n, latent_dim) -> (m, c, h, w) in [0, 1] each, on the CPU
    """
    device = next(vae.parameters()).device
    for rows in torch.split(z, rows_at_once(vae.config.image_shape, most=_ROWS)):
        yield vae.decode(rows.to(device)).cpu()


def decode(vae: VAE, z: Tensor) -> Tensor:
    """x_hat of each z.

    Shapes:  z (n, latent_dim) -> (n, c, h, w) in [0, 1], on the CPU
    """
    return torch.cat(list(decoded_parts(vae, z)))


def decode_images(vae: VAE, z: Tensor) -> Images:
    """The picture of each z.

    Shapes:  z (n, latent_dim) -> (n, h, w, c)
    """
    return np.concatenate([to_image(x_hat).numpy() for x_hat in decoded_parts(vae, z)])
