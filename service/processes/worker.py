"""One of several processes that serve: it loads, listens, and does what its parent tells it."""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from logging.config import dictConfig
from math import ceil
from multiprocessing.connection import Connection

from fastapi import FastAPI

from service import greeting
from service.access.keys import BadKeys
from service.app import create_app
from service.aside import abandon
from service.bundle import BadBundle
from service.deployment import Deployment
from service.errors import ReloadRefused
from service.machine import BadEngine, available_cores
from service.observation import logs
from service.observation.tally import Memory, Tally
from service.processes import ports
from service.processes.messages import (
    Answer,
    Ask,
    Drop,
    Listening,
    Load,
    Loaded,
    Refused,
    Release,
    Swap,
    Swapped,
    Workers,
    inbox,
)
from service.processes.ports import BadAddress
from service.processes.server import Server
from service.reload import NotProven, proven, swap
from service.settings import AUTO, Settings

Pipe = Connection  # to the parent

# How often a worker notes that its event loop comes round, in seconds: more often than its parent looks.
_BEAT_S = 0.5


def work(
    settings: Settings,
    *,
    workers: int,
    sockets: list[socket.socket],
    pipe: Pipe,
    onnxruntime: str,
    memory: Memory,
    place: int,
) -> None:
    """The life of the process. `workers` is how many share the machine; with AUTO it loads as if it were alone, and
    its parent then says how many. It counts in its place of `memory`.
    """
    dictConfig(logs.config(settings))
    try:
        app = _app(settings, workers or 1, Tally(memory, place=place))
        if workers == AUTO:
            pipe.send(_loaded(app.state.deployment))
            told: Workers = pipe.recv()
            workers = told.count
            if workers > 1:
                app = _app(settings, workers, Tally(memory, place=place))
        lines = greeting.lines(app.state.deployment, onnxruntime=onnxruntime, url=ports.url(sockets))
        pipe.send(_loaded(app.state.deployment, greeting=lines))
        server = Server(app, settings, on_listening=lambda: pipe.send(Listening()))
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_serve(server, app, sockets=sockets, pipe=pipe, tally=Tally(memory, place=place)))
        abandon()
    except (BadBundle, BadEngine, BadAddress, BadKeys) as error:
        pipe.send(Refused(str(error)))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone


def _app(settings: Settings, workers: int, tally: Tally) -> FastAPI:
    """The application, with one worker's part of the queue, of the keys' rates and of the cores."""
    part = {"max_queue_rows": ceil(settings.max_queue_rows / workers), "workers": workers}
    return create_app(settings.model_copy(update=part), cores=_cores(workers), tally=tally)


def _cores(workers: int) -> int:
    return ceil(available_cores() / workers)


def _loaded(deployment: Deployment, *, greeting: tuple[str, ...] = ()) -> Loaded:
    on_cpu = all(model.engine.device == "cpu" for model in deployment.models)
    return Loaded(deployment.models.labels, greeting, row_us=deployment.row_us, on_cpu=on_cpu)


async def _serve(server: Server, app: FastAPI, *, sockets: list[socket.socket], pipe: Pipe, tally: Tally) -> None:
    app.state.reload = parent = _Parent(pipe)
    beside = [asyncio.create_task(_obey(server, app, parent)), asyncio.create_task(_beat(tally))]
    try:
        await server.serve(sockets)
    finally:
        for task in beside:
            task.cancel()


async def _beat(tally: Tally) -> None:
    """Note again and again that the event loop comes round."""
    while True:
        tally.beat()
        await asyncio.sleep(_BEAT_S)


class _Parent:
    """Who decides on reloads, as all workers take a new version or none."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self._answers: deque[asyncio.Future[str | None]] = deque()

    async def __call__(self, name: str, asked_by: str) -> None:
        """Ask, for an admin, that every worker takes this model in its new version.

        Raises:  ReloadRefused if one of them has not proven it
        """
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self.pipe.send(Ask(name, asked_by))
        if refusal := await answer:
            raise ReloadRefused(refusal)

    def answer(self, refusal: str | None) -> None:
        """What became of the oldest request that is not answered, if its caller still waits."""
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(refusal)


async def _obey(server: Server, app: FastAPI, parent: _Parent) -> None:
    """Do what the parent says, and leave once it is gone."""
    state, pipe = app.state, parent.pipe
    orders = inbox(pipe)
    spare: Deployment | None = None
    with suppress(BrokenPipeError, ConnectionResetError):  # nor does it hear an answer then
        while (order := await orders.get()) is not None:
            match order:
                case Load(name):
                    try:
                        spare = await proven(state.deployment, name)
                    except NotProven as error:
                        pipe.send(Refused(str(error)))
                    else:
                        pipe.send(_loaded(spare, greeting=greeting.served(spare, name)))
                case Swap() if spare:
                    swap(state, spare)
                    spare = None
                    pipe.send(Swapped())
                case Drop():
                    spare = None
                case Answer(refusal):
                    parent.answer(refusal)
                case Release():
                    server.release()
    server.leave()
