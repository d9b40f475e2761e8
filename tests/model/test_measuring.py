"""A run measured: what is written, kept and refused."""

import dataclasses
import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from model import checkpoint, fingerprints, measuring, run
from model.checkpoint import RunConfig
from model.data import Dataset
from model.errors import BadData, BadSetting
from model.log import read_history
from model.measuring import NllRequest
from model.prior import FittedPrior


def test_a_run_ends_as_a_checkpoint_with_metrics_and_pictures(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    folder = tmp_path / "run"
    outcome = run.train(folder, run.start(folder, config, dataset=dataset), dataset)
    assert outcome == run.Outcome(step=12, steps=12, signal_number=None)
    metrics = measuring.measure(folder, dataset=dataset, draws=2, seed=7)
    assert metrics["protocol"]["draws"] == 2
    found = checkpoint.read(folder)
    assert json.loads(json.dumps(metrics)) == found.metrics
    assert np.array_equal(found.probe, dataset.test)
    assert list((folder / "pictures").glob("*.png"))


@pytest.mark.parametrize("request_", [NllRequest(n_images=11), NllRequest(samples=(0,)), NllRequest(draws=0)])
def test_an_estimate_that_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, config: RunConfig, dataset: Dataset, request_: NllRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    monkeypatch.delattr(measuring, "evaluate")
    with pytest.raises(BadSetting, match=r"^(n_images|samples|draws): got "):
        measuring.measure(tmp_path, dataset=dataset, nll=request_)
    assert not (tmp_path / "metrics.json").exists()


def test_steps_beyond_the_last_save_are_not_those_of_the_weights_that_are_measured(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    """As a kill leaves them: the log is written before the weights."""
    learner = run.start(tmp_path, config, dataset=dataset)
    run.train(tmp_path, learner, dataset)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({**read_history(tmp_path)[-1], "step": 10_000, "epoch": 2_500.0}) + "\n")
    measuring.measure(tmp_path, dataset=dataset)
    assert "12 steps in" in (tmp_path / "card.md").read_text()


def test_figures_are_measured_in_float32(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    allowed, evaluate = list[bool](), measuring.evaluate

    def noting(*args: Any, **options: Any) -> Any:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return evaluate(*args, **options)

    monkeypatch.setattr(measuring, "evaluate", noting)
    measuring.measure(tmp_path, dataset=dataset)
    assert allowed == [False]


def test_figures_tell_whether_their_pictures_are_those_of_the_run(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    own = dataclasses.replace(config, data=dataclasses.replace(config.data, sha256=dataset.sha256))
    run.train(tmp_path, run.start(tmp_path, own, dataset=dataset), dataset)
    assert measuring.measure(tmp_path, dataset=dataset)["protocol"]["of_the_run"] is True
    others = dataclasses.replace(dataset, test=dataset.test[::-1].copy())
    assert measuring.measure(tmp_path, dataset=others)["protocol"]["of_the_run"] is False


def test_an_estimate_of_log_p_is_kept_for_the_same_weights_and_pictures_alone(
    tmp_path: Path, config: RunConfig, dataset: Dataset
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    estimated = measuring.measure(tmp_path, dataset=dataset, nll=NllRequest(samples=(3,)))
    assert estimated["nll"] is not None
    assert measuring.measure(tmp_path, dataset=dataset)["nll"] == json.loads(json.dumps(estimated["nll"]))
    checkpoint.withdraw_metrics(tmp_path)  # as an evaluation does that is then stopped
    assert measuring.measure(tmp_path, dataset=dataset)["nll"] == json.loads(json.dumps(estimated["nll"]))
    other = dataclasses.replace(dataset, test=dataset.test[::-1].copy())
    assert measuring.measure(tmp_path, dataset=other)["nll"] is None


def test_metrics_come_last_so_that_where_they_are_all_else_is_of_the_same_weights(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):  # at the first evaluation, and at another one of the same weights
        with monkeypatch.context() as patched:
            patched.setattr("model.report.card.write_whole", full)
            with pytest.raises(OSError, match="No space left"):
                measuring.measure(tmp_path, dataset=dataset)
        assert not (tmp_path / "metrics.json").exists()
        metrics = measuring.measure(tmp_path, dataset=dataset)
    assert not (tmp_path / "state" / "metrics.json").exists()
    assert metrics["protocol"]["model_sha256"] == fingerprints.of_model(checkpoint.read(tmp_path).vae)


def test_a_fitted_prior_is_kept_and_goes_with_the_weights_that_it_belonged_to(
    tmp_path: Path, config: RunConfig, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    monkeypatch.setattr(measuring, "_report", lambda *_arguments, **_options: None)
    d = config.model.latent_dim
    fitted = FittedPrior(torch.ones(1), torch.arange(d, dtype=torch.float32)[None], torch.eye(d)[None])

    def found(kept: FittedPrior | None) -> None:
        generation = SimpleNamespace(metrics={}, fitted=kept)
        monkeypatch.setattr(measuring, "generate", lambda *_arguments, **_options: generation)
        measuring.measure(tmp_path, dataset=dataset)

    found(fitted)
    kept = safetensors.torch.load_file(tmp_path / "prior.safetensors")
    assert kept.keys() == fitted.tensors().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in fitted.tensors().items())
    found(None)
    assert not (tmp_path / "prior.safetensors").exists()


def test_pictures_of_another_size_cannot_measure_a_run(
    tmp_path: Path, config: RunConfig, dataset: Dataset, images: np.ndarray
) -> None:
    run.train(tmp_path, run.start(tmp_path, config, dataset=dataset), dataset)
    other = Dataset(name="wide", train=images[:, :4], test=images[:, :4])
    with pytest.raises(BadData, match=r"wide: got pictures of shape \(4, 6, 1\), expected \(9, 6, 1\)"):
        measuring.measure(tmp_path, dataset=other)
