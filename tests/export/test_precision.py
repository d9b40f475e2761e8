import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export import float16, precision
from export.bundle import bundle_files
from export.frozen import Described, Float32, Frozen, Uint8
from export.graphs import freeze, source
from export.importers import checkpoint
from export.precision import CannotReduce, Loss, gained, measure_reduced, reduce, require_small, tolerance, variant
from export.verify import probe_of
from model import data
from service import differences
from service.bundle import BadBundle
from service.engine import signatures
from service.errors import OutOfMemory
from service.graph import Graph
from service.machine import BadEngine
from service.manifest import Difference, ImageSpec, Source

DIGITS = data.read(None)
OPEN = ImageSpec(height=None, width=None, channels=3, stride=2, default_side=8, max_side=64)


@pytest.fixture(scope="module")
def frozen(trained: Path) -> Frozen:
    return checkpoint.load(trained)


class OpenEncoder(nn.Module):
    def __init__(self, *, has_posterior: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.heads = nn.Conv2d(8, 4, 1)
        self.has_posterior = has_posterior

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        features = torch.relu(self.convolution(image.permute(0, 3, 1, 2) / 255))
        mu, logvar = self.heads(features).chunk(2, dim=1)
        return (mu, logvar) if self.has_posterior else mu


class OpenDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Conv2d(2, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x_hat = torch.sigmoid(self.up(torch.relu(self.bottom(z))))
        return torch.round(x_hat * 255).to(torch.uint8).permute(0, 2, 3, 1)


@pytest.fixture(scope="module", params=[True, False], ids=["vae", "autoencoder"])
def of_open_sizes(request: pytest.FixtureRequest) -> Frozen:
    """A model of pictures of any size."""
    torch.manual_seed(0)
    modules = OpenEncoder(has_posterior=request.param).eval(), OpenDecoder().eval(), None
    latent_shape = (2, None, None)
    return Frozen(
        graphs=freeze(*modules, image=OPEN, latent_shape=latent_shape),
        source=source(*modules),
        described=Described(
            family="vae" if request.param else "autoencoder",
            image=OPEN,
            latent_shape=latent_shape,
            prior="standard" if request.param else "none",
            source=Source(kind="torch", version="0", network="open"),
            scale_head="logvar" if request.param else None,
        ),
    )


def waves(n: int, height: int, width: int) -> Uint8:
    """Pictures with edges and even areas."""
    y, x = np.mgrid[:height, :width]
    phases = np.random.default_rng(0).uniform(0, 7, (n, 1, 1, 3))
    grey = 127.5 + 127.5 * np.sin(x[..., None] / 3 + y[..., None] / 5 + phases)
    return grey.round().astype(np.uint8)


def stored(graph: bytes) -> set[int]:
    """The types of a graph's weights, those of its shapes and scales left out."""
    return {t.data_type for t in onnx.load_from_string(graph).graph.initializer if math.prod(t.dims) > 16}


def test_int8_loses_little_on_other_pictures_than_it_was_made_for(frozen: Frozen) -> None:
    reduced = reduce(frozen, precision="int8", calibration=DIGITS.train)
    assert TensorProto.INT8 in stored(reduced.encoder) & stored(reduced.decoder)
    assert reduced.scorer == frozen.graphs.scorer
    loss = measure_reduced(frozen, reduced, pictures=DIGITS.test)
    require_small(loss, precision="int8")
    assert loss.psnr_db < 60
    assert 0 < loss.mu_in_sigma.mean < loss.mu_in_sigma.max


def test_float16_loses_less_than_int8(frozen: Frozen) -> None:
    reduced = reduce(frozen, precision="fp16", calibration=None)
    assert stored(reduced.encoder) == stored(reduced.decoder) == {TensorProto.FLOAT16}
    assert reduced.scorer == frozen.graphs.scorer
    loss = measure_reduced(frozen, reduced, pictures=DIGITS.test)
    assert loss.psnr_db > 60
    assert loss.mu_in_sigma.max < 0.05


def test_the_same_model_and_pictures_give_the_same_bytes(frozen: Frozen) -> None:
    for name in ("fp16", "int8"):
        once, again = (reduce(frozen, precision=name, calibration=DIGITS.train[:20]) for _ in range(2))
        assert once == again


@pytest.mark.parametrize("calibration", [None, DIGITS.train[:0]], ids=["nothing", "none"])
def test_int8_without_pictures_is_refused(frozen: Frozen, calibration: Uint8 | None) -> None:
    with pytest.raises(CannotReduce, match="int8: got no pictures, expected some like those to be served"):
        reduce(frozen, precision="int8", calibration=calibration)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_open_sizes_and_autoencoders_are_reduced_too(of_open_sizes: Frozen, name: str) -> None:
    reduced = reduce(of_open_sizes, precision=name, calibration=waves(8, 8, 8))
    assert stored(reduced.decoder) == {TensorProto.FLOAT16 if name == "fp16" else TensorProto.INT8}
    require_small(measure_reduced(of_open_sizes, reduced, pictures=waves(4, 8, 8)), precision=name)
    require_small(measure_reduced(of_open_sizes, reduced, pictures=waves(4, 12, 6)), precision=name)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_a_graph_inside_a_node_is_refused(frozen: Frozen, name: str) -> None:
    model = onnx.load_from_string(frozen.graphs.decoder)
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["z"], ["unread"], then_branch=inner, else_branch=inner))
    graphs = dataclasses.replace(frozen.graphs, decoder=model.SerializeToString())
    with pytest.raises(CannotReduce, match=r"decoder\.onnx: has a graph inside its If, expected none in fewer bits"):
        reduce(dataclasses.replace(frozen, graphs=graphs), precision=name, calibration=DIGITS.train)


def test_losses_are_those_of_mu_in_sigma_and_of_pictures_of_posterior_and_prior(frozen: Frozen) -> None:
    pictures = DIGITS.test[:5]
    mu, logvar = frozen.source.encode(pictures)
    assert logvar is not None
    expected = signatures((8, 8, 1), (5,), family="vae")
    reduced = reduce(frozen, precision="int8", calibration=DIGITS.train)
    graphs = {
        name: Graph(content, expected[name], path=Path(name), device="cpu", threads=1)
        for name, content in (("encoder.onnx", reduced.encoder), ("decoder.onnx", reduced.decoder))
    }
    apart = np.abs(graphs["encoder.onnx"].run(pictures)[0] - mu) / np.exp(logvar / 2)
    z = np.concatenate((mu, np.random.default_rng(0).standard_normal(mu.shape, dtype=np.float32)))
    off = graphs["decoder.onnx"].run(z)[0].astype(float) - frozen.source.decode(z)
    loss = measure_reduced(frozen, reduced, pictures=pictures)
    assert loss.mu_in_sigma.max == pytest.approx(apart.max(), rel=1e-5)
    assert loss.mu_in_sigma.mean == pytest.approx(apart.mean(), rel=1e-5)
    assert loss.psnr_db == pytest.approx(20 * np.log10(255 / np.sqrt((off**2).mean())))


def test_equal_graphs_lose_nothing_that_can_be_said(frozen: Frozen) -> None:
    loss = measure_reduced(frozen, frozen.graphs, pictures=DIGITS.test[:5])
    assert loss.psnr_db == 99
    assert loss.mu_in_sigma.max < 1e-4


@pytest.mark.parametrize("times", [1e5, 1e8], ids=["activations", "weights"])
def test_numbers_beyond_float16_are_refused(frozen: Frozen, times: float) -> None:
    model = onnx.load_from_string(frozen.graphs.encoder)
    (layer, *_) = [node for node in model.graph.node if node.op_type == "Conv"]
    (kernel,) = [tensor for tensor in model.graph.initializer if tensor.name == layer.input[1]]
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(times), kernel.name))
    graphs = dataclasses.replace(frozen.graphs, encoder=model.SerializeToString())
    large = reduce(dataclasses.replace(frozen, graphs=graphs), precision="fp16", calibration=None)
    with pytest.raises(CannotReduce, match="mu: got NaN or infinity in fewer bits, expected numbers; float16 ends at"):
        measure_reduced(frozen, large, pictures=DIGITS.test)


@pytest.mark.parametrize(
    ("psnr_db", "mean", "told"),
    [
        (34.94, 0.01, r"int8: pictures are 34\.9 dB from the source's, expected 35 dB or more; nothing was written"),
        (50, 0.11, r"int8: mu is 0\.11 sigma from the source's on average, expected 0\.1 sigma or less; nothing was"),
    ],
)
def test_a_variant_that_loses_too_much_is_refused(psnr_db: float, mean: float, told: str) -> None:
    with pytest.raises(CannotReduce, match=told):
        require_small(Loss(Difference(max=1, mean=mean), psnr_db), precision="int8")
    require_small(Loss(Difference(max=1, mean=0.1), 35), precision="int8")


def test_a_logvar_that_is_a_tenth_of_sigma_off_is_refused() -> None:
    small = Loss(Difference(max=1, mean=0.01), 50, logvar=Difference(max=3, mean=0.2))
    require_small(small, precision="int8")
    told = r"int8: logvar is 0\.21 from the source's on average, expected 0\.2 or less; nothing was written"
    with pytest.raises(CannotReduce, match=told):
        require_small(dataclasses.replace(small, logvar=Difference(max=3, mean=0.21)), precision="int8")


def test_a_variants_logvar_is_measured_against_the_sources(frozen: Frozen) -> None:
    def off(image: Uint8) -> tuple[Float32, Float32 | None]:
        mu, logvar = frozen.source.encode(image)
        assert logvar is not None
        return mu, logvar + np.float32(2)

    reduced = reduce(frozen, precision="fp16", calibration=None)
    exact = measure_reduced(frozen, reduced, pictures=DIGITS.test)
    assert exact.logvar is not None
    assert 0 < exact.logvar.mean < exact.logvar.max < 0.05
    far = dataclasses.replace(frozen, source=dataclasses.replace(frozen.source, encode=off))
    loss = measure_reduced(far, reduced, pictures=DIGITS.test)
    assert loss.logvar is not None
    assert loss.logvar.mean == pytest.approx(2, abs=0.05)
    with pytest.raises(CannotReduce, match="logvar is 2"):
        require_small(loss, precision="fp16")


def test_the_tolerance_of_logvar_is_what_may_be_lost_or_twice_what_is(frozen: Frozen) -> None:
    image = ImageSpec(height=8, width=8, channels=1)
    probe = probe_of(frozen.source, image=image, real=lambda *_: DIGITS.test)
    nothing, much = Difference(max=0, mean=0), Difference(max=0.7, mean=0.1)
    assert tolerance(frozen, frozen.graphs, loss=Loss(nothing, 60, logvar=nothing), probe=probe).logvar == 0.2
    assert tolerance(frozen, frozen.graphs, loss=Loss(nothing, 60, logvar=much), probe=probe).logvar == 1.4
    assert probe.logvar is not None
    off = dataclasses.replace(probe, logvar=probe.logvar + np.float32(0.5))
    assert tolerance(frozen, frozen.graphs, loss=Loss(nothing, 60, logvar=nothing), probe=off).logvar == 1


def test_layers_stay_in_float_until_logvar_is_near_too(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    def layers_in_float() -> int:
        graph = onnx.load_from_string(reduce(frozen, precision="int8", calibration=DIGITS.train).encoder).graph
        kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        return sum(kinds.get(node.input[1]) == TensorProto.FLOAT for node in layers)

    monkeypatch.setattr(precision, "_WANTED_MU_IN_SIGMA", 100)
    monkeypatch.setattr(precision, "_WANTED_LOGVAR", 100)
    assert layers_in_float() == 0
    monkeypatch.setattr(precision, "_WANTED_LOGVAR", 1e-9)
    assert layers_in_float() > 0


def test_last_layers_stay_in_float_until_the_pictures_are_good(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_weights() -> int:
        graph = onnx.load_from_string(reduce(frozen, precision="int8", calibration=DIGITS.train).decoder).graph
        layer = [node for node in graph.node if node.op_type == "Conv"][-1]
        return {t.name: t.data_type for t in graph.initializer}.get(layer.input[1], TensorProto.INT8)

    monkeypatch.setattr(precision, "_WANTED_PSNR_DB", 20)
    assert last_weights() == TensorProto.INT8
    monkeypatch.setattr(precision, "_WANTED_PSNR_DB", 70)  # out of reach: what comes nearest is taken
    assert last_weights() == TensorProto.FLOAT


def test_the_tolerance_is_what_may_be_lost_or_wider_where_more_is_lost(frozen: Frozen) -> None:
    image = ImageSpec(height=8, width=8, channels=1)
    probe = probe_of(frozen.source, image=image, real=lambda *_: DIGITS.test)
    exact = tolerance(frozen, frozen.graphs, loss=Loss(Difference(max=0.01, mean=0.01), 60), probe=probe)
    assert (exact.mu_in_sigma, exact.psnr_db) == (0.1, 35)
    lossy = tolerance(frozen, frozen.graphs, loss=Loss(Difference(max=0.4, mean=0.05), 30), probe=probe)
    assert (lossy.mu_in_sigma, lossy.psnr_db) == (0.8, 27)


def test_the_tolerance_bounds_the_mean_too_which_the_largest_says_little_of(frozen: Frozen) -> None:
    image = ImageSpec(height=8, width=8, channels=1)
    probe = probe_of(frozen.source, image=image, real=lambda *_: DIGITS.test)
    outliers = Loss(Difference(max=2, mean=0.04), 40, logvar=Difference(max=3, mean=0.15))
    stated = tolerance(frozen, frozen.graphs, loss=outliers, probe=probe)
    assert (stated.mu_in_sigma, stated.mu_in_sigma_mean) == (4, 0.1)
    assert (stated.logvar, stated.logvar_mean) == (6, 0.3)


def test_the_tolerance_holds_on_the_probe_though_the_loss_elsewhere_is_less(frozen: Frozen) -> None:
    image = ImageSpec(height=8, width=8, channels=1)
    probe = probe_of(frozen.source, image=image, real=lambda *_: DIGITS.test)
    assert probe.logvar is not None
    far = dataclasses.replace(probe, mu=probe.mu + np.exp(probe.logvar / 2), decoded=255 - probe.decoded)
    stated = tolerance(frozen, frozen.graphs, loss=Loss(Difference(max=0, mean=0), 60), probe=far)
    assert stated.mu_in_sigma == pytest.approx(2, abs=0.01)
    assert stated.mu_in_sigma_mean == pytest.approx(2, abs=0.01)
    assert stated.psnr_db < differences.psnr_db(probe.decoded, far.decoded)


def test_the_size_of_a_variant_is_that_of_all_its_graphs_in_a_bundle(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scorer in fp32 lends its weights from the decoder, which has others in fewer bits."""
    monkeypatch.setattr(precision, "_SECONDS", 0)
    probe = probe_of(frozen.source, image=ImageSpec(height=8, width=8, channels=1), real=lambda *_: DIGITS.test)
    reduced = reduce(frozen, precision="fp16", calibration=None)
    sizes = [
        sum(len(content) for name, content in bundle_files(graphs, probe=probe, others={}).items() if "onnx" in name)
        for graphs in (reduced, frozen.graphs)
    ]
    assert variant(frozen, reduced).size_ratio == pytest.approx(sizes[0] / sizes[1])
    alone = dataclasses.replace(frozen, graphs=dataclasses.replace(frozen.graphs, scorer=None))
    assert 0.4 < variant(alone, dataclasses.replace(reduced, scorer=None)).size_ratio < 0.6


def in_float64(content: bytes) -> bytes:
    """A graph with one of its weights in float64, as one has that nothing rewrote."""
    model = onnx.load_model_from_string(content)
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float64), weights.name))
    return bytes(model.SerializeToString())


def test_what_rewrites_nothing_or_fails_is_refused(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "halved", lambda content: content)
    with pytest.raises(CannotReduce, match="fp16: got graphs without layers in float32, expected some to rewrite"):
        reduce(frozen, precision="fp16", calibration=None)

    frozen_pair = dataclasses.replace(frozen, graphs=dataclasses.replace(frozen.graphs, scorer=None))
    made = iter((float16.halved(frozen.graphs.encoder), in_float64(frozen.graphs.decoder)))
    monkeypatch.setattr(precision, "halved", lambda _content: next(made))
    with pytest.raises(CannotReduce, match=r"fp16: decoder\.onnx: got weights in float64, expected float32 to rewrite"):
        reduce(frozen_pair, precision="fp16", calibration=None)

    def failing(_content: bytes) -> bytes:
        raise RuntimeError("no kernel\nfor Range")

    monkeypatch.setattr(precision, "halved", failing)
    with pytest.raises(CannotReduce, match=r"fp16: cannot rewrite the graphs \(no kernel for Range\)"):
        reduce(frozen, precision="fp16", calibration=None)


def test_a_variant_states_its_gain_its_size_and_the_machine(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SECONDS", 0)
    found = variant(frozen, reduce(frozen, precision="fp16", calibration=None))
    assert found.encoder_speedup > 0
    assert found.decoder_speedup > 0
    assert found.batch_rows == 16
    assert "cores, cpu, onnxruntime" in found.machine


@pytest.fixture
def _with_a_gpu_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes CUDA, as where a GPU build is installed, and the graphs do not start on it."""
    monkeypatch.setattr(precision, "_SECONDS", 0)
    monkeypatch.setattr(precision, "resolve_device", lambda device: "cuda" if device == "auto" else device)


@pytest.mark.usefixtures("_with_a_gpu_that_does_not_start")
def test_where_a_device_fails_the_gain_is_that_on_the_cpu(frozen: Frozen) -> None:
    reduced = reduce(frozen, precision="fp16", calibration=None)
    with pytest.raises((BadEngine, BadBundle), match="CUDAExecutionProvider"):
        variant(frozen, reduced)
    found = gained(frozen, reduced, precision="fp16")
    assert found is not None
    assert "cores, cpu, onnxruntime" in found.machine


@pytest.mark.usefixtures("_with_a_gpu_that_does_not_start")
def test_int8_is_measured_on_the_cpu_that_it_is_for(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced = reduce(frozen, precision="int8", calibration=DIGITS.train[:20])
    devices: list[object] = []
    measured = precision.variant

    def noted(*graphs: object, **others: object) -> object:
        devices.append(others["device"])
        return measured(*graphs, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(precision, "variant", noted)
    assert gained(frozen, reduced, precision="int8") is not None
    assert devices == ["cpu"]


@pytest.mark.parametrize("error", [OutOfMemory("no memory for 16 rows now"), RuntimeError("CUDA failure 700")])
def test_without_a_device_that_runs_it_a_variant_has_no_figure(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(precision, "speedup", failing)
    assert gained(frozen, frozen.graphs, precision="fp16") is None


def test_a_run_that_fails_is_refused_with_a_sentence(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Graph, *_: object) -> None:
        raise OutOfMemory(f"{self.path}: the device has no memory for these rows now")

    probe = probe_of(frozen.source, image=ImageSpec(height=8, width=8, channels=1), real=lambda *_: DIGITS.test)
    nothing = Loss(Difference(max=0, mean=0), 60)
    monkeypatch.setattr(precision.Graph, "run", failing)
    with pytest.raises(
        CannotReduce, match=r"^encoder\.onnx: fails on 5 rows in fewer bits \(encoder\.onnx: the device has"
    ):
        measure_reduced(frozen, frozen.graphs, pictures=DIGITS.test[:5])
    with pytest.raises(BadBundle, match=r"^encoder\.onnx: fails on 4 rows \(encoder\.onnx: the device has no memory"):
        tolerance(frozen, frozen.graphs, loss=nothing, probe=probe)
    with pytest.raises(BadBundle, match=r"^encoder\.onnx: fails on 16 rows \(encoder\.onnx: the device has no memory"):
        variant(frozen, frozen.graphs)
    assert gained(frozen, frozen.graphs, precision="fp16") is None


def test_a_decoder_that_fails_in_fewer_bits_is_refused_with_a_sentence(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Graph.run

    def failing(self: Graph, *inputs: np.ndarray) -> object:
        if self.path.name == "decoder.onnx":
            raise RuntimeError("no kernel\nfor Range")
        return run(self, *inputs)

    probe = probe_of(frozen.source, image=ImageSpec(height=8, width=8, channels=1), real=lambda *_: DIGITS.test)
    nothing = Loss(Difference(max=0, mean=0), 60)
    monkeypatch.setattr(precision.Graph, "run", failing)
    with pytest.raises(CannotReduce, match=r"^decoder\.onnx: fails on 10 rows in fewer bits \(no kernel for Range\)$"):
        measure_reduced(frozen, frozen.graphs, pictures=DIGITS.test[:5])
    with pytest.raises(BadBundle, match=r"^decoder\.onnx: fails on 4 rows \(no kernel"):
        tolerance(frozen, frozen.graphs, loss=nothing, probe=probe)


def test_where_there_is_no_memory_for_a_figure_there_is_none(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(precision, "variant", failing)
    assert gained(frozen, frozen.graphs, precision="fp16") is None


def test_a_speedup_is_the_median_of_ratios_of_calls_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_SECONDS", 0)
    calls: list[str] = []
    now = [0.0]
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])

    def takes(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds * (1000 if len(calls) in (3, 4) else 1)  # one round of a busy machine

    assert precision.speedup(lambda: takes("slow", 3), lambda: takes("fast", 2)) == pytest.approx(1.5)
    assert calls == ["slow", "fast"] * 8
