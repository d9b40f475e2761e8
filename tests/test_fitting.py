"""A model sees in service what it saw in training: both packages bring a picture to its size by one rule."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import data
from service import images


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURES: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
    "grey": (Image.fromarray(_noise(40, 31)), "PNG", {}),
    "exact": (Image.fromarray(_noise(12, 9)), "PNG", {}),
    "colour": (Image.fromarray(_noise(20, 37, 3)), "PNG", {}),
    "alpha": (Image.fromarray(_noise(33, 20, 4)), "PNG", {}),
    "grey and alpha": (Image.fromarray(_noise(33, 20, 2)), "PNG", {}),
    "palette": (Image.fromarray(_noise(20, 20, 3)).quantize(16), "PNG", {"transparency": 3}),
    "one bit": (Image.fromarray(_noise(20, 20)).convert("1"), "PNG", {}),
    "sixteen bits": (Image.fromarray(_noise(20, 20).astype(np.uint16) * 257), "PNG", {}),
    "turned": (Image.fromarray(_noise(20, 41, 3)), "JPEG", {"exif": _turned()}),
    "ink": (Image.fromarray(_noise(20, 20, 4), mode=None).convert("CMYK"), "TIFF", {}),
    "lab": (Image.frombytes("LAB", (30, 20), _noise(20, 30, 3).tobytes()), "TIFF", {}),
    "webp": (Image.fromarray(_noise(50, 20, 3)), "WEBP", {"lossless": True}),
    "gif": (Image.fromarray(_noise(50, 20)), "GIF", {}),
    "bmp": (Image.fromarray(_noise(5, 4, 3)), "BMP", {}),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_training_and_service_fit_a_picture_alike(name: str, channels: int, tmp_path: Path) -> None:
    picture, file_format, options = PICTURES[name]
    file = BytesIO()
    picture.save(file, file_format, **options)
    suffix = file_format.lower().replace("tiff", "tif")
    for copy in ("a", "b"):  # one to train on, one to test on
        (tmp_path / f"{copy}.{suffix}").write_bytes(file.getvalue())
    trained = data.read(tmp_path, size=(12, 9), channels=channels)
    opened = images.open_picture(file.getvalue(), where="body", max_pixels=10_000)
    served = images.to_rows([opened], shape=(12, 9, channels), where=["body"])
    assert served.std() > 10  # a picture of noise, not an empty one
    np.testing.assert_array_equal(trained.train[0], served[0])
