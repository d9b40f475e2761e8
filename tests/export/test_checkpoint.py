"""Our own checkpoint as a source: what a bundle of it says, and which runs are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from export.frozen import CannotImport
from export.importers.checkpoint import diagnostics, load, recognises
from export.make import Wanted, make
from model import checkpoint, data, fingerprints
from model.checkpoint import DataConfig, RunConfig
from model.errors import BadCheckpoint
from model.parts import all_over
from model.prior import FittedPrior
from model.training import Learner, TrainConfig
from model.trust import judge
from model.vae import ModelConfig
from service.bundle import read
from service.manifest import Diagnostics, Likelihood
from service.settings import SHIPPED_BUNDLE


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def test_a_run_of_ours_is_known_by_its_config(trained: Path, tmp_path: Path) -> None:
    assert recognises(trained)
    assert not recognises(tmp_path)
    for content in ("{}", "[]", "no JSON", '{"format": 2}'):
        (tmp_path / "config.json").write_text(content)
        assert not recognises(tmp_path)


def test_a_bundle_says_what_its_run_is(made: Path, trained: Path) -> None:
    manifest = read(made).manifest
    assert (manifest.name, manifest.family, manifest.prior, manifest.licence) == ("digits", "vae", "standard", "MIT")
    assert (manifest.image.shape, manifest.latent_shape) == ((8, 8, 1), (5,))
    assert (manifest.scale_head, manifest.logvar_range) == ("logvar", (-15, 15))
    assert manifest.likelihood == Likelihood(kind="gaussian", sigma=0.3)
    assert (manifest.source.kind, manifest.source.network) == ("vaeserve", "small")
    metrics = json.loads((trained / "metrics.json").read_text())
    assert manifest.metrics == metrics
    assert manifest.diagnostics is not None
    assert list(manifest.diagnostics.kl_per_dimension) == metrics["kl_per_dimension"]
    assert manifest.diagnostics.mu_max == max(metrics["mu"]["max"])
    assert manifest.parity.real_pictures > 0


def test_diagnostics_are_what_the_evaluation_measured(made: Path, trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    found = read(made).manifest.diagnostics
    assert found is not None
    assert found.active_dimensions == tuple(np.flatnonzero(np.array(metrics["mu"]["variance"]) > 0.01))
    assert len(found.active_dimensions) == found.active_units
    assert found.aggregate is not None
    expected = {name: value for name, value in metrics["aggregate"].items() if name != "logvar_at_clamp"}
    assert found.aggregate.model_dump(mode="json") == expected
    assert found.samples is not None
    for prior in ("standard", "fitted"):
        realism, measured = getattr(found.samples, prior), metrics["samples"][prior]
        if measured is None:
            assert realism is None
            continue
        assert realism.expected_density == 1
        for name in ("density", "coverage", "expected_coverage"):
            assert getattr(realism, name) == measured[name]
    assert found.trust is not None
    assert found.trust.standard is not None
    assert found.trust.standard.trusted == judge("vae", metrics).standard.trusted
    assert f"cover {metrics['samples']['standard']['coverage']:.0%}" in found.trust.standard.reason


def evaluated(run: Path, **metrics: object) -> dict[str, object]:
    """Figures that say whose they are, written into a run; an evaluation found nothing but what is given."""
    found = {"protocol": {"model_sha256": fingerprints.of_model(checkpoint.read(run).vae)}, **metrics}
    (run / "metrics.json").write_text(json.dumps(found))
    return found


def test_an_autoencoders_diagnostics_have_moments_and_no_nats(untrained: Path, tmp_path: Path) -> None:
    run = copied(untrained, tmp_path / "run")
    aggregate = {"mean": [3.0, 0.0, 0.0], "variance": [4.0, 0.0, 1.0], "largest_correlation": 0.5}
    evaluated(
        run,
        kl_per_dimension=None,
        active_units=2,
        mu={"min": [-2.0, 0.0, -1.0], "max": [8.0, 0.0, 1.0], "variance": [4.0, 0.01, 1.0]},
        aggregate=aggregate | {"mmd": None, "mmd_spread": None, "logvar_at_clamp": None},
        samples=None,
    )
    found = make(load(run), tmp_path / "mine", Wanted(name="mine")).diagnostics
    assert found is not None
    assert (found.kl_per_dimension, found.active_dimensions, found.mu_max) == (None, (0, 2), 8.0)
    assert found.aggregate is not None
    assert found.aggregate.model_dump(exclude_none=True, mode="json") == aggregate
    assert found.samples is None
    assert found.trust is not None
    assert (found.trust.standard, found.trust.fitted) == (None, None)
    assert found.trust.interpolate is not None
    assert not found.trust.interpolate.trusted


def test_the_shipped_bundles_diagnostics_follow_from_its_own_figures() -> None:
    manifest = read(SHIPPED_BUNDLE).manifest
    assert manifest.metrics is not None
    assert manifest.diagnostics == Diagnostics.model_validate(diagnostics(manifest.family, manifest.metrics))


def test_card_and_pictures_travel_along(made: Path, trained: Path) -> None:
    drawn = sorted(path.name for path in (trained / "pictures").glob("*.png"))
    assert len(drawn) > 5
    assert sorted(path.name for path in (made / "pictures").iterdir()) == drawn
    for name in ("card.md", *(f"pictures/{name}" for name in drawn)):
        assert (made / name).read_bytes() == (trained / name).read_bytes()


def test_the_probe_holds_test_pictures(made: Path, trained: Path) -> None:
    kept = checkpoint.read(trained).probe
    np.testing.assert_array_equal(kept, data.read(None).test[all_over(180, most=64)])
    np.testing.assert_array_equal(read(made).probe.image, kept[all_over(64, most=4)])


def test_the_scorers_weights_are_those_of_the_decoder(made: Path) -> None:
    scorer = onnx.load_model(made / "scorer.onnx", load_external_data=False)
    large = {tensor.name for tensor in scorer.graph.initializer if np.prod(tensor.dims) >= 256}
    assert large
    assert {tensor.name for tensor in scorer.graph.initializer if tensor.external_data} == large


def test_an_autoencoder_becomes_a_bundle_with_its_fitted_prior(untrained: Path, tmp_path: Path) -> None:
    run = copied(untrained, tmp_path / "run")
    prior = FittedPrior(torch.tensor([1.0]), torch.zeros(1, 3), torch.eye(3)[None])
    checkpoint.write_prior(run, prior.tensors())
    evaluated(run)
    manifest = make(load(run), tmp_path / "mine", Wanted(name="mine"))
    assert (manifest.family, manifest.prior, manifest.scale_head) == ("autoencoder", "none", None)
    assert manifest.diagnostics is None
    found = load_file(tmp_path / "mine" / "prior.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "weights": (1,),
        "means": (1, 3),
        "cholesky": (1, 3, 3),
    }


def write_run(folder: Path, **model: Any) -> Path:
    """A run that was saved before its first step."""
    config = RunConfig(
        model=ModelConfig(6, 5, 1, preset="mlp", features=4, latent_dim=2, **model),
        training=TrainConfig(epochs=1),
        data=DataConfig(name="noise", n_train=8, n_validation=0, validation_seed=0, n_test=8, sha256=""),
    )
    checkpoint.write_config(folder, config, probe=np.zeros((8, 6, 5, 1), np.uint8))
    checkpoint.save(folder, Learner(config.model, training=config.training, n_images=8))
    return folder


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"sigma": "learned", "scale_head": "variance"}, Likelihood(kind="gaussian", sigma=0.3)),
        ({"likelihood": "bernoulli", "sigma": None}, Likelihood(kind="bernoulli", binarised_at=128)),
    ],
    ids=["learned", "bernoulli"],
)
def test_a_bundle_says_the_likelihood_that_training_reached_and_the_head_that_the_source_had(
    model: dict[str, Any], expected: Likelihood, tmp_path: Path
) -> None:
    described = load(write_run(tmp_path / "run", **model)).described
    found = described.likelihood
    assert found is not None
    assert found.model_copy(update={"sigma": expected.sigma}) == expected
    assert found.sigma == (None if expected.sigma is None else pytest.approx(expected.sigma))
    assert described.scale_head == model.get("scale_head", "logvar")


def with_tensor(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensors = load_file(path)
    name = max(tensors, key=lambda name: tensors[name].size)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, path)


def test_a_weight_that_is_no_number_is_named(untrained: Path, tmp_path: Path) -> None:
    run = copied(untrained, tmp_path / "run")
    with_tensor(run / "model.safetensors", lambda weight: np.where(weight == weight.max(), np.nan, weight))
    with pytest.raises(CannotImport, match=r"run, weight (en|de)coder\.\S+: got numbers that are not finite"):
        load(run)


def test_a_decoder_that_gives_nan_is_refused_before_it_is_rounded_to_black(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    tensors = load_file(run / "model.safetensors")
    huge = {name: 3e38 * np.sign(weight) for name, weight in tensors.items() if name.startswith("decoder.")}
    save_file(tensors | huge, run / "model.safetensors")
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        make(load(run), tmp_path / "mine", Wanted(name="mine"))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda path: path.write_bytes(b"no tensors"), "vae-train evaluate writes another"),
        (lambda path: with_tensor(path, lambda factors: -factors), "cholesky: got .* expected 0 above"),
        (lambda path: with_tensor(path, lambda factors: factors[:, :2, :2]), "cholesky: got .*expected finite float32"),
        (lambda path: save_file(other_prior(), path), "got 2 latent dimensions, expected 3"),
    ],
    ids=["bytes", "negative", "shape", "another model's"],
)
def test_a_fitted_prior_that_is_none_is_refused(
    untrained: Path, tmp_path: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    run = copied(untrained, tmp_path / "run")
    checkpoint.write_prior(run, FittedPrior(torch.tensor([1.0]), torch.zeros(1, 3), torch.eye(3)[None]).tensors())
    evaluated(run)
    break_it(run / "prior.safetensors")
    with pytest.raises(CannotImport, match=rf"prior\.safetensors: .*{sentence}"):
        load(run)


def other_prior() -> dict[str, np.ndarray]:
    tensors = FittedPrior(torch.tensor([1.0]), torch.zeros(1, 2), torch.eye(2)[None]).tensors()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def test_figures_that_no_evaluation_wrote_are_refused(untrained: Path, tmp_path: Path) -> None:
    run = copied(untrained, tmp_path / "run")
    evaluated(run, kl_per_dimension=[1.0])
    with pytest.raises(CannotImport, match=r"metrics\.json: got no figures of latents .*, expected what vae-train"):
        load(run)


@pytest.mark.parametrize("protocol", [{"protocol": {"model_sha256": "ab" * 32}}, {"protocol": None}, {}])
def test_figures_of_other_weights_are_refused(trained: Path, tmp_path: Path, protocol: dict[str, object]) -> None:
    """As after an evaluation of a run that was stopped, and has gone on since."""
    run = copied(trained, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["protocol"]
    (run / "metrics.json").write_text(json.dumps(metrics | protocol))
    with pytest.raises(CannotImport) as refused:
        load(run)
    assert str(refused.value) == (
        f"{run / 'metrics.json'}: got figures of other weights, expected those of model.safetensors;"
        f" `vae-train evaluate {run} --data …` measures these"
    )


def test_without_metrics_nothing_of_an_evaluation_travels(trained: Path, tmp_path: Path) -> None:
    """Whose prior and card those are, nobody knows."""
    run = copied(trained, tmp_path / "run")
    assert "card.md" in load(run).files
    (run / "metrics.json").unlink()
    assert load(run).files == {}


def test_a_config_that_is_nested_too_deeply_is_no_run_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert not recognises(tmp_path)


def test_a_run_without_weights_is_refused(untrained: Path, tmp_path: Path) -> None:
    run = copied(untrained, tmp_path / "run")
    (run / "model.safetensors").unlink()
    assert recognises(run)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: got No such file"):
        load(run)


def test_exports_from_two_folders_and_two_processes_have_one_digest_and_equal_graphs(
    made: Path, trained: Path, tmp_path: Path
) -> None:
    run, again = copied(trained, tmp_path / "moved" / "run"), tmp_path / "elsewhere" / "again"
    command = [sys.executable, "-m", "export", "make", str(run), str(again)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert read(again).manifest.digest == read(made).manifest.digest
    for name in ("encoder.onnx", "decoder.onnx", "scorer.onnx", "probe.safetensors"):
        assert (again / name).read_bytes() == (made / name).read_bytes()


def test_a_changed_weight_gives_another_digest(untrained: Path, tmp_path: Path) -> None:
    digests = []
    for change in (0, 1e-3):
        run = copied(untrained, tmp_path / f"run{change}")
        with_tensor(run / "model.safetensors", lambda weight, change=change: weight + np.float32(change))
        digests.append(make(load(run), tmp_path / f"bundle{change}", Wanted(name="mine")).digest)
    assert digests[0] != digests[1]


def test_no_graph_says_where_it_was_made(made: Path, trained: Path) -> None:
    for name in ("encoder.onnx", "decoder.onnx", "scorer.onnx"):
        content = (made / name).read_bytes()
        assert [found for found in (trained, Path.cwd(), sys.prefix) if str(found).encode() in content] == []
