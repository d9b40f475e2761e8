"""What scorer and decoder have in common is stored once."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export.scorer import without_copies
from tests.service.linear import Linear, linear


@pytest.fixture(scope="module")
def model() -> Linear:
    return linear((28, 28, 1), (4,))


def inputs(model: Linear) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (3, *model.shape), dtype=np.uint8)
    return {"image": image, "z": generator.standard_normal((3, *model.latent_shape), dtype=np.float32)}


def test_shared_weights_are_references_to_their_very_bytes_in_the_decoder(model: Linear) -> None:
    decoder = model.decoder()
    shared = without_copies(model.scorer(), decoder=decoder)
    tensors = {tensor.name: tensor for tensor in onnx.load_model_from_string(shared).graph.initializer}
    place = {entry.key: entry.value for entry in tensors["d"].external_data}
    assert place["location"] == "decoder.onnx"
    start, length = int(place["offset"]), int(place["length"])
    assert decoder[start : start + length] == model.d.tobytes()
    assert len(shared) < len(model.scorer()) - length + 200
    inside = [name for name, tensor in tensors.items() if not tensor.external_data]
    assert sorted(inside) == sorted(set(tensors) - {"d"})  # scalars and shapes


def test_names_do_not_matter(model: Linear) -> None:
    renamed = onnx.load_model_from_string(model.decoder())
    for tensor in renamed.graph.initializer:
        tensor.name = f"other.{tensor.name}"
    for node in renamed.graph.node:
        node.input[:] = [f"other.{name}" if name in {"d", "half", "white"} else name for name in node.input]
    shared = onnx.load_model_from_string(without_copies(model.scorer(), decoder=renamed.SerializeToString()))
    assert [tensor.name for tensor in shared.graph.initializer if tensor.external_data] == ["d"]


def test_any_reader_of_onnx_finds_them_where_both_files_lie_in_one_folder(model: Linear, tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(model.decoder())
    (tmp_path / "scorer.onnx").write_bytes(without_copies(model.scorer(), decoder=model.decoder()))
    onnx.checker.check_model(tmp_path / "scorer.onnx", full_check=True)
    (found,) = ort.InferenceSession(tmp_path / "scorer.onnx").run(None, inputs(model))
    (alone,) = ort.InferenceSession(model.scorer()).run(None, inputs(model))
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_allclose(found, model.log_likelihood(**inputs(model)), rtol=1e-5)


def test_a_scorer_that_shares_nothing_stays_as_it_is(model: Linear) -> None:
    other = linear((28, 28, 1), (4,), seed=9)
    stays = without_copies(model.scorer(), decoder=other.decoder())
    assert onnx.load_model_from_string(stays) == onnx.load_model_from_string(model.scorer())
