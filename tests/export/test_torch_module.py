import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export import make
from export.frozen import CannotImport
from export.importers import torch_module, weights
from service.bundle import read
from service.engine import Engine

# Spatial latents that no layer flattens, pictures beyond [0, 1], a layer that evaluation switches off.
CODE = """
import torch
from torch import nn


class Small(nn.Module):
    image_shape = (6, 8, 3)
    latent_shape = (2, 3, 4)

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 4, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1)

    def encode(self, x):
        mu, logvar = self.drop(self.down(x)).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z):
        return 3 * self.up(z) + 0.5


def build():
    return Small()
"""
# An autoencoder whose decoder is its encoder's transpose: one tensor under two names.
TIED = """
from torch import nn


class Tied(nn.Module):
    image_shape = (4, 4, 1)
    latent_shape = (3,)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(16, 3, bias=False)
        self.decoder = nn.Linear(16, 3, bias=False)
        self.decoder.weight = self.encoder.weight

    def encode(self, x):
        return self.encoder(x.flatten(1))

    def decode(self, z):
        return (z @ self.decoder.weight).sigmoid().reshape(-1, 1, 4, 4)
"""

Written = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Code as a module in the current directory, by its name; Python forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "own", raising=False)

    def write(code: str) -> str:
        Path("own.py").write_text(code)
        return "own"

    return write


def told(target: str, *, weights: Path | None = None) -> str:
    with pytest.raises(CannotImport) as refused:
        torch_module.load(target, weights=weights)
    return str(refused.value)


def bundle_of(target: str, folder: Path, *, weights: Path) -> Engine:
    make.make(torch_module.load(target, weights=weights), folder, make.Wanted(name="own"))
    return Engine(read(folder), device="cpu", threads=1)


def small_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "down.weight": torch.randn(4, 3, 4, 4),
        "down.bias": torch.randn(4),
        "up.weight": torch.randn(2, 3, 4, 4),
        "up.bias": torch.randn(3),
    }


def test_a_module_of_ones_own_becomes_a_bundle_that_answers_as_it_does(tmp_path: Path, written: Written) -> None:
    name, weights = written(CODE), small_weights()
    save_file(weights, tmp_path / "w.safetensors")
    engine = bundle_of(f"{name}:build", tmp_path / "bundle", weights=tmp_path / "w.safetensors")
    manifest = read(tmp_path / "bundle").manifest
    assert (manifest.family, manifest.prior, manifest.scale_head) == ("vae", "standard", "logvar")
    assert (manifest.image.shape, manifest.latent_shape) == ((6, 8, 3), (2, 3, 4))
    assert manifest.likelihood is manifest.logvar_range is None
    assert (manifest.source.kind, manifest.source.network) == ("torch", "Small")
    image = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    x = torch.from_numpy(image).permute(0, 3, 1, 2) / 255
    moments = torch.nn.functional.conv2d(x, weights["down.weight"], weights["down.bias"], stride=2, padding=1)
    mu, logvar = engine.encoder.run(image)
    np.testing.assert_allclose(mu, moments[:, :2], atol=1e-5)
    np.testing.assert_allclose(logvar, moments[:, 2:], atol=1e-5)
    x_hat = torch.nn.functional.conv_transpose2d(moments[:, :2], weights["up.weight"], weights["up.bias"], 2, 1)
    grey = 255 * (3 * x_hat + 0.5).permute(0, 2, 3, 1).numpy()
    assert grey.min() < -100 < 400 < grey.max()  # so that cutting is seen, and no wrapping round
    (decoded,) = engine.decoder.run(mu)
    assert np.abs(decoded - np.clip(grey, 0, 255)).max() <= 0.51


def test_a_module_that_gives_mu_alone_is_an_autoencoder_and_may_share_weights(tmp_path: Path, written: Written) -> None:
    name = written(TIED)
    torch.manual_seed(4)
    other = torch.nn.Linear(16, 3, bias=False)
    save_file({"encoder.weight": other.weight.detach()}, tmp_path / "w.safetensors")  # as save_model writes it
    engine = bundle_of(f"{name}:Tied", tmp_path / "bundle", weights=tmp_path / "w.safetensors")
    manifest = read(tmp_path / "bundle").manifest
    assert (manifest.family, manifest.prior, manifest.scale_head) == ("autoencoder", "none", None)
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), dtype=np.uint8)
    (mu,) = engine.encoder.run(image)
    np.testing.assert_allclose(mu, image.reshape(2, 16) / 255 @ other.weight.detach().numpy().T, atol=1e-5)
    (decoded,) = engine.decoder.run(mu)
    expected = 255 / (1 + np.exp(-mu @ other.weight.detach().numpy()))
    assert np.abs(decoded.reshape(2, 16) - expected).max() <= 0.51


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("own", "own: names no function, expected package.module:build"),
        ("own:", "names no function"),
        ("../own:build", "names no function"),
        ("no_such_module_here:build", "importing no_such_module_here raised ModuleNotFoundError: No module named"),
        ("math:build", "math has no build, expected a function that returns a torch.nn.Module"),
        ("math:pi", "math has pi, which is an object of type float, expected a function"),
        ("model:build", "model:build: model is vaeserve's own package, expected one of yours; rename your file"),
        ("service.own:build", "service.own:build: service is vaeserve's own package, expected one of yours"),
        ("export:build", "export:build: export is vaeserve's own package, expected one of yours"),
        ("builtins:dict", "dict() gives an object of type dict, expected a torch.nn.Module"),
    ],
)
def test_a_target_that_builds_no_module_is_refused(written: Written, target: str, sentence: str) -> None:
    assert sentence in told(target)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("import sys; sys.exit('bye')", "own:build: importing own raised SystemExit at {file}:2: bye"),
        ("def build(): return {}['missing']", "own:build: build() raised KeyError at {file}:2: 'missing'"),
        ("build = (", "importing own raised SyntaxError: '(' was never closed (own.py, line 2)"),
    ],
)
def test_what_ones_own_code_raises_is_told_with_its_line(
    written: Written, tmp_path: Path, line: str, sentence: str
) -> None:
    written(f"\n{line}\n")
    assert sentence.format(file=tmp_path / "own.py") in told("own:build")


@pytest.mark.parametrize(
    ("was", "becomes", "sentence"),
    [
        ("image_shape = (6, 8, 3)", "", "image_shape is None, expected (height, width, channels), 1 or 3 of these"),
        ("image_shape = (6, 8, 3)", "image_shape = (6, 8, 4)", "image_shape is (6, 8, 4), expected (height, width"),
        ("latent_shape = (2, 3, 4)", "latent_shape = 24", "latent_shape is 24, expected the shape of one z"),
        ("latent_shape = (2, 3, 4)", "latent_shape = (2, 3, 0)", "latent_shape is (2, 3, 0), expected"),
        ("def encode", "def encoder", "an object of type Small has no method encode, expected encode(x) and decode(z)"),
        ("def decode", "def decoder", "an object of type Small has no method decode, expected encode(x) and decode(z)"),
        (
            "latent_shape = (2, 3, 4)",
            "latent_shape = (24,)",
            "float32 (3, 2, 3, 4) on cpu for 3 rows, expected float32 (3, 24)",
        ),
        ("image_shape = (6, 8, 3)", "image_shape = (6, 8, 1)", "encode(x) raised RuntimeError at {file}:17: Given gr"),
        (
            "return mu, logvar",
            "return mu, logvar, x",
            "encode(x) gives an object of type tuple, expected a tuple of mu",
        ),
        ("return mu, logvar", "return mu, 0.0", "logvar of encode(x) is an object of type float, expected a tensor"),
        (
            "return mu, logvar",
            "return mu.double(), logvar",
            "mu of encode(x) is float64 (3, 2, 3, 4) on cpu for 3 rows",
        ),
        ("return mu, logvar", "return mu, logvar / 0", "logvar of encode(x) holds NaN or infinity, expected finite"),
        ("return mu, logvar", "return mu + torch.randn_like(mu), logvar", "mu of encode(x) differs for one picture"),
        (
            "return mu, logvar",
            "return mu - mu.mean(), logvar",
            "mu of encode(x) differs for one picture alone and among",
        ),
        (
            "3 * self.up(z) + 0.5",
            "self.up(z)[..., :4]",
            "decode(z) is float32 (3, 3, 6, 4) on cpu for 3 rows, exp",
        ),
        ("3 * self.up(z) + 0.5", "self.up(z).half()", "decode(z) is float16 (3, 3, 6, 8) on cpu for 3 rows"),
    ],
)
def test_a_module_that_breaks_the_protocol_is_refused(
    written: Written, tmp_path: Path, was: str, becomes: str, sentence: str
) -> None:
    assert CODE.count(was) == 1
    written(CODE.replace(was, becomes))
    message = told("own:build")
    assert message.startswith("own:build: ")
    assert sentence.format(file=tmp_path / "own.py") in message


@pytest.mark.parametrize("has_weights", [False, True])
@pytest.mark.parametrize(
    ("was", "becomes", "sentence"),
    [
        (
            "image_shape = (6, 8, 3)",
            "image_shape = property(lambda self: {}['side'])",
            "own:build: reading image_shape raised KeyError at {file}:7: 'side'",
        ),
        (
            "def encode",
            "decode = property(lambda self: {}['code'])\n\n    def encode",
            "own:build: reading decode raised KeyError at {file}:16: 'code'",
        ),
        (
            "nn.Conv2d(3, 4, 4, stride=2, padding=1)",
            "nn.LazyConv2d(4, 4, stride=2, padding=1)",
            "own:build: down.weight has no shape yet, expected build() to run what is lazy once",
        ),
        (
            "def encode",
            "def requires_grad_(self, *_):\n        raise ValueError('as it is')\n\n    def encode",
            "own:build: taking its state raised ValueError at {file}:17: as it is",
        ),
    ],
    ids=["shape", "method", "lazy", "state"],
)
def test_what_a_module_raises_before_it_is_run_is_told(
    written: Written, tmp_path: Path, was: str, becomes: str, sentence: str, has_weights: bool
) -> None:
    code = CODE.replace("def decode", "def decoded") if becomes.startswith("decode") else CODE
    assert code.count(was) == 1
    written(code.replace(was, becomes))
    save_file(small_weights(), tmp_path / "w.safetensors")
    message = told("own:build", weights=tmp_path / "w.safetensors" if has_weights else None)
    assert message == sentence.format(file=tmp_path / "own.py")


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            "def get_extra_state(self): return {'epoch': 3}",
            "{folder}/w.safetensors, _extra_state: got nothing, the module has an object of type dict",
        ),
        (
            "def load_state_dict(self, *_): raise ValueError('not so')",
            "own:build: taking its state raised ValueError at {folder}/own.py:16: not so",
        ),
        (
            "def state_dict(self, **_): raise ValueError('not so')",
            "own:build: taking its state raised ValueError at {folder}/own.py:16: not so",
        ),
    ],
    ids=["extra", "load", "state"],
)
def test_a_module_that_takes_no_state_is_refused_with_weights(
    written: Written, tmp_path: Path, method: str, sentence: str
) -> None:
    written(CODE.replace("def encode", f"{method}\n\n    def encode"))
    save_file(small_weights(), tmp_path / "w.safetensors")
    message = told("own:build", weights=tmp_path / "w.safetensors")
    assert message == sentence.format(folder=tmp_path)


@pytest.mark.parametrize(("method", "argument"), [("encode(x)", "self.down(x)"), ("decode(z)", "self.up(z)")])
def test_what_a_method_raises_at_many_rows_alone_is_told_with_its_line(
    written: Written, tmp_path: Path, method: str, argument: str
) -> None:
    layer, rows = argument[:-1].split("(")
    code = CODE.replace(argument, f"{layer}(few({rows}))") + "\n\ndef few(rows):\n"
    written(f"{code}    assert torch.compiler.is_exporting() or len(rows) < 64, 'too many'\n    return rows\n")
    frozen = torch_module.load("own:build", weights=None)
    with pytest.raises(CannotImport) as refused:
        make.make(frozen, tmp_path / "bundle", make.Wanted(name="own"))
    place = f"{tmp_path / 'own.py'}:{len(code.splitlines()) + 1}"
    assert str(refused.value) == f"own:build: {method} raised AssertionError at {place}: too many"


def test_what_a_method_raises_at_the_rows_of_the_export_is_told(written: Written, tmp_path: Path) -> None:
    written(CODE.replace("return mu, logvar", "return {1: mu, 3: mu}[len(mu)], logvar"))
    message = told("own:build")
    assert message == f"own:build: exporting it raised KeyError at {tmp_path / 'own.py'}:18: 2"


def test_a_decoder_that_gives_nan_for_latents_of_the_prior_is_refused(written: Written, tmp_path: Path) -> None:
    """Of latents of pictures it gives numbers; rounded to bytes, NaN is black on both sides, and equal."""
    code = CODE.replace("return mu, logvar", "return mu.exp(), logvar")
    name = written(code.replace("3 * self.up(z) + 0.5", "self.up(z.sqrt()).sigmoid()"))
    frozen = torch_module.load(f"{name}:build", weights=None)
    with pytest.raises(CannotImport, match="image: the source gives NaN or infinity, expected numbers"):
        make.make(frozen, tmp_path / "bundle", make.Wanted(name="own"))


def test_what_torch_cannot_export_is_refused(written: Written) -> None:
    unknown = "torch.linalg.lstsq(*2 * [self.down.weight])[0].mean() + self.up(z)"
    written(CODE.replace("3 * self.up(z) + 0.5", unknown))
    assert told("own:build").startswith("decoder: torch.export refuses it (")


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"encoder.weight": torch.zeros(3, 15)}, ", decoder.weight: got float (3, 15), the module has float (3, 16)"),
        ({"other.weight": torch.zeros(3, 16)}, ", decoder.weight: got nothing, the module has float (3, 16)"),
        (
            {"encoder.weight": torch.zeros(3, 16), "other.weight": torch.zeros(2)},
            ", other.weight: got float (2,), the module has nothing",
        ),
        ({"encoder.weight": torch.full((3, 16), torch.inf)}, ", encoder.weight: holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_those_of_the_module_are_refused(
    written: Written, tmp_path: Path, weights: dict[str, torch.Tensor], sentence: str
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    message = told(f"{written(TIED)}:Tied", weights=tmp_path / "w.safetensors")
    assert message.startswith(f"{tmp_path / 'w.safetensors'}{sentence}")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floats_are_refused_where_the_module_has_floats(
    written: Written, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({"encoder.weight": torch.ones(3, 16, dtype=dtype)}, tmp_path / "w.safetensors")
    message = told(f"{written(TIED)}:Tied", weights=tmp_path / "w.safetensors")
    expected = f"decoder.weight: got {str(dtype).removeprefix('torch.')} (3, 16), the module has float (3, 16)"
    assert message == f"{tmp_path / 'w.safetensors'}, {expected}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.arange(4.0) / 8
    save_file({"weight": weight.to(dtype)}, tmp_path / "w.safetensors")
    read_weight = weights.read(tmp_path / "w.safetensors")["weight"]
    assert read_weight.dtype == torch.float32
    assert torch.equal(read_weight, weight)


def test_a_number_that_is_counted_keeps_its_type(tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm1d(2)
    state = norm.state_dict()
    assert weights.matched(state, norm, path=tmp_path) == state
    with pytest.raises(CannotImport, match=r"num_batches_tracked: got float \(\), the module has int64 \(\)"):
        weights.matched(state | {"num_batches_tracked": torch.tensor(1.0)}, norm, path=tmp_path)


def test_numbers_that_torch_cannot_convert_are_refused(tmp_path: Path) -> None:
    codes = torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"weight": codes}, tmp_path / "w.safetensors")
    with pytest.raises(CannotImport, match=r"w\.safetensors: not readable as safetensors \(.*Float4"):
        weights.read(tmp_path / "w.safetensors")


def test_a_folder_in_the_place_of_weights_is_told(written: Written, tmp_path: Path) -> None:
    message = told(f"{written(TIED)}:Tied", weights=tmp_path)
    assert message == f"{tmp_path}: got a folder there, expected a file of safetensors"


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(written: Written, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    message = told(f"{written(TIED)}:Tied", weights=tmp_path / "w.safetensors")
    assert message.startswith(f"{tmp_path / 'w.safetensors'}: not readable as safetensors")
