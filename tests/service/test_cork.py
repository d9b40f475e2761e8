"""Answers leave whole and in order, past a transport that notes what it is given."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.http.cork import Cork

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

    def write_eof(self) -> None:
        assert not self.closed
        self.writes.append([b"the end"])

    def get_write_buffer_size(self) -> int:
        return 3  # the last bytes wait for a reader, whatever was written

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


def test_the_end_comes_after_what_was_held() -> None:
    async def main() -> None:
        cork = Cork(notes)
        cork.write(b"head")
        cork.write_eof()

    notes = Notes()
    asyncio.run(main())
    assert notes.writes == [[b"head"], [b"the end"]]


def test_what_was_taken_is_what_was_written_and_does_not_wait() -> None:
    async def main() -> int:
        cork = Cork(Notes())
        for data in (b"head", b"body", LONG):
            cork.write(data)
        return cork.taken_bytes

    assert asyncio.run(main()) == 8 + len(LONG) - 3


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
