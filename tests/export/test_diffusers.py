import json
import pickle
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from export import make
from export.frozen import CannotImport
from export.importers import diffusers
from export.importers.diffusers import CONFIG, WEIGHTS, Config
from service.bundle import read
from service.engine import Engine

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "sample_size": 16,
    "scaling_factor": 0.25,
    "shift_factor": 0.125,
}
# Attention in every block, none in the middle, no convolutions about the latents, one channel.
ATTENTIVE = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 4, 8),
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 2,
    "latent_channels": 2,
    "sample_size": [24, 16],
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}
EARLIER_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def save(folder: Path, **config: object) -> Path:
    """A folder that diffusers saved, its model's latents far enough from 0 to be told apart."""
    torch.manual_seed(5)
    AutoencoderKL(**config).save_pretrained(folder)
    return folder


def bundle_of(source: Path, folder: Path) -> Engine:
    make.make(diffusers.load(source), folder, make.Wanted(name="small", max_run_pixels=5_000))
    return Engine(read(folder), device="cpu", threads=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save(tmp_path_factory.mktemp("diffusers") / "vae", **SMALL)
    tensors = load_file(folder / WEIGHTS)
    tensors["quant_conv.bias"] = torch.tensor([0.0, 1.0, -1.0, -100.0, 100.0, 0.5])  # logvar far out on either side
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def bundle(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    bundle_of(saved, folder)
    return folder


@pytest.fixture(scope="module")
def engine(bundle: Path) -> Engine:
    return Engine(read(bundle), device="cpu", threads=1)


def changed(saved: Path, folder: Path, **changes: object) -> Path:
    """The saved folder with a changed config; None takes a field out."""
    shutil.copytree(saved, folder)
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def with_tensors(saved: Path, folder: Path, **changes: torch.Tensor | None) -> Path:
    """The saved folder with changed tensors, named with __ for the dots; None takes one out."""
    shutil.copytree(saved, folder)
    tensors = load_file(folder / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)
    return folder


def pictures(rows: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(rows + height).integers(0, 256, (rows, height, width, channels), dtype=np.uint8)


def told(folder: Path) -> str:
    with pytest.raises(CannotImport) as refused:
        diffusers.load(folder)
    return str(refused.value)


def test_the_manifest_says_what_the_config_says(bundle: Path) -> None:
    manifest = read(bundle).manifest
    assert manifest.family == "vae"
    assert manifest.image.model_dump() == {
        "height": None,
        "width": None,
        "channels": 3,
        "stride": 2,
        "default_side": 16,
        "max_side": 1024,
    }
    assert manifest.latent_shape == (3, None, None)
    assert (manifest.scale_head, manifest.logvar_range, manifest.prior) == ("logvar", (-30, 20), "standard")
    assert (manifest.latent_scale, manifest.latent_shift) == (0.25, 0.125)
    assert manifest.likelihood is None
    assert (manifest.source.kind, manifest.source.network) == ("diffusers", "AutoencoderKL")
    assert (64, 2, 2) in manifest.parity.shapes
    assert any(height != width for _, height, width in manifest.parity.shapes)


@pytest.mark.parametrize(("rows", "height", "width"), [(1, 2, 2), (3, 16, 16), (2, 6, 26), (1, 40, 18)])
def test_a_bundle_answers_as_diffusers_does_at_any_size(
    saved: Path, engine: Engine, rows: int, height: int, width: int
) -> None:
    vae, processor = AutoencoderKL.from_pretrained(saved), VaeImageProcessor(do_resize=False)
    image = pictures(rows, height, width)
    with torch.inference_mode():
        posterior = vae.encode(processor.preprocess([Image.fromarray(row) for row in image])).latent_dist
    mu, logvar = engine.encoder.run(image)
    assert mu.shape == logvar.shape == (rows, 3, height // 2, width // 2)
    np.testing.assert_allclose(mu, posterior.mean, atol=1e-5)
    np.testing.assert_allclose(logvar, posterior.logvar, atol=1e-5)
    z = 10 * np.random.default_rng(0).standard_normal(mu.shape, dtype=np.float32)
    with torch.inference_mode():
        expected = processor.postprocess(vae.decode(torch.from_numpy(z)).sample, output_type="pil")
    (decoded,) = engine.decoder.run(z)
    assert decoded.dtype == np.uint8
    assert decoded.std() > 10
    assert np.abs(decoded.astype(int) - np.stack([np.asarray(row) for row in expected])).max() <= 1


def test_logvar_is_cut_to_its_range_inside_the_graph(engine: Engine) -> None:
    _, logvar = engine.encoder.run(pictures(2, 8, 8))
    assert (logvar[:, 0] == -30).all()
    assert (logvar[:, 1] == 20).all()
    assert (np.abs(logvar[:, 2]) < 10).all()


def test_pixels_are_cut_to_black_and_white_and_not_wrapped_round(saved: Path, tmp_path: Path) -> None:
    folder = with_tensors(saved, tmp_path / "vae", decoder__conv_out__bias=torch.tensor([9.0, -9.0, 0.0]))
    vae = diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    image = diffusers.Decoder(vae)(torch.zeros(1, 3, 4, 4)).numpy()
    assert (image[..., 0] == 255).all()
    assert (image[..., 1] == 0).all()
    assert 100 < image[..., 2].mean() < 156


def test_a_decoder_that_gives_nan_is_refused_though_rounded_it_is_black(saved: Path, tmp_path: Path) -> None:
    huge = torch.full_like(load_file(saved / WEIGHTS)["decoder.conv_out.weight"], 3e38)
    folder = with_tensors(saved, tmp_path / "vae", decoder__conv_out__weight=huge)
    vae = diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        diffusers.Decoder(vae)(torch.randn(1, 3, 4, 4))


def test_equal_requests_give_equal_bytes_with_attention_in_the_middle(engine: Engine) -> None:
    image = pictures(2, 16, 24)
    first, second = engine.encoder.run(image), engine.encoder.run(image)
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]


def test_the_vae_of_a_pipeline_with_other_blocks_becomes_a_bundle(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline"
    save(pipeline / "vae", **ATTENTIVE)
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert diffusers.recognises(pipeline)
    engine = bundle_of(pipeline, tmp_path / "bundle")
    manifest = read(tmp_path / "bundle").manifest
    assert (manifest.image.channels, manifest.image.stride, manifest.image.default_side) == (1, 4, 16)
    vae = AutoencoderKL.from_pretrained(pipeline / "vae")
    image = pictures(2, 12, 8, channels=1)
    x = torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = vae.encode(x).latent_dist
    mu, logvar = engine.encoder.run(image)
    np.testing.assert_allclose(mu, expected.mean, atol=1e-5)
    np.testing.assert_allclose(logvar, expected.logvar, atol=1e-5)


def test_a_config_of_an_earlier_version_is_read_with_what_it_stood_for(saved: Path, tmp_path: Path) -> None:
    later = ("scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    folder = changed(saved, tmp_path / "vae", **dict.fromkeys(later))
    found = diffusers.read_config(folder / CONFIG)
    expected = AutoencoderKL(**{name: value for name, value in SMALL.items() if name not in later}).config
    assert {name: getattr(found, name) for name in later} == {name: expected[name] for name in later}


def test_weights_of_an_earlier_version_are_read_by_their_earlier_names(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "vae")
    tensors = load_file(folder / WEIGHTS)
    renamed = {}
    for name, tensor in tensors.items():
        for current, earlier in EARLIER_NAMES.items():
            name = name.replace(f"attentions.0.{current}.", f"attentions.0.{earlier}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS)
    network = diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    assert {name: tensor.tolist() for name, tensor in network.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_weights_of_16_bits_are_computed_with_in_32(saved: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(saved / WEIGHTS).items()}
    folder = with_tensors(saved, tmp_path / "vae", **tensors)
    network = diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensors[name].float())


@pytest.mark.parametrize(("sample_size", "expected"), [(16, 16), (512, 256), ((30, 21), 20), (1, 2)])
def test_the_default_side_is_a_multiple_of_the_stride_and_no_larger_than_256(
    saved: Path, sample_size: int | tuple[int, int], expected: int
) -> None:
    fields = json.loads((saved / CONFIG).read_text()) | {"sample_size": sample_size}
    image = Config.model_validate_json(json.dumps(fields)).image
    assert (image.default_side, image.max_side) == (expected, 1024)


def test_the_largest_side_is_a_multiple_of_the_largest_stride(saved: Path) -> None:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 8, "up_block_types": ["UpDecoderBlock2D"] * 8}
    fields = json.loads((saved / CONFIG).read_text()) | blocks | {"block_out_channels": [8] * 8}
    image = Config.model_validate_json(json.dumps(fields)).image
    assert (image.stride, image.default_side, image.max_side) == (128, 128, 1024)


def test_what_diffusers_saved_is_recognised_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    assert diffusers.recognises(saved)
    assert diffusers.recognises(changed(saved, tmp_path / "other", _class_name="VQModel"))
    for name, content in {"ours": '{"format": 2}', "list": "[]", "broken": "{", "deep": "[" * 100_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text(content)
        assert not diffusers.recognises(tmp_path / name)
    assert not diffusers.recognises(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny', expected 'AutoencoderKL'"),
        ({"block_out_channels": None}, "block_out_channels: got nothing, field required"),
        ({"block_out_channels": [8, 0]}, "block_out_channels, 1: got 0, input should be greater than or equal to 1"),
        ({"block_out_channels": [8]}, "block_out_channels: got [8], expected 2, as many as down_block_types"),
        ({"norm_num_groups": 5}, "norm_num_groups: got 5, expected a divisor of block_out_channels (8, 16)"),
        ({"norm_num_groups": 0}, "norm_num_groups: got 0, input should be greater than or equal to 1"),
        ({"layers_per_block": 10**9}, "layers_per_block: got 1000000000, input should be less than or equal to 16"),
        ({"layers_per_block": "1"}, "layers_per_block: got '1', input should be a valid integer"),
        ({"latent_channels": -4}, "latent_channels: got -4, input should be greater than or equal to 1"),
        ({"in_channels": 4}, "in_channels: got 4, input should be 1 or 3"),
        ({"out_channels": 1}, "out_channels: got 1, expected 3, as in_channels"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "expected 2, as many as down_block_types"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "CrossAttnDownBlock2D"]},
            "down_block_types, 1: got 'CrossAttnDownBlock2D', input should be 'DownEncoderBlock2D' or",
        ),
        ({"act_fn": "tanh"}, "act_fn: got 'tanh', input should be 'swish'"),
        ({"scaling_factor": float("nan")}, "scaling_factor: got nan, input should be a finite number"),
    ],
)
def test_a_config_with_something_wrong_is_refused_with_its_field(
    saved: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    folder = changed(saved, tmp_path / "vae", **changes)
    message = told(folder)
    assert message.startswith(str(folder / CONFIG))
    assert sentence in message


@pytest.mark.parametrize(("content", "sentence"), [("{", "not JSON"), ("[]", "_class_name is None")])
def test_a_config_that_is_none_is_refused(saved: Path, tmp_path: Path, content: str, sentence: str) -> None:
    folder = changed(saved, tmp_path / "vae")
    (folder / CONFIG).write_text(content)
    assert sentence in told(folder)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert told(tmp_path) == f"{tmp_path / CONFIG}: No such file or directory, expected the config of an AutoencoderKL"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"quant_conv__bias": torch.zeros(5)}, "quant_conv.bias: got float (5,), the module has float (6,)"),
        ({"quant_conv__bias": None}, "quant_conv.bias: got nothing, the module has float (6,)"),
        (
            {"quant_conv__bias": torch.zeros(6, dtype=torch.int8)},
            "quant_conv.bias: got int8 (6,), the module has float (6,)",
        ),
        ({"extra__weight": torch.zeros(2)}, "extra.weight: got float (2,), the module has nothing"),
        ({"quant_conv__bias": torch.tensor([0, 0, 0, 0, 0, torch.nan])}, "quant_conv.bias: holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    saved: Path, tmp_path: Path, changes: dict[str, torch.Tensor | None], sentence: str
) -> None:
    folder = with_tensors(saved, tmp_path / "vae", **changes)
    message = told(folder)
    assert message.startswith(str(folder / WEIGHTS))
    assert sentence in message


def test_a_config_that_claims_a_large_model_is_refused_before_memory_is_taken_for_it(
    saved: Path, tmp_path: Path
) -> None:
    folder = changed(saved, tmp_path / "vae", block_out_channels=[2**14, 2**14], layers_per_block=16)  # half a terabyte
    assert "got float (16,), the module has float (16384,)" in told(folder)


def test_truncated_and_absent_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "vae")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    assert f"{folder / WEIGHTS}: not readable as safetensors" in told(folder)
    (folder / WEIGHTS).unlink()
    assert told(folder) == f"{folder / WEIGHTS}: got nothing there, expected a file of safetensors"


def test_the_only_weights_are_read_whatever_variant_they_are(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "vae")
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    network = diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    assert torch.equal(network.state_dict()["quant_conv.bias"], load_file(saved / WEIGHTS)["quant_conv.bias"])


def test_of_several_weights_those_of_the_plain_name_are_read(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "vae")
    variants = ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"]
    for name in variants:
        (folder / name).write_bytes(b"of another variant")
    diffusers.network(folder, diffusers.read_config(folder / CONFIG))
    (folder / WEIGHTS).unlink()
    assert told(folder) == f"{folder}: got {', '.join(variants)}, expected {WEIGHTS}, or one of them alone"


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_a_pickle_is_refused_and_not_read(saved: Path, tmp_path: Path, name: str) -> None:
    folder = changed(saved, tmp_path / "vae")
    (folder / WEIGHTS).unlink()

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (folder / name).write_bytes(pickle.dumps(Evil()))
    assert "is a pickle, which may run code when it is read, expected diffusion_pytorch_model.safetensors" in told(
        folder
    )
    assert not (tmp_path / "ran").exists()


def test_nothing_is_asked_of_the_network(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    diffusers.network(saved, diffusers.read_config(saved / CONFIG))


def test_without_diffusers_the_sentence_names_the_extra(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    message = told(saved)
    assert message.startswith(f"{saved}: to read it takes diffusers")
    assert message.endswith("expected vaeserve[import]")
