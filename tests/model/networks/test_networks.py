"""The networks of each preset: any picture, any batch, every weight in use, one row without the others."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from model.networks.mlp import GatedLayer
from model.networks.presets import PRESETS
from model.networks.pyramid import Shape, pyramid
from model.networks.residual import ResidualBlock
from model.pixels import to_x
from model.vae import VAE, ModelConfig

SHAPES = [(28, 28, 1), (32, 32, 3), (65, 47, 3), (8, 8, 1), (1, 1, 1), (5, 90, 2)]
every_preset = pytest.mark.parametrize("preset", PRESETS)


def stirred(vae: VAE) -> VAE:
    """The same networks away from their initialisation, where some weights are zero and others can not act yet."""
    with torch.no_grad():
        for weight in vae.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return vae


def stirred_block(before: int, after: int) -> ResidualBlock:
    """A block whose second convolution does something already."""
    block = ResidualBlock(before, after)
    with torch.no_grad():
        block.second.weight.normal_()
    return block


@given(st.integers(1, 300), st.integers(1, 300))
def test_each_size_of_the_pyramid_is_the_half_of_the_one_before_rounded_up(height: int, width: int) -> None:
    sizes = pyramid(height, width)
    assert len(sizes) > 1
    assert sizes[0] == (height, width)
    assert min(sizes[-1]) <= 4
    for (tall, wide), (low, narrow) in itertools.pairwise(sizes):
        assert (low, narrow) == ((tall + 1) // 2, (wide + 1) // 2)


@every_preset
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_any_picture_in_any_batch_becomes_outputs_and_logits_of_its_shape(
    preset: str, shape: tuple[int, int, int]
) -> None:
    height, width, channels = shape
    networks = PRESETS[preset]
    built_for = Shape(height=height, width=width, channels=channels, latent_dim=5, features=8, depth=1)
    encoder, decoder = networks.encoder(built_for, outputs=7), networks.decoder(built_for)
    for n in (1, 3):
        assert encoder(torch.rand(n, channels, height, width)).shape == (n, 7)
        assert decoder(torch.randn(n, 5)).shape == (n, channels, height, width)


@every_preset
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_outputs_depend_on_the_picture_and_logits_on_the_latent(preset: str, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    vae = stirred(VAE(ModelConfig(height, width, channels, latent_dim=5, preset=preset, features=8)))
    with torch.no_grad():
        assert vae.encode(torch.rand(4, channels, height, width)).mu.std(0).max() > 1e-3
        assert vae.logits(torch.randn(4, 5)).std(0).max() > 1e-3


@every_preset
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "continuous_bernoulli", "logistic"])
def test_every_weight_is_moved_by_the_loss(preset: str, likelihood: str) -> None:
    sigma = "learned" if likelihood == "gaussian" else None
    vae = stirred(
        VAE(ModelConfig(9, 6, 2, latent_dim=3, preset=preset, features=8, likelihood=likelihood, sigma=sigma))
    )
    x = vae.likelihood.settle(torch.rand(16, 2, 9, 6))
    posterior = vae.encode(x)
    logits = vae.logits(posterior.sample(torch.randn(16, 3)))
    (vae.likelihood.recon(logits, x) + posterior.kl()).sum().backward()
    for name, weight in vae.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.ne(0).any(), name


@every_preset
def test_a_row_does_not_depend_on_its_neighbours(preset: str) -> None:
    vae = stirred(VAE(ModelConfig(9, 6, 1, latent_dim=3, preset=preset, features=8)))
    x, z = torch.rand(7, 1, 9, 6), torch.randn(7, 3)
    together, alone = vae.encode(x), vae.encode(x[3:4])
    torch.testing.assert_close(together.mu[3:4], alone.mu)
    torch.testing.assert_close(together.logvar[3:4], alone.logvar)
    torch.testing.assert_close(vae.decode(z)[3:4], vae.decode(z[3:4]))


@every_preset
def test_networks_are_the_same_in_training_and_evaluation(preset: str) -> None:
    vae = stirred(VAE(ModelConfig(9, 6, 1, latent_dim=3, preset=preset, features=8)))
    x = torch.rand(4, 1, 9, 6)
    training, evaluation = vae.train().encode(x).mu, vae.eval().encode(x).mu
    assert torch.equal(training, evaluation)


@every_preset
def test_the_untrained_posterior_is_near_the_prior_and_pictures_near_grey(preset: str) -> None:
    vae = VAE(ModelConfig(28, 28, 1, preset=preset))
    x = torch.rand(16, 1, 28, 28)
    with torch.no_grad():
        posterior = vae.encode(x)
        assert posterior.kl().mean() < 16  # one nat per dimension
        assert (vae.decode(posterior.mu) - 0.5).abs().max() < 0.25


@every_preset
def test_features_and_depth_of_0_are_those_of_the_preset(preset: str) -> None:
    config = ModelConfig(8, 8, 1, preset=preset)
    assert (config.features, config.depth) == (PRESETS[preset].features, PRESETS[preset].depth)
    assert config == ModelConfig(8, 8, 1, preset=preset, features=config.features, depth=config.depth)


@pytest.mark.parametrize("preset", ["residual", "mlp"])
def test_depth_adds_layers(preset: str) -> None:
    counts = [
        sum(weight.numel() for weight in VAE(ModelConfig(9, 6, 1, preset=preset, features=8, depth=depth)).parameters())
        for depth in (1, 2, 3)
    ]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@every_preset
def test_features_widen_every_network(preset: str) -> None:
    narrow, wide = (VAE(ModelConfig(9, 6, 1, preset=preset, features=features)) for features in (8, 16))
    for part in ("encoder", "decoder"):
        counts = [sum(weight.numel() for weight in getattr(vae, part).parameters()) for vae in (narrow, wide)]
        assert counts[0] < counts[1]


@every_preset
def test_networks_in_bfloat16_hand_on_float32(preset: str) -> None:
    vae = VAE(ModelConfig(9, 6, 1, latent_dim=3, preset=preset, features=8))
    x = torch.rand(4, 1, 9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert vae.encoder(x).dtype == torch.bfloat16
        posterior = vae.encode(x)
        logits = vae.logits(posterior.sample(torch.randn(2, 4, 3)))
        recon = vae.likelihood.recon(logits, x)
    assert posterior.mu.dtype == posterior.logvar.dtype == logits.dtype == recon.dtype == torch.float32
    torch.testing.assert_close(posterior.mu, vae.encode(x).mu, rtol=0, atol=0.05)


@pytest.mark.parametrize("channels", [1, 4, 8, 12, 32])
def test_a_residual_block_adds_nothing_at_first(channels: int) -> None:
    features = torch.randn(2, channels, 5, 4)
    torch.testing.assert_close(ResidualBlock(channels, channels)(features, (5, 4)), features)


def test_a_residual_block_that_widens_is_a_linear_map_of_each_place_at_first() -> None:
    block = ResidualBlock(4, 6)
    features = torch.randn(2, 4, 5, 3)
    expected = torch.einsum("oc,nchw->nohw", block.skip.weight[:, :, 0, 0], features) + block.skip.bias[:, None, None]
    torch.testing.assert_close(block(features, (5, 3)), expected)


def test_a_residual_block_is_the_sum_of_its_input_and_two_normalised_convolutions() -> None:
    block = ResidualBlock(16, 16)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(0.3 * torch.randn_like(weight))
    features = torch.randn(2, 16, 5, 3)

    def normalised(values: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        groups = values.unflatten(1, (norm.num_groups, -1))
        mean, variance = (
            groups.mean((2, 3, 4), keepdim=True),
            groups.var((2, 3, 4), unbiased=False, keepdim=True),
        )
        even = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
        return even * norm.weight[:, None, None] + norm.bias[:, None, None]

    change = normalised(features, block.first_norm)
    change = block.first(change * torch.sigmoid(change))
    change = normalised(change, block.second_norm)
    change = block.second(change * torch.sigmoid(change))
    torch.testing.assert_close(block(features, (5, 3)), features + change, rtol=1e-4, atol=1e-4)


def test_a_gated_layer_is_a_linear_layer_times_the_sigmoid_of_another() -> None:
    layer = GatedLayer(5, 3)
    features = torch.randn(4, 5)
    values = features @ layer.both.weight[:3].T + layer.both.bias[:3]
    gates = features @ layer.both.weight[3:].T + layer.both.bias[3:]
    torch.testing.assert_close(layer(features), values / (1 + torch.exp(-gates)))


def test_a_gated_layer_keeps_the_scale_of_what_it_passes_on() -> None:
    passed = GatedLayer(400, 400)(torch.randn(500, 400))
    assert 0.3 < passed.std() < 1.2


@pytest.mark.parametrize("size", [(8, 10), (7, 10), (7, 9), (4, 5)], ids=str)
def test_a_residual_block_enlarges_by_copies_and_crops(size: tuple[int, int]) -> None:
    block = stirred_block(3, 5)
    features = torch.randn(2, 3, 4, 5, requires_grad=True)
    scale = 1 if size == (4, 5) else 2

    def enlarged(small: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(small, scale_factor=scale, mode="nearest")[:, :, : size[0], : size[1]]

    change = block.first(enlarged(functional.silu(block.first_norm(features))))
    expected = enlarged(block.skip(features)) + block.second(functional.silu(block.second_norm(change)))
    found = block(features, size)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(found.shape)
    gradients = [torch.autograd.grad((sums * weights).sum(), features)[0] for sums in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_a_residual_encoder_lie_in_one_order_wherever_pictures_come_from(channels: int) -> None:
    """One channel lies in both orders at once, and torch would take the one that group norm is slow in."""
    vae = VAE(ModelConfig(8, 8, channels, preset="residual", features=8, latent_dim=3))
    orders = []
    vae.encoder.get_submodule("pixels").register_forward_hook(
        lambda _, __, features: orders.append(features.is_contiguous())
    )
    images = torch.zeros(2, 8, 8, channels, dtype=torch.uint8)
    vae.encode(to_x(images))
    vae.encode(to_x(images).contiguous())
    assert orders == [True, True]
