"""Paths between two latents, straight and along an arc, and how evenly something changes on the way."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST_SINE = 1e-6


@dataclass(frozen=True, eq=False)
class Smoothness:
    """How something changes along paths, a number for each.

    Shapes:  (n,)
    """

    unevenness: Tensor
    """Longest step over the mean step: 1 where every step is as long; 1 too where nothing moves at all."""
    length: Tensor
    """Sum of the steps."""


def linear(first: Tensor, last: Tensor, alpha: Tensor) -> Tensor:
    """The straight line, (1 - alpha) first + alpha last.

    Shapes:  first, last (n, d), alpha (m,) -> (n, m, d)
    """
    return torch.lerp(first[:, None], last[:, None], alpha[:, None])


def spherical(first: Tensor, last: Tensor, alpha: Tensor) -> Tensor:
    """The arc: directions turn evenly; linear where an end is zero or both point the same or the opposite way.

    Shapes:  first, last (n, d), alpha (m,) -> (n, m, d)
    Source:  Shoemake 1985, "Animating rotation with quaternion curves", section 3.3
    """
    a, b, share = first.double()[:, None], last.double()[:, None], alpha.double()[:, None]
    lengths = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)
    cosine = (a * b).sum(-1, keepdim=True) / torch.where(lengths > 0, lengths, 1.0)
    omega = torch.where(lengths > 0, cosine.clamp(-1, 1).arccos(), 0.0)
    has_arc = omega.sin() > _SMALLEST_SINE
    sine = torch.where(has_arc, omega.sin(), 1.0)
    arc = (((1 - share) * omega).sin() * a + (share * omega).sin() * b) / sine
    return torch.where(has_arc, arc.to(first.dtype), linear(first, last, alpha))


def smoothness(along: Tensor) -> Smoothness:
    """Of what was seen at each place of each path.

    Shapes:  along (n, m, d), m places with anything of length d -> (n,)
    """
    steps = along.double().diff(dim=1).norm(dim=-1)
    mean = steps.mean(1)
    return Smoothness(
        unevenness=torch.where(mean > 0, steps.amax(1) / torch.where(mean > 0, mean, 1.0), 1.0),
        length=steps.sum(1),
    )
