import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service import tensors
from service.errors import BadBody

arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.float32, np.float16, np.int64]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
)


def _file(header: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@settings(max_examples=50)
@given(named=st.dictionaries(st.text(min_size=1, max_size=10).filter(lambda name: name != "__metadata__"), arrays))
def test_tensors_read_back_as_they_were_written(named: dict[str, np.ndarray]) -> None:
    found = tensors.read(tensors.write(named))
    assert found.keys() == named.keys()
    for name, array in named.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_view_is_written_as_what_it_shows() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(tensors.read(tensors.write({"z": array[::2, ::-1].T}))["z"], array[::2, ::-1].T)


@settings(max_examples=60)
@given(end=st.integers(0, 200))
def test_a_truncated_body_is_refused(end: int) -> None:
    whole = tensors.write({"z": np.arange(32, dtype=np.float32)})
    with pytest.raises(BadBody, match="not readable as safetensors"):
        tensors.read(whole[: min(end, len(whole) - 1)])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not safetensors at all",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10) + b"not json!!",
        _file({"z": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"z": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, bytes(8)),
        _file({"z": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        _file({"z": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(9)),
        _file({"z": {"dtype": "nothing", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"z": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        _file({"z": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    ],
    ids=[
        "empty", "text", "endless header", "no json", "too few bytes", "huge shape", "a hole", "a rest",
        "unknown dtype", "bfloat16", "float8",
    ],
)  # fmt: skip
def test_a_body_that_lies_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody, match="not readable as safetensors"):
        tensors.read(body)
