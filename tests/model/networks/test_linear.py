"""The linear layer against torch's own: outputs, gradients, and where it steps aside."""

import pytest
import torch
from torch import nn

from model.networks import linear
from model.networks.linear import Linear


def twins(before: int = 7, after: int = 5) -> tuple[Linear, nn.Linear]:
    ours, theirs = Linear(before, after), nn.Linear(before, after)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("rows", [0, 1, 2, 33])
def test_outputs_and_gradients_are_those_of_torch(rows: int) -> None:
    ours, theirs = twins()
    features = torch.randn(rows, 7)
    inputs = [features.clone().requires_grad_() for _ in range(2)]
    weights = torch.randn(rows, 5)
    outputs = [layer(given) for layer, given in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN has no float64, which finite differences want: the formula is tested with torch's product in its place.
    monkeypatch.setattr(linear, "_product", lambda left, right, bias=None: nn.functional.linear(left, right, bias))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (5, 3), (5,))]
    assert torch.autograd.gradcheck(linear.Product.apply, inputs)


def test_a_view_of_features_and_frozen_weights_are_taken_as_they_are() -> None:
    ours, theirs = twins()
    features = torch.randn(7, 20).t()[::2]
    ours.weight.requires_grad_(requires_grad=False)
    output = ours(features)
    torch.testing.assert_close(output, theirs(features))
    output.sum().backward()
    assert ours.weight.grad is None
    torch.testing.assert_close(ours.bias.grad, torch.full((5,), 10.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    ours, theirs = (layer.to(dtype) for layer in twins())
    features = torch.randn(3, 7, dtype=dtype)
    assert torch.equal(ours(features), theirs(features))


def test_autocast_chooses_the_type_as_it_does_for_torch() -> None:
    ours, theirs = twins()
    features = torch.randn(3, 7)
    with torch.autocast("cpu", torch.bfloat16):
        output, expected = ours(features), theirs(features)
    assert output.dtype is torch.bfloat16
    assert torch.equal(output, expected)


def test_an_exported_program_holds_a_plain_linear_layer() -> None:
    ours, _ = twins()
    program = torch.export.export(ours, (torch.randn(3, 7),))
    assert "aten.linear" in str(program.graph)


def test_a_torch_without_onednn_multiplies_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_HAS_ONEDNN", False)
    ours, theirs = twins()
    features = torch.randn(3, 7)
    assert torch.equal(ours(features), theirs(features))
