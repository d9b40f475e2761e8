"""What becomes of one picture, and of one that cannot be read; tests/test_fitting.py compares it to the service."""

import threading
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import data, fitting
from model.errors import BadData
from model.fitting import PictureFile

RNG = np.random.default_rng(0)


def grey(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width), np.uint8))


def files(n: int, *, broken: set[int]) -> list[PictureFile]:
    file = BytesIO()
    grey(40, 40).save(file, "PNG")
    whole = file.getvalue()
    return [
        PictureFile(name=f"{i}.png", label=i, open=_opener(whole[: len(whole) // 2] if i in broken else whole))
        for i in range(n)
    ]


def _opener(content: bytes) -> Callable[[], BytesIO]:
    return lambda: BytesIO(content)


def test_pictures_that_are_all_grey_have_one_channel_and_others_three(tmp_path: Path) -> None:
    for index in range(4):
        grey(4, 4).save(tmp_path / f"{index}.png")
    assert data.read(tmp_path).image_shape == (4, 4, 1)
    assert data.read(tmp_path, channels=3).image_shape == (4, 4, 3)
    grey(4, 4).convert("RGB").save(tmp_path / "colour.png")
    assert data.read(tmp_path).image_shape == (4, 4, 3)
    assert data.read(tmp_path, channels=1).image_shape == (4, 4, 1)


def test_pictures_of_several_sizes_need_a_size_and_are_fitted_to_it(tmp_path: Path) -> None:
    for index, size in enumerate([(8, 8), (8, 8), (6, 12)]):
        grey(*size).save(tmp_path / f"{index}.png")
    with pytest.raises(BadData, match="got pictures of 2 sizes, 2 of 3 being 8x8; expected one size, or --size HxW"):
        data.read(tmp_path)
    assert data.read(tmp_path, size=(5, 7)).image_shape == (5, 7, 1)


def test_fitting_crops_the_longer_side_and_does_not_stretch(tmp_path: Path) -> None:
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    for index in range(2):
        Image.fromarray(wide).save(tmp_path / f"{index}.png")
    assert (data.read(tmp_path, size=(10, 10)).train == 255).all()


def test_a_picture_on_its_side_is_turned_before_its_size_is_read(tmp_path: Path) -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    for index in range(2):
        Image.fromarray(picture).save(tmp_path / f"{index}.png", exif=exif)
    train = data.read(tmp_path).train
    assert train.shape[1:] == (8, 4, 3)
    assert (train[0, :4] == 255).all()
    assert (train[0, 4:] == 0).all()


def test_what_does_not_fit_into_memory_is_told(tmp_path: Path) -> None:
    for index in range(2):
        grey(4, 4).save(tmp_path / f"{index}.png")
    for side in (10**7, 10**12):
        with pytest.raises(BadData, match=r"got 2 pictures of 10+x10+, .* GiB, expected what fits into memory; --size"):
            data.read(tmp_path, size=(side, side), channels=1)


def late_orientation(picture: Image.Image) -> bytes:
    """A PNG that is to be turned by 90 degrees, which stands behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    picture.save(file, "PNG")
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = b"eXIf" + content
    end = file.getvalue().rindex(b"IEND") - 4
    late = len(content).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    return file.getvalue()[:end] + late + file.getvalue()[end:]


def test_a_picture_whose_header_does_not_tell_that_it_lies_on_its_side_is_read_alike_with_and_without_a_size(
    tmp_path: Path,
) -> None:
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(late_orientation(grey(4, 8)))
    unasked = data.read(tmp_path)
    assert unasked.image_shape == (4, 8, 1)
    assert data.read(tmp_path, size=(4, 8)).sha256 == unasked.sha256
    assert data.read(tmp_path, size=(8, 4)).image_shape == (8, 4, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black(tmp_path: Path, mode: str) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:2, :, 3] = 0
    for index in range(2):
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{index}.png")
    train = data.read(tmp_path, channels=1).train
    assert train[0, :, 0, 0].tolist() == [0, 0, 255, 255]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    for index in range(2):
        Image.fromarray(ramp).save(tmp_path / f"{index}.png")
    assert np.array_equal(data.read(tmp_path).train[0, :, :, 0], (ramp >> 8).astype(np.uint8))


def level(i: int) -> PictureFile:
    """A picture of one pixel that is as bright as its number; numbers 7 and 127 are broken."""
    file = BytesIO()
    Image.new("L", (1, 1), i).save(file, "PNG")
    return PictureFile(name=f"{i}.png", label=i, open=_opener(b"broken" if i in (7, 127) else file.getvalue()))


@pytest.mark.parametrize("size", [(1, 1), None])
@pytest.mark.parametrize("threads", [1, 8])
def test_pictures_keep_their_order_and_their_labels(
    threads: int, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_THREADS", threads)
    parts, skipped = fitting.fit("levels", {"train": [level(i) for i in range(250)]}, size=size, channels=1)
    whole = [i for i in range(250) if i not in (7, 127)]
    assert parts["train"].images.ravel().tolist() == whole
    assert parts["train"].labels is not None
    assert parts["train"].labels.tolist() == whole
    assert [line.partition(":")[0] for line in skipped.named] == ["7.png", "127.png"]


def test_pictures_are_read_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "_THREADS", 2)
    both = threading.Barrier(2, timeout=60)

    def opened() -> BytesIO:
        both.wait()  # for the other half: one thread alone would wait in vain
        return BytesIO(content)

    file = BytesIO()
    grey(4, 4).save(file, "PNG")
    content = file.getvalue()
    pictures = [PictureFile(name=f"{i}.png", label=None, open=_opener(content)) for i in range(32)]
    pictures[0] = pictures[16] = PictureFile(name="waits", label=None, open=opened)
    parts, skipped = fitting.fit("photos", {"train": pictures}, size=(4, 4), channels=1)
    assert (len(parts["train"]), skipped.n) == (32, 0)


# Pictures that cannot be read.


@pytest.mark.parametrize("size", [(40, 40), None])
def test_up_to_one_in_a_hundred_may_be_broken_and_is_skipped_with_its_label(size: tuple[int, int] | None) -> None:
    parts, skipped = fitting.fit(
        "photos", {"train": files(150, broken={7}), "test": files(50, broken={0})}, size=size, channels=1
    )
    assert (len(parts["train"]), len(parts["test"])) == (149, 49)
    assert parts["train"].labels is not None
    assert parts["train"].labels.tolist() == [*range(7), *range(8, 150)]
    assert (parts["train"].images == parts["train"].images[0]).all()
    assert skipped.n == 2
    assert [line.partition(":")[0] for line in skipped.named] == ["7.png", "0.png"]


@pytest.mark.parametrize(("n", "broken", "allowed"), [(200, {3, 5, 199}, 2), (99, {50}, 0), (2, {0, 1}, 0)])
def test_more_than_one_in_a_hundred_stops_the_reading(n: int, broken: set[int], allowed: int) -> None:
    with pytest.raises(BadData) as caught:
        fitting.fit("photos", {"train": files(n, broken=broken)}, size=(8, 8), channels=1)
    sentence = f"photos: got {allowed + 1} broken of {n} pictures and stopped there, expected at most {allowed} (1%);"
    assert str(caught.value).startswith(sentence)
    assert f"{min(broken)}.png: got image file is truncated" in str(caught.value)


@pytest.mark.parametrize("size", [(8, 8), None])
def test_what_was_not_begun_when_reading_stops_is_not_read(size: tuple[int, int] | None) -> None:
    opened = []

    def slowly() -> BytesIO:
        opened.append(True)
        time.sleep(0.002)
        return BytesIO(b"broken")

    pictures = [PictureFile(name=f"{i}.png", label=None, open=slowly) for i in range(8000)]
    with pytest.raises(BadData, match="got 81 broken of 8000 pictures and stopped there") as stopped:
        fitting.fit("photos", {"train": pictures}, size=size, channels=1)
    assert stopped.value.__traceback__, "which holds whatever was not closed"
    assert 81 <= len(opened) < 4000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading")]


def test_of_many_broken_pictures_the_first_are_named() -> None:
    _, skipped = fitting.fit("photos", {"train": files(2500, broken=set(range(100, 125)))}, size=(1, 1), channels=1)
    assert skipped.n == 25
    assert len(skipped.named) == fitting.MAX_NAMED
    assert skipped.named[0].startswith("100.png: got ")


def test_a_broken_picture_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    for index in range(3):
        grey(40, 40).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match=r"1\.png: got .*truncated.*, expected a whole picture in one of PNG"):
        data.read(tmp_path)
    (tmp_path / "1.png").write_bytes(b"hello")
    with pytest.raises(BadData, match=r"1\.png: got something else, expected a picture in one of PNG"):
        data.read(tmp_path)


def test_a_picture_without_an_agreed_range_is_broken(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / f"{index}.tiff")
    with pytest.raises(BadData, match=r"0\.tiff: got a picture of mode F, expected at most 16 bits a channel"):
        data.read(tmp_path)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_PIXELS", 100)
    for index in range(2):
        grey(10, 11).save(tmp_path / f"{index}.png")
    with pytest.raises(BadData, match=r"0\.png: got 110 pixels, expected at most 100"):
        data.read(tmp_path)


def test_a_large_picture_below_the_bound_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        grey(10, 11).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # above which Pillow warns, and above twice of which refuses
    assert data.read(tmp_path).image_shape == (10, 11, 1)


@pytest.mark.parametrize(("size", "channels"), [((0, 4), 1), ((4, 4), 2)])
def test_a_size_or_channel_count_that_no_picture_can_have_is_refused(
    tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    grey(4, 4).save(tmp_path / "0.png")
    with pytest.raises(BadData, match="expected sides from 1 and 1 or 3 channels"):
        data.read(tmp_path, size=size, channels=channels)
