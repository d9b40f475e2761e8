"""The `residual` networks: convolutions that add to what came before, normalised by groups, for best likelihoods."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.networks.heads import first_small
from model.networks.linear import Linear
from model.networks.norm import GroupNorm
from model.networks.pyramid import Shape, pyramid

_GROUPS = 8


class ResidualBlock(nn.Module):
    """A picture's features, plus what two convolutions make of them; at first nothing.

    In a decoder it may enlarge them on its way. What is the same for every copy of a pixel comes before that: the norm,
    its activation and the skip cost a quarter there.

    Shapes:  (n, before, h, w) -> (n, after, *size), size (h, w) or up to twice that
    Source:  He et al. 2016, section 3, arXiv:1603.05027; group norm: Wu & He 2018, arXiv:1803.08494
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = _norm(before), _norm(after)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        with torch.no_grad():
            for weight in self.second.parameters():
                weight.zero_()

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The sum."""
        change = _enlarged_and_convolved(_active(self.first_norm(features)), self.first, size)
        change = self.second(_active(self.second_norm(change)))
        added: Tensor = _enlarged(self.skip(features), size) + change
        return added


class ResidualBlocks(nn.Module):
    """Residual blocks in a row, the first of which may widen and enlarge.

    Shapes:  (n, before, h, w) -> (n, after, *size)
    """

    def __init__(self, before: int, after: int, *, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(before if i == 0 else after, after) for i in range(depth))

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Features after the last block."""
        for block in self.blocks:
            features = block(features, size)
        return features


class ResidualEncoder(nn.Module):
    """Pictures to what a posterior is made of.

    Shapes:  x (n, c, h, w) -> (n, outputs)
    """

    def __init__(self, shape: Shape, *, outputs: int) -> None:
        super().__init__()
        self.sizes = pyramid(shape.height, shape.width)
        widths = _widths(shape.features, len(self.sizes))
        self.pixels = nn.Conv2d(shape.channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlocks(width, width, depth=shape.depth) for width in widths)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.norm = _norm(widths[-1])
        self.head = first_small(widths[-1] * math.prod(self.sizes[-1]), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs, before any conversion or clamp."""
        # A copy: one channel counts as contiguous in either order, and torch would go on in the one with a slow norm.
        features = self.pixels(x.clone(memory_format=torch.contiguous_format))
        for blocks, size, down in zip(self.blocks, self.sizes, [*self.down, nn.Identity()], strict=True):
            features = down(blocks(features, size))
        outputs: Tensor = self.head(_active(self.norm(features)).flatten(1))
        return outputs


class ResidualDecoder(nn.Module):
    """Latents to logits of pictures, up through the sizes that the encoder came down.

    Shapes:  z (n, latent_dim) -> logits (n, c, h, w)
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sizes = pyramid(shape.height, shape.width)[::-1]
        widths = _widths(shape.features, len(self.sizes))[::-1]
        self.bottom_shape = (widths[0], *self.sizes[0])
        self.dense = Linear(shape.latent_dim, math.prod(self.bottom_shape))
        self.bottom = ResidualBlocks(widths[0], widths[0], depth=shape.depth)
        self.up = nn.ModuleList(
            ResidualBlocks(before, after, depth=shape.depth) for before, after in itertools.pairwise(widths)
        )
        self.norm = _norm(widths[-1])
        self.pixels = nn.Conv2d(widths[-1], shape.channels, 3, padding=1)
        with torch.no_grad():
            self.pixels.weight.mul_(0.1)

    @property
    def _layout(self) -> torch.memory_format:
        """The order of numbers in memory that the kernels have, and features are to have too."""
        kernel = self.bottom.get_parameter("blocks.0.second.weight")
        return torch.contiguous_format if kernel.is_contiguous() else torch.channels_last

    def forward(self, z: Tensor) -> Tensor:
        """Logits, as likelihoods read them."""
        features = self.dense(z).reshape(-1, *self.bottom_shape).contiguous(memory_format=self._layout)
        for blocks, size in zip([self.bottom, *self.up], self.sizes, strict=True):
            features = blocks(features, size)
        logits: Tensor = self.pixels(_active(self.norm(features)))
        return logits


def _widths(features: int, stages: int) -> list[int]:
    """The largest map has so many channels, all smaller ones twice as many."""
    return [features, *[2 * features] * (stages - 1)]


def _enlarged(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Twice the size, then cropped, as halving rounded up; features of this size already stay as they are."""
    if features.shape[-2:] == size:
        return features
    if not features.is_contiguous():
        return functional.interpolate(features, scale_factor=2.0, mode="nearest")[:, :, : size[0], : size[1]]
    # Of such features torch's `interpolate` makes copies in the other layout and back, which cost more than enlarging;
    # so does the gradient of `repeat_interleave`, a sum over pairs where this one adds two halves.
    wide = torch.stack((features, features), dim=4).flatten(3)
    return torch.stack((wide, wide), dim=3).flatten(2, 3)[:, :, : size[0], : size[1]]


def _enlarged_and_convolved(features: Tensor, convolution: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """What a 3×3 convolution makes of enlarged features, without making them where none is cropped.

    Enlarging by copies is a transposed convolution of stride 2 with four ones, and two convolutions in a row are one,
    whose kernel is the convolution of theirs: 4×4, and 4 products for each 9 that the 3×3 takes on the larger map.

    Shapes:  (n, before, h, w) -> (n, after, *size)
    """
    height, width = features.shape[-2:]
    if size != (2 * height, 2 * width):
        return functional.conv2d(_enlarged(features, size), convolution.weight, convolution.bias, padding=1)
    turned = functional.pad(convolution.weight.flip(-2, -1), (1, 1, 1, 1))
    # Four times a mean, to the bit what a divisor of 1 would give: torch's exporter to ONNX passes over the divisor.
    kernel = 4 * functional.avg_pool2d(turned, 2, stride=1).transpose(0, 1)
    return functional.conv_transpose2d(features, kernel, convolution.bias, stride=2, padding=1)


def _active(features: Tensor) -> Tensor:
    """Features after their activation, in place where nobody looks back at them."""
    return functional.silu(features, inplace=not torch.is_grad_enabled())


def _norm(channels: int) -> GroupNorm:
    """Eight groups, or fewer where they would be small: one value, as a lone channel of a 1×1 map, normalises to 0."""
    return GroupNorm(math.gcd(_GROUPS, channels, max(1, channels // 4)), channels)
