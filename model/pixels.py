"""Pictures as people have them and as networks do: uint8, channels last, and float32 in [0, 1], channels first."""

import torch
from torch import Tensor

from model.parts import Images


def pixels(images: Images) -> Tensor:
    """Pictures as networks take them.

    Shapes:  (n, h, w, c) uint8 -> x (n, c, h, w) float32 in [0, 1], channels last in memory
    """
    return to_x(torch.from_numpy(images))


def to_x(images: Tensor) -> Tensor:
    """As `pixels`, of a tensor on any device.

    Shapes:  (n, h, w, c) uint8 -> x (n, c, h, w) float32 in [0, 1], channels last in memory
    """
    return images.permute(0, 3, 1, 2).to(torch.float32) / 255


def to_image(x: Tensor) -> Tensor:
    """Means of pixels as pixels, rounded to the nearest grey level.

    Shapes:  x (n, c, h, w) in [0, 1] -> (n, h, w, c) uint8
    """
    return torch.round(x * 255).to(torch.uint8).permute(0, 2, 3, 1)
