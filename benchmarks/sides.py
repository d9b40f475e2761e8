"""One side of a comparison in a process of its own, since how memory is kept is a process's own choice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from model import memory

_spawn = get_context("spawn")


@contextmanager
def side(make: Callable[..., Callable[..., Any]], *args: Any, keeps_memory: bool, **kwargs: Any) -> Iterator[Any]:
    """What `make` gives, to be called from here: made there of these arguments, and called there.

    `keeps_memory` as the commands of `vae-train` do; whoever does not begins as Python does.
    """
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=_answer, args=(there, keeps_memory, make, args, kwargs), daemon=True)
    process.start()
    there.close()

    def call(*asked: Any) -> Any:
        here.send(asked)
        return here.recv()

    try:
        here.recv()  # it is made
        yield call
    finally:
        here.close()
        process.join()


def _answer(
    pipe: Connection, keeps_memory: bool, make: Callable[..., Callable[..., Any]], args: Any, kwargs: Any
) -> None:
    if keeps_memory:
        memory.keep_freed()
    called = make(*args, **kwargs)
    pipe.send(None)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(called(*asked))
