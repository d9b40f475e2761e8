import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export.graphs import decoder_module, encoder_module, freeze
from model.vae import VAE, ModelConfig

SHAPES = [(28, 28, 1), (32, 32, 3), (65, 47, 3), (8, 8, 1)]


def vae(shape: tuple[int, int, int], **changes: object) -> VAE:
    height, width, channels = shape
    return VAE(ModelConfig(height=height, width=width, channels=channels, latent_dim=6, features=8, **changes)).eval()


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", SHAPES)
def test_graphs_answer_as_torch_does_at_any_size_and_batch(shape: tuple[int, int, int]) -> None:
    model = vae(shape)
    graphs = freeze(model)
    encoder, decoder = session(graphs.encoder), session(graphs.decoder)
    for rows in (1, 3, 20):
        image = np.random.default_rng(0).integers(0, 256, (rows, *shape), dtype=np.uint8)
        mu, logvar = encoder.run(["mu", "logvar"], {"image": image})
        with torch.inference_mode():
            expected_mu, expected_logvar = encoder_module(model)(torch.from_numpy(image))
            expected_image = decoder_module(model)(torch.from_numpy(mu)).numpy()
        np.testing.assert_allclose(mu, expected_mu, atol=1e-4)
        np.testing.assert_allclose(logvar, expected_logvar, atol=1e-4)
        (picture,) = decoder.run(["image"], {"z": mu})
        assert picture.dtype == np.uint8
        assert picture.shape == (rows, *shape)
        assert np.abs(picture.astype(int) - expected_image).max() <= 1


@pytest.mark.parametrize(
    "changes",
    [
        {"preset": "residual", "likelihood": "logistic", "sigma": None, "scale_head": "variance"},
        {"preset": "mlp", "likelihood": "continuous_bernoulli", "sigma": None, "dequantised": True},
        {"sigma": "optimal", "scale_head": "sigma", "dequantised": True},
    ],
    ids=lambda changes: changes.get("preset", "small"),
)
def test_graphs_answer_as_torch_does_for_all_networks_likelihoods_and_heads(changes: dict[str, object]) -> None:
    model = vae((12, 9, 1), **changes)
    graphs = freeze(model)
    image = np.random.default_rng(0).integers(0, 256, (5, 12, 9, 1), dtype=np.uint8)
    mu, logvar = session(graphs.encoder).run(["mu", "logvar"], {"image": image})
    with torch.inference_mode():
        posterior = model.encode(model.likelihood.settle(torch.from_numpy(image).permute(0, 3, 1, 2) / 255))
        x_hat = model.decode(torch.from_numpy(mu))
    np.testing.assert_allclose(mu, posterior.mu, atol=1e-4)
    np.testing.assert_allclose(logvar, posterior.logvar, atol=1e-4)
    (picture,) = session(graphs.decoder).run(["image"], {"z": mu})
    assert np.abs(picture - 255 * x_hat.permute(0, 2, 3, 1).numpy()).max() <= 1


def test_an_autoencoder_has_no_logvar_to_freeze() -> None:
    encoder = encoder_module(vae((8, 8, 1), family="autoencoder"))
    with pytest.raises(TypeError, match="got an autoencoder"):
        encoder(torch.zeros(1, 8, 8, 1, dtype=torch.uint8))


def test_the_decoder_rounds_to_the_nearest_grey_level() -> None:
    model = vae((8, 8, 1))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    (picture,) = session(freeze(model).decoder).run(["image"], {"z": np.zeros((1, 6), np.float32)})
    assert (picture == 128).all()  # sigmoid(0) * 255 = 127.5, and halves round to even


def test_logvar_is_clamped_inside_the_graph() -> None:
    model = vae((8, 8, 1), logvar_range=(-0.001, 0.001))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(50)
    image = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    (logvar,) = session(freeze(model).encoder).run(["logvar"], {"image": image})
    assert logvar.min() == np.float32(-0.001)
    assert logvar.max() == np.float32(0.001)


def test_a_binarised_model_thresholds_grey_at_128_inside_its_encoder() -> None:
    graph = session(freeze(vae((8, 8, 1), likelihood="bernoulli", sigma=None)).encoder)
    black, dark, light, white = (
        graph.run(["mu"], {"image": np.full((1, 8, 8, 1), grey, np.uint8)})[0] for grey in (0, 127, 128, 255)
    )
    np.testing.assert_array_equal(dark, black)
    np.testing.assert_array_equal(light, white)
    assert not np.array_equal(dark, light)


def test_graphs_carry_no_noise_no_paths_and_no_newer_format_than_providers_load() -> None:
    graphs = freeze(vae((28, 28, 1)))
    for content in (graphs.encoder, graphs.decoder):
        proto = onnx.load_from_string(content)
        assert proto.ir_version <= 10
        assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 20)]
        assert not any("Random" in node.op_type for node in proto.graph.node)
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        assert b".py" not in content


def test_equal_weights_give_equal_bytes() -> None:
    model = vae((28, 28, 1))
    assert freeze(model) == freeze(model)
