"""Pictures come in: against Pillow and against pixels worked by hand."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service import images
from service import png as plain
from service.budget import LOOP_BUDGET_US
from service.errors import BadBody, Invalid, TooLarge
from tests.service.reading import open_picture
from tests.service.wire import assert_near, opened, picture, pixels, png, saved

LIMIT = 1_000_000
COLOUR, GREY = (6, 5, 3), (6, 5, 1)


def rows(*files: bytes, shape: tuple[int, int, int], max_pixels: int = LIMIT) -> images.Uint8:
    """Files as a request brings them: opened first, then decoded to the model's shape."""
    where = [f"images[{index}]" for index in range(len(files))]
    pictures = [
        open_picture(data, where=place, max_pixels=max_pixels) for data, place in zip(files, where, strict=True)
    ]
    return images.to_rows(pictures, shape=shape, where=where)


def cut(*files: bytes, channels: int, stride: int) -> images.Uint8:
    """Files as a request brings them to a model of open sizes."""
    where = [f"images[{index}]" for index in range(len(files))]
    pictures = [open_picture(data, where=place, max_pixels=LIMIT) for data, place in zip(files, where, strict=True)]
    return images.to_rows_of_their_size(pictures, channels=channels, stride=stride, where=where, like=None)


def row(data: bytes, shape: tuple[int, int, int]) -> images.Uint8:
    (only,) = rows(data, shape=shape)
    return only


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=["colour", "grey"])
def test_each_format_of_the_list_is_read(file_format: str, shape: tuple[int, int, int]) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(file_format, {})
    image = pixels(1, shape)[0]
    data = saved(picture(image), file_format, **options)
    # JPEG and a GIF's palette are as near as Pillow's own reading of them.
    assert_near(row(data, shape), opened(data, shape[-1]), levels=0)
    if file_format in {"PNG", "BMP", "TIFF"} or (file_format == "WEBP" and shape == COLOUR):
        assert_near(row(data, shape), image, levels=0)


@pytest.mark.parametrize("file_format", ["PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "EPS", "PDF", "DDS", "ICNS"])
def test_every_other_format_is_refused(file_format: str) -> None:
    image = Image.new("RGB", (32, 32), (1, 2, 3))
    with pytest.raises(BadBody, match="got no picture, expected one in PNG, JPEG, WEBP, BMP, GIF, TIFF"):
        rows(saved(image, file_format), shape=COLOUR)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"not a picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n", b"GIF89a"],
    ids=["empty", "zero", "text", "svg", "png signature", "gif signature"],
)
def test_what_is_no_picture_is_refused_by_its_place(data: bytes) -> None:
    with pytest.raises(BadBody, match=r"images\[1\]: got no picture"):
        rows(png(pixels(1, COLOUR)[0]), data, shape=COLOUR)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_cut_anywhere_is_refused_or_whole(file_format: str) -> None:
    """A cut may fall into what a reader does not need; it never gives anything but a refusal or the picture."""
    data = saved(picture(pixels(1, (20, 20, 3))[0]), file_format)
    whole = row(data, COLOUR)
    refused = 0
    for end in range(0, len(data), max(1, len(data) // 60)):
        try:
            found = row(data[:end], COLOUR)
        except BadBody:
            refused += 1
        else:
            assert_near(found, whole, levels=0)
    assert refused > 50


@settings(max_examples=150)
@given(
    file_format=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]),
    place=st.floats(0, 0.999),
    byte=st.integers(0, 255),
)
def test_a_picture_with_a_wrong_byte_is_read_or_refused_and_never_fails(
    file_format: str, place: float, byte: int
) -> None:
    data = bytearray(saved(picture(pixels(1, (8, 8, 3))[0]), file_format))
    data[int(place * len(data))] = byte
    with suppress(BadBody, TooLarge, Invalid):
        assert row(bytes(data), COLOUR).shape == COLOUR


def test_pixels_are_counted_before_anything_is_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + empty
    with pytest.raises(TooLarge, match=r"images\[0\]: got 3,600,000,000 pixels, the limit is 40,000,000"):
        rows(bomb, shape=COLOUR, max_pixels=40_000_000)


def test_a_picture_of_exactly_the_limit_is_read() -> None:
    image = pixels(1, (6, 5, 3))[0]
    assert_near(rows(png(image), shape=COLOUR, max_pixels=30)[0], image, levels=0)
    with pytest.raises(TooLarge):
        rows(png(image), shape=COLOUR, max_pixels=29)


@settings(max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99), shape=st.sampled_from([COLOUR, GREY])
)
def test_any_size_is_fitted_as_pillow_fits(height: int, width: int, seed: int, shape: tuple[int, int, int]) -> None:
    image = picture(pixels(1, (height, width, shape[-1]), seed)[0])
    expected = ImageOps.fit(image, (shape[1], shape[0]), method=Image.Resampling.LANCZOS)
    assert_near(row(saved(image, "PNG"), shape), np.asarray(expected).reshape(shape), levels=0)


def test_a_cover_crop_keeps_the_middle() -> None:
    left, middle, right = (np.full((6, 5, 3), value, np.uint8) for value in (0, 128, 255))
    assert_near(row(png(np.concatenate([left, middle, right], axis=1)), COLOUR), middle, levels=0)


@settings(max_examples=60)
@given(
    stride=st.integers(1, 9), spare=st.tuples(st.integers(0, 8), st.integers(0, 8)), seed=st.integers(0, 99),
    places=st.tuples(st.integers(1, 4), st.integers(1, 4)), channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_a_picture_of_any_size_loses_less_than_a_stride_half_of_it_on_each_side(
    stride: int, spare: tuple[int, int], seed: int, places: tuple[int, int], channels: int
) -> None:
    (height, width), (below, beside) = (place * stride for place in places), (side % stride for side in spare)
    image = pixels(1, (height + below, width + beside, channels), seed)[0]
    (found,) = cut(png(image), channels=channels, stride=stride)
    top, left = below // 2, beside // 2
    np.testing.assert_array_equal(found, image[top : top + height, left : left + width])


def test_pictures_of_their_size_are_read_as_those_that_are_fitted() -> None:
    """Alpha, 16 bits, palettes and orientation, none of which the size changes."""
    rgba = Image.fromarray(np.concatenate([pixels(1, COLOUR)[0], pixels(1, GREY, 1)[0]], axis=2))
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (6, 5), dtype=np.uint16))
    palette = picture(pixels(1, COLOUR)[0]).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = picture(pixels(1, (5, 6, 3))[0])
    files = [saved(image, "PNG") for image in (rgba, deep, palette)] + [saved(lying, "PNG", exif=exif)]
    for shape in (COLOUR, GREY):
        found = cut(*files, channels=shape[-1], stride=1)
        np.testing.assert_array_equal(found, rows(*files, shape=shape))


def test_the_first_picture_of_another_size_is_named() -> None:
    files = [png(pixels(1, (*size, 3))[0]) for size in [(8, 8), (9, 10), (8, 12), (4, 4)]]
    expected = r"^images\[2\]: got height 8, width 12, expected height 8, width 8 as images\[0\]$"
    with pytest.raises(Invalid, match=expected):
        cut(*files, channels=3, stride=4)


def test_a_broken_picture_among_those_of_their_size_is_named() -> None:
    whole = png(pixels(1, COLOUR)[0])
    with pytest.raises(BadBody, match=r"^images\[1\]: got a broken or incomplete picture, expected a whole one$"):
        cut(whole, whole[:-40], channels=3, stride=1)


ORIENTED = {  # EXIF's number: what the camera did, undone
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    stored = pixels(1, (5, 6, 3) if orientation >= 5 else (6, 5, 3))[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = saved(picture(stored), file_format, exif=exif, **options)
    assert_near(row(data, COLOUR), ORIENTED[orientation](stored), levels=0)


def test_a_turned_photograph_is_upright() -> None:
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:, 40:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    found = row(saved(picture(stored), "JPEG", quality=95, exif=exif), (8, 4, 3))
    assert found[:3].max() < 10
    assert found[5:].min() > 245


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_exif_of_a_megabyte_is_read_and_of_more_refused(file_format: str) -> None:
    def with_exif(n_bytes: int) -> bytes:
        return saved(
            picture(np.zeros(COLOUR, np.uint8)), file_format, exif=b"Exif\0\0MM\0*\0\0\0\x08".ljust(n_bytes, b"\0")
        )

    assert row(with_exif(2**20 - 6), COLOUR).shape == COLOUR
    with pytest.raises(BadBody, match=r"got 10485\d\d bytes of EXIF, expected at most 1048576"):
        row(with_exif(2**20 + 7), COLOUR)


def test_alpha_is_composed_on_black() -> None:
    rgba = np.concatenate([pixels(1, COLOUR)[0], pixels(1, GREY, 1)[0]], axis=2)
    found = row(saved(Image.fromarray(rgba), "PNG"), COLOUR)
    assert_near(found, np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)).astype(np.uint8))


def test_grey_with_alpha_is_composed_on_black() -> None:
    la = np.concatenate([pixels(1, GREY)[0], pixels(1, GREY, 1)[0]], axis=2)
    found = row(saved(Image.fromarray(la), "PNG"), GREY)
    assert_near(found, np.rint(la[..., :1] * (la[..., 1:] / 255)).astype(np.uint8))


def test_a_transparent_colour_is_black_whatever_it_says() -> None:
    white = Image.new("RGBA", (5, 6), (255, 255, 255, 0))
    for data in (saved(white, "PNG"), saved(white, "WEBP", lossless=True, exact=True), saved(white, "TIFF")):
        assert not row(data, COLOUR).any()


def test_transparency_that_stands_beside_the_pixels_counts_too() -> None:
    """PNG's tRNS: one entry of a palette, one grey or one colour."""
    values = np.arange(30, dtype=np.uint8).reshape(6, 5) + 100
    grey = Image.fromarray(values)
    rgb = Image.fromarray(np.stack([values, values, values], axis=2))
    palette = Image.fromarray(np.zeros((6, 5), np.uint8), "L").convert("P")
    palette.putpalette([200, 100, 50, 255, 255, 255])
    expected = np.where(values == 107, 0, values)
    np.testing.assert_array_equal(row(saved(grey, "PNG", transparency=107), GREY)[..., 0], expected)
    found = row(saved(rgb, "PNG", transparency=(107, 107, 107)), COLOUR)
    np.testing.assert_array_equal(found, np.stack([expected] * 3, axis=2))
    assert not row(saved(palette, "PNG", transparency=0), COLOUR).any()
    assert row(saved(palette, "PNG"), COLOUR)[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGBA", {}),
        ("LA", {}),
        ("P", {"transparency": 9}),
        ("L", {"transparency": 9}),
        ("RGB", {"transparency": (9,) * 3}),
    ],
)
@pytest.mark.parametrize("shape", [(30, 7, 3), (30, 7, 1)], ids=["colour", "grey"])
def test_a_large_picture_is_composed_on_black_band_by_band(
    mode: str, options: dict[str, object], shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow keeps the interpreter to itself meanwhile. The last band is lower than the others."""
    colour = Image.fromarray(pixels(1, (30, 7, 4 if mode in ("RGBA", "LA") else 3))[0])
    data = saved(colour.quantize(16) if mode == "P" else colour.convert(mode), "PNG", **options)
    at_once, sizes = row(data, shape), list[tuple[int, int]]()
    compose = Image.alpha_composite

    def watched(below: Image.Image, above: Image.Image) -> Image.Image:
        sizes.append(above.size)
        return compose(below, above)

    monkeypatch.setattr(Image, "alpha_composite", watched)
    monkeypatch.setattr(images, "_BAND_PIXELS", 7 * 4 + 3)
    np.testing.assert_array_equal(row(data, shape), at_once)
    assert sizes == [(7, 4)] * 7 + [(7, 2)]


def test_a_line_that_is_longer_than_a_band_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.fromarray(pixels(1, (6, 5, 4))[0]), "PNG")
    at_once = row(data, COLOUR)
    monkeypatch.setattr(images, "_BAND_PIXELS", 2)
    np.testing.assert_array_equal(row(data, COLOUR), at_once)


def test_a_transparent_gif_stands_on_black() -> None:
    image = Image.new("P", (5, 6), 0)
    image.putpalette([255, 255, 255, 10, 20, 30])
    image.putpixel((2, 3), 1)
    found = row(saved(image, "GIF", transparency=0), COLOUR)
    assert found[3, 2].tolist() == [10, 20, 30]
    assert found.sum() == 60


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (6, 5), dtype=np.uint16)
    expected = (values >> 8).astype(np.uint8)[..., None]
    for file_format in ("PNG", "TIFF"):
        data = saved(Image.fromarray(values), file_format)
        np.testing.assert_array_equal(row(data, GREY), expected)
        np.testing.assert_array_equal(row(data, COLOUR), expected.repeat(3, axis=2))


def test_one_bit_is_black_and_white() -> None:
    bits = np.random.default_rng(0).random((6, 5)) < 0.5
    for file_format in ("PNG", "TIFF", "BMP"):
        data = saved(Image.fromarray(bits), file_format)
        np.testing.assert_array_equal(row(data, GREY)[..., 0], bits * 255)


@pytest.mark.parametrize(("mode", "file_format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("P", "PNG")])
@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=["colour", "grey"])
def test_other_colours_are_converted_as_pillow_converts(
    mode: str, file_format: str, shape: tuple[int, int, int]
) -> None:
    data = saved(picture(pixels(1, COLOUR)[0]).convert(mode), file_format)
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(image.convert("L" if shape == GREY else "RGB")).reshape(shape)
    np.testing.assert_array_equal(row(data, shape), expected)


@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=["colour", "grey"])
def test_lab_is_read_for_every_model(shape: tuple[int, int, int]) -> None:
    middle = saved(Image.new("LAB", (5, 6), (128, 128, 128)), "TIFF")
    assert_near(row(middle, shape), np.full(shape, 119, np.uint8), levels=3)


@pytest.mark.parametrize("shape", [COLOUR, GREY], ids=["colour", "grey"])
def test_premultiplied_grey_stands_on_black_as_it_is(shape: tuple[int, int, int]) -> None:
    values = np.array([[100, 200], [10, 20]], np.uint8).repeat(15, axis=1).reshape(6, 5, 2)
    data = saved(Image.fromarray(values), "TIFF")
    extra_samples = struct.Struct("<HHIH")  # tag 338, one short: 2 is alpha beside the colour, 1 multiplied into it
    assert extra_samples.pack(338, 3, 1, 2) in data
    data = data.replace(extra_samples.pack(338, 3, 1, 2), extra_samples.pack(338, 3, 1, 1))
    assert_near(row(data, shape)[..., :1], values[..., :1], levels=1)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_mode_without_an_agreed_range_is_refused(mode: str) -> None:
    with pytest.raises(Invalid, match=f"got a picture of mode {mode}, expected at most 16 bits a channel"):
        rows(saved(Image.new(mode, (5, 6)), "TIFF"), shape=COLOUR)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_the_picture(file_format: str) -> None:
    first, second = (Image.new("RGB", (5, 6), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = saved(first, file_format, save_all=True, append_images=[second], **options)
    assert_near(row(data, COLOUR), np.asarray(first), levels=0)


def test_pictures_keep_their_order_and_do_not_touch_each_other() -> None:
    several = pixels(7, COLOUR)
    np.testing.assert_array_equal(rows(*map(png, several), shape=COLOUR), several)


def test_one_small_picture_fits_the_event_loops_budget_and_a_long_file_does_not() -> None:
    """A file may hold very many chunks before its pixels or after them, whatever size it says that it has."""
    for shape in ((28, 28, 1), (64, 64, 3)):
        data = png(pixels(1, shape)[0])
        opened = plain.read(data)
        assert images.looking_cost_us(1, n_bytes=len(data)) < LOOP_BUDGET_US
        assert images.decoding_cost_us(opened, n_bytes=len(data), shape=shape) < LOOP_BUDGET_US
        assert images.looking_cost_us(1, n_bytes=100_000) > LOOP_BUDGET_US
        assert images.decoding_cost_us(opened, n_bytes=100_000, shape=shape) > LOOP_BUDGET_US


def test_opening_and_decoding_cost_more_with_every_picture_value_and_byte() -> None:
    files = [saved(picture(pixels(1, shape)[0]), "PNG") for shape in (GREY, COLOUR, (12, 5, 3))]
    grey, colour, high = (plain.read(data) for data in files)
    alpha = plain.read(saved(Image.new("RGBA", (5, 6)), "PNG"))
    assert alpha is None, "which only Pillow's own reader can open, and that may cost anything"
    decoding = [images.decoding_cost_us(one, n_bytes=0, shape=None) for one in (grey, colour, high, alpha)]
    assert decoding == sorted(set(decoding))
    fitted = [images.decoding_cost_us(colour, n_bytes=0, shape=shape) for shape in (COLOUR, (7, 5, 3), (512, 512, 3))]
    assert fitted == sorted(set(fitted))
    assert fitted[-1] > LOOP_BUDGET_US, "a small picture that is enlarged is as much work as a large one"
    assert (
        images.looking_cost_us(1, n_bytes=0)
        < images.looking_cost_us(1, n_bytes=9)
        < images.looking_cost_us(2, n_bytes=9)
    )
