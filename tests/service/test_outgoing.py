"""Answers leave at the end of a turn of the loop, each whole and in order, past transports that note what they get."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.outgoing import Outbox, Outgoing


class Notes(asyncio.Transport):
    """A transport that notes what is done to it, in a list that others may share."""

    def __init__(self, done: list[bytes] | None = None) -> None:
        super().__init__()
        self.done: list[bytes] = [] if done is None else done
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.done.append(bytes(data))

    def write_eof(self) -> None:
        self.done.append(b"<end>")

    def get_write_buffer_size(self) -> int:
        return 3  # the last bytes wait for a reader, whatever was written

    def close(self) -> None:
        self.closed = True
        self.done.append(b"<closed>")

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, _default: object = None) -> object:
        return f"the {name}"


def outgoing_to(transport: Notes, outbox: Outbox) -> Outgoing:
    """One that closes when it is told to."""
    return Outgoing(transport, outbox, hears_out=lambda: False)


def test_answers_of_one_turn_leave_together_when_it_is_over() -> None:
    async def main() -> None:
        done: list[bytes] = []
        outbox = Outbox()
        first, second = outgoing_to(Notes(done), outbox), outgoing_to(Notes(done), outbox)

        async def answer(outgoing: Outgoing, data: bytes) -> None:
            outgoing.post(data)
            done.append(b"made " + data)

        for turn in (b"1", b"2"):
            await asyncio.gather(answer(first, b"a" + turn), answer(second, b"b" + turn))
            await asyncio.sleep(0)
        assert done == [b"made a1", b"made b1", b"a1", b"b1", b"made a2", b"made b2", b"a2", b"b2"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("act", "then"),
    [
        (lambda outgoing: outgoing.write(b"more"), b"more"),
        (lambda outgoing: outgoing.write_eof(), b"<end>"),
        (lambda outgoing: outgoing.close(), b"<closed>"),
    ],
    ids=["a write", "an end", "a close"],
)
def test_what_is_posted_goes_ahead_of_what_follows(act: Callable[[Outgoing], None], then: bytes) -> None:
    async def main() -> None:
        notes = Notes()
        outgoing = outgoing_to(notes, Outbox())
        outgoing.post(b"answer")
        act(outgoing)
        assert notes.done == [b"answer", then]
        await asyncio.sleep(0)
        assert notes.done == [b"answer", then]

    asyncio.run(main())


def test_an_answer_on_a_connection_that_was_lost_meanwhile_keeps_no_other_from_leaving() -> None:
    """Notes does not let itself be written to once it is closed."""

    async def main() -> None:
        outbox, lost, stays = Outbox(), Notes(), Notes()
        first, second = outgoing_to(lost, outbox), outgoing_to(stays, outbox)
        for turn in (b"1", b"2"):
            first.post(b"a" + turn)
            second.post(b"b" + turn)
            lost.closed = True
            await asyncio.sleep(0)
        assert lost.done == []
        assert stays.done == [b"b1", b"b2"]

    asyncio.run(main())


@given(steps=st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=3)), max_size=9))
def test_every_byte_leaves_once_and_in_order(steps: list[tuple[bool, bytes]]) -> None:
    async def main() -> list[bytes]:
        notes = Notes()
        outgoing = outgoing_to(notes, Outbox())
        for is_posted, data in steps:
            outgoing.post(data) if is_posted else outgoing.write(data)
        await asyncio.sleep(0)
        return notes.done

    assert b"".join(asyncio.run(main())) == b"".join(data for _, data in steps)


def test_what_was_taken_is_what_was_written_and_does_not_wait() -> None:
    async def main() -> int:
        outgoing = outgoing_to(Notes(), Outbox())
        outgoing.post(b"answer")
        for data in (b"head", b"body"):
            outgoing.write(data)
        return outgoing.taken_bytes

    assert asyncio.run(main()) == 6 + 8 - 3


def test_all_else_is_the_transports_own() -> None:
    outgoing = outgoing_to(notes := Notes(), Outbox())
    assert outgoing.get_extra_info("peername") == "the peername"
    assert not outgoing.is_closing()
    notes.close()
    assert outgoing.is_closing()


def test_who_is_to_be_heard_out_is_answered_and_not_closed() -> None:
    async def main() -> None:
        notes = Notes()
        outgoing = Outgoing(notes, Outbox(), hears_out=lambda: True)
        outgoing.post(b"answer")
        outgoing.close()
        assert notes.done == [b"answer"]

    asyncio.run(main())
