"""How near a reconstruction comes to its picture: squared error, PSNR and SSIM, one value per picture."""

import torch
from torch import Tensor
from torch.nn import functional

# A reconstruction without error would be infinitely good, which JSON cannot say.
PSNR_MAX_DB = 100.0

_WINDOW = 11
_WINDOW_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def mse(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of each picture, where 1 is black to white.

    Shapes:  x, x_hat (n, c, h, w) -> (n,) float64
    Raises:  ValueError if the shapes differ
    """
    _same_shape(x, x_hat)
    return (x_hat.double() - x.double()).square().flatten(1).mean(1)


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, -10 log10(mse), at most `PSNR_MAX_DB`.

    Shapes:  x, x_hat (n, c, h, w) -> (n,) float64
    Units:   dB
    Raises:  ValueError if the shapes differ
    """
    return -10 * torch.log10(mse(x, x_hat).clamp_min(10 ** (-PSNR_MAX_DB / 10)))


def ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Structural similarity of each picture, 1 for equal ones: the mean over channels and over all places where the
    window lies inside the picture.

    The window is 11 pixels high and wide; along a side shorter than that, the largest odd number of pixels that fits,
    the same Gaussian cut off and scaled to sum 1.

    Shapes:  x, x_hat (n, c, h, w) -> (n,) float64
    Raises:  ValueError if the shapes differ
    Source:  Wang et al. 2004, equation 13 and section III.C, doi:10.1109/TIP.2003.819861
    """
    _same_shape(x, x_hat)
    # In float64: the variance of a flat region is a difference of nearly equal numbers, to be compared with C2.
    a, b = x.double(), x_hat.double()
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a * mean_a
    variance_b = _windowed(b * b) - mean_b * mean_b
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * structure).flatten(1).mean(1)


def _windowed(x: Tensor) -> Tensor:
    """The weighted mean under the window, wherever it fits: (n, c, h, w) -> (n, c, h', w')."""
    channels, height, width = x.shape[1:]
    down = _window(height).to(x).reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = _window(width).to(x).reshape(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return functional.conv2d(functional.conv2d(x, down, groups=channels), across, groups=channels)


def _window(side: int) -> Tensor:
    """Weights along a side of so many pixels, with sum 1."""
    size = min(_WINDOW, side - 1 + side % 2)
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-0.5 * (offset / _WINDOW_SIGMA).square())
    return weights / weights.sum()


def _same_shape(x: Tensor, x_hat: Tensor) -> None:
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat: got shape {tuple(x_hat.shape)}, expected that of x, {tuple(x.shape)}")
