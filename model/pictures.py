"""What a person looks at: reconstructions, prior samples and interpolations, as PNG files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from model.training import Images, pixels
from model.vae import VAE

_COLUMNS = 12
_PAIRS = 3
_PATHS = 8
_SAMPLE_ROWS = 8
_SEED = 0
_TILE_PIXELS = 56
_GAP_PIXELS = 2
_MARGIN_PIXELS = 8
_PAPER = 255


def write_all(folder: Path, vae: VAE, images: Images) -> None:
    """`reconstructions.png`, `samples.png` and `interpolations.png` in a folder, from a few test pictures.

    Shapes:  images (n, h, w, c)
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {
        "reconstructions": reconstructions(vae, images),
        "samples": samples(vae),
        "interpolations": interpolations(vae, images),
    }
    for name, tiles in sheets.items():
        _paper(tiles).save(folder / f"{name}.png", optimize=True)


@torch.no_grad()
def reconstructions(vae: VAE, images: Images) -> Images:
    """Test pictures with their reconstructions below them, in pairs of rows.

    Shapes:  images (n, h, w, c) -> (rows, columns, h, w, c)
    """
    x = pixels(_spread(images, _PAIRS * _COLUMNS))
    x_hat = vae.decode(vae.encode(x).mu)
    inputs, outputs = (_rows(tiles, columns=_COLUMNS) for tiles in (vae.likelihood.settle(x), x_hat))
    return np.stack([inputs, outputs], axis=1).reshape(-1, *inputs.shape[1:])


@torch.no_grad()
def samples(vae: VAE) -> Images:
    """What latents from the prior decode to, the same latents every time.

    Shapes:  -> (rows, columns, h, w, c)
    """
    generator = torch.Generator().manual_seed(_SEED)
    z = torch.randn(_COLUMNS * _SAMPLE_ROWS, vae.config.latent_dim, generator=generator)
    return _rows(vae.decode(z), columns=_COLUMNS)


@torch.no_grad()
def interpolations(vae: VAE, images: Images) -> Images:
    """One row per pair of test pictures: the straight line between their means, decoded.

    Shapes:  images (n, h, w, c) -> (rows, columns, h, w, c)
    """
    starts, ends = vae.encode(pixels(_spread(images, 2 * _PATHS))).mu.chunk(2)
    alpha = torch.linspace(0, 1, _COLUMNS).reshape(1, -1, 1)
    z = (1 - alpha) * starts[:, None] + alpha * ends[:, None]
    return _rows(vae.decode(z.flatten(0, 1)), columns=_COLUMNS)


def to_uint8(x: Tensor) -> Images:
    """Means of pixels as pixels, rounded to the nearest grey level.

    Shapes:  (n, c, h, w) in [0, 1] -> (n, h, w, c)
    """
    return (x.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def _rows(x: Tensor, *, columns: int) -> Images:
    images = to_uint8(x)
    return images.reshape(-1, columns, *images.shape[1:])


def _spread(images: Images, n: int) -> Images:
    """n pictures from evenly spaced places, repeated where there are fewer."""
    return images[np.linspace(0, len(images) - 1, n).round().astype(np.int64)]


def _paper(tiles: Images) -> Image.Image:
    """Tiles on white paper, enlarged by whole pixels, thin gaps between them."""
    rows, columns, height, width, channels = tiles.shape
    scale = max(1, round(_TILE_PIXELS / max(height, width)))
    height, width = height * scale, width * scale
    sheet: npt.NDArray[np.uint8] = np.full(
        (
            rows * (height + _GAP_PIXELS) - _GAP_PIXELS + 2 * _MARGIN_PIXELS,
            columns * (width + _GAP_PIXELS) - _GAP_PIXELS + 2 * _MARGIN_PIXELS,
            channels,
        ),
        _PAPER,
        np.uint8,
    )
    for row, column in np.ndindex(rows, columns):
        top = _MARGIN_PIXELS + row * (height + _GAP_PIXELS)
        left = _MARGIN_PIXELS + column * (width + _GAP_PIXELS)
        sheet[top : top + height, left : left + width] = tiles[row, column].repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
