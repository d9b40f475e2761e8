"""Answers leave whole and in order, over a real socket and past a transport that notes what it is given."""

import asyncio
import socket

import httpx
from hypothesis import given
from hypothesis import strategies as st

from service.protocol import Cork

LONG = b"x" * 100_000


class Notes(asyncio.Transport):
    """A transport that keeps a list of its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[bytes]] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append([bytes(data)])

    def writelines(self, list_of_data: object) -> None:
        assert not self.closed
        self.writes.append([bytes(data) for data in list_of_data])  # type: ignore[attr-defined]

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, _default: object = None) -> object:
        return f"the {name}"


def after(*writes: bytes, close: bool = False) -> Notes:
    """What a transport was given after these writes in one turn of the loop, and one turn more."""

    async def main() -> Notes:
        notes = Notes()
        cork = Cork(notes)
        for data in writes:
            cork.write(data)
        if close:
            cork.close()
        await asyncio.sleep(0)
        return notes

    return asyncio.run(main())


def test_a_head_and_its_body_leave_in_one_write() -> None:
    assert after(b"head", b"body").writes == [[b"head", b"body"]]


def test_a_head_alone_leaves_when_the_turn_is_over() -> None:
    assert after(b"head").writes == [[b"head"]]


def test_what_is_long_is_not_held() -> None:
    assert after(LONG).writes == [[LONG]]
    assert after(b"head", LONG, LONG).writes == [[b"head", LONG], [LONG]]


def test_closing_writes_what_was_held_first() -> None:
    notes = after(b"head", close=True)
    assert (notes.writes, notes.closed) == ([[b"head"]], True)


@given(writes=st.lists(st.sampled_from([b"a", b"bc", b"def", LONG]), max_size=9), close=st.booleans())
def test_every_byte_leaves_once_and_in_order(writes: list[bytes], close: bool) -> None:
    notes = after(*writes, close=close)
    assert b"".join(data for write in notes.writes for data in write) == b"".join(writes)


def test_all_else_is_the_transports_own() -> None:
    async def main() -> None:
        cork = Cork(notes := Notes())
        assert cork.get_extra_info("peername") == "the peername"
        assert not cork.is_closing()
        notes.close()
        assert cork.is_closing()

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order(server_url: str) -> None:
    url = httpx.URL(server_url)
    paths = ["/sample?seed=1&format=json", "/health/live", "/nothing", "/sample?seed=2&format=json", "/models"]
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        requests = [f"GET {path} HTTP/1.1\r\nHost: here\r\nX-Request-ID: {path}\r\n\r\n" for path in paths]
        connection.sendall(
            "".join(requests).encode().replace(b"/models HTTP/1.1\r\n", b"/models HTTP/1.1\r\nConnection: close\r\n")
        )
        received = b""
        while part := connection.recv(2**16):
            received += part
    ids = [line.partition(b": ")[2].decode() for line in received.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == paths
    assert received.count(b"HTTP/1.1 ") == len(paths)
