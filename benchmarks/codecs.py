"""Pictures written and read: ours beside Pillow, and beside OpenCV and imagecodecs where these are installed.

Run as `python -m benchmarks.codecs PATH …`; a PATH is what `vae-train fit --data` takes.

All ways take turns at the same pictures, each turn at the next one and in another order, so that none finds the caches
as it left them. A figure is the median of the turns, in µs of CPU time, which other processes disturb least; a ratio
above 1 says that ours is faster.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from math import isfinite
from pathlib import Path
from statistics import mean, median
from time import perf_counter, thread_time
from typing import Any, TypeVar

import numpy as np
from isal import isal_zlib
from PIL import Image
from PIL import __version__ as pillow_version

from benchmarks import results
from benchmarks.pictures import Uint8, saved
from model import data
from service import images, png, rendering

try:
    import cv2
except ImportError:
    cv2 = None
try:
    import imagecodecs
except ImportError:
    imagecodecs = None

T = TypeVar("T")
Write = Callable[[Uint8], bytes]
Read = Callable[[bytes], Uint8]

# What is drawn: how many pictures stand in a line and how many lines there are, and how much they are enlarged.
ARRANGEMENTS = {"1": (1, 1), "2 × 2": (2, 1), "4 × 4": (4, 1), "8 × 8": (8, 1), "1, enlarged by 4": (1, 4)}
NOISE = {"noise": (28, 28, 1), "coloured noise": (64, 64, 3)}
READ = ("1", "2 × 2")
FILTERED = ("1", "8 × 8", "1, enlarged by 4")
CANVASES = 24
FRAMES = 9
FEWEST_TURNS = 5
MOST_PIXELS = 10**8
FRAMING_BYTES = 57  # of a PNG around its deflated pixels

Canvases = Sequence[Uint8]


def main() -> None:
    """Measure, print tables, keep the figures as JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="what `vae-train fit --data` takes")
    parser.add_argument("--seconds", type=float, default=0.5, help="that one row of a table takes, about (default 0.5)")
    arguments = parser.parse_args()
    seconds: float = arguments.seconds
    canvases = {name: drawn for path in arguments.paths for name, drawn in of_data(path).items()} | of_noise()
    small = {name: drawn for name, drawn in canvases.items() if name.partition(", ")[2] in READ}
    several = {name: drawn for name, drawn in canvases.items() if name.partition(", ")[2] in FILTERED}
    writing = {name: written(drawn, seconds) for name, drawn in canvases.items()}
    reading = {f"{name}, {by}": found for name, drawn in small.items() for by, found in read_back(drawn, seconds)}
    steps = {name: step_by_step(drawn, seconds) for name, drawn in small.items()}
    filters = {name: filtered(drawn, seconds) for name, drawn in several.items()}
    expected = {name: as_stated(drawn, seconds) for name, drawn in small.items()}
    print(f"{results.on_machine()}, Pillow {pillow_version}\n\nWriting PNG\n")
    print(results.table(*ratios_first(writing, sizes_too=True)))
    print("\nReading\n")
    print(results.table(*ratios_first(reading, sizes_too=False)))
    print("\nReading, step by step\n")
    print(results.table(*figures(steps)))
    print("\nFilters: bytes as a share of Pillow's at level 1, µs\n")
    print(results.table(*figures(filters)))
    print("\nMeasured, and stated to the event loop\n")
    print(results.table(*figures(expected)))
    content = {
        "seconds": seconds,
        "writing": writing,
        "reading": reading,
        "steps": steps,
        "filters": filters,
        "expected": expected,
    }
    lacks = [name for name, module in {"OpenCV": cv2, "imagecodecs": imagecodecs}.items() if module is None]
    print("\n" + results.keep("codecs", content, lacks=lacks))


def of_data(path: Path) -> dict[str, Canvases]:
    """Test pictures in every arrangement."""
    dataset = data.read(path)
    rng = np.random.default_rng(0)
    return {
        f"{dataset.name}, {name}": [
            rendering.enlarge(rendering.grid(rng.choice(dataset.test, side * side), side), scale)
            for _ in range(CANVASES)
        ]
        for name, (side, scale) in ARRANGEMENTS.items()
    }


def of_noise() -> dict[str, Canvases]:
    """Pictures that do not compress."""
    rng = np.random.default_rng(0)
    return {
        f"{name}, 1": list(rng.integers(0, 256, (CANVASES, *shape), dtype=np.uint8)) for name, shape in NOISE.items()
    }


def written(canvases: Canvases, seconds: float) -> dict[str, Any]:
    """What each way takes to write, and how long its files are."""
    ways = writers()
    sizes = {name: [len(way(canvas)) for canvas in canvases] for name, way in ways.items()}
    for way in ways.values():
        for canvas in canvases:
            np.testing.assert_array_equal(by_pillow(canvas.shape[2])(way(canvas)), canvas)
    return {"us": turns(ways, canvases, seconds), "bytes": {name: round(mean(found)) for name, found in sizes.items()}}


def writers() -> dict[str, Write]:
    """Every way to write a PNG, ours first."""
    ways: dict[str, Write] = {"ours": png.encode, "Pillow 1": as_png(1), "Pillow 6": as_png(6)}
    return ways if cv2 is None else ways | {"OpenCV": as_opencv}


def as_png(level: int) -> Write:
    """Pillow's PNGs; 6 is its default level."""
    return lambda canvas: saved(canvas, "PNG", compress_level=level)


def as_opencv(canvas: Uint8) -> bytes:
    """OpenCV's PNGs, at its defaults."""
    pixels = cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR) if canvas.shape[2] == 3 else canvas
    content: bytes = cv2.imencode(".png", pixels)[1].tobytes()
    return content


def read_back(canvases: Canvases, seconds: float) -> Iterable[tuple[str, dict[str, Any]]]:
    """What each way takes to read files of each writer."""
    shape = canvases[0].shape
    for by, write in {"PNG by Pillow": as_png(6), "PNG by ours": png.encode}.items():
        files = [write(canvas) for canvas in canvases]
        ways = readers(shape, "png")
        for way in ways.values():
            for file, canvas in zip(files, canvases, strict=True):
                np.testing.assert_array_equal(way(file).reshape(shape), canvas)
        yield by, {"us": turns(ways, files, seconds)}
    files = [saved(canvas, "JPEG", quality=90) for canvas in canvases]
    yield "JPEG", {"us": turns(readers(shape, "jpeg"), files, seconds)}


def readers(shape: tuple[int, ...], file_format: str) -> dict[str, Read]:
    """Every way to read a file of pixels of this shape, ours first."""
    ways: dict[str, Read] = {"ours": by_ours(shape), "Pillow": by_pillow(shape[2])}
    if cv2 is not None:
        flag = cv2.IMREAD_GRAYSCALE if shape[2] == 1 else cv2.IMREAD_COLOR_RGB
        ways["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    if imagecodecs is not None:
        ways["imagecodecs"] = imagecodecs.png_decode if file_format == "png" else imagecodecs.jpeg_decode
    return ways


def by_ours(shape: tuple[int, ...]) -> Read:
    """As a request's picture is read."""
    height, width, channels = shape
    return lambda content: images.to_rows([opened(content)], shape=(height, width, channels), where=["body"])[0]


def opened(content: bytes) -> images.Opened:
    """The first half of it."""
    found = images.look(content, where="body", max_pixels=MOST_PIXELS)
    return images.open_as(found, content, where="body", max_pixels=MOST_PIXELS)


def decoded(content: bytes) -> Image.Image:
    """The pixels of a plain PNG, which Pillow's are."""
    found = opened(content)
    assert isinstance(found, png.Plain)  # noqa: S101
    return found.decoded()


def by_pillow(channels: int) -> Read:
    """As people write it."""
    mode = "L" if channels == 1 else "RGB"

    def read(content: bytes) -> Uint8:
        array = np.asarray(Image.open(BytesIO(content)).convert(mode))
        return array.reshape(*array.shape[:2], channels)

    return read


def step_by_step(canvases: Canvases, seconds: float) -> dict[str, float]:
    """What reading Pillow's PNGs takes up to each step, Pillow's way and ours."""
    mode = "L" if canvases[0].shape[2] == 1 else "RGB"
    ways: dict[str, Callable[[bytes], object]] = {
        "Pillow: open": lambda content: Image.open(BytesIO(content)),
        "… load": lambda content: Image.open(BytesIO(content)).load(),
        "… convert": lambda content: Image.open(BytesIO(content)).convert(mode),
        "… asarray": by_pillow(canvases[0].shape[2]),
        "ours: open": opened,
        "… decode": decoded,
        "… rows": by_ours(canvases[0].shape),
    }
    return turns(ways, [as_png(6)(canvas) for canvas in canvases], seconds)


def filtered(canvases: Canvases, seconds: float) -> dict[str, str]:
    """Size and time of what PNG would deflate under one filter, or under the best of three for each line."""
    pillow = sum(len(as_png(1)(canvas)) for canvas in canvases)
    ways = {"none": none, "sub": sub, "up": up, "paeth": paeth, "best of a line": best}
    deflating: dict[str, Write] = {name: partial(deflated, way) for name, way in ways.items()}
    sizes = {name: sum(FRAMING_BYTES + len(way(canvas)) for canvas in canvases) for name, way in deflating.items()}
    taken = turns(deflating, canvases, seconds)
    return {name: f"{sizes[name] / pillow:.2f}, {taken[name]:,.0f}" for name in ways}


def deflated(way: Callable[[Uint8], Uint8], canvas: Uint8) -> bytes:
    """Lines under a filter, as a PNG holds them."""
    content: bytes = isal_zlib.compress(way(canvas), 1)
    return content


def lines_of(canvas: Uint8, number: int) -> tuple[Uint8, Uint8, Uint8]:
    """Lines as they are, as they will be deflated behind the filter's number, and the pixels of the latter."""
    lines = canvas.reshape(len(canvas), -1)
    out = np.empty((len(lines), 1 + lines.shape[1]), np.uint8)
    out[:, 0] = number
    out[:, 1:] = lines
    return lines, out, out[:, 1:]


def none(canvas: Uint8) -> Uint8:
    """Pixels as they are."""
    return lines_of(canvas, 0)[1]


def sub(canvas: Uint8) -> Uint8:
    """Less the pixel on the left."""
    lines, out, pixels = lines_of(canvas, 1)
    pixels[:, canvas.shape[2] :] -= lines[:, : -canvas.shape[2]]
    return out


def up(canvas: Uint8) -> Uint8:
    """Less the pixel above."""
    lines, out, pixels = lines_of(canvas, 2)
    pixels[1:] -= lines[:-1]
    return out


def paeth(canvas: Uint8) -> Uint8:
    """Less whichever neighbour is nearest to left + above - above left."""
    lines, out, pixels = lines_of(canvas, 4)
    padded = np.pad(lines.astype(np.int16), ((1, 0), (canvas.shape[2], 0)))
    left, above, corner = padded[1:, : lines.shape[1]], padded[:-1, canvas.shape[2] :], padded[:-1, : lines.shape[1]]
    to_left, to_above, to_corner = np.abs(above - corner), np.abs(left - corner), np.abs(left + above - 2 * corner)
    nearer = np.where(to_above <= to_corner, above, corner)
    pixels -= np.where((to_left <= to_above) & (to_left <= to_corner), left, nearer).astype(np.uint8)
    return out


def best(canvas: Uint8) -> Uint8:
    """Each line under that of none, sub and up whose bytes, signed, have the smallest sum of magnitudes."""
    candidates = np.stack([none(canvas), sub(canvas), up(canvas)])
    sums = np.abs(candidates.view(np.int8)).view(np.uint8).sum(axis=2, dtype=np.uint32)
    chosen: Uint8 = candidates[sums.argmin(axis=0), np.arange(len(canvas))]
    return chosen


def as_stated(canvases: Canvases, seconds: float) -> dict[str, str]:
    """What each form takes to read and to write, and in brackets what the service reckons with, or that it reckons with
    anything and lets a thread do it.
    """
    cells: dict[str, str] = {}
    for label, options in {"png": {}, "jpeg": {"quality": 90}, "webp": {"quality": 90}, "gif": {}, "tiff": {}}.items():
        contents = [saved(canvas, label, **options) for canvas in canvases]
        n_bytes = round(mean(map(len, contents)))
        stated = images.looking_cost_us(1, n_bytes=n_bytes)
        stated += images.decoding_cost_us(png.read(contents[0]), n_bytes=n_bytes, shape=None)
        reckoned = f"{stated:,.0f}" if isfinite(stated) else "thread"
        (taken,) = turns({label: by_ours(canvases[0].shape)}, contents, seconds / 5).values()
        cells[f"read {label}"] = f"{taken:,.0f} ({reckoned})"
    animated = [np.stack(canvases[:FRAMES])]
    stills = [canvas[None] for canvas in canvases]
    forms: dict[rendering.Encoding, list[Uint8]] = {"png": stills, "jpeg": stills, "webp": stills}
    for encoding, shown in (forms | {"apng": animated, "gif": animated}).items():
        stated = rendering.cost_us(shown[0].size, encoding)
        (taken,) = turns({encoding: rendered(encoding)}, shown, seconds / 5).values()
        cells[f"write {encoding}"] = f"{taken:,.0f} ({stated:,.0f})"
    return cells


def rendered(encoding: rendering.Encoding) -> Write:
    """Pictures as an answer."""
    return lambda shown: rendering.render(shown, encoding, columns=1, scale=1, quality=90, frame_ms=100)


def turns(ways: Mapping[str, Callable[[T], object]], inputs: Sequence[T], seconds: float) -> dict[str, float]:
    """Median microseconds of CPU time of each way, all of them turn by turn at one input after the other."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    rng = np.random.default_rng(0)
    ends = perf_counter() + seconds
    while len(taken[names[0]]) < FEWEST_TURNS or perf_counter() < ends:
        given = inputs[len(taken[names[0]]) % len(inputs)]
        for name in rng.permutation(names):
            began = thread_time()
            ways[name](given)
            taken[name].append(thread_time() - began)
    return {name: round(1e6 * median(times), 1) for name, times in taken.items()}


def ratios_first(measured: Mapping[str, Any], *, sizes_too: bool) -> tuple[list[str], list[list[str]]]:
    """Head and rows: every way's time as a multiple of ours, sizes, then the times themselves."""
    names = list(next(iter(measured.values()))["us"])
    others = names[1:]
    head = ["picture", *(f"{name} : ours" for name in others)]
    head += [f"bytes, ours : {name}" for name in others if sizes_too] + [f"{name} µs" for name in names]
    rows = []
    for label, found in measured.items():
        us, size = found["us"], found.get("bytes", {})
        row = [label, *(f"{us[name] / us['ours']:.1f}" for name in others)]
        row += [f"{size['ours'] / size[name]:.2f}" for name in others if sizes_too]
        rows.append(row + [f"{us[name]:,.0f}" for name in names])
    return head, rows


def figures(measured: Mapping[str, Mapping[str, float | str]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of figures as they are."""
    head = ["picture", *next(iter(measured.values()))]
    rows = [
        [label, *(found if isinstance(found, str) else f"{found:,.0f}" for found in cells.values())]
        for label, cells in measured.items()
    ]
    return head, rows


if __name__ == "__main__":
    main()
