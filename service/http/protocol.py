"""HTTP/1.1 on a connection: uvicorn's, with bounds on what a client may send and on how long it may take."""

import asyncio
import select
from typing import Any, cast

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.errors import HeadTooLarge, Problem
from service.http.answering import Answering
from service.http.connections import LINGER_S, Connections
from service.http.outgoing import Outgoing

# Requests that may wait on one connection for the answer to an earlier one. Beyond them nothing is read any more.
_MAX_PIPELINED = 64

# The loop reads so much at a time. Of the piece in which a head begins, it is not known where; those after it count.
_PIECE_BYTES = 2**18

# The parser takes 0.9 and 2.0 too, in words that those do not have.
_VERSIONS = frozenset({"1.0", "1.1"})

_READING = frozenset({b"GET", b"HEAD"})

_PROCESSING = STATUS_LINE[102] + b"\r\n"

_NOT_HTTP = b"This is not an HTTP request that this server reads."


class _Flow(FlowControl):
    """Reading that rests while a request waits behind the one that is answered, whoever of it would hear on: the body
    of the one that waits would be read by nobody who knows its bound.
    """

    def __init__(self, transport: asyncio.Transport, protocol: "Protocol") -> None:
        super().__init__(transport)
        self._protocol = protocol

    def resume_reading(self) -> None:
        """Read on, if nothing waits."""
        if self.read_paused and not self._protocol.pipeline:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """uvicorn's connection, which alone would take heads of any size, wait for them and for bodies for ever, keep an
    answer as long as nobody reads it, and lose the body of a request that offers another protocol.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._max_head_bytes = connections.settings.max_head_bytes
        self._piece_bytes = 0  # of what has just come
        self._head_bytes = 0  # at most, of the head that is being read, or of what is no body since the last of a body
        self._farewell: bytes | None = None  # the last that is said here; nothing is heard after it was thought of
        self._turned_away: Problem | None = None  # what is answered here to all but probes, one answer in any case
        self._awaited: object = None
        self._awaited_since = 0.0
        self._taking: tuple[int, float] | None = None  # what was taken of answers, and when, at the last count
        self._answered: RequestResponseCycle | None = None  # of those that came the one whose turn it is
        self._heard_all = False  # the other side says no more
        self._has_probed = False  # whether it still listens
        self._is_released = False  # with the next answer it ends

    @property
    def is_busy(self) -> bool:
        """Whether a request has come that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def has_sent_all(self) -> bool:
        """Whether nothing waits here for the other side to read."""
        return self._outgoing.is_empty

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or refuse it."""
        self._outgoing = Outgoing(
            cast("asyncio.Transport", transport), self._connections.outbox, hears_out=self._hears_out
        )
        super().connection_made(cast("asyncio.Transport", self._outgoing))
        self.flow = _Flow(cast("asyncio.Transport", self._outgoing), self)
        try:
            self._turned_away = self._connections.enter(self)
        except Problem as problem:
            self._end_with(self._refusal(problem))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection, and tell whoever makes its answer: uvicorn tells the last of those that came."""
        self._connections.leave(self)
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it, uvicorn's never answers
        """Whether to stay: who says no more may still listen, so what was asked for is answered before we close."""
        if not self._owes_answers:
            self._outgoing.send()  # for now the loop closes, past what waits for the end of this turn
            return False
        self._heard_all = True
        if self._farewell is None:
            self._farewell = b""
            self.cycle.keep_alive = False  # which the last answer says
        return True

    def close(self) -> None:
        """Close, whatever goes on."""
        self.transport.abort()

    def release(self) -> None:
        """End with the answer to what is asked, or to what will be: closed now, it could meet a request on its way."""
        self._is_released = True
        if self.is_busy:
            self.cycle.keep_alive = False

    def _hears_out(self) -> bool:
        """Whether, in place of closing after an answer, what is still on its way of the body is read and dropped:
        closing on bytes that were not read would take the answer back.
        """
        if self.pipeline or not self._reads_body or self._heard_all:
            return False
        self._end_with(b"")
        return True

    def look(self, now: float) -> None:
        """Close what has no request in work and takes too long to send one, or does not read its answer. Who reads a
        body is woken, to see how much of it has come.

        Units:  now seconds, of the loop's clock
        """
        if self._heard_all and not self.transport.is_closing():
            self._look_for_caller()
        if self.is_busy and self.cycle.more_body:
            self.cycle.message_event.set()
        if self.is_busy or self.transport.get_write_buffer_size():
            self._awaited_since = now
        elif self.scope is not self._awaited or not self._awaited_since:
            self._awaited, self._awaited_since = self.scope, now
        elif now - self._awaited_since > self._patience_s:
            self.close()
        self._look_at_answer(now)

    def _look_for_caller(self) -> None:
        """Close what nobody listens to any more. Who has left altogether looks like one who says no more, until
        something comes there that can only be refused: so an answer that takes long begins with a 102.

        Source:  RFC 9110, section 15.2; RFC 2518, section 10.1
        """
        if _is_refused(self.transport):
            self.close()
        elif not self._has_probed and not self.pipeline and not self.cycle.response_started:
            self._has_probed = True
            if self.cycle.scope["http_version"] == "1.1":  # before that there is no interim answer
                self.transport.write(_PROCESSING)

    def _look_at_answer(self, now: float) -> None:
        if not self.transport.get_write_buffer_size():
            self._taking = None
            return
        window_s = self._connections.settings.transfer_timeout_s
        taken = self._outgoing.taken_bytes
        if self._taking is None or taken - self._taking[0] >= window_s * self._connections.settings.min_bytes_per_s:
            self._taking = (taken, now)
        elif now - self._taking[1] > window_s:
            self.close()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._farewell is not None:
            return
        self._piece_bytes = len(data)
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._end_with(_plain_400() if self._farewell is None else self._farewell)
        else:
            if self._head_bytes > self._max_head_bytes + _PIECE_BYTES:
                if self._reads_head:
                    self._end_with(self._refusal(self._head_too_large(self._head_bytes)))
                elif self._reads_body:  # a chunk's extension, or a trailer, that does not end
                    self._end_with(_plain_400())

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._head_bytes = self._piece_bytes
        self._connections.stir(self)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin to answer, unless too much came, in one head or in many, or what a proxy may read in another way."""
        if self._head_bytes > self._max_head_bytes:
            head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head_bytes > self._max_head_bytes:
                self._farewell = self._refusal(self._head_too_large(head_bytes))
        if self._farewell is None and not self._is_clear:
            self._farewell = _plain_400()
        if self._farewell is None and self._turned_away is not None and not self._is_probe:
            self._farewell = self._refusal(self._turned_away)
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._farewell = b""
        if self._farewell is not None:
            raise ValueError  # which ends the parser's work
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # which that version does not know: RFC 9110, section 10.1.1
        super().on_headers_complete()
        if not self._reads_head:
            self.headers = []  # for trailers, which no application sees: a proxy that guards headers looks at none
            if self._turned_away is not None or self._is_released:
                self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Note that nothing more of a body comes, also of one whose request is answered already."""
        if self.cycle is not None:  # as there is none yet where the first request offers another protocol
            self.cycle.more_body = False
            if self.cycle.response_complete:
                self._connections.rest(self)
        super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._head_bytes = self._piece_bytes
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, Answering(app, cycle, self._outgoing))

    def on_response_complete(self) -> None:
        """Go on to the next request, or say farewell."""
        self.server_state.total_requests += 1
        if self._farewell is not None and not (self.pipeline and not self.pipeline[-1][0].more_body):
            self.pipeline.clear()  # at most the one whose body could not be read
            self._end_with(self._farewell)
        elif not self.transport.is_closing():
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            elif self._is_between:
                self._connections.rest(self)
            self.flow.resume_reading()

    @property
    def _is_between(self) -> bool:
        """Whether all of a request has come, and nothing of another one."""
        return self.cycle.scope is self.scope and not self.cycle.more_body

    @property
    def _reads_head(self) -> bool:
        """Whether a head has begun that is not whole."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    @property
    def _reads_body(self) -> bool:
        """Whether a head was whole, and what belongs to it is not."""
        return self.cycle is not None and self.cycle.more_body

    @property
    def _patience_s(self) -> float:
        """How long the next head may let us wait: after an answer not long, as most clients are gone by then."""
        settings = self._connections.settings
        if self.cycle is None or self._reads_head:
            return settings.head_timeout_s
        return min(LINGER_S, settings.keep_alive_s) if self._reads_body else settings.keep_alive_s

    @property
    def _is_clear(self) -> bool:
        """Whether a head is of a version that we speak and says once whom it is for, and its body comes as it is; the
        parser has seen to the rest.

        Source:  RFC 9112, sections 3.2 and 6.1
        """
        hosts = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.lower() != b"chunked":
                return False
        version = self.parser.get_http_version()
        return version in _VERSIONS and (hosts == 1 or (version == "1.0" and hosts == 0))

    @property
    def _is_probe(self) -> bool:
        """Whether a head asks how the process is, or what it counts."""
        path = self.url.partition(b"?")[0]
        return self.parser.get_method() in _READING and (path.startswith(b"/health/") or path == b"/metrics")

    @property
    def _owes_answers(self) -> bool:
        """Whether there are requests to answer before the one that could not be read."""
        return self.is_busy and bool(self.pipeline or not self.cycle.more_body or self.cycle.response_started)

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn passes on no request whose body the parser is about to skip

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read a request that offers another protocol as one that does not, as a server may; many Java clients and
        `curl --http2` offer one. The parser has read its head, and has not looked for a body.

        Source:  RFC 9110, section 7.8
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._end_with(_plain_400())
            return
        kept = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([line, *kept, b"\r\n", rest]))

    def _head_too_large(self, head_bytes: int) -> Problem:
        limit = self._max_head_bytes
        return HeadTooLarge(f"head: got {head_bytes:,} bytes, the limit is {limit:,}")

    def _refusal(self, problem: Problem) -> bytes:
        """The whole answer to what no application sees, which is counted here."""
        self._connections.on_refusal(problem)
        content = orjson.dumps(problem.members(""))
        return _answer(problem.status, b"application/problem+json", content, **problem.headers)

    def _end_with(self, farewell: bytes) -> None:
        """Hear no more, answer what was asked before, say this and close."""
        self._farewell = farewell
        if self._owes_answers or self.transport.is_closing():
            return
        if self.is_busy:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if farewell:
            self.transport.write(farewell)
        if self._heard_all:
            self.transport.close()
        else:
            self.transport.write_eof()
            self.flow.resume_reading()
            self._connections.linger(self)


def _is_refused(transport: asyncio.Transport) -> bool:
    """Whether the other side has refused what was sent there, as its system does when nobody is left."""
    found = select.poll()
    found.register(transport.get_extra_info("socket").fileno(), 0)  # for what is told without asking: errors
    return bool(found.poll(0))


def _plain_400() -> bytes:
    return _answer(400, b"text/plain; charset=utf-8", _NOT_HTTP)


def _answer(status: int, media_type: bytes, content: bytes, **headers: str) -> bytes:
    named = {"content-length": str(len(content)), "connection": "close", "cache-control": "no-store", **headers}
    lines = [b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in named.items()]
    return b"".join([STATUS_LINE[status], b"content-type: ", media_type, b"\r\n", *lines, b"\r\n", content])
