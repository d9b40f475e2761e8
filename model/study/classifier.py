"""A small classifier of the study's own pictures: the features in which pictures and paths are compared."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.data import Dataset
from model.inference import pixel_parts
from model.machine import Machine, deterministic
from model.networks.pyramid import Shape
from model.networks.small import SmallEncoder
from model.pixels import pixels
from model.schedules import epoch_order, learning_rate

# Width of the layer below the classes.
FEATURES = 64
_CHANNELS = 16
_STEPS = 1_500
_BATCH_SIZE = 128
_LEARNING_RATE = 2e-3
_WARMUP_STEPS = 100
# Of test pictures, to judge others by: at 100 this is two standard errors of any share, and more than that at more.
_FEWEST, _CLEARLY = 100, 0.1


@dataclass(frozen=True, eq=False)
class Seen:
    """What a classifier makes of pictures.

    Shapes:  features (n, FEATURES) float64; confidence, label (n,)
    """

    features: Tensor
    confidence: Tensor
    """Probability of the class that it takes each for, 0 to 1."""
    label: Tensor


@dataclass(frozen=True)
class Skill:
    """How well a classifier names test pictures, beside what naming the largest class each time would do."""

    accuracy: float
    """Share of them that it names rightly."""
    largest_share: float
    """Share of the largest class."""
    n: int
    """Test pictures."""

    @property
    def is_enough(self) -> bool:
        """Whether pictures can be judged in its features."""
        return self.n >= _FEWEST and self.accuracy - self.largest_share >= _CLEARLY

    def __str__(self) -> str:
        """In a sentence."""
        return (
            f"the classifier names {self.accuracy:.1%} of {self.n:,} test pictures rightly, where the largest class"
            f" makes {self.largest_share:.1%} of them"
        )


class Classifier(nn.Module):
    """Pictures to classes, by way of features that are never below 0.

    Shapes:  x (n, c, h, w) in [0, 1] -> (n, classes)
    """

    classes: Tensor

    def __init__(self, image_shape: tuple[int, int, int], *, classes: Tensor) -> None:
        super().__init__()
        height, width, channels = image_shape
        shape = Shape(height, width, channels, latent_dim=FEATURES, features=_CHANNELS, depth=1)
        self.network = SmallEncoder(shape, outputs=FEATURES)
        self.head = nn.Linear(FEATURES, len(classes))
        self.register_buffer("classes", classes)

    def features(self, x: Tensor) -> Tensor:
        """The layer below the classes: (n, c, h, w) -> (n, FEATURES)."""
        return functional.relu(self.network(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def look(self, parts: Iterable[Tensor]) -> Seen:
        """Features, and the class that each picture is taken for, of pictures that come in parts.

        Shapes:  parts (m, c, h, w) in [0, 1] each -> all on the CPU
        """
        features = torch.cat([self.features(x.to(self.classes.device)) for x in parts])
        confidence, index = self.head(features).softmax(-1).max(-1)
        return Seen(features=features.double().cpu(), confidence=confidence.cpu(), label=self.classes[index].cpu())


def has_classes(dataset: Dataset) -> bool:
    """Whether pictures to train on and pictures to test with have labels, of at least two kinds."""
    labels = dataset.train_labels
    return labels is not None and dataset.test_labels is not None and len(np.unique(labels)) > 1


def untrained(dataset: Dataset) -> Classifier:
    """A classifier of a data set's classes, as it begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(dataset.image_shape, classes=torch.from_numpy(np.unique(_labels(dataset))))


def train(dataset: Dataset) -> Classifier:
    """A classifier that has learnt from the training pictures; the same one every time, on one machine."""
    classifier = untrained(dataset)
    targets = torch.searchsorted(classifier.classes, torch.from_numpy(_labels(dataset)))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE)
    steps_per_epoch = math.ceil(len(targets) / _BATCH_SIZE)
    epochs = math.ceil(_STEPS / steps_per_epoch)
    step = 0
    for epoch in range(epochs):
        for rows in torch.split(epoch_order(len(targets), seed=0, epoch=epoch), _BATCH_SIZE):
            rate = learning_rate(
                step, steps=epochs * steps_per_epoch, warmup_steps=_WARMUP_STEPS, highest=_LEARNING_RATE
            )
            for group in optimiser.param_groups:
                group["lr"] = rate
            with deterministic(Machine(torch.device("cpu"))):
                loss = functional.cross_entropy(classifier(pixels(dataset.train[rows.numpy()])), targets[rows])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
            step += 1
    return classifier.eval().requires_grad_(False)


def accuracy(classifier: Classifier, dataset: Dataset) -> float:
    """Share of the test pictures that it takes for what they are."""
    assert dataset.test_labels is not None  # noqa: S101  # the caller has asked `has_classes`
    seen = classifier.look(pixel_parts(dataset.test))
    return float((seen.label == torch.from_numpy(dataset.test_labels)).double().mean())


def skill(dataset: Dataset, *, accuracy: float) -> Skill:
    """What a classifier of that accuracy can be relied on for."""
    assert dataset.test_labels is not None  # noqa: S101  # the caller has asked `has_classes`
    counts = np.unique(dataset.test_labels, return_counts=True)[1]
    return Skill(accuracy=accuracy, largest_share=float(counts.max() / counts.sum()), n=int(counts.sum()))


def _labels(dataset: Dataset) -> np.ndarray:
    assert dataset.train_labels is not None  # noqa: S101  # the caller has asked `has_classes`
    return dataset.train_labels
