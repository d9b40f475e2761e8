"""Plain PNGs: written against two readers, read against Pillow's own reader."""

import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from sklearn.datasets import load_sample_images

from service import images, png, rendering
from service.errors import BadBody, Invalid, Problem, TooLarge
from service.settings import SHIPPED_BUNDLE
from tests.service.reading import open_picture
from tests.service.wire import Uint8, opened, picture, pixels, saved

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SHAPE = (9, 7, 3)
SMALL = pixels(1, SHAPE)[0]
LIMIT = 10_000

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
sizes = st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3]))
line_filters = st.lists(st.integers(0, 4), min_size=6, max_size=6)


def drawing(shape: tuple[int, int, int], seed: int) -> Uint8:
    """Noise, a ramp, or flat fields: what compresses badly, well and best."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] * rng.integers(1, 9, shape[2])
    return (noise, ramp.astype(np.uint8), noise // 128 * 255)[seed % 3]


# Chunks by hand


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def header(width: int, height: int, *rest: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">II5B", width, height, *rest))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of a file's chunks, each checksum verified."""
    assert data.startswith(SIGNATURE)
    found, at = [], len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(name + content),)
        found.append((name, content))
        at += 12 + length
    assert at == len(data)
    return found


def joined(*parts: bytes) -> bytes:
    return SIGNATURE + b"".join(parts)


def filtered(image: Uint8, filters: Iterable[int]) -> bytes:
    """Each line under a filter of its own, byte by byte as the specification writes them.

    Source:  PNG, third edition, W3C 2025, 9.2
    """
    height, width, channels = image.shape
    lines = image.reshape(height, width * channels).tolist()
    out = bytearray()
    for y, kind in zip(range(height), filters, strict=False):
        out.append(kind)
        for i, x in enumerate(lines[y]):
            a = lines[y][i - channels] if i >= channels else 0
            b = lines[y - 1][i] if y else 0
            c = lines[y - 1][i - channels] if y and i >= channels else 0
            paeth = min((a, b, c), key=lambda near: abs(a + b - c - near))
            out.append((x - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
    return bytes(out)


def file_of(image: Uint8, filters: Iterable[int], *, cut: int = 0) -> bytes:
    """A PNG with those filters, its pixels in one chunk, or in two where there is a cut."""
    height, width, channels = image.shape
    deflated = zlib.compress(filtered(image, filters))
    parts = [chunk(b"IDAT", part) for part in (deflated[:cut], deflated[cut:]) if part]
    return joined(header(width, height, 8, 0 if channels == 1 else 2, 0, 0, 0), *parts, chunk(b"IEND"))


# Writing


@given(shape=shapes, seed=st.integers(0, 99))
@example(shape=(1, 1, 1), seed=0)
@example(shape=(1, 1, 3), seed=0)
@example(shape=(1, 300, 3), seed=1)
@example(shape=(300, 1, 1), seed=1)
def test_pillow_reads_the_pixels_that_were_written(shape: tuple[int, int, int], seed: int) -> None:
    image = drawing(shape, seed)
    data = png.encode(image)
    with Image.open(BytesIO(data)) as found:
        assert found.format == "PNG"
        assert found.mode == ("L" if shape[2] == 1 else "RGB")
        assert found.info == {}
    np.testing.assert_array_equal(opened(data, shape[2]), image)


@given(shape=shapes, seed=st.integers(0, 99))
def test_a_file_has_a_header_pixels_and_an_end_as_the_specification_says(
    shape: tuple[int, int, int], seed: int
) -> None:
    """Read by hand: chunks and checksums here, inflated by zlib, each pixel added to the one on its left."""
    height, width, channels = shape
    image = drawing(shape, seed)
    head, body, end = chunks(png.encode(image))
    assert head == (b"IHDR", struct.pack(">II5B", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0))
    assert body[0] == b"IDAT"
    assert end == (b"IEND", b"")
    inflating = zlib.decompressobj()
    lines = np.frombuffer(inflating.decompress(body[1]), np.uint8).reshape(height, 1 + width * channels)
    assert inflating.eof
    assert inflating.unused_data == b""
    assert set(lines[:, 0]) == {1}
    found = lines[:, 1:].reshape(shape).cumsum(axis=1, dtype=np.uint8)
    np.testing.assert_array_equal(found, image)


def test_a_picture_may_be_a_view_of_another() -> None:
    image = drawing((30, 20, 3), 1)
    for view in (image[::2, ::3], image.transpose(1, 0, 2), image[..., :1], image[::-1]):
        np.testing.assert_array_equal(opened(png.encode(view), view.shape[2]), view)


def test_a_large_picture_is_one_file() -> None:
    image = drawing((1500, 1000, 3), 0)
    np.testing.assert_array_equal(opened(png.encode(image), 3), image)


@pytest.mark.parametrize("scale", [1, 4])
def test_files_are_within_a_fifth_of_those_that_pillow_writes_at_its_fastest(scale: int) -> None:
    """What decoders make and what people send, one by one and as a grid; photographs; noise."""
    probe = load_file(SHIPPED_BUNDLE / "probe.safetensors")
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    small = np.stack([np.asarray(photograph.resize((64, 64), Image.Resampling.LANCZOS)) for photograph in photographs])
    for several in (probe["decoded"], probe["image"], small, pixels(4, (28, 28, 1)), pixels(4, (64, 64, 3))):
        for together in (several[:1], several):
            canvas = rendering.grid(rendering.enlarge(together, scale), rendering.near_square(len(together)))
            assert len(png.encode(canvas)) < 1.2 * len(saved(picture(canvas), "PNG", compress_level=1))


# Reading


@given(shape=sizes, seed=st.integers(0, 99), filters=line_filters)
def test_every_filter_is_read(shape: tuple[int, int, int], seed: int, filters: list[int]) -> None:
    image = drawing(shape, seed)
    found = png.read(file_of(image, filters))
    assert found is not None
    assert (found.height, found.width) == shape[:2]
    np.testing.assert_array_equal(np.asarray(found.decoded()).reshape(shape), image)


def shade(image: Uint8) -> Uint8:
    """Noise is not deflated, and flat fields to next to nothing: shades are what pictures are like."""
    return (image // 16 + np.add.outer(np.arange(len(image)), np.arange(image.shape[1]))[..., None]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28, 3), (63, 64, 1), (64, 64, 3), (255, 255, 1), (256, 255, 1)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_small_and_large_pictures_are_read_as_pillow_reads_them(shape: tuple[int, int, int], level: int) -> None:
    """Around 2 KiB isal begins to inflate, and at 64 KiB it ends."""
    image = shade(drawing(shape, 0))
    data = saved(picture(image), "PNG", compress_level=level)
    found = png.read(data)
    if found is None:
        assert len(data) > 2**16
        return
    np.testing.assert_array_equal(found.pixels(), image)
    np.testing.assert_array_equal(np.asarray(found.decoded()).reshape(shape), image)


@settings(max_examples=200)
@given(
    flips=st.lists(st.integers(0, 10**6), min_size=1, max_size=3),
    cut=st.none() | st.integers(1, 5000),
    channels=st.sampled_from([1, 3]),
)
def test_a_large_stream_that_is_broken_is_read_or_refused_as_pillow_does(
    flips: list[int], cut: int | None, channels: int
) -> None:
    height, width = 40, 60
    image = shade(drawing((height, width, channels), 0))
    stream = bytearray(zlib.compress(filtered(image, [4, 2, 3, 1] * 10)))
    for bit in flips:
        stream[bit // 8 % len(stream)] ^= 1 << bit % 8
    kept = bytes(stream[:cut])
    head = header(width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    data = joined(head, chunk(b"IDAT", kept), END)
    assert png.read(data) is not None
    assert outcome(data, (height, width, channels)) == reference(data, (height, width, channels))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_stream_that_goes_on_after_the_last_line_stops_there(channels: int) -> None:
    image = shade(drawing((40, 60, channels), 0))
    head = header(60, 40, 8, 0 if channels == 1 else 2, 0, 0, 0)
    for more in (1, 10_000_000):
        stream = zlib.compress(filtered(image, [2] * 40) + bytes(more))
        data = joined(head, chunk(b"IDAT", stream), END)
        assert outcome(data, image.shape) == reference(data, image.shape) == image.tobytes()


def test_a_picture_has_its_own_pixels_whatever_was_read_before_it_and_after_it() -> None:
    """Sizes in turn, more of them than places are kept for."""
    drawn = [drawing((3 + seed % 12, 20 - seed % 12, 1), seed) for seed in range(40)]
    found = []
    for seed, image in enumerate(drawn):
        plain = png.read(file_of(image, [seed % 5] * 20))
        assert plain is not None
        found.append(plain.pixels())
    for image, own in zip(drawn, found, strict=True):
        np.testing.assert_array_equal(own, image)


@pytest.mark.parametrize("lines", [0, 1, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_of_another_picture_is_seen_where_a_stream_ends_early(lines: int, channels: int) -> None:
    """Pillow takes what is missing for black."""
    head = header(7, 9, 8, 0 if channels == 1 else 2, 0, 0, 0)
    white = np.full((9, 7, channels), 255, np.uint8)
    short = joined(head, chunk(b"IDAT", zlib.compress(filtered(white, [0] * 9)[: lines * (7 * channels + 1)])), END)
    for _ in range(3):
        assert outcome(file_of(white, [0] * 9), white.shape) == white.tobytes()
        assert outcome(short, white.shape) == reference(short, white.shape)
        if lines:
            assert outcome(short, white.shape) == white[:lines].tobytes() + bytes((9 - lines) * 7 * channels)


@settings(max_examples=200)
@given(bits=st.lists(st.integers(0, 10**6), min_size=1, max_size=3), cut=st.none() | st.integers(1, 60))
def test_a_broken_grey_stream_is_read_or_refused_as_pillow_does(bits: list[int], cut: int | None) -> None:
    image = drawing((9, 7, 1), 0)
    stream = bytearray(zlib.compress(filtered(image, [4, 2, 3, 1, 0, 2, 4, 1, 3])))
    for bit in bits:
        stream[bit // 8 % len(stream)] ^= 1 << bit % 8
    data = joined(header(7, 9, 8, 0, 0, 0, 0), chunk(b"IDAT", bytes(stream[:cut])), END)
    assert outcome(file_of(255 - image, [0] * 9), image.shape) == (255 - image).tobytes()
    assert outcome(data, image.shape) == reference(data, image.shape)


def test_threads_read_side_by_side() -> None:
    drawn = [drawing((28, 28, 1), 3 * seed) for seed in range(60)]
    files = [png.encode(image) for image in drawn]

    def pixels_of(data: bytes) -> Uint8:
        plain = png.read(data)
        assert plain is not None
        return plain.pixels()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for image, own in zip(drawn, pool.map(pixels_of, files), strict=True):
                np.testing.assert_array_equal(own, image)


def test_what_is_written_is_read() -> None:
    found = png.read(png.encode(SMALL))
    assert found is not None
    np.testing.assert_array_equal(np.asarray(found.decoded()), SMALL)


DEFLATED = zlib.compress(filtered(SMALL, [0] * 9))
PIXELS, HEAD, END = chunk(b"IDAT", DEFLATED), header(7, 9, 8, 2, 0, 0, 0), chunk(b"IEND")
OTHERS = {
    "nothing": b"",
    "a signature": SIGNATURE,
    "another format": saved(picture(SMALL), "BMP"),
    "a header alone": joined(HEAD),
    "no end": joined(HEAD, PIXELS),
    "no pixels": joined(HEAD, END),
    "pixels cut off": joined(HEAD, PIXELS[:-20]),
    "an end cut off": joined(HEAD, PIXELS, END[:7]),
    "a header's checksum": joined(HEAD[:-1] + bytes([HEAD[-1] ^ 1]), PIXELS, END),
    "a longer header": joined(chunk(b"IHDR", struct.pack(">II6B", 7, 9, 8, 2, 0, 0, 0, 0)), PIXELS, END),
    "no width": joined(header(0, 9, 8, 2, 0, 0, 0), PIXELS, END),
    "no height": joined(header(7, 0, 8, 2, 0, 0, 0), PIXELS, END),
    "16 bits": joined(header(7, 9, 16, 2, 0, 0, 0), PIXELS, END),
    "a palette": saved(picture(SMALL).convert("P"), "PNG"),
    "alpha": saved(picture(SMALL).convert("RGBA"), "PNG"),
    "another compression": joined(header(7, 9, 8, 2, 1, 0, 0), PIXELS, END),
    "another filter method": joined(header(7, 9, 8, 2, 0, 1, 0), PIXELS, END),
    "interlacing": joined(header(7, 9, 8, 2, 0, 0, 1), PIXELS, END),
    "a transparent colour": saved(picture(SMALL), "PNG", transparency=(0, 0, 0)),
    "a text before the pixels": joined(HEAD, chunk(b"tEXt", b"a\x00b"), PIXELS, END),
    "a text after the pixels": joined(HEAD, PIXELS, chunk(b"tEXt", b"a\x00b"), END),
    "an animation": saved(picture(SMALL), "PNG", save_all=True, append_images=[picture(SMALL[::-1])]),
    "pixels in two chunks": file_of(SMALL, [4] * 9, cut=50),
    "pixels beside none": joined(HEAD, PIXELS, chunk(b"IDAT"), END),
    "a chunk of more than 64 KiB": png.encode(pixels(1, (256, 256, 1))[0]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_file_is_left_to_pillow(name: str) -> None:
    assert png.read(OTHERS[name]) is None


BROKEN = {
    "nothing": b"",
    "too few pixels": zlib.compress(filtered(SMALL[:-1], [0] * 8)),
    "half a line": zlib.compress(filtered(SMALL, [0] * 9)[:-5]),
    "no end of the stream": DEFLATED[:-12],
    "no stream": b"\x00" * 50,
    "a filter that is none": zlib.compress(b"\x05" + filtered(SMALL, [0] * 9)[1:]),
    "a preset dictionary": b"\x78\xbb" + DEFLATED[2:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_read_as_pillow_reads_it(name: str) -> None:
    data = joined(HEAD, chunk(b"IDAT", BROKEN[name]), END)
    assert png.read(data) is not None
    assert outcome(data) == reference(data)


def test_a_stream_that_goes_on_after_the_last_line_stops_there() -> None:
    """As Pillow does, so that a small picture cannot cost what a large one costs."""
    data = joined(HEAD, chunk(b"IDAT", zlib.compress(filtered(SMALL, [0] * 9) + bytes(10_000_000))), END)
    assert outcome(data) == reference(data) == SMALL.tobytes()


def outcome(data: bytes, shape: tuple[int, int, int] = SHAPE) -> bytes | tuple[int, str]:
    """The pixels that the service reads, or the status and the sentence of its refusal."""
    try:
        opened = open_picture(data, where="body", max_pixels=LIMIT)
        return images.to_rows([opened], shape=shape, where=["body"]).tobytes()
    except Problem as problem:
        return problem.status, problem.detail


def reference(data: bytes, shape: tuple[int, int, int] = SHAPE) -> bytes | tuple[int, str]:
    """The same by Pillow's own way through a file, for pictures without alpha, orientation or more than 8 bits."""
    try:
        found = Image.open(BytesIO(data), formats=images.FORMATS)
    except Exception:
        return BadBody.status, f"body: got no picture, expected one in {', '.join(images.FORMATS)}"
    if found.width * found.height > LIMIT:
        got = found.width * found.height
        return TooLarge.status, f"body: got {got:,} pixels, the limit is {LIMIT:,}"
    try:
        found.load()
    except Exception:
        return BadBody.status, "body: got a broken or incomplete picture, expected a whole one"
    if found.mode in {"I", "F"}:
        return Invalid.status, f"body: got a picture of mode {found.mode}, expected at most 16 bits a channel"
    if "transparency" in found.info or found.mode not in {"L", "RGB"}:
        return images.to_rows([found], shape=shape, where=["body"]).tobytes()
    mode = "L" if shape[2] == 1 else "RGB"
    fitted = ImageOps.fit(found.convert(mode), (shape[1], shape[0]), method=Image.Resampling.LANCZOS)
    return fitted.tobytes()


files = st.builds(
    file_of,
    st.builds(drawing, sizes, st.integers(0, 99)),
    line_filters,
    cut=st.integers(0, 20),
)


@settings(max_examples=300)
@given(data=files, bits=st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_flipped_bits_are_read_or_refused_as_pillow_does(data: bytes, bits: list[int]) -> None:
    flipped = bytearray(data)
    for bit in bits:
        flipped[bit // 8 % len(data)] ^= 1 << bit % 8
    assert outcome(bytes(flipped)) == reference(bytes(flipped))


@settings(max_examples=300)
@given(data=files, start=st.integers(0, 10**6), length=st.integers(1, 40), tail=st.booleans())
def test_what_is_cut_is_read_or_refused_as_pillow_does(data: bytes, start: int, length: int, tail: bool) -> None:
    start %= len(data)
    cut = data[:start] if tail else data[:start] + data[start + length :]
    assert outcome(cut) == reference(cut)


@settings(max_examples=200)
@given(data=st.data(), image=st.builds(drawing, sizes, st.integers(0, 99)))
def test_a_stream_wrong_anywhere_in_a_sound_file_is_read_or_refused_as_pillow_does(
    data: st.DataObject, image: Uint8
) -> None:
    """The checksums are right, so that nothing but the pixels' decoder can refuse."""
    head, (name, deflated), end = chunks(saved(picture(image), "PNG"))
    wrong = bytearray(deflated)
    for _ in range(data.draw(st.integers(1, 3))):
        wrong[data.draw(st.integers(0, len(wrong) - 1))] = data.draw(st.integers(0, 255))
    kept = bytes(wrong[: data.draw(st.integers(1, len(wrong)))])
    file = joined(chunk(*head), chunk(name, kept), chunk(*end))
    assert png.read(file) is not None
    assert outcome(file) == reference(file)


def test_a_plain_picture_of_too_many_pixels_is_refused_before_they_are_decoded() -> None:
    data = joined(header(60_000, 60_000, 8, 2, 0, 0, 0), chunk(b"IDAT", b"\x00"), END)
    assert png.read(data) is not None
    with pytest.raises(TooLarge, match=r"^body: got 3,600,000,000 pixels, the limit is 40,000,000$"):
        open_picture(data, where="body", max_pixels=40_000_000)
