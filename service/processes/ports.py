"""The port, taken before any model is loaded, so that one that cannot be had is told at once."""

import errno
import socket
import sys
from collections.abc import Sequence

# Elsewhere SO_REUSEPORT gives all connections to the socket that came last.
_SPREADS = sys.platform == "linux"

_REASONS = {
    errno.EADDRINUSE: "port {port}: taken by another process, expected a free one; --port 0 takes any that is free",
    errno.EACCES: "port {port}: this user may not listen on it, ports from 1024 on are open to all",
    errno.EADDRNOTAVAIL: "host {host}: no address of this machine, expected one that it has, or 0.0.0.0 for all",
}


class BadAddress(Exception):
    """Host and port cannot be listened on; the process stops with this sentence."""


def take(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host, bound but not yet listening: callers are refused until a model is ready.
    Port 0 takes a free one.

    Raises:  BadAddress
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # the latter of what is no name in any language
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise BadAddress(f"host {host}: {reason}, expected a name or an address of this machine") from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        port = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(_bound(family, (address[0], port, *address[2:])))
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:  # as ::1 where there is no IPv6
                raise unavailable(error, host=host, port=port) from error
            failed = error
    if failed and not sockets:
        raise unavailable(failed, host=host, port=port) from failed
    return sockets


def claim(sockets: Sequence[socket.socket]) -> socket.socket | None:
    """What lets no other parent of workers onto these addresses, for as long as it is open. Their sockets would join
    ours in silence: the kernel lets all those of one user listen together that ask for it.

    Raises:  BadAddress
    """
    if not _SPREADS:
        return None
    address = sockets[0].getsockname()[:2]
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind("\0vae-serve {}:{}".format(*address))  # of the abstract namespace: it ends with the process
    except OSError as error:
        lock.close()
        raise unavailable(error, host=address[0], port=address[1]) from error
    return lock


def beside(taken: Sequence[socket.socket]) -> list[socket.socket]:
    """A worker's own sockets for the addresses that its parent has taken. The kernel spreads connections over those of
    all workers; where it does not, they are the parent's own, and whoever is free takes the next connection.
    """
    if not _SPREADS:
        return [listener.dup() for listener in taken]
    sockets = []
    for listener in taken:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sockets.append(_bound(listener.family, listener.getsockname(), spread=True))
    return sockets


def unavailable(error: OSError, *, host: str, port: int) -> BadAddress:
    """Why an address cannot be had, in a sentence."""
    reason = _REASONS.get(error.errno or 0, "host {host}, port {port}: {error.strerror}")
    return BadAddress(reason.format(host=host, port=port, error=error))


def url(sockets: Sequence[socket.socket]) -> str:
    """Where a person of this machine finds what listens there."""
    host, port = sockets[0].getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def _bound(family: int, address: tuple[object, ...], *, spread: bool = False) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else the last process's connections block it
        if spread:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
