"""Forms are cut into their parts at the right places, once, and within their limits."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import multipart
from service.budget import LOOP_BUDGET_US
from service.errors import BadBody, Invalid, TooLarge
from service.multipart import Part

BOUNDARY = "frontier"
TYPE = f'multipart/form-data; boundary="{BOUNDARY}"'
MEGABYTE = 2**20

# What looks like a boundary for a while, and other bytes.
PIECES = st.sampled_from([b"\r\n--front", b"\r\n--", b"\r\n", b"\r", b"\n", b"-", b"--frontier--", b"x", bytes(300)])
CONTENTS = st.lists(PIECES, max_size=8).map(b"".join).filter(lambda content: b"\r\n--frontier" not in content)
FIELDS = st.builds(Part, st.sampled_from(["seed", "a b", "é"]), st.just(False), CONTENTS)
FILES = st.builds(Part, st.sampled_from(["images", "seed", "é"]), st.just(True), CONTENTS)


def form(parts: list[Part]) -> bytes:
    lines = []
    for part in parts:
        file = '; filename="a.png"\r\nContent-Type: image/png' if part.is_file else ""
        lines.append(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{part.name}"{file}\r\n\r\n'.encode())
        lines.append(part.content + b"\r\n")
    return b"".join([*lines, f"--{BOUNDARY}--\r\n".encode()])


def read(body: bytes, *, max_files: int = 100, content_type: str = TYPE) -> list[Part]:
    return multipart.read(body, content_type, max_files=max_files)


@given(
    parts=st.lists(FIELDS | FILES, max_size=5),
    chunk_bytes=st.integers(40, 700),
)
def test_parts_are_what_they_were_however_the_body_falls_into_chunks(parts: list[Part], chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multipart, "_CHUNK_BYTES", chunk_bytes)
        assert read(form(parts)) == parts


def test_a_large_file_is_held_once_beside_the_body() -> None:
    body = form([Part("images", True, bytes(20 * MEGABYTE)), Part("seed", False, b"1")])
    tracemalloc.start()
    try:
        read(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 20 * MEGABYTE < peak < 21 * MEGABYTE


def test_a_value_that_is_no_utf_8_is_read_byte_by_byte() -> None:
    assert Part("name", False, "é".encode()).text == Part("name", False, b"\xe9").text == "é"


@pytest.mark.parametrize(
    ("content", "is_file"), [(b"\x89PNG", True), (b"GIF89a\x01\0", True), (b"a.png", False), (b"", False)]
)
def test_what_is_named_as_pictures_are_and_is_no_text_is_a_file_without_a_name(content: bytes, is_file: bool) -> None:
    assert read(form([Part("images", False, content)])) == [Part("images", is_file, content)]
    assert read(form([Part("seed", False, content)])) == [Part("seed", False, content)]


def test_files_without_a_name_may_be_large_and_count_as_files() -> None:
    large = Part("images", False, bytes(70_000))
    assert read(form([large] * 3), max_files=3) == [Part("images", True, large.content)] * 3
    with pytest.raises(TooLarge, match=r"^rows: got 4 rows, the limit is 3$"):
        read(form([large] * 4), max_files=3)


def file(name: str = "images") -> Part:
    return Part(name, True, b"x")


HEAD = b'--frontier\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b"\r\n--frontierX" * 4_000,
        HEAD + b"\r\n--frontier-X" * 4_000,
        b'--frontier\r\nContent-Disposition: form-data; name="a"' + b";a=b" * 1_000 + HEAD[-4:],
        b"--frontier\r\nContent-Disposition:" + b" " * 4_000 + HEAD[-4:],
        HEAD + b"\r\n--frontier" + b"\t" * 60_000,
    ],
    ids=["lines like boundaries", "lines like the last one", "options", "blanks", "blanks behind a boundary"],
)
def test_a_form_that_is_work_for_each_byte_is_not_read_on_the_event_loop(body: bytes) -> None:
    assert len(body) < 2**16
    assert multipart.reading_cost_us(body) > LOOP_BUDGET_US


def test_a_small_form_is_read_on_the_event_loop() -> None:
    body = form([Part("images", True, np.random.default_rng(0).bytes(3_000)), Part("seed", False, b"1")])
    assert multipart.reading_cost_us(body) < LOOP_BUDGET_US


def test_what_follows_a_form_is_no_part_of_it() -> None:
    assert read(form([file()]) + b"\r\n" + bytes(200_000)) == read(form([file()]))


def test_as_many_files_as_there_may_be_are_read_and_one_more_is_413() -> None:
    assert len(read(form([file()] * 3), max_files=3)) == 3
    with pytest.raises(TooLarge, match=r"^rows: got 4 rows, the limit is 3$"):
        read(form([file()] * 4), max_files=3)


def test_more_fields_than_any_verb_has_options_are_422() -> None:
    with pytest.raises(Invalid, match=r"^form: got more than 64 fields, expected at most 64$"):
        read(form([Part("a", False, b"")] * 65))


def test_a_field_that_is_too_long_is_413() -> None:
    with pytest.raises(TooLarge, match=r"^form\.a: got 65,537 bytes, the limit is 65,536$"):
        read(form([Part("a", False, bytes(65_537))]))


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (form([file()])[:-20], TYPE, "it ends before its last boundary"),
        (form([file()]).replace(b"\r\n--frontier--", b"--frontier--"), TYPE, "it ends before its last boundary"),
        (form([file()]), "multipart/form-data; boundary=other", "it has not the boundary that its Content-Type names"),
        (b"no form", "multipart/form-data", "its Content-Type names no boundary; leave that header to"),
        (form([file()]), TYPE + 256 * ";", "its Content-Type has 296 characters, expected at most 256"),
        (form([file()]).replace(b"--frontier", b"------front"), "multipart/form-data", "its Content-Type names no"),
        (form([file()]).replace(b'name="images"; ', b""), TYPE, "a part has no name in its Content-Disposition"),
        (form([file()]).replace(b"Content-Disposition", b"X"), TYPE, "a part has no name in its Content-Disposition"),
        (b"--frontierX" + form([file()]), TYPE, "Did not find CR at end of boundary (10)"),
        (form([file()]).replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 1000 + b"\r\n"), TYPE, "Maximum header count"),
    ],
)
def test_what_is_no_form_is_400_and_says_why(body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(BadBody, match="^" + re.escape(f"not readable as multipart/form-data: {reason}")):
        read(body, content_type=content_type)
