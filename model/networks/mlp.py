"""The `mlp` networks: hidden layers whose units are gated, for pictures whose pixels have fixed places."""

import itertools

from torch import Tensor, nn
from torch.nn import functional

from model.networks.heads import first_small
from model.networks.linear import Linear
from model.networks.pyramid import Shape


class GatedLayer(nn.Module):
    """A linear layer times the sigmoid of another.

    Shapes:  (n, before) -> (n, after)
    Source:  Dauphin et al. 2017, section 2, arXiv:1612.08083
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.both = Linear(before, 2 * after)
        nn.init.kaiming_normal_(self.both.weight, nonlinearity="linear")
        nn.init.zeros_(self.both.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Units, each behind its gate."""
        return functional.glu(self.both(features), -1)


class MlpEncoder(nn.Module):
    """Pictures to what a posterior is made of.

    Shapes:  x (n, c, h, w) -> (n, outputs)
    """

    def __init__(self, shape: Shape, *, outputs: int) -> None:
        super().__init__()
        pixels = shape.channels * shape.height * shape.width
        self.layers = _layers(pixels, shape)
        self.head = first_small(shape.features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs, before any conversion or clamp."""
        outputs: Tensor = self.head(self.layers(x.flatten(1)))
        return outputs


class MlpDecoder(nn.Module):
    """Latents to logits of pictures.

    Shapes:  z (n, latent_dim) -> logits (n, c, h, w)
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.image_shape = (shape.channels, shape.height, shape.width)
        self.layers = _layers(shape.latent_dim, shape)
        self.head = first_small(shape.features, shape.channels * shape.height * shape.width)

    def forward(self, z: Tensor) -> Tensor:
        """Logits, as likelihoods read them."""
        logits: Tensor = self.head(self.layers(z))
        return logits.reshape(-1, *self.image_shape)


def _layers(inputs: int, shape: Shape) -> nn.Sequential:
    sizes = itertools.pairwise([inputs, *[shape.features] * shape.depth])
    return nn.Sequential(*(GatedLayer(before, after) for before, after in sizes))
