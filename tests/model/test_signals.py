"""Being asked to stop: once, twice, and by the echo of a first time."""

import os
import signal
from collections.abc import Iterator

import pytest

from model import signals
from model.signals import asked_to_stop


class Killed(Exception):
    """What a signal does that nobody has asked to be told of."""


def killed(number: int, _frame: object) -> None:
    raise Killed(number)


@pytest.fixture(autouse=True)
def _deadly() -> Iterator[None]:
    before = {number: signal.signal(number, killed) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_noted_and_a_ctrl_c_after_it_kills_at_once(first: signal.Signals) -> None:
    with asked_to_stop() as asked:
        send(first)
        assert asked == [first]
        with pytest.raises(Killed):
            send(signal.SIGINT)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_sigterm_soon_after_is_the_same_once_more(first: signal.Signals) -> None:
    with asked_to_stop() as asked:
        send(first)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert asked == [first]


def test_a_sigterm_long_after_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ECHO_S", 0.0)
    with asked_to_stop():
        send(signal.SIGTERM)
        with pytest.raises(Killed):
            send(signal.SIGTERM)


def test_signals_are_the_callers_again() -> None:
    with asked_to_stop():
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [killed, killed]
