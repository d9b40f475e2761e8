"""What a folder is, found by what lies in it."""

from pathlib import Path

import pytest

from export import sources
from export.frozen import CannotImport


def refusal(folder: Path) -> str:
    with pytest.raises(CannotImport) as refused:
        sources.load(folder)
    return str(refused.value)


def test_a_folder_of_no_known_kind_is_told_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    sentence = refusal(tmp_path)
    assert sentence.startswith(f"{tmp_path}: of no known kind, expected config.json with format, model and training")
    for library in ("vae-train", "diffusers", "pythae", "optimum"):
        assert f"({library})" in sentence


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("")
    assert refusal(tmp_path / "model.onnx") == f"{tmp_path / 'model.onnx'}: got a file there, expected a folder"
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: got nothing there, expected a folder"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"config.json": '{"format": 2, "model": 1, "training": 2, "_class_name": "x"}'}, "config.json, model: got 1"),
        ({"config.json": '{"_class_name": "UNet2DModel"}'}, "config.json: _class_name is 'UNet2DModel'"),
        ({"model_config.json": '{"name": "VQVAEConfig", "input_dim": [1, 4, 4], "latent_dim": 2}'}, "VQVAEConfig"),
        ({"vae_encoder/model.onnx": "", "vae_decoder/model.onnx": ""}, "vae_"),
    ],
    ids=["vae-train", "diffusers", "pythae", "optimum"],
)
def test_each_kind_is_known_by_its_files_and_judged_by_its_importer(
    tmp_path: Path, files: dict[str, str], sentence: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises((CannotImport, ValueError)) as refused:
        sources.load(tmp_path)
    assert sentence in str(refused.value)
    assert "no known kind" not in str(refused.value)
