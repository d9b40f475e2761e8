import io
import json
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.testing import assert_allclose

from export.frozen import CannotImport, Described, Frozen
from export.graphs import source
from export.importers import pythae, pythae_networks
from export.importers.pythae import Decoder, Encoder
from service.manifest import ImageSpec, Likelihood, Source
from tests.export.pythae.weights import LATENT_DIM, images, latents, weights

SAVED = Path(__file__).parent / "pythae" / "saved"
ANSWERS = np.load(SAVED.parent / "answers.npz")
X_SHAPES = {"MNIST": (1, 28, 28), "CIFAR": (3, 32, 32), "CELEBA": (3, 64, 64)}
CONVNET_CONFIG = {"name": "VAEConfig", "input_dim": None, "latent_dim": LATENT_DIM}
CONVNETS = [f"{kind} {data}" for kind in ("Conv", "ResNet") for data in X_SHAPES]


@pytest.fixture(scope="module")
def frozen() -> Frozen:
    return pythae.load(SAVED)


def copied(folder: Path, **changes: object) -> Path:
    """The saved folder with a changed config; None takes a field out."""
    shutil.copytree(SAVED, folder)
    config = json.loads((folder / "model_config.json").read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "model_config.json").write_text(json.dumps(kept))
    return folder


def with_tensors(folder: Path, **changes: torch.Tensor | None) -> Path:
    """The saved folder with changed tensors, named with _ for the dots; None takes one out."""
    copied(folder)
    content = torch.load(folder / "model.pt", weights_only=True)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del content["model_state_dict"][key]
        else:
            content["model_state_dict"][key] = tensor
    torch.save(content, folder / "model.pt")
    return folder


def saved() -> dict[str, torch.Tensor]:
    """The tensors that pythae saved."""
    return torch.load(SAVED / "model.pt", weights_only=True)["model_state_dict"]


def config(name: str) -> dict[str, object]:
    """What the importer makes of the saved config, for a model of this name."""
    return {"name": name, "input_dim": (3, 2, 3), "latent_dim": 2}


def convnet(name: str) -> dict[str, torch.Tensor]:
    """The weights that pythae had when it gave its answers."""
    with torch.device("meta"):
        encoder = pythae_networks.encoders(None, latent_dim=LATENT_DIM, has_logvar=True)[name]
        decoder = pythae_networks.decoders(None, latent_dim=LATENT_DIM)[name]
    parts = {
        part: weights({key: tuple(tensor.shape) for key, tensor in network.state_dict().items()})
        for part, network in (("encoder", encoder), ("decoder", decoder))
    }
    return {f"{part}.{key}": torch.from_numpy(array) for part, arrays in parts.items() for key, array in arrays.items()}


def test_a_folder_that_pythae_saved_is_recognised_and_others_are_not(tmp_path: Path) -> None:
    assert pythae.recognises(SAVED)
    assert not pythae.recognises(tmp_path)
    (tmp_path / "model_config.json").write_text("[]")
    assert not pythae.recognises(tmp_path)
    (tmp_path / "model_config.json").write_text("{")
    assert not pythae.recognises(tmp_path)


def test_a_saved_model_answers_as_pythae_did(frozen: Frozen) -> None:
    mu, logvar = frozen.source.encode(images((3, 2, 3)))
    assert_allclose(mu, ANSWERS["saved/mu"], atol=1e-6)
    assert_allclose(logvar, ANSWERS["saved/logvar"], atol=1e-6)
    picture = frozen.source.decode(latents(2)).transpose(0, 3, 1, 2)
    assert np.abs(picture[..., ::5, ::3] - 255 * ANSWERS["saved/x_hat"]).max() <= 0.5 + 1e-4


def test_the_frozen_graphs_answer_as_pythae_did(frozen: Frozen) -> None:
    encoder = ort.InferenceSession(frozen.graphs.encoder, providers=["CPUExecutionProvider"])
    mu, logvar = encoder.run(["mu", "logvar"], {"image": images((3, 2, 3))})
    assert_allclose(mu, ANSWERS["saved/mu"], atol=1e-6)
    assert_allclose(logvar, ANSWERS["saved/logvar"], atol=1e-6)


@pytest.mark.parametrize("name", CONVNETS)
def test_convnets_are_known_by_their_keys_and_shapes_and_answer_as_pythae_did(name: str) -> None:
    encoder, decoder, found = pythae.networks(CONVNET_CONFIG, convnet(name), path=Path("model.pt"))
    assert found == f"VAEConfig: {name} encoder, {name} decoder"
    answers = source(Encoder(encoder).eval(), Decoder(decoder).eval(), None)
    mu, logvar = answers.encode(images(X_SHAPES[name.split()[1]]))
    assert logvar is not None
    assert_allclose(mu, ANSWERS[f"{name}/mu"], atol=1e-5)
    assert_allclose(logvar, ANSWERS[f"{name}/logvar"], atol=1e-5)
    picture = answers.decode(latents(LATENT_DIM)).transpose(0, 3, 1, 2)
    assert np.abs(picture[..., ::5, ::3] - 255 * ANSWERS[f"{name}/x_hat"]).max() <= 0.5 + 1e-2


def test_what_is_said_of_a_saved_model(frozen: Frozen) -> None:
    network = "BetaVAEConfig: MLP encoder, MLP decoder"
    assert frozen.described == Described(
        family="vae",
        image=ImageSpec(height=2, width=3, channels=3),
        latent_shape=(2,),
        prior="standard",
        source=Source(kind="pythae", version=f"torch {torch.__version__}", network=network),
        likelihood=Likelihood(kind="gaussian", sigma=1.0),
        scale_head="logvar",
    )


def test_the_likelihood_is_that_of_pythaes_loss(tmp_path: Path, frozen: Frozen) -> None:
    image, z = images((3, 2, 3)), latents(2)
    assert frozen.source.score is not None
    dims = image[0].size
    assert_allclose(frozen.source.score(image, z), -ANSWERS["saved/mse"] - dims / 2 * np.log(2 * np.pi), rtol=1e-6)
    bernoulli = pythae.load(copied(tmp_path / "bce", reconstruction_loss="bce"))
    assert bernoulli.described.likelihood == Likelihood(kind="bernoulli")
    assert bernoulli.source.score is not None
    assert_allclose(bernoulli.source.score(image, z), -ANSWERS["saved/bce"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"name": "MSSSIM_VAEConfig"}, {"name": "VAEGANConfig"}, {"reconstruction_loss": None}]
)
def test_a_loss_that_is_no_likelihood_gives_no_scorer(tmp_path: Path, changes: dict[str, object]) -> None:
    unscored = pythae.load(copied(tmp_path / "saved", **changes))
    assert unscored.described.likelihood is None
    assert unscored.graphs.scorer is None
    assert unscored.source.score is None


@pytest.mark.parametrize(
    "changes", [{"name": "AEConfig"}, {"name": "Adversarial_AE_Config", "deterministic_posterior": True}]
)
def test_an_autoencoder_gives_mu_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    autoencoder = pythae.load(copied(tmp_path / "saved", **changes))
    mu, logvar = autoencoder.source.encode(images((3, 2, 3)))
    assert_allclose(mu, ANSWERS["saved/mu"], atol=1e-6)
    assert logvar is None
    described = autoencoder.described
    assert (described.family, described.prior) == ("autoencoder", "none")
    assert (described.scale_head, described.likelihood) == (None, None)


def test_an_encoder_without_log_var_makes_an_autoencoder_and_no_vae(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path / "saved", **dict.fromkeys(("encoder__log_var__weight", "encoder__log_var__bias")))
    with pytest.raises(CannotImport, match="the encoder has no log_var, expected one in a BetaVAEConfig"):
        pythae.load(folder)
    (folder / "model_config.json").write_text(
        json.dumps({"name": "RAE_L2_Config", "input_dim": [3, 2, 3], "latent_dim": 2})
    )
    assert pythae.load(folder).described.family == "autoencoder"


def test_a_discriminator_takes_part_in_training_alone() -> None:
    tensors = saved() | {"discriminator.layers.0.weight": torch.zeros(3, 2)}
    *_, found = pythae.networks(config("FactorVAEConfig"), tensors, path=Path("model.pt"))
    assert found == "FactorVAEConfig: MLP encoder, MLP decoder"


class Loud:
    """A pickle that would say so if it were read."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("was-read"),)


@pytest.mark.parametrize("name", ["encoder.pkl", "decoder.pkl"])
def test_a_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = copied(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    (folder / name).write_bytes(pickle.dumps(Loud()))
    with pytest.raises(CannotImport, match=f"{name}: is a network as a pickle, which runs code when it is read"):
        pythae.load(folder)
    assert not Path("was-read").exists()


def test_a_pickle_inside_the_weights_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": Loud()}, folder / "model.pt")
    with pytest.raises(CannotImport, match=r"model\.pt: .*expected tensors as torch\.save writes them"):
        pythae.load(folder)
    assert not Path("was-read").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "VAMPConfig"}, r"model_config\.json: name is 'VAMPConfig', expected a diagonal Gaussian posterior"),
        ({"name": ["VAEConfig"]}, r"model_config\.json: name is \['VAEConfig'\], expected a diagonal Gaussian"),
        ({"latent_dim": 0}, "latent_dim is 0, expected a whole number from 1 to 65536"),
        ({"latent_dim": 10**9}, "latent_dim is 1000000000, expected a whole number from 1 to 65536"),
        (
            {"input_dim": [18]},
            r"input_dim is \[18\], expected \[channels, height, width\] of pictures, 1 or 3 channels",
        ),
        ({"input_dim": [2, 3, 3]}, r"input_dim is \[2, 3, 3\], expected \[channels, height, width\]"),
        (
            {"latent_dim": 3},
            r"the encoder has embedding\.bias \(2,\), .*, 1 more where the nearest .*, MLP, has embedding\.bias \(3,\)",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_got_and_expected(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(CannotImport, match=told):
        pythae.load(copied(tmp_path / "saved", **changes))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_config.json").write_text(text)
    with pytest.raises(CannotImport, match=r"model_config\.json: .*expected the config of a model of pythae"):
        pythae.load(tmp_path)


def test_keys_that_no_network_of_pythae_has_are_named(tmp_path: Path) -> None:
    extra = with_tensors(tmp_path / "extra", encoder__layers__1__weight=torch.zeros(4))
    told = (
        r"the encoder has layers\.1\.weight \(4,\) where the nearest of pythae's own, MLP, has nothing, expected one of"
    )
    with pytest.raises(CannotImport, match=told):
        pythae.load(extra)
    missing = with_tensors(tmp_path / "missing", decoder__layers__0__0__bias=None)
    with pytest.raises(CannotImport, match=r"the decoder has nothing where .* has layers\.0\.0\.bias \(512,\)"):
        pythae.load(missing)
    foreign = with_tensors(tmp_path / "foreign", pseudo_inputs__0__weight=torch.zeros(4))
    with pytest.raises(CannotImport, match=r"has the key pseudo_inputs\.0\.weight, expected those of an encoder and a"):
        pythae.load(foreign)


def test_an_encoder_and_a_decoder_of_different_pictures_are_refused() -> None:
    mnist, cifar = convnet("ResNet MNIST"), convnet("ResNet CIFAR")
    mixed = {key: mnist[key] for key in mnist if key.startswith("encoder")} | {
        key: cifar[key] for key in cifar if key.startswith("decoder")
    }
    with pytest.raises(CannotImport, match=r"takes pictures \(1, 28, 28\), the decoder gives \(3, 32, 32\)"):
        pythae.networks(CONVNET_CONFIG, mixed, path=Path("model.pt"))
    with pytest.raises(CannotImport, match=r"model_config\.json says \(1, 28, 28\), expected one shape"):
        pythae.networks(CONVNET_CONFIG | {"input_dim": (1, 28, 28)}, cifar, path=Path("model.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    folder = with_tensors(tmp_path / "saved", encoder__embedding__bias=torch.tensor([0, value]))
    with pytest.raises(CannotImport, match=r"encoder\.embedding\.bias holds NaN or infinity, expected finite weights"):
        pythae.load(folder)


def test_a_decoder_that_gives_nan_is_refused_though_rounded_it_is_black(tmp_path: Path) -> None:
    huge = torch.full_like(saved()["decoder.layers.0.0.weight"], 3e38)
    decode = pythae.load(with_tensors(tmp_path / "saved", decoder__layers__0__0__weight=huge)).source.decode
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        decode(np.full((1, 2), 10, np.float32))


def test_weights_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    beyond = torch.tensor([0, 1e300], dtype=torch.float64)
    folder = with_tensors(tmp_path / "saved", encoder__embedding__bias=beyond)
    with pytest.raises(CannotImport, match="bias holds NaN or infinity, expected finite weights in float32"):
        pythae.load(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = with_tensors(tmp_path / "saved", encoder__embedding__bias=torch.ones(2, dtype=dtype))
    with pytest.raises(CannotImport, match=rf"model\.pt: encoder\.embedding\.bias is of {dtype}, expected floats$"):
        pythae.load(folder)


def test_weights_in_half_precision_are_read() -> None:
    halves = {key: tensor.half() for key, tensor in saved().items()}
    encoder, decoder, _ = pythae.networks(config("VAEConfig"), halves, path=Path("model.pt"))
    assert {weight.dtype for network in (encoder, decoder) for weight in network.parameters()} == {torch.float32}
    mu, _ = source(Encoder(encoder).eval(), Decoder(decoder).eval(), None).encode(images((3, 2, 3)))
    assert_allclose(mu, ANSWERS["saved/mu"], atol=1e-2)


def test_a_truncated_or_missing_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "saved")
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(whole[:-100])
    with pytest.raises(CannotImport, match=r"model\.pt: .*expected tensors as torch\.save writes them"):
        pythae.load(folder)
    (folder / "model.pt").unlink()
    with pytest.raises(CannotImport, match=r"model\.pt: .*No such file.*expected tensors as torch\.save writes them"):
        pythae.load(folder)


def test_a_file_that_would_unpack_to_far_more_than_it_has_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "saved")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/0", bytes(10**7))
    (folder / "model.pt").write_bytes(packed.getvalue())
    with pytest.raises(CannotImport, match=r"model\.pt: unpacks to 10000000 bytes, expected no more than its own"):
        pythae.load(folder)


@pytest.mark.parametrize(("place", "byte"), [(6, 241), (54, 143), (195, 104), (292, 40), (340, 4)])
def test_a_malformed_pickle_of_weights_is_refused_whatever_torch_trips_over(
    tmp_path: Path, place: int, byte: int
) -> None:
    folder = copied(tmp_path / "saved")
    with zipfile.ZipFile(SAVED / "model.pt") as archive:
        entries = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    entries["model/data.pkl"][place] = byte
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, bytes(content))
    with pytest.raises(CannotImport, match=r"model\.pt: .*, expected tensors as torch\.save writes them$"):
        pythae.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"weights": {}},
        {"model_state_dict": OrderedDict(a=1)},
        {"model_state_dict": {0: torch.zeros(1)}},
        {"model_state_dict": {"encoder.a": torch.zeros(1).to_sparse()}},
        {"model_state_dict": {"encoder.a": torch.zeros(1, device="meta")}},
    ],
    ids=["none", "number", "key", "sparse", "meta"],
)
def test_weights_that_are_none_of_pythaes_are_refused(tmp_path: Path, content: dict[str, object]) -> None:
    folder = copied(tmp_path / "saved")
    torch.save(content, folder / "model.pt")
    with pytest.raises(CannotImport, match="has no dense tensors by name under model_state_dict"):
        pythae.load(folder)
