from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import json_text


def _at_once(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


rows = st.sampled_from([(1, 4), (9, 3), (700, 8), (1, 20_000), (3, 9_000), (6000,), (30, 4, 16, 16), (0, 5)])
arrays = st.tuples(rows, st.sampled_from([np.float32, np.float16]), st.integers(0, 9)).map(
    lambda drawn: np.random.default_rng(drawn[2]).standard_normal(drawn[0]).astype(drawn[1])
)
texts = st.tuples(st.integers(0, 40), st.integers(1, 9000)).map(lambda drawn: ["é" + "x" * drawn[1]] * drawn[0])
documents = st.dictionaries(st.text(max_size=5), arrays | texts | st.none() | st.integers(0, 9) | st.text(max_size=9))


@settings(max_examples=60, deadline=None)
@given(document=documents)
def test_pieces_are_the_text_that_orjson_writes_at_once(document: dict[str, Any]) -> None:
    assert b"".join(json_text.pieces(document)) == _at_once(document)


def test_a_small_document_is_one_piece() -> None:
    mu = np.zeros((8, 128), np.float32)
    assert len(list(json_text.pieces({"model": "m", "mu": mu, "logvar": mu}))) == 1


@pytest.mark.parametrize("value", [np.ones((5000, 16), np.float32) / 3, ["x" * 1000] * 500], ids=["numbers", "texts"])
def test_no_piece_of_a_large_document_is_large(value: Any) -> None:
    pieces = list(json_text.pieces({"name": "m", "values": value}))
    assert sum(map(len, pieces)) > 400_000
    assert max(map(len, pieces)) < 100_000
