"""The servers that are measured in turn, each with how it is started, what it serves and how it takes a picture."""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.requests import FORM, multipart
from benchmarks.servers import READY, Request, Server, running, script, serve_command

AUTO = "vae-serve"
ONE_WORKER = "vae-serve, one worker"
BF16 = "vae-serve, bf16"
PLAIN = "plain handler"
TUNED = "plain handler, tuned"
LITSERVE = "LitServe"
FLOOR_ASGI = "floor: bare ASGI"
FLOOR_FASTAPI = "floor: bare FastAPI"

BF16_DIFFERENCE = 0.1  # of mu and logvar, which spread by 1 and less


@dataclass(frozen=True)
class Contender:
    """A server; `is_floor` where its answer is a constant. `allowed_difference` stands in place of that for fp32."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    serves: frozenset[str]
    ready: str = READY
    is_floor: bool = False
    allowed_difference: float | None = None
    shaped: Callable[[Request], Request] = field(default=lambda request: request)

    def running(self) -> AbstractContextManager[Server]:
        """The server, ready."""
        return running(self.command, environment=self.environment, ready=self.ready)


def contenders(bundle: Path, *, litserve: str | None, openvino: str | None) -> list[Contender]:
    """All servers; those that need an environment of their own only where its interpreter is named."""
    environment = {"BUNDLE": str(bundle)}
    ours = frozenset({"encode", "bulk", "decode", "sample"})
    encode, decode = frozenset({"encode"}), frozenset({"encode", "decode"})
    found = [
        Contender(AUTO, _serve(bundle, "--workers", "auto"), {}, ours),
        Contender(ONE_WORKER, _serve(bundle, "--workers", "1"), {}, ours),
        Contender(PLAIN, _uvicorn("plain:app"), environment, decode),
        Contender(TUNED, _uvicorn("plain:app", "--workers", "2"), environment | {"THREADS": "1"}, decode),
        Contender(FLOOR_ASGI, _uvicorn("floors:bare"), environment, encode, ready="/", is_floor=True),
        Contender(FLOOR_FASTAPI, _uvicorn("floors:fastapi"), environment, encode, is_floor=True),
    ]
    if litserve is not None:
        lit = (litserve, str(Path(__file__).with_name("lit.py")), "{port}")
        found.append(Contender(LITSERVE, lit, environment, encode, ready="/health", shaped=as_form))
    if openvino is not None:
        bf16 = _serve(bundle, "--workers", "auto", "--precision", "bf16", python=openvino)
        found.append(Contender(BF16, bf16, {}, encode, allowed_difference=BF16_DIFFERENCE))
    return found


def as_form(request: Request) -> Request:
    """A PNG as the part `image` of a multipart form."""
    return replace(request, content_type=FORM, body=multipart("image", [request.body]))


def _serve(bundle: Path, *options: str, python: str = sys.executable) -> tuple[str, ...]:
    return tuple(serve_command(bundle, *options, python=python))


def _uvicorn(application: str, *options: str) -> tuple[str, ...]:
    return (script("uvicorn"), f"benchmarks.{application}", "--port", "{port}", "--no-access-log", *options)
