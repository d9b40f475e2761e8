"""The networks that the service is measured on. Their weights are random: what a row costs is not learnt.

Whatever measures them makes their bundles where they are missing; by hand,
`vae-export torch benchmarks.models:small BUNDLE`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A convolutional VAE as `vae-export torch` takes it.

    Shapes:  encode x (n, c, h, w) -> mu, logvar (n, latent_dim); decode z -> x_hat (n, c, h, w)
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        latent_dim: int,
        down: nn.Module,
        up: nn.Module,
        features: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_shape = image_shape, (latent_dim,)
        self.down = nn.Sequential(down, nn.Flatten())
        self.mu, self.logvar = (nn.Linear(math.prod(features), latent_dim) for _ in range(2))
        self.up = nn.Sequential(nn.Linear(latent_dim, math.prod(features)), nn.Unflatten(1, features), up, nn.Sigmoid())
        _spread(self)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior."""
        features = self.down(x)
        return self.mu(features), self.logvar(features)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x given z)."""
        x_hat: Tensor = self.up(z)
        return x_hat


class Residual(nn.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways.

        Shapes:  (n, channels, h, w) -> the same
        """
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def small(*, seed: int = 0) -> Network:
    """28×28 in grey: three convolutions of stride 2, 32 latents; 4.5 MFLOP to encode a picture."""
    torch.manual_seed(seed)
    return Network(
        image_shape=(28, 28, 1),
        latent_dim=32,
        down=_chain([_halve(1, 32), _halve(32, 64), _halve(64, 128)]),
        # 4 to 7, 14 and 28: the first enlarges by one less.
        up=_chain([_double(128, 64, kernel=3), _double(64, 32), nn.ConvTranspose2d(32, 1, 4, 2, 1)]),
        features=(128, 4, 4),
    )


def medium() -> Network:
    """64×64 in colour: three convolutions of stride 2, a residual block after each, 128 latents; 250 MFLOP."""
    torch.manual_seed(0)
    widths = (48, 96, 128)
    ins = (3, *widths)
    down = [part for i, o in zip(ins, widths, strict=False) for part in (_halve(i, o), Residual(o))]
    doubled = [part for i, o in ((128, 96), (96, 48)) for part in (Residual(i), _double(i, o))]
    return Network(
        image_shape=(64, 64, 3),
        latent_dim=128,
        down=_chain(down),
        up=_chain([*doubled, Residual(48), nn.ConvTranspose2d(48, 3, 4, 2, 1)]),
        features=(128, 8, 8),
    )


def other() -> Network:
    """As `small`, with other weights, so that answers tell the two apart."""
    return small(seed=1)


def slow() -> Network:
    """64×64 in colour: a convolution of stride 2, twenty at half the size, two more of stride 2; 6 GFLOP to encode."""
    torch.manual_seed(0)
    return Network(
        image_shape=(64, 64, 3),
        latent_dim=128,
        down=_chain([_halve(3, 128), *(_keep(128) for _ in range(20)), _halve(128, 128), _halve(128, 128)]),
        up=_chain([_double(128, 64), _double(64, 32), nn.ConvTranspose2d(32, 3, 4, 2, 1)]),
        features=(128, 8, 8),
    )


def _chain(parts: Sequence[nn.Module]) -> nn.Module:
    return nn.Sequential(*parts)


def _halve(channels: int, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, features, 3, stride=2, padding=1), nn.ReLU())


def _keep(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())


def _double(channels: int, features: int, *, kernel: int = 4) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(channels, features, kernel, stride=2, padding=1), nn.ReLU())


@torch.no_grad()
def _spread(network: nn.Module) -> None:
    """Weights such that decoded pictures are neither flat nor noise, since a PNG's cost hangs on what it shows."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
        elif isinstance(layer, nn.ConvTranspose2d):
            # Random over channels, interpolating over pixels.
            taps = torch.tensor([0.25, 0.75, 0.75, 0.25] if layer.kernel_size[0] == 4 else [0.5, 1, 0.5])
            mixed = torch.randn(layer.in_channels, layer.out_channels, 1, 1) * math.sqrt(2 / layer.in_channels)
            layer.weight.copy_(mixed * torch.outer(taps, taps))
