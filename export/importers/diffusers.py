"""What diffusers saved of an AutoencoderKL as the source of a bundle: pictures of any size, spatial latents."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor, nn

from export.frozen import CannotImport, Described, Frozen
from export.graphs import freeze, source
from export.importers import weights
from export.verify import finite
from model.pixels import to_image, to_x
from service.manifest import ImageSpec, Source

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# A variant has its name between the two parts, as fp16.
_ANY_VARIANT, _ANY_PICKLE = "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin"
CLASS = "AutoencoderKL"
# Where a whole pipeline keeps its VAE.
_OF_A_PIPELINE = "vae"

# Pixels: a multiple of every stride that a config can have.
MAX_SIDE = 1024
# A config says at which size it was trained, 1024 for some: more than a request that names no size should cost.
_LARGEST_DEFAULT_SIDE = 256
# What DiagonalGaussianDistribution of diffusers cuts logvar to.
LOGVAR_RANGE = (-30.0, 20.0)

# Files of earlier versions of diffusers call the layers of attention by other names.
_EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_EARLIER_NAME = re.compile(rf"(?<=\.)(attentions\.\d+)\.({'|'.join(_EARLIER_NAMES)})(?=\.)")

_Channels = Annotated[int, Field(ge=1, le=2**14)]
_DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
_UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]


class Config(BaseModel):
    """What `config.json` says of an AutoencoderKL. The defaults stand for fields that older files do not have."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    in_channels: Literal[1, 3]
    out_channels: Literal[1, 3]
    down_block_types: tuple[_DownBlock, ...]
    up_block_types: tuple[_UpBlock, ...]
    block_out_channels: tuple[_Channels, ...] = Field(min_length=1, max_length=8)
    layers_per_block: int = Field(ge=1, le=16)
    act_fn: Literal["swish", "silu", "mish", "gelu", "relu"]
    latent_channels: _Channels
    norm_num_groups: int = Field(ge=1)
    sample_size: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    scaling_factor: float | None = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @field_validator("out_channels")
    @classmethod
    def _as_they_came(cls, out_channels: int, info: ValidationInfo) -> int:
        if out_channels != (expected := info.data.get("in_channels")):
            raise ValueError(f"expected {expected}, as in_channels")
        return out_channels

    @field_validator("up_block_types", "block_out_channels")
    @classmethod
    def _as_many(cls, blocks: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(blocks) != (expected := len(info.data.get("down_block_types", ()))):
            raise ValueError(f"expected {expected}, as many as down_block_types")
        return blocks

    @field_validator("norm_num_groups")
    @classmethod
    def _in_equal_parts(cls, groups: int, info: ValidationInfo) -> int:
        if any(channels % groups for channels in info.data.get("block_out_channels", ())):
            raise ValueError(f"expected a divisor of block_out_channels {info.data['block_out_channels']}")
        return groups

    @property
    def stride(self) -> int:
        """Pixels to one place of a latent: every block but the last halves height and width."""
        return 1 << (len(self.block_out_channels) - 1)

    @property
    def image(self) -> ImageSpec:
        """Pictures of any size up to MAX_SIDE."""
        trained_at = self.sample_size if isinstance(self.sample_size, int) else min(self.sample_size)
        default_side = min(trained_at, _LARGEST_DEFAULT_SIDE)
        return ImageSpec(
            height=None,
            width=None,
            channels=self.in_channels,
            stride=self.stride,
            default_side=max(default_side // self.stride, 1) * self.stride,
            max_side=MAX_SIDE,
        )


class Encoder(nn.Module):
    """Pictures to the posterior.

    Shapes:  image (n, h, w, c) uint8 -> mu, logvar (n, latent_channels, h / stride, w / stride)
    """

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""
        (posterior,) = self.vae.encode(to_x(image) * 2 - 1, return_dict=False)
        return posterior.mean, posterior.logvar


class Decoder(nn.Module):
    """Latents to pictures.

    Shapes:  z (n, latent_channels, h / stride, w / stride) -> image (n, h, w, c) uint8
    """

    def __init__(self, vae: "AutoencoderKL") -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        (decoded,) = self.vae.decode(z, return_dict=False)
        x_hat = (finite(decoded) / 2 + 0.5).clamp(0, 1)
        return to_image(x_hat)


def recognises(folder: Path) -> bool:
    """Whether a folder holds a model that diffusers saved, of whatever class, or a pipeline with a VAE."""
    try:
        config = json.loads((_home(folder) / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "_class_name" in config


def load(folder: Path) -> Frozen:
    """An AutoencoderKL, frozen for pictures of any height and width up to MAX_SIDE.

    Raises:  CannotImport with one sentence
    """
    home = _home(folder)
    config = read_config(home / CONFIG)
    vae = network(home, config)
    modules = Encoder(vae).eval(), Decoder(vae).eval(), None
    image, latent_shape = config.image, (config.latent_channels, None, None)
    return Frozen(
        graphs=freeze(*modules, image=image, latent_shape=latent_shape),
        source=source(*modules),
        described=Described(
            family="vae",
            image=image,
            latent_shape=latent_shape,
            prior="standard",
            source=Source(kind="diffusers", version=version("diffusers"), network=CLASS),
            scale_head="logvar",
            logvar_range=LOGVAR_RANGE,
            latent_scale=config.scaling_factor,
            latent_shift=config.shift_factor,
        ),
    )


def read_config(path: Path) -> Config:
    """What a file says of an AutoencoderKL.

    Raises:  CannotImport if it is of another class, or the class has no such model
    """
    try:
        content = path.read_bytes()
        fields = json.loads(content)
    except OSError as error:
        raise CannotImport(f"{path}: {error.strerror or error}, expected the config of an {CLASS}") from error
    except (ValueError, RecursionError) as error:
        raise CannotImport(f"{path}: not JSON ({error}), expected the config of an {CLASS}") from error
    found = fields.get("_class_name") if isinstance(fields, dict) else None
    if found != CLASS:
        raise CannotImport(f"{path}: _class_name is {found!r}, expected {CLASS!r}")
    try:
        return Config.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join([str(path), *map(str, first["loc"])])
        got = "nothing" if first["type"] == "missing" else f"{first['input']!r:.200}"
        expected = first["msg"].removeprefix("Value error, ")
        raise CannotImport(f"{place}: got {got}, {expected[0].lower()}{expected[1:]}") from error


def network(home: Path, config: Config) -> "AutoencoderKL":
    """The model of a config with the weights beside it, made from these two files and nothing else.

    Raises:  CannotImport if diffusers is not installed, the weights are not those of the config, or several might be
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise CannotImport(f"{home}: to read it takes diffusers ({error}), expected vaeserve[import]") from error
    path = _weights(home)
    tensors = {_current_name(name): tensor for name, tensor in weights.read(path).items()}
    with torch.device("meta"):  # no memory before the shapes are known to be right
        vae = AutoencoderKL(**config.model_dump())
    vae.load_state_dict(weights.matched(tensors, vae, path=path), assign=True)
    return vae.eval().requires_grad_(False)


def _home(folder: Path) -> Path:
    """The folder of the VAE itself."""
    inner = folder / _OF_A_PIPELINE
    return inner if (inner / CONFIG).is_file() and not (folder / CONFIG).exists() else folder


def _weights(home: Path) -> Path:
    """The file of weights by its plain name, or by a variant's where there is no other."""
    found = sorted(path.name for path in home.glob(_ANY_VARIANT))
    if WEIGHTS not in found and len(found) > 1:
        raise CannotImport(f"{home}: got {', '.join(found)}, expected {WEIGHTS}, or one of them alone")
    pickles = sorted(home.glob(_ANY_PICKLE))
    if pickles and not found:
        raise CannotImport(
            f"{pickles[0]}: is a pickle, which may run code when it is read, expected {WEIGHTS}, "
            "which save_pretrained of diffusers writes"
        )
    return home / (found[0] if len(found) == 1 else WEIGHTS)


def _current_name(name: str) -> str:
    return _EARLIER_NAME.sub(lambda found: f"{found[1]}.{_EARLIER_NAMES[found[2]]}", name)
