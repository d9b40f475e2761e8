"""The sizes that a picture passes through on its way down to a latent, and that its decoder climbs again."""

from dataclasses import dataclass

_SMALLEST_SIDE = 4


@dataclass(frozen=True)
class Shape:
    """What networks are built for: pictures of one size, latents of one length.

    Units:   features in channels of the largest map, or units of a hidden layer; depth in blocks or layers
    """

    height: int
    width: int
    channels: int
    latent_dim: int
    features: int
    depth: int


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes (h, w) that a picture passes through, its own first, halved until the smaller side is at most 4.

    Halving rounds up; there is always at least one.
    """
    sizes = [(height, width)]
    while len(sizes) == 1 or min(sizes[-1]) > _SMALLEST_SIDE:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes
