"""Where the time of an answer went, where several runs made it."""

import numpy as np

from service.batcher import Done
from service.observation.timing import Timing


def done(*, queue_s: float, run_s: float, rows: int, batch_rows: int) -> Done:
    outputs = (np.zeros((rows, 1)),)
    return Done(outputs, queued_at=5, started_at=5 + queue_s, ended_at=9, run_s=run_s, batch_rows=batch_rows)


def test_an_answer_of_two_runs_waited_and_ran_for_both_and_names_the_larger_batch() -> None:
    first = done(queue_s=1, run_s=0.5, rows=2, batch_rows=7)
    second = done(queue_s=2, run_s=0.25, rows=3, batch_rows=3)
    found = Timing(began=0, decoded_at=4, runs=(first, second), encoding_at=9)
    assert (found.queue_s, found.run_s, found.rows, found.batch_rows) == (3, 0.75, 5, 7)
