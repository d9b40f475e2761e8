"""What strangers send on purpose: each of these gets its documented status, and nobody beside them notices."""

import io
import json
import select
import socket
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from service.errors import PROBLEMS
from service.http.connections import _MAX_PROBING
from tests.service.linear import Bundles
from tests.service.wire import SAFETENSORS, tensors
from tests.serving import Server, serving
from tests.waiting import until

JSON = "application/json"
FORM = "multipart/form-data; boundary=b"
Z = b'{"z":[[0,0,0,0]]}'
MAX_CONNECTIONS = 12

# Longer than any wait here by much: a test that comes near it fails, and none is decided by it.
PATIENCE_S = 20


LIMITS = {
    "--max-connections": MAX_CONNECTIONS,
    "--max-body-bytes": 2_000_000,
    "--max-picture-pixels": 1_000_000,
    "--max-request-rows": 50_000,
    "--max-queue-rows": 50_000,
}
HASTE = {"--head-timeout-s": 1, "--transfer-timeout-s": 1}


def flags(limits: dict[str, int]) -> list[str]:
    return [str(part) for pair in limits.items() for part in pair]


@pytest.fixture(scope="module")
def server(bundles: Bundles) -> Iterator[Server]:
    """A process that takes few connections, and bodies and pictures that are small."""
    with serving([*bundles.arguments, *flags(LIMITS)]) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(bundles: Bundles) -> Iterator[Server]:
    """The same, which waits for a second only."""
    with serving([*bundles.arguments, *flags(LIMITS | HASTE)]) as running:
        yield running


def connect(server: Server) -> socket.socket:
    url = urlsplit(server.url)
    assert url.port
    return socket.create_connection((url.hostname or "", url.port), timeout=PATIENCE_S)


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with closing(connect(server)) as connected:
        yield connected


@pytest.fixture
def hurried(hasty: Server) -> Iterator[socket.socket]:
    with closing(connect(hasty)) as connected:
        yield connected


@pytest.fixture(autouse=True)
def neighbour(request: pytest.FixtureRequest) -> Iterator[None]:
    """A well-behaved caller of the same process, who is answered afterwards as before."""
    asked: Server = request.getfixturevalue("hasty" if "hasty" in request.fixturenames else "server")
    yield
    with closing(connect(asked)) as beside:
        beside.sendall(get("/sample?seed=7"))
        found = answer(beside)
    assert (found.status, found.headers["content-type"]) == (200, "image/png")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def answer(connection: socket.socket, *, has_body: bool = True) -> Answer:
    """The next answer on a connection, of which no byte beyond it is read."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, head
        head += part
    status, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    code = int(status.split()[1])
    size = int(headers.get("content-length", "0")) if has_body and code >= 200 else 0
    body = b""
    while len(body) < size:
        part = connection.recv(size - len(body))
        assert part, "the answer ended early"
        body += part
    return Answer(code, headers, body)


def assert_is_documented(found: Answer) -> None:
    """An error is a problem document of the list, but for what is no HTTP."""
    if found.status < 400 or found.headers["content-type"].startswith("text/plain"):
        assert found.status in {100, 200, 400}
        return
    assert found.headers["content-type"] == "application/problem+json"
    document = json.loads(found.body)
    kinds = {(problem.status, f"urn:vaeserve:problem:{problem.kind}") for problem in PROBLEMS}
    assert (found.status, document["type"]) in kinds
    assert document["detail"]


def assert_in_step(connection: socket.socket) -> None:
    """The next request on the connection is answered as itself: both sides agree where the last one ended."""
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: h\r\nX-Request-ID: in-step\r\n\r\n")
    following = answer(connection)
    assert (following.status, following.headers["x-request-id"]) == (200, "in-step")


def assert_closed(connection: socket.socket) -> None:
    """No byte follows."""
    try:
        assert connection.recv(2**16) == b""
    except ConnectionResetError:
        return


def send(connection: socket.socket, data: bytes) -> None:
    """All that the other side takes."""
    try:
        connection.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1")


def post(path: str, body: bytes, media_type: str = JSON, *, lines: tuple[str, ...] | None = None) -> bytes:
    """A request to a verb; `lines` stand for the one that declares its length."""
    framing = (f"Content-Length: {len(body)}",) if lines is None else lines
    head = "\r\n".join([f"POST {path} HTTP/1.1", "Host: h", f"Content-Type: {media_type}", *framing, "", ""])
    return head.encode("latin-1") + body


def declared(body: bytes, *lines: str) -> bytes:
    """A request to a verb that says the length of its body, and more."""
    return post("/decode", body, lines=(f"Content-Length: {len(body)}", *lines))


def both(*lines: str) -> bytes:
    """A request to a verb whose body is framed in chunks, and in other ways too."""
    return post("/decode", CHUNKS, lines=lines)


def chunked(body: bytes, *lines: str) -> bytes:
    return post("/decode", body, lines=("Transfer-Encoding: chunked", *lines))


PETABYTE = "Content-Length: 1000000000000000"
OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
INNER = get("/models")
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(Z), Z)


# Pictures that are small to send and would be large to decode


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *data: bytes, colour_type: int = 2, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), before, *(chunk(b"IDAT", part) for part in data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_of_opacities(count: int) -> bytes:
    """A PNG of one pixel and one colour, which says of many colours how opaque they are."""
    before = chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", bytes(count))
    return png(1, 1, zlib.compress(bytes(2)), colour_type=3, before=before)


def png_with_text() -> bytes:
    """A PNG of one pixel with a comment of 100 MB, which takes 100 kB."""
    text = b"comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    whole = png(1, 1, zlib.compress(bytes(4)))
    return whole[:33] + chunk + whole[33:]


def png_of_texts(count: int) -> bytes:
    """A PNG of one pixel with texts of a megabyte each, none of which has a keyword."""
    return png(1, 1, zlib.compress(bytes(4)), before=chunk(b"zTXt", b"\0\0" + zlib.compress(bytes(2**20 - 1))) * count)


def gif(width: int, height: int, *, disposal: int = 0) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    if disposal:
        screen += b"\x21\xf9\x04" + bytes([disposal << 2]) + bytes(4)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00\x3b"


def gif_of_a_large_frame() -> bytes:
    """A screen of one pixel, and a frame that is much larger."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00\x3b"


def gif_after(extra: bytes) -> bytes:
    """A GIF of one pixel with more before its picture."""
    whole = gif(1, 1)
    return whole[:19] + extra + whole[19:]


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def tiff(width: int, height: int, *, tile: tuple[int, int] | None = None) -> bytes:
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 9)]
    if tile:
        fields += [(322, tile[0]), (323, tile[1]), (324, 8), (325, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + entries + bytes(4)


def tiff_that_turns_back() -> bytes:
    """A TIFF whose list of pictures has no end."""
    fields = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 4), (279, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + entries + struct.pack("<I", 8)


def webp(width: int, height: int) -> bytes:
    size = (width - 1) | (height - 1) << 14
    content = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", size) + b"\0"
    return b"RIFF" + struct.pack("<I", 4 + len(content)) + b"WEBP" + content


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    whole = file.getvalue()
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG in which the last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def jpeg_of_segments(segment: bytes, count: int) -> bytes:
    """A JPEG with a segment before its others, again and again."""
    whole = jpeg(8, 8)
    return whole[:2] + segment * count + whole[2:]


def tiff_of_strips(count: int) -> bytes:
    """A TIFF of two pixels whose strips' places are a byte each."""
    fields = [(256, 3, 1, 1), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 1, count, 200),
              (277, 3, 1, 1), (278, 3, 1, 1), (279, 3, 1, 2)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    whole = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + entries + bytes(4)
    return whole.ljust(200, b"\0") + bytes(count)


def tiff_of_fields(count: int) -> bytes:
    """A TIFF of one pixel whose inner directories are its own."""
    fields = [(256, 1), (257, 1), (34665, 8), (34853, 8), (40965, 8), *((40_966 + index, 1) for index in range(count))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(fields)) + entries + bytes(4)


# Tensors whose headers do not tell the truth


def lying(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def z_of(shape: list[int], *, end: int = 16, dtype: str = "F32", start: int = 0) -> dict[str, object]:
    return {"z": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


TENSORS = {
    "shape of 2⁶² rows": (lying(z_of([2**62, 4]), bytes(16)), 400),
    "shape that overflows": (lying(z_of([2**33, 2**33]), bytes(16)), 400),
    "negative shape": (lying(z_of([-1, 4]), bytes(16)), 400),
    "offsets beyond the data": (lying(z_of([1, 4], start=16, end=32), bytes(16)), 400),
    "offsets that run backwards": (lying(z_of([1, 4], start=16, end=0), bytes(16)), 400),
    "header longer than the body": (lying(z_of([1, 4]), bytes(16), length=2**63), 400),
    "header of 100 MB": (lying(z_of([1, 4]), bytes(16), length=100_000_000), 400),
    "header that is no JSON": (lying(b"\xff" * 64), 400),
    "header of deep JSON": (lying(b'{"z":' + b"[" * 100_000), 400),
    "bytes that no tensor owns": (lying(z_of([1, 4]), bytes(160)), 400),
    "unknown dtype": (lying(z_of([1, 4], dtype="F33"), bytes(16)), 400),
    "less than its length's bytes": (b"\x01", 400),
    "no rows": (tensors(z=np.zeros((0, 4), np.float32)), 422),
    "rows of nothing": (lying(z_of([40_000, 0], end=0)), 422),
    "infinity": (tensors(z=np.full((1, 4), np.inf, np.float32)), 422),
    "NaN": (tensors(z=np.full((1, 4), np.nan, np.float16)), 422),
    "float64": (tensors(z=np.zeros((1, 4), np.float64)), 422),
    "thousands of tensors": (tensors(**{f"t{index}": np.zeros(1, np.float32) for index in range(5000)}), 400),
}

PICTURES = {
    "PNG of 2³¹ pixels a side": (png(2**31 - 1, 2**31 - 1), "image/png", 413),
    "PNG whose pixels are all alike": (png(30_000, 30_000, zlib.compress(bytes(9_000_000), 9)), "image/png", 413),
    "PNG without its palette": (png(1, 1, zlib.compress(bytes(2)), colour_type=3), "image/png", 400),
    "PNG of more opacities than colours": (png_of_opacities(300), "image/png", 400),
    "PNG of no pixels": (png(0, 0), "image/png", 400),
    "PNG with more data than pixels": (png(2, 2, zlib.compress(bytes(50_000_000), 9)), "image/png", (200, 400)),
    "PNG with a comment of 100 MB": (png_with_text(), "image/png", (200, 400)),
    "GIF of 65535 pixels a side": (gif(65535, 65535), "image/gif", 413),
    "GIF of 43 bytes whose frames are kept": (gif(60_000, 60_000, disposal=2), "image/gif", 413),
    "PNG of 1,000 texts": (png_of_texts(1_000), "image/png", 400),
    "GIF of 400,000 blocks after a byte": (gif_after(b"\0!\xfe" + b"\x02ab" * 400_000 + b"\0"), "image/gif", 400),
    "GIF after a megabyte of nothing": (gif_after(bytes(1_000_000)), "image/gif", 400),
    "JPEG of 1,000 scans": (jpeg_of_scans(1_000), "image/jpeg", 400),
    "JPEG of 40,000 pieces of EXIF": (
        jpeg_of_segments(b"\xff\xe1\x00\x12Exif\0\0" + bytes(10), 40_000),
        "image/jpeg",
        400,
    ),
    "JPEG of 200,000 empty segments": (jpeg_of_segments(b"\xff\xe5\x00\x02", 200_000), "image/jpeg", 400),
    "JPEG after a megabyte of nothing": (jpeg_of_segments(bytes(1), 1_000_000), "image/jpeg", 400),
    "TIFF of a million strips": (tiff_of_strips(1_000_000), "image/tiff", 400),
    "TIFF of tiles far larger than it": (tiff(640, 16, tile=(16, 2_500_000)), "image/tiff", 400),
    "TIFF of a tile far larger than it": (tiff(1, 1, tile=(4_112, 4_112)), "image/tiff", 400),
    "TIFF of a tile of a billion pixels": (tiff(640, 16, tile=(40_000, 30_000)), "image/tiff", 400),
    "TIFF of 2,800 fields": (tiff_of_fields(2_800), "image/tiff", 400),
    "TIFF of tiles of nothing": (tiff(640, 16, tile=(0, 0)), "image/tiff", (200, 400)),
    "GIF whose frame is larger than its screen": (gif_of_a_large_frame(), "image/gif", 413),
    "BMP of 2³¹ pixels a side": (bmp(2**31 - 1, 2**31 - 1), "image/bmp", 413),
    "BMP of negative height": (bmp(30_000, -30_000), "image/bmp", 413),
    "TIFF of 2³¹ pixels a side": (tiff(2**31 - 1, 2**31 - 1), "image/tiff", 413),
    "TIFF whose list has no end": (tiff_that_turns_back(), "image/tiff", (200, 400)),
    "WebP of 16384 pixels a side": (webp(2**14, 2**14), "image/webp", 413),
    "JPEG of 65535 pixels a side": (jpeg(65535, 65535), "image/jpeg", 413),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "image/png", 400),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image/png", 400),
}


def numbers(text: str) -> bytes:
    return b'{"z":[[%b,0,0,0]]}' % text.encode()


DOCUMENTS = {
    "10⁶ numbers": (b'{"z":[' + b"1," * 900_000 + b"1]}", 422),
    "10⁵ rows": (b'{"z":[' + b"[0,0,0,0]," * 99_999 + b"[0,0,0,0]]}", 413),
    "a long text among thousands of short ones": (b'{"z":["%b"%b]}' % (b"a" * 500_000, b',""' * 400_000), 422),
    "deep lists": (b'{"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    "deep objects": (b'{"z":' * 100_000 + b"1" + b"}" * 100_000, 400),
    "an option as deep as JSON is read": (b'{"columns":' + b"[" * 1000 + b"]" * 1000 + b"}", 422),
    "lists as deep as JSON is read": (b'{"z":' + b"[" * 500 + b"]" * 500 + b"}", 422),
    "NaN": (numbers("NaN"), 400),
    "Infinity": (numbers("-Infinity"), 400),
    "a number beyond float64": (numbers("1e999"), 400),
    "a number beyond float32": (numbers("1e39"), 422),
    "an integer of 100,000 digits": (numbers("9" * 100_000), (400, 422)),
    "minus nothing": (numbers("-0"), 200),
    "a member 10⁵ times": (b"{" + b'"scale":1,' * 100_000 + b'"z":[[0,0,0,0]]}', 200),
    "10⁵ members": (b"{" + b",".join(b'"a%d":1' % index for index in range(100_000)) + b"}", 422),
    "half a surrogate": (b'{"z":"\\ud800"}', (400, 422)),
    "an object of thousands in the place of a number": (
        b'{"columns":{%b},"z":[[0,0,0,0]]}' % b",".join(b'"a%d":1' % index for index in range(100_000)),
        422,
    ),
    "a NUL": (b'{"z":"\\u0000"}', 422),
    "bytes that are no UTF-8": (b'{"z":"\xc3\x28"}', 400),
    "a byte order mark": (b"\xef\xbb\xbf" + Z, 400),
    "no object": (b"[" * 10 + b"]" * 10, 422),
    "nothing but blanks": (b" " * 1_000_000, 400),
}


def part(name: str, content: bytes, *, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


DEEP = b"[" * 1000 + b"]" * 1000

FORMS = {
    "thousands of fields": (b"".join(part(f"f{index}", b"1") for index in range(5000)) + b"--b--\r\n", 422),
    "thousands of files": (part("images", b"x", filename="x") * 20_000 + b"--b--\r\n", 400),
    "a part of a thousand headers": (b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\n1\r\n--b--\r\n", 400),
    "a part with a header of 1 MB": (b"--b\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n1\r\n--b--\r\n", 400),
    "a field of 1 MB": (part("seed", b"1" * 1_000_000) + b"--b--\r\n", 413),
    "no end": (part("images", b"x", filename="x"), 400),
    "an end within the second part": (part("images", b"x", filename="x") * 2, 400),
    "no name": (b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--\r\n", 400),
    "a path for a name": (part("images", b"x", filename="../../etc/passwd") + b"--b--\r\n", 400),
    "boundaries without parts": (b"--b\r\n" * 10_000, 400),
    "thousands of lines that are nearly boundaries": (part("images", b"\r\n--ba" * 10_000), 400),
    "another boundary": (part("images", b"x").replace(b"--b", b"--c"), 400),
}

# What one picture or one row costs is bounded; so is how many there are, before anything is done for each.
MANY = {
    "a million seeds": ("/interpolate", b'{"seeds":[' + b"0," * 900_000 + b"0]}", JSON, 413),
    "a million dimensions": ("/traverse", b'{"seed":1,"dims":[' + b"0," * 900_000 + b"0]}", JSON, 413),
    "two million dimensions": ("/traverse", tensors(dims=np.zeros(1_900_000, np.uint8)), SAFETENSORS, 422),
    "200,000 latents": ("/interpolate", tensors(z=np.zeros((200_000, 4), np.float16)), SAFETENSORS, 413),
    "600,000 pictures": ("/encode", b'{"images":[' + b'"",' * 600_000 + b'""]}', JSON, 413),
}

BODIES = [
    *((f"many: {name}", post(path, body, kind), status) for name, (path, body, kind, status) in MANY.items()),
    *((f"picture: {name}", post("/encode", body, kind), status) for name, (body, kind, status) in PICTURES.items()),
    *((f"tensors: {name}", post("/decode", body, SAFETENSORS), status) for name, (body, status) in TENSORS.items()),
    *((f"JSON: {name}", post("/decode", body), status) for name, (body, status) in DOCUMENTS.items()),
    ("JSON: a picture as deep as JSON is read", post("/encode", b'{"images":[' + DEEP + b"]}"), 422),
    ("JSON: a point as deep as JSON is read", post("/interpolate", b'{"points":[' + DEEP + b",1]}"), 422),
    *((f"form: {name}", post("/encode", body, FORM), status) for name, (body, status) in FORMS.items()),
]

# Whether the connection goes on after the answer stands last: where it does, the next request is answered as itself.
REQUESTS: list[tuple[str, bytes, int, bool]] = [
    ("a compressed body", declared(zlib.compress(Z), "Content-Encoding: gzip"), 415, True),
    ("negative length", post("/decode", Z, lines=("Content-Length: -1",)), 400, False),
    ("length with a sign", post("/decode", Z, lines=("Content-Length: +17",)), 400, False),
    ("length in hex", post("/decode", Z, lines=("Content-Length: 0x11",)), 400, False),
    ("length of 23 digits", post("/decode", Z, lines=("Content-Length: 99999999999999999999999",)), 400, False),
    ("length of a petabyte", post("/decode", b"", lines=(PETABYTE, "Connection: close")), 413, False),
    ("length twice", post("/decode", Z, lines=("Content-Length: 17", "Content-Length: 18")), 400, False),
    ("length twice the same", post("/decode", Z, lines=("Content-Length: 17",) * 2), 400, False),
    ("a list of lengths", post("/decode", Z, lines=("Content-Length: 17, 17",)), 400, False),
    ("length, then chunks", both("Content-Length: 4", "Transfer-Encoding: chunked"), 400, False),
    ("chunks, then length", both("Transfer-Encoding: chunked", "Content-Length: 4"), 400, False),
    ("chunks that are right", chunked(CHUNKS), 200, True),
    ("a chunk that is longer than it says", chunked(b"5\r\n" + Z + b"\r\n0\r\n\r\n"), 400, False),
    ("a chunk of negative size", chunked(b"-5\r\n" + Z + b"\r\n0\r\n\r\n"), 400, False),
    ("a chunk of 2⁶⁸ bytes", chunked(b"fffffffffffffffff\r\n" + Z), 400, False),
    ("a chunk without a size", chunked(b"zz\r\n" + Z + b"\r\n0\r\n\r\n"), 400, False),
    ("chunks with bare line feeds", chunked(CHUNKS.replace(b"\r\n", b"\n")), 400, False),
    ("a length after the chunks", chunked(CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n"), 400, False),
    ("a trailer", chunked(CHUNKS[:-2] + b"X: y\r\n\r\n"), 200, True),
    ("a trailer of 1 MB", chunked(CHUNKS[:-2] + b"X: " + b"y" * 1_000_000), 400, False),
    ("trailers without end", chunked(CHUNKS[:-2] + b"X: y\r\n" * 200_000), 400, False),
    ("a chunk's extension of 1 MB", chunked(b"5;" + b"x" * 1_000_000), 400, False),
    ("extensions of many chunks", chunked(b"1;%b\r\n \r\n" % (b"x" * 300) * 3_000 + CHUNKS), 200, True),
    ("an encoding around the chunks", both("Transfer-Encoding: gzip, chunked"), 400, False),
    ("chunks inside an encoding", both("Transfer-Encoding: chunked, gzip"), 400, False),
    ("an encoding without chunks", post("/decode", Z, lines=("Transfer-Encoding: gzip",)), 400, False),
    ("chunks twice", both(*["Transfer-Encoding: chunked"] * 2), 400, False),
    ("nearly chunks", both("Transfer-Encoding: xchunked"), 400, False),
    ("chunks after a tab", both("Transfer-Encoding:\x0bchunked"), 400, False),
    ("a blank before the colon", both("Transfer-Encoding : chunked"), 400, False),
    ("chunks on a second line", both("Transfer-Encoding:", " chunked"), 400, False),
    ("bare line feeds", get("/health/live").replace(b"\r\n", b"\n"), 400, False),
    ("a bare carriage return", get("/health/live", "X: a\rY: b"), 400, False),
    ("a bare line feed in a header", get("/health/live", "X: a\nContent-Length: 5"), 400, False),
    ("NUL in a header", get("/health/live", "X: a\0b"), 400, False),
    ("NUL in a header's name", get("/health/live", "X\0: a"), 400, False),
    ("a header without a name", get("/health/live", ": a"), 400, False),
    ("a header without a colon", get("/health/live", "abc"), 400, False),
    ("a header on two lines", get("/health/live", "X: a", " b"), 400, False),
    ("HTTP/0.9", b"GET /health/live\r\n\r\n", 400, False),
    ("HTTP/0.9 with headers", b"GET /health/live HTTP/0.9\r\nHost: h\r\n\r\n", 400, False),
    ("HTTP/2 in a line", b"GET /health/live HTTP/2.0\r\nHost: h\r\n\r\n", 400, False),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, False),
    ("HTTP/3.7", b"GET /health/live HTTP/3.7\r\nHost: h\r\n\r\n", 400, False),
    ("TLS", bytes.fromhex("16030100c8010000c40303") + bytes(200), 400, False),
    ("HTTP/1.0 without a host", b"GET /health/live HTTP/1.0\r\n\r\n", 200, False),
    ("no host", b"GET /health/live HTTP/1.1\r\n\r\n", 400, False),
    ("two hosts", get("/health/live", "Host: i"), 400, False),
    ("a host that is none", b"GET /nothing HTTP/1.1\r\nHost: [::1/?#\xff\r\n\r\n", 404, True),
    ("a header of 30 kB", get("/health/live", "X: " + "a" * 30_000), 200, True),
    ("a header of 40 kB", get("/health/live", "X: " + "a" * 40_000), 431, False),
    ("a header of 400 kB", get("/health/live", "X: " + "a" * 400_000), 431, False),
    ("9,000 headers", get("/health/live", *["X: y"] * 9_000), 431, False),
    ("headers without end", get("/health/live", *["X: y"] * 200_000)[:-2], 431, False),
    ("an address of 40 kB", get("/sample?seed=" + "1" * 40_000), 431, False),
    ("an address of 300 kB", get("/sample?seed=" + "1" * 300_000), 431, False),
    ("steps of 4,300 digits", get("/traverse?seed=1&dims=0,1&steps=" + "9" * 4300), 413, True),
    ("points of 4,300 digits", get("/interpolate?seeds=1,2,3&steps=" + "9" * 4300), 413, True),
    ("3,000 options", get("/sample?" + "&".join(f"a{index}=1" for index in range(3000))), 422, True),
    ("an option 3,000 times", get("/sample?" + "seed=1&" * 3000), 422, True),
    ("3,000 forms to choose from", get("/sample", "Accept: " + "a/b;q=0.1," * 3000), 406, True),
    ("3,000 tags", get("/sample?seed=1", "If-None-Match: " + '"a",' * 3000), 200, True),
    ("a method that is none", b"BREW /sample HTTP/1.1\r\nHost: h\r\n\r\n", 400, False),
    ("a method in small letters", b"get /sample HTTP/1.1\r\nHost: h\r\n\r\n", 400, False),
    ("a method of others", b"PROPFIND /sample HTTP/1.1\r\nHost: h\r\n\r\n", 405, True),
    ("TRACE", b"TRACE /sample HTTP/1.1\r\nHost: h\r\nX-Secret: s\r\n\r\n", 405, True),
    ("CONNECT", b"CONNECT example.org:443 HTTP/1.1\r\nHost: h\r\n\r\n", 400, False),
    ("OPTIONS of all", b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 404, True),
    ("another server's address", get("http://example.org/nothing"), 404, True),
    ("a way up", get("/docs/assets/../../../../etc/passwd"), 404, True),
    ("a way up in disguise", get("/docs/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd"), 404, True),
    ("a way up in deeper disguise", get("/docs/assets/%252e%252e%255c..%5c..%5cetc/passwd"), 404, True),
    ("a way around", get("/models/../sample?seed=1"), 404, True),
    ("two slashes", get("//sample?seed=1"), 404, True),
    ("a slash at the end", get("/sample/?seed=1"), 404, True),
    ("a semicolon", get("/sample;seed=1"), 404, True),
    ("broken percents", get("/%zz%80%ff%"), 404, True),
    ("NUL in a path", get("/models/%00"), 404, True),
    ("NUL in a file's name", get("/docs/assets/%00"), 404, True),
    ("a file's name of 5,000 letters", get("/docs/assets/" + "a" * 5000), 404, True),
    ("an answer's header in a path", get("/models/a%0d%0aX-Evil:%201"), 404, True),
    ("a path that is no ASCII", "GET /é HTTP/1.1\r\nHost: h\r\n\r\n".encode(), 400, False),
    ("a blank in a path", get("/sample seed"), 400, False),
    ("ranges", get("/sample?seed=1", "Range: bytes=0-1,2-3,0-99999999999"), 200, True),
    ("an expectation", get("/sample?seed=1", "Expect: 200-ok"), 200, True),
    ("a time without end", get("/sample?seed=1", "X-Timeout-Ms: " + "9" * 5000), 200, True),
    ("a time that is none", get("/sample?seed=1", "X-Timeout-Ms: -1"), 422, True),
    ("a websocket", get("/sample?seed=1", "Connection: Upgrade", "Upgrade: websocket"), 200, True),
    ("HTTP/2 on offer, with a body", declared(Z, *OFFER), 200, True),
    ("HTTP/2 on offer, with chunks", chunked(CHUNKS, *OFFER), 200, True),
    ("a request as a body behind an offer", declared(INNER, *OFFER), 400, True),
    ("a body that GET has not", get("/sample?seed=1", "Content-Length: 5") + b"GET /", 200, True),
    ("a request as GET's body", get("/sample?seed=1", f"Content-Length: {len(INNER)}") + INNER, 200, True),
    ("empty lines first", b"\r\n" * 100 + get("/health/live"), 200, True),
]  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(BODIES) + len(REQUESTS) >= 120
    assert len({name for name, *_ in [*BODIES, *REQUESTS]}) == len(BODIES) + len(REQUESTS)


@pytest.mark.parametrize(("sent", "status"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_a_hostile_body_is_answered_with_its_status(
    connection: socket.socket, sent: bytes, status: int | tuple[int, ...]
) -> None:
    """Where two statuses stand, what is left of the body once it is cut to size may be right."""
    send(connection, sent)
    found = answer(connection)
    assert found.status in (status if isinstance(status, tuple) else (status,)), found.body[:300]
    assert_is_documented(found)
    assert_in_step(connection)


@pytest.mark.parametrize(("sent", "status", "goes_on"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_a_hostile_request_is_answered_with_its_status(
    connection: socket.socket, sent: bytes, status: int, goes_on: bool
) -> None:
    send(connection, sent)
    found = answer(connection)
    assert found.status == status, found.body[:300]
    assert_is_documented(found)
    assert "x-evil" not in found.headers
    if goes_on:
        assert_in_step(connection)
    else:
        assert_closed(connection)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_trailer_is_no_header(connection: socket.socket, pieces: int) -> None:
    """Not even where it comes with the body: what a proxy looks at, and takes away, are headers."""
    sent = chunked(CHUNKS[:-2] + b"X-Request-ID: trailed\r\nX-Timeout-Ms: 0\r\n\r\n")
    middle = len(sent) if pieces == 1 else sent.index(b"X-Request-ID")
    connection.sendall(sent[:middle])
    time.sleep(0.2)
    connection.sendall(sent[middle:])
    found = answer(connection)
    assert found.status == 200
    assert found.headers["x-request-id"] != "trailed"
    assert_in_step(connection)


def test_an_expectation_of_http_1_0_is_not_answered(connection: socket.socket) -> None:
    """Source: RFC 9110, section 10.1.1"""
    body = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%b" % (len(Z), Z)
    connection.sendall(b"POST /decode HTTP/1.0\r\nContent-Type: application/json\r\n" + body)
    assert answer(connection).status == 200


# Those who take their time


def drip(connection: socket.socket, data: bytes) -> float:
    """Byte by byte until there is an answer, or nobody who hears.

    Units:  seconds that it took
    """
    began = time.monotonic()
    connection.settimeout(0.02)
    for place in range(len(data)):
        send(connection, data[place : place + 1])
        try:
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionResetError:
            pass
        break
    connection.settimeout(PATIENCE_S)
    return time.monotonic() - began


@pytest.mark.parametrize(
    "first",
    [b"", b"GET /sample?seed=1 HTTP/1.1\r\nHost: h\r\n", get("/sample?seed=1") + b"POST /sample HTTP/1.1\r\n"],
    ids=["nothing", "half a head", "a request, then half a head"],
)
def test_a_head_that_does_not_come_is_not_waited_for(hurried: socket.socket, first: bytes) -> None:
    hurried.sendall(first)
    if b"\r\n\r\n" in first:
        assert answer(hurried).status == 200
    assert_closed(hurried)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nX: " + b"y" * 5000, b"\r\n" * 5000], ids=["head", "empty lines"])
def test_a_head_that_drips_is_not_waited_for(hurried: socket.socket, data: bytes) -> None:
    assert drip(hurried, data) < PATIENCE_S
    assert_closed(hurried)


@pytest.mark.parametrize(
    "lines", [("Content-Length: 5000",), ("Transfer-Encoding: chunked",)], ids=["length", "chunks"]
)
def test_a_body_that_does_not_come_is_408(hurried: socket.socket, lines: tuple[str, ...]) -> None:
    hurried.sendall(post("/decode", b"", lines=lines))
    found = answer(hurried)
    assert (found.status, found.headers["connection"]) == (408, "close")
    assert_is_documented(found)
    assert_closed(hurried)


def test_a_body_that_drips_is_408(hurried: socket.socket) -> None:
    hurried.sendall(post("/decode", b"", lines=("Content-Length: 5000",)))
    assert drip(hurried, b" " * 5000) < PATIENCE_S
    found = answer(hurried)
    assert found.status == 408
    assert_is_documented(found)


def test_a_body_that_stops_is_408_however_much_of_it_came(hurried: socket.socket) -> None:
    hurried.sendall(post("/decode", bytes(1_400_000), SAFETENSORS, lines=("Content-Length: 1500000",)))
    found = answer(hurried)
    assert found.status == 408
    assert_is_documented(found)
    assert_closed(hurried)


def begin_large(caller: socket.socket) -> None:
    """Send nearly all of a body of nearly the largest size, and then nothing."""
    caller.sendall(post("/decode", bytes(1_800_000), SAFETENSORS, lines=("Content-Length: 1900000",)))


def is_read_whole(server: Server) -> bool:
    """Whether a body of nearly the largest size is not refused before its end, at which it is no safetensors."""
    with closing(connect(server)) as caller:
        begin_large(caller)
        caller.sendall(bytes(100_000))
        return answer(caller).status == 400


def test_bodies_that_do_not_end_fill_no_memory_and_keep_none_out_that_are_smaller(server: Server) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(closing(connect(server))) for _ in range(9)]
        for caller in callers:
            begin_large(caller)
        refused, _, _ = select.select(callers, [], [], PATIENCE_S)
        found = answer(refused[0])
        assert (found.status, found.headers["retry-after"]) == (429, "1")
        assert json.loads(found.body)["errors"][0]["where"] == "body"
        assert_is_documented(found)
        small = stack.enter_context(closing(connect(server)))
        body = Z + b" " * 100_000
        small.sendall(declared(body)[:-50_000])
        time.sleep(0.1)
        small.sendall(body[-50_000:])
        assert answer(small).status == 200
    until(lambda: is_read_whole(server))


def test_a_deadline_holds_for_a_body_that_does_not_come(connection: socket.socket) -> None:
    connection.sendall(post("/decode", b"", lines=("Content-Length: 5000", "X-Timeout-Ms: 100")))
    found = answer(connection)
    assert found.status == 504
    assert_is_documented(found)


def test_a_body_that_nobody_asked_for_is_not_waited_for(hurried: socket.socket) -> None:
    hurried.sendall(post("/nothing", b"", lines=("Content-Length: 5000",)))
    assert answer(hurried).status == 404
    assert drip(hurried, b" " * 5000) < PATIENCE_S
    assert_closed(hurried)


LARGE = "/sample?seed=1&n=40000&format=safetensors"


def test_an_answer_that_nobody_reads_is_not_kept(hasty: Server) -> None:
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = urlsplit(hasty.url)
        connection.settimeout(PATIENCE_S)
        connection.connect((url.hostname, url.port))
        connection.sendall(get(LARGE))
        until(lambda: _progress(hasty) > 0)
        until(lambda: _progress(hasty) == 0)
        received = 0
        try:
            while piece := connection.recv(2**16):
                received += len(piece)
        except ConnectionResetError:
            pass
    assert received < 40_000 * 6 * 5 * 3


def _progress(server: Server) -> int:
    """Requests that are being answered, without the one that asks."""
    with closing(connect(server)) as asking:
        asking.sendall(get("/metrics", "Connection: close"))
        text = answer(asking).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("vaeserve_requests_in_progress ")]
    return round(float(line.split()[1])) - 1


def test_an_answer_that_is_read_slowly_but_steadily_is_whole(hurried: socket.socket) -> None:
    hurried.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    hurried.sendall(get("/sample?seed=1&n=8000&format=safetensors", "Connection: close"))
    received = b""
    while piece := hurried.recv(2**15):
        received += piece
        time.sleep(0.05)  # longer in all than the second that a transfer may stand still
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head


# Those who come in numbers


@pytest.fixture
def full(server: Server) -> Iterator[list[socket.socket]]:
    """As many connections as may be, each of which has begun to ask."""
    with ExitStack() as stack:
        open_ones = [stack.enter_context(closing(connect(server))) for _ in range(MAX_CONNECTIONS)]
        for each in open_ones:
            each.sendall(get("/nothing") + b"GET /health/live HTTP/1.1\r\n")
            assert answer(each).status == 404
        yield open_ones


def assert_turned_away(found: Answer) -> None:
    assert (found.status, found.headers["retry-after"], found.headers["connection"]) == (503, "1", "close")
    assert json.loads(found.body)["detail"] == f"connections: {MAX_CONNECTIONS} are open, which is the limit"
    assert_is_documented(found)


def assert_go_on(connections: list[socket.socket]) -> None:
    """Those that have begun to ask for a probe get its answer."""
    for each in connections:
        each.sendall(b"Host: h\r\n\r\n")
        assert answer(each).status == 200
        assert_in_step(each)


NO_PROBES = {
    "a verb": get("/sample?seed=1"),
    "a body": declared(Z),
    "a path like that of probes": get("/healthy"),
    "a path like that of metrics": get("/metrics/"),
    "a POST to a probe": post("/health/live", b""),
}


@pytest.mark.parametrize("sent", NO_PROBES.values(), ids=NO_PROBES)
def test_a_connection_beyond_the_cap_is_told_when_to_come_back(
    server: Server, full: list[socket.socket], sent: bytes
) -> None:
    with closing(connect(server)) as one_more:
        send(one_more, sent)
        assert_turned_away(answer(one_more))
        send(one_more, get("/health/live"))
        assert_closed(one_more)
    assert_go_on(full)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics?verbose"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_beyond_the_cap_a_probe_is_answered_once(
    server: Server, full: list[socket.socket], method: str, path: str
) -> None:
    with closing(connect(server)) as one_more:
        one_more.sendall(get(path, *OFFER).replace(b"GET", method.encode()) + get("/health/live"))
        found = answer(one_more, has_body=method == "GET")
        assert (found.status, found.headers["connection"]) == (200, "close")
        assert_closed(one_more)
    assert_go_on(full)


def test_who_is_silent_beyond_the_cap_takes_a_place_of_few_and_further_ones_are_not_heard(
    server: Server, full: list[socket.socket]
) -> None:
    with ExitStack() as stack:
        beyond = [stack.enter_context(closing(connect(server))) for _ in range(_MAX_PROBING + 1)]
        assert_turned_away(answer(beyond[-1]))
        for each in beyond[:-1]:
            each.sendall(get("/health/ready"))
            assert answer(each).status == 200
    assert_go_on(full)


def test_connections_that_rest_make_room_the_longest_first(server: Server) -> None:
    with ExitStack() as stack:
        first, *others = [stack.enter_context(closing(connect(server))) for _ in range(MAX_CONNECTIONS)]
        for each in (first, *others):
            assert_in_step(each)
        one_more = stack.enter_context(closing(connect(server)))
        one_more.sendall(get("/sample?seed=1"))
        assert answer(one_more).status == 200
        assert_closed(first)
        for each in (one_more, *others):
            assert_in_step(each)


def test_the_log_says_that_all_connections_are_in_use(server: Server, full: list[socket.socket]) -> None:
    with closing(connect(server)) as one_more:
        one_more.sendall(get("/health/live"))
        assert answer(one_more).status == 200
    sentence = f"connections: {MAX_CONNECTIONS} are open, which is the limit, and none rests"
    until(lambda: any(sentence in line for line in server.said))
    assert_go_on(full)


def test_silent_connections_make_room_by_themselves(hasty: Server) -> None:
    open_ones = [connect(hasty) for _ in range(MAX_CONNECTIONS)]
    try:
        for each in open_ones:
            assert_closed(each)
    finally:
        for each in open_ones:
            each.close()


def test_requests_without_number_on_one_connection_are_answered_in_order_as_far_as_they_are(
    connection: socket.socket,
) -> None:
    send(connection, b"".join(get("/health/live", f"X-Request-ID: {place}") for place in range(500)))
    ids = []
    try:
        while True:
            ids.append(answer(connection).headers["x-request-id"])
    except (AssertionError, ConnectionResetError):
        pass
    assert ids == [str(place) for place in range(len(ids))]
    assert 1 <= len(ids) < 500


@pytest.mark.parametrize("garbage", [b"\0\1\2 \r\n\r\n", get("/", "X: " + "a" * 40_000)], ids=["400", "431"])
def test_what_cannot_be_read_is_answered_after_what_came_before(connection: socket.socket, garbage: bytes) -> None:
    connection.sendall(get("/sample?seed=1&n=500") + get("/sample?seed=2") + garbage)
    assert [answer(connection).status for _ in range(2)] == [200, 200]
    assert answer(connection).status in {400, 431}
    assert_closed(connection)


def test_a_broken_body_behind_a_request_is_answered_after_it(connection: socket.socket) -> None:
    connection.sendall(get("/sample?seed=1&n=500") + chunked(b"zz\r\n"))
    assert [answer(connection).status for _ in range(2)] == [200, 400]
    assert_closed(connection)


@pytest.mark.parametrize("is_declared", [True, False], ids=["with its length", "in chunks"])
def test_a_refusal_arrives_though_the_body_is_on_its_way_and_the_connection_ends(
    server: Server, is_declared: bool
) -> None:
    """As of urllib, which says `Connection: close` each time, and sends all before it reads."""
    pieces = [bytes(2**20)] * 20
    headers = {"content-type": SAFETENSORS}
    body = b"".join(pieces) if is_declared else iter(pieces)
    request = urllib.request.Request(f"{server.url}/decode", body, headers)  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE_S)  # noqa: S310
    with closing(refused.value) as refusal:
        assert json.load(refusal)["type"] == "urn:vaeserve:problem:too-large"


def is_closed_for(caller: socket.socket) -> bool:
    try:
        caller.sendall(bytes(2**16))
    except OSError:
        return True
    return False


def test_who_sends_on_after_a_refusal_is_heard_out_and_then_closed(server: Server) -> None:
    url = urlsplit(server.url)
    with closing(socket.create_connection((url.hostname or "", url.port or 0), timeout=PATIENCE_S)) as caller:
        send(caller, post("/decode", b"", lines=(PETABYTE, "Connection: close")))
        assert answer(caller).status == 413
        assert caller.recv(1) == b""
        caller.sendall(bytes(2**22))
        until(lambda: is_closed_for(caller))
