"""One worker process, as its parent sees it."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from typing import Any

from service.observation import tally
from service.observation.tally import Memory
from service.processes.messages import Ask, Message, inbox
from service.settings import Settings

_spawn = get_context("spawn")


class Child:
    """A worker that has just been started. It inherits nothing but what it is handed, and alone keeps that."""

    def __init__(
        self,
        settings: Settings,
        *,
        workers: int,
        sockets: list[socket.socket],
        onnxruntime: str,
        memory: Memory,
        place: int,
    ) -> None:
        self.ended = asyncio.Event()
        self.listening = False
        self.labels: tuple[str, ...] = ()
        self._answers: asyncio.Queue[Message | None] = asyncio.Queue()
        self._memory, self._place = memory, place
        self._beats, self._still_looks = 0.0, 0
        self._pipe, theirs = _spawn.Pipe()
        given = {"workers": workers, "sockets": sockets, "pipe": theirs, "onnxruntime": onnxruntime}
        given |= {"memory": memory, "place": place}
        self._process = _spawn.Process(target=_work, args=(settings,), kwargs=given, daemon=True)
        with _no_interrupts():
            self._process.start()
        theirs.close()
        for listener in sockets:
            listener.close()
        self._inbox = inbox(self._pipe)
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._reap)

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid

    @property
    def end(self) -> str:
        """How it ended."""
        code = self._process.exitcode or 0
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    @property
    def has_finished(self) -> bool:
        """Whether it has ended by itself, with all done."""
        return self._process.exitcode == 0

    async def hear(self) -> Message | None:
        """The next that it says before it listens; None once it has ended."""
        return await self._inbox.get()

    async def asks(self) -> AsyncIterator[Ask]:
        """What it is asked for while it listens, until it ends; what it answers meanwhile is kept for `answer`."""
        while (said := await self._inbox.get()) is not None:
            if isinstance(said, Ask):
                yield said
            else:
                self._answers.put_nowait(said)
        self._answers.put_nowait(None)

    async def answer(self) -> Message | None:
        """Its answer to what it was told while it listens; None once it has ended."""
        said = await self._answers.get()
        if said is None:
            self._answers.put_nowait(None)  # for whoever asks again
        return said

    def tell(self, message: Message) -> None:
        """Say something to it; one that has just ended does not hear it."""
        with suppress(BrokenPipeError):
            self._pipe.send(message)

    def look(self) -> int:
        """How many looks at it in a row, with this one, have found its event loop where the one before had."""
        beats = tally.beats(self._memory, self._place)
        self._still_looks = self._still_looks + 1 if beats == self._beats else 0
        self._beats = beats
        return self._still_looks

    def leave(self) -> None:
        """Ask it to finish what it accepted and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once; from now on it counts as one that answers nobody."""
        self.listening = False
        self._process.kill()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        self.listening = False
        tally.bury(self._memory, self._place)
        self.ended.set()


def _work(settings: Settings, **given: Any) -> None:
    from service.processes.worker import work  # onnxruntime and all that serves is loaded in the worker alone

    work(settings, **given)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Start processes that neither Ctrl-C nor the end of a terminal reaches: those are told to all, and it is their
    parent who ends them, or has them load anew.
    """
    resource_tracker.ensure_running()  # multiprocessing's own helper; as it starts, it lets Ctrl-C through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
