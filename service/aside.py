"""Work in a thread of its own, which a process that ends does not wait for."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_threads: set[Thread] = set()


async def aside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of work that may take minutes, as loading a model does."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from now on nobody cancels it, though who waits may be

    job = [partial(work, *args, **kwargs)]

    def run() -> None:
        try:
            result = job.pop()()  # nothing of it is held here when whoever waits goes on
        except BaseException as error:  # whatever it is
            tell = partial(done.set_exception, error)
        else:
            tell = partial(done.set_result, result)
        _threads.discard(thread)
        tell()

    thread = Thread(target=run, name="aside", daemon=True)
    _threads.add(thread)
    thread.start()
    return await asyncio.wrap_future(done)


def abandon() -> None:
    """End this process, which has done all else, if there is work that it would wait for, or that would fall over what
    an interpreter takes down as it ends.
    """
    if _threads:
        logging.shutdown()
        os._exit(0)
