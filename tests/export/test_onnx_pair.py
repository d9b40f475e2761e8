import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.frozen import CannotImport, Frozen
from export.importers.onnx_pair import load
from export.make import Wanted, make
from service.bundle import read
from service.engine import Engine
from service.manifest import Manifest
from tests.export import onnx_files
from tests.export.onnx_files import LATENT_DIM, SHAPE, normal, parsed, saved
from tests.service.linear import linear

FLAGS = {"scale_head": "logvar", "pixel_range": (0.0, 1.0), "layout": "nchw"}


def loaded(folder: Path, encoder: ModelProto, decoder: ModelProto, **flags: object) -> Frozen:
    """Two graphs through two files."""
    paths = saved(encoder, folder / "encoder.onnx"), saved(decoder, folder / "decoder.onnx")
    return load(*paths, **FLAGS | flags)


def made(folder: Path, frozen: Frozen) -> Manifest:
    """A bundle in `folder`, which has passed its proof and is loaded as the service does."""
    make(frozen, folder, Wanted(name="pair"))
    bundle = read(folder)
    Engine(bundle, device="cpu", threads=1)
    return bundle.manifest


def run(graph: bytes, **inputs: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("head", ["logvar", "log_sigma", "variance", "sigma"])
@pytest.mark.parametrize(
    ("layout", "op", "pixel_range"), [("nchw", "Tanh", (-1.0, 1.0)), ("nhwc", "Sigmoid", (0.0, 1.0))]
)
def test_floats_in_a_range_and_any_scale_become_bytes_and_logvar(
    tmp_path: Path, head: str, layout: str, op: str, pixel_range: tuple[float, float]
) -> None:
    files = onnx_files.encoder(head=head, layout=layout), onnx_files.decoder(op=op, layout=layout)
    frozen = loaded(tmp_path, *files, scale_head=head, pixel_range=pixel_range, layout=layout)
    manifest = made(tmp_path / "bundle", frozen)
    assert manifest.parity.mu.max <= 1e-4
    assert manifest.parity.logvar is not None
    assert manifest.parity.logvar.max <= 1e-4
    assert manifest.parity.image.max <= 1
    assert manifest.image.shape == SHAPE
    assert manifest.latent_shape == (LATENT_DIM,)
    assert manifest.scale_head == head
    assert manifest.logvar_range == ((-30, 20) if head in ("variance", "sigma") else None)
    assert (manifest.family, manifest.prior, manifest.likelihood) == ("vae", "standard", None)
    assert manifest.source.kind == "onnx"
    assert manifest.source.network.endswith(f": mu from z_mean, {head} from z_scale")


def test_graphs_that_speak_bytes_and_logvar_need_no_flags(tmp_path: Path) -> None:
    model = linear()
    (tmp_path / "encoder.onnx").write_bytes(model.encoder())
    (tmp_path / "decoder.onnx").write_bytes(model.decoder())
    paths = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    frozen = load(*paths, scale_head=None, pixel_range=None, layout=None)
    manifest = made(tmp_path / "bundle", frozen)
    assert (manifest.scale_head, manifest.logvar_range) == ("logvar", None)
    image = np.random.default_rng(0).integers(0, 256, (5, *model.shape), dtype=np.uint8)
    mu, logvar = model.encode(image)
    np.testing.assert_allclose(run(frozen.graphs.encoder, image=image), [mu, logvar], atol=1e-5)
    (decoded,) = run(frozen.graphs.decoder, z=mu)
    assert np.abs(decoded.astype(int) - model.decode(mu)).max() <= 1


def test_a_pixel_range_for_bytes_is_refused(tmp_path: Path) -> None:
    model = linear()
    (tmp_path / "encoder.onnx").write_bytes(model.encoder())
    (tmp_path / "decoder.onnx").write_bytes(model.decoder())
    paths = tmp_path / "encoder.onnx", tmp_path / "decoder.onnx"
    told = "--pixel-range: got -1,1 for files that take and give bytes, expected it for floats alone"
    with pytest.raises(CannotImport, match=told):
        load(*paths, scale_head=None, pixel_range=(-1.0, 1.0), layout=None)


class _Encoder(nn.Module):
    """What a person may have trained: a convolution, a mean, and a sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
        self.mean, self.scale = nn.Linear(64, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.mean(features), nn.functional.softplus(self.scale(features))


def test_a_pair_that_torch_exported_answers_as_the_modules_do(tmp_path: Path) -> None:
    encoder = _Encoder().eval()
    decoder = nn.Sequential(nn.Linear(3, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))).eval()
    for name, module, example in (
        ("encoder", encoder, torch.zeros(2, 1, 8, 8)),
        ("decoder", decoder, torch.zeros(2, 3)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, inside torch's own code
            torch.onnx.export(
                module, (example,), tmp_path / f"{name}.onnx", input_names=["x"], dynamic_axes={"x": [0]}, dynamo=False
            )
    frozen = load(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", **FLAGS | {"scale_head": "sigma"})
    made(tmp_path / "bundle", frozen)
    image = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    with torch.inference_mode():
        posterior = torch.distributions.Normal(*encoder(torch.from_numpy(image).permute(0, 3, 1, 2) / 255))
        expected = decoder(posterior.mean).permute(0, 2, 3, 1).numpy() * 255
    mu, logvar = run(frozen.graphs.encoder, image=image)
    np.testing.assert_allclose(mu, posterior.mean, atol=1e-4)
    np.testing.assert_allclose(logvar, posterior.variance.log(), atol=1e-4)
    (decoded,) = run(frozen.graphs.decoder, z=mu)
    assert np.abs(decoded - expected).max() <= 0.51


def test_a_sigma_too_small_for_its_logarithm_is_floored_and_still_proven(tmp_path: Path) -> None:
    encoder = onnx_files.encoder(head="sigma")
    (b,) = (tensor for tensor in encoder.graph.initializer if tensor.name == "b")
    b.CopyFrom(numpy_helper.from_array(100 * numpy_helper.to_array(b), "b"))
    frozen = loaded(tmp_path, encoder, onnx_files.decoder(), scale_head="sigma")
    made(tmp_path / "bundle", frozen)
    image = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8)
    logvar = run(frozen.graphs.encoder, image=image)[1]
    assert logvar.min() == -30
    assert np.isfinite(logvar).all()


def test_of_three_outputs_the_drawn_one_is_cut_away_with_its_noise(tmp_path: Path) -> None:
    drawing = onnx_files.encoder(layout="nhwc")
    drawing.graph.node.extend(
        [
            helper.make_node("Exp", ["z_scale"], ["variance"]),
            helper.make_node("Sqrt", ["variance"], ["sigma"]),
            helper.make_node("RandomNormalLike", ["z_mean"], ["noise"]),
            helper.make_node("Mul", ["sigma", "noise"], ["spread"]),
            helper.make_node("Add", ["z_mean", "spread"], ["z"]),
        ]
    )
    drawing.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", LATENT_DIM]))
    frozen = loaded(tmp_path, drawing, onnx_files.decoder(layout="nhwc"), layout="nhwc")
    made(tmp_path / "bundle", frozen)
    graph = onnx.load_from_string(frozen.graphs.encoder).graph
    assert [value.name for value in graph.output] == ["mu", "logvar"]
    assert not {"RandomNormalLike", "Exp", "Sqrt"} & {node.op_type for node in graph.node}


def test_an_input_that_only_a_left_out_output_needs_is_left_out(tmp_path: Path) -> None:
    drawing = onnx_files.encoder()
    drawing.graph.node.append(helper.make_node("Mul", ["z_scale", "eps"], ["z"]))
    drawing.graph.input.append(helper.make_tensor_value_info("eps", TensorProto.FLOAT, ["n", LATENT_DIM]))
    drawing.graph.output.insert(0, helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", LATENT_DIM]))
    frozen = loaded(tmp_path, drawing, onnx_files.decoder(), outputs=("z_mean", "z_scale"))
    made(tmp_path / "bundle", frozen)
    assert [value.name for value in onnx.load_from_string(frozen.graphs.encoder).graph.input] == ["image"]


@pytest.mark.parametrize("rows", ["n", "eps_rows", None], ids=str)
def test_an_input_that_is_left_out_has_as_many_rows_in_the_proof_as_the_pictures(
    tmp_path: Path, rows: str | None
) -> None:
    """Of a graph with which onnxruntime runs what nobody asked for too."""
    drawing = onnx_files.encoder()
    drawing.graph.node.append(helper.make_node("Concat", ["z_mean", "eps"], ["z"], axis=1))
    drawing.graph.input.append(helper.make_tensor_value_info("eps", TensorProto.FLOAT, [rows, LATENT_DIM]))
    drawing.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2 * LATENT_DIM]))
    manifest = made(tmp_path / "bundle", loaded(tmp_path, drawing, onnx_files.decoder()))
    assert {runs for runs, *_ in manifest.parity.shapes} == {1, 2, 7, 64}


def test_an_input_that_is_left_out_has_the_pictures_height_and_width_where_it_names_them(tmp_path: Path) -> None:
    drawing = onnx_files.open_encoder()
    drawing.graph.node.append(helper.make_node("Concat", ["picture", "eps"], ["z"], axis=1))
    drawing.graph.input.append(helper.make_tensor_value_info("eps", TensorProto.FLOAT, ["n", 1, "h", "w"]))
    drawing.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4, "h", "w"]))
    flags = {"pixel_range": (-1.0, 1.0), "max_side": 32}
    assert made(tmp_path / "bundle", loaded(tmp_path, drawing, onnx_files.open_decoder(), **flags)).image.is_open


def test_outputs_are_taken_by_the_names_mu_and_logvar_before_their_order(tmp_path: Path) -> None:
    encoder = onnx_files.open_encoder()
    encoder.graph.output.reverse()
    files = encoder, onnx_files.open_decoder()
    frozen = loaded(tmp_path, *files, pixel_range=(-1.0, 1.0), max_side=64, scale_head=None)
    assert frozen.described.source.network.endswith(": mu from mu, logvar from logvar")
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = frozen.source.encode(image)
    np.testing.assert_allclose(run(frozen.graphs.encoder, image=image), expected, atol=1e-5)
    original = ort.InferenceSession(tmp_path / "encoder.onnx").run(["mu"], {"picture": picture_of(image)})[0]
    np.testing.assert_allclose(expected[0], original, atol=1e-5)


def picture_of(image: np.ndarray) -> np.ndarray:
    return (image.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)


def test_an_encoder_of_one_output_is_an_autoencoders(tmp_path: Path) -> None:
    encoder = onnx_files.encoder()
    del encoder.graph.output[1]
    frozen = loaded(tmp_path, encoder, onnx_files.decoder(), scale_head=None)
    manifest = made(tmp_path / "bundle", frozen)
    assert (manifest.family, manifest.prior) == ("autoencoder", "none")
    assert (manifest.scale_head, manifest.logvar_range, manifest.parity.logvar) == (None, None, None)
    assert [value.name for value in onnx.load_from_string(frozen.graphs.encoder).graph.output] == ["mu"]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_axis_is_made_free(tmp_path: Path, batch: int) -> None:
    files = onnx_files.encoder(batch=batch), onnx_files.decoder(batch=batch)
    frozen = loaded(tmp_path, *files)
    manifest = made(tmp_path / "bundle", frozen)
    assert {rows for rows, *_ in manifest.parity.shapes} == {1, 2, 7, 64}
    z = np.random.default_rng(0).standard_normal((2, LATENT_DIM), dtype=np.float32)
    session = ort.InferenceSession(tmp_path / "decoder.onnx")
    original = np.concatenate([session.run(None, {"z": rows})[0] for rows in np.split(z, 2 // batch)])
    (decoded,) = run(frozen.graphs.decoder, z=z)
    assert np.abs(decoded - 255 * original.transpose(0, 2, 3, 1)).max() <= 0.51


IN_FEWER_BITS = "h = Cast <to = {code}> (x) f = Cast <to = 1> (h) g = Flatten(f) mu = MatMul(g, a) logvar = Neg(mu)"
IN_A_BRANCH = """
    t = Constant <value = bool {1}> ()
    f = If (t) <
        then_branch = inner () => (float[n, q] b) { h = Cast <to = 10> (x) w = Cast <to = 1> (h) b = Flatten(w) },
        else_branch = other () => (float[n, q] c) { c = Flatten(x) }
    >
    mu = MatMul(f, a)
    logvar = Neg(mu)"""
ROUNDED = """
    s = Constant <value = float {0.01}> ()
    o = Constant <value = uint8 {0}> ()
    q = QuantizeLinear(x, s, o)
    f = DequantizeLinear(q, s, o)
    g = Flatten(f)
    mu = MatMul(g, a)
    logvar = Neg(mu)"""
HELD = "i = Flatten(x) w = CastLike(i, half) f = CastLike(w, x) mu = MatMul(f, a) logvar = Neg(mu)"
CONSTANT = "h = Constant <value = float16 {1}> () w = Cast <to = 1> (h) f = Flatten(x) g = Mul(f, w) mu = MatMul(g, a)"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (IN_FEWER_BITS.format(code=10), r"Cast \(h\) is of type FLOAT16, expected FLOAT or DOUBLE"),
        (IN_FEWER_BITS.format(code=16), r"Cast \(h\) is of type BFLOAT16, expected FLOAT or DOUBLE"),
        (IN_FEWER_BITS.format(code=17), r"Cast \(h\) is of type FLOAT8E4M3FN, expected FLOAT or DOUBLE"),
        (IN_A_BRANCH, r"Cast \(h\) is of type FLOAT16, expected FLOAT or DOUBLE"),
        (HELD, "half is of type FLOAT16, expected FLOAT or DOUBLE"),
        (f"{CONSTANT} logvar = Neg(mu)", r"Constant \(h\) is of type FLOAT16, expected FLOAT or DOUBLE"),
        (ROUNDED, r"QuantizeLinear \(q\) is of a quantised graph, expected the graph that it was made of"),
    ],
    ids=["float16", "bfloat16", "float8", "branch", "weight", "constant", "quantised"],
)
def test_a_graph_in_fewer_bits_inside_is_refused_whatever_it_takes_and_gives(
    tmp_path: Path, body: str, told: str
) -> None:
    encoder = encoder_of(body, a=A, **({"half": np.ones(1, np.float16)} if body == HELD else {}))
    encoder.opset_import[0].version = 19
    with pytest.raises(CannotImport, match=rf"encoder.onnx: {told}$"):
        loaded(tmp_path, encoder, onnx_files.decoder(), scale_head=None)


@pytest.mark.parametrize("kind", ["float", "double"])
def test_a_decoder_that_gives_nan_for_latents_of_the_prior_is_refused(tmp_path: Path, kind: str) -> None:
    """Rounded to bytes, NaN is black on both sides, and equal."""
    encoder = f"""encoder ({kind}[n, 2, 2, 1] x) => ({kind}[n, 4] mu, {kind}[n, 4] logvar) {{
        mu = Flatten(x)
        logvar = Neg(mu)
    }}"""
    decoder = f"""decoder ({kind}[n, 4] z) => ({kind}[n, 2, 2, 1] y) {{
        r = Sqrt(z)
        m = MatMul(r, d)
        g = Sigmoid(m)
        s = Constant <value = int64[4] {{-1, 2, 2, 1}}> ()
        y = Reshape(g, s)
    }}"""
    weights = {"d": np.eye(4, dtype=kind if kind == "double" else np.float32)}
    flags = {"scale_head": None, "layout": "nhwc"}
    frozen = loaded(tmp_path, parsed(encoder, {}), parsed(decoder, weights), **flags)
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        make(frozen, tmp_path / "bundle", Wanted(name="pair"))
    assert not (tmp_path / "bundle").exists()


def test_graphs_of_doubles_are_wired_to_float32(tmp_path: Path) -> None:
    encoder = """encoder (double[n, 2, 2, 1] x) => (double[n, 4] mu, double[n, 4] sigma) {
        mu = Flatten(x)
        sigma = Sigmoid(mu)
    }"""
    decoder = """decoder (double[n, 4] z) => (double[n, 2, 2, 1] y) {
        s = Constant <value = int64[4] {-1, 2, 2, 1}> ()
        y = Reshape(z, s)
    }"""
    flags = {"scale_head": None, "layout": "nhwc", "pixel_range": (-1.0, 1.0)}
    frozen = loaded(tmp_path, parsed(encoder, {}), parsed(decoder, {}), **flags)
    made(tmp_path / "bundle", frozen)
    mu, logvar = run(frozen.graphs.encoder, image=np.array([0, 51, 204, 255], np.uint8).reshape(1, 2, 2, 1))
    np.testing.assert_allclose(mu, [[-1, -0.6, 0.6, 1]], atol=1e-6)
    np.testing.assert_allclose(logvar, -2 * np.log1p(np.exp(-mu)), atol=1e-5)
    (image,) = run(frozen.graphs.decoder, z=np.array([[-2, -1, 0, 0.6]], np.float32))
    np.testing.assert_array_equal(image.ravel(), [0, 0, 128, 204])  # 127.5 rounds to even


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("stride", [None, 4])
def test_free_height_and_width_stay_open(tmp_path: Path, layout: str, stride: int | None) -> None:
    files = onnx_files.open_encoder(layout=layout), onnx_files.open_decoder(layout=layout)
    flags = {"layout": layout, "pixel_range": (-1.0, 1.0), "max_side": 30, "stride": stride}
    frozen = loaded(tmp_path, *files, **flags)
    manifest = made(tmp_path / "bundle", frozen)
    assert manifest.image.is_open
    assert (manifest.image.stride, manifest.image.default_side, manifest.image.max_side) == (4, 28, 28)
    assert manifest.latent_shape == (2, None, None)
    image = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3), dtype=np.uint8)
    mu, _ = run(frozen.graphs.encoder, image=image)
    assert mu.shape == (3, 2, 3, 5)
    (decoded,) = run(frozen.graphs.decoder, z=mu)
    assert decoded.shape == image.shape


def test_a_stride_that_is_no_power_of_two_is_proven_when_stated(tmp_path: Path) -> None:
    files = onnx_files.open_encoder(stride=5), onnx_files.open_decoder(stride=5)
    flags = {"pixel_range": (-1.0, 1.0), "max_side": 60}
    with pytest.raises(CannotImport, match=r"64×128 pixels have latents of 12×25 places, expected one to .*--stride"):
        loaded(tmp_path, *files, **flags)
    assert loaded(tmp_path, *files, **flags, stride=5).described.image.stride == 5
    with pytest.raises(CannotImport, match=r"expected one to 10 pixels \(--stride\)"):
        loaded(tmp_path, *files, **flags, stride=10)


def test_pictures_have_the_size_of_what_the_decoder_gives_where_the_encoder_takes_any(tmp_path: Path) -> None:
    encoder = onnx_files.encoder()
    for axis, name in ((2, "h"), (3, "w")):
        encoder.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    assert loaded(tmp_path, encoder, onnx_files.decoder()).described.image.shape == SHAPE


def test_two_loads_give_the_same_bytes_and_a_changed_weight_others(tmp_path: Path) -> None:
    first, second = (
        loaded(tmp_path / name, onnx_files.encoder(), onnx_files.decoder()).graphs for name in ("here", "elsewhere")
    )
    assert first == second
    encoder = onnx_files.encoder()
    (a,) = (tensor for tensor in encoder.graph.initializer if tensor.name == "a")
    a.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a) + np.float32(1e-3), "a"))
    assert loaded(tmp_path / "changed", encoder, onnx_files.decoder()).graphs.encoder != first.encoder


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"pixel_range": None}, r"encoder\.onnx: picture is of floats, expected --pixel-range \(black and white"),
        ({"layout": None}, r"encoder\.onnx: picture is of floats, expected --layout \(nchw or nhwc\)"),
        ({"layout": "hwc"}, "--layout: got hwc, expected nchw or nhwc"),
        ({"layout": "nhwc"}, "picture has 6 channels, expected 1 or 3 where the layout nhwc has them"),
        ({"pixel_range": (1.0, 1.0)}, "--pixel-range: got 1,1, expected two different numbers"),
        ({"pixel_range": (0.0, np.inf)}, "--pixel-range: got 0,inf, expected two different numbers"),
        (
            {"scale_head": None},
            "nothing says what z_scale is, expected --scale-head logvar, log_sigma, variance or sigma",
        ),
        ({"scale_head": "std"}, "--scale-head is std, expected --scale-head logvar"),
        (
            {"scale_head": "sigma"},
            r"z_scale is said to be a sigma and reaches -\d.*, expected nothing below 0: is --scale-head right\?",
        ),
        ({"outputs": ("z_mean",)}, "gives z_mean alone, expected a second output, as --scale-head says"),
        ({"outputs": ("z_mean", "z")}, "gives no z, its outputs are z_mean, z_scale"),
        ({"outputs": ("z_mean", "z_mean"), "scale_head": "logvar"}, "--outputs names z_mean twice, expected mu and"),
        ({"outputs": ("a", "b", "c")}, "--outputs names a, b, c, expected mu and a scale, or mu alone"),
        ({"max_side": 0}, "--max-side: got 0, expected 1 or more"),
        ({"stride": -8}, "--stride: got -8, expected 1 or more"),
        (
            {"max_side": 64},
            "--max-side: got 64 for pictures of 8×6 pixels, expected it where height and width are free",
        ),
        (
            {"stride": 8},
            "--stride: got 8 for pictures of 8×6 pixels, expected it where height and width are free alone",
        ),
    ],
)
def test_a_flag_that_is_missing_or_wrong_is_told(tmp_path: Path, flags: dict[str, object], told: str) -> None:
    with pytest.raises(CannotImport, match=told):
        loaded(tmp_path, onnx_files.encoder(), onnx_files.decoder(), **flags)


Z_TO_WIDE = "decoder (float[n, 4] z) => (float[n, 3, 8, 7] y) { h = MatMul(z, d) y = Reshape(h, s) }"
WIDE = {"d": normal((4, 168)), "s": np.array([-1, 3, 8, 7])}


@pytest.mark.parametrize(
    ("encoder", "decoder", "told"),
    [
        (
            onnx_files.encoder(),
            onnx_files.open_decoder(),
            r"encoder.onnx and .*decoder.onnx: the encoder gives latents \(4\), the decoder takes \(2, any, any\)",
        ),
        (
            onnx_files.open_encoder(),
            onnx_files.decoder(),
            r"the encoder gives latents \(2, 2, 1\), the decoder takes \(4\)",
        ),
        (
            onnx_files.encoder(),
            parsed(Z_TO_WIDE, WIDE),
            r"the decoder gives pictures \(8, 7, 3\), the encoder takes \(8, 6, 3\)",
        ),
        (onnx_files.decoder(), onnx_files.encoder(), r"encoder.onnx: z has 2 axes, expected four, as of nchw"),
        (onnx_files.encoder(), onnx_files.encoder(), r"decoder.onnx: z_mean is \(1, 4\), expected pictures, four axes"),
    ],
    ids=["latents", "axes", "pictures", "swapped", "twice"],
)
def test_files_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, encoder: ModelProto, decoder: ModelProto, told: str
) -> None:
    with pytest.raises(CannotImport, match=told):
        loaded(tmp_path, encoder, decoder, **({"scale_head": None} if len(encoder.graph.output) == 1 else {}))


HALF, TRUE = np.array(0.5, np.float32), np.array(True)
THREE_ROWS = "float[3, 3, 8, 6]"


def encoder_of(body: str, *, kind: str = "float[n, 3, 8, 6]", **weights: np.ndarray) -> ModelProto:
    return parsed(f"encoder ({kind} x) => (float[n, p] mu, float[n, p] logvar) {{ {body} }}", weights)


A = normal((144, 4))


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        (
            encoder_of(
                "f = Flatten(x) m = ReduceMean <axes = [0]> (f) c = Sub(f, m) mu = MatMul(c, a) logvar = Neg(mu)", a=A
            ),
            r"encoder.onnx: mu of a row changes by \d.* from run to run or with the rows beside it, expected one",
        ),
        (
            encoder_of(
                "f = Flatten(x) d, m = Dropout(f, r, t) mu = MatMul(d, a) logvar = Neg(mu)", a=A, r=HALF, t=TRUE
            ),
            r"encoder.onnx: draws random numbers \(Dropout\)",
        ),
        (
            encoder_of("f = Flatten(x) mu = MatMul(f, a) logvar = Add(mu, o)", a=A, o=np.zeros((1, 1, 4), np.float32)),
            r"encoder.onnx: mu is \(1, 4\) and logvar \(1, 1, 4\), expected one shape for both",
        ),
        (
            encoder_of(
                "f = Flatten(x) g = Add(f, o) mu = MatMul(g, a) logvar = Neg(mu)",
                kind=THREE_ROWS,
                a=A,
                o=normal((3, 144)),
            ),
            r"encoder.onnx: mu is tensor\(float\) \[3, 4\].*; its batch axis is fixed at 3, expected a free one",
        ),
        (
            encoder_of("f = Flatten(x) m = MatMul(f, a) mu = Transpose(m) logvar = Neg(mu)", a=A),
            r"encoder.onnx: mu is \(4, 1\) for 1 rows, expected as many rows",
        ),
        (
            encoder_of(
                "i = Flatten(x) f = Cast <to = 1> (i) mu = MatMul(f, a) logvar = Neg(mu)", kind="int32[n, 3, 8, 6]", a=A
            ),
            r"encoder.onnx: x is of type INT32, expected FLOAT or DOUBLE",
        ),
        (
            encoder_of("f = Cast <to = 1> (x) mu = MatMul(f, a) logvar = Neg(mu)", kind="float16[n, 144]", a=A),
            r"encoder.onnx: x is of type FLOAT16, expected FLOAT or DOUBLE",
        ),
        (
            encoder_of("mu = MatMul(x, a) logvar = Neg(mu)", kind="float[n, 144]", a=A),
            r"encoder.onnx: x has 2 axes, expected four, as of nchw",
        ),
        (
            encoder_of("f = Flatten(x) mu = MatMul(f, a) logvar = Neg(mu)", kind="float[n, 3, 8, w]", a=A),
            r"encoder.onnx: one of height and width is free, expected both or neither",
        ),
        (
            encoder_of("f = Flatten(x) mu = MatMul(f, a) logvar = Neg(mu)", kind="float[n, c, 8, 6]", a=A),
            r"encoder.onnx: x has free channels, expected 1 or 3 where the layout nchw has them",
        ),
        (
            encoder_of("f = Flatten(x) mu = MatMul(f, b) logvar = Neg(mu)", b=normal((143, 4))),
            r"encoder.onnx: onnxruntime refuses it \(",
        ),
        (
            encoder_of("f = Reshape(x, s) mu = MatMul(f, a) logvar = Neg(mu)", a=A, s=np.array([7, -1])),
            r"encoder.onnx: onnxruntime fails on \(1, 3, 8, 6\) \(",
        ),
    ],
    ids=[
        "neighbours",
        "dropout",
        "shapes",
        "rows",
        "turned",
        "int32",
        "float16",
        "flat",
        "half open",
        "channels",
        "broken",
        "failing",
    ],
)
def test_an_encoder_that_no_bundle_can_hold_is_refused(tmp_path: Path, encoder: ModelProto, told: str) -> None:
    decoder = onnx_files.decoder()
    decoder.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "d"
    with pytest.raises(CannotImport, match=told):
        loaded(tmp_path, encoder, decoder, scale_head=None)


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (onnx_files.open_decoder(), r"height and width are free, expected --max-side to bound them"),
        (
            onnx_files.open_decoder(stride=2),
            r"the decoder gives pictures \(32, 64, 3\), the encoder takes \(64, 128, 3\)",
        ),
    ],
    ids=["max_side", "stride"],
)
def test_open_sizes_are_refused_without_a_bound_or_a_way_back(tmp_path: Path, decoder: ModelProto, told: str) -> None:
    with pytest.raises(CannotImport, match=told):
        loaded(tmp_path, onnx_files.open_encoder(), decoder, max_side=64 if "pictures" in told else None)


def test_a_bound_below_the_stride_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="--max-side is 3, expected 4, the stride, or more"):
        loaded(tmp_path, onnx_files.open_encoder(), onnx_files.open_decoder(), max_side=3)


def test_a_stated_stride_above_the_bound_is_refused_before_pictures_of_it_are_made(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="--max-side is 64, expected 1000000, the stride, or more"):
        loaded(tmp_path, onnx_files.open_encoder(), onnx_files.open_decoder(), max_side=64, stride=10**6)


def test_open_sizes_need_latents_with_places(tmp_path: Path) -> None:
    encoder = encoder_of("p = GlobalAveragePool(x) mu = Flatten(p) logvar = Neg(mu)", kind="float[n, 3, h, w]")
    with pytest.raises(CannotImport, match=r"pictures of any size have latents \(3\), expected three axes"):
        loaded(tmp_path, encoder, onnx_files.open_decoder(), max_side=64)


def test_a_free_axis_may_be_stated_as_below_1(tmp_path: Path) -> None:
    files = onnx_files.open_encoder(), onnx_files.open_decoder()
    for model in files:
        for value in (*model.graph.input, *model.graph.output):
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_value = -1
    frozen = loaded(tmp_path, *files, pixel_range=(-1.0, 1.0), max_side=32)
    assert made(tmp_path / "bundle", frozen).image.is_open


def test_nodes_that_are_out_of_order_are_refused(tmp_path: Path) -> None:
    encoder = onnx_files.encoder()
    encoder.graph.node.append(encoder.graph.node[2])
    del encoder.graph.node[2]
    told = r"encoder\.onnx: Flatten \(f\) stands before what gives r, expected nodes in the order in which they compute"
    with pytest.raises(CannotImport, match=told):
        loaded(tmp_path, encoder, onnx_files.decoder())


def test_an_input_without_a_shape_is_refused(tmp_path: Path) -> None:
    encoder = onnx_files.encoder()
    encoder.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(CannotImport, match="picture has no shape, expected one, with a name for each free axis"):
        loaded(tmp_path, encoder, onnx_files.decoder())


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    encoder = saved(onnx_files.encoder(), tmp_path / "encoder.onnx")
    with pytest.raises(CannotImport, match=r"nothing.onnx: No such file or directory, expected an ONNX file"):
        load(encoder, tmp_path / "nothing.onnx", **FLAGS)
