"""The bar: often for eyes, seldom for a log."""

import sys

import pytest

from model.bar import Bar
from model.training import Learner, TrainConfig
from model.vae import ModelConfig


def drawn(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> int:
    """How many times a bar over 500 steps is drawn where a step takes 50 ms."""
    learner = Learner(ModelConfig(9, 6, 1, latent_dim=3, features=4), training=TrainConfig(epochs=500), n_images=1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    now_s = 0.0
    monkeypatch.setattr("tqdm.std.time", lambda: now_s)
    with Bar(learner, is_shown=True) as bar:
        for _ in range(500):
            now_s += 0.05
            learner.step += 1
            bar.show(n=1, recon=3.0, kl=1.0)
    said = capsys.readouterr().err
    assert "epoch 500/500: 100%" in said
    assert "elbo -4.00, recon 3.00, kl 1.00" in said
    return said.count("\r")


def test_a_log_gets_a_bar_each_minute_and_a_terminal_ten_in_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn(capsys, monkeypatch, is_terminal=False) <= 3  # its beginning and its end
    assert drawn(capsys, monkeypatch, is_terminal=True) > 100
