import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import export.bundle
from export.__main__ import app
from export.bundle import CannotWrite, write
from model import checkpoint
from model.checkpoint import DataConfig, RunConfig
from model.training import Learner, TrainConfig
from model.vae import ModelConfig
from service.bundle import read
from service.engine import Engine

runner = CliRunner()


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    result = runner.invoke(app, ["make", str(trained), str(folder), "--licence", "MIT"])
    assert result.exit_code == 0, result.output
    assert "grey levels" in result.stdout
    return folder


def test_a_checkpoint_becomes_a_bundle_that_the_service_loads(bundle: Path, trained: Path) -> None:
    loaded = read(bundle)
    Engine(loaded, device="cpu", threads=1)
    manifest = loaded.manifest
    assert manifest.name == "digits"
    assert manifest.licence == "MIT"
    assert manifest.latent_shape == (5,)
    assert manifest.likelihood.kind == "gaussian"
    assert manifest.metrics == json.loads((trained / "metrics.json").read_text())
    assert manifest.diagnostics is not None
    assert len(manifest.diagnostics.kl_per_dimension) == 5


def saved(folder: Path, **model: object) -> Path:
    """A run that was saved before its first step."""
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    config = RunConfig(
        model=ModelConfig(8, 8, 1, features=4, latent_dim=3, **model),
        training=TrainConfig(epochs=1),
        data=DataConfig(name="noise", n_train=8, n_validation=0, validation_seed=0, n_test=8, sha256=""),
    )
    checkpoint.write_config(folder, config, probe=images)
    checkpoint.save(folder, Learner(config.model, training=config.training, n_images=8))
    return folder


@pytest.mark.parametrize(("sigma", "expected"), [(0.25, 0.25), ("learned", 0.3), ("optimal", 0.3)])
def test_the_manifest_states_the_sigma_that_training_reached_and_the_head_that_the_source_emitted(
    tmp_path: Path, sigma: float | str, expected: float
) -> None:
    run = saved(tmp_path / "run", sigma=sigma, scale_head="variance")
    assert runner.invoke(app, ["make", str(run), str(tmp_path / "bundle")]).exit_code == 0
    manifest = read(tmp_path / "bundle").manifest
    assert manifest.likelihood.sigma == pytest.approx(expected)
    assert manifest.scale_head == "variance"


def test_an_autoencoder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    result = runner.invoke(app, ["make", str(saved(tmp_path / "run", family="autoencoder")), str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert "got an autoencoder, expected a vae" in result.stderr
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_states_the_measured_parity_and_its_tolerance(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    parity, tolerance = manifest["parity"]["fp32"], manifest["tolerance"]["fp32"]
    assert tolerance == {"mu": 1e-4, "logvar": 1e-4, "image": 1}
    for name in ("mu", "logvar", "image"):
        assert 0 <= parity[name]["mean"] <= parity[name]["max"] <= tolerance[name]


def test_two_exports_have_one_digest_and_a_changed_weight_another(bundle: Path, trained: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "again"
    assert runner.invoke(app, ["make", str(trained), str(again)]).exit_code == 0
    assert read(again).manifest.digest == read(bundle).manifest.digest
    changed = tmp_path / "run"
    shutil.copytree(trained, changed)
    tensors = load_file(changed / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, changed / "model.safetensors")
    assert runner.invoke(app, ["make", str(changed), str(tmp_path / "other")]).exit_code == 0
    assert read(tmp_path / "other").manifest.digest != read(bundle).manifest.digest


def test_above_the_tolerance_nothing_is_written(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import export.checkpoint

    strict = export.checkpoint.TOLERANCE.model_copy(update={"mu": 1e-30, "logvar": 1e-30})
    monkeypatch.setattr(export.checkpoint, "TOLERANCE", strict)
    result = runner.invoke(app, ["make", str(trained), str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert "mu by" in result.stderr
    assert "1e-30 is allowed" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(bundle: Path, trained: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = runner.invoke(app, ["make", str(trained), str(bundle)])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    result = runner.invoke(app, ["make", str(tmp_path), str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_that_no_address_can_carry_is_refused(trained: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["make", str(trained), str(tmp_path / "bundle"), "--name", "a b"])
    assert result.exit_code == 2
    assert result.stderr.startswith("vae-export: name: got 'a b'")
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_could_not_be_written_whole_does_not_exist(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = read(bundle)

    def full_disk(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.bundle.json, "dumps", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "half", {"encoder.onnx": loaded.encoder}, loaded.manifest)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_a_file_in_the_way(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CannotWrite, match="taken: exists already"):
        write(tmp_path / "taken", {}, read(bundle).manifest)
