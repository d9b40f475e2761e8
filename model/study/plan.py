"""What a study trains: one network on the same pictures as four kinds of model, to be measured, seen and swept."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model.checkpoint import DataConfig, RunConfig
from model.data import Dataset
from model.errors import BadSetting
from model.training import TrainConfig
from model.vae import ModelConfig

# Of the four. Swept for the VAE alone, which is enough: without a second term sigma only scales the loss, and beta at
# some sigma is beta 1 at sqrt(beta) times that sigma, up to a factor that AdamW's steps do not see
# where the gradient is not clipped.
SIGMA = 0.3
SIGMAS = (0.1, 0.3, 1.0)
# A plane can be looked at.
PLANE = 2
# Fewer teach a network of this size too little to compare.
_STEPS = 1_500
_EPOCHS = 5
# The KL term's weight reaches beta after a fifth of a run, the learning rate its height after a tenth at most.
_KL_WARMUP_SHARE = 0.2
_LR_WARMUP_SHARE = 0.1
# Where --sketch falls: the runs to be seen and the sweep learn from so many pictures.
SKETCH = 24_000
_SKETCH_SEED = 0


@dataclass(frozen=True)
class Kind:
    """One of the four models that a study compares."""

    name: str
    """In names of runs and of bundles."""
    title: str
    """On pages and pictures."""
    family: str
    beta: float


AUTOENCODER = Kind("autoencoder", "autoencoder", family="autoencoder", beta=1.0)
BETA_0 = Kind("vae-beta0", "VAE, beta 0", family="vae", beta=0.0)
PLAIN = Kind("vae", "VAE", family="vae", beta=1.0)
BETA_4 = Kind("vae-beta4", "VAE, beta 4", family="vae", beta=4.0)
KINDS = (AUTOENCODER, BETA_0, PLAIN, BETA_4)


@dataclass(frozen=True)
class Settings:
    """What a person chooses of a study.

    Raises:  BadSetting if a field lies outside its range
    """

    seeds: int = 1
    """Times that everything but the sweep is trained, from seeds 0, 1, …"""
    epochs: int | None = None
    """Passes over the pictures; None takes 5, or as many as make 1,500 steps, of a sketch more than of all pictures."""
    latent_dim: int = 16
    """Numbers in one z of the models that are measured."""
    sketch: int = SKETCH
    """Training pictures, at most, of the models with 2 latents and of the sweep."""
    preset: str = ModelConfig.preset
    """Which networks."""
    features: int = ModelConfig.features
    """Channels of the largest feature map, or units of a hidden layer; 0 takes the preset's."""
    depth: int = ModelConfig.depth
    """Residual blocks at each size, or hidden layers; 0 takes the preset's."""
    batch_size: int = TrainConfig.batch_size
    """Pictures per step."""
    precision: str = TrainConfig.precision
    """What networks compute in while they learn."""

    def __post_init__(self) -> None:
        for name in ("seeds", "sketch", "batch_size"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name}: got {getattr(self, name)}, expected a whole number from 1")
        if self.latent_dim <= PLANE:
            expected = f"more than {PLANE}: a plane is trained anyway, to be seen"
            raise BadSetting(f"latent_dim: got {self.latent_dim}, expected {expected}")


@dataclass(frozen=True)
class Member:
    """One run of a study."""

    name: str
    """Of its folder, and of the bundle that is made of it."""
    kind: Kind
    config: RunConfig

    @property
    def latent_dim(self) -> int:
        """Numbers in one z."""
        return self.config.model.latent_dim

    @property
    def seed(self) -> int:
        """Where its randomness starts."""
        return self.config.training.seed

    @property
    def images(self) -> int:
        """Pictures that training visits."""
        return self.config.training.epochs * self.config.data.n_train


@dataclass(frozen=True, eq=False)
class Plan:
    """All runs of a study, and what they learn from."""

    dataset: Dataset
    sketch: Dataset
    """The same with fewer training pictures, or the very same where there are no more."""
    settings: Settings

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Every run once, those that take longest first."""
        found = {member.name: member for member in self._members()}
        return tuple(sorted(found.values(), key=lambda member: -member.images))

    @property
    def seeds(self) -> range:
        """Where randomness starts."""
        return range(self.settings.seeds)

    def measured(self, kind: Kind, seed: int) -> Member:
        """The run with the chosen number of latents."""
        return self._member(kind, latent_dim=self.settings.latent_dim, seed=seed, dataset=self.dataset)

    def plane(self, kind: Kind, seed: int) -> Member:
        """The run with two latents."""
        return self._member(kind, latent_dim=PLANE, seed=seed, dataset=self.sketch)

    def swept(self, sigma: float) -> Member:
        """The VAE of the first seed at another sigma."""
        member = self._member(PLAIN, latent_dim=self.settings.latent_dim, seed=0, dataset=self.sketch, sigma=sigma)
        if sigma == SIGMA and self.sketch is self.dataset:
            return member
        return dataclasses.replace(member, name=f"{member.name}-sigma{sigma:g}")

    def dataset_of(self, member: Member) -> Dataset:
        """What a run learns from."""
        return self.dataset if member.config.data.n_train == len(self.dataset.train) else self.sketch

    def _members(self) -> Iterator[Member]:
        for seed in self.seeds:
            for kind in KINDS:
                yield self.measured(kind, seed)
                yield self.plane(kind, seed)
        for sigma in SIGMAS:
            yield self.swept(sigma)

    def _member(self, kind: Kind, *, latent_dim: int, seed: int, dataset: Dataset, sigma: float = SIGMA) -> Member:
        height, width, channels = dataset.image_shape
        settings = self.settings
        steps_per_epoch = math.ceil(len(dataset.train) / settings.batch_size)
        epochs = max(_EPOCHS, math.ceil(_STEPS / steps_per_epoch)) if settings.epochs is None else settings.epochs
        model = ModelConfig(
            height=height,
            width=width,
            channels=channels,
            family=kind.family,
            latent_dim=latent_dim,
            preset=settings.preset,
            features=settings.features,
            depth=settings.depth,
            sigma=sigma,
        )
        training = TrainConfig(
            epochs=epochs,
            batch_size=settings.batch_size,
            lr_warmup_steps=min(TrainConfig.lr_warmup_steps, round(_LR_WARMUP_SHARE * epochs * steps_per_epoch)),
            beta=kind.beta,
            kl_warmup_epochs=_KL_WARMUP_SHARE * epochs,
            precision=settings.precision,
            seed=seed,
        )
        data = DataConfig.of(dataset, validation_seed=0)
        name = f"{kind.name}-{latent_dim}" + (f"-seed{seed}" if seed else "")
        return Member(name=name, kind=kind, config=RunConfig(model=model, training=training, data=data))


def plan(dataset: Dataset, settings: Settings) -> Plan:
    """The runs of a study of these pictures.

    Raises:  BadSetting if one of them cannot be
    """
    made = Plan(dataset=dataset, sketch=_drawn(dataset, settings.sketch), settings=settings)
    _ = made.members  # made here, so that a wrong setting is said before anything begins
    return made


def _drawn(dataset: Dataset, n: int) -> Dataset:
    """The data set with n training pictures, drawn by lot and in the order that they had."""
    if n >= len(dataset.train):
        return dataset
    rows = np.sort(np.random.default_rng(_SKETCH_SEED).permutation(len(dataset.train))[:n])
    labels = None if dataset.train_labels is None else dataset.train_labels[rows]
    return dataclasses.replace(dataset, train=dataset.train[rows], train_labels=labels)
