"""Log-likelihood of pictures by importance sampling: log p(x) itself, of which the evidence lower bound is a part."""

import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model import fingerprints
from model.errors import BadCheckpoint, BadSetting, NotANumber
from model.files import write_whole
from model.gaussian import DiagonalGaussian, standard_log_prob
from model.parts import Images
from model.pixels import pixels
from model.vae import VAE

Precision = Literal["fp32", "bf16"]
Floats = npt.NDArray[np.float64]

# What papers report: 128 is quick, 5,000 is the field's custom since Burda et al. 2016.
SAMPLES = (128, 1_000, 5_000)

# Pictures encoded together.
_CHUNK = 16
_SAVE_EVERY_S = 10.0
# What one run of the decoder holds at most: (rows, values of its largest feature map). A CPU is quickest while maps
# stay in its cache; a GPU wants to be filled, and 2²⁷ values are 512 MiB of float32.
_CPU_BUDGET = (256, 2**21)
_GPU_BUDGET = (2**15, 2**27)
# Streams of random numbers that must not share any.
_CHOICE, _DATA, _NOISE = range(3)


@dataclass(frozen=True)
class NllProtocol:
    """What an estimate depends on; two with the same protocol are the same, whatever the batches they ran in."""

    samples: tuple[int, ...]
    """Draws of z after which an estimate is read off; the shorter ones are prefixes of the longest."""
    draws: int
    """Times that each picture is binarised or dequantised anew."""
    seed: int
    """Where the choice of pictures, their binarisations and the draws of z start."""
    n_images: int
    """Pictures measured: the first of a permutation by seed, or all."""
    of_images: int
    """Pictures that they were chosen from."""
    precision: Precision
    """Of the decoder: `fp32`, or `bf16` with densities in float32; the encoder, which runs once, is always fp32."""
    model_sha256: str
    """Hash of the model's config and tensors."""
    data_sha256: str
    """Hash of the pictures that were chosen from."""


@dataclass(frozen=True, eq=False)
class NllEstimate:
    """Estimates of log p(x), one for each binarisation, picture and number of samples.

    Shapes:  log_likelihood, effective_samples (draws, n, len(samples)) float64; indices (n,) of the pictures
    Units:   nats; samples
    """

    protocol: NllProtocol
    indices: npt.NDArray[np.int64]
    log_likelihood: Floats
    effective_samples: Floats

    def metrics(self) -> dict[str, Any]:
        """The figures for `metrics.json`: by number of samples, the negative log-likelihood and how far to trust it.

        `standard_error` is that of the mean over pictures, `standard_error_draws` that of the mean over binarisations
        (null where there was one), `sampling_error` what the draws of z scatter by themselves, which says nothing of
        the bias. Where a picture has few `effective_samples`, q misses its posterior: its estimate is too pessimistic,
        and `sampling_error` too small. Their mean hides those, so median and share of such pictures stand beside it.

        Units:   nats per picture
        """
        columns = range(len(self.protocol.samples))
        return {
            "protocol": dataclasses.asdict(self.protocol),
            **{str(self.protocol.samples[column]): self._column(column) for column in columns},
        }

    def _column(self, column: int) -> dict[str, float | None]:
        nll, effective = -self.log_likelihood[..., column], self.effective_samples[..., column]
        # The delta method: a log-mean-exp of s weights has variance 1 / effective - 1 / s.
        variance = np.maximum(1 / effective - 1 / self.protocol.samples[column], 0)
        return {
            "nll": float(nll.mean()),
            "standard_error": _standard_error(nll.mean(axis=0)),
            "standard_error_draws": _standard_error(nll.mean(axis=1)),
            "sampling_error": float(np.sqrt(variance.sum()) / variance.size),
            "effective_samples": float(effective.mean()),
            "effective_samples_median": float(np.median(effective)),
            "effective_samples_below_10": float((effective < 10).mean()),
        }


def protocol_of(
    vae: VAE,
    images: Images,
    *,
    n_images: int | None,
    draws: int,
    samples: Sequence[int],
    seed: int,
    precision: Precision,
) -> NllProtocol:
    """What an estimate of these pictures will be, before any of it is computed.

    Shapes:  images (n, h, w, c)
    Raises:  BadSetting if a setting lies outside its range, or the model is an autoencoder, which has no p(x)
    """
    if vae.config.family == "autoencoder":
        raise BadSetting("family: got autoencoder, expected vae: a code without a density gives no p(x)")
    protocol = NllProtocol(
        samples=tuple(samples),
        draws=draws,
        seed=seed,
        n_images=len(images) if n_images is None else n_images,
        of_images=len(images),
        precision=precision,
        model_sha256=fingerprints.of_model(vae),
        data_sha256=fingerprints.of_images(images),
    )
    _check(protocol)
    return protocol


def estimate(
    vae: VAE,
    images: Images,
    *,
    n_images: int | None = None,
    draws: int = 1,
    samples: Sequence[int] = SAMPLES,
    seed: int = 0,
    precision: Precision = "fp32",
    state: Path | None = None,
) -> NllEstimate:
    """log p(x) of n_images of the pictures (default: all), by importance sampling from q(z given x).

    With a state file it can be stopped at any time: the next call with the same protocol goes on where the last save
    was, one with another protocol says so and starts anew. Every random number is a function of seed, binarisation
    and the picture's place among images, so a picture's estimate depends neither on batches nor on the others chosen.

    Shapes:  images (n, h, w, c)
    Raises:  BadSetting as `protocol_of`; BadCheckpoint if the state file is something else; NotANumber if an estimate
             is not finite
    Source:  Burda et al. 2016, equation 8 and section 5, arXiv:1509.00519
    """
    protocol = protocol_of(vae, images, n_images=n_images, draws=draws, samples=samples, seed=seed, precision=precision)
    count = protocol.n_images
    indices = np.sort(_generator(seed, _CHOICE).permutation(len(images))[:count])
    progress = _Progress.start(protocol) if state is None else _Progress.resume(state, protocol)
    total = draws * count
    saved_s = time.monotonic()
    # disable=None: no bar where nobody watches.
    with (
        _arranged(vae.decoder, vae.decoding_format),
        tqdm(total=total, initial=progress.done, desc="log p(x)", unit=" pictures", disable=None) as bar,
    ):
        while progress.done < total:
            # Row by row through the first binarisation of all pictures, then through the second.
            keys = [(row // count, int(indices[row % count])) for row in range(total)[progress.done :][:_CHUNK]]
            progress.add(*_weigh(vae, images, keys, protocol))
            if state is not None and (progress.done == total or time.monotonic() - saved_s > _SAVE_EVERY_S):
                progress.save(state, protocol)
                saved_s = time.monotonic()
            bar.update(len(keys))
    shape = (draws, count, len(samples))
    return NllEstimate(
        protocol=protocol,
        indices=indices,
        log_likelihood=progress.log_likelihood.numpy().reshape(shape),
        effective_samples=progress.effective_samples.numpy().reshape(shape),
    )


@contextmanager
def _arranged(decoder: nn.Module, layout: torch.memory_format) -> Iterator[None]:
    """The same decoder, its kernels meanwhile in the order that a CPU decodes quickest with."""
    kept = [(weight, weight.data) for weight in decoder.parameters()]
    if all(weight.device.type == "cpu" for weight, _ in kept):
        decoder.to(memory_format=layout)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _log_weights(vae: VAE, x: Tensor, posterior: DiagonalGaussian, *, eps: Tensor, precision: Precision) -> Tensor:
    """log p(x, z) - log q(z given x) of the latents that eps makes: the mean of its exponential is p(x).

    Shapes:  x (n, c, h, w), eps (k, n, latent_dim) -> (k, n)
    Units:   nats
    Source:  Burda et al. 2016, equation 8, arXiv:1509.00519
    """
    z = posterior.sample(eps)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = vae.logits(z)
    return standard_log_prob(z) - posterior.log_prob(z) - vae.likelihood.recon(logits, x)


@torch.inference_mode()
def _weigh(vae: VAE, images: Images, keys: Sequence[tuple[int, int]], protocol: NllProtocol) -> tuple[Tensor, Tensor]:
    """Estimates and effective samples of a few pictures, each given as (binarisation, index).

    Shapes:  -> (len(keys), len(samples)) float64, twice
    """
    device = next(vae.parameters()).device
    x = torch.cat([_observed(vae, images, draw=draw, index=index, seed=protocol.seed) for draw, index in keys])
    x = x.to(device)
    posterior = vae.encode(x)
    assert isinstance(posterior, DiagonalGaussian), "protocol_of refuses a code without a density"  # noqa: S101
    most_rows, most_values = _CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET
    rows = max(1, min(most_rows, most_values // _values_per_row(vae, posterior.mu[:1])))
    longest = max(protocol.samples)
    together = max(1, rows // longest)
    estimates = []
    for first in range(0, len(keys), together):
        part = slice(first, first + together)
        some = DiagonalGaussian(posterior.mu[part], posterior.logvar[part])
        shape = (longest, posterior.mu.shape[-1])
        noise = [_generator(protocol.seed, _NOISE, *key).standard_normal(shape, np.float32) for key in keys[part]]
        eps = torch.from_numpy(np.stack(noise, axis=1)).to(device)
        runs = [
            _log_weights(vae, x[part], some, eps=run, precision=protocol.precision)
            for run in torch.split(eps, max(1, rows // len(noise)))
        ]
        estimates.append(_prefixes(torch.cat(runs).to("cpu", torch.float64), protocol.samples))
    log_likelihood, effective_samples = torch.cat(estimates, dim=-1).transpose(1, 2)
    for key, row in zip(keys, log_likelihood, strict=True):
        if not row.isfinite().all():
            raise NotANumber(f"picture {key[1]}: log p(x) is {row.tolist()}, expected finite numbers")
    return log_likelihood, effective_samples


def _values_per_row(vae: VAE, z: Tensor) -> int:
    """Values of the largest feature map that decoding one row passes through.

    Shapes:  z (1, latent_dim)
    """
    seen: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numel()))
        for module in vae.decoder.modules()
    ]
    vae.logits(z)
    for hook in hooks:
        hook.remove()
    return max(seen)


def _observed(vae: VAE, images: Images, *, draw: int, index: int, seed: int) -> Tensor:
    """One picture as training sees it: a binarisation or dequantisation of its own, where the likelihood has any.

    Shapes:  images (n, h, w, c) -> (1, c, h, w)
    """
    noise = torch.Generator().manual_seed(int(_generator(seed, _DATA, draw, index).integers(2**63)))
    return vae.likelihood.draw(pixels(images[index : index + 1]), noise)


def _prefixes(log_weights: Tensor, samples: Sequence[int]) -> Tensor:
    """The log of the mean weight, and how many equal weights would estimate it as well, over the first draws.

    Shapes:  log_weights (k, n) -> (2, len(samples), n)
    Source:  effective samples: Kong 1992, technical report 348, University of Chicago
    """
    sums = torch.stack([log_weights[:count].logsumexp(0) for count in samples])
    squares = torch.stack([(2 * log_weights[:count]).logsumexp(0) for count in samples])
    counts = torch.tensor(samples, dtype=sums.dtype).unsqueeze(-1)
    return torch.stack([sums - counts.log(), torch.exp(2 * sums - squares)])


@dataclass(eq=False)
class _Progress:
    """Rows that are done, and what was found for them.

    Shapes:  log_likelihood, effective_samples (draws * n, len(samples)) float64
    """

    done: int
    log_likelihood: Tensor
    effective_samples: Tensor

    @classmethod
    def start(cls, protocol: NllProtocol) -> "_Progress":
        shape = (protocol.draws * protocol.n_images, len(protocol.samples))
        return cls(0, torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def resume(cls, path: Path, protocol: NllProtocol) -> "_Progress":
        """Where the last save of this protocol stood; without one, at the start."""
        if not path.exists():
            return cls.start(protocol)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                stored = json.loads((file.metadata() or {})["protocol"])
                tensors = {name: file.get_tensor(name) for name in ("done", "log_likelihood", "effective_samples")}
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise BadCheckpoint(f"{path}: got something else, expected the state of an estimate ({error})") from error
        current = json.loads(_to_json(protocol))
        other = [name for name in current if stored.get(name) != current[name]]
        if other:
            tqdm.write(f"{path}: {', '.join(other)} differ from what it was saved with; starting anew", file=sys.stderr)
            return cls.start(protocol)
        return cls(int(tensors["done"]), tensors["log_likelihood"], tensors["effective_samples"])

    def add(self, log_likelihood: Tensor, effective_samples: Tensor) -> None:
        rows = slice(self.done, self.done + len(log_likelihood))
        self.log_likelihood[rows] = log_likelihood
        self.effective_samples[rows] = effective_samples
        self.done += len(log_likelihood)

    def save(self, path: Path, protocol: NllProtocol) -> None:
        tensors = {
            "done": torch.tensor(self.done),
            "log_likelihood": self.log_likelihood,
            "effective_samples": self.effective_samples,
        }
        write_whole(path, safetensors.torch.save(tensors, metadata={"protocol": _to_json(protocol)}))


def _to_json(protocol: NllProtocol) -> str:
    return json.dumps(dataclasses.asdict(protocol))


def _check(protocol: NllProtocol) -> None:
    rising = all(low < high for low, high in itertools.pairwise((0, *protocol.samples)))
    if not protocol.samples or not rising:
        raise BadSetting(f"samples: got {protocol.samples}, expected rising whole numbers from 1")
    if protocol.draws < 1:
        raise BadSetting(f"draws: got {protocol.draws}, expected a whole number from 1")
    if not 1 <= protocol.n_images <= protocol.of_images:
        raise BadSetting(f"n_images: got {protocol.n_images}, expected a whole number from 1 to {protocol.of_images}")
    if not 0 <= protocol.seed < 2**63:
        raise BadSetting(f"seed: got {protocol.seed}, expected a whole number from 0 to 2⁶³ - 1")
    if protocol.precision not in get_args(Precision):
        raise BadSetting(f"precision: got {protocol.precision!r}, expected one of {', '.join(get_args(Precision))}")


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _standard_error(values: Floats) -> float | None:
    """Of their mean; one value has none."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
