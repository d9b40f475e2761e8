"""PSNR and SSIM against scikit-image and against a slow loop over windows."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.similarity import mse, psnr, ssim


def waves(channels: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and another near it, (1, c, h, w) float64 in [0, 1], as formulas that any program can repeat."""
    c, i, j = np.meshgrid(np.arange(channels), np.arange(height), np.arange(width), indexing="ij")
    x = 0.5 + 0.5 * np.sin(0.3 * i + 0.7 * j + c)
    x_hat = np.clip(0.8 * x + 0.1 + 0.1 * np.cos(0.9 * i * (c + 1) - 0.4 * j), 0, 1)
    return torch.from_numpy(x)[None], torch.from_numpy(x_hat)[None]


def looped_ssim(x: NDArray[np.float64], x_hat: NDArray[np.float64], *, window: tuple[int, int]) -> float:
    """Wang et al. 2004, equations 13 to 16, for one channel: a window at a time, moments by their definition."""
    offsets = [np.arange(size) - (size - 1) / 2 for size in window]
    weights = np.exp(-(offsets[0][:, None] ** 2 + offsets[1][None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    found = []
    for i in range(x.shape[0] - window[0] + 1):
        for j in range(x.shape[1] - window[1] + 1):
            a, b = (picture[i : i + window[0], j : j + window[1]] for picture in (x, x_hat))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variance_a, variance_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * covariance + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4))
            )
    return float(np.mean(found))


# structural_similarity(x, x_hat, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
# channel_axis=0) and peak_signal_noise_ratio(x, x_hat, data_range=1.0) of scikit-image 0.26.0.
@pytest.mark.parametrize(
    ("shape", "expected_ssim", "expected_psnr"),
    [((1, 28, 28), 0.9411842745010595, 20.05242486209169), ((3, 17, 24), 0.9403242856288762, 20.006649298935105)],
)
def test_ssim_and_psnr_are_those_of_scikit_image(
    shape: tuple[int, int, int], expected_ssim: float, expected_psnr: float
) -> None:
    x, x_hat = waves(*shape)
    assert ssim(x, x_hat).item() == pytest.approx(expected_ssim, abs=1e-12)
    assert psnr(x, x_hat).item() == pytest.approx(expected_psnr, abs=1e-10)


@pytest.mark.parametrize(
    ("size", "window"), [((13, 12), (11, 11)), ((8, 8), (7, 7)), ((14, 5), (11, 5)), ((2, 1), (1, 1))]
)
def test_ssim_is_that_of_a_loop_over_windows_that_shrink_with_the_picture(
    size: tuple[int, int], window: tuple[int, int]
) -> None:
    x, x_hat = waves(2, *size)
    expected = np.mean([looped_ssim(x[0, c].numpy(), x_hat[0, c].numpy(), window=window) for c in range(2)])
    assert ssim(x, x_hat).item() == pytest.approx(expected, abs=1e-12)


def test_equal_pictures_have_similarity_one_and_a_finite_psnr() -> None:
    x, _ = waves(3, 16, 16)
    assert ssim(x, x).item() == pytest.approx(1)
    assert psnr(x, x).item() == pytest.approx(100)


def test_a_grey_reconstruction_of_black_and_white_has_a_psnr_worked_by_hand() -> None:
    x = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert mse(x, torch.full_like(x, 0.5)).tolist() == [0.25]
    assert psnr(x, torch.full_like(x, 0.5)).item() == pytest.approx(10 * math.log10(4))


def test_each_picture_has_its_own_value_whatever_lies_beside_it() -> None:
    x, x_hat = waves(1, 12, 12)
    pairs = torch.cat([x, x, x_hat]).float(), torch.cat([x_hat, x, x]).float()
    for measure in (mse, psnr, ssim):
        together = measure(*pairs)
        apart = torch.cat([measure(a[None], b[None]) for a, b in zip(*pairs, strict=True)])
        torch.testing.assert_close(together, apart)


def test_pictures_of_two_sizes_are_refused() -> None:
    for measure in (mse, psnr, ssim):
        with pytest.raises(ValueError, match=r"x_hat: got shape \(1, 1, 4, 5\), expected that of x, \(1, 1, 4, 4\)"):
            measure(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
