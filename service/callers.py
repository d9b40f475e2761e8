"""A caller may leave before its answer is ready; its job is then taken back."""

import asyncio

from starlette.types import Receive

from service.batcher import Done

# A caller whose answer takes longer than this is listened to, so that its rows are dropped when it leaves.
PATIENCE_S = 0.05


class CallerGone(Exception):
    """The caller closed the connection before its answer was ready. Nobody is left to be told."""


async def attended(reply: "asyncio.Future[Done]", receive: Receive) -> Done:
    """The reply; when it is slow, listening meanwhile for the caller to leave."""
    listener = _Listener(reply, receive)
    patience = asyncio.get_running_loop().call_later(PATIENCE_S, listener.start)
    try:
        return await reply
    except asyncio.CancelledError:
        if listener.heard:
            raise CallerGone from None
        raise
    finally:
        patience.cancel()
        listener.stop()


class _Listener:
    """Waits for a caller to close its connection, and then takes its job back."""

    def __init__(self, reply: "asyncio.Future[Done]", receive: Receive) -> None:
        self.heard = False
        self._reply = reply
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._listen())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.heard = True
        self._reply.cancel()
