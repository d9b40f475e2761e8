"""The `small` networks: plain convolutions, upsampling and ReLU, quick on a CPU and friendly to frozen graphs."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.linear import Linear
from model.networks.pyramid import Shape, pyramid

_WIDEST = 3


class SmallEncoder(nn.Module):
    """Pictures to what a posterior is made of.

    Shapes:  x (n, c, h, w) -> (n, outputs)
    """

    def __init__(self, shape: Shape, *, outputs: int) -> None:
        super().__init__()
        sizes = pyramid(shape.height, shape.width)
        widths = _widths(shape.features, len(sizes) - 1)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise([shape.channels, *widths])
        )
        self.bottom = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.head = Linear(widths[-1] * sizes[-1][0] * sizes[-1][1], outputs)
        _initialise(self, head=self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs, before any conversion or clamp."""
        for convolution in self.down:
            x = functional.relu(convolution(x))
        outputs: Tensor = self.head(functional.relu(self.bottom(x)).flatten(1))
        return outputs


class SmallDecoder(nn.Module):
    """Latents to logits of pictures, up through the sizes that the encoder came down.

    Shapes:  z (n, latent_dim) -> logits (n, c, h, w)
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = pyramid(shape.height, shape.width)[::-1]
        widths = _widths(shape.features, len(self.sizes) - 1)[::-1]
        self.bottom_shape = (widths[0], *self.sizes[0])
        self.dense = Linear(shape.latent_dim, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.bottom = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise([*widths, widths[-1]])
        )
        self.pixels = nn.Conv2d(widths[-1], shape.channels, 3, padding=1)
        _initialise(self, head=self.pixels)

    def forward(self, z: Tensor) -> Tensor:
        """Logits, as likelihoods read them."""
        features = functional.relu(self.dense(z)).reshape(-1, *self.bottom_shape)
        features = functional.relu(self.bottom(features))
        for convolution, (height, width) in zip(self.up, self.sizes[1:], strict=True):
            # Twice the size, then cropped, as halving rounded up.
            larger = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = functional.relu(convolution(larger[:, :, :height, :width]))
        logits: Tensor = self.pixels(features)
        return logits


def _widths(features: int, stages: int) -> list[int]:
    return [features * min(stage + 1, _WIDEST) for stage in range(stages)]


def _initialise(network: nn.Module, *, head: nn.Module) -> None:
    """He's initialisation, which keeps the scale through ReLU; the head starts small, so that q starts near N(0, I).

    Source:  He et al. 2015, section 2.2, arXiv:1502.01852
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for weight in head.parameters():
            weight.mul_(0.1)
