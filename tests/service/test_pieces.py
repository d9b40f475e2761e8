import asyncio

import numpy as np
import pytest
from starlette.types import Message, Receive

from service.pieces import Pieces

MEGABYTE = 2**20


def _sent(response: Pieces) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    receive: Receive = asyncio.Future  # nothing is ever received
    asyncio.run(response({"type": "http"}, receive, send))
    return sent


@pytest.mark.parametrize("sizes", [(0,), (5, 0, 7), (MEGABYTE, MEGABYTE + 1, 3 * MEGABYTE)])
def test_a_body_is_its_pieces_in_order_and_its_length_is_told_first(sizes: tuple[int, ...]) -> None:
    pieces = [np.random.default_rng(size).bytes(size) for size in sizes]
    start, *bodies = _sent(Pieces(pieces, media_type="a/b", headers={"x-model": "m"}))
    assert start["status"] == 200
    assert dict(start["headers"]) == {
        b"x-model": b"m", b"content-length": str(sum(sizes)).encode(), b"content-type": b"a/b"
    }  # fmt: skip
    assert b"".join(message["body"] for message in bodies) == b"".join(pieces)
    assert [message["more_body"] for message in bodies] == [True] * (len(bodies) - 1) + [False]


def test_no_message_is_large_and_none_is_a_copy() -> None:
    array = np.arange(5 * MEGABYTE // 2, dtype=np.uint8)
    _, *bodies, end = _sent(Pieces([array.data], media_type="a/b", headers={}))
    assert [len(message["body"]) for message in bodies] == [MEGABYTE, MEGABYTE, MEGABYTE // 2]
    assert all(np.shares_memory(np.asarray(message["body"]), array) for message in bodies)
    assert end["body"] == b""
