"""What files say of their pictures, and what a header may not cost."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service import picture_headers
from service.errors import BadBody, TooLarge
from tests.service.wire import saved

LIMIT = 1_000_000


def pixels(data: bytes, *, max_pixels: int = LIMIT) -> int:
    return picture_headers.pixels(data, where="body", max_pixels=max_pixels)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


def jpeg(*extra: bytes) -> bytes:
    """A JPEG with more before its other segments."""
    whole = saved(Image.new("RGB", (40, 30), "red"), "JPEG")
    return whole[:2] + b"".join(extra) + whole[2:]


def tiff(*fields: tuple[int, int, int, bytes], order: str = "<", rest: bytes = b"") -> bytes:
    """A classic TIFF of these fields: tag, type, count, value."""
    head = (b"II\x2a\x00" if order == "<" else b"MM\x00\x2a") + struct.pack(order + "I", 8)
    entries = b"".join(struct.pack(order + "HHI4s", tag, kind, count, value) for tag, kind, count, value in fields)
    return head + struct.pack(order + "H", len(fields)) + entries + bytes(4) + rest


def number(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (300, 7)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1"])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": Image.Exif().tobytes(), "comment": b"\xff\xd8"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"}),
    ],
)
def test_a_file_says_how_many_pixels_it_has(
    size: tuple[int, int], mode: str, file_format: str, options: dict[str, object]
) -> None:
    picture = Image.new(mode, size)
    if mode in ("P", "1") and file_format in ("JPEG", "WEBP"):
        picture = picture.convert("RGB")
    assert pixels(saved(picture, file_format, **options)) == size[0] * size[1]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"II*\x00", b"BM", b"GIF89a", b"RIFF", b"x"]
)
def test_what_says_nothing_has_none(data: bytes) -> None:
    assert pixels(data) == 0


@pytest.mark.parametrize("cut", range(0, 200, 7))
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP"])
def test_a_file_that_is_cut_is_left_to_pillow(file_format: str, cut: int) -> None:
    assert pixels(saved(Image.new("RGB", (40, 30)), file_format)[:cut]) in (0, 40, 40 * 30)  # or but its width


# JPEG


def test_a_jpeg_may_have_a_colour_profile_of_many_segments_and_what_a_phone_writes() -> None:
    profile = [segment(0xE2, b"ICC_PROFILE\x00" + bytes([index, 255]) + bytes(60_000)) for index in range(255)]
    assert pixels(jpeg(*profile, segment(0xE1, b"Exif\x00\x00" + bytes(60_000)), segment(0xFE, b"a comment"))) == 1200


@pytest.mark.parametrize(
    "extra",
    [
        [segment(0xE1, b"Exif\x00\x00" + bytes(10))] * 65,
        [segment(0xE1, b"Exif\x00\x00" + bytes(60_000))] * 20,
        [segment(0xED, b"Photoshop 3.0\x00" + bytes(60_000))] * 20,
        [segment(0xE5, b"")] * 1_001,
        [b"\xff\xd0"] * 1_001,
        [bytes(5_000)],
        [b"\xff" * 5_000],
        [b"\xff\x00" * 5_000],
    ],
    ids=[
        "pieces of exif",
        "much exif",
        "much of an editor",
        "empty segments",
        "bare markers",
        "zeros",
        "padding",
        "stuffing",
    ],
)
def test_a_jpeg_whose_header_is_work_without_end_is_refused(extra: list[bytes]) -> None:
    with pytest.raises(BadBody, match="got a JPEG whose header has no end in sight"):
        pixels(jpeg(*extra))


def test_bytes_behind_a_jpeg_that_look_like_scans_are_none() -> None:
    """As in the film behind a phone's picture: FF DA stands there by chance, once in 65,536 bytes."""
    film = b"".join(b"\xff\xda" + np.random.default_rng(seed).bytes(30) for seed in range(2_000))
    assert pixels(jpeg() + film) == 1200


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    whole = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadBody, match=r"got a JPEG of \d{3} scans, expected at most 100"):
        pixels(whole[:-2] + last * 200 + whole[-2:])


@pytest.mark.parametrize("marker", [0xC8, *range(0xF0, 0xFE)])
def test_a_reserved_marker_inside_which_pillow_would_look_for_others_is_refused(marker: int) -> None:
    hidden = segment(marker, segment(0xE1, b"Exif\x00\x00" + bytes(10)) * 1_000)
    with pytest.raises(BadBody, match=rf"got a JPEG with the reserved marker FF{marker:02X}"):
        pixels(jpeg(hidden))


# PNG, GIF, BMP


def test_a_png_of_a_million_chunks_is_refused() -> None:
    whole = saved(Image.new("RGB", (40, 30)), "PNG")
    empty = bytes(4) + b"prVt" + zlib.crc32(b"prVt").to_bytes(4)
    assert pixels(whole[:33] + empty * 100 + whole[33:]) == 1200
    with pytest.raises(BadBody, match="got a PNG of more than 65536 chunks"):
        pixels(whole[:33] + empty * 70_000 + whole[33:])


@pytest.mark.parametrize("at", [33, -12], ids=["before the pixels", "after them"])
@pytest.mark.parametrize(
    ("name", "content", "most"),
    [(b"zTXt", b"\0\0", 32), (b"iTXt", b"\0\x01\0\0\0", 32), (b"iCCP", b"profile\0\0", 1)],
    ids=["texts", "international texts", "profiles"],
)
def test_a_png_of_many_chunks_that_are_inflated_is_refused(at: int, name: bytes, content: bytes, most: int) -> None:
    """A text without a keyword, which Pillow inflates and does not count."""
    whole = saved(Image.new("RGB", (40, 30)), "PNG")
    content += zlib.compress(bytes(2**20 - 1))
    chunk = len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)
    assert pixels(whole[:at] + chunk * most + whole[at:]) == 1200
    with pytest.raises(BadBody, match=f"got a PNG with {most + 1} chunks {name.decode()}, expected at most {most}"):
        pixels(whole[:at] + chunk * (most + 1) + whole[at:])


def gif(*extra: bytes) -> bytes:
    """A GIF with more before its picture."""
    whole = saved(Image.new("P", (40, 30)), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1 if whole[10] & 0x80 else 0)
    return whole[:start] + b"".join(extra) + whole[start:]


COMMENT = b"!\xfe" + b"\x01a" * 5_000 + b"\x00"


@pytest.mark.parametrize(
    "extra",
    [
        [COMMENT],
        [b"\x00", COMMENT],
        [b"!\xfe\x00"] * 5_000,
        [b"!\xf9\x00\x00"] * 3_000,
        [bytes(5_000)],
        [b"!\xf9\x00,", b"a" * 44, b"\x00", COMMENT],
        [b"!\xff\x0bNETSCAPE2.0\x00,", b"a" * 44, b"\x00", COMMENT],
        [b"!\xff\x0bNETSCAPE3.0\x00", COMMENT],
    ],
    ids=[
        "a comment",
        "a comment after a byte",
        "empty comments",
        "empty extensions",
        "zeros",
        "a comment after an empty block that is no end",
        "a comment after an empty loop that is no end",
        "a comment after another program's name",
    ],
)
def test_a_gif_of_thousands_of_blocks_before_its_picture_is_refused(extra: list[bytes]) -> None:
    with pytest.raises(BadBody, match="got a GIF of more than 4096 blocks before its picture"):
        pixels(gif(*extra))


def test_a_gif_may_have_comments_and_a_byte_too_many() -> None:
    assert pixels(gif(b"!\xfe" + b"\x01a" * 100 + b"\x00", b"\x00", b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\x00")) == 1200
    moving = {"save_all": True, "append_images": [Image.new("P", (40, 30), 1)], "loop": 0, "comment": b"c" * 900}
    assert pixels(saved(Image.new("P", (40, 30)), "GIF", **moving)) == 1200


def test_a_bmp_of_runs_is_small_and_its_lines_are_not_endless() -> None:
    def bmp(width: int, height: int, compression: int) -> bytes:
        fields = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, *[0] * 5)
        return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + fields

    assert pixels(bmp(1_000, -1_000, 1)) == 1_000_000
    with pytest.raises(BadBody, match="got a BMP of 2000000 pixels in runs"):
        pixels(bmp(2_000, 1_000, 1), max_pixels=10**8)
    assert pixels(bmp(2_000, 1_000, 0), max_pixels=10**8) == 2_000_000
    with pytest.raises(BadBody, match="got a BMP of lines of 40000000 bytes"):
        pixels(bmp(40_000_000, 1, 0), max_pixels=10**8)


# TIFF


@pytest.mark.parametrize(
    "fields",
    [
        [(273, 1, 8_000_000, number(0))],
        [(279, 1, 70_000, number(0))],
        [(324, 3, 70_000, number(0))],
        [(320, 3, 70_000, number(0))],
        [(274, 3, 30_000_000, number(0))],
        [(258, 1, 70_000, number(0))],
        [(277, 1, 8_000_000, number(0))],
        [(34665, 6, 70_000, number(0))],
    ],
    ids=[
        "strips of bytes",
        "lengths of bytes",
        "tiles",
        "a palette",
        "orientations",
        "bits of bytes",
        "samples of bytes",
        "inner places of bytes",
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_tiff_whose_fields_become_millions_of_objects_is_refused(
    fields: list[tuple[int, int, int, bytes]], is_cut: bool
) -> None:
    data = tiff((256, 3, 1, number(1)), (257, 3, 1, number(2)), *fields)
    if is_cut:  # Pillow takes what is there of a directory that says it has more
        data = data[:8] + struct.pack("<H", 9) + data[10:-4]
    with pytest.raises(BadBody, match=r"got a TIFF with \d+ numbers in one field, expected at most (65536|256)"):
        pixels(data)


@pytest.mark.parametrize("place", [2**63 - 1, 2**63, 2**64 - 1])
def test_places_beyond_every_file_are_nowhere(place: int) -> None:
    assert pixels(b"II\x2b\x00\x08\0\0\0" + struct.pack("<Q", place) + bytes(64)) == 0
    side = struct.pack("<HHQQ", 256, 4, 1, 7) + struct.pack("<HHQQ", 257, 4, 1, 9)
    bits = struct.pack("<HHQQ", 258, 3, 5, place)
    directory = struct.pack("<Q", 3) + side + bits + bytes(8)
    assert pixels(b"II\x2b\x00\x08\0\0\0" + struct.pack("<Q", 16) + directory) == 63


@pytest.mark.parametrize("tag", [34665, 34853])
def test_a_directory_inside_a_tiff_is_looked_through_too(tag: int) -> None:
    inner = struct.pack("<HHHII", 1, 40_000, 5, 8_000_000, 0) + bytes(4)
    with pytest.raises(BadBody, match="got a TIFF with 8000000 numbers in one field"):
        pixels(tiff((256, 3, 1, number(1)), (257, 3, 1, number(2)), (tag, 4, 1, number(50)), rest=inner))


@pytest.mark.parametrize("kind", [1, 2, 6, 7, 8, 9, 16, 17, 99])
@pytest.mark.parametrize("tag", [256, 257, 322, 323])
def test_a_side_that_two_readers_could_read_in_two_ways_is_refused(tag: int, kind: int) -> None:
    sides = [(side, 3, 1, number(9)) for side in (256, 257, 322, 323) if side != tag]
    with pytest.raises(BadBody, match="whose sides are no numbers of 16 or 32 bits"):
        pixels(tiff(*sides, (tag, kind, 1, number(9))))


@pytest.mark.parametrize("tag", [256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325])
def test_what_two_readers_could_take_from_two_fields_is_refused(tag: int) -> None:
    """As a compression that libtiff does not find where Pillow does."""
    sides = [(side, 3, 1, number(9)) for side in (256, 257, 322, 323) if side != tag]
    with pytest.raises(BadBody, match="that tells its sides or its places twice"):
        pixels(tiff(*sides, (tag, 3, 1, number(9)), (tag, 3, 1, number(90))))


@pytest.mark.parametrize("tag", [258, 259, 277, 278, 284, 34665])
def test_a_field_that_tells_one_number_and_has_thousands_is_refused(tag: int) -> None:
    sides = ((256, 3, 1, number(1)), (257, 3, 1, number(2)))
    with pytest.raises(BadBody, match="got a TIFF with 30000 numbers in one field, expected at most 256"):
        pixels(tiff(*sides, (tag, 1, 30_000, number(50)), rest=bytes(30_000)))


def test_a_tiff_whose_fields_hold_more_bytes_than_it_has_is_refused() -> None:
    sides = ((256, 3, 1, number(1)), (257, 3, 1, number(2)))
    apart = [(40_000 + index, 7, 1_000, number(200 + 1_000 * index)) for index in range(5)]
    same = [(40_000 + index, 7, 1_000, number(200)) for index in range(5)]
    assert pixels(tiff(*sides, *apart, rest=bytes(6_000))) == 2
    with pytest.raises(BadBody, match=r"got a TIFF of 5000 bytes in fields, expected no more than its \d{4}"):
        pixels(tiff(*sides, *same, rest=bytes(2_000)))


def test_fields_that_lie_beyond_a_file_hold_nothing() -> None:
    """As of one that is cut, of which Pillow leaves them out."""
    sides = ((256, 3, 1, number(1)), (257, 3, 1, number(2)))
    assert pixels(tiff(*sides, (700, 7, 60_000, number(200)), (34_675, 7, 60_000, number(60_200)))) == 2


def test_a_directory_to_which_several_places_lead_is_looked_through_once() -> None:
    """Or else what its fields hold would count again each time."""
    sides = ((256, 3, 1, number(1)), (257, 3, 1, number(2)))
    inner = [(tag, 4, 1, number(8)) for tag in (34_665, 34_853, 40_965)]
    assert pixels(tiff(*sides, *inner, (40_000, 7, 900, number(100)), rest=bytes(1_000))) == 2


def test_tiles_count_as_they_lie_whichever_way_the_picture_is_turned() -> None:
    def scan(width: int, height: int) -> bytes:
        sides = ((256, 4, 1, number(width)), (257, 4, 1, number(height)), (259, 3, 1, number(5)))
        return tiff(*sides, (274, 3, 1, number(6)), (322, 4, 1, number(30_000)), (323, 4, 1, number(16)))

    assert pixels(scan(30_000, 33)) == 990_000
    with pytest.raises(BadBody, match="whose tiles are far larger than its picture"):
        pixels(scan(33, 30_000))


def tiled(width: int, height: int, *, tile: tuple[int, int]) -> bytes:
    sides = ((256, 4, 1, number(width)), (257, 4, 1, number(height)), (259, 3, 1, number(5)))
    return tiff(*sides, (322, 4, 1, number(tile[0])), (323, 4, 1, number(tile[1])))


def test_a_tile_that_is_larger_than_its_picture_counts_in_its_place() -> None:
    """Of which libtiff makes room for all, though the picture has but one pixel."""
    assert pixels(tiled(1, 1, tile=(1024, 1024))) == 2**20
    assert pixels(tiled(5_000, 5_000, tile=(512, 512)), max_pixels=10**8) == 5_000 * 5_000


@pytest.mark.parametrize(
    ("size", "tile"), [((2_049, 100), (1_024, 1_024)), ((5_000, 100), (1_024, 1_024)), ((600, 400), (2_048, 2_048))]
)
def test_small_pictures_in_the_tiles_of_large_ones_are_read(size: tuple[int, int], tile: tuple[int, int]) -> None:
    assert pixels(tiled(*size, tile=tile)) == max(size[0] * size[1], tile[0] * tile[1])


@pytest.mark.parametrize(
    ("size", "tile"),
    [((1, 1), (4_112, 4_112)), ((1, 1), (16, 2**21)), ((2_000, 1), (16, 2**18)), ((6_000, 6_000), (10_016, 10_016))],
    ids=["a giant", "a long one", "many", "one above the limit of all pictures"],
)
def test_tiles_that_are_far_larger_than_their_picture_are_refused(size: tuple[int, int], tile: tuple[int, int]) -> None:
    with pytest.raises(BadBody, match="whose tiles are far larger than its picture"):
        pixels(tiled(*size, tile=tile), max_pixels=40_000_000)


def plain_tiff(width: int, height: int, *, rows: int, offsets: list[int], bits: int = 8) -> bytes:
    """A TIFF without compression: its strips begin at these places."""
    sides = ((256, 4, 1, number(width)), (257, 4, 1, number(height)), (258, 3, 1, number(bits)))
    where = 8 + 2 + 6 * 12 + 4
    return tiff(
        *sides,
        (259, 3, 1, number(1)),
        (273, 4, len(offsets), number(where if len(offsets) > 1 else offsets[0])),
        (278, 4, 1, number(rows)),
        rest=struct.pack(f"<{len(offsets)}I", *offsets),
    )


def test_strips_that_pillow_would_put_together_byte_by_byte_are_refused() -> None:
    assert pixels(plain_tiff(100, 4, rows=2, offsets=[300, 500])) == 400
    with pytest.raises(BadBody, match="whose strips or tiles lie upon each other"):
        pixels(plain_tiff(100, 4, rows=2, offsets=[300, 301]))
    with pytest.raises(BadBody, match=r"of 3 strips or tiles, expected 2, which its picture fills"):
        pixels(plain_tiff(100, 4, rows=2, offsets=[300, 500, 700]))
    with pytest.raises(BadBody, match="of lines of 5000000 bytes"):
        pixels(plain_tiff(5_000_000, 1, rows=1, offsets=[300]), max_pixels=10**8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA", "F"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("rows", [None, 7])
def test_tiffs_as_they_are_written_are_read(mode: str, compression: str | None, rows: int | None) -> None:
    options = {"compression": compression} if compression else {}
    if rows:
        options["strip_size"] = 7 * 90
    assert pixels(saved(Image.new(mode, (90, 61)), "TIFF", **options)) == 90 * 61


def test_a_tiff_of_thousands_of_fields_is_refused() -> None:
    with pytest.raises(BadBody, match="got a TIFF of 5000 fields, expected at most 512"):
        pixels(tiff(*[(40_000, 3, 1, number(1))] * 5_000))


def test_a_tiff_that_pillow_reads_otherwise_than_libtiff_is_refused() -> None:
    with pytest.raises(BadBody, match="got a TIFF of 64 bits in big-endian order"):
        pixels(b"MM\x00\x2b\x00\x08\x00\x00" + bytes(64))


# WebP


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_of_too_many_pixels_is_refused_before_it_has_room(lossless: bool) -> None:
    file = BytesIO()
    Image.new("RGB", (1001, 1000)).save(file, "WEBP", lossless=lossless)
    with pytest.raises(TooLarge, match="body: got 1,001,000 pixels, the limit is 1,000,000"):
        pixels(file.getvalue())
