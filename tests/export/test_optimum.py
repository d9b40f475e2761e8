import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from export.frozen import CannotImport
from export.importers.optimum import CONFIG, DECODER, ENCODER, load, recognises
from export.make import Wanted, make
from service.bundle import read
from service.engine import Engine
from tests.export.onnx_files import parsed, saved

CHANNELS, STRIDE = 3, 2
# The axes that optimum leaves free, now and in its first years.
PICTURE = {0: "batch_size", 2: "height", 3: "width"}
LATENT = {0: "batch_size", 2: "height_latent", 3: "width_latent"}
OLDER_PICTURE, OLDER_LATENT = {1: "num_channels", **PICTURE}, {1: "num_channels_latent", **LATENT}


class Encoder(nn.Module):
    """What optimum exports: the parameters of the posterior, or in its first years a draw from it."""

    def __init__(self, vae: AutoencoderKL, *, draws: bool) -> None:
        super().__init__()
        self.vae, self.draws = vae, draws

    def forward(self, sample: Tensor) -> Tensor:
        (posterior,) = self.vae.encode(sample, return_dict=False)
        return posterior.sample() if self.draws else posterior.parameters


class Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        (sample,) = self.vae.decode(latent_sample, return_dict=False)
        return sample


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            latent_channels=CHANNELS,
            sample_size=16,
            scaling_factor=0.25,
            shift_factor=0.125,
        ).eval()
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.tensor([0.0, 1.0, -1.0, -100.0, 100.0, 0.5]))  # logvar far out on either side
    return vae


def export(module: nn.Module, path: Path, x: Tensor, *, axes: dict[str, dict[int, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    takes, gives = axes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of an exporter that optimum uses and torch means to retire
        torch.onnx.export(
            module,
            (x,),
            path,
            input_names=[takes],
            output_names=[gives],
            dynamic_axes={name: free for name, free in axes.items() if free},
            opset_version=14,
            dynamo=False,
        )


@pytest.fixture(scope="module")
def decoder(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "model.onnx"
    export(Decoder(vae), path, torch.randn(2, CHANNELS, 8, 8), axes={"latent_sample": LATENT, "sample": PICTURE})
    return path


@pytest.fixture(scope="module")
def folder(vae: AutoencoderKL, decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As optimum writes it today."""
    folder = tmp_path_factory.mktemp("optimum") / "vae"
    axes = {"sample": PICTURE, "latent_parameters": LATENT}
    export(Encoder(vae, draws=False), folder / ENCODER, torch.randn(2, 3, 16, 16), axes=axes)
    (folder / DECODER).parent.mkdir()
    shutil.copy(decoder, folder / DECODER)
    vae.save_config(folder / "vae_encoder")
    return folder


@pytest.fixture(scope="module")
def older(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As optimum wrote it in its first years: z drawn inside, and the number of channels free."""
    folder = tmp_path_factory.mktemp("optimum") / "older"
    axes = {"sample": OLDER_PICTURE, "latent_sample": OLDER_LATENT}
    export(Encoder(vae, draws=True), folder / ENCODER, torch.randn(2, 3, 16, 16), axes=axes)
    axes = {"latent_sample": OLDER_LATENT, "sample": OLDER_PICTURE}
    export(Decoder(vae), folder / DECODER, torch.randn(2, CHANNELS, 8, 8), axes=axes)
    vae.save_config(folder / "vae_encoder")
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A folder of today to change."""
    return Path(shutil.copytree(folder, tmp_path / "vae"))


@pytest.fixture(scope="module", params=["folder", "older"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of either, which has passed its proof."""
    bundle = tmp_path_factory.mktemp("bundles") / "vae"
    make(load(request.getfixturevalue(request.param)), bundle, Wanted(name="vae", max_run_pixels=2_000))
    return bundle


def test_a_bundle_answers_as_diffusers_does_at_any_size(bundle: Path, vae: AutoencoderKL) -> None:
    engine = Engine(read(bundle), device="cpu", threads=1)
    for rows, height, width in ((1, 16, 16), (3, 6, 14)):
        image = np.random.default_rng(0).integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
        with torch.inference_mode():
            posterior = vae.encode(torch.from_numpy(image).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
            decoded = vae.decode(posterior.mean).sample.permute(0, 2, 3, 1)
        mu, logvar = engine.encoder.run(image)
        np.testing.assert_allclose(mu, posterior.mean, atol=1e-4)
        np.testing.assert_allclose(logvar, posterior.logvar, atol=1e-4)
        assert (logvar.min(), logvar.max()) == (-30, 20)
        (picture,) = engine.decoder.run(mu)
        assert np.abs(picture - (decoded.numpy() / 2 + 0.5).clip(0, 1) * 255).max() <= 0.51


def test_the_manifest_says_what_the_config_does(bundle: Path) -> None:
    manifest = read(bundle).manifest
    assert manifest.image.is_open
    assert (manifest.image.stride, manifest.image.default_side, manifest.image.max_side) == (STRIDE, 16, 1024)
    assert manifest.latent_shape == (CHANNELS, None, None)
    assert (manifest.latent_scale, manifest.latent_shift) == (0.25, 0.125)
    assert (manifest.scale_head, manifest.logvar_range) == ("logvar", (-30, 20))
    assert (manifest.source.kind, manifest.source.network) == ("optimum", f"pytorch {torch.__version__.split('+')[0]}")
    assert manifest.parity.logvar is not None
    assert max(manifest.parity.mu.max, manifest.parity.logvar.max) <= 1e-4


def test_the_draw_is_cut_away_with_its_noise(older: Path) -> None:
    before = onnx.load(older / ENCODER).graph
    after = onnx.load_from_string(load(older).graphs.encoder).graph
    assert "RandomNormalLike" in {node.op_type for node in before.node}
    assert not {"RandomNormalLike", "Exp"} & {node.op_type for node in after.node}
    assert [value.name for value in after.output] == ["mu", "logvar"]


def test_a_folder_is_known_by_both_graphs(folder: Path, tmp_path: Path) -> None:
    assert recognises(folder)
    assert not recognises(folder / "vae_encoder")
    assert not recognises(tmp_path)


def test_without_a_config_stride_and_channels_are_those_of_the_graphs(copied: Path) -> None:
    (copied / CONFIG).unlink()
    described = load(copied).described
    image = described.image
    assert (image.stride, image.default_side, image.max_side) == (STRIDE, 256, 1024)
    assert described.latent_shape == (CHANNELS, None, None)
    assert (described.latent_scale, described.latent_shift) == (None, None)


def test_graphs_of_one_size_make_a_bundle_of_that_size(vae: AutoencoderKL, tmp_path: Path) -> None:
    axes: dict[str, dict[int, str]] = {"sample": {}, "latent_parameters": {}}
    export(Encoder(vae, draws=False), tmp_path / ENCODER, torch.randn(1, 3, 8, 12), axes=axes)
    export(Decoder(vae), tmp_path / DECODER, torch.randn(1, CHANNELS, 4, 6), axes={"latent_sample": {}, "sample": {}})
    described = load(tmp_path).described
    assert described.image.shape == (8, 12, 3)
    assert described.latent_shape == (CHANNELS, 4, 6)


def test_weights_in_the_file_beside_a_graph_are_brought_in(copied: Path, folder: Path) -> None:
    model = onnx.load(copied / ENCODER)
    onnx.save(model, copied / ENCODER, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    assert load(copied).graphs == load(folder).graphs


def changed(copied: Path, **fields: object) -> Path:
    config = json.loads((copied / CONFIG).read_text())
    (copied / CONFIG).write_text(json.dumps(config | fields))
    return copied


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"latent_channels": "4"}, r"config.json, latent_channels: got '4', Input should be a valid integer"),
        ({"scaling_factor": "much"}, r"config.json, scaling_factor: got 'much', Input should be a valid number"),
        ({"block_out_channels": [4, 8, 8]}, r"pictures of 8×12 pixels have latents of 4×6 places, expected one to 4"),
    ],
)
def test_a_config_that_is_wrong_is_refused(copied: Path, fields: dict[str, object], told: str) -> None:
    with pytest.raises(CannotImport, match=told):
        load(changed(copied, **fields))


@pytest.mark.parametrize(
    ("content", "told"), [("{", "config.json: got '{', Invalid JSON"), ("[]", "config.json: got .*object")]
)
def test_a_config_that_is_none_is_refused(copied: Path, content: str, told: str) -> None:
    (copied / CONFIG).write_text(content)
    with pytest.raises(CannotImport, match=told):
        load(copied)


def test_free_channels_that_no_config_states_are_refused(older: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(older, tmp_path / "vae"))
    changed(copied, in_channels=None)
    with pytest.raises(CannotImport, match="sample has free channels, expected 1 or 3 where the layout nchw has them"):
        load(copied)


def test_moments_of_free_channels_need_the_config(older: Path, copied: Path) -> None:
    shutil.copy(older / DECODER, copied / DECODER)
    with pytest.raises(CannotImport, match=r"have any number of channels, expected latent_channels in .*config.json"):
        load(changed(copied, latent_channels=None))


def test_moments_that_are_not_two_to_a_channel_are_refused(older: Path, copied: Path) -> None:
    shutil.copy(older / DECODER, copied / DECODER)
    with pytest.raises(CannotImport, match=r"latent_parameters is \(1, 6, 2, 3\), expected 8 channels, a mean and"):
        load(changed(copied, latent_channels=4))


def test_an_encoder_that_draws_in_another_way_is_refused_and_told_what_was_sought(copied: Path) -> None:
    text = """encoder (float[n, 3, h, w] sample) => (float[n, 3, h, w] latent_sample) {
        noise = RandomNormalLike(sample)
        latent_sample = Add(sample, noise)
    }"""
    saved(parsed(text, {}), copied / ENCODER)
    sought = r"latent_sample.* holds no mean \+ exp\(0.5 \* logvar\) \* RandomNormalLike to cut it before"
    with pytest.raises(CannotImport, match=sought):
        load(copied)


def test_a_draw_in_float16_is_refused_for_its_type(copied: Path) -> None:
    text = """encoder (float16[n, 3, h, w] sample) => (float16[n, 3, h, w] latent_sample) {
        noise = RandomNormalLike(sample)
        logvar = Neg(sample)
        halved = Mul(logvar, half)
        sigma = Exp(halved)
        spread = Mul(sigma, noise)
        latent_sample = Add(sample, spread)
    }"""
    saved(parsed(text, {"half": np.array(0.5, np.float16)}), copied / ENCODER)
    with pytest.raises(CannotImport, match=r"model\.onnx: sample is of type FLOAT16, expected FLOAT or DOUBLE"):
        load(copied)


def test_a_decoder_of_latents_without_places_is_refused(copied: Path) -> None:
    text = "decoder (float[n, 3] latent_sample) => (float[n, 3] sample) { sample = Neg(latent_sample) }"
    saved(parsed(text, {}), copied / DECODER)
    with pytest.raises(CannotImport, match=r"model\.onnx: .* 2 axes, expected"):
        load(copied)


def test_a_decoder_that_gives_nan_is_refused_though_rounded_it_is_black(copied: Path) -> None:
    text = """decoder (float[n, 3, h, w] latent_sample) => (float[n, 3, p, q] sample) {
        root = Sqrt(latent_sample)
        wide = ConvTranspose <strides = [2, 2]> (root, kernel)
        sample = Tanh(wide)
    }"""
    saved(parsed(text, {"kernel": np.ones((3, 3, 2, 2), np.float32)}), copied / DECODER)
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        load(copied)


def test_an_encoder_with_other_outputs_is_refused(copied: Path) -> None:
    text = "encoder (float[n, 3, h, w] sample) => (float[n, 3, h, w] z) { z = Neg(sample) }"
    saved(parsed(text, {}), copied / ENCODER)
    with pytest.raises(CannotImport, match="its outputs are z, expected latent_parameters or latent_sample"):
        load(copied)
