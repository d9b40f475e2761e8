"""The kinds of requests that are measured: what is sent, by how many clients at once, and how answers are checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from benchmarks import answers, requests
from benchmarks.servers import Request, Server
from benchmarks.subjects import Subject


@dataclass(frozen=True)
class Kind:
    """One kind of request; the graph that it uses sets its limit. Where requests are long, a load is `stretch` times as
    long as others, since wrk drops what is not answered when it ends.

    Units:  allowed_difference in those of mu and logvar, or in grey levels
    """

    requests: Callable[[Subject], list[Request]]
    difference: Callable[[Server, Sequence[Request], Subject, int], float]
    allowed_difference: float
    connections: tuple[int, ...]
    graph: str
    stretch: int = 1


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "encode": Kind(requests.encode, answers.of_encode, 1e-4, (64, 1), "encoder"),
        "bulk": Kind(requests.encode_in_bulk, answers.of_bulk, 1e-4, (4, 2, 1), "encoder", stretch=3),
        "decode": Kind(requests.decode, answers.of_decode, 1, (64,), "decoder"),
        "sample": Kind(requests.sample, answers.of_sample, 1, (16,), "decoder", stretch=2),
    }
)
