"""Which networks a preset's name stands for, and how large they are unless told otherwise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from model.networks.mlp import MlpDecoder, MlpEncoder
from model.networks.pyramid import Shape
from model.networks.residual import ResidualDecoder, ResidualEncoder
from model.networks.small import SmallDecoder, SmallEncoder


@dataclass(frozen=True)
class Preset:
    """An encoder, a decoder and their size.

    Units:   features in channels of the largest map, or units of a hidden layer; depth in residual blocks at each
             size, or hidden layers; largest_depth is where the networks have no more to give; memory_format is the
             order of a feature map's numbers that they learn quickest in on a CPU, decoding_format the one that they
             decode quickest in where no gradient is asked for
    """

    encoder: Callable[..., nn.Module]
    decoder: Callable[[Shape], nn.Module]
    features: int
    depth: int
    largest_depth: int
    memory_format: torch.memory_format
    decoding_format: torch.memory_format


PRESETS = {
    "small": Preset(
        SmallEncoder,
        SmallDecoder,
        features=32,
        depth=1,
        largest_depth=1,
        memory_format=torch.channels_last,
        decoding_format=torch.channels_last,
    ),
    # Plain convolutions gain from channels last; group norm loses ten times as much, but for `norm`, without gradients.
    "residual": Preset(
        ResidualEncoder,
        ResidualDecoder,
        features=32,
        depth=1,
        largest_depth=64,
        memory_format=torch.contiguous_format,
        decoding_format=torch.channels_last,
    ),
    "mlp": Preset(
        MlpEncoder,
        MlpDecoder,
        features=300,
        depth=2,
        largest_depth=64,
        memory_format=torch.preserve_format,
        decoding_format=torch.preserve_format,
    ),
}
