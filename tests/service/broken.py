"""Bundles with one thing wrong: bytes changed after they were hashed, or graphs that were wrong when they were."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import onnx
from onnx import StringStringEntryProto, TensorProto, helper, numpy_helper

from export.bundle import bundle_files, manifest_of, write
from export.frozen import Graphs
from service.bundle import Probe
from service.manifest import DECODER, ENCODER, MANIFEST, PROBE, digest
from tests.service.linear import Model


def copied(source: Path, folder: Path) -> Path:
    """A bundle of its own, to break."""
    shutil.copytree(source, folder)
    return folder


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object], *, honest_digest: bool = False) -> None:
    """Change the manifest in place; with an honest digest, so that only the change itself is wrong."""
    path = folder / MANIFEST
    plain = json.loads(path.read_text())
    edit(plain)
    if honest_digest:
        plain["digest"] = digest(plain)
    path.write_text(json.dumps(plain))


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def made(
    folder: Path,
    model: Model,
    *,
    encoder: bytes | None = None,
    decoder: bytes | None = None,
    scorer: bytes | None = None,
    probe: Probe | None = None,
    raw_probe: bytes | None = None,
    **changes: object,
) -> Path:
    """A bundle that its manifest describes to the byte, with these parts in place of the model's."""
    graphs = Graphs(
        model.encoder() if encoder is None else encoder, model.decoder() if decoder is None else decoder, scorer
    )
    files = bundle_files(graphs, probe=probe or model.probe(), others={})
    if raw_probe is not None:
        files[PROBE] = raw_probe
    assert {ENCODER, DECODER, PROBE} <= files.keys()
    write(folder, files, manifest_of(files, model.fields(folder.name) | changes))
    return folder


def zipped(folder: Path, path: Path, *, compression: int = ZIP_DEFLATED) -> Path:
    """The files of a bundle in one zip, and nothing else."""
    with ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(folder)))
    return path


# Offset and format of the fields of a zip's central directory that tests lie in.
_DIRECTORY = {"flags": (8, "<H"), "method": (10, "<H"), "compressed": (20, "<I"), "size": (24, "<I")}


def with_claim(path: Path, name: str, **claims: int) -> None:
    """Other numbers in what a zip's directory says of one entry."""
    content = bytearray(path.read_bytes())
    entry = 0
    while (entry := content.find(b"PK\x01\x02", entry + 1)) > 0:
        (length,) = struct.unpack_from("<H", content, entry + 28)
        if content[entry + 46 : entry + 46 + length] == name.encode():
            break
    assert entry > 0
    for field, value in claims.items():
        offset, kind = _DIRECTORY[field]
        struct.pack_into(kind, content, entry + offset, value)
    path.write_bytes(bytes(content))


def edited(graph: bytes, edit: Callable[[onnx.GraphProto], object]) -> bytes:
    """The graph after a change to it."""
    model = onnx.load_from_string(graph)
    edit(model.graph)
    return model.SerializeToString()


def renamed(graph: bytes, old: str, new: str) -> bytes:
    """The graph with another name for an input or output."""

    def edit(proto: onnx.GraphProto) -> None:
        for value in (*proto.input, *proto.output):
            value.name = new if value.name == old else value.name
        for node in proto.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edited(graph, edit)


def with_dimension(graph: bytes, name: str, axis: int, size: int | str) -> bytes:
    """The graph with another declared size of one axis of an input or output."""

    def edit(proto: onnx.GraphProto) -> None:
        for value in (*proto.input, *proto.output):
            if value.name == name:
                dimension = value.type.tensor_type.shape.dim[axis]
                dimension.Clear()
                setattr(dimension, "dim_param" if isinstance(size, str) else "dim_value", size)

    return edited(graph, edit)


def with_type(graph: bytes, name: str, element: int) -> bytes:
    """The graph with another declared element type of an input or output."""

    def edit(proto: onnx.GraphProto) -> None:
        for value in (*proto.input, *proto.output):
            if value.name == name:
                value.type.tensor_type.elem_type = element

    return edited(graph, edit)


def with_constant(graph: bytes, name: str, array: Any) -> bytes:
    """The graph with another value of a constant."""

    def edit(proto: onnx.GraphProto) -> None:
        for tensor in proto.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edited(graph, edit)


def with_last(graph: bytes, output: str, operator: str, constants: dict[str, Any], **attributes: Any) -> bytes:
    """The graph with one operator more, after what gave `output` until now; the constants are its other inputs."""

    def edit(proto: onnx.GraphProto) -> None:
        for node in proto.node:
            node.output[:] = ["before" if name == output else name for name in node.output]
        proto.node.append(helper.make_node(operator, ["before", *constants], [output], **attributes))
        proto.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())

    return edited(graph, edit)


def with_external(graph: bytes, name: str, entries: Mapping[str, object]) -> bytes:
    """The graph with the bytes of a constant elsewhere, as the entries say."""

    def edit(proto: onnx.GraphProto) -> None:
        for tensor in proto.initializer:
            if tensor.name == name:
                outside(tensor, entries)

    return edited(graph, edit)


def outside(tensor: TensorProto, entries: Mapping[str, object]) -> None:
    """Take a tensor's bytes away and say that they lie elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.extend(StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items())
