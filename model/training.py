"""How a VAE learns: the settings of a run, and one step after another, each repeatable."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.errors import BadSetting, NotANumber
from model.objectives import elbo_terms, mean_loss, warmed_beta
from model.vae import VAE, ModelConfig

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TrainConfig:
    """What an experiment chose, saved with its weights.

    Raises:  BadSetting if a field lies outside its range
    """

    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 128
    """Pictures per step."""
    learning_rate: float = 2e-3
    """Adam's step size at its highest; it falls along a cosine to 0 at the last step."""
    lr_warmup_steps: int = 200
    """Steps in which the learning rate rises from 0."""
    beta: float = 1.0
    """Weight of the KL term after its warm-up."""
    kl_warmup_epochs: float = 2.0
    """Epochs in which the weight of the KL term rises from 0 to beta."""
    grad_clip: float = 10.0
    """Largest norm of the gradient, nats per data dimension; longer ones are shortened to it."""
    average_decay: float = 0.999
    """What the averaged weights keep of themselves at each step; 0 takes the last weights."""
    seed: int = 0
    """Where all randomness starts: initial weights, order of pictures, noise."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("lr_warmup_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
                raise BadSetting(f"{name}: got {value!r}, expected a whole number from {low}")
        for name in ("learning_rate", "grad_clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise BadSetting(f"{name}: got {value!r}, expected a number above 0")
        for name in ("beta", "kl_warmup_epochs"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise BadSetting(f"{name}: got {value!r}, expected a number from 0")
        if not 0 <= self.average_decay < 1:
            raise BadSetting(f"average_decay: got {self.average_decay!r}, expected a number from 0 to below 1")


@dataclass(frozen=True)
class StepReport:
    """What one step saw, averaged over its pictures.

    Units:   elbo, recon, kl in nats per picture
    """

    step: int
    n: int
    elbo: float
    recon: float
    kl: float


class Learner:
    """A VAE in training: weights, their average, the optimiser, the noise generator and the step reached."""

    def __init__(self, model: ModelConfig, *, training: TrainConfig, n_images: int) -> None:
        self.training = training
        self.n_images = n_images
        self.steps_per_epoch = math.ceil(n_images / training.batch_size)
        self.steps = self.steps_per_epoch * training.epochs
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.vae = VAE(model)
        self.average = copy.deepcopy(self.vae).eval().requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.vae.parameters(), lr=training.learning_rate)
        for weight in self.vae.parameters():
            # As Adam would at its first step, but before it, so that a state has the same tensors at any step.
            moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            self.optimiser.state[weight] = {"step": torch.tensor(0.0), **moments}
        # A stream of its own: the same seed would draw the numbers again that made the initial weights.
        self.noise = torch.Generator().manual_seed(int(np.random.default_rng(training.seed).integers(2**63)))

    @property
    def images_seen(self) -> int:
        """Pictures that the steps so far have visited; every epoch's last batch holds what is left."""
        epoch, index = divmod(self.step, self.steps_per_epoch)
        return epoch * self.n_images + index * self.training.batch_size

    def run(self, images: Images) -> Iterator[StepReport]:
        """Steps from where the learner stands to the end of its run; stop between two whenever you like.

        Shapes:  images (n, h, w, c)
        Raises:  NotANumber when a term or the gradient stops being finite
        """
        self.vae.train()
        while self.step < self.steps:
            epoch, index = divmod(self.step, self.steps_per_epoch)
            order = epoch_order(self.n_images, seed=self.training.seed, epoch=epoch)
            for batch in torch.split(order, self.training.batch_size)[index:]:
                # Entered per step, as a generator must not leave a global setting behind while it waits.
                with _deterministic():
                    report = self._step(pixels(images[batch.numpy()]))
                yield report

    def _step(self, x: Tensor) -> StepReport:
        training = self.training
        x = self.vae.likelihood.draw(x, self.noise)
        eps = torch.randn(x.shape[0], self.vae.config.latent_dim, generator=self.noise)
        terms = elbo_terms(self.vae, x, eps)
        warmup_steps = round(training.kl_warmup_epochs * self.steps_per_epoch)
        beta = warmed_beta(self.step, warmup_steps=warmup_steps, beta=training.beta)
        self.optimiser.zero_grad()
        mean_loss(terms, beta=beta).backward()  # type: ignore[no-untyped-call]
        dims = x[0].numel()
        gradient_norm = nn.utils.clip_grad_norm_(self.vae.parameters(), training.grad_clip * dims)
        recon, kl = terms.recon.mean().item(), terms.kl.mean().item()
        for term, value in (("recon", recon), ("kl", kl), ("gradient", gradient_norm.item())):
            if not math.isfinite(value):
                raise NotANumber(f"step {self.step}: {term} is {value}, expected a finite number")
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, steps=self.steps, training=training)
        self.optimiser.step()
        self.step += 1
        self._move_average()
        return StepReport(step=self.step, n=x.shape[0], elbo=-(recon + kl), recon=recon, kl=kl)

    @torch.no_grad()
    def _move_average(self) -> None:
        # A young average keeps less of itself, else it would remember the initial weights for long.
        decay = min(self.training.average_decay, self.step / (self.step + 9))
        for average, weight in zip(self.average.parameters(), self.vae.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, but for its configs: tensors by name, the live ones."""
        tensors = {"step": torch.tensor(self.step), "noise": self.noise.get_state()}
        for name, weight in self.vae.named_parameters():
            tensors[f"weights.{name}"] = weight.detach()
            for key, value in self.optimiser.state[weight].items():
                tensors[f"optimiser.{key}.{name}"] = value
        for name, weight in self.average.named_parameters():
            tensors[f"average.{name}"] = weight
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Stand where the learner stood whose state this is; names, shapes and types are those of `state`."""
        self.step = int(tensors["step"])
        self.noise.set_state(tensors["noise"])
        for name, tensor in self.state().items():
            # In place, as the memory layout stays: with another one sums have another order, and other bits.
            tensor.copy_(tensors[name])


def pixels(images: Images) -> Tensor:
    """Pictures as a network takes them.

    Shapes:  (n, h, w, c) uint8 -> x (n, c, h, w) float32 in [0, 1], channels last in memory
    """
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255


def epoch_order(n: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits its pictures: a function of seed and epoch alone.

    Shapes:  -> (n,) int64
    """
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def learning_rate(step: int, *, steps: int, training: TrainConfig) -> float:
    """Up a straight line for the warm-up, then down half a cosine to 0 at the run's end.

    Source:  Loshchilov & Hutter 2017, equation 5, arXiv:1608.03983
    """
    warmup = min(1.0, (step + 1) / (training.lr_warmup_steps + 1))
    return training.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same bits on every run; the caller's settings come back."""
    memory: Any = torch.utils.deterministic  # its one attribute is made at run time, unseen by type checkers
    were = torch.are_deterministic_algorithms_enabled()
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory costs time, and only hides reads that these networks do not make.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(were)
        memory.fill_uninitialized_memory = filled
