"""What a study trains: four kinds that differ in nothing but what they are compared in, and a sweep of sigma."""

import dataclasses

import numpy as np
import pytest
import torch

from model.data import Dataset
from model.errors import BadSetting
from model.objectives import elbo_terms, mean_loss
from model.pixels import pixels
from model.study.plan import AUTOENCODER, BETA_0, BETA_4, KINDS, PLAIN, SIGMAS, Kind, Settings, plan
from model.vae import VAE, ModelConfig


@pytest.fixture
def labelled(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, train_labels=np.arange(30) % 3, test_labels=np.arange(10) % 3)


def test_the_four_differ_in_family_and_beta_alone(labelled: Dataset) -> None:
    made = plan(labelled, Settings())
    runs = [made.measured(kind, 0).config for kind in KINDS]
    alike = [
        dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, family="vae"),
            training=dataclasses.replace(config.training, beta=1.0),
        )
        for config in runs
    ]
    assert alike[0] == alike[1] == alike[2] == alike[3]
    assert [(config.model.family, config.training.beta) for config in runs] == [
        ("autoencoder", 1.0),
        ("vae", 0.0),
        ("vae", 1.0),
        ("vae", 4.0),
    ]
    assert {(config.model.likelihood, config.model.sigma) for config in runs} == {("gaussian", 0.3)}


def test_each_seed_trains_four_kinds_twice_and_the_first_one_a_sweep(labelled: Dataset) -> None:
    made = plan(labelled, Settings(seeds=2, sketch=20))
    assert sorted(member.name for member in made.members) == sorted(
        [f"{kind.name}-{d}{seed}" for kind in KINDS for d in (2, 16) for seed in ("", "-seed1")]
        + ["vae-16-sigma0.1", "vae-16-sigma0.3", "vae-16-sigma1"]
    )
    assert {member.config.training.seed for member in made.members} == {0, 1}
    assert [made.swept(sigma).config.model.sigma for sigma in SIGMAS] == [0.1, 0.3, 1.0]


def test_models_to_look_at_and_the_sweep_learn_from_a_share_drawn_by_lot(labelled: Dataset) -> None:
    made = plan(labelled, Settings(sketch=20))
    assert len(made.dataset_of(made.measured(PLAIN, 0)).train) == 30
    for member in (made.plane(PLAIN, 0), made.swept(0.1)):
        share = made.dataset_of(member)
        assert member.config.data.n_train == len(share.train) == 20
        assert member.config.data.sha256 == share.sha256 != labelled.sha256
        rows = [int(np.flatnonzero((labelled.train == image).all((1, 2, 3)))[0]) for image in share.train]
        assert rows == sorted(rows) != list(range(20))
        assert share.train_labels is not None
        assert share.train_labels.tolist() == [row % 3 for row in rows]
        assert share.test is labelled.test


def test_where_there_are_no_more_pictures_the_sweep_takes_the_vae_that_is_there(labelled: Dataset) -> None:
    made = plan(labelled, Settings())
    assert made.sketch is labelled
    assert made.swept(0.3) == made.measured(PLAIN, 0)
    assert len(made.members) == 10


def test_few_pictures_are_seen_until_there_were_enough_steps(labelled: Dataset) -> None:
    assert plan(labelled, Settings(batch_size=10)).measured(PLAIN, 0).config.training.epochs == 500
    many = dataclasses.replace(labelled, train=np.zeros((60_000, 2, 2, 1), np.uint8), train_labels=None)
    many = dataclasses.replace(many, test=many.train[:1], validation=many.train[:0])
    training = plan(many, Settings()).measured(PLAIN, 0).config.training
    assert (training.epochs, training.kl_warmup_epochs, training.lr_warmup_steps) == (5, 1.0, 200)
    made = plan(many, Settings())
    of_sketch = made.plane(PLAIN, 0).config.training
    assert (of_sketch.epochs, of_sketch.kl_warmup_epochs, of_sketch.lr_warmup_steps) == (8, 1.6, 150)
    assert made.swept(1.0).config.training.epochs == 8
    assert plan(many, Settings(epochs=1, batch_size=6_000)).measured(PLAIN, 0).config.training.lr_warmup_steps == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seeds": 0}, "seeds: got 0, expected a whole number from 1"),
        ({"sketch": 0}, "sketch: got 0, expected a whole number from 1"),
        ({"latent_dim": 2}, "latent_dim: got 2, expected more than 2: a plane is trained anyway, to be seen"),
        ({"epochs": 0}, "epochs: got 0, expected a whole number from 1"),
        ({"preset": "large"}, "preset: got 'large', expected one of small, residual, mlp"),
    ],
)
def test_a_setting_out_of_range_is_said_before_anything_begins(
    labelled: Dataset, settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadSetting) as refused:
        plan(labelled, Settings(**settings))  # type: ignore[arg-type]
    assert str(refused.value) == sentence


def gradient(dataset: Dataset, *, family: str, beta: float, sigma: float) -> torch.Tensor:
    """Of the loss at the first weights, all of it in one row."""
    torch.manual_seed(0)
    vae = VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, family=family, sigma=sigma))
    eps = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    terms = elbo_terms(vae, pixels(dataset.train), eps)
    torch.autograd.backward(mean_loss(terms, beta=beta, free_bits=0.0))
    return torch.cat([weight.grad.flatten() for weight in vae.parameters() if weight.grad is not None])


@pytest.mark.parametrize("kind", [AUTOENCODER, BETA_0])
def test_without_a_second_term_sigma_only_scales_the_gradient(dataset: Dataset, kind: Kind) -> None:
    narrow = gradient(dataset, family=kind.family, beta=kind.beta, sigma=0.1)
    wide = gradient(dataset, family=kind.family, beta=kind.beta, sigma=1.0)
    assert narrow.norm() > 0
    torch.testing.assert_close(narrow, 100 * wide, rtol=1e-4, atol=1e-4 * float(narrow.abs().max()))


def test_beta_4_at_a_sigma_is_the_vae_at_twice_that_sigma(dataset: Dataset) -> None:
    heavy = gradient(dataset, family="vae", beta=BETA_4.beta, sigma=0.3)
    plain = gradient(dataset, family="vae", beta=1.0, sigma=0.6)
    torch.testing.assert_close(heavy, 4 * plain, rtol=1e-4, atol=1e-4 * float(heavy.abs().max()))
    other = gradient(dataset, family="vae", beta=1.0, sigma=0.3)
    assert not torch.allclose(heavy, 4 * other, rtol=0.1)
