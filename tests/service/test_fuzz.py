"""Whatever bytes and options come, a verb answers with a status that its OpenAPI lists, and never with a 5xx.

`make soak` runs the same for minutes, and schemathesis beside it.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import PROBLEMS
from tests.service.verbs import GETS, VERBS
from tests.service.wire import SAFETENSORS, base64_png, picture, pixels, png, saved, tensors
from tests.serving import Server, serving

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
SCHEMATHESIS = os.environ.get("SCHEMATHESIS")
LASTING = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no finding
)

NAMES = sorted({name for verb in VERBS.values() for name in verb.options.model_fields} | {"images", "z", "points", "x"})
IMAGE = pixels(1, (6, 5, 3))[0]
FILES = [png(IMAGE), *(saved(picture(IMAGE), kind) for kind in ("JPEG", "WEBP", "BMP", "GIF", "TIFF"))]
MEDIA_TYPES = ["image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff"]

SHAPES = [(2, 6, 5, 3), (1, 10), (10,), (2, 10), (0, 10), (1, 2, 4, 4), (1, 16, 16, 3), ()]

# Numbers around those that mean something, and others.
NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, 2**64, 1e39, -1e300]),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
FORMS = ["json", "png", "gif", "apng", "webp", "jpeg", "safetensors"]
WORDS = st.one_of(
    st.sampled_from(["full", "bare", "patches", "autoencoder", *FORMS]),
    st.sampled_from(["true", "fitted", "slerp", "3,14", "0,1,2", "", "NaN", "inf", "-0", "1e999", base64_png(IMAGE)]),
    st.text(max_size=8),
)
LATENTS = st.lists(st.lists(NUMBERS, min_size=9, max_size=11), max_size=3)
POINTS = st.dictionaries(st.sampled_from(["seed", "z", "image", "x"]), NUMBERS | WORDS | LATENTS, max_size=2)
VALUES = st.one_of(
    NUMBERS,
    WORDS,
    st.none(),
    st.booleans(),
    LATENTS,
    st.lists(st.one_of(NUMBERS, WORDS), max_size=4),
    st.recursive(st.none() | NUMBERS | WORDS, lambda inner: st.lists(inner, max_size=3), max_leaves=6),
    st.lists(POINTS, max_size=3),
)

# What each option may well be. A verb that meets nothing but nonsense says 422, and nothing behind that is tried.
LIKELY: dict[str, list[Any]] = {
    "model": ["full", "bare", "patches", "autoencoder"],
    "format": FORMS,
    "columns": [1, 2, 3, 100],
    "scale": [1, 2, 32],
    "quality": [1, 90, 100],
    "height": [4, 16, 64],
    "width": [4, 16, 64],
    "frame_ms": [1, 100, 65_535],
    "seed": [0, 7, 2**63 - 1],
    "n": [1, 5, 256],
    "temperature": [0, 0.5, 10],
    "prior": ["standard", "fitted"],
    "draws": [0, 1, 3],
    "dtype": ["float32", "float16"],
    "k": [0, 1, 5],
    "seeds": ["1,2", "3,14,15", "0"],
    "steps": [2, 3, 9],
    "method": ["linear", "slerp"],
    "loop": ["true", "false"],
    "dims": ["0", "0,1,9"],
    "span": [0.5, 3],
    "compare": ["true", "false"],
    "images": [[base64_png(IMAGE)], [base64_png(IMAGE)] * 3],
    "z": [[0.5] * 10, [[0.5] * 10] * 2, [[[[0.5] * 4] * 4] * 2]],
    "points": [[{"seed": 1}, {"z": [0.5] * 10}, {"image": base64_png(IMAGE)}]],
}


def value(name: str) -> st.SearchStrategy[Any]:
    """What a member or an option may be, most of the time what it may well be."""
    likely = st.sampled_from(LIKELY[name]) if name in LIKELY else VALUES
    return st.integers(0, 14).flatmap(lambda chance: VALUES if chance == 7 else likely)


def options(verb: str) -> st.SearchStrategy[list[tuple[str, str]]]:
    """A query, most of the time of options that the verb knows."""
    known = st.sampled_from(sorted(VERBS[verb].options.model_fields))
    name = st.integers(0, 19).flatmap(lambda chance: st.sampled_from(NAMES) if chance == 7 else known)
    pair = name.flatmap(lambda name: st.tuples(st.just(name), value(name).map(str)))
    return st.lists(pair, max_size=3, unique_by=lambda pair: pair[0])


def members(verb: str) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON body, most of the time of members that the verb takes."""
    needed = sorted(VERBS[verb].takes & {"images", "z"})[:1]
    others = [name for name in ("seed", "points", "z", "x", "format") if name not in needed]
    chosen = st.lists(st.sampled_from(others), max_size=1)
    return chosen.flatmap(lambda more: st.fixed_dictionaries({name: value(name) for name in [*needed, *more]}))


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were right, cut, stretched and changed here and there."""
    content = bytearray(whole)
    places = st.integers(0, max(0, len(content) - 1))
    for place, byte in draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        content[place : place + 1] = bytes([byte])
    cut = draw(st.none() | st.integers(0, len(content)))
    return bytes(content[:cut]) + draw(st.just(b"") | st.binary(max_size=20))


@st.composite
def named_tensors(draw: st.DrawFn) -> bytes:
    """A safetensors body, whose names, dtypes and shapes may be those of a request."""
    named = {}
    for name in draw(st.lists(st.sampled_from(["images", "z", "x"]), max_size=2, unique=True)):
        dtype = draw(st.sampled_from([np.uint8, np.float32, np.float16, np.int64]))
        shape = draw(st.sampled_from(SHAPES))
        named[name] = np.full(shape, draw(st.sampled_from([0, 1, 255, 60_000])), dtype=np.float64).astype(dtype)
    return draw(mutated(tensors(**named)) | st.just(tensors(**named)))


def documents(whole: dict[str, Any]) -> bytes:
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def form(parts: list[tuple[str, bytes, bool]]) -> bytes:
    lines = []
    for name, content, is_file in parts:
        file = '; filename="a"' if is_file else ""
        lines.append(f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n")
    return b"".join([*lines, b"--b--\r\n"])


PARTS = st.lists(
    st.one_of(
        st.tuples(st.just("images"), st.sampled_from(FILES), st.just(True)),
        st.tuples(st.sampled_from(NAMES), st.binary(max_size=6), st.booleans()),
    ),
    max_size=4,
)
CONTENTS = st.one_of(
    st.tuples(st.just(SAFETENSORS), named_tensors()),
    st.tuples(st.sampled_from(MEDIA_TYPES), st.sampled_from(FILES)),
    st.tuples(st.sampled_from(MEDIA_TYPES), st.sampled_from(FILES).flatmap(mutated)),
    st.tuples(st.just("multipart/form-data; boundary=b"), PARTS.map(form)),
    st.tuples(st.just("multipart/form-data; boundary=b"), PARTS.map(form).flatmap(mutated)),
    st.tuples(
        st.sampled_from(["", "text/plain", *MEDIA_TYPES, SAFETENSORS, "application/json"]), st.binary(max_size=60)
    ),
)


def bodies(verb: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """A body and the type that it is said to be of."""
    document = members(verb).map(documents)
    return st.one_of(st.tuples(st.just("application/json"), document | document.flatmap(mutated)), CONTENTS)


POSTS = st.sampled_from(sorted(VERBS)).flatmap(lambda verb: st.tuples(st.just(verb), options(verb), bodies(verb)))
ADDRESSES = st.sampled_from(GETS).flatmap(lambda verb: st.tuples(st.just(verb), options(verb)))


@pytest.fixture(scope="module")
def listed(kinds: httpx.Client) -> dict[tuple[str, str], set[int]]:
    """The statuses that OpenAPI lists for a verb, by path and method."""
    paths = kinds.get("/openapi.json").json()["paths"]
    return {
        (path, method.upper()): {int(status) for status in operation["responses"]}
        for path in VERBS
        for method, operation in paths[path].items()
    }


def check(answer: httpx.Response, statuses: set[int]) -> None:
    assert answer.status_code < 500, answer.text
    assert answer.status_code in statuses, answer.text
    if answer.status_code >= 400:
        document = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.status_code, document["type"].rpartition(":")[2]) in {
            (each.status, each.kind) for each in PROBLEMS
        }


@LASTING
@given(request=POSTS)
def test_no_body_breaks_a_verb(
    kinds: httpx.Client,
    listed: dict[tuple[str, str], set[int]],
    request: tuple[str, list[tuple[str, str]], tuple[str, bytes]],
) -> None:
    verb, query, (media_type, content) = request
    answer = kinds.post(verb, params=_sendable(query), content=content, headers={"content-type": media_type})
    check(answer, listed[verb, "POST"])


@LASTING
@given(request=ADDRESSES)
def test_no_address_breaks_a_verb(
    kinds: httpx.Client, listed: dict[tuple[str, str], set[int]], request: tuple[str, list[tuple[str, str]]]
) -> None:
    verb, query = request
    check(kinds.get(verb, params=_sendable(query)), listed[verb, "GET"])


def _sendable(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value.encode("utf-8", "replace").decode()) for name, value in query]


@pytest.fixture(scope="module")
def described(kinds_folder: Path) -> Iterator[Server]:
    with serving([str(kinds_folder / "full"), str(kinds_folder / "patches"), "--max-request-rows", "256"]) as running:
        yield running


@pytest.mark.skipif(SCHEMATHESIS is None, reason="make soak runs it, from an environment of its own")
def test_schemathesis_finds_nothing(described: Server, tmp_path: Path) -> None:
    assert SCHEMATHESIS
    configuration = Path(__file__).parent / "schemathesis.toml"
    command = [SCHEMATHESIS, "--config-file", configuration, "run", f"{described.url}/openapi.json", "--checks", "all"]
    finished = subprocess.run(
        [*command, "--max-time", "300"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stdout
