"""What a bundle proves by itself."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.proof import prove
from service.bundle import BadBundle
from service.manifest import DECODER, ENCODER, SCORER
from tests.service.broken import edit_manifest, edited, flip_byte, made, with_constant
from tests.service.linear import linear, open_linear, write_linear
from tests.service.refusals import with_graph

MODEL = linear((6, 5, 3), (4,))


def test_a_sound_bundle_is_told_what_was_checked(tmp_path: Path) -> None:
    manifest = write_linear(tmp_path / "mine", MODEL, scorer=MODEL.scorer())
    files, digest, graphs, probe, shapes = prove(tmp_path / "mine")
    assert files.startswith("4 files")
    assert manifest.digest in digest
    assert graphs.startswith("decoder.onnx, encoder.onnx, scorer.onnx take and give")
    assert probe.startswith("4 pictures and latents of the probe")
    assert shapes == "every proven shape runs and gives numbers: 4 rows of 6×5"


def test_open_sizes_run_at_every_proven_shape(tmp_path: Path) -> None:
    write_linear(tmp_path / "mine", open_linear())
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[[7, 4, 4], [2, 16, 64]]))
    assert prove(tmp_path / "mine")[-1].endswith("7 rows of 4×4; 2 rows of 16×64")


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "scorer.onnx", "probe.safetensors"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    write_linear(tmp_path / "mine", MODEL, scorer=MODEL.scorer())
    flip_byte(tmp_path / "mine" / name)
    with pytest.raises(BadBundle, match=rf"{name}: sha256 is"):
        prove(tmp_path / "mine")


def test_another_model_under_an_honest_digest_is_found_by_the_probe(tmp_path: Path) -> None:
    made(tmp_path / "mine", MODEL, decoder=with_constant(MODEL.decoder(), "half", np.array(0.6, np.float32)))
    with pytest.raises(BadBundle, match=r"decoder\.onnx: image differs from the probe by"):
        prove(tmp_path / "mine")


def by_fours(graph: bytes, output: str, row: tuple[int, ...]) -> bytes:
    """The graph with an output that goes through a shape of four rows in one, as none but multiples of four can."""

    def edit(proto: onnx.GraphProto) -> None:
        for node in proto.node:
            node.output[:] = ["before" if name == output else name for name in node.output]
        shapes = {"of_fours": [-1, 4 * math.prod(row)], "of_rows": [-1, *row]}
        proto.initializer.extend(numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items())
        proto.node.append(helper.make_node("Reshape", ["before", "of_fours"], ["fours"]))
        proto.node.append(helper.make_node("Reshape", ["fours", "of_rows"], [output]))

    return edited(graph, edit)


@pytest.mark.parametrize(
    ("name", "output", "row"), [(ENCODER, "mu", (4,)), (DECODER, "image", (6, 5, 3)), (SCORER, "log_likelihood", ())]
)
def test_a_graph_that_takes_rows_by_the_four_alone_as_the_probe_has_them_is_found(
    tmp_path: Path, name: str, output: str, row: tuple[int, ...]
) -> None:
    with_graph(tmp_path / "mine", MODEL, name, lambda graph: by_fours(graph, output, row))
    prove(tmp_path / "mine")
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[[4, 6, 5], [7, 6, 5]]))
    with pytest.raises(BadBundle, match=rf"{name}: fails on 7 rows"):
        prove(tmp_path / "mine")


@pytest.mark.parametrize(
    "shape", [[1, 5, 6], [0, 6, 5], [-1, 6, 5], [2**21, 6, 5]], ids=["size", "none", "negative", "gigabytes"]
)
def test_a_shape_that_the_model_does_not_take_is_named_and_not_run(tmp_path: Path, shape: list[int]) -> None:
    write_linear(tmp_path / "mine", MODEL)
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[shape]))
    with pytest.raises(BadBundle) as refused:
        prove(tmp_path / "mine")
    expected = "rows, height and width of pictures that the model takes, 33554432 pixels at most"
    place = tmp_path / "mine" / "manifest.json"
    assert str(refused.value) == f"{place}: parity.shapes has {tuple(shape)}, expected {expected}"


def test_one_row_of_the_default_size_is_proven_however_large_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.proof.LARGEST_RUN_PIXELS", 10)
    write_linear(tmp_path / "mine", MODEL)
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[[1, 6, 5]]))
    prove(tmp_path / "mine")
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[[2, 6, 5]]))
    with pytest.raises(BadBundle, match=r"parity\.shapes has \(2, 6, 5\)"):
        prove(tmp_path / "mine")


@pytest.mark.parametrize("shape", [[1, 6, 4], [1, 4, 0], [1, 68, 4], [2**14, 64, 64]])
def test_of_open_sizes_every_side_is_a_multiple_of_the_stride_up_to_the_largest(
    tmp_path: Path, shape: list[int]
) -> None:
    write_linear(tmp_path / "mine", open_linear())
    edit_manifest(tmp_path / "mine", lambda plain: plain["parity"].update(shapes=[shape]))
    with pytest.raises(BadBundle, match=r"manifest\.json: parity\.shapes has "):
        prove(tmp_path / "mine")
