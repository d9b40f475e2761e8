"""torch modules as ONNX graphs that speak pixels: uint8 in, uint8 out, a free batch axis, no noise."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.frozen import CannotImport, Float32, Graphs, Source, Uint8
from export.interrupts import heard
from service.graph_file import IR_VERSION_MAX, OPSET_MAX
from service.manifest import ImageSpec

# protobuf's messages end at 2 GiB, and nodes need room beside the weights.
LARGEST_BYTES = 2_000_000_000

_LARGEST_BATCH = 2**16
_EXAMPLE_ROWS = 2
# Of an open size, in strides. Neither 0 nor 1, which the exporter takes for constants, nor equal.
_EXAMPLE_SIDES = (4, 6)


def freeze(
    encoder: nn.Module,
    decoder: nn.Module,
    scorer: nn.Module | None,
    *,
    image: ImageSpec,
    latent_shape: Sequence[int | None],
) -> Graphs:
    """Graphs of modules on pixels, the same bytes for the same weights wherever they are made.

    The encoder takes image (n, h, w, c) uint8 and gives mu and logvar (n, *latent_shape), or mu alone; the decoder
    takes z and gives image; the scorer takes image and z and gives log p(x given z) (n,).

    Raises:  CannotImport if torch cannot export one, or one file cannot hold it
    """
    pixels, z = _examples(image, latent_shape)
    outputs = ["mu", "logvar"] if isinstance(_tried(encoder, pixels), tuple) else ["mu"]
    sizes = _Sizes(image)
    return Graphs(
        encoder=_export(encoder, {"image": pixels}, outputs, sizes),
        decoder=_export(decoder, {"z": z}, ["image"], sizes),
        scorer=_export(scorer, {"image": pixels, "z": z}, ["log_likelihood"], sizes) if scorer else None,
    )


def source(encoder: nn.Module, decoder: nn.Module, scorer: nn.Module | None) -> Source:
    """The modules that `freeze` takes, as they are in torch, on arrays."""

    @torch.inference_mode()
    def encode(image: Uint8) -> tuple[Float32, Float32 | None]:
        posterior = encoder(torch.from_numpy(image))
        mu, logvar = posterior if isinstance(posterior, tuple) else (posterior, None)
        # safetensors writes an array's memory as it lies, and convolutions and splits leave it in another order.
        return mu.contiguous().numpy(), None if logvar is None else logvar.contiguous().numpy()

    @torch.inference_mode()
    def decode(z: Float32) -> Uint8:
        image: Uint8 = decoder(torch.from_numpy(z)).contiguous().numpy()
        return image

    @torch.inference_mode()
    def score(image: Uint8, z: Float32) -> Float32:
        assert scorer is not None  # noqa: S101  # a source without one says so
        log_likelihood: Float32 = scorer(torch.from_numpy(image), torch.from_numpy(z)).numpy()
        return log_likelihood

    return Source(encode, decode, score if scorer else None)


class _Sizes:
    """The axes that a graph leaves free: the batch, and height and width where sizes are open."""

    def __init__(self, image: ImageSpec) -> None:
        self.batch = torch.export.Dim("n", min=1, max=_LARGEST_BATCH)
        self.is_open = image.is_open
        if image.is_open:
            most = (image.max_side or 0) // image.stride
            places = [torch.export.Dim(axis, min=1, max=most) for axis in ("latent_h", "latent_w")]
            self.latent = {2: places[0], 3: places[1]}
            self.pixels = {1: image.stride * places[0], 2: image.stride * places[1]}

    def of(self, name: str) -> dict[int, Any]:
        """The free axes of an input: `image` (n, h, w, c) or `z` (n, channels, h, w)."""
        if not self.is_open:
            return {0: self.batch}
        return {0: self.batch, **(self.latent if name == "z" else self.pixels)}


def _examples(image: ImageSpec, latent_shape: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    places = iter(_EXAMPLE_SIDES)
    latent = [next(places) if axis is None else axis for axis in latent_shape]
    height, width = (image.stride * side for side in _EXAMPLE_SIDES)
    pixels = torch.zeros(_EXAMPLE_ROWS, image.height or height, image.width or width, image.channels, dtype=torch.uint8)
    return pixels, torch.zeros(_EXAMPLE_ROWS, *latent)


@torch.inference_mode()
def _tried(module: nn.Module, *inputs: Tensor) -> Any:
    return module(*inputs)


def _export(module: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], sizes: _Sizes) -> bytes:
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of a torchvision that nothing here needs
    try:
        with warnings.catch_warnings(), heard():
            warnings.simplefilter("ignore")  # torch's own deprecations, inside torch's own code
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=tuple(sizes.of(name) for name in inputs),
                dynamo=True,
                opset_version=OPSET_MAX,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        name = type(module).__name__.lower()
        raise CannotImport(f"{name}: torch.export refuses it ({reason}), expected straight tensor code") from error
    finally:
        exporter.setLevel(level)
    assert program is not None, "there always is one with dynamo"  # noqa: S101
    return plain(program.model_proto)


def plain(proto: onnx.ModelProto) -> bytes:
    """A graph without what differs from machine to machine: the exporter writes source paths into every node.

    Raises:  CannotImport if one file cannot hold it
    """
    weights_bytes = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights_bytes > LARGEST_BYTES:
        raise CannotImport(f"got a graph with {weights_bytes} bytes of weights, expected at most {LARGEST_BYTES}")
    proto.ir_version = min(proto.ir_version, IR_VERSION_MAX)
    for field in ("doc_string", "producer_name", "producer_version", "metadata_props"):
        proto.ClearField(field)
    for part in (*_parts(proto.graph), *(part for function in proto.functions for part in (function, *function.node))):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _parts(graph: onnx.GraphProto) -> Iterator[Any]:
    """A graph and all in it that carries notes, the graphs inside its nodes included."""
    yield from (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (part for inner in attribute.graphs for part in _parts(inner))
            if attribute.HasField("g"):  # to read what is not there would make it
                yield from _parts(attribute.g)
