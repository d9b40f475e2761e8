"""A model sees in service what it saw in training: both packages bring a picture to its size by one rule."""

import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from model import data, fitting
from model.errors import BadData
from model.fitting import PictureFile
from service import images
from service.errors import Problem
from tests.service.reading import open_picture

SHAPE = (12, 9)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def _encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
        f' tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def _half_clear(picture: Image.Image) -> Image.Image:
    """The picture with an alpha of noise."""
    clear = picture.copy()
    clear.putalpha(Image.fromarray(_noise(picture.height, picture.width)))
    return clear


def _animation() -> bytes:
    first, second = (Image.fromarray(_noise(30, 20 + frame)[:, :20]).quantize(16) for frame in (0, 1))
    return _encoded(first, "GIF", save_all=True, append_images=[second], transparency=2)


GREY, COLOUR, INK = Image.fromarray(_noise(40, 31)), Image.fromarray(_noise(20, 37, 3)), Image.new("CMYK", (20, 20))
INK.putdata([tuple(ink) for ink in _noise(400, 4).tolist()])

PICTURES: dict[str, bytes] = {
    "grey": _encoded(GREY, "PNG"),
    "exact": _encoded(Image.fromarray(_noise(*SHAPE)), "PNG"),
    "exact colour": _encoded(Image.fromarray(_noise(*SHAPE, 3)), "PNG"),
    "colour": _encoded(COLOUR, "PNG"),
    "one pixel": _encoded(Image.fromarray(np.array([[[200, 30, 90]]], np.uint8)), "PNG"),
    "very wide": _encoded(Image.fromarray(_noise(3, 400, 3)), "PNG"),
    "very high": _encoded(Image.fromarray(_noise(400, 3)), "PNG"),
    "large": _encoded(Image.fromarray(_noise(25, 25, 3).repeat(30, axis=0).repeat(40, axis=1)), "PNG"),
    "smaller": _encoded(Image.fromarray(_noise(5, 4, 3)), "PNG"),
    "alpha": _encoded(_half_clear(COLOUR), "PNG"),
    "grey and alpha": _encoded(_half_clear(GREY), "PNG"),
    "palette": _encoded(COLOUR.quantize(16), "PNG"),
    "palette with a clear colour": _encoded(COLOUR.quantize(16), "PNG", transparency=3),
    "palette with alphas": _encoded(COLOUR.quantize(16), "PNG", transparency=bytes(range(0, 256, 16))),
    "colour with a clear colour": _encoded(COLOUR, "PNG", transparency=COLOUR.getpixel((4, 4))),
    "grey with a clear grey": _encoded(GREY, "PNG", transparency=GREY.getpixel((4, 4))),
    "one bit": _encoded(GREY.convert("1"), "PNG"),
    "sixteen bits": _encoded(Image.fromarray(_noise(20, 20).astype(np.uint16) * 257 + 100), "PNG"),
    "sixteen bits of tiff": _encoded(Image.fromarray(_noise(20, 20).astype(np.uint16) * 256 + 255), "TIFF"),
    "sixteen bits, big end first": _encoded(Image.frombytes("I;16B", (20, 20), _noise(400, 2).tobytes()), "TIFF"),
    "jpeg": _encoded(COLOUR, "JPEG"),
    "grey jpeg": _encoded(GREY, "JPEG"),
    "ink": _encoded(INK, "JPEG"),
    "ink of tiff": _encoded(INK, "TIFF"),
    "lab": _encoded(Image.frombytes("LAB", (30, 20), _noise(20, 30, 3).tobytes()), "TIFF"),
    "video colours": _encoded(COLOUR.convert("YCbCr"), "TIFF"),
    "alpha of tiff": _encoded(_half_clear(COLOUR), "TIFF"),
    "webp": _encoded(COLOUR, "WEBP", lossless=True),
    "webp with alpha": _encoded(_half_clear(COLOUR), "WEBP"),
    "gif": _encoded(GREY, "GIF"),
    "animation with a clear colour": _animation(),
    "bmp": _encoded(Image.fromarray(_noise(5, 4, 3)), "BMP"),
    "turned tiff": _encoded(COLOUR, "TIFF", exif=_turned(6)),
    "turned webp": _encoded(COLOUR, "WEBP", exif=_turned(8)),
    "turned in xmp": _encoded(COLOUR, "JPEG", xmp=_xmp(6)),
    "turned with alpha": _encoded(_half_clear(COLOUR), "PNG", exif=_turned(5)),
    "an orientation that there is not": _encoded(COLOUR, "JPEG", exif=_turned(9)),
} | {f"turned {orientation}": _encoded(COLOUR, "JPEG", exif=_turned(orientation)) for orientation in range(1, 9)}

BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "truncated png": PICTURES["large"][: len(PICTURES["large"]) // 2],
    "truncated jpeg": PICTURES["jpeg"][: len(PICTURES["jpeg"]) // 2],
    "header only": PICTURES["colour"][:33],
    "another format": _encoded(COLOUR, "PPM"),
    "floats": _encoded(Image.fromarray(_noise(20, 20).astype(np.float32)), "TIFF"),
    "whole numbers": _encoded(Image.fromarray(_noise(20, 20).astype(np.int32)), "TIFF"),
}


def _served(content: bytes, *, channels: int) -> np.ndarray:
    before = Image.MAX_IMAGE_PIXELS
    opened = open_picture(content, where="body", max_pixels=2_000_000)
    Image.MAX_IMAGE_PIXELS = before  # training has another bound, in a process of its own
    return images.to_rows([opened], shape=(*SHAPE, channels), where=["body"])[0]


def _trained(content: bytes, *, channels: int) -> np.ndarray:
    file = PictureFile(name="picture", label=None, open=lambda: BytesIO(content))
    parts, _ = fitting.fit("pictures", {"train": [file]}, size=SHAPE, channels=channels)
    return parts["train"].images[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PICTURES)
def test_training_and_service_fit_a_picture_alike(name: str, channels: int) -> None:
    served = _served(PICTURES[name], channels=channels)
    assert name == "one pixel" or served.std() > 3  # a picture of noise, not an empty one
    np.testing.assert_array_equal(_trained(PICTURES[name], channels=channels), served)


@pytest.mark.parametrize("name", BROKEN)
def test_training_and_service_refuse_a_picture_alike(name: str) -> None:
    with pytest.raises(Problem):
        _served(BROKEN[name], channels=3)
    with pytest.raises(BadData):
        _trained(BROKEN[name], channels=3)


# Both could drift together: the golden picture is worked out by hand.

_INNER = np.where(np.add.outer(np.arange(12), np.arange(9)) % 2 == 0, 255, 0).astype(np.uint8)  # a chess board


def _golden() -> bytes:
    """On its side, with 5 columns too many on either side, its board's upper half at an alpha of 51 of 255."""
    upright = np.full((12, 19, 4), 255, np.uint8)
    upright[:, 5:14, :3] = _INNER[..., None] // np.array([1, 5, 255], np.uint8)
    upright[:6, 5:14, 3] = 51
    lying = np.rot90(upright)  # to the left; orientation 6 says: turn it to the right
    return _encoded(Image.fromarray(np.ascontiguousarray(lying)), "PNG", exif=_turned(6))


@pytest.mark.parametrize("fitted", [_trained, _served])
def test_the_golden_picture_is_turned_composed_on_black_and_cropped(fitted: Callable[..., np.ndarray]) -> None:
    expected = np.zeros((12, 9, 3), np.uint8)
    expected[_INNER == 255] = (255, 51, 1)
    expected[:6][_INNER[:6] == 255] = (51, 10, 0)  # 51/255 of it: 51, 10.2 and 0.2
    np.testing.assert_array_equal(fitted(_golden(), channels=3), expected)
    grey = np.array([255, 51, 1]) @ [0.299, 0.587, 0.114], np.array([51, 10, 0]) @ [0.299, 0.587, 0.114]
    lower, upper = (round(value) for value in grey)
    expected_grey = np.where(_INNER == 255, np.where(np.arange(12)[:, None] < 6, upper, lower), 0)
    np.testing.assert_array_equal(fitted(_golden(), channels=1)[..., 0], expected_grey)


# However a picture reaches training.


def _in_folder(path: Path, content: bytes) -> Path:
    for name in ("a.png", "b.png"):  # one to train on, one to test on
        (path / name).write_bytes(content)
    return path


def _in_zip(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path / "pictures.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, content)
    return path / "pictures.zip"


def _in_parquet(path: Path, content: bytes) -> Path:
    features = datasets.Features(image=datasets.Image())
    rows = [{"bytes": content, "path": None}] * 2
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path / "pictures.parquet")
    return path / "pictures.parquet"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", [_in_folder, _in_zip, _in_parquet])
def test_every_source_fits_the_golden_picture_as_the_service_does(
    kept: Callable[[Path, bytes], Path], channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = data.read(kept(tmp_path, _golden()), size=SHAPE, channels=channels)
    np.testing.assert_array_equal(dataset.train[0], _served(_golden(), channels=channels))
