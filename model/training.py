"""How a VAE learns: the settings of a run, and one step after another, each repeatable."""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from model.errors import BadSetting, NotANumber
from model.machine import Machine, deterministic, exact_convolutions
from model.objectives import elbo_terms, importance_weighted, mean_loss
from model.parts import Images, rows_at_once
from model.pixels import to_x
from model.schedules import BETA_SCHEDULES, BetaSchedule, epoch_order, learning_rate, scheduled_beta
from model.vae import VAE, ModelConfig

PRECISIONS = ("fp32", "bf16")
# Pictures stay on a GPU if they take no more of its free memory than this.
_SHARE_OF_GPU = 0.5
_VALIDATION_ROWS = 500


@dataclass(frozen=True)
class TrainConfig:
    """What an experiment chose, saved with its weights.

    Raises:  BadSetting if a field lies outside its range, or two contradict each other
    """

    epochs: int = 30
    """Passes over the training pictures."""
    batch_size: int = 128
    """Pictures per step, over all processes."""
    accumulate: int = 1
    """Slices that a step's pictures are worked through in, so that large steps fit into memory."""
    learning_rate: float = 2e-3
    """AdamW's step size at its highest; it falls along a cosine to 0 at the last step."""
    lr_warmup_steps: int = 200
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Share of itself that a weight loses per step, times the learning rate."""
    beta: float = 1.0
    """Weight of the KL term after its warm-up; 0 trains without that term."""
    beta_schedule: BetaSchedule = "linear"
    """How beta comes about: `linear` or `cosine` once, or `cyclic`: rise, stay as long, begin anew."""
    kl_warmup_epochs: float = 2.0
    """Epochs in which the weight of the KL term rises from 0 to beta."""
    free_bits: float = 0.0
    """KL per latent dimension below which nothing presses it further, nats."""
    iw_samples: int = 1
    """Draws per picture of the importance-weighted bound, in the last phase."""
    iw_epochs: float = 0.0
    """Epochs at the end of the run that raise the importance-weighted bound instead of the elbo."""
    grad_clip: float = 10.0
    """Largest norm of the gradient, nats per data dimension; longer ones are shortened to it."""
    average_decay: float = 0.999
    """What the averaged weights keep of themselves at each step; 0 takes the last weights."""
    precision: str = "fp32"
    """What networks compute in: `fp32`, or `bf16` with weights, likelihood and KL in float32."""
    compile: bool = False
    """Whether torch.compile translates the networks first."""
    processes: int = 1
    """Processes that share each step."""
    seed: int = 0
    """Where all randomness starts: initial weights, order of pictures, noise."""

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("lr_warmup_steps", 0),
            ("iw_samples", 1),
            ("processes", 1),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
                raise BadSetting(f"{name}: got {value!r}, expected a whole number from {low}")
        for name in ("learning_rate", "grad_clip"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise BadSetting(f"{name}: got {value!r}, expected a number above 0")
        for name in ("beta", "kl_warmup_epochs", "weight_decay", "free_bits", "iw_epochs"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise BadSetting(f"{name}: got {value!r}, expected a number from 0")
        if not 0 <= self.average_decay < 1:
            raise BadSetting(f"average_decay: got {self.average_decay!r}, expected a number from 0 to below 1")
        for name, known in (("beta_schedule", BETA_SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise BadSetting(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if self.batch_size < self.accumulate * self.processes:
            expected = f"at least one for each of {self.accumulate} slices on each of {self.processes} processes"
            raise BadSetting(f"batch_size: got {self.batch_size}, expected {expected}")
        self._check_last_phase()

    def _check_last_phase(self) -> None:
        if self.iw_epochs > self.epochs:
            raise BadSetting(f"iw_epochs: got {self.iw_epochs}, expected at most all {self.epochs} epochs")
        if (self.iw_epochs > 0) != (self.iw_samples > 1):
            got = f"{self.iw_samples} for {self.iw_epochs} epochs"
            raise BadSetting(f"iw_samples: got {got}, expected 2 or more of them together with iw_epochs above 0")
        if self.iw_epochs > 0 and (self.beta != 1 or self.free_bits > 0):
            got = f"beta {self.beta} and free_bits {self.free_bits}"
            raise BadSetting(f"iw_epochs: got {got}, expected beta 1 and free_bits 0, or the bound would be none")


@dataclass(frozen=True)
class StepReport:
    """What one step saw, averaged over its pictures.

    Units:   elbo, recon, kl, bound in nats per picture; bound is the importance-weighted one of the last phase;
             gradient_norm before it was shortened
    """

    step: int
    n: int
    elbo: float
    recon: float
    kl: float
    bound: float | None
    beta: float
    learning_rate: float
    gradient_norm: float


class Learner:
    """A VAE in training: weights, their average, the optimiser, the noise generator and the step reached."""

    def __init__(
        self, model: ModelConfig, *, training: TrainConfig, n_images: int, machine: Machine | None = None
    ) -> None:
        self.machine = machine or Machine(torch.device("cpu"))
        _check_together(model, training, n_images=n_images, machine=self.machine)
        self.training = training
        self.n_images = n_images
        self.steps_per_epoch = math.ceil(n_images / training.batch_size)
        self.steps = self.steps_per_epoch * training.epochs
        self.step = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            self.vae = VAE(model).to(self.machine.device)
        self.average = copy.deepcopy(self.vae).eval().requires_grad_(False)
        self.optimiser = _adamw(self.vae, training)
        for weight in self.vae.parameters():
            # As AdamW would at its first step, but before it, so that a state has the same tensors at any step.
            moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            self.optimiser.state[weight] = {"step": torch.zeros((), device=weight.device), **moments}
        # A stream of its own for each process: the seed itself would draw the numbers again that made the weights.
        streams = np.random.default_rng(training.seed).integers(2**63, size=training.processes)
        self.noise = torch.Generator(self.machine.device).manual_seed(int(streams[self.machine.rank]))
        if training.compile:
            self.vae.encoder.compile()
            self.vae.decoder.compile()

    def start_from(self, vae: VAE) -> None:
        """Take the weights of another model of the same config, before the first step."""
        for mine in (self.vae, self.average):
            mine.load_state_dict(vae.state_dict())

    @property
    def images_seen(self) -> int:
        """Pictures that the steps so far have visited; every epoch's last batch holds what is left."""
        epoch, index = divmod(self.step, self.steps_per_epoch)
        return epoch * self.n_images + index * self.training.batch_size

    def run(self, images: Images) -> Iterator[StepReport]:
        """Steps from where the learner stands to the end of its run; stop between two whenever you like.

        Shapes:  images (n, h, w, c)
        Raises:  NotANumber when a term or the gradient stops being finite; BadSetting if networks cannot be compiled
        """
        self.vae.train()
        held = _held(images, self.machine.device)
        while self.step < self.steps:
            epoch, index = divmod(self.step, self.steps_per_epoch)
            order = epoch_order(self.n_images, seed=self.training.seed, epoch=epoch).to(held.device)
            for batch in torch.split(order, self.training.batch_size)[index:]:
                # Entered per step, as a generator must not leave a global setting behind while it waits.
                with deterministic(self.machine), _compiling():
                    report = self._step(held, batch)
                yield report

    @torch.no_grad()
    def validate(self, images: Images) -> dict[str, float]:
        """elbo, recon and kl of the averaged weights on pictures kept back, in the last phase also the bound; the same
        draws every time.

        Shapes:  images (n, h, w, c)
        Units:   nats per picture
        """
        generator = torch.Generator(self.machine.device).manual_seed(self.training.seed)
        recon = kl = bound = 0.0
        samples = self.training.iw_samples if self._in_last_phase(self.step - 1) else 1
        n = max(1, rows_at_once(self.vae.config.image_shape, most=_VALIDATION_ROWS) // samples)
        for rows in torch.split(torch.from_numpy(images), n):
            with deterministic(self.machine), exact_convolutions(), self._networks_precision():
                x = self.average.likelihood.draw(to_x(rows.to(self.machine.device)), generator)
                shape = (samples, len(x), self.vae.config.latent_dim)
                eps = torch.randn(shape, generator=generator, device=x.device)
                if samples > 1:
                    weighted = importance_weighted(self.average, x, eps)
                    terms = weighted.terms
                    bound += weighted.bound.double().sum().item() / len(images)
                else:
                    terms = elbo_terms(self.average, x, eps[0])
            recon += terms.recon.double().sum().item() / len(images)
            kl += terms.kl.double().sum().item() / len(images)
        found = {"elbo": -(recon + kl), "recon": recon, "kl": kl}
        return found | ({"bound": bound} if samples > 1 else {})

    def _step(self, held: Tensor, batch: Tensor) -> StepReport:
        training = self.training
        rate = learning_rate(
            self.step, steps=self.steps, warmup_steps=training.lr_warmup_steps, highest=training.learning_rate
        )
        beta = scheduled_beta(
            self.step,
            steps=self.steps,
            warmup_steps=round(training.kl_warmup_epochs * self.steps_per_epoch),
            beta=training.beta,
            schedule=training.beta_schedule,
        )
        self.optimiser.zero_grad()
        in_last_phase = self._in_last_phase(self.step)
        sums = torch.zeros(3, device=self.machine.device)
        for rows in batch[self.machine.rank :: self.machine.processes].tensor_split(training.accumulate):
            if len(rows) > 0:
                x = to_x(held[rows].to(self.machine.device))
                sums += self._accumulate(x, share=len(rows) / len(batch), beta=beta, in_last_phase=in_last_phase)
        for weight in self.vae.parameters():
            if weight.grad is None:  # as of a process that has no picture of this batch, and yet takes part
                weight.grad = torch.zeros_like(weight)
        sums = self._exchanged(sums)
        norm = nn.utils.clip_grad_norm_(self.vae.parameters(), training.grad_clip * math.prod(held.shape[1:]))
        recon, kl, bound, gradient_norm = torch.cat([sums, norm.reshape(1)]).tolist()
        for term, value in (("recon", recon), ("kl", kl), ("gradient", gradient_norm)):
            if not math.isfinite(value):
                raise NotANumber(f"step {self.step}: {term} is {value}, expected a finite number")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.step += 1
        self._move_average()
        return StepReport(
            step=self.step,
            n=len(batch),
            elbo=-(recon + kl),
            recon=recon,
            kl=kl,
            bound=bound if in_last_phase else None,
            beta=beta,
            learning_rate=rate,
            gradient_norm=gradient_norm,
        )

    def _in_last_phase(self, step: int) -> bool:
        return step >= self.steps - round(self.training.iw_epochs * self.steps_per_epoch)

    def _accumulate(self, x: Tensor, *, share: float, beta: float, in_last_phase: bool) -> Tensor:
        """Add these pictures' share to the gradient; their shares of recon, kl and bound: (3,)."""
        x = self.vae.likelihood.draw(x, self.noise)
        n, latent_dim = len(x), self.vae.config.latent_dim
        with self._networks_precision():
            if in_last_phase:
                shape = (self.training.iw_samples, n, latent_dim)
                weighted = importance_weighted(self.vae, x, self._normal(shape))
                terms, bound, loss = weighted.terms, weighted.bound.mean(), weighted.loss
            else:
                terms = elbo_terms(self.vae, x, self._normal((n, latent_dim)))
                bound = terms.elbo.mean()
                loss = mean_loss(terms, beta=beta, free_bits=self.training.free_bits)
        torch.autograd.backward(share * loss)
        return share * torch.stack([terms.recon.mean(), terms.kl.mean(), bound]).detach()

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.noise, device=self.machine.device)

    def _networks_precision(self) -> torch.autocast:
        return torch.autocast(self.machine.device.type, torch.bfloat16, enabled=self.training.precision == "bf16")

    def _exchanged(self, sums: Tensor) -> Tensor:
        """Sums over all processes; the gradient becomes its sum too, and running means become their mean."""
        if self.machine.processes == 1:
            return sums
        gradients = [weight.grad for weight in self.vae.parameters() if weight.grad is not None]
        means = list(self.vae.buffers())
        sums, *rest = self.machine.summed([sums, *gradients, *means])
        for gradient, total in zip(gradients, rest[: len(gradients)], strict=True):
            gradient.copy_(total)
        for mean, total in zip(means, rest[len(gradients) :], strict=True):
            mean.copy_(total / self.machine.processes)
        return sums

    @torch.no_grad()
    def _move_average(self) -> None:
        # A young average keeps less of itself, else it would remember the initial weights for long.
        decay = min(self.training.average_decay, self.step / (self.step + 9))
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(list(self.average.parameters()), list(self.vae.parameters()), self.step)
        for average, buffer in zip(self.average.buffers(), self.vae.buffers(), strict=True):
            average.copy_(buffer)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, but for its configs: tensors by name, the live ones where it has any."""
        tensors = {"step": torch.tensor(self.step), "noise": self.machine.gathered(self.noise.get_state())}
        tensors |= {f"weights.{name}": tensor for name, tensor in self.vae.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, weight in self.vae.named_parameters():
            for key, value in self.optimiser.state[weight].items():
                tensors[f"optimiser.{key}.{name}"] = value
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Stand where the learner stood whose state this is; names, shapes and types are those of `state`."""
        self.step = int(tensors["step"])
        # A copy: torch reads beside a view that does not start where its storage does.
        self.noise.set_state(tensors["noise"][self.machine.rank].clone())
        for name, tensor in self.state().items():
            # In place, as the memory layout stays: with another one sums have another order, and other bits.
            tensor.copy_(tensors[name])


@contextmanager
def _compiling() -> Iterator[None]:
    """While networks that are to be compiled first compute, which is when they are.

    Raises:  BadSetting if they cannot be, as without a C++ compiler
    """
    try:
        yield
    except RuntimeError as error:
        # Told by where they come from: to import the compiler takes seconds, and most runs never need it.
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        said = " ".join(str(error).partition("\n\n")[0].split())  # then it goes on about its own debugging
        raise BadSetting(f"compile: got {said}, expected what torch.compile needs, a C++ compiler above all") from error


def _adamw(vae: VAE, training: TrainConfig) -> torch.optim.AdamW:
    """The optimiser; biases, norms and a learned sigma do not decay, for their place is not near 0.

    Source:  Loshchilov & Hutter 2019, arXiv:1711.05101
    """
    matrices = [weight for weight in vae.parameters() if weight.ndim > 1]
    others = [weight for weight in vae.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _held(images: Images, device: torch.device) -> Tensor:
    """The pictures on the device if they fit, else where they are: (n, h, w, c) uint8."""
    tensor = torch.from_numpy(images)
    if device.type == "cpu":
        return tensor
    free, _ = torch.cuda.mem_get_info(device)
    return tensor.to(device) if tensor.nbytes <= _SHARE_OF_GPU * free else tensor


def _check_together(model: ModelConfig, training: TrainConfig, *, n_images: int, machine: Machine) -> None:
    """What a model, its training and the machine must agree on.

    Raises:  BadSetting
    """
    require_compatible(model, training)
    if training.processes != machine.processes:
        raise BadSetting(f"processes: got {machine.processes} on this machine, expected {training.processes}")
    if training.processes > n_images:
        raise BadSetting(f"processes: got {training.processes}, expected at most one per picture, {n_images}")


def require_compatible(model: ModelConfig, training: TrainConfig) -> None:
    """Nothing, if a model can be trained so.

    Raises:  BadSetting
    """
    if model.family == "autoencoder" and training.iw_epochs > 0:
        raise BadSetting("iw_epochs: got some with an autoencoder, expected 0: a point has no importance weights")
    if model.sigma == "optimal" and training.iw_epochs > 0:
        # Its closed form is of the elbo, whose gradient through it vanishes; through the weights it would not.
        raise BadSetting(
            "iw_epochs: got some with sigma optimal, which is so for the elbo; expected sigma learned, or 0"
        )
