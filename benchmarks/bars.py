"""What must hold between figures of one round: a bar, what was measured, and the ratio."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks.contenders import AUTO, BF16, LITSERVE, ONE_WORKER, PLAIN, TUNED
from benchmarks.loads import Load
from benchmarks.raw import Limits
from benchmarks.requests import BULK_ROWS, SAMPLE_ROWS

Sign = Literal["≥", "≤"]


@dataclass(frozen=True)
class Round:
    """What was measured side by side: loads by server, kind and connections, and the limits."""

    loads: Mapping[tuple[str, str, int], Load]
    limits: Limits


Side = Callable[[Round], float]


@dataclass(frozen=True)
class Bar:
    """A ratio of two sides and what it must be; without their side, the figure of ours itself.

    `limits` are by the subject's name; those that are not in it have none.
    """

    what: str
    kind: str
    sign: Sign
    ours: Side
    theirs: Side | None
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What rounds say of a bar; `theirs` is None where a figure stands alone, and `ratios` are then the figures."""

    what: str
    sign: Sign
    limit: float | None
    ours: float
    theirs: float | None
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is on the right side of the limit, if there is one."""
        if self.limit is None:
            return None
        return self.ratio >= self.limit if self.sign == "≥" else self.ratio <= self.limit


def outcome(bar: Bar, rounds: Sequence[Round], *, subject: str) -> Outcome | None:
    """What the rounds say, None if one of the sides was not measured.

    The ratio is taken within each round, never between figures of different rounds.
    """
    try:
        ours = [bar.ours(found) for found in rounds]
        theirs = [bar.theirs(found) for found in rounds] if bar.theirs else None
    except KeyError:
        return None
    ratios = ours if theirs is None else [mine / other for mine, other in zip(ours, theirs, strict=True)]
    middle = None if theirs is None else median(theirs)
    return Outcome(bar.what, bar.sign, bar.limits.get(subject), median(ours), middle, tuple(ratios))


def _rate(server: str, kind: str, connections: int, *, rows: int = 1) -> Side:
    return lambda found: rows * found.loads[server, kind, connections].requests_per_s


def _p50(server: str, kind: str, connections: int) -> Side:
    return lambda found: found.loads[server, kind, connections].p50_ms


def _p99(server: str, kind: str, connections: int) -> Side:
    return lambda found: found.loads[server, kind, connections].p99_ms


def _cpu(server: str, kind: str, connections: int) -> Side:
    return lambda found: found.loads[server, kind, connections].cpu_s_per_1k


def _encoder(found: Round) -> float:
    return found.limits.best("encoder")


def _grids(found: Round) -> float:
    """Grids a second if the decoder's rows and one thread's PNG came one after the other."""
    return 1 / (SAMPLE_ROWS / found.limits.best("decoder") + found.limits.grid_png_s)


_BULK, _SMALL = f"/encode, {BULK_ROWS} rows as safetensors", "/encode, PNG to JSON"
_ENCODE_64, _ENCODE_1 = f"{_SMALL}, c = 64", f"{_SMALL}, c = 1"
# What is asked for names no number of connections, so it is asked of each.
_ANY_BULK = {"small": 0.85, "medium": 0.85}

BARS: tuple[Bar, ...] = (
    Bar(f"{_ENCODE_64}: requests/s to the plain handler", "encode", "≥",
        _rate(AUTO, "encode", 64), _rate(PLAIN, "encode", 64), {"small": 6, "medium": 1.7}),
    Bar(f"{_ENCODE_64}: requests/s to the tuned handler", "encode", "≥",
        _rate(AUTO, "encode", 64), _rate(TUNED, "encode", 64), {"small": 4}),
    Bar(f"{_ENCODE_64}: one worker's requests/s to the plain handler", "encode", "≥",
        _rate(ONE_WORKER, "encode", 64), _rate(PLAIN, "encode", 64), {}),
    Bar(f"{_ENCODE_64}: requests/s to LitServe", "encode", "≥",
        _rate(AUTO, "encode", 64), _rate(LITSERVE, "encode", 64), {}),
    Bar(f"{_ENCODE_64}: one worker's requests/s to LitServe's one", "encode", "≥",
        _rate(ONE_WORKER, "encode", 64), _rate(LITSERVE, "encode", 64), {}),
    Bar(f"{_ENCODE_64}: pictures/s to onnxruntime alone", "encode", "≥",
        _rate(AUTO, "encode", 64), _encoder, {"medium": 0.75}),
    Bar(f"{_ENCODE_64}: CPU s/1k, all processes", "encode", "≤",
        _cpu(AUTO, "encode", 64), None, {"small": 0.14}),
    Bar(f"{_ENCODE_64}: CPU s/1k to the plain handler", "encode", "≤",
        _cpu(AUTO, "encode", 64), _cpu(PLAIN, "encode", 64), {}),
    Bar(f"{_ENCODE_64}: p99 ms to p50 ms", "encode", "≤",
        _p99(AUTO, "encode", 64), _p50(AUTO, "encode", 64), {"small": 3}),
    Bar(f"{_ENCODE_1}: p50 ms to the plain handler", "encode", "≤",
        _p50(AUTO, "encode", 1), _p50(PLAIN, "encode", 1), {"small": 1, "medium": 1.1}),
    Bar(f"{_ENCODE_64}: bf16's requests/s to the plain handler in fp32", "encode", "≥",
        _rate(BF16, "encode", 64), _rate(PLAIN, "encode", 64), {"medium": 4}),
    Bar(f"{_ENCODE_1}: bf16's p50 ms to the plain handler in fp32", "encode", "≤",
        _p50(BF16, "encode", 1), _p50(PLAIN, "encode", 1), {"medium": 0.7}),
    Bar(f"{_BULK}, c = 4: rows/s to onnxruntime alone", "bulk", "≥",
        _rate(AUTO, "bulk", 4, rows=BULK_ROWS), _encoder, _ANY_BULK),
    Bar(f"{_BULK}, c = 2: rows/s to onnxruntime alone", "bulk", "≥",
        _rate(AUTO, "bulk", 2, rows=BULK_ROWS), _encoder, _ANY_BULK),
    Bar(f"{_BULK}, c = 1: rows/s to onnxruntime alone", "bulk", "≥",
        _rate(AUTO, "bulk", 1, rows=BULK_ROWS), _encoder, _ANY_BULK),
    Bar("/decode, JSON to PNG, c = 64: requests/s to the plain handler", "decode", "≥",
        _rate(AUTO, "decode", 64), _rate(PLAIN, "decode", 64), {"small": 4}),
    Bar("/decode, JSON to PNG, c = 64: requests/s to the tuned handler", "decode", "≥",
        _rate(AUTO, "decode", 64), _rate(TUNED, "decode", 64), {}),
    Bar(f"/sample?n={SAMPLE_ROWS} to one PNG, c = 16: grids/s to onnxruntime and PNG alone", "sample", "≥",
        _rate(AUTO, "sample", 16), _grids, {"medium": 0.8}),
)  # fmt: skip
