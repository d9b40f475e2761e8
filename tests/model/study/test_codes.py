"""Clouds and codes: every number against another way to have it."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from sklearn.neighbors import KNeighborsClassifier

from model.pixels import pixels
from model.study import codes
from model.study.codes import Codes
from model.vae import VAE, ModelConfig


@pytest.fixture
def found() -> Codes:
    """Correlated means and clouds of their own width each: (400, 3)."""
    generator = np.random.default_rng(0)
    mixing = np.array([[1.0, 0, 0], [0.8, 0.5, 0], [-0.3, 0.2, 2.0]])
    mu = generator.standard_normal((400, 3)) @ mixing.T + [1.0, -2.0, 0.5]
    return Codes(mu=torch.from_numpy(mu).float(), logvar=torch.from_numpy(generator.uniform(-3, 1, (400, 3))).float())


def test_posteriors_are_those_of_pictures_as_they_are_served(vae: VAE, images: np.ndarray) -> None:
    found = codes.codes_of(vae, images)
    expected = vae.encode(vae.likelihood.settle(pixels(images)))
    torch.testing.assert_close(found.mu, expected.mu)
    torch.testing.assert_close(found.logvar, expected.logvar)
    autoencoder = VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, family="autoencoder"))
    assert codes.codes_of(autoencoder, images).logvar is None


def test_moments_are_those_of_many_draws(found: Codes) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([found.draw(generator) for _ in range(2_000)]).double().numpy()
    np.testing.assert_allclose(found.covariance().numpy(), np.cov(z.T), atol=0.02)
    np.testing.assert_allclose(found.spread().numpy(), z.std(0), atol=0.01)


def test_points_are_their_own_draws() -> None:
    points = Codes(mu=torch.tensor([[1.0, 2.0], [3.0, 4.0]]), logvar=None)
    assert points.draw(torch.Generator()) is points.mu
    assert points.sigma() is None
    assert codes.width(points) is None


def test_the_distance_of_moments_is_wassersteins_between_gaussians(found: Codes) -> None:
    covariance, mean = found.covariance().numpy(), found.mu.double().mean(0).numpy()
    expected = mean @ mean + np.trace(covariance + np.eye(3) - 2 * linalg.sqrtm(covariance).real)
    assert codes.moment_distance(found) == pytest.approx(math.sqrt(expected), rel=1e-6)


def test_the_distance_of_moments_is_0_for_the_prior_and_that_of_the_shift_for_a_shifted_one() -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert codes.moment_distance(Codes(mu=corners, logvar=None)) == pytest.approx(0, abs=1e-9)
    shifted = Codes(mu=corners + torch.tensor([3.0, 4.0]), logvar=None)
    assert codes.moment_distance(shifted) == pytest.approx(5)


def test_a_fitted_gaussian_has_the_moments_of_all_clouds(found: Codes) -> None:
    fitted = codes.fitted_gaussian(found)
    factor = fitted.cholesky[0].double()
    torch.testing.assert_close(factor @ factor.T, found.covariance(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fitted.means[0], found.mu.mean(0), rtol=1e-4, atol=1e-4)


def test_a_latent_that_never_varies_leaves_a_gaussian_that_can_be_drawn_from() -> None:
    mu = torch.stack([torch.linspace(-1, 1, 50), torch.zeros(50)], dim=1)
    drawn = codes.fitted_gaussian(Codes(mu=mu, logvar=None)).sample(100, generator=torch.Generator().manual_seed(0))
    assert drawn[:, 1].abs().max() < 0.01
    assert drawn[:, 0].std() > 0.3


def test_width_is_sigma_in_units_of_the_spread_of_all_clouds() -> None:
    # Spread: sqrt(1 + 9 / 16) = 1.25 and sqrt(0 + 1) = 1; sigma 0.75 and 1.
    found = Codes(mu=torch.tensor([[1.0, 2.0], [-1.0, 2.0]]), logvar=2 * torch.tensor([[0.75, 1.0], [0.75, 1.0]]).log())
    assert codes.width(found) == pytest.approx((0.75 / 1.25 + 1) / 2)


def test_the_share_of_the_plane_counts_cells_of_equal_prior_mass() -> None:
    edges = stats.norm.ppf(np.arange(1, 20) / 20)
    inside = torch.tensor([[edges[0] - 0.01, 0.01], [edges[0] + 0.01, 0.01], [edges[0] + 0.02, 0.02], [40.0, -40.0]])
    assert codes.plane_share(inside) == 3 / 400
    middles = stats.norm.ppf((np.arange(20) + 0.5) / 20)
    every = torch.from_numpy(np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2))
    assert codes.plane_share(every) == 1


def test_the_overlap_with_the_prior_counts_no_cell_for_more_than_its_mass() -> None:
    edges = stats.norm.ppf(np.arange(1, 20) / 20)
    two_cells = torch.tensor([[edges[0] - 0.01, 0.01], [edges[0] + 0.01, 0.01], [edges[0] + 0.02, 0.02]])
    assert codes.plane_overlap(two_cells) == pytest.approx(2 / 400)
    middles = stats.norm.ppf((np.arange(20) + 0.5) / 20)
    every = torch.from_numpy(np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2))
    assert codes.plane_overlap(every) == pytest.approx(1)
    far = torch.cat([every, torch.tensor([[40.0, -40.0]]).repeat(400, 1)])
    assert codes.plane_share(far) == 1
    assert codes.plane_overlap(far) == pytest.approx(399 / 800 + 1 / 400)


def test_draws_from_the_prior_hit_the_expected_share_of_the_plane() -> None:
    draws = torch.randn(50, 500, 2, generator=torch.Generator().manual_seed(0))
    shares = np.array([codes.plane_share(z) for z in draws])
    assert codes.expected_plane_share(1) == pytest.approx(1 / 400)
    assert abs(shares.mean() - codes.expected_plane_share(500)) < 4 * shares.std() / math.sqrt(50)


def test_a_plane_has_two_dimensions() -> None:
    with pytest.raises(ValueError, match="mu: got 3 dimensions, expected 2"):
        codes.plane_share(torch.zeros(4, 3))


def test_agreement_is_that_of_the_nearest_other_code() -> None:
    generator = np.random.default_rng(0)
    rows, labels = generator.standard_normal((1_200, 3)), generator.integers(0, 3, 1_200)
    rows += labels[:, None]
    nearest = KNeighborsClassifier(1).fit(rows, labels).kneighbors(return_distance=False)[:, 0]
    expected = (labels[nearest] == labels).mean()
    assert codes.label_agreement(torch.from_numpy(rows), torch.from_numpy(labels)) == pytest.approx(expected)


def test_codes_that_are_all_alike_have_a_gaussian_too() -> None:
    """As those of a data set of one picture."""
    fitted = codes.fitted_gaussian(Codes(mu=torch.full((1, 3), 2.0), logvar=None))
    drawn = fitted.sample(50, generator=torch.Generator().manual_seed(0))
    assert (drawn - 2).abs().max() < 0.01
