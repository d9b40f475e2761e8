"""Encoders and decoders: plain convolutions, upsampling and ReLU, for pictures of any size."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST_SIDE = 4
_WIDEST = 3


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes (h, w) that a picture passes through, its own first, halved until the smaller side is at most 4.

    Halving rounds up; there is always at least one.
    """
    sizes = [(height, width)]
    while len(sizes) == 1 or min(sizes[-1]) > _SMALLEST_SIDE:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


class SmallEncoder(nn.Module):
    """Pictures to the two numbers per latent dimension that make a posterior.

    Shapes:  x (n, c, h, w) -> mu, logvar (n, latent_dim)
    """

    def __init__(self, *, height: int, width: int, channels: int, channels_base: int, latent_dim: int) -> None:
        super().__init__()
        sizes = pyramid(height, width)
        widths = _widths(channels_base, len(sizes) - 1)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in itertools.pairwise([channels, *widths])
        )
        self.bottom = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        features = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.mu = nn.Linear(features, latent_dim)
        self.logvar = nn.Linear(features, latent_dim)
        _initialise(self, heads=(self.mu, self.logvar))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, before any clamp."""
        for convolution in self.down:
            x = functional.relu(convolution(x))
        features = functional.relu(self.bottom(x)).flatten(1)
        return self.mu(features), self.logvar(features)


class SmallDecoder(nn.Module):
    """Latents to logits of pictures, up through the sizes that the encoder came down.

    Shapes:  z (n, latent_dim) -> logits (n, c, h, w)
    """

    def __init__(self, *, height: int, width: int, channels: int, channels_base: int, latent_dim: int) -> None:
        super().__init__()
        self.sizes = pyramid(height, width)[::-1]
        widths = _widths(channels_base, len(self.sizes) - 1)[::-1]
        self.bottom_shape = (widths[0], *self.sizes[0])
        self.dense = nn.Linear(latent_dim, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.bottom = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.up = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise([*widths, widths[-1]])
        )
        self.pixels = nn.Conv2d(widths[-1], channels, 3, padding=1)
        _initialise(self, heads=(self.pixels,))

    def forward(self, z: Tensor) -> Tensor:
        """Logits, whose sigmoid is the mean of p(x given z)."""
        features = functional.relu(self.dense(z)).reshape(-1, *self.bottom_shape)
        features = functional.relu(self.bottom(features))
        for convolution, (height, width) in zip(self.up, self.sizes[1:], strict=True):
            # Twice the size, then cropped, as halving rounded up.
            larger = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = functional.relu(convolution(larger[:, :, :height, :width]))
        logits: Tensor = self.pixels(features)
        return logits


def _widths(channels_base: int, stages: int) -> list[int]:
    return [channels_base * min(stage + 1, _WIDEST) for stage in range(stages)]


def _initialise(network: nn.Module, *, heads: tuple[nn.Module, ...]) -> None:
    """He's initialisation, which keeps the scale through ReLU; heads start small, so that q starts near N(0, I).

    Source:  He et al. 2015, section 2.2, arXiv:1502.01852
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for head in heads:
            for weight in head.parameters():
                weight.mul_(0.1)
