"""What wrk counts becomes requests/s of good answers only."""

import pytest

from benchmarks.loads import of_counts

COUNTED = {"answers": 1000, "duration_us": 2_000_000, "not_2xx": 0, "socket_errors": 0, "p50_us": 1500, "p99_us": 9000}


def test_figures_are_those_of_the_counts() -> None:
    found = of_counts(COUNTED, connections=64, cpu_s=0.25, elsewhere_s=0.5, resident_mb=99.96)
    assert (found.requests_per_s, found.p50_ms, found.p99_ms) == (500, 1.5, 9)
    assert (found.cpu_s_per_1k, found.resident_mb, found.elsewhere_cores, found.errors) == (0.25, 100, 0.25, 0)


def test_refusals_are_errors_and_not_requests() -> None:
    found = of_counts(
        COUNTED | {"not_2xx": 200, "socket_errors": 3}, connections=64, cpu_s=0.4, elsewhere_s=-0.01, resident_mb=1
    )
    assert (found.requests_per_s, found.cpu_s_per_1k) == (400, 0.5)
    assert (found.answers, found.errors, found.elsewhere_cores) == (1000, 203, 0)


def test_a_load_without_a_good_answer_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match=r"got no good answer at c = 64 .*'not_2xx': 1000.*, expected some"):
        of_counts(COUNTED | {"not_2xx": 1000}, connections=64, cpu_s=1, elsewhere_s=0, resident_mb=1)
