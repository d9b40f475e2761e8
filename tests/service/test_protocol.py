"""What our protocol leans on in uvicorn's, and what it says of limits; `test_hostile` sends what they are for."""

import asyncio
import hashlib
import socket
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from packaging.requirements import Requirement
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import Problem, TooManyConnections
from service.http.connections import Connections
from service.http.protocol import Protocol
from service.settings import Settings

# Read the difference between the two versions of the file, see to it that service/http/protocol.py is still right, and
# that `test_hostile` passes; then move the range in pyproject.toml, and this.
LEANS_ON = {
    httptools_impl: "1d4e1c579df4168433a61a01f10c628b31c1790e72dd9769d2b8633b22214033",
    flow_control: "d39d16560df512f3ce907c329c2a0c3f5cd7165fef3b753876eae5739bf2a785",
}


def test_uvicorn_is_of_the_range_that_was_read() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = [each for each in map(Requirement, project["dependencies"]) if each.name == "uvicorn"]
    assert wanted.specifier.contains(version("uvicorn")), (
        f"uvicorn: got {version('uvicorn')}, expected {wanted.specifier}, for which service/http/protocol.py is"
    )


@pytest.mark.parametrize("module", LEANS_ON, ids=lambda module: module.__name__)
def test_the_parts_of_uvicorn_that_the_protocol_leans_on_are_those_that_were_read(module: ModuleType) -> None:
    assert module.__file__
    found = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    assert found == LEANS_ON[module], (
        f"{module.__name__} of uvicorn {version('uvicorn')} is not what service/http/protocol.py was written for"
    )


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


class Wire(asyncio.Transport):
    """A transport that is told how much of what was written nobody has read."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = 0
        self.aborted = False
        self.is_read = True
        self.has_answer = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unread += len(data)
        self.has_answer.set()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, _name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


async def long_answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000")]})
    await send({"type": "http.response.body", "body": bytes(100_000)})


def connected(
    wire: Wire, app: ASGIApp = long_answer, *, keep_alive_s: int = 5, connections: Connections | None = None
) -> Protocol:
    """A connection whose requests get 100,000 bytes, unless they get what an application answers."""
    config = Config(app, http=HttpToolsProtocol, log_config=None)
    config.load()
    settings = Settings(head_timeout_s=10, keep_alive_s=keep_alive_s, transfer_timeout_s=20, min_bytes_per_s=1000)
    connections = connections or Connections(settings, on_refusal=lambda _: None)
    protocol = Protocol(config, ServerState(), {}, asyncio.get_running_loop(), connections=connections)
    protocol.connection_made(wire)
    return protocol


def test_nothing_is_read_behind_a_request_that_waits_for_another_whoever_listens_for_its_caller() -> None:
    go_on, listened = asyncio.Event(), asyncio.Event()

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            assert not await Request(scope, receive).is_disconnected()
            listened.set()
            await go_on.wait()
        else:
            assert len(await Request(scope, receive).body()) == 100
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main() -> None:
        protocol = connected(wire := Wire(), listening)
        protocol.data_received(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n")
        protocol.data_received(b"POST /second HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(40))
        await listened.wait()
        assert not wire.is_read
        go_on.set()
        await wire.has_answer.wait()
        for _ in range(5):  # until the second one asks for its body
            await asyncio.sleep(0)
        assert wire.is_read
        wire.has_answer.clear()
        protocol.data_received(bytes(60))
        await wire.has_answer.wait()

    asyncio.run(main())


def test_whoever_is_answered_hears_that_its_caller_left_also_with_another_request_behind_it() -> None:
    heard = []

    async def listening(scope: Scope, receive: Receive, _send: Send) -> None:
        heard.append((scope["path"], [(await receive())["type"] for _ in range(2)]))

    async def main() -> None:
        protocol = connected(Wire(), listening)
        for path in (b"/first", b"/second"):
            protocol.data_received(b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
        await asyncio.sleep(0)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.tasks)

    asyncio.run(main())
    assert heard == [("/first", ["http.request", "http.disconnect"])]


def test_a_connection_without_a_request_is_closed_after_its_time() -> None:
    async def main() -> list[bool]:
        protocol = connected(wire := Wire())
        found = []
        for now in (1, 11, 11.1):
            protocol.look(now)
            found.append(wire.aborted)
        return found

    assert asyncio.run(main()) == [False, False, True]


@pytest.mark.parametrize("keep_alive_s", [5, 70])
def test_the_time_begins_anew_with_a_head_and_after_an_answer_that_is_read(keep_alive_s: int) -> None:
    async def main() -> list[bool]:
        protocol = connected(wire := Wire(), keep_alive_s=keep_alive_s)
        found = []
        protocol.look(1)
        protocol.data_received(b"GET / HTTP/1.1\r\n")
        protocol.look(9)
        protocol.look(18)
        protocol.data_received(b"Host: h\r\n\r\n")
        await wire.has_answer.wait()
        protocol.look(30)  # the answer is not read yet
        wire.unread = 0
        for now in (29 + keep_alive_s, 30 + keep_alive_s, 30.1 + keep_alive_s):
            protocol.look(now)
            found.append(wire.aborted)
        return found

    assert asyncio.run(main()) == [False, False, True]


def test_a_body_that_was_refused_is_heard_out_for_as_long_as_others_linger_whatever_may_rest() -> None:
    async def main() -> list[bool]:
        protocol = connected(wire := Wire(), keep_alive_s=3_600)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(40))
        await wire.has_answer.wait()
        wire.unread = 0
        found = []
        for now in (1, 6, 6.1):
            protocol.look(now)
            found.append(wire.aborted)
        return found

    assert asyncio.run(main()) == [False, False, True]


def test_a_body_that_came_to_its_end_after_its_answer_leaves_the_connection_at_rest() -> None:
    async def main() -> tuple[bool, bool]:
        protocol = connected(wire := Wire(), keep_alive_s=60)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(40))
        await wire.has_answer.wait()
        protocol.data_received(bytes(60))
        wire.unread = 0
        for now in (1, 50):
            protocol.look(now)
        rests = not wire.aborted
        protocol.shutdown()
        return rests, wire.is_closing()

    assert asyncio.run(main()) == (True, True)


def test_a_head_that_has_begun_after_an_answer_has_its_own_time() -> None:
    async def main() -> list[bool]:
        protocol = connected(wire := Wire())
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await wire.has_answer.wait()
        wire.unread = 0
        found = []
        protocol.look(1)
        protocol.data_received(b"GET / HTTP/1.1\r\n")
        for now in (5, 14.9, 15.1):
            protocol.look(now)
            found.append(wire.aborted)
        return found

    assert asyncio.run(main()) == [False, False, True]


def test_an_answer_that_is_taken_at_the_least_rate_is_waited_for_and_else_not() -> None:
    async def main() -> list[bool]:
        protocol = connected(wire := Wire())
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await wire.has_answer.wait()
        found = []
        for now, taken in ((1, 0), (20, 20_000), (39, 1000), (41, 0)):
            wire.unread -= taken
            protocol.look(now)
            found.append(wire.aborted)
        return found

    assert asyncio.run(main()) == [False, False, False, True]


class Guest:
    """A connection that notes what is done to it."""

    def __init__(self, *, has_sent_all: bool = True) -> None:
        self.has_sent_all = has_sent_all
        self.looks = 0
        self.looked_at_often = asyncio.Event()
        self.closed = asyncio.Event()

    def look(self, now: float) -> None:
        assert now > 0
        self.looks += 1
        if self.looks == 3:
            self.looked_at_often.set()

    def close(self) -> None:
        self.closed.set()


def house(max_connections: int) -> Connections:
    refusals: list[Problem] = []
    return Connections(Settings(max_connections=max_connections), on_refusal=refusals.append)


def test_beyond_the_limit_some_connections_are_for_probes_and_all_further_ones_refused_until_others_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.connections._MAX_PROBING", 1)
    sentence = "connections: 2 are open, which is the limit"

    async def main() -> None:
        connections = house(2)
        guests = [Guest() for _ in range(4)]
        assert [connections.enter(guest) for guest in guests[:2]] == [None, None]
        refusal = connections.enter(guests[2])
        assert isinstance(refusal, TooManyConnections)
        assert refusal.detail == sentence
        with pytest.raises(TooManyConnections, match=rf"^{sentence}$") as raised:
            connections.enter(guests[3])
        assert raised.value.headers == refusal.headers == {"retry-after": "1"}
        connections.leave(guests[0])
        assert connections.enter(guests[3]) is not None
        connections.leave(guests[2])
        connections.leave(guests[3])
        assert connections.enter(Guest()) is None

    asyncio.run(main())


def test_the_connection_that_has_rested_longest_makes_room() -> None:
    async def main() -> None:
        connections = house(4)
        never, first, second, again = guests = [Guest() for _ in range(4)]
        for guest in guests:
            connections.enter(guest)
        for guest in (again, first, second):
            connections.rest(guest)
        connections.stir(again)
        connections.rest(again)
        for gone in (first, second, again):
            assert connections.enter(Guest()) is None
            assert gone.closed.is_set()
        assert not never.closed.is_set()
        assert connections.enter(Guest()) is not None

    asyncio.run(main())


def test_whoever_asks_or_has_an_answer_to_read_or_is_gone_makes_no_room() -> None:
    async def main() -> None:
        connections = house(4)
        guests = [Guest(), Guest(), Guest(), Guest(has_sent_all=False)]
        for guest in guests:
            connections.enter(guest)
            connections.rest(guest)
        connections.stir(guests[0])
        connections.leave(guests[1])
        connections.linger(guests[2])
        assert [connections.enter(Guest()) for _ in range(2)] == [None, None]
        assert connections.enter(Guest()) is not None
        assert not any(guest.closed.is_set() for guest in guests)

    asyncio.run(main())


def test_a_full_house_is_told_once_until_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.http.connections._LOOK_EVERY_S", 0.001)

    async def main() -> None:
        connections = house(2)
        stays, *others = guests = [Guest() for _ in range(9)]
        for guest in guests:
            connections.enter(guest)
        assert len(caplog.records) == 1
        for guest in others:
            connections.leave(guest)
        await stays.looked_at_often.wait()
        for guest in others:
            connections.enter(guest)

    asyncio.run(main())
    sentence = "connections: 2 are open, which is the limit, and none rests; others are refused, but for probes"
    assert [(record.levelname, record.message) for record in caplog.records] == 2 * [("WARNING", sentence)]


def test_a_house_in_which_some_rest_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        connections = house(1)
        connections.enter(first := Guest())
        connections.rest(first)
        connections.enter(Guest())

    asyncio.run(main())
    assert not caplog.records


GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
HALF_READ = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + bytes(40)


@pytest.mark.parametrize(
    ("pieces", "makes_room"),
    [
        ([], False),
        ([GET], True),
        ([GET, GET], True),
        ([GET, b"\r\n"], True),
        ([GET, b"G"], False),
        ([GET + b"G"], False),
        ([GET, b"G", GET[1:]], True),
        ([HALF_READ], False),
        ([HALF_READ, bytes(60)], True),
        ([HALF_READ, bytes(60), b"G"], False),
        ([HALF_READ, bytes(60) + b"G"], False),
    ],
    ids=[
        "no request", "an answer", "two answers", "an empty line", "a head begun", "a head begun behind a request",
        "a head that came in two", "a body unread", "a body read to its end", "a head begun after a body",
        "a head begun behind a body",
    ],
)  # fmt: skip
def test_a_connection_makes_room_that_was_answered_and_has_begun_nothing(pieces: list[bytes], makes_room: bool) -> None:
    async def main() -> bool:
        connections = house(1)
        protocol = connected(wire := Wire(), connections=connections)
        for piece in pieces:
            wire.has_answer.clear()
            protocol.data_received(piece)
            await asyncio.gather(*protocol.tasks)
            await asyncio.sleep(0)
            wire.unread = 0
        connected(Wire(), connections=connections)
        return wire.aborted

    assert asyncio.run(main()) == makes_room


def test_a_connection_makes_no_room_while_its_answer_is_made_or_is_not_read() -> None:
    async def main() -> list[bool]:
        connections = house(1)
        protocol = connected(wire := Wire(), connections=connections)
        found = []
        protocol.data_received(GET + GET)
        for _ in range(4):
            connected(Wire(), connections=connections)
            found.append(wire.aborted)
            await asyncio.sleep(0)
        await asyncio.gather(*protocol.tasks)
        connected(Wire(), connections=connections)
        found.append(wire.aborted)
        wire.unread = 0
        connected(Wire(), connections=connections)
        return [any(found), wire.aborted]

    assert asyncio.run(main()) == [False, True]


def test_an_answer_that_is_about_to_leave_is_not_taken_back() -> None:
    connections = house(1)

    async def short(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        connected(Wire(), connections=connections)

    async def main() -> None:
        protocol = connected(wire := Wire(), short, connections=connections)
        protocol.data_received(GET)
        await asyncio.gather(*protocol.tasks)
        await asyncio.sleep(0)
        assert wire.has_answer.is_set()
        assert not wire.aborted

    asyncio.run(main())


def test_every_open_connection_is_looked_at_by_one_timer_which_ends_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.http.connections._LOOK_EVERY_S", 0.001)

    async def main() -> None:
        connections = house(9)
        guests = [Guest() for _ in range(3)]
        for guest in guests:
            connections.enter(guest)
        for guest in guests:
            await guest.looked_at_often.wait()
        for guest in guests:
            connections.leave(guest)
        await asyncio.sleep(0.01)
        looks = [guest.looks for guest in guests]
        await asyncio.sleep(0.01)
        assert [guest.looks for guest in guests] == looks

    asyncio.run(main())


def test_those_who_were_refused_are_closed_soon_and_a_flood_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.connections._LOOK_EVERY_S", 0.001)
    monkeypatch.setattr("service.http.connections.LINGER_S", 0.001)
    monkeypatch.setattr("service.http.connections._MAX_LINGERING", 1)

    async def main() -> None:
        connections = house(9)
        first, second = Guest(), Guest()
        connections.linger(first)
        assert not first.closed.is_set()
        connections.linger(second)
        assert second.closed.is_set()
        await first.closed.wait()

    asyncio.run(main())
