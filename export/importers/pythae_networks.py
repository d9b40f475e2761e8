"""The networks that pythae 0.1.2 brings along, under its names, so that keys and shapes of weights tell them apart."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

XShape = tuple[int, int, int]
"""(c, h, w) of one picture."""

_MNIST, _CIFAR, _CELEBA = (1, 28, 28), (3, 32, 32), (3, 64, 64)


class Encoder(nn.Module):
    """Layers, and what reads mu and logvar off them; mu alone where there is no log_var.

    Shapes:  x (n, *x_shape) -> mu, logvar (n, latent_dim), or mu alone
    """

    def __init__(self, layers: nn.Module, *, x_shape: XShape, latent_dim: int, has_logvar: bool) -> None:
        super().__init__()
        self.x_shape = x_shape
        self.layers = layers
        features = layers.eval()(torch.zeros(1, *x_shape)).shape[1]
        self.embedding = nn.Linear(features, latent_dim)
        self.log_var = nn.Linear(features, latent_dim) if has_logvar else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """As the class says."""
        features = self.layers(x)
        mu: Tensor = self.embedding(features)
        return mu if self.log_var is None else (mu, self.log_var(features))


class Decoder(nn.Module):
    """Layers, without the sigmoid that ends them in pythae.

    Shapes:  z (n, latent_dim) -> logits (n, *x_shape)
    """

    def __init__(self, layers: nn.Module, *, x_shape: XShape) -> None:
        super().__init__()
        self.x_shape = x_shape
        self.layers = layers

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        logits: Tensor = self.layers(z)
        return logits


class _Residual(nn.Module):
    """Features plus what two convolutions make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 128, 1))

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.conv_block(features)
        return added


def encoders(x_shape: XShape | None, *, latent_dim: int, has_logvar: bool) -> dict[str, Encoder]:
    """Every encoder for such latents by name; the MLP only where the shape of pictures is known."""
    layers: dict[str, tuple[XShape, nn.Module]] = {}
    if x_shape:
        hidden = nn.Sequential(nn.Linear(math.prod(x_shape), 512), nn.ReLU())
        layers["MLP"] = x_shape, _numbered(nn.Flatten(), hidden)
    for data, shape in (("MNIST", _MNIST), ("CIFAR", _CIFAR), ("CELEBA", _CELEBA)):
        widths = (shape[0], 128, 256, 512, 1024)
        halvings = [_normed(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(widths)]
        layers[f"Conv {data}"] = shape, _numbered(*halvings, nn.Flatten())
    for data, shape, strides in (("MNIST", _MNIST, [2]), ("CIFAR", _CIFAR, [1]), ("CELEBA", _CELEBA, [2, 2])):
        halvings = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise((shape[0], 64, 128))]
        more = [nn.Sequential(nn.Conv2d(128, 128, 3, stride, 1)) for stride in strides]
        residuals = nn.Sequential(_Residual(), _Residual())
        layers[f"ResNet {data}"] = shape, _numbered(*halvings, *more, residuals, nn.Flatten())
    return {
        name: Encoder(network, x_shape=shape, latent_dim=latent_dim, has_logvar=has_logvar)
        for name, (shape, network) in layers.items()
    }


def decoders(x_shape: XShape | None, *, latent_dim: int) -> dict[str, Decoder]:
    """Every decoder of such latents by name; the MLP only where the shape of pictures is known."""
    layers = {
        "Conv MNIST": (_MNIST, _conv_mnist(latent_dim)),
        "Conv CIFAR": (_CIFAR, _conv_cifar(latent_dim)),
        "Conv CELEBA": (_CELEBA, _conv_celeba(latent_dim)),
        "ResNet MNIST": (_MNIST, _resnet_mnist(latent_dim)),
        "ResNet CIFAR": (_CIFAR, _resnet_cifar(latent_dim)),
        "ResNet CELEBA": (_CELEBA, _resnet_celeba(latent_dim)),
    }
    if x_shape:
        layers["MLP"] = x_shape, _mlp(latent_dim, x_shape)
    return {name: Decoder(network, x_shape=shape) for name, (shape, network) in layers.items()}


def _mlp(latent_dim: int, x_shape: XShape) -> nn.Sequential:
    return _numbered(
        nn.Sequential(nn.Linear(latent_dim, 512), nn.ReLU()),
        nn.Sequential(nn.Linear(512, math.prod(x_shape))),
        nn.Unflatten(1, x_shape),
    )


def _conv_mnist(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Linear(latent_dim, 1024 * 4 * 4),
        nn.Unflatten(1, (1024, 4, 4)),
        _normed(nn.ConvTranspose2d(1024, 512, 3, 2, 1)),
        _normed(nn.ConvTranspose2d(512, 256, 3, 2, 1, 1)),
        nn.Sequential(nn.ConvTranspose2d(256, 1, 3, 2, 1, 1)),
    )


def _conv_cifar(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Linear(latent_dim, 1024 * 8 * 8),
        nn.Unflatten(1, (1024, 8, 8)),
        _normed(nn.ConvTranspose2d(1024, 512, 4, 2, 1)),
        _normed(nn.ConvTranspose2d(512, 256, 4, 2, 1, 1)),
        nn.Sequential(nn.ConvTranspose2d(256, 3, 4, 1, 2)),
    )


def _conv_celeba(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Sequential(nn.Linear(latent_dim, 1024 * 8 * 8)),
        nn.Unflatten(1, (1024, 8, 8)),
        _normed(nn.ConvTranspose2d(1024, 512, 5, 2, 2)),
        _normed(nn.ConvTranspose2d(512, 256, 5, 2, 1)),
        _normed(nn.ConvTranspose2d(256, 128, 5, 2, 2, 1)),
        nn.Sequential(nn.ConvTranspose2d(128, 3, 5, 1, 1)),
    )


def _resnet_mnist(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Linear(latent_dim, 128 * 4 * 4),
        nn.Unflatten(1, (128, 4, 4)),
        nn.ConvTranspose2d(128, 128, 3, 2, 1),
        nn.Sequential(_Residual(), _Residual(), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(128, 64, 3, 2, 1, 1), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(64, 1, 3, 2, 1, 1)),
    )


def _resnet_cifar(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Linear(latent_dim, 128 * 8 * 8),
        nn.Unflatten(1, (128, 8, 8)),
        nn.Sequential(_Residual(), _Residual()),
        nn.Sequential(nn.ConvTranspose2d(128, 64, 4, 2, 1)),
        nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1)),
    )


def _resnet_celeba(latent_dim: int) -> nn.Sequential:
    return _numbered(
        nn.Linear(latent_dim, 128 * 4 * 4),
        nn.Unflatten(1, (128, 4, 4)),
        nn.ConvTranspose2d(128, 128, 3, 2, 1),
        nn.Sequential(_Residual(), _Residual()),
        nn.Sequential(nn.ConvTranspose2d(128, 128, 5, 2, 1), nn.Sigmoid()),  # halfway up, as in pythae
        nn.Sequential(nn.ConvTranspose2d(128, 64, 5, 2, 1, 1)),
        nn.Sequential(nn.ConvTranspose2d(64, 3, 4, 2, 1)),
    )


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


def _numbered(*modules: nn.Module) -> nn.Sequential:
    """Modules in a row under pythae's numbers, which count no change of shape."""
    layers = nn.Sequential()
    for module in modules:
        is_shape = isinstance(module, nn.Flatten | nn.Unflatten)
        number = sum(name.isdigit() for name, _ in layers.named_children())
        layers.add_module("flat" if is_shape else str(number), module)
    return layers
