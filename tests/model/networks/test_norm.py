"""Our group norm is torch's, in either order of numbers in memory; so are residual decoders that lie channels last."""

import pytest
import torch
from torch import Tensor, nn

from model import nll
from model.networks.norm import GroupNorm
from model.vae import VAE, ModelConfig


def features(shape: tuple[int, ...], *, offset: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + offset
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def pair(groups: int, channels: int) -> tuple[GroupNorm, nn.GroupNorm]:
    """Ours and torch's, with the same weights."""
    ours, theirs = GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
    generator = torch.Generator().manual_seed(1)
    for weight in ours.parameters():
        weight.data = torch.randn(channels, generator=generator)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 16, 5, 7), 8), ((1, 32, 28, 28), 8), ((2, 6, 4, 4), 1), ((2, 4, 2, 1), 4)]
)
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_without_gradients_channels_last_give_what_torch_gives(
    shape: tuple[int, ...], groups: int, offset: float
) -> None:
    x = features(shape, offset=offset)
    ours, theirs = pair(groups, shape[1])
    with torch.no_grad():
        found, expected = ours(x), theirs(x.contiguous())
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=2e-5 * (1 + offset), rtol=1e-4)


def test_bf16_sums_in_float32() -> None:
    x = features((2, 16, 28, 28), dtype=torch.bfloat16)
    ours, theirs = pair(8, 16)
    with torch.no_grad():
        found, expected = ours(x), theirs(x.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0.02)


def test_flat_features_are_what_the_shift_says() -> None:
    ours, _ = pair(2, 4)
    with torch.no_grad():
        found = ours(torch.full((2, 4, 3, 3), 7.0).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, ours.bias.reshape(1, 4, 1, 1).expand(found.shape).detach(), atol=1e-2, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_with_gradients_it_is_torchs_own(layout: torch.memory_format) -> None:
    x = features((2, 8, 5, 5)).contiguous(memory_format=layout)
    ours, theirs = pair(4, 8)
    grads = []
    for norm in (ours, theirs):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        norm(leaf).square().sum().backward()
        grads.append((leaf.grad, norm.weight.grad, norm.bias.grad))
    for found, expected in zip(*grads, strict=True):
        assert found is not None
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("height", "width", "channels"), [(28, 28, 1), (13, 10, 3)])
def test_a_decoder_that_lies_channels_last_decodes_the_same_and_lies_as_before_afterwards(
    height: int, width: int, channels: int
) -> None:
    """Also where maps are cropped on their way up."""
    config = ModelConfig(height, width, channels, latent_dim=6, preset="residual", features=16, depth=2)
    torch.manual_seed(0)
    vae = VAE(config)
    for name, weight in vae.decoder.named_parameters():
        if "second" in name:
            nn.init.normal_(weight, std=0.1)  # which starts at 0, so that nothing would pass there
    z = torch.randn(5, 6)
    before = [(weight.data_ptr(), weight.stride()) for weight in vae.parameters()]
    with torch.inference_mode():
        expected = vae.logits(z)
        with nll._arranged(vae.decoder, vae.decoding_format):  # noqa: SLF001
            assert [(weight.data_ptr(), weight.stride()) for weight in vae.parameters()] != before
            found = vae.logits(z)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert [(weight.data_ptr(), weight.stride()) for weight in vae.parameters()] == before
