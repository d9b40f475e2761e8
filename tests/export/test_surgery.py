import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.foreign import draws, files
from export.foreign.files import cut, read
from export.foreign.original import Original
from export.foreign.pixels import Pixels
from export.foreign.scales import Scale
from export.foreign.surgery import Port, Step, rewired, split, with_free_rows
from export.frozen import CannotImport
from model.gaussian import SCALE_HEADS, ScaleHead
from tests.export.onnx_files import normal, parsed, saved

PLAIN = "g (float[n, 2] x) => (float[n, 3] y) { h = MatMul(x, w) y = Relu(h) }"
WEIGHTS = {"w": normal((2, 3))}
PATH = Path("g.onnx")
X = normal((5, 2), seed=7)


def run(model: ModelProto | bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, inputs)


def of_steps(steps: list[Step], x: np.ndarray, *, to: int) -> np.ndarray:
    """What steps make of an array, inside a graph that does nothing else."""
    kinds = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}
    kind, axes = kinds[x.dtype], [None] * x.ndim
    values = [helper.make_tensor_value_info(name, kind, axes) for name in ("in", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["in"], ["out"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    named = [f"axis{place}" for place in range(x.ndim)]
    takes, gives = Port("x", "in", kind, tuple(named)), Port("y", "out", to, tuple(named), steps)
    return run(rewired(model, takes=takes, gives=[gives], path=PATH), x=x)[0]


# Reading


def test_weights_beside_a_file_are_brought_in(tmp_path: Path) -> None:
    model = parsed(PLAIN, WEIGHTS)
    onnx.save_model(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    assert (tmp_path / "g.data").stat().st_size >= WEIGHTS["w"].nbytes
    found = read(tmp_path / "g.onnx")
    (tmp_path / "g.data").unlink()
    np.testing.assert_array_equal(numpy_helper.to_array(found.graph.initializer[0]), WEIGHTS["w"])
    np.testing.assert_array_equal(run(found, x=X), run(parsed(PLAIN, WEIGHTS), x=X))


def external(folder: Path, **entries: str) -> Path:
    """A file whose weight lies elsewhere."""
    model = parsed(PLAIN, {})
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    return saved(model, folder / "inside" / "g.onnx")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"location": "../secret"}, "points outside the directory"),
        ({"location": "{folder}/secret"}, "should be a relative path, but it is an absolute path"),
        ({"location": "link"}, "but it is a symbolic link"),
        ({"location": "nothing"}, "is not regular file"),
        ({"location": "short"}, r"raw_data size \(8 bytes\) is too small .*\(24 bytes required\)"),
        ({"location": "short", "offset": "100"}, r"offset \(100\) exceeds file size \(8\)"),
        ({"location": "short", "length": "3000000000"}, r"length \(3000000000\) exceeds available data \(8 bytes"),
        ({"location": "short", "length": "-1"}, "length must be non-negative, got -1"),
    ],
)
def test_weights_from_outside_the_folder_or_not_all_there_are_refused(
    tmp_path: Path, entries: dict[str, str], told: str
) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS["w"].tobytes())
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "inside" / "short").write_bytes(bytes(8))
    path = external(tmp_path, **{key: value.format(folder=tmp_path) for key, value in entries.items()})
    with pytest.raises(CannotImport, match=told) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


def with_tensor(tensor: TensorProto) -> bytes:
    model = parsed(PLAIN, {})
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (parsed(PLAIN, WEIGHTS).SerializeToString()[:-20], "not readable as ONNX, expected a whole file"),
        (b"onnx", "not readable as ONNX, expected a whole file"),
        (b"", "holds no graph, expected an ONNX file with nodes and outputs"),
        (
            with_tensor(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000, 1000, 800], raw_data=b"1234")),
            "claims 3200000000 bytes of weights, expected at most 2000000000",
        ),
        (
            with_tensor(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], raw_data=b"1234")),
            r"raw_data size \(4 bytes\) is too small for the declared shape and type \(24 bytes required\)",
        ),
        (
            with_tensor(TensorProto(name="w", data_type=99, dims=[2, 3], raw_data=b"1234")),
            "w is of the unknown type 99, expected numbers",
        ),
        (
            with_tensor(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], float_data=[0.5] * 7)),
            r"w: cannot reshape array of size 7 into shape \(2,\s?3\)",
        ),
        (
            parsed(PLAIN, WEIGHTS).SerializeToString().replace(b"Relu", b"Rel\xff"),
            "holds a name that is not UTF-8, expected a whole ONNX file",
        ),
    ],
    ids=["truncated", "text", "empty", "claims", "short", "type", "long", "name"],
)
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    with pytest.raises(CannotImport, match=told):
        read(path)


def test_a_file_larger_than_a_message_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.touch()
    os.truncate(path, 2**31)
    with pytest.raises(CannotImport, match=r"has 2147483648 bytes, expected an ONNX file of at most 2000000000"):
        read(path)


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    model = parsed(PLAIN, {})
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("w.at", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    with pytest.raises(CannotImport, match="has sparse weights, expected dense ones"):
        read(saved(model, tmp_path / "g.onnx"))


def test_weights_that_an_old_file_lists_as_inputs_are_weights(tmp_path: Path) -> None:
    model = parsed(PLAIN, WEIGHTS, ir_version=3, opset=9)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    found = read(saved(model, tmp_path / "g.onnx"))
    assert [value.name for value in found.graph.input] == ["x"]


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = parsed(PLAIN, WEIGHTS)
    function = onnx.parser.parse_function(
        '<opset_import: ["" : 17], domain: "mine"> twice (a) => (b) { b = Add(a, a) }'
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node[0].output[0] = "once"
    model.graph.node.insert(1, helper.make_node("twice", ["once"], ["h"], domain="mine"))
    part = cut(read(saved(model, tmp_path / "g.onnx")), ["y"], path=tmp_path)
    np.testing.assert_allclose(run(part, x=X), [np.maximum(2 * X @ WEIGHTS["w"], 0)], rtol=1e-6)
    assert [entry.domain for entry in part.opset_import] == [""]


def calling(*, depth: int) -> ModelProto:
    """A graph that calls a function that calls another twice, and so on; the last one adds."""
    functions = "".join(
        f"""
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        f{place} (a) => (b) {{
            c = {"Abs(a)" if place == depth else f"local.f{place + 1}(a)"}
            b = {"Abs(c)" if place == depth else f"local.f{place + 1}(c)"}
        }}"""
        for place in range(1, depth + 1)
    )
    head = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
    return onnx.parser.parse_model(f"{head} g (float[n] x) => (float[n] y) {{ y = local.f1(x) }} {functions}")


def under_another_name(model: ModelProto) -> ModelProto:
    """The same as overloads, behind functions of the same names that do nothing much."""
    for function in model.functions:
        function.overload = "x"
        for node in function.node:
            node.overload = "x" if node.domain == "local" else ""
    model.graph.node[0].overload = "x"
    model.functions.extend(
        onnx.parser.parse_function(f'<domain: "local"> f{n} (a) => (b) {{ b = Abs(a) }}') for n in (1, 2)
    )
    return model


def heavy(model: ModelProto) -> ModelProto:
    """With a constant of ten thousand bytes in the last function, which nobody reads."""
    constant = numpy_helper.from_array(np.zeros(2_500, np.float32))
    model.functions[-1].node.append(helper.make_node("Constant", [], ["unread"], value=constant))
    return model


def test_functions_that_stand_for_a_great_many_nodes_are_refused_before_they_are_inlined(tmp_path: Path) -> None:
    assert len(files.read(saved(calling(depth=10), tmp_path / "g.onnx")).graph.node) >= 2**10
    deep, heavier = calling(depth=30), heavy(calling(depth=19))
    for model in (deep, under_another_name(calling(depth=30)), calling(depth=1_100), heavier):
        with pytest.raises(CannotImport, match=r"g\.onnx: its functions stand for more than 1,000,000 nodes and "):
            files.read(saved(model, tmp_path / "g.onnx"))


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    model = calling(depth=2)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "f1", "local"
    with pytest.raises(CannotImport, match=r"g\.onnx: a function of it calls itself, expected none that does"):
        files.read(saved(model, tmp_path / "g.onnx"))


def test_functions_that_cannot_be_inlined_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_model: ModelProto) -> ModelProto:
        raise RuntimeError("from C++")

    monkeypatch.setattr(files.inliner, "inline_local_functions", failing)
    model = parsed(PLAIN, WEIGHTS)
    absolute = '<opset_import: ["" : 17], domain: "mine"> f (a) => (b) { b = Abs(a) }'
    model.functions.append(onnx.parser.parse_function(absolute))
    with pytest.raises(CannotImport, match=r"g\.onnx: its functions cannot be inlined \(from C\+\+\)"):
        read(saved(model, tmp_path / "g.onnx"))


def test_the_other_name_of_the_standard_domain_is_the_standard_domain(tmp_path: Path) -> None:
    model = parsed(PLAIN, WEIGHTS)
    model.graph.node[0].domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    part = cut(read(saved(model, tmp_path / "g.onnx")), ["y"], path=tmp_path)
    assert {part.opset_import[0].domain, *(node.domain for node in part.graph.node)} == {""}
    np.testing.assert_allclose(run(part, x=X), [np.maximum(X @ WEIGHTS["w"], 0)], rtol=1e-6)


# Cutting

BRANCHED = """
g (float[n, 2] x, float[n, 3] eps) => (float[n, 3] y, float[n, 3] z, float[n, 3] u) {
    h = MatMul(x, w)
    y = Relu(h)
    e = Mul(h, eps)
    z = Add(y, e)
    noise = RandomNormalLike(h)
    u = Add(y, noise)
}"""


def test_what_does_not_feed_the_kept_output_is_cut_away() -> None:
    model = parsed(BRANCHED, WEIGHTS | {"unused": normal((9, 9))})
    part = cut(model, ["y"], path=PATH)
    assert [node.op_type for node in part.graph.node] == ["MatMul", "Relu"]
    assert [value.name for value in part.graph.input] == ["x"]
    assert [tensor.name for tensor in part.graph.initializer] == ["w"]
    np.testing.assert_allclose(run(part, x=X), [np.maximum(X @ WEIGHTS["w"], 0)], rtol=1e-6)
    assert len(model.graph.node) == 6  # the model itself is left as it was


NOISES = {
    "RandomNormal": "RandomNormal <shape = [1, 3]> ()",
    "RandomNormalLike": "RandomNormalLike(h)",
    "RandomUniform": "RandomUniform <shape = [1, 3]> ()",
    "RandomUniformLike": "RandomUniformLike(h)",
    "Bernoulli": "Bernoulli(h)",
    "Multinomial": "Multinomial <dtype = 6> (h)",
}


@pytest.mark.parametrize("op", NOISES)
def test_noise_that_feeds_a_kept_output_is_refused_by_name(op: str) -> None:
    text = f"""g (float[n, 2] x) => (float[n, 3] y, float[n, 3] z) {{
        h = MatMul(x, w)
        y = Relu(h)
        draw = {NOISES[op]}
        noise = CastLike(draw, h)
        z = Add(h, noise)
    }}"""
    model = parsed(text, WEIGHTS)
    assert len(cut(model, ["y"], path=PATH).graph.node) == 2
    with pytest.raises(CannotImport, match=rf"^g.onnx: z depends on {op} \(draw\), expected an output without noise$"):
        cut(model, ["y", "z"], path=PATH)


INNER = """
g (float[n, 2] x, bool c) => (float[n, 3] y) {
    h = MatMul(x, w)
    y = If (c) <
        then_branch = t () => (float[n, 3] a) { k = MatMul(x, w) a = Add(k, bias) },
        else_branch = f () => (float[n, 3] b) { b = OTHERWISE }
    >
}"""


def test_what_the_graphs_inside_a_node_read_is_kept() -> None:
    model = parsed(INNER.replace("OTHERWISE", "Neg(h)"), WEIGHTS | {"bias": normal((3,))})
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    del model.graph.input[1]
    part = cut(model, ["y"], path=PATH)
    assert {tensor.name for tensor in part.graph.initializer} == {"w", "bias", "c"}
    takes, gives = Port("image", "x", TensorProto.FLOAT, ("n", 2)), Port("mu", "y", TensorProto.FLOAT, ("n", 3))
    wired = rewired(part, takes=takes, gives=[gives], path=PATH)
    np.testing.assert_allclose(run(wired, image=X), [X @ WEIGHTS["w"] + normal((3,))], rtol=1e-6)


def test_noise_inside_a_node_is_noise() -> None:
    model = parsed(INNER.replace("OTHERWISE", "RandomNormalLike(h)"), WEIGHTS | {"bias": normal((3,))})
    with pytest.raises(CannotImport, match=r"y depends on RandomNormalLike \(b\)"):
        cut(model, ["y"], path=PATH)


def weighted(value: float) -> ModelProto:
    return parsed(PLAIN, {"w": np.array([[1, 2, value], [4, 5, 6]], np.float32)})


@pytest.mark.parametrize(
    ("model", "outputs", "told"),
    [
        (parsed(BRANCHED, WEIGHTS), ["z"], "z need the inputs x, eps, expected one input"),
        (
            parsed("g (float[n, 2] x) => (float[2] y) { y = Relu(b) }", {"b": X[0]}),
            ["y"],
            "y need the inputs none, expected one",
        ),
        (parsed(PLAIN, WEIGHTS), ["mu"], "gives no mu, its outputs are y"),
        (weighted(np.nan), ["y"], "w holds NaN or infinity, expected finite weights"),
        (weighted(-np.inf), ["y"], "w holds NaN or infinity, expected finite weights"),
    ],
    ids=["inputs", "constant", "name", "nan", "infinity"],
)
def test_a_part_that_no_bundle_can_hold_is_refused(model: ModelProto, outputs: list[str], told: str) -> None:
    with pytest.raises(CannotImport, match=f"^g.onnx: {told}"):
        cut(model, outputs, path=PATH)


def test_one_infinity_alone_is_a_bound_and_kept() -> None:
    text = "g (float[n, 2] x) => (float[n, 2] y) { y = Clip(x, low, high) }"
    model = parsed(text, {"low": np.array(0, np.float32), "high": np.array(np.inf, np.float32)})
    np.testing.assert_array_equal(run(cut(model, ["y"], path=PATH), x=X), [np.maximum(X, 0)])


def test_operators_of_another_domain_are_refused_where_they_are_kept() -> None:
    model = parsed(PLAIN, WEIGHTS)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("Gelu", ["h"], ["z"], name="gelu", domain="com.microsoft"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3]))
    assert [entry.domain for entry in cut(model, ["y"], path=PATH).opset_import] == [""]
    with pytest.raises(
        CannotImport, match=r"Gelu \(gelu\) is of the domain com.microsoft, expected standard operators"
    ):
        cut(model, ["z"], path=PATH)


@pytest.mark.parametrize(("opset", "becomes"), [(9, 20), (12, 20), (13, 13), (17, 17), (20, 20), (21, 20), (23, 20)])
def test_an_opset_that_bundles_do_not_have_is_rewritten_in_theirs(opset: int, becomes: int) -> None:
    text = "g (float[n, 2] x) => (float[n, 3] y) { h = MatMul(x, w) r = Relu(h) y = Softmax <axis = 1> (r) }"
    part = cut(parsed(text, WEIGHTS, opset=opset), ["y"], path=PATH)
    assert [(entry.domain, entry.version) for entry in part.opset_import] == [("", becomes)]
    expected = torch.from_numpy(X @ WEIGHTS["w"]).relu().softmax(dim=1)
    np.testing.assert_allclose(run(part, x=X), expected[None], rtol=1e-5)


def test_an_opset_that_cannot_be_rewritten_is_refused() -> None:
    text = "g (float[n, 4, 2, 2] x) => (float[n, 4, 2, 2] y) { y = GroupNormalization <num_groups = 2> (x, s, s) }"
    model = parsed(text, {"s": normal((4,))}, opset=21, ir_version=10)
    with pytest.raises(CannotImport, match=r"its opset is 21, expected 13 to 20 or what can be rewritten .*GroupNorm"):
        cut(model, ["y"], path=PATH)


# Wiring


def test_a_sources_names_never_meet_those_of_a_bundle() -> None:
    model = parsed("g (float[n, 2] mu) => (float[n, 2] z) { image = Neg(mu) z = Exp(image) }", {})
    takes, gives = Port("image", "mu", TensorProto.FLOAT, ("n", 2)), Port("mu", "z", TensorProto.FLOAT, ("n", 2))
    wired = rewired(model, takes=takes, gives=[gives], path=PATH)
    np.testing.assert_allclose(run(wired, image=X), [np.exp(-X)], rtol=1e-6)


def test_a_graph_that_is_not_valid_onnx_is_refused() -> None:
    model = parsed("g (float[n, 2] x) => (float[n, 2] y) { y = Relu <alpha = 1> (x) }", {})
    takes, gives = Port("image", "x", TensorProto.FLOAT, ("n", 2)), Port("mu", "y", TensorProto.FLOAT, ("n", 2))
    with pytest.raises(CannotImport, match=r"^g.onnx: not valid ONNX \(.*alpha"):
        rewired(model, takes=takes, gives=[gives], path=PATH)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_tensor_is_halved_along_its_channels(channels: int) -> None:
    model = parsed("g (float[n, d, h] x) => (float[n, d, h] y) { y = Neg(x) }", {})
    x = normal((3, 2 * channels, 4))
    first, second = run(split(model, channels=channels, names=("a", "b")), x=x)
    np.testing.assert_array_equal(first, -x[:, :channels])
    np.testing.assert_array_equal(second, -x[:, channels:])


RESHAPED = """
g (float[1, 4, 6] x) => (float[1, 3] y) {
    shape = Constant <value = int64[4] {1, 2, 2, 6}> ()
    a = Reshape(x, shape)
    flat = Constant <value = int64[2] {1, -1}> ()
    b = Reshape(a, flat)
    row = Constant <value = int64[2] {1, 24}> ()
    w1 = Reshape(w, row)
    c = Mul(b, w1)
    y = MatMul(c, v)
}"""


def test_a_reshape_that_holds_one_row_lets_go_of_it() -> None:
    model = parsed(RESHAPED, {"w": normal((24,)), "v": normal((24, 3))})
    free = with_free_rows(model, path=PATH)
    x = normal((5, 4, 6), seed=3)
    takes, gives = Port("x", "x", TensorProto.FLOAT, ("n", 4, 6)), Port("y", "y", TensorProto.FLOAT, ("n", 3))
    wired = rewired(free, takes=takes, gives=[gives], path=PATH)
    np.testing.assert_allclose(run(wired, x=x), [(x.reshape(5, 24) * normal((24,))) @ normal((24, 3))], rtol=1e-5)


# Pixels and scales


@pytest.mark.parametrize(
    ("black_white", "expected"),
    [
        ((0.0, 1.0), [0, 0.2, 0.8, 1]),
        ((-1.0, 1.0), [-1, -0.6, 0.6, 1]),
        ((0.0, 255.0), [0, 51, 204, 255]),
        ((1.0, 0.0), [1, 0.8, 0.2, 0]),
        ((-0.5, 0.5), [-0.5, -0.3, 0.3, 0.5]),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_bytes_become_numbers_in_the_range_and_come_back(
    black_white: tuple[float, float], expected: list[float], layout: str
) -> None:
    pixels = Pixels(layout, TensorProto.FLOAT, black_white)
    image = np.array([0, 51, 204, 255], np.uint8)[np.arange(24) % 4].reshape(2, 2, 2, 3)
    numbers = np.array(expected, np.float32)[np.arange(24) % 4].reshape(2, 2, 2, 3)
    numbers = np.ascontiguousarray(numbers.transpose(0, 3, 1, 2)) if layout == "nchw" else numbers
    np.testing.assert_allclose(pixels.of(image), numbers, atol=1e-6)
    np.testing.assert_allclose(of_steps(pixels.steps_of(), image, to=TensorProto.FLOAT), numbers, atol=1e-6)
    beyond = numbers + (numbers == black_white[1]) * np.float32(black_white[1] - black_white[0])
    for given in (numbers, beyond):
        np.testing.assert_array_equal(pixels.image(given), image)
        np.testing.assert_array_equal(of_steps(pixels.steps_image(), given, to=TensorProto.UINT8), image)


def test_bytes_in_channels_first_are_only_turned() -> None:
    pixels = Pixels("nchw", TensorProto.UINT8, None)
    image = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    given = of_steps(pixels.steps_of(), image, to=TensorProto.UINT8)
    np.testing.assert_array_equal(given, image.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(pixels.of(image), given)
    np.testing.assert_array_equal(of_steps(pixels.steps_image(), given, to=TensorProto.UINT8), image)
    np.testing.assert_array_equal(pixels.image(given), image)


EMITTED = {
    "logvar": ([-40, 0, 30], [-40, 0, 30]),
    "log_sigma": ([-20, 0, 1.5], [-40, 0, 3]),
    "variance": ([0, 1e-20, 1, np.e, 1e30], [-30, -30, 0, 1, 20]),
    "sigma": ([0, 1e-8, 1e-3, 1, np.e, 1e30], [-30, -30, np.log(1e-6), 0, 2, 20]),
}


@pytest.mark.parametrize("head", SCALE_HEADS)
def test_every_head_becomes_logvar_within_its_bounds(head: ScaleHead) -> None:
    emitted, expected = (np.array(values, np.float32) for values in EMITTED[head])
    scale = Scale.of(head)
    np.testing.assert_allclose(scale.logvar(emitted), expected, atol=1e-5)
    found = of_steps(scale.steps(TensorProto.FLOAT), emitted, to=TensorProto.FLOAT)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if scale.logvar_range:
        assert (found.min(), found.max()) == scale.logvar_range


def test_a_logvar_with_a_range_is_cut_to_it() -> None:
    scale = Scale("logvar", (-30.0, 20.0))
    emitted = np.array([-99, -30, 1, 99], np.float32)
    for found in (scale.logvar(emitted), of_steps(scale.steps(TensorProto.FLOAT), emitted, to=TensorProto.FLOAT)):
        np.testing.assert_array_equal(found, [-30, -30, 1, 20])


# The file itself


def test_a_file_of_fixed_rows_is_run_as_often_as_needed(tmp_path: Path) -> None:
    path = saved(parsed(PLAIN.replace("n", "2"), WEIGHTS), tmp_path / "g.onnx")
    (found,) = Original(path, takes="x", gives=["y"]).run(X)
    np.testing.assert_allclose(found, np.maximum(X @ WEIGHTS["w"], 0), rtol=1e-6)


def test_inputs_that_the_kept_outputs_do_not_need_are_zeros(tmp_path: Path) -> None:
    path = saved(parsed(BRANCHED, WEIGHTS), tmp_path / "g.onnx")
    y, z = Original(path, takes="x", gives=["y", "z"]).run(X)
    np.testing.assert_allclose(y, np.maximum(X @ WEIGHTS["w"], 0), rtol=1e-6)
    np.testing.assert_array_equal(z, y)


def test_an_unneeded_input_that_is_no_array_of_numbers_is_refused(tmp_path: Path) -> None:
    model = parsed(PLAIN, WEIGHTS)
    model.graph.input.append(helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]))
    with pytest.raises(CannotImport, match=r"the input label is tensor\(string\), expected numbers"):
        Original(saved(model, tmp_path / "g.onnx"), takes="x", gives=["y"])


# Draws

DRAWN = """
g (float[n, 4] x) => (float[n, 2] z) {
    mean, raw = Split <axis = 1> (x)
    logvar = Clip(raw, low, high)
    inside = Constant <value = float {0.5}> ()
    h = Mul(logvar, half)
    sigma = Exp(h)
    noise = RandomNormalLike(mean)
    spread = Mul(sigma, noise)
    z = Add(mean, spread)
}"""
BOUNDS = {"low": np.array(-30, np.float32), "high": np.array(20, np.float32), "half": np.array(0.5, np.float32)}


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("", ""),
        ("(logvar, half)", "(half, logvar)"),
        ("(logvar, half)", "(inside, logvar)"),
        ("(sigma, noise)", "(noise, sigma)"),
        ("(mean, spread)", "(spread, mean)"),
        ("z = Add(mean, spread)", "same = Cast <to = 1> (spread) z = Add(mean, same)"),
        ("noise = RandomNormalLike(mean)", "drawn = RandomNormalLike <seed = 1.0> (mean) noise = Identity(drawn)"),
        ("noise = RandomNormalLike(mean)", "noise = RandomNormal <shape = [5, 2]> ()"),
    ],
)
def test_a_draw_is_found_however_its_operands_stand(line: str, instead: str) -> None:
    model = parsed(DRAWN.replace(line, instead), BOUNDS)
    draw = draws.found(model, "z", path=PATH)
    assert draw is not None
    assert (draw.z, draw.mean, draw.logvar) == ("z", "mean", "logvar")
    exposed = draws.exposed(model, draw, path=PATH)
    x = 3 * normal((5, 4))
    draws.require(exposed, draw, takes="x", x=x, path=PATH)
    mean, logvar = run(cut(exposed, ["mean", "logvar"], path=PATH), x=x)
    np.testing.assert_array_equal(mean, x[:, :2])
    np.testing.assert_array_equal(logvar, x[:, 2:])


def test_a_draw_is_found_behind_thousands_of_nodes_that_hand_on() -> None:
    names = [f"same{index}" for index in range(3000)]
    chain = "".join(f"{to} = Identity({of}) " for of, to in zip(["drawn", *names], [*names, "noise"], strict=True))
    instead = f"drawn = RandomNormalLike(mean) {chain}"
    draw = draws.found(parsed(DRAWN.replace("noise = RandomNormalLike(mean)", instead), BOUNDS), "z", path=PATH)
    assert draw is not None
    assert draw.mean == "mean"


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("(logvar, half)", "(logvar, high)"),
        ("Exp(h)", "Softplus(h)"),
        ("Add(mean", "Sub(mean"),
        ("Mul(sigma", "Div(sigma"),
        ("RandomNormalLike(mean)", "RandomUniformLike(mean)"),
        ("RandomNormalLike(mean)", "RandomNormalLike <scale = 2.0> (mean)"),
        ("RandomNormalLike(mean)", "RandomNormalLike <mean = 1.0> (mean)"),
        ("RandomNormalLike(mean)", "Identity(mean)"),
    ],
)
def test_what_only_looks_like_a_draw_is_not_found(line: str, instead: str) -> None:
    assert draws.found(parsed(DRAWN.replace(line, instead), BOUNDS), "z", path=PATH) is None


def test_a_draw_is_not_sought_in_what_is_not_valid_onnx() -> None:
    model = parsed(DRAWN, BOUNDS)
    model.graph.node[-1].input.pop()
    with pytest.raises(CannotImport, match=r"^g.onnx: not valid ONNX \(.*Add"):
        draws.found(model, "z", path=PATH)


def test_a_draw_around_operators_that_tell_no_type_is_refused() -> None:
    model = parsed(DRAWN, BOUNDS)
    model.graph.node[0].domain = "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    draw = draws.Draw("z", "mean", "logvar", noise="noise")
    with pytest.raises(CannotImport, match=r"^g\.onnx: mean has no type that follows from the graph"):
        draws.exposed(model, draw, path=PATH)


def test_a_draw_that_does_not_give_what_it_spells_is_refused() -> None:
    rounded = "whole = Cast <to = 6> (spread) same = Cast <to = 1> (whole) z = Add(mean, same)"
    model = parsed(DRAWN.replace("z = Add(mean, spread)", rounded), BOUNDS)
    draw = draws.found(model, "z", path=PATH)
    assert draw is not None
    with pytest.raises(
        CannotImport, match=r"^g.onnx: with known noise z differs from mean \+ exp\(logvar / 2\) · noise by"
    ):
        draws.require(draws.exposed(model, draw, path=PATH), draw, takes="x", x=normal((5, 4)), path=PATH)
