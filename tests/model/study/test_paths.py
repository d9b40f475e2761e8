"""Paths: the service's own arcs, and steps counted by hand."""

import numpy as np
import pytest
import torch

from model.study.paths import linear, smoothness, spherical
from service import latents

ALPHA = torch.linspace(0, 1, 7)


def test_arcs_and_lines_are_those_of_the_service() -> None:
    generator = torch.Generator().manual_seed(0)
    first, last = torch.randn(2, 20, 5, generator=generator)
    for row in range(20):
        ends = first[row].numpy(), last[row].numpy(), ALPHA.numpy()
        np.testing.assert_allclose(linear(first, last, ALPHA)[row].numpy(), latents.linear(*ends), atol=1e-6)
        np.testing.assert_allclose(spherical(first, last, ALPHA)[row].numpy(), latents.slerp(*ends), atol=1e-6)


@pytest.mark.parametrize(
    ("first", "last"), [([0.0, 0.0], [1.0, 2.0]), ([1.0, 0.0], [3.0, 0.0]), ([1.0, 1.0], [-2.0, -2.0])]
)
def test_where_there_is_no_arc_the_path_is_straight(first: list[float], last: list[float]) -> None:
    ends = torch.tensor([first]), torch.tensor([last])
    torch.testing.assert_close(spherical(*ends, ALPHA), linear(*ends, ALPHA))


def test_steps_are_compared_with_their_mean() -> None:
    uneven = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0]])  # steps of 5 and 1
    even = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    still = torch.ones(3, 2)
    found = smoothness(torch.stack([uneven, even, still]))
    assert found.unevenness.tolist() == pytest.approx([5 / 3, 1, 1])
    assert found.length.tolist() == pytest.approx([6, 4, 0])
