"""The networks that are measured are of the sizes that docs and figures speak of."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import models


@pytest.mark.parametrize(
    ("name", "shape", "latent_dim", "mflop"),
    [("small", (28, 28, 1), 32, 4.5), ("medium", (64, 64, 3), 128, 250), ("slow", (64, 64, 3), 128, 6150)],
)
def test_a_network_takes_and_gives_what_it_says(
    name: str, shape: tuple[int, int, int], latent_dim: int, mflop: float
) -> None:
    network = getattr(models, name)()
    height, width, channels = shape
    assert (network.image_shape, network.latent_shape) == (shape, (latent_dim,))
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counted:
            mu, logvar = network.encode(torch.rand(1, channels, height, width))
        x_hat = network.decode(torch.randn(4, latent_dim))
    assert mu.shape == logvar.shape == (1, latent_dim)
    assert x_hat.shape == (4, channels, height, width)
    assert counted.get_total_flops() / 1e6 == pytest.approx(mflop, rel=0.05)
    # Neither flat nor noise: a PNG of it costs what a picture's does.
    assert x_hat.std() > 0.03
    assert (x_hat[..., 1:] - x_hat[..., :-1]).abs().mean() < x_hat.std()


def test_weights_are_the_same_each_time() -> None:
    first, again = models.small().state_dict(), models.small().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_other_small_network_has_other_weights() -> None:
    first, other = models.small().state_dict(), models.other().state_dict()
    assert first.keys() == other.keys()
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].any())
