"""Where a model puts pictures: clouds or points in latent space, what they are like together, and what is between."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.gaussian import DiagonalGaussian
from model.inference import encode
from model.parts import Images
from model.prior import FittedPrior
from model.vae import VAE

# Cells along each side of the latent plane.
CELLS = 20
_ROWS = 500
# Added to the variances of a fitted Gaussian, in units of the largest: a code that never varies has a density too.
_REGULARISATION = 1e-6
# Of codes that are all alike, as those of one picture.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Codes:
    """The posterior of each picture; logvar is None for an autoencoder, whose clouds are points.

    Shapes:  mu, logvar (n, latent_dim)
    """

    mu: Tensor
    logvar: Tensor | None

    def sigma(self) -> Tensor | None:
        """Standard deviation of each cloud along each dimension: (n, latent_dim)."""
        return None if self.logvar is None else (self.logvar / 2).exp()

    def draw(self, generator: torch.Generator) -> Tensor:
        """One z from each cloud, the aggregate posterior: (n, latent_dim)."""
        sigma = self.sigma()
        return self.mu if sigma is None else self.mu + sigma * torch.randn(self.mu.shape, generator=generator)

    def covariance(self) -> Tensor:
        """Of z over pictures and clouds, cov mu + mean of exp(logvar): (latent_dim, latent_dim) float64."""
        centred = self.mu.double() - self.mu.double().mean(0)
        covariance = centred.T @ centred / len(centred)
        return covariance if self.logvar is None else covariance + self.logvar.double().exp().mean(0).diag()

    def spread(self) -> Tensor:
        """Standard deviation of z over pictures and clouds: (latent_dim,)."""
        return self.covariance().diagonal().sqrt().float()


def codes_of(vae: VAE, images: Images) -> Codes:
    """Where a model puts pictures, as they are served.

    Shapes:  images (n, h, w, c)
    """
    posterior = encode(vae, images)
    return Codes(posterior.mu, posterior.logvar if isinstance(posterior, DiagonalGaussian) else None)


def fitted_gaussian(codes: Codes) -> FittedPrior:
    """The one Gaussian with the mean and covariance of z: what a model could be sampled with in place of N(0, I)."""
    covariance = codes.covariance()
    largest = covariance.diagonal().max().clamp(min=_LEAST_VARIANCE)
    jitter = _REGULARISATION * largest * torch.eye(len(covariance), dtype=torch.float64)
    return FittedPrior(
        weights=torch.ones(1),
        means=codes.mu.double().mean(0, keepdim=True).float(),
        cholesky=torch.linalg.cholesky(covariance + jitter)[None].float(),
    )


def moment_distance(codes: Codes) -> float:
    """Wasserstein-2 distance between N(0, I) and the Gaussian with the mean and covariance of z.

    Source:  Dowson & Landau 1982, equation 16, doi:10.1016/0047-259X(82)90077-X
    """
    covariance = codes.covariance()
    mean = codes.mu.double().mean(0)
    # tr(S + I - 2 S^(1/2)), by the eigenvalues of S; rounding may leave one of them below 0.
    roots = torch.linalg.eigvalsh(covariance).clamp_min(0).sqrt()
    return math.sqrt(float(mean.square().sum() + (roots - 1).square().sum()))


def width(codes: Codes) -> float | None:
    """Sigma of a cloud in units of the spread of all, mean over pictures and dimensions; None for points."""
    sigma = codes.sigma()
    if sigma is None:
        return None
    spread = codes.spread()
    return float((sigma[:, spread > 0] / spread[spread > 0]).double().mean())


def plane_share(mu: Tensor) -> float:
    """Share of the cells that the prior's quantiles cut a plane into, `CELLS` by `CELLS`, that hold a code.

    Shapes:  mu (n, 2)
    Raises:  ValueError if there are not two dimensions
    """
    return int((_counts(mu) > 0).sum()) / CELLS**2


def plane_overlap(mu: Tensor) -> float:
    """What codes have in common with the prior: over the same cells, the sum of the lesser of both shares.

    Codes beyond the last quantile count in the cells at the edge, which they fill no further than the prior does.

    Shapes:  mu (n, 2)
    Raises:  ValueError if there are not two dimensions
    """
    return float((_counts(mu) / len(mu)).clamp_max(1 / CELLS**2).sum())


def expected_plane_share(n: int) -> float:
    """The share that n draws from the prior would hit on average: every cell is as likely."""
    return -math.expm1(n * math.log1p(-1 / CELLS**2))


def label_agreement(rows: Tensor, labels: Tensor) -> float:
    """Share of rows whose nearest other row has their label.

    Shapes:  rows (n, d) of any type, labels (n,)
    """
    agree = 0
    # Only two blocks at a time are in float64: pictures may be large, and there are many.
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        some = rows[part].double()
        distances = torch.cat([torch.cdist(some, others.double()) for others in torch.split(rows, _ROWS)], dim=1)
        own = torch.arange(start, start + len(distances))
        distances[torch.arange(len(distances)), own] = torch.inf
        agree += int((labels[distances.argmin(1)] == labels[part]).sum())
    return agree / len(rows)


def _counts(mu: Tensor) -> Tensor:
    """Codes in each cell: (n, 2) -> (CELLS ** 2,) float64."""
    if mu.shape[1] != 2:
        raise ValueError(f"mu: got {mu.shape[1]} dimensions, expected 2")
    cell = (torch.special.ndtr(mu.double()) * CELLS).long().clamp_max(CELLS - 1)
    return torch.bincount(cell[:, 0] * CELLS + cell[:, 1], minlength=CELLS**2).double()
