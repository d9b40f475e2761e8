"""What a worker and its parent tell each other, over a pipe."""

import asyncio
from dataclasses import dataclass
from multiprocessing.connection import Connection


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker's models are proven and warm; `greeting` is what an operator is told of them.

    Units:  row_us CPU microseconds of a row in the cheapest encoder
    """

    labels: tuple[str, ...]
    greeting: tuple[str, ...]
    row_us: float
    on_cpu: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot serve what it was told to, and why."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Listening:
    """A worker answers requests."""


@dataclass(frozen=True, slots=True)
class Workers:
    """To a worker that was started to find out how many there shall be: so many."""

    count: int


@dataclass(frozen=True, slots=True)
class Release:
    """To a worker beside which another one has begun to listen: let go of all connections, so that it has its share."""


@dataclass(frozen=True, slots=True)
class Ask:
    """From a worker: an admin asks for a model in its new version, by all of them; it waits for an `Answer`. The log
    calls the admin `asked_by`.
    """

    name: str
    asked_by: str


@dataclass(frozen=True, slots=True)
class Answer:
    """To a worker: what became of the oldest `Ask` that is not answered; `refusal` is why nothing did."""

    refusal: str | None


@dataclass(frozen=True, slots=True)
class Load:
    """To a worker: load a model anew, or without a name all that the settings name, beside what serves, and answer
    `Loaded` or `Refused`.
    """

    name: str | None


@dataclass(frozen=True, slots=True)
class Swap:
    """To a worker: serve what was loaded last, and answer `Swapped`."""


@dataclass(frozen=True, slots=True)
class Swapped:
    """A worker serves what it loaded last."""


@dataclass(frozen=True, slots=True)
class Drop:
    """To a worker: forget what was loaded last."""


Message = Loaded | Refused | Listening | Workers | Release | Ask | Answer | Load | Swap | Swapped | Drop


def inbox(pipe: "Connection[Message, Message]") -> "asyncio.Queue[Message | None]":
    """What the other side says, as it comes; None once it is gone."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[Message | None] = asyncio.Queue()

    def read() -> None:
        try:
            message: Message | None = pipe.recv()
        except (EOFError, ConnectionResetError):
            message = None
            loop.remove_reader(pipe.fileno())
        heard.put_nowait(message)

    loop.add_reader(pipe.fileno(), read)
    return heard
