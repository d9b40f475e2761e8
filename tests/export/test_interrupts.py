"""Ctrl-C while something is exported."""

import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import nn

from export import graphs
from export.interrupts import heard
from service.manifest import ImageSpec


def swallows() -> None:
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def turns_it_into_another() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("failed to export") from None


@pytest.mark.parametrize("work", [swallows, turns_it_into_another])
def test_an_interrupt_that_was_lost_comes_back_at_the_end(work: Callable[[], None]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), heard():
        work()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_ends_at_once_what_lets_it_through() -> None:
    went_on = []

    def lets_through() -> None:
        signal.raise_signal(signal.SIGINT)
        went_on.append(True)

    with pytest.raises(KeyboardInterrupt), heard():
        lets_through()
    assert not went_on


def test_other_errors_and_none_pass() -> None:
    with heard():
        pass
    with pytest.raises(ValueError, match="mine"), heard():
        raise ValueError("mine")


def test_a_shell_that_has_interrupts_ignored_is_obeyed() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heard():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_may_export() -> None:
    done = []

    def export() -> None:
        with heard():
            done.append(True)

    thread = threading.Thread(target=export)
    thread.start()
    thread.join()
    assert done


def test_an_exporter_that_swallows_an_interrupt_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.to(torch.float32).flatten(1)

    calls = []

    def export(*_: object, **__: object) -> None:
        calls.append(True)
        swallows()

    monkeypatch.setattr(torch.onnx, "export", export)
    image = ImageSpec(height=2, width=2, channels=1)
    with pytest.raises(KeyboardInterrupt):
        graphs.freeze(Encoder(), Encoder(), None, image=image, latent_shape=[4])
    assert len(calls) == 1
