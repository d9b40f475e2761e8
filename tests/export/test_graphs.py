"""torch modules beside the graphs that are made of them, in onnxruntime as it comes."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export import graphs
from export.frozen import CannotImport, Graphs
from export.graphs import freeze, plain, source
from export.importers.checkpoint import Decoder, Encoder, Scorer
from model.vae import VAE, ModelConfig
from service.manifest import ImageSpec

# Between them: all networks, likelihoods, scale heads and families, colours, and sizes that halve evenly or do not.
CONFIGS = {
    "small": ModelConfig(28, 28, 1, latent_dim=6, features=8),
    "binarised": ModelConfig(8, 8, 1, latent_dim=3, features=4, likelihood="bernoulli", sigma=None),
    "even residual": ModelConfig(16, 16, 3, latent_dim=6, preset="residual", features=8, sigma="learned"),
    "odd residual": ModelConfig(
        21, 9, 1, latent_dim=6, preset="residual", features=8, likelihood="logistic", sigma=None, scale_head="variance"
    ),
    "mlp": ModelConfig(
        12,
        9,
        3,
        latent_dim=6,
        preset="mlp",
        features=16,
        likelihood="continuous_bernoulli",
        sigma=None,
        dequantised=True,
        scale_head="log_sigma",
    ),
    "optimal": ModelConfig(
        9, 6, 1, latent_dim=3, preset="mlp", features=8, sigma="optimal", scale_head="sigma", dequantised=True
    ),
    "autoencoder": ModelConfig(9, 6, 1, latent_dim=3, features=4, family="autoencoder"),
}


@dataclass(frozen=True)
class Made:
    vae: VAE
    graphs: Graphs

    def images(self, n: int = 5) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (n, *self.vae.config.image_shape), dtype=np.uint8)

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        return ort.InferenceSession(getattr(self.graphs, name), providers=["CPUExecutionProvider"]).run(None, inputs)


@cache
def named(name: str) -> Made:
    torch.manual_seed(0)
    return of(VAE(CONFIGS[name]))


@pytest.fixture(params=CONFIGS)
def made(request: pytest.FixtureRequest) -> Made:
    return named(request.param)


def of(vae: VAE) -> Made:
    height, width, channels = vae.config.image_shape
    return Made(
        vae.eval(),
        freeze(
            Encoder(vae).eval(),
            Decoder(vae).eval(),
            Scorer(vae).eval(),
            image=ImageSpec(height=height, width=width, channels=channels),
            latent_shape=(vae.config.latent_dim,),
        ),
    )


def settled(made: Made, images: np.ndarray) -> Tensor:
    return made.vae.likelihood.settle(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)


def test_an_encoder_answers_as_torch_does_for_any_number_of_rows(made: Made) -> None:
    for rows in (1, 5):
        images = made.images(rows)
        with torch.inference_mode():
            posterior = made.vae.encode(settled(made, images))
        expected = [posterior.mu] if made.vae.config.family == "autoencoder" else [posterior.mu, posterior.logvar]
        for found, tensor in zip(made.run("encoder", image=images), expected, strict=True):
            np.testing.assert_allclose(found, tensor, atol=1e-4)


def test_a_decoder_gives_the_mean_of_p_x_given_z_in_bytes(made: Made) -> None:
    for rows in (1, 5):
        z = np.random.default_rng(1).standard_normal((rows, made.vae.config.latent_dim), dtype=np.float32)
        (picture,) = made.run("decoder", z=z)
        with torch.inference_mode():
            expected = 255 * made.vae.decode(torch.from_numpy(z)).permute(0, 2, 3, 1).numpy()
        assert picture.dtype == np.uint8
        assert picture.shape == expected.shape
        assert np.abs(picture - expected).max() <= 0.5 + 1e-2


def test_a_scorer_gives_log_p_x_given_z_with_its_constants(made: Made) -> None:
    images = made.images()
    z = np.random.default_rng(1).standard_normal((len(images), made.vae.config.latent_dim), dtype=np.float32)
    (score,) = made.run("scorer", image=images, z=z)
    with torch.inference_mode():
        expected = -made.vae.likelihood.recon(made.vae.logits(torch.from_numpy(z)), settled(made, images))
    assert score.shape == (len(images),)
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-5)


def test_a_gaussian_scorer_is_a_normal_density_of_torch() -> None:
    made = named("small")
    images, z = made.images(), np.ones((5, 6), np.float32)
    (score,) = made.run("scorer", image=images, z=z)
    with torch.inference_mode():
        x_hat = made.vae.decode(torch.from_numpy(z))
    normal = torch.distributions.Normal(x_hat.double(), 0.3)
    expected = normal.log_prob(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255).sum((1, 2, 3))
    np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_a_binarised_model_thresholds_grey_at_128_in_encoder_and_scorer() -> None:
    made = named("binarised")
    greys = [np.full((1, 8, 8, 1), grey, np.uint8) for grey in (0, 127, 128, 255)]
    for answers in (
        [made.run("encoder", image=image)[0] for image in greys],
        [made.run("scorer", image=image, z=np.ones((1, 3), np.float32))[0] for image in greys],
    ):
        black, dark, light, white = answers
        np.testing.assert_array_equal(dark, black)
        np.testing.assert_array_equal(light, white)
        assert not np.array_equal(dark, light)


def test_graphs_hold_no_noise_no_paths_and_no_newer_format_than_providers_load(made: Made) -> None:
    for content in (made.graphs.encoder, made.graphs.decoder, made.graphs.scorer):
        assert content is not None
        proto = onnx.load_model_from_string(content)
        assert proto.ir_version <= 10
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
        assert not any("Random" in node.op_type for node in proto.graph.node)
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        assert proto.producer_version == ""  # a build of torch says there what it was built for
        assert b".py" not in content
        assert b"/" not in b"".join(part.name.encode() for part in proto.graph.initializer)


def test_halves_are_rounded_to_even_and_logvar_is_clamped_inside_the_graphs() -> None:
    vae = VAE(ModelConfig(8, 8, 1, latent_dim=6, features=4, logvar_range=(-0.001, 0.001)))
    with torch.no_grad():
        for parameter in vae.encoder.parameters():
            parameter.mul_(50)
        for parameter in vae.decoder.parameters():
            parameter.zero_()
    made = of(vae)
    _, logvar = made.run("encoder", image=made.images(9))
    assert (logvar.min(), logvar.max()) == (np.float32(-0.001), np.float32(0.001))
    (picture,) = made.run("decoder", z=np.zeros((1, 6), np.float32))
    assert (picture == 128).all()  # sigmoid(0) * 255 = 127.5


class Halves(nn.Module):
    """Pictures of any size, every place of a latent from 2 × 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 2, stride=2)

    def forward(self, image: Tensor) -> Any:
        mu = self.convolution(image.permute(0, 3, 1, 2) / 255)
        return mu, mu - 1


class Doubles(nn.Module):
    """And back."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.ConvTranspose2d(2, 3, 2, stride=2)

    def forward(self, z: Tensor) -> Tensor:
        return (self.convolution(z).sigmoid() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_open_sizes_are_any_multiples_of_the_stride() -> None:
    image = ImageSpec(height=None, width=None, channels=3, stride=2, default_side=8, max_side=32)
    modules = Halves().eval(), Doubles().eval(), None
    graphs, torch_itself = freeze(*modules, image=image, latent_shape=(2, None, None)), source(*modules)
    assert graphs.scorer is None
    assert torch_itself.score is None
    encoder, decoder = (ort.InferenceSession(graph) for graph in (graphs.encoder, graphs.decoder))
    for rows, height, width in ((1, 2, 2), (3, 8, 6), (2, 32, 4)):
        pictures = np.random.default_rng(0).integers(0, 256, (rows, height, width, 3), dtype=np.uint8)
        mu, logvar = encoder.run(None, {"image": pictures})
        expected_mu, expected_logvar = torch_itself.encode(pictures)
        assert mu.shape == (rows, 2, height // 2, width // 2)
        np.testing.assert_allclose(mu, expected_mu, atol=1e-5)
        np.testing.assert_allclose(logvar, expected_logvar, atol=1e-5)
        (decoded,) = decoder.run(None, {"z": mu})
        assert decoded.shape == pictures.shape
        assert np.abs(decoded.astype(int) - torch_itself.decode(mu)).max() <= 1


def noted(**fields: str) -> onnx.ModelProto:
    """A graph with a graph inside, notes on both, and whoever made it."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["inner"], doc_string="inside")],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["n"])],
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner, doc_string="/home/me/model.py")
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [yes], doc_string="here")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=11, **fields)
    helper.set_model_props(model, {"made": "today"})
    return model


def test_a_graph_that_no_file_holds_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGEST_BYTES", 1_000)
    with pytest.raises(CannotImport, match=r"got a graph with \d{4,} bytes of weights, expected at most 1000"):
        freeze(Flat(), Flat(), None, image=ImageSpec(height=32, width=32, channels=1), latent_shape=[1024])


def test_a_module_that_torch_cannot_export_is_named() -> None:
    with pytest.raises(
        CannotImport, match=r"branching: torch\.export refuses it \(.+\), expected straight tensor code$"
    ):
        freeze(Branching(), Branching(), None, image=ImageSpec(height=2, width=2, channels=1), latent_shape=[4])


class Branching(nn.Module):
    """What an answer is hangs on the numbers that come in."""

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(1).to(torch.float32)
        return flat if flat.sum() > 1 else -flat


class Flat(nn.Module):
    """Pictures or latents times weights of 4 KiB."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(1024))

    def forward(self, rows: Tensor) -> Tensor:
        return rows.flatten(1).to(torch.float32) * self.weights


def test_notes_go_from_graphs_and_from_graphs_inside_their_nodes() -> None:
    content = plain(noted(doc_string="there", producer_name="me", producer_version="1"))
    for note in (b"inside", b"/home", b"here", b"there", b"me", b"today"):
        assert note not in content
    assert content == plain(noted(producer_name="you"))
    (answer,) = ort.InferenceSession(content).run(None, {"x": np.ones(3, np.float32)})
    assert answer.tolist() == [1, 1, 1]
