"""A client's connection, on which one request follows another: as little work as can be, and what became of each."""

import asyncio
import re
import socket
from dataclasses import dataclass
from typing import cast

from benchmarks.servers import HOST, Request

# A reset that a closed socket answers data with comes at once, but the kernel may be busy.
_RESET_WITHIN_S = 0.05

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_WITHOUT_BODY = {204, 304}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `head` is its status line and headers."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """What a header says, None where it is not there."""
        found = re.search(rb"\r\n%b: *([^\r]*)" % name.encode(), self.head, re.IGNORECASE)
        return found[1].decode("latin-1") if found else None


class Unanswered(Exception):
    """The connection ended before a whole answer had come.

    Lost is a request that the server had accepted: a part of the answer came, or the server closed after it had read
    all that was sent. Any other may be sent again.
    """

    def __init__(self, *, is_lost: bool) -> None:
        super().__init__("lost" if is_lost else "not read")
        self.is_lost = is_lost


class Connection(asyncio.Protocol):
    """An open connection; `connect` makes one."""

    def __init__(self) -> None:
        self.is_open = False
        self.port = 0
        """The port of this end, which tells connections apart."""
        self._received = bytearray()
        self._is_heard = False  # since the last request
        self._whole_bytes = 0  # of the answer, 0 while its head is not there
        self._reply: asyncio.Future[Answer] | None = None

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        """The answer to a request, of which no other may be under way.

        Raises:  Unanswered
        """
        self._reply, self._is_heard = asyncio.get_running_loop().create_future(), False
        if self.is_open:
            self._transport.write(request)
        else:
            self._fail(is_lost=False)
        return self._reply

    def close(self) -> None:
        """End the connection."""
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask from now on."""
        self._transport = cast("asyncio.Transport", transport)
        self.is_open, self.port = True, self._transport.get_extra_info("sockname")[1]

    def data_received(self, data: bytes) -> None:
        """Hand over the answer once it is whole."""
        self._is_heard = True
        self._received += data
        while not self._whole_bytes:
            head_bytes = self._received.find(b"\r\n\r\n") + 4
            if head_bytes < 4:
                return
            self._head = bytes(self._received[: head_bytes - 2])
            self._status = int(self._head[9:12])
            if self._status < 200:
                del self._received[:head_bytes]  # the answer is still to come
                continue
            length = None if self._status in _WITHOUT_BODY else _LENGTH.search(self._head)
            self._body_at, self._whole_bytes = head_bytes, head_bytes + (int(length[1]) if length else 0)
        if len(self._received) >= self._whole_bytes:
            self._answered()

    def eof_received(self) -> bool:
        """The server closed; whether it had read the request is seen in a moment."""
        self.is_open = False
        if self._reply is None or self._reply.done():
            return False
        asyncio.get_running_loop().call_later(_RESET_WITHIN_S, self._judge)
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        """A reset: the request was not read to its end, or its answer not sent to its end."""
        self.is_open = False
        self._fail(is_lost=self._is_heard)

    def _answered(self) -> None:
        answer = Answer(self._status, self._head, bytes(self._received[self._body_at : self._whole_bytes]))
        self._received.clear()
        self._whole_bytes = 0
        if _CLOSE.search(self._head):
            self.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(answer)

    def _judge(self) -> None:
        """Linux answers data for a socket that is closed, or closed before they were read, by a reset. So where none
        came, all that was sent had been read.

        Source:  RFC 2525, section 2.17; RFC 9293, section 3.5.2
        """
        end: socket.socket = self._transport.get_extra_info("socket")
        was_reset = end.fileno() < 0 or end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        was_sent = self._transport.get_write_buffer_size() == 0
        self._fail(is_lost=self._is_heard or (was_sent and not was_reset))
        self._transport.close()

    def _fail(self, *, is_lost: bool) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(Unanswered(is_lost=is_lost))


async def connect(port: int) -> Connection:
    """A connection to a server of this machine.

    Raises:  OSError
    """
    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    return connection


def as_bytes(request: Request, *lines: str) -> bytes:
    """A request as it is sent, with these header lines too."""
    method = "POST" if request.body else "GET"
    head = [f"{method} {request.path} HTTP/1.1", f"Host: {HOST}", *lines]
    if request.body:
        head += [f"Content-Type: {request.content_type}", f"Content-Length: {len(request.body)}"]
    return "\r\n".join([*head, "", ""]).encode() + request.body
