"""Pictures to networks and back."""

import numpy as np
import torch

from model.pixels import pixels, to_image


def test_means_of_pixels_are_rounded_to_the_nearest_grey_level() -> None:
    x = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).reshape(1, 1, 2, 2)
    assert to_image(x).flatten().tolist() == [0, 0, 1, 255]


def test_what_goes_in_comes_out_as_it_was() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_image(pixels(images)).numpy(), images)
