"""The parent of several workers: it holds the port, starts them, replaces those that end, and ends them together."""

import asyncio
import logging
import signal
import socket
from contextlib import suppress
from math import ceil

from service.errors import ReloadRefused
from service.machine import available_cores
from service.observation import tally
from service.observation.tally import Tally
from service.processes import ports, signals
from service.processes.account import Account
from service.processes.child import Child
from service.processes.messages import (
    Answer,
    Ask,
    Drop,
    Listening,
    Load,
    Loaded,
    Message,
    Refused,
    Release,
    Swap,
    Workers,
)
from service.reload_turn import LOAD_S, SIGHUP, Turn, log_served, logged_refusal
from service.settings import AUTO, Settings

logger = logging.getLogger("vaeserve")

# What HTTP, decoding and encoding take of a core for a request of one small picture, in microseconds.
_REQUEST_US = 100.0

# How soon workers that serve different versions are told again to load the one that lies there: then after twice as
# long each time, up to a bound, as every try reads all bundles.
_AGAIN_S = 10.0
_LATEST_AGAIN_S = 600.0

# Who asks for a reload where nobody else did, as the log calls it.
_DIFFER = "workers differ"

# When a worker that was told to load or to swap is not waited for any more, in seconds: it gives up a load before.
_ANSWER_S = LOAD_S + 10

# How often workers are looked after, in seconds.
_LOOK_S = 1

# What workers get beyond the time that they give themselves, before they are killed.
_GRACE_S = 1.0


class Ended(Exception):
    """The service cannot go on; the process stops with this sentence."""

    def __init__(self, sentence: str, *, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class _Told(Exception):
    """The service was told to end."""


def best_workers(row_us: float, cores: int) -> int:
    """How many workers these cores can feed with requests of one row, whose HTTP is one core's work.

    Units:  row_us CPU microseconds of a row in the cheapest encoder
    """
    return max(1, ceil(cores * _REQUEST_US / (_REQUEST_US + row_us)))


class Supervisor:
    """As many workers as the settings say, behind one port, which is held here whatever becomes of them.

    Raises:  BadAddress if another service holds it, NoSharedMemory if the workers cannot have any
    """

    def __init__(self, settings: Settings, sockets: list[socket.socket], *, onnxruntime: str) -> None:
        self._settings = settings
        self._sockets = sockets
        self._claim = ports.claim(sockets)
        self._url = ports.url(sockets)
        self._onnxruntime = onnxruntime
        self._count = settings.workers
        self._memory = tally.shared(settings.workers or available_cores())
        self._tally = Tally(self._memory)
        self._children: dict[int, Child] = {}
        self._labels: tuple[str, ...] = ()
        self._greeted = self._complete = self._is_limited = False
        self._leaving, self._hurried, self._hangup = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._answering = asyncio.Event()  # whether any worker does
        self._turn = Turn()
        self._asked_by = _DIFFER

    async def run(self) -> None:
        """Serve until told to end.

        Raises:  Ended
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._leaving.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        for number in (signal.SIGTERM, signal.SIGINT):
            signals.heed_at_once(number, self._limit)
        reason: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._wait_until_told())
                self._tasks.create_task(self._reload_at_hangup())
                self._tasks.create_task(self._watch())
                self._fill(range(max(1, self._count)))
        except* Ended as reasons:
            reason = reasons.exceptions[0]
        except* _Told:
            pass
        await self._end()
        if reason:
            raise reason

    def _limit(self) -> None:
        """Let workers and this process end in time, whatever it is doing."""
        if not self._is_limited:
            self._is_limited = True
            for child in list(self._children.values()):
                child.leave()
            signals.end_within(self._settings.shutdown_timeout_s + 2 * _GRACE_S)

    def _interrupt(self) -> None:
        """The first Ctrl-C ends the service in its own time, a second one at once."""
        (self._hurried if self._leaving.is_set() else self._leaving).set()

    def _hang_up(self) -> None:
        """SIGHUP asks for a reload."""
        self._turn.asked(SIGHUP)
        self._asked_by = SIGHUP
        self._hangup.set()

    async def _wait_until_told(self) -> None:
        await self._leaving.wait()
        raise _Told

    def _fill(self, places: range) -> None:
        for place in places:
            self._tasks.create_task(self._keep(place))

    async def _keep(self, place: int) -> None:
        """Have a worker in this place, and another one when that has ended, later and later if they end soon."""
        clock = asyncio.get_running_loop().time
        account = Account()
        while True:
            try:
                child = self._children[place] = self._start(place)
            except OSError as error:  # the system has no process, memory or file for it now
                account.could_not_begin()
                pid, end = "-", f"before it began ({error.strerror})"
            else:
                if await self._listens(child):
                    began = clock()
                    await self._attend(child)
                    await child.ended.wait()
                    account.served(clock() - began)
                else:
                    await child.ended.wait()
                    account.did_not_listen()
                pid, end = str(child.pid), child.end
            if account.is_hopeless and not (self._complete and self._listening):
                raise Ended(f"workers: {account.failed} in a row ended before they listened, the last {end}", code=1)
            later = f" in {account.pause_s:.0f} s" if account.pause_s else ""
            logger.error("worker %s ended %s, another one takes its place%s", pid, end, later)
            await asyncio.sleep(account.pause_s)

    def _start(self, place: int) -> Child:
        """A worker for this place.

        Raises:  OSError
        """
        return Child(
            self._settings,
            workers=self._count,
            sockets=ports.beside(self._sockets),
            onnxruntime=self._onnxruntime,
            memory=self._memory,
            place=place,
        )

    @property
    def _listening(self) -> list[Child]:
        """The workers that answer requests."""
        return [child for child in self._children.values() if child.listening]

    @property
    def _differ(self) -> bool:
        """Whether a worker answers requests with another version than was agreed upon."""
        return any(child.labels != self._labels for child in self._listening)

    async def _attend(self, child: Child) -> None:
        """Do what a worker asks for while it answers requests."""
        async for ask in child.asks():
            self._tasks.create_task(self._reload_for(child, ask))

    async def _listens(self, child: Child) -> bool:
        """Whether a worker that was just started comes to answer requests."""
        while (said := await child.hear()) is not None:
            match said:
                case Refused():
                    if not self._labels:
                        raise Ended(said.sentence, code=2)
                    logger.error("worker %s: %s", child.pid, said.sentence)
                case Loaded() if self._count == AUTO:
                    self._count = best_workers(said.row_us, available_cores()) if said.on_cpu else 1
                    child.tell(Workers(self._count))
                    self._fill(range(1, self._count))
                case Loaded():
                    child.labels = said.labels
                    if not self._greeted:
                        self._greeted = True
                        for line in said.greeting:
                            logger.info("%s", line)
                case Listening():
                    self._note(child)
                    return True
        return False

    def _note(self, child: Child) -> None:
        """One worker more answers requests, and gets its share of the connections."""
        child.listening = True
        self._answering.set()
        listening = self._listening
        for other in listening:
            if other is not child:
                other.tell(Release())
        self._labels = self._labels or child.labels
        if child.labels != self._labels:
            self._hangup.set()  # what it has read is not what the others serve
        if not self._complete and len(listening) == self._count:
            self._complete = True
            logger.info("vae-serve running on %s (%d workers, Ctrl-C ends them)", self._url, self._count)

    async def _watch(self) -> None:
        """End each worker that listens and whose event loop has stood still for too long; loading keeps none so, as it
        is done by a thread. Looks are counted instead of seconds: while this process was stopped too, or the machine
        asleep, there were none, so that workers have all the time that they need to move again.
        """
        timeout_s = self._settings.wedge_timeout_s
        while True:
            await asyncio.sleep(_LOOK_S)
            for child in self._listening:
                if child.look() * _LOOK_S > timeout_s:
                    logger.error("worker %s has not moved for more than %d s and is killed", child.pid, timeout_s)
                    child.kill()

    async def _reload_at_hangup(self) -> None:
        """At every SIGHUP, let all workers take what the settings name by then; and again while they do not serve the
        same, as when one was replaced after another version had come to its place, which the others cannot read.
        """
        again_s = _AGAIN_S
        while True:
            await self._answering.wait()  # before that nobody has anything to load anew
            try:
                await asyncio.wait_for(self._hangup.wait(), again_s if self._differ else None)
                again_s = _AGAIN_S
            except TimeoutError:
                again_s = min(_LATEST_AGAIN_S, 2 * again_s)
                if not self._differ:
                    continue
            if not self._listening:  # any more
                self._answering.clear()
                continue
            self._hangup.clear()
            asked_by, self._asked_by = self._asked_by, _DIFFER
            with suppress(ReloadRefused):  # which the log has told
                await self._reload(None, asked_by)

    async def _reload_for(self, child: Child, ask: Ask) -> None:
        """Let all workers take a model in its new version, and tell the one that asked for it what came of it."""
        refusal = None
        self._turn.asked(ask.asked_by)
        try:
            await self._reload(ask.name, ask.asked_by)
        except ReloadRefused as problem:
            refusal = problem.detail
        child.tell(Answer(refusal))

    async def _reload(self, name: str | None, asked_by: str) -> None:
        """Let all workers load one model anew, or without a name all of them, and serve it if all have proven the same.

        Raises:  ReloadRefused if not; then none does
        """
        async with self._turn.of(asked_by):
            children = self._listening
            for child in children:
                child.tell(Load(name))
            said = list(zip(children, await asyncio.gather(*map(_answer, children)), strict=True))
            loaded = [(child, answer) for child, answer in said if isinstance(answer, Loaded)]
            refusals = [answer.sentence for _, answer in said if isinstance(answer, Refused)]
            if not loaded:
                refusals.append("no worker was left to load it")
            if len({answer.labels for _, answer in loaded}) > 1:
                refusals.append("workers did not all read the same")
            if refusals:
                for child, _ in loaded:
                    child.tell(Drop())
                self._tally.reloaded(is_refused=True)
                raise logged_refusal(refusals[0])
            for child, answer in loaded:
                child.tell(Swap())
                self._labels = child.labels = answer.labels
            await asyncio.gather(*[_answer(child) for child, _ in loaded])
            self._tally.reloaded(is_refused=False)
            log_served(loaded[0][1].greeting)
            if self._differ:
                self._hangup.set()  # for who began to listen meanwhile

    async def _end(self) -> None:
        """Close the port, let every worker finish what it accepted, and wait for them."""
        for listener in self._sockets:
            listener.close()
        children, answering = list(self._children.values()), self._listening
        for child in children:
            child.leave()
        ended = asyncio.ensure_future(_all_ended(children))
        hurried = asyncio.ensure_future(self._hurried.wait())
        within_s = self._settings.shutdown_timeout_s + _GRACE_S
        await asyncio.wait({ended, hurried}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        for child in children:
            child.kill()
        await ended
        if self._hurried.is_set():
            raise Ended("interrupted: requests were not finished", code=130)
        if not all(child.has_finished for child in answering):
            raise Ended("a worker did not finish in time what it had accepted", code=1)


async def _answer(child: Child) -> Message | None:
    """A worker's answer to what it was told for a reload, None once it has ended; for one that does not give any, and
    is killed, that it is refused.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await child.answer()
    except TimeoutError:
        child.kill()
        return Refused(f"worker {child.pid} has not answered within {_ANSWER_S} s and is killed")


async def _all_ended(children: list[Child]) -> None:
    for child in children:
        await child.ended.wait()
