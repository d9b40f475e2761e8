"""The fitted prior against scikit-learn and torch.distributions, and the question whether it is kept."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from model import prior as module
from model.coverage import Coverage
from model.errors import BadCheckpoint, BadSetting
from model.prior import Comparison, FittedPrior, compare, fit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(n: int, d: int, *, count: int, seed: int = 0) -> Tensor:
    """Draws from so many narrow Gaussians, far apart."""
    centres = 4 * torch.randn(count, d, generator=generator(seed))
    chosen = torch.randint(count, (n,), generator=generator(seed + 1))
    return centres[chosen] + 0.3 * torch.randn(n, d, generator=generator(seed + 2))


@pytest.fixture
def prior() -> FittedPrior:
    factors = torch.randn(3, 4, 4, generator=generator(1)).tril()
    factors.diagonal(dim1=1, dim2=2).abs_().add_(0.2)
    return FittedPrior(
        weights=torch.tensor([0.5, 0.3, 0.2]), means=3 * torch.randn(3, 4, generator=generator(2)), cholesky=factors
    )


def test_log_prob_is_that_of_torch_distributions(prior: FittedPrior) -> None:
    z = 3 * torch.randn(50, 4, generator=generator(3))
    components = MultivariateNormal(prior.means.double(), scale_tril=prior.cholesky.double())
    expected = MixtureSameFamily(Categorical(prior.weights.double()), components).log_prob(z.double())
    torch.testing.assert_close(prior.log_prob(z), expected)


def test_log_prob_is_that_of_scikit_learn() -> None:
    z = clusters(600, 3, count=3)
    mixture = GaussianMixture(3, random_state=0).fit(z.double().numpy())
    prior = FittedPrior(
        weights=torch.from_numpy(mixture.weights_).float(),
        means=torch.from_numpy(mixture.means_).float(),
        cholesky=torch.from_numpy(np.linalg.cholesky(mixture.covariances_)).float(),
    )
    np.testing.assert_allclose(prior.log_prob(z).numpy(), mixture.score_samples(z.double().numpy()), atol=1e-4)


def test_samples_have_the_weights_means_and_covariances_of_the_components(prior: FittedPrior) -> None:
    apart = dataclasses.replace(prior, means=torch.tensor([[-90.0] * 4, [0.0] * 4, [90.0] * 4]))
    z = apart.sample(60_000, generator=generator(4))
    component = torch.bucketize(z[:, 0].contiguous(), torch.tensor([-45.0, 45.0]))
    for k in range(3):
        own = z[component == k]
        assert len(own) / len(z) == pytest.approx(float(prior.weights[k]), abs=0.01)
        torch.testing.assert_close(own.mean(0), apart.means[k], atol=0.1, rtol=0)
        covariance = prior.cholesky[k] @ prior.cholesky[k].T
        torch.testing.assert_close(own.T.cov(), covariance, atol=0.03 * float(covariance.max()) + 0.02, rtol=0)


def test_one_seed_gives_one_sample(prior: FittedPrior) -> None:
    assert torch.equal(prior.sample(9, generator=generator(5)), prior.sample(9, generator=generator(5)))
    assert not torch.equal(prior.sample(9, generator=generator(5)), prior.sample(9, generator=generator(6)))


def test_a_fit_to_clusters_is_nearly_as_probable_as_the_truth_and_repeatable() -> None:
    z = clusters(2000, 2, count=5)
    found = fit(z, seed=3)
    # Entropy of a cluster's Gaussian, and which of five it is.
    entropy = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.3)) + np.log(5)
    assert float(found.log_prob(z).mean()) == pytest.approx(-entropy, abs=0.1)
    again = fit(z, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors().values(), again.tensors().values(), strict=True))


def test_draws_of_one_gaussian_are_given_one_component_with_their_moments() -> None:
    mixing = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, -1.0, 0.1]])
    z = torch.randn(3000, 3, generator=generator(7)) @ mixing.T + 5
    found = fit(z, seed=0)
    assert found.weights.tolist() == [1.0]
    torch.testing.assert_close(found.means[0], z.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(found.cholesky[0] @ found.cholesky[0].T, z.T.cov(), atol=0.2, rtol=0)


def test_many_clusters_are_given_many_components_and_few_draws_few() -> None:
    assert len(fit(clusters(4000, 2, count=40), seed=0).weights) >= 50
    assert len(fit(clusters(60, 2, count=40), seed=0).weights) == 1


@pytest.mark.parametrize(("n", "components"), [(111, 1), (112, 10)])
def test_ten_components_take_a_hundred_draws_of_two_dimensions(n: int, components: int) -> None:
    # A tenth, rounded up, is held back: 99 and 100 draws are left.
    assert len(fit(clusters(n, 2, count=4), seed=0).weights) == components


def test_no_component_is_narrower_than_a_hundredth_of_the_whole() -> None:
    z = torch.tensor([-1.0, 1.0]).repeat(1000)[:, None]
    found = fit(z, seed=0)
    assert len(found.weights) == 10
    torch.testing.assert_close(found.cholesky, torch.full((10, 1, 1), 0.01), rtol=1e-3, atol=0)


def test_a_fit_follows_codes_of_any_scale_and_offset() -> None:
    z = clusters(1500, 3, count=4).double()
    scale = torch.tensor([1e-2, 1.0, 1e3], dtype=torch.float64)
    offset = torch.tensor([5.0, 0.0, -1e3], dtype=torch.float64)
    plain, scaled = fit(z, seed=1), fit(z * scale + offset, seed=1)
    density, scaled_density = plain.log_prob(z), scaled.log_prob(z * scale + offset) + scale.log().sum()
    torch.testing.assert_close(density, scaled_density, atol=0.01, rtol=0)


def test_a_code_that_never_varies_is_drawn_as_it_is() -> None:
    z = clusters(500, 2, count=2)
    z[:, 1] = 3.0
    assert fit(z, seed=0).sample(100, generator=generator())[:, 1].numpy() == pytest.approx(3.0, abs=1e-4)


def test_seeds_of_any_size_are_taken_and_long_draws_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS_MAX", 100)
    z = torch.randn(400, 2, generator=generator(8))
    assert fit(z, seed=2**63 - 1).means.shape == (1, 2)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3000, 257), "got 257 latent dimensions, expected at most 256"),
        (torch.zeros(19, 4), "got 19 draws of z, expected at least 5 for each of 4 dimensions"),
        (torch.ones(100, 4), "got draws of z that are all equal, expected some that vary"),
    ],
)
def test_draws_that_no_density_can_be_fitted_to_are_refused(z: Tensor, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        fit(z, seed=0)


def test_a_prior_survives_its_file(tmp_path: Path, prior: FittedPrior) -> None:
    safetensors.torch.save_file(prior.tensors(), tmp_path / "prior.safetensors")
    read = FittedPrior.from_tensors(safetensors.torch.load_file(tmp_path / "prior.safetensors"))
    for name, tensor in prior.tensors().items():
        assert torch.equal(read.tensors()[name], tensor)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": torch.tensor([0.5, 0.3, 0.3])}, r"weights: got sum 1.1 and smallest 0.3, expected sum 1"),
        ({"weights": torch.tensor([1.2, -0.1, -0.1])}, r"weights: got sum 1 and smallest -0.1, expected sum 1"),
        ({"weights": torch.ones(1)}, r"weights: got torch.float32 of shape \(1,\), expected .* of shape \(3,\)"),
        ({"means": torch.zeros(3)}, r"means: got torch.float32 of shape \(3,\), expected .* of shape \(3, 1\)"),
        ({"means": torch.zeros(3, 4).double()}, r"means: got torch.float64 of shape \(3, 4\), expected finite float32"),
        ({"means": torch.full((3, 4), torch.nan)}, r"means: got .*, expected finite float32"),
        ({"cholesky": torch.zeros(3, 4, 4)}, r"cholesky: got up to 0 above the diagonal and 0 on it"),
        ({"cholesky": torch.ones(3, 4, 4)}, r"cholesky: got up to 1 above the diagonal and 1 on it"),
        ({"bias": torch.zeros(1)}, r"got tensors \['bias', 'cholesky', 'means', 'weights'\], expected"),
    ],
)
def test_tensors_that_are_no_density_are_refused(prior: FittedPrior, changed: dict[str, Tensor], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        FittedPrior.from_tensors(prior.tensors() | changed)


def decoded(z: Tensor) -> NDArray[np.uint8]:
    """A decoder of two latents: pictures of two pixels, whose greys are the latents."""
    return (128 + 20 * z).clamp(0, 255).byte().numpy().reshape(-1, 1, 2, 1)


def test_a_prior_that_fits_the_data_better_is_kept_and_another_is_not() -> None:
    data = clusters(900, 2, count=4)
    held_out = decoded(data[:300])
    better = compare(fit(data[300:], seed=0), decode=decoded, held_out=held_out, generator=generator())
    assert better.keep
    assert better.fitted.density > better.standard.density
    assert better.fitted.coverage > better.standard.coverage
    assert better.fitted.n_generated == better.fitted.n_real == better.standard.n_generated == 300
    elsewhere = fit(data[300:] + 9, seed=0)
    assert not compare(elsewhere, decode=decoded, held_out=held_out, generator=generator()).keep


def test_a_prior_that_improves_in_one_figure_alone_is_not_kept() -> None:
    def figures(density: float, coverage: float) -> Coverage:
        return Coverage(density, coverage, expected_coverage=0.97, nearest=5, n_generated=9, n_real=9)

    assert Comparison(standard=figures(0.5, 0.5), fitted=figures(0.6, 0.6)).keep
    assert not Comparison(standard=figures(0.5, 0.5), fitted=figures(0.6, 0.5)).keep
    assert not Comparison(standard=figures(0.5, 0.5), fitted=figures(0.4, 0.9)).keep
    # A density above that of real pictures is one of smoother ones.
    assert Comparison(standard=figures(1.28, 0.8), fitted=figures(0.98, 0.96)).keep
    assert not Comparison(standard=figures(1.28, 0.8), fitted=figures(0.8, 0.96)).keep


def test_a_comparison_is_repeatable_and_bounded_in_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PICTURES_MAX", 50)
    data = clusters(400, 2, count=2)
    prior, held_out = fit(data[:200], seed=0), decoded(data[200:])
    found = compare(prior, decode=decoded, held_out=held_out, generator=generator(9))
    assert found == compare(prior, decode=decoded, held_out=held_out, generator=generator(9))
    assert found.standard.n_real == found.fitted.n_generated == 50
