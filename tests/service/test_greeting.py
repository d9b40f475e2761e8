"""What an operator reads when the models are ready."""

import dataclasses
from pathlib import Path

import pytest

from service import greeting
from service.deployment import deploy
from service.observation.metrics import Metrics
from service.settings import Settings
from tests.service.linear import Model, fitted_prior, linear, open_linear, write_linear

AUTOENCODER = dataclasses.replace(linear(), family="autoencoder")


@pytest.mark.parametrize(
    ("model", "fitted", "line"),
    [
        (linear(), False, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
        (linear((80, 64, 1)), False, "curl -s 'http://127.0.0.1:8000/sample?seed=7' -o sample.png"),
        (open_linear(), False, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
        (AUTOENCODER, False, "http://127.0.0.1:8000/docs"),
        (AUTOENCODER, True, "curl -s 'http://127.0.0.1:8000/sample?n=16&seed=7&scale=4' -o sample.png"),
    ],
    ids=["small", "large", "open sizes", "autoencoder", "autoencoder with a prior"],
)
def test_the_process_says_what_to_try_first(tmp_path: Path, model: Model, fitted: bool, line: str) -> None:
    write_linear(tmp_path / "model", model, fitted=fitted_prior() if fitted else None)
    deployment = deploy(Settings(bundles=(tmp_path / "model",)), metrics=Metrics())
    told = greeting.lines(deployment, onnxruntime="onnxruntime 1", url="http://127.0.0.1:8000")
    assert told[-1] == f"try:  {line}"
