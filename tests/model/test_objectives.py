"""The bounds by hand, against torch.distributions and by Monte Carlo, and the gradients that a step takes from them."""

import math

import pytest
import torch
from torch.distributions import Normal

from model.objectives import ImportanceWeighted, Terms, elbo_terms, importance_weighted, mean_loss
from model.vae import VAE, ModelConfig


def double_normal(mu: torch.Tensor, sigma: torch.Tensor | float) -> Normal:
    return Normal(mu.double(), torch.as_tensor(sigma).double())


def slow_log_weights(vae: VAE, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """log p(x, z) - log q(z given x) in float64, one draw and one picture at a time: (k, n)."""
    rows = []
    for draw in eps:
        for picture, noise in zip(x, draw, strict=True):
            mu, logvar = vae.encoder(picture[None])[0].chunk(2)
            z = mu + torch.exp(logvar / 2) * noise
            x_mean = torch.sigmoid(vae.decoder(z[None]))[0]
            log_px = double_normal(x_mean, 0.3).log_prob(picture.double()).sum()
            log_pz = double_normal(torch.zeros_like(z), 1.0).log_prob(z.double()).sum()
            log_qz = double_normal(mu, torch.exp(logvar / 2)).log_prob(z.double()).sum()
            rows.append(log_px + log_pz - log_qz)
    return torch.stack(rows).reshape(eps.shape[:2])


def slow_bound(vae: VAE, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """The k-sample bound through which autograd sees all: log of the mean of the weights, (n,)."""
    return torch.logsumexp(slow_log_weights(vae, x, eps), 0) - math.log(len(eps))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(4, 1, 9, 6)


@pytest.fixture
def small_vae() -> VAE:
    """Two latents whose posteriors are near the true ones, but not there: weights differ from draw to draw."""
    vae = VAE(ModelConfig(2, 2, 1, latent_dim=2, preset="mlp", features=4, depth=1))
    with torch.no_grad():
        for network, size in ((vae.encoder, 0.15), (vae.decoder, 0.5)):
            for weight in network.parameters():
                weight += size * torch.randn_like(weight)
    return vae


@pytest.fixture
def copies() -> torch.Tensor:
    """One picture 200 times: the mean over a batch is a mean over so many independent draws."""
    return torch.tensor([0.1, 0.9, 0.7, 0.2]).reshape(1, 1, 2, 2).expand(200, -1, -1, -1)


# The evidence lower bound.


def test_elbo_is_minus_the_sum_of_recon_and_kl_and_beta_weighs_kl_alone() -> None:
    terms = Terms(recon=torch.tensor([1.0, 3.0]), kl_per_dimension=torch.tensor([[0.5, 1.5], [4.0, 6.0]]))
    assert terms.kl.tolist() == [2.0, 10.0]
    assert terms.elbo.tolist() == [-3.0, -13.0]
    assert mean_loss(terms, beta=1, free_bits=0).item() == 8.0
    assert mean_loss(terms, beta=0.5, free_bits=0).item() == 5.0
    assert mean_loss(terms, beta=0, free_bits=0).item() == 2.0


@pytest.mark.parametrize(("free_bits", "loss"), [(0.0, 2 + 0.5 * 5.6), (0.5, 2 + 0.5 * 6.0), (10.0, 2 + 0.5 * 30.0)])
def test_free_bits_hold_each_dimension_up_by_its_mean_over_the_batch(free_bits: float, loss: float) -> None:
    # Means of 3, 0.1 and 2.5; in the last dimension, one picture alone lies below half a nat.
    kl_per_dimension = torch.tensor([[2.0, 0.1, 0.2], [4.0, 0.1, 4.8]])
    terms = Terms(recon=torch.tensor([1.0, 3.0]), kl_per_dimension=kl_per_dimension)
    assert mean_loss(terms, beta=0.5, free_bits=free_bits).item() == pytest.approx(loss)


def test_a_dimension_below_its_free_bits_is_not_pressed_further() -> None:
    kl_per_dimension = torch.tensor([[2.0, 0.1], [4.0, 0.1]], requires_grad=True)
    mean_loss(Terms(recon=torch.zeros(2), kl_per_dimension=kl_per_dimension), beta=3, free_bits=0.5).backward()
    assert kl_per_dimension.grad.tolist() == [[1.5, 0.0], [1.5, 0.0]]


def test_the_terms_are_the_definition_of_the_bound(vae: VAE, x: torch.Tensor) -> None:
    eps = torch.randn(4, 3)
    terms = elbo_terms(vae, x, eps)
    mu, logvar = vae.encoder(x).chunk(2, dim=1)
    z = mu + torch.exp(logvar / 2) * eps
    log_px = Normal(torch.sigmoid(vae.decoder(z)), 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(terms.recon, -log_px)
    draws = Normal(mu, torch.exp(logvar / 2)).expand((20_000, 4, 3)).sample()
    kl = (Normal(mu, torch.exp(logvar / 2)).log_prob(draws) - Normal(0.0, 1.0).log_prob(draws)).sum(2)
    error = kl.std(0) / math.sqrt(len(kl))
    assert ((kl.mean(0) - terms.kl).abs() < 5 * error + 1e-5).all()


def test_an_autoencoder_is_trained_on_reconstruction_alone(x: torch.Tensor) -> None:
    autoencoder = VAE(ModelConfig(9, 6, 1, family="autoencoder", latent_dim=3, features=4))
    terms, other_noise = (elbo_terms(autoencoder, x, torch.randn(4, 3)) for _ in range(2))
    assert torch.equal(terms.recon, other_noise.recon)
    assert mean_loss(terms, beta=1, free_bits=0).item() == pytest.approx(terms.recon.mean().item())


# The importance-weighted bound.


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_bound_is_the_logarithm_of_the_mean_weight(vae: VAE, x: torch.Tensor, k: int) -> None:
    eps = torch.randn(k, 4, 3)
    bound = importance_weighted(vae, x, eps).bound
    torch.testing.assert_close(bound.double(), slow_bound(vae, x, eps), rtol=1e-6, atol=1e-4)


def test_weights_far_apart_do_not_overflow(small_vae: VAE, copies: torch.Tensor) -> None:
    eps = 30 * torch.randn(5, 200, 2)
    report = importance_weighted(small_vae, copies, eps)
    report.loss.backward()
    torch.testing.assert_close(report.bound.double(), slow_bound(small_vae, copies, eps), rtol=1e-5, atol=1e-3)
    assert all(weight.grad.isfinite().all() for weight in small_vae.parameters())


def test_with_one_draw_it_is_the_elbo_of_that_draw(vae: VAE, x: torch.Tensor) -> None:
    eps = torch.randn(1, 4, 3)
    posterior = vae.encode(x)
    z = posterior.sample(eps[0])
    kl_of_the_draw = posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(1)
    expected = -(elbo_terms(vae, x, eps[0]).recon + kl_of_the_draw)
    torch.testing.assert_close(importance_weighted(vae, x, eps).bound, expected)


def test_its_terms_are_those_of_the_elbo_averaged_over_the_draws(vae: VAE, x: torch.Tensor) -> None:
    eps = torch.randn(5, 4, 3)
    terms, apart = importance_weighted(vae, x, eps).terms, [elbo_terms(vae, x, draw) for draw in eps]
    torch.testing.assert_close(terms.recon, torch.stack([each.recon for each in apart]).mean(0))
    torch.testing.assert_close(terms.kl_per_dimension, apart[0].kl_per_dimension)


def test_in_expectation_the_bound_rises_with_the_draws_from_the_elbo(small_vae: VAE, copies: torch.Tensor) -> None:
    x = copies[:1].expand(20_000, -1, -1, -1)
    with torch.no_grad():
        bounds = [importance_weighted(small_vae, x, torch.randn(k, len(x), 2)).bound for k in (1, 2, 8)]
        elbo = elbo_terms(small_vae, x, torch.randn(len(x), 2)).elbo
    errors = [values.std() / math.sqrt(len(x)) for values in (*bounds, elbo)]
    assert abs(bounds[0].mean() - elbo.mean()) < 5 * (errors[0] + errors[3])
    assert bounds[1].mean() - bounds[0].mean() > 5 * (errors[1] + errors[0])
    assert bounds[2].mean() - bounds[1].mean() > 5 * (errors[2] + errors[1])


def test_the_bound_stays_below_the_log_likelihood(small_vae: VAE, copies: torch.Tensor) -> None:
    # Two latents: p(x) is an integral over a plane.
    axis = torch.linspace(-8, 8, 401)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        x_mean = torch.sigmoid(small_vae.decoder(z)).flatten(1)
        log_joint = double_normal(x_mean, 0.3).log_prob(copies[0].flatten().double()).sum(1)
        log_joint += double_normal(torch.zeros_like(z), 1.0).log_prob(z.double()).sum(1)
        log_likelihood = torch.logsumexp(log_joint, 0) + 2 * math.log(16 / 400)
        bound = importance_weighted(small_vae, copies, torch.randn(2000, 200, 2)).bound
    error = bound.std() / math.sqrt(len(bound))
    assert bound.mean() < log_likelihood + 4 * error
    assert bound.mean().item() == pytest.approx(log_likelihood.item(), abs=0.03)


# Its gradients.


def test_the_decoder_climbs_the_bounds_own_gradient() -> None:
    vae = VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, preset="residual", sigma="learned"))
    x, eps = torch.rand(4, 1, 9, 6), torch.randn(6, 4, 3)
    weights = [*vae.decoder.parameters(), *vae.likelihood.parameters()]
    got = torch.autograd.grad(importance_weighted(vae, x, eps).loss, weights)
    posterior = vae.encode(x)
    z = posterior.sample(eps)
    log_weights = Normal(0.0, 1.0).log_prob(z).sum(-1) - vae.likelihood.recon(vae.logits(z), x) - posterior.log_prob(z)
    bound = torch.logsumexp(log_weights, 0) - math.log(6)
    wanted = torch.autograd.grad(-bound.mean(), weights)
    for mine, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def encoders_gradients(vae: VAE, x: torch.Tensor, *, k: int, repeats: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The doubly reparameterised gradient and the bound's plain one, for the same noise: twice (repeats, weights)."""
    weights = list(vae.encoder.parameters())
    doubly, plain = [], []
    for _ in range(repeats):
        eps = torch.randn(k, len(x), vae.config.latent_dim)
        posterior = vae.encode(x)
        z = posterior.sample(eps)
        log_pz, log_px = Normal(0.0, 1.0).log_prob(z).sum(-1), -vae.likelihood.recon(vae.logits(z), x)
        bound = torch.logsumexp(log_pz + log_px - posterior.log_prob(z), 0)
        for gradients, loss in ((doubly, importance_weighted(vae, x, eps).loss), (plain, -bound.mean())):
            gradients.append(torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)]))
    return torch.stack(doubly).double(), torch.stack(plain).double()


def test_the_encoders_gradient_is_the_bounds_own_in_expectation(small_vae: VAE, copies: torch.Tensor) -> None:
    doubly, plain = encoders_gradients(small_vae, copies, k=3, repeats=400)
    difference = doubly - plain
    error = difference.std(0) / math.sqrt(len(difference))
    assert (plain.mean(0).abs() / error).max() > 20  # so small an error that a wrong gradient would show
    assert (difference.mean(0).abs() < 4.5 * error + 1e-7).all()


def test_the_encoders_gradient_has_less_noise_than_the_bounds_own(small_vae: VAE, copies: torch.Tensor) -> None:
    doubly, plain = encoders_gradients(small_vae, copies, k=32, repeats=60)
    assert doubly.var(0).sum() < 0.7 * plain.var(0).sum()


def test_no_gradient_is_asked_for_where_none_is_recorded(vae: VAE, x: torch.Tensor) -> None:
    eps = torch.randn(3, 4, 3)
    with torch.no_grad():
        report = importance_weighted(vae, x, eps)
    assert not report.loss.requires_grad
    assert torch.equal(report.bound, importance_weighted(vae, x, eps).bound)


def test_only_the_loss_carries_a_gradient(vae: VAE, x: torch.Tensor) -> None:
    report: ImportanceWeighted = importance_weighted(vae, x, torch.randn(3, 4, 3))
    assert report.loss.requires_grad
    assert not report.bound.requires_grad
    assert not report.terms.elbo.requires_grad


def test_an_autoencoder_has_no_importance_weights(x: torch.Tensor) -> None:
    autoencoder = VAE(ModelConfig(9, 6, 1, family="autoencoder", latent_dim=3, features=4))
    with pytest.raises(TypeError, match="importance weights: got an autoencoder, expected a vae"):
        importance_weighted(autoencoder, x, torch.randn(3, 4, 3))
