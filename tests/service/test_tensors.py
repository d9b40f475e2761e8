import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from service import tensors
from service.errors import BadBody

DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16, np.float32,
          np.float64, np.bool_]  # fmt: skip
names = st.text(min_size=1, max_size=10).filter(lambda name: name != "__metadata__")


def _arrays(dtypes: list[Any]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(st.sampled_from(dtypes), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


# Reading


@settings(max_examples=100)
@given(
    named=st.dictionaries(names, _arrays(DTYPES)),
    metadata=st.none() | st.dictionaries(st.text(), st.text(), min_size=1),
)
def test_what_the_library_wrote_is_read_as_the_library_reads_it(
    named: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    body = save(named, metadata)
    _assert_same(tensors.read(body), load(body))


def _agrees_with_the_library(body: bytes) -> None:
    """We may refuse more than the library; what we read, it reads too, and as the same."""
    try:
        found = tensors.read(body)
    except BadBody:
        return
    _assert_same(found, load(body))


numbers = st.integers(-1, 9) | st.sampled_from([2**31, 2**40, 2**63, 2**64, 1.0, -0.0, True, None, "1", []])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F16", "BOOL", "BF16", "F8_E4M3", "F4", "u8", "", None, 8, ["U8"]]),
        "shape": st.lists(numbers, max_size=3) | numbers,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | st.lists(numbers, max_size=3) | numbers,
    },
    optional={"more": numbers},
)
# Mostly right, so that each lie is told to the check that finds it.
nearly_right = st.integers(0, 9).map(lambda n: {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}) | entries
headers = st.dictionaries(st.sampled_from(["z", "images", "__metadata__", ""]), nearly_right | numbers, max_size=3)


@settings(max_examples=400)
@given(header=headers, data=st.binary(max_size=9))
@example(header={"z": {"dtype": "U8", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}, data=b"")
@example(header={"z": {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}}, data=b"1")
@example(header={"z": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}, data=b"1")
def test_no_header_is_read_otherwise_than_by_the_library(header: dict[str, Any], data: bytes) -> None:
    _agrees_with_the_library(_file(header, data))


@settings(max_examples=200)
@given(
    at=st.integers(0, 160),
    change=st.binary(max_size=3) | st.sampled_from([b"-", b"0", b"\\ud800", b"9", b'"', b",", b"}", b"\xff", b"[["]),
    gone=st.integers(0, 3),
)
def test_no_damaged_body_is_read_otherwise_than_by_the_library(at: int, change: bytes, gone: int) -> None:
    whole = save({"images": np.zeros((2, 3), np.uint8), "z": np.arange(2, dtype=np.float32)}, {"by": "a client"})
    _agrees_with_the_library(whole[:at] + change + whole[at + gone :])


@given(body=st.binary(max_size=40))
def test_no_noise_is_read_otherwise_than_by_the_library(body: bytes) -> None:
    _agrees_with_the_library(body)


@settings(max_examples=60)
@given(end=st.integers(0, 200))
def test_a_truncated_body_is_refused(end: int) -> None:
    whole = save({"z": np.arange(32, dtype=np.float32)})
    with pytest.raises(BadBody, match="not readable as safetensors"):
        tensors.read(whole[: min(end, len(whole) - 1)])


def _z(**lies: Any) -> dict[str, Any]:
    return {"z": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | lies}


TWICE = b'{"z": {"dtype": "U8", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
LIES = {
    "empty": (b"", "header: got a body of 0 bytes, expected at least 8"),
    "text": (b"not safetensors at all", "header: got a length of 7306634592548843374 bytes, expected at most 14"),
    "endless header": (struct.pack("<Q", 2**63) + b"{}", "got a length of 9223372036854775808 bytes, expected at most"),
    "long header": (_file(b" " * (2**20 + 1)), "header: got a length of 1048577 bytes, expected at most 1048576"),
    "no json": (_file(b"not json!!"), "header: Expecting value"),
    "no text": (_file(b'{"\xff": 1}'), "header: 'utf-8' codec can't decode byte 0xff"),
    "deep": (_file(b"[" * 100_000), "header: maximum recursion depth exceeded"),
    "half a character": (_file(b'{"\\ud800": 1}'), "header: .*surrogate"),
    "an endless number": (_file(b'{"z": ' + b"9" * 5000 + b"}"), "header: Exceeds the limit"),
    "below zero": (_file(_z(shape=[-2])), "header: got -2, expected no number below 0"),
    "many tensors": (
        _file({f"t{index}": {} for index in range(65)}),
        "header: got 65 tensors, expected at most 64",
    ),
    "no object": (_file([1]), "header: got a list, expected a JSON object"),
    "metadata of numbers": (
        _file({"__metadata__": {"n": 1}}), "__metadata__: got {'n': 1}, expected an object of texts"),
    "a key twice": (_file(TWICE, bytes(8)), "header: got a key twice, expected each once"),
    "a list": (_file({"z": ["F32", [2], [0, 8]]}, bytes(8)), "z: got .* expected an object of dtype, shape and data_"),
    "a member more": (_file(_z(more=1), bytes(8)), "z: got .*'more': 1.* expected an object of dtype, shape and data_"),
    "unknown dtype": (_file(_z(dtype="nothing"), bytes(8)), "z: got dtype 'nothing', expected one of BOOL, U8, "),
    "bfloat16": (_file(_z(dtype="BF16"), bytes(4)), "z: got dtype 'BF16', expected one of BOOL, U8, "),
    "no dtype": (_file(_z(dtype=[]), bytes(8)), r"z: got dtype \[\], expected one of BOOL, U8, "),
    "shape of halves": (_file(_z(shape=[0.5]), bytes(8)), r"z: got shape \[0.5\], expected a list of at most 64 whole"),
    "too many axes": (_file(_z(shape=[1] * 65), bytes(8)), "expected a list of at most 64 whole numbers"),
    "three offsets": (_file(_z(data_offsets=[0, 8, 8]), bytes(8)), "z: got data_offsets .* expected two whole numbers"),
    "too few bytes": (_file(_z(data_offsets=[0, 4]), bytes(4)), "z: got 4 bytes of data, expected the 8 of float32"),
    "huge shape": (_file(_z(shape=[2**40]), bytes(8)), "z: got 8 bytes of data, expected the 4398046511104 of float32"),
    "huge shape of nothing": (_file(_z(shape=[2**62, 0, 9], data_offsets=[0, 0])), "z: got shape .* that numpy has"),
    "a hole": (_file(_z(data_offsets=[4, 12]), bytes(12)), "z: got data from byte 4, expected from byte 0"),
    "an overlap": (_file(_z() | {"y": _z(data_offsets=[4, 12])["z"]}, bytes(12)), "y: got data from byte 4, expected"),
    "a rest": (_file(_z(), bytes(9)), "data: got 9 bytes, expected 8, as the header says"),
    "data that is missing": (_file(_z(), bytes(7)), "data: got 7 bytes, expected 8, as the header says"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), LIES.values(), ids=LIES)
def test_a_body_that_lies_is_refused_with_the_lie(body: bytes, sentence: str) -> None:
    with pytest.raises(BadBody, match=f"^not readable as safetensors: .*{sentence}"):
        tensors.read(body)


def test_tensors_are_views_of_the_body_that_nobody_can_write_to() -> None:
    image, z = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1), np.ones((2, 5), np.float32)
    body = save({"images": image, "z": z})
    found = tensors.read(body)
    for array in found.values():
        assert np.shares_memory(array, np.frombuffer(body, np.uint8))
        assert not array.flags.writeable


def test_numbers_that_a_processor_may_not_read_where_they_are_become_a_copy() -> None:
    z = np.arange(6, dtype=np.float32)
    text = json.dumps({"z": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode()
    for padding in range(4):
        found = tensors.read(_file(text + b" " * padding, z.tobytes()))["z"]
        assert found.flags.aligned
        np.testing.assert_array_equal(found, z)


@pytest.mark.parametrize("lie", [lambda body: body, lambda body: b"\xff" * 8 + body[8:]], ids=["honest", "lying"])
def test_the_stated_cost_of_reading_counts_no_more_header_than_there_is(lie: Callable[[bytes], bytes]) -> None:
    body = lie(save({"z": np.zeros(1000, np.float32)}))
    assert 15 < tensors.reading_cost_us(body) < 15 + 0.06 * len(body)


# Writing


@settings(max_examples=50)
@given(named=st.dictionaries(names, _arrays([np.uint8, np.float16, np.float32])))
def test_a_body_is_the_one_that_the_library_writes(named: dict[str, np.ndarray]) -> None:
    assert b"".join(tensors.write(named)) == save(named)


@settings(max_examples=50)
@given(named=st.dictionaries(names, _arrays(DTYPES)))
def test_tensors_read_back_as_they_were_written(named: dict[str, np.ndarray]) -> None:
    _assert_same(tensors.read(b"".join(tensors.write(named))), named)


def test_a_contiguous_array_is_written_without_a_copy() -> None:
    mu, logvar = np.ones((7, 3), np.float32), np.zeros((7, 3), np.float32)
    _, first, second = tensors.write({"mu": mu, "logvar": logvar})
    assert np.shares_memory(np.asarray(first), logvar)
    assert np.shares_memory(np.asarray(second), mu)


@pytest.mark.parametrize("order", [">", "<"])
def test_a_view_is_written_as_what_it_shows(order: str) -> None:
    view = np.arange(24, dtype=np.dtype("f4").newbyteorder(order)).reshape(4, 6)[::2, ::-1].T
    np.testing.assert_array_equal(load(b"".join(tensors.write({"z": view})))["z"], view)
