"""The bound against Monte Carlo and by hand, and the schedule of its KL term."""

import math

import pytest
import torch
from torch.distributions import Normal

from model.objectives import Terms, elbo_terms, mean_loss, warmed_beta
from model.vae import VAE


def test_elbo_is_minus_the_sum_of_recon_and_kl_and_beta_weighs_kl_alone() -> None:
    terms = Terms(recon=torch.tensor([1.0, 3.0]), kl=torch.tensor([2.0, 10.0]))
    assert terms.elbo.tolist() == [-3.0, -13.0]
    assert mean_loss(terms, beta=1).item() == 8.0
    assert mean_loss(terms, beta=0.5).item() == 5.0
    assert mean_loss(terms, beta=0).item() == 2.0


def test_the_terms_are_the_definition_of_the_bound(vae: VAE) -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.rand(4, 1, 9, 6, generator=generator), torch.randn(4, 3, generator=generator)
    terms = elbo_terms(vae, x, eps)
    mu, logvar = vae.encoder(x)
    z = mu + torch.exp(logvar / 2) * eps
    log_px = Normal(torch.sigmoid(vae.decoder(z)), 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(terms.recon, -log_px)
    draws = Normal(mu, torch.exp(logvar / 2)).expand((20_000, 4, 3)).sample()
    kl = (Normal(mu, torch.exp(logvar / 2)).log_prob(draws) - Normal(0.0, 1.0).log_prob(draws)).sum(2)
    error = kl.std(0) / math.sqrt(len(kl))
    assert ((kl.mean(0) - terms.kl).abs() < 5 * error + 1e-5).all()


def test_elbo_is_below_the_log_likelihood_by_importance_sampling(vae: VAE) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 9, 6, generator=generator).expand(4000, -1, -1, -1)
    eps = torch.randn(4000, 3, generator=generator)
    with torch.no_grad():
        posterior = vae.encode(x)
        z = posterior.sample(eps)
        terms = elbo_terms(vae, x, eps)
        log_weight = -terms.recon + Normal(0.0, 1.0).log_prob(z).sum(1) - posterior.log_prob(z)
    log_likelihood = torch.logsumexp(log_weight, 0) - math.log(4000)
    assert terms.elbo.mean() <= log_likelihood


@pytest.mark.parametrize(("step", "beta"), [(0, 0.0), (25, 0.5), (50, 1.0), (100, 2.0), (101, 2.0), (10_000, 2.0)])
def test_the_weight_of_kl_rises_along_a_line_and_stays(step: int, beta: float) -> None:
    assert warmed_beta(step, warmup_steps=100, beta=2.0) == beta


def test_without_warm_up_the_weight_of_kl_is_there_at_once() -> None:
    assert warmed_beta(0, warmup_steps=0, beta=1.5) == 1.5
