"""A linear layer whose products of float32 matrices run in oneDNN where torch would take a slower BLAS."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# What torch's own compiler calls for a linear layer on a CPU; eager torch calls MKL, which is half as fast on AMD's.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """As `torch.nn.Linear`, of which it has weights and names.

    Shapes:  (n, in_features) -> (n, out_features)
    """

    def forward(self, features: Tensor) -> Tensor:
        """Features times the weights, plus the bias."""
        if _in_onednn(features):
            product: Tensor = Product.apply(features, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return super().forward(features)


def _in_onednn(features: Tensor) -> bool:
    """Whether torch would take its BLAS: autocast, the compiler, the exporter and GPUs choose for themselves."""
    return (
        _HAS_ONEDNN
        and features.dtype is torch.float32
        and features.device.type == "cpu"
        and features.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class Product(torch.autograd.Function):
    """features @ weight.T + bias, and its gradients, each a product of the same kind."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product.

        Shapes:  features (n, before), weight (after, before), bias (after,) -> (n, after)
        """
        ctx.save_for_backward(features, weight)
        return _product(features, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of features, weight and bias, None where nobody asks.

        Shapes:  gradient (n, after)
        """
        features, weight = ctx.saved_tensors
        needs_features, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if needs_features else None,
            _product(gradient.t(), features.t()) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right.T + bias."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")  # noqa: SLF001  # as above
    return product
