"""A folder that pythae saved as the source of a bundle: its own networks, known by their weights' keys and shapes."""

import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from export.frozen import CannotImport, Described, Frozen
from export.graphs import freeze, source
from export.importers import pythae_networks
from export.verify import finite
from model.likelihoods import Bernoulli, FixedSigma, Gaussian, Levels
from model.pixels import to_image, to_x
from service.manifest import ImageSpec, Likelihood, Source

CONFIG, WEIGHTS = "model_config.json", "model.pt"

# Of pythae 0.1.2, those whose encoder gives mu and log variance of a diagonal Gaussian that z is drawn from, and whose
# prior is N(0, I). The others move z on (flows, Hamiltonian steps), or have other latents (spheres, hyperbolic spaces,
# code books) or another prior (VAMP).
VAES = frozenset(
    {
        "Adversarial_AE_Config",
        "BetaTCVAEConfig",
        "BetaVAEConfig",
        "CIWAEConfig",
        "DisentangledBetaVAEConfig",
        "FactorVAEConfig",
        "INFOVAE_MMD_Config",
        "IWAEConfig",
        "MIWAEConfig",
        "MSSSIM_VAEConfig",
        "PIWAEConfig",
        "VAEConfig",
        "VAEGANConfig",
    }
)
AUTOENCODERS = frozenset({"AEConfig", "RAE_GP_Config", "RAE_L2_Config", "WAE_MMD_Config"})
# Trained on structural similarity and on a discriminator's features, which are no p(x given z).
_WITHOUT_LIKELIHOOD = frozenset({"MSSSIM_VAEConfig", "VAEGANConfig"})
_TRAINING_ONLY = "discriminator."

_LARGEST_AXIS = 2**16
_NAMED_AT_MOST = 3

_Network = TypeVar("_Network", bound=nn.Module)


class Encoder(nn.Module):
    """Pictures to the posterior, or to the code of an autoencoder.

    Shapes:  image (n, h, w, c) uint8 -> mu, logvar (n, latent_dim), or mu alone
    """

    def __init__(self, network: pythae_networks.Encoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """As the class says."""
        posterior: tuple[Tensor, Tensor] | Tensor = self.network(to_x(image))
        return posterior


class Decoder(nn.Module):
    """Latents to pictures.

    Shapes:  z (n, latent_dim) -> image (n, h, w, c) uint8
    """

    def __init__(self, network: pythae_networks.Decoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        return to_image(finite(torch.sigmoid(self.network(z))))


class Scorer(nn.Module):
    """log p(x given z).

    Shapes:  image (n, h, w, c) uint8, z (n, latent_dim) -> (n,) nats
    """

    def __init__(self, network: pythae_networks.Decoder, likelihood: Bernoulli | Gaussian) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    def forward(self, image: Tensor, z: Tensor) -> Tensor:
        """As the class says."""
        return -self.likelihood.recon(self.network(z), to_x(image))


def recognises(folder: Path) -> bool:
    """Whether a folder holds what pythae saved."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"name", "input_dim", "latent_dim"} <= set(config)


def load(folder: Path) -> Frozen:
    """What pythae saved, frozen. None of its pickles is executed.

    Raises:  CannotImport with one sentence
    """
    if pickles := sorted(path.name for path in folder.glob("*.pkl")):
        raise CannotImport(
            f"{folder / pickles[0]}: is a network as a pickle, which runs code when it is read, expected {CONFIG} and "
            f"{WEIGHTS} alone; if it is one of pythae's own, which pythae pickles too, delete it: {WEIGHTS} tells it"
        )
    config = _read_config(folder / CONFIG)
    encoder, decoder, network = networks(config, _read_tensors(folder / WEIGHTS), path=folder / WEIGHTS)
    has_posterior = encoder.log_var is not None
    likelihood = _likelihood(config) if has_posterior else None
    modules = (
        Encoder(encoder).eval(),
        Decoder(decoder).eval(),
        Scorer(decoder, likelihood).eval() if likelihood else None,
    )
    channels, height, width = encoder.x_shape
    image = ImageSpec(height=height, width=width, channels=channels)
    latent_shape = (config["latent_dim"],)
    return Frozen(
        graphs=freeze(*modules, image=image, latent_shape=latent_shape),
        source=source(*modules),
        described=Described(
            family="vae" if has_posterior else "autoencoder",
            image=image,
            latent_shape=latent_shape,
            prior="standard" if has_posterior else "none",
            # What read it is torch; pythae itself has no part in it.
            source=Source(kind="pythae", version=f"torch {version('torch')}", network=network),
            likelihood=_described(likelihood) if likelihood else None,
            scale_head="logvar" if has_posterior else None,
        ),
    )


def networks(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, path: Path
) -> tuple[pythae_networks.Encoder, pythae_networks.Decoder, str]:
    """The encoder and decoder that these tensors belong to, and their names; an autoencoder's encoder has no log_var.

    Raises:  CannotImport if pythae has none such, or a tensor is of other numbers or not finite
    """
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, tensor in tensors.items():
        part, _, rest = key.partition(".")
        if part in parts:
            parts[part][rest] = tensor
        elif not key.startswith(_TRAINING_ONLY):
            raise CannotImport(f"{path}: has the key {key}, expected those of an encoder and a decoder alone")
    shape, latent_dim = config["input_dim"], config["latent_dim"]
    has_logvar = "log_var.weight" in parts["encoder"]
    with torch.device("meta"):
        encoders = pythae_networks.encoders(shape, latent_dim=latent_dim, has_logvar=has_logvar)
        decoders = pythae_networks.decoders(shape, latent_dim=latent_dim)
    encoder_name, encoder = _filled("encoder", encoders, parts["encoder"], path=path)
    decoder_name, decoder = _filled("decoder", decoders, parts["decoder"], path=path)
    if not encoder.x_shape == decoder.x_shape == (shape or encoder.x_shape):
        raise CannotImport(
            f"{path}: the encoder takes pictures {encoder.x_shape}, the decoder gives {decoder.x_shape}, {CONFIG} says "
            f"{shape}, expected one shape (channels, height, width)"
        )
    if config["name"] in AUTOENCODERS or config.get("deterministic_posterior"):
        encoder.log_var = None  # one that was passed to an autoencoder may have it, and nothing has trained it
    elif not has_logvar:
        raise CannotImport(f"{path}: the encoder has no log_var, expected one in a {config['name']}")
    return encoder, decoder, f"{config['name']}: {encoder_name} encoder, {decoder_name} decoder"


def _filled(
    role: str, known: Mapping[str, _Network], tensors: Mapping[str, Tensor], *, path: Path
) -> tuple[str, _Network]:
    """The network that has these keys and shapes, with these tensors in it, and its name."""
    found = _entries(tensors)
    name = min(known, key=lambda name: len(_entries(known[name].state_dict()) ^ found))
    expected = _entries(known[name].state_dict())
    if found != expected:
        raise CannotImport(
            f"{path}: the {role} has {_listed(found - expected)} where the nearest of pythae's own, {name}, has "
            f"{_listed(expected - found)}, expected one of {', '.join(known)}"
        )
    own = known[name].state_dict()
    for key, tensor in tensors.items():
        if own[key].is_floating_point() and not tensor.is_floating_point():
            raise CannotImport(f"{path}: {role}.{key} is of {tensor.dtype}, expected floats")
    in_float32 = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    for key, tensor in in_float32.items():
        if not tensor.isfinite().all():
            raise CannotImport(f"{path}: {role}.{key} holds NaN or infinity, expected finite weights in float32")
    known[name].load_state_dict(in_float32, assign=True)
    return name, known[name]


def _entries(tensors: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...]]]:
    return {(key, tuple(tensor.shape)) for key, tensor in tensors.items()}


def _listed(entries: set[tuple[str, tuple[int, ...]]]) -> str:
    named = [f"{key} {shape}" for key, shape in sorted(entries)]
    more = [f"{len(named) - _NAMED_AT_MOST} more"] if len(named) > _NAMED_AT_MOST else []
    return ", ".join(named[:_NAMED_AT_MOST] + more) or "nothing"


def _likelihood(config: Mapping[str, Any]) -> Bernoulli | Gaussian | None:
    """p(x given z) that a VAE was trained with, None where its loss is none.

    `mse` is half the squared error: a Gaussian with sigma 1, as pythae's `get_nll` has it too. `bce` is the
    cross-entropy of pictures as they come: log p of a binary picture and, of a grey one, the mean of log p over its
    binarisations. pythae thresholds nothing, so neither do the graphs. An autoencoder's squared error is weighed
    against nothing, so that every sigma would do as well: it has no likelihood.
    """
    if config["name"] in _WITHOUT_LIKELIHOOD:
        return None
    if config.get("reconstruction_loss") == "mse":
        return Gaussian(FixedSigma(1.0), levels=Levels(dequantised=False))
    return Bernoulli() if config.get("reconstruction_loss") == "bce" else None


def _described(likelihood: Bernoulli | Gaussian) -> Likelihood:
    is_gaussian = isinstance(likelihood, Gaussian)
    return Likelihood(kind="gaussian", sigma=1.0) if is_gaussian else Likelihood(kind="bernoulli")


def _read_config(path: Path) -> dict[str, Any]:
    """The config, its input_dim (c, h, w), or None where the networks alone say it."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CannotImport(f"{path}: {error}, expected the config of a model of pythae") from error
    if not isinstance(config, dict):
        raise CannotImport(f"{path}: is {config!r:.100}, expected the config of a model of pythae")
    name, latent_dim, shape = (config.get(field) for field in ("name", "latent_dim", "input_dim"))
    if not isinstance(name, str) or name not in VAES | AUTOENCODERS:
        expected = "a diagonal Gaussian posterior and the prior N(0, I), or an autoencoder"
        raise CannotImport(
            f"{path}: name is {name!r:.100}, expected {expected}: {', '.join(sorted(VAES | AUTOENCODERS))}"
        )
    if not _is_axis(latent_dim):
        expected = f"a whole number from 1 to {_LARGEST_AXIS}"
        raise CannotImport(f"{path}: latent_dim is {latent_dim!r:.100}, expected {expected}")
    if shape is not None and not _is_x_shape(shape):
        expected = "[channels, height, width] of pictures, 1 or 3 channels"
        raise CannotImport(f"{path}: input_dim is {shape!r:.100}, expected {expected}")
    return {**config, "input_dim": shape and tuple(shape)}


def _is_axis(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_AXIS


def _is_x_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_axis, value)) and value[0] in (1, 3)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """What pythae saved with torch.save, read by torch's own unpickler of nothing but tensors."""
    try:
        _require_uncompressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CannotImport:
        raise
    except Exception as error:  # torch's unpickler trips in any way over a file that torch.save did not write
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotImport(f"{path}: {reason:.200}, expected tensors as torch.save writes them") from error
    tensors = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(_is_named_and_dense(key, tensors[key]) for key in tensors):
        expected = "expected those of a model of pythae"
        raise CannotImport(f"{path}: has no dense tensors by name under model_state_dict, {expected}")
    return tensors


def _require_uncompressed(path: Path) -> None:
    """Nothing, if a zip unpacks to no more than it has: torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    size_bytes = path.stat().st_size
    if unpacked_bytes > size_bytes:
        raise CannotImport(f"{path}: unpacks to {unpacked_bytes} bytes, expected no more than its own {size_bytes}")


def _is_named_and_dense(key: object, value: object) -> bool:
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(key, str) and is_dense
