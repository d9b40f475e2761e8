"""The numbers of one model, each worked out again in a plain way."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from model.aggregate import discrepancy_to_prior
from model.coverage import balls, coverage_of_features
from model.data import Dataset
from model.evaluation import evaluate
from model.pixels import pixels
from model.study import classifier as classifiers
from model.study import numbers
from model.study.classifier import Classifier
from model.study.codes import plane_overlap
from model.study.quantities import QUANTITIES, standard_error_of
from model.vae import VAE, ModelConfig


@pytest.fixture
def labelled(dataset: Dataset) -> Dataset:
    return dataclasses.replace(dataset, train_labels=np.arange(30) % 3, test_labels=np.arange(10) % 3)


@pytest.fixture
def classifier(labelled: Dataset) -> Classifier:
    return classifiers.untrained(labelled).eval().requires_grad_(False)


@pytest.fixture
def plane() -> VAE:
    """Two latents, and weights large enough that pictures differ."""
    vae = VAE(ModelConfig(9, 6, 1, latent_dim=2, features=4)).eval().requires_grad_(False)
    for head in (vae.encoder.head, vae.decoder.pixels):
        head.weight.mul_(20)
    return vae


def with_twenty(labelled: Dataset) -> Dataset:
    """The same with twenty test pictures, of which ten count as real."""
    test = np.concatenate([labelled.test, labelled.train[:10]])
    return dataclasses.replace(labelled, test=test, test_labels=np.arange(20) % 3)


def measured(vae: VAE, dataset: Dataset, classifier: Classifier | None) -> dict[str, float | None]:
    metrics = evaluate(vae, dataset.test, data="blocks")
    return numbers.measure(vae, metrics=metrics, dataset=dataset, classifier=classifier)


def test_every_quantity_of_a_plane_is_a_finite_number(plane: VAE, labelled: Dataset, classifier: Classifier) -> None:
    found = measured(plane, with_twenty(labelled), classifier)
    assert found.keys() == QUANTITIES.keys() | {key for key in found if key.endswith("_standard_error")}
    assert all(value is not None and math.isfinite(value) for value in found.values())


def test_without_classes_there_is_nothing_of_a_classifier(plane: VAE, dataset: Dataset) -> None:
    found = measured(plane, dataset, None)
    parts = ("density", "coverage", "confidence", "feature", "label")
    lacking = {key for key in QUANTITIES if any(part in key for part in parts)}
    assert {key for key in QUANTITIES if found.get(key) is None} == lacking


def test_an_autoencoder_has_no_clouds_to_count_or_to_draw_from(labelled: Dataset, classifier: Classifier) -> None:
    autoencoder = VAE(ModelConfig(9, 6, 1, latent_dim=3, features=4, family="autoencoder")).eval()
    found = measured(autoencoder, labelled, classifier)
    of_clouds, of_planes = {"kl", "active_units", "sigma", "width", "move_sigma"}, {"plane_share", "plane_overlap"}
    assert {key for key, value in found.items() if value is None} == of_clouds | of_planes
    assert found["move_spread"] is not None


@torch.no_grad()
def test_moves_are_those_of_each_picture(plane: VAE, labelled: Dataset) -> None:
    found = measured(plane, labelled, None)
    posterior = plane.encode(pixels(labelled.test))
    eps = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    spread = (posterior.mu.var(0, correction=0) + posterior.logvar.exp().mean(0)).sqrt()
    for name, scale in (("move_sigma", (posterior.logvar / 2).exp()), ("move_spread", 0.05 * spread.expand(10, 2))):
        squares = [
            (plane.decode((mu + step * noise)[None]) - plane.decode(mu[None])).square().mean().item()
            for mu, step, noise in zip(posterior.mu, scale, eps, strict=True)
        ]
        assert found[name] == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-4)
        drawn = np.random.default_rng(0).choice(squares, (20_000, 10))
        assert found[standard_error_of(name)] == pytest.approx(np.sqrt(drawn.mean(1)).std(), rel=0.1)
    assert found["move_sigma"] > 0


@torch.no_grad()
def test_paths_lead_from_each_picture_to_one_other(plane: VAE, labelled: Dataset, classifier: Classifier) -> None:
    found = measured(plane, labelled, classifier)
    mu = plane.encode(pixels(labelled.test)).mu
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    longest, length = [], []
    for first, last in zip(order, order[1:] + order[:1], strict=True):
        seen = [plane.decode((mu[first] + step / 20 * (mu[last] - mu[first]))[None]) for step in range(21)]
        features = [classifier.features(x)[0].double().numpy() for x in seen]
        steps = [np.linalg.norm(b - a) for a, b in itertools.pairwise(features)]
        longest.append(max(steps) / np.mean(steps))
        length.append(sum(steps))
    assert found["feature_length"] == pytest.approx(np.mean(length), rel=1e-3)
    assert found["feature_unevenness"] == pytest.approx(np.mean(longest), rel=1e-2)
    assert found["feature_unevenness_standard_error"] == pytest.approx(np.std(longest) / math.sqrt(10), rel=5e-2)


@torch.no_grad()
def test_midpoints_lie_among_test_pictures_in_features_their_own_ends_left_out(
    plane: VAE, labelled: Dataset, classifier: Classifier
) -> None:
    found = measured(plane, with_twenty(labelled), classifier)
    x = pixels(with_twenty(labelled).test)
    mu = plane.encode(x).mu
    real, ends = torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(10)
    middles = plane.decode((mu[ends] + mu[ends.roll(-1)]) / 2)
    expected = coverage_of_features(classifier.look([middles]).features, classifier.look([x[real]]).features)
    assert found["linear_density"] == pytest.approx(expected.density)
    assert found["linear_coverage"] == pytest.approx(expected.coverage)
    share = expected.coverage
    assert found["linear_coverage_standard_error"] == pytest.approx(math.sqrt(share * (1 - share) / 10))
    nearest = torch.cdist(real_features := classifier.look([x[real]]).features, real_features).sort(1).values[:, 5]
    held = (torch.cdist(classifier.look([middles]).features, real_features) <= nearest).sum(1) / 5
    assert found["linear_density_standard_error"] == pytest.approx(float(held.std(correction=0)) / math.sqrt(10))
    assert found["linear_confidence"] == pytest.approx(float(classifier.look([middles]).confidence.mean()), rel=1e-4)


def test_the_standard_error_of_an_mmd_and_the_binomial_one_of_a_share_stand_beside_them(
    plane: VAE, labelled: Dataset, classifier: Classifier
) -> None:
    found = measured(plane, labelled, classifier)
    z = plane.encode(pixels(labelled.test)).sample(torch.randn(10, 2, generator=torch.Generator().manual_seed(0)))
    expected = discrepancy_to_prior(z, torch.Generator().manual_seed(1))
    assert found["mmd_standard_error"] == pytest.approx(expected.standard_error, rel=1e-4)
    for name, n in (("plane_share", 400), ("label_agreement", 10)):
        share = found[name]
        assert share is not None
        assert found[standard_error_of(name)] == pytest.approx(math.sqrt(share * (1 - share) / n))


def test_too_few_test_pictures_to_lie_among_leave_realism_out(
    plane: VAE, labelled: Dataset, classifier: Classifier
) -> None:
    found = measured(plane, labelled, classifier)  # ten, of which five may be real
    assert found.get("standard_density") is None
    assert found["pixel_length"] is not None


def test_as_many_real_pictures_lie_among_the_test_pictures_as_samples_do(
    labelled: Dataset, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty among ten would cover more of them than any model's ten could."""
    counts = []

    def counted(generated: torch.Tensor, real: torch.Tensor) -> object:
        counts.append((len(generated), len(real)))
        return balls(generated, real)

    monkeypatch.setattr(numbers, "balls", counted)
    numbers.reference(with_twenty(labelled), latent_dim=2, classifier=classifier)
    assert set(counts) == {(10, 10)}


def test_of_a_part_that_is_sorted_by_class_rows_from_all_over_are_moved(
    plane: VAE, labelled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = dataclasses.replace(labelled, test=labelled.test[[0, 4, 9]])  # the rows of ten that lie evenly
    monkeypatch.setattr(numbers, "MOVED", 3)
    of_all, of_those = (measured(plane, dataset, None)["move_sigma"] for dataset in (labelled, chosen))
    assert of_all == pytest.approx(of_those, rel=1e-4)


def test_paths_are_the_same_however_many_are_in_memory(
    plane: VAE, labelled: Dataset, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = measured(plane, labelled, classifier)
    monkeypatch.setattr(numbers, "_PATHS_AT_ONCE", 3)
    apart = measured(plane, labelled, classifier)
    for name in ("pixel_unevenness", "pixel_length", "feature_unevenness", "feature_length"):
        assert apart[name] == pytest.approx(together[name], rel=1e-5)


def test_the_reference_is_a_cross_fade_and_the_prior_itself(labelled: Dataset, classifier: Classifier) -> None:
    found = numbers.reference(labelled, latent_dim=2, classifier=classifier)
    x = labelled.test.astype(float).reshape(10, -1) / 255
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).numpy()
    distances = np.linalg.norm(x[order] - x[np.roll(order, -1)], axis=1)
    assert found["pixel_length"] == pytest.approx(distances.mean(), rel=1e-4)
    assert found["pixel_unevenness"] == pytest.approx(1, abs=1e-3)
    assert found["plane_share"] == pytest.approx(1 - (399 / 400) ** 10)
    assert numbers.reference(labelled, latent_dim=3, classifier=None)["plane_share"] is None
    draws = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    assert found["plane_overlap"] == plane_overlap(draws)
    found = numbers.reference(with_twenty(labelled), latent_dim=2, classifier=classifier)
    for name in ("density", "density_standard_error", "confidence"):
        assert found[f"standard_{name}"] == found[f"fitted_{name}"]
