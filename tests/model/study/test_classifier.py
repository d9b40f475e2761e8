"""The classifier whose features pictures are compared in."""

import dataclasses

import numpy as np
import pytest
import torch

from model import data
from model.data import Dataset
from model.inference import pixel_parts
from model.pixels import pixels
from model.study import classifier as classifiers
from model.study.classifier import Classifier


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.read(None)


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Classifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "_STEPS", 200)
        return classifiers.train(digits)


def test_it_learns_to_tell_digits(trained: Classifier, digits: Dataset) -> None:
    assert classifiers.accuracy(trained, digits) > 0.9
    seen = trained.look(pixel_parts(digits.test))
    assert classifiers.accuracy(trained, digits) == (seen.label.numpy() == digits.test_labels).mean()


def test_it_learns_the_same_every_time(trained: Classifier, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "_STEPS", 200)
    torch.manual_seed(5)
    again = classifiers.train(digits)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_confidence_is_the_probability_of_the_class_it_takes_a_picture_for(
    trained: Classifier, digits: Dataset
) -> None:
    x = pixels(digits.test)
    seen = trained.look([x])
    with torch.no_grad():
        probabilities = torch.softmax(trained(x), dim=1)
    torch.testing.assert_close(seen.confidence, probabilities.amax(1))
    assert seen.label.tolist() == probabilities.argmax(1).tolist()
    assert seen.features.shape == (len(x), classifiers.FEATURES)
    assert (seen.features >= 0).all()


def test_its_skill_is_told_beside_the_share_of_the_largest_class(digits: Dataset) -> None:
    few = dataclasses.replace(digits, test=digits.test[:8], test_labels=np.array([3, 3, 1, 3, 2, 2, 7, 3]))
    found = classifiers.skill(few, accuracy=0.75)
    assert (found.accuracy, found.largest_share, found.n) == (0.75, 0.5, 8)
    assert not found.is_enough
    assert classifiers.skill(digits, accuracy=0.75).is_enough


def test_labels_may_be_any_numbers(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "_STEPS", 200)
    train = digits.train_labels
    test = digits.test_labels
    assert train is not None
    assert test is not None
    renamed = dataclasses.replace(digits, train_labels=1000 - 7 * train, test_labels=1000 - 7 * test)
    assert classifiers.accuracy(classifiers.train(renamed), renamed) > 0.9


@pytest.mark.parametrize(
    ("train", "test", "has"),
    [
        (np.arange(30) % 2, np.zeros(10, np.int64), True),
        (np.zeros(30, np.int64), np.zeros(10, np.int64), False),
        (None, np.zeros(10, np.int64), False),
        (np.arange(30) % 2, None, False),
    ],
)
def test_classes_need_labels_of_two_kinds_in_both_parts(
    dataset: Dataset, train: np.ndarray | None, test: np.ndarray | None, has: bool
) -> None:
    assert classifiers.has_classes(dataclasses.replace(dataset, train_labels=train, test_labels=test)) is has
