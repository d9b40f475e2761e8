"""Where the time of an answer went: decode, queue, run, encode."""

from collections.abc import Iterator, Sequence
from time import perf_counter

from service.batcher import Done

STAGES = ("decode", "queue", "run", "encode")


class Timing:
    """The stages of an answer that has just been encoded, and the rows that its graphs ran.

    Units:  moments in seconds, as perf_counter gives them; rows over all runs, batch_rows of the largest batch
    """

    __slots__ = ("_runs", "batch_rows", "began", "decoded_at", "encoded_at", "encoding_at", "queue_s", "rows", "run_s")

    def __init__(self, *, began: float, decoded_at: float, runs: Sequence[Done], encoding_at: float) -> None:
        self.began = began
        self.decoded_at = decoded_at
        self.encoding_at = encoding_at
        self.encoded_at = perf_counter()
        self._runs = [(done.queued_at, done.started_at, done.ended_at) for done in runs]
        self.queue_s = self.run_s = 0.0
        self.rows = self.batch_rows = 0
        for done in runs:
            self.queue_s += done.queue_s
            self.run_s += done.run_s
            self.rows += len(done.outputs[0])
            self.batch_rows = max(self.batch_rows, done.batch_rows)

    @property
    def stages_s(self) -> tuple[float, float, float, float]:
        """Seconds of each of `STAGES`."""
        return self.decoded_at - self.began, self.queue_s, self.run_s, self.encoded_at - self.encoding_at

    def header(self) -> str:
        """What `Server-Timing` says, in milliseconds.

        Source:  W3C Server Timing
        """
        decode_s, queue_s, run_s, encode_s = self.stages_s
        return (
            f"decode;dur={1000 * decode_s:.3f}, queue;dur={1000 * queue_s:.3f}, run;dur={1000 * run_s:.3f}, "
            f'encode;dur={1000 * encode_s:.3f}, batch;desc="{self.batch_rows} rows"'
        )

    def spans(self) -> Iterator[tuple[str, float, float]]:
        """Name, begin and end of each stage; queue and run as often as a graph was run."""
        yield "decode", self.began, self.decoded_at
        for queued_at, started_at, ended_at in self._runs:
            yield "queue", queued_at, started_at
            yield "run", started_at, ended_at
        yield "encode", self.encoding_at, self.encoded_at
