"""A VAE as two ONNX graphs that speak pixels: uint8 in, uint8 out, a free batch axis, no noise."""

import logging
import warnings
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn

from model.gaussian import DiagonalGaussian
from model.training import to_x
from model.vae import VAE

OPSET = 20
IR_VERSION = 10

_LARGEST_BATCH = 2**16


@dataclass(frozen=True)
class Graphs:
    """The graphs of a model, serialised."""

    encoder: bytes
    decoder: bytes


class _Encoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(self.vae.likelihood.settle(to_x(image)))
        if not isinstance(posterior, DiagonalGaussian):
            raise TypeError("encoder: got an autoencoder, expected a model with a posterior")
        return posterior.mu, posterior.logvar


class _Decoder(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return torch.round(self.vae.decode(z) * 255).to(torch.uint8).permute(0, 2, 3, 1)


def encoder_module(vae: VAE) -> nn.Module:
    """What the encoder graph computes, in torch.

    Shapes:  image (n, h, w, c) uint8 -> mu, logvar (n, latent_dim)
    """
    return _Encoder(vae).eval()


def decoder_module(vae: VAE) -> nn.Module:
    """What the decoder graph computes, in torch.

    Shapes:  z (n, latent_dim) -> image (n, h, w, c) uint8
    """
    return _Decoder(vae).eval()


def freeze(vae: VAE) -> Graphs:
    """Both graphs of a VAE, the same bytes for the same weights wherever they are made."""
    image = torch.zeros(2, *vae.config.image_shape, dtype=torch.uint8)
    z = torch.zeros(2, vae.config.latent_dim)
    return Graphs(
        encoder=_export(encoder_module(vae), image, inputs=["image"], outputs=["mu", "logvar"]),
        decoder=_export(decoder_module(vae), z, inputs=["z"], outputs=["image"]),
    )


def _export(module: nn.Module, example: Tensor, *, inputs: list[str], outputs: list[str]) -> bytes:
    batch = torch.export.Dim("n", min=1, max=_LARGEST_BATCH)
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of a torchvision that nothing here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, inside torch's own code
            program = torch.onnx.export(
                module,
                (example,),
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=({0: batch},),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return _plain(program.model_proto)


def _plain(proto: onnx.ModelProto) -> bytes:
    """A graph without what differs from machine to machine: the exporter writes source paths into every node."""
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    proto.doc_string = ""
    del proto.metadata_props[:]
    graph = proto.graph
    graph.doc_string = ""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
