"""vae-export: trained models to bundles, and what can be said of a bundle."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service.machine import BadEngine, require_one_distribution

try:
    require_one_distribution()
except BadEngine as error:  # said before anything is imported that needs it
    print(f"vae-export: {error}", file=sys.stderr)
    raise SystemExit(2) from None
if find_spec("torch") is None:  # the command comes with every extra, torch with one
    print("vae-export: got no package `torch`, expected it: install vaeserve[train]", file=sys.stderr)
    raise SystemExit(2)

from export import proof, sources
from export.bundle import CannotWrite, require_name, require_new
from export.frozen import CannotImport, Frozen
from export.importers import onnx_pair, torch_module
from export.make import Wanted, make
from export.pack import pack
from export.precision import CannotReduce
from export.runs import LARGEST_RUN_PIXELS, MAX_RUN_PIXELS
from export.summary import in_words, runs_in_words, summary
from export.verify import NotEqual
from model.errors import BadCheckpoint, BadData
from model.gaussian import SCALE_HEADS
from service.bundle import BadBundle, read
from service.manifest import Precision, Variant

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

# What torch says of memory on a CPU; numpy and Python raise MemoryError.
_IS_OF_MEMORY = re.compile(r"(?i)not enough memory|allocate memory|bad_alloc")

NewBundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder to write; it must not exist.")]
AnyBundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, or its zip.")]
Name = Annotated[str | None, typer.Option(help="Name of the model.", show_default="the bundle folder's")]
Licence = Annotated[str | None, typer.Option(help="Licence of weights and data; `pack` asks for one.")]
Pictures = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Pictures to measure with: a folder or zip, IDX, npz, parquet or hf:owner/name.",
        show_default="those of the source, or of --calibrate, or generated ones",
    ),
]
RunPixels = Annotated[
    int, typer.Option(metavar="N", min=1, max=LARGEST_RUN_PIXELS, help="Pixels that one run may hold.")
]
InPrecision = Annotated[Precision, typer.Option(help="In which the graphs compute: fp16 for GPUs, int8 for CPUs.")]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Pictures like those to be served, for int8; in any form of --pictures.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write it below fp32 whatever it loses.")]


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"vae-export {metadata.version('vaeserve')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Freeze a trained model into a bundle that is proven equal to it."""


@app.command("make")
def make_bundles(
    places: Annotated[list[Path], typer.Argument(metavar="SOURCE BUNDLE", help="What to read, and the new folder.")],
    into: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Take every place for a source; each bundle goes in here by its name."),
    ] = None,
    name: Name = None,
    licence: Licence = None,
    pictures: Pictures = None,
    max_run_pixels: RunPixels = MAX_RUN_PIXELS,
    precision: InPrecision = "fp32",
    calibrate: Calibrate = None,
    force: Force = False,
) -> None:
    """A folder that vae-train, diffusers, pythae or optimum wrote becomes a bundle."""
    with _sentences():
        pairs = _pairs(places, into=into, name=name)
    for source, bundle in pairs:
        with _sentences(about=source if into else None):
            require_new(bundle)
            wanted = Wanted(
                name=_name(name, bundle),
                licence=licence,
                pictures=pictures,
                max_run_pixels=max_run_pixels,
                precision=precision,
                calibrate=calibrate,
                force=force,
            )
            _make(sources.load(source), bundle, wanted)


@app.command("onnx")
def make_from_onnx(
    bundle: NewBundle,
    encoder: Annotated[Path, typer.Option(metavar="FILE", help="ONNX: pictures to mu and a scale, or to mu alone.")],
    decoder: Annotated[Path, typer.Option(metavar="FILE", help="ONNX: z to pictures.")],
    outputs: Annotated[
        str | None,
        typer.Option(metavar="MU,SCALE", help="The encoder's outputs.", show_default="mu,logvar, or its first two"),
    ] = None,
    scale_head: Annotated[
        str | None,
        typer.Option(help=f"What the second output is: {', '.join(SCALE_HEADS)}.", show_default="what its name says"),
    ] = None,
    pixel_range: Annotated[
        str | None,
        typer.Option(metavar="BLACK,WHITE", help="What the files take for black and white.", show_default="bytes"),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="Order of a picture's axes: nhwc or nchw.", show_default="nhwc, for bytes")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Of open sizes: pixels to one place of a latent.")
    ] = None,
    max_side: Annotated[int | None, typer.Option(metavar="PIXELS", help="Of open sizes: the largest.")] = None,
    name: Name = None,
    licence: Licence = None,
    pictures: Pictures = None,
    max_run_pixels: RunPixels = MAX_RUN_PIXELS,
    precision: InPrecision = "fp32",
    calibrate: Calibrate = None,
    force: Force = False,
) -> None:
    """Two ONNX files, whatever wrote them, become a bundle."""
    with _sentences():
        require_new(bundle)
        wanted = Wanted(
            name=_name(name, bundle),
            licence=licence,
            pictures=pictures,
            max_run_pixels=max_run_pixels,
            precision=precision,
            calibrate=calibrate,
            force=force,
        )
        frozen = onnx_pair.load(
            encoder,
            decoder,
            outputs=None if outputs is None else _parse_names(outputs),
            scale_head=scale_head,
            pixel_range=None if pixel_range is None else _parse_range(pixel_range),
            layout=layout,
            stride=stride,
            max_side=max_side,
        )
        _make(frozen, bundle, wanted)


@app.command("torch")
def make_from_torch(
    target: Annotated[str, typer.Argument(metavar="PACKAGE.MODULE:BUILD", help="Function that returns the module.")],
    bundle: NewBundle,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its state, as safetensors.", show_default="as it is built")
    ] = None,
    name: Name = None,
    licence: Licence = None,
    pictures: Pictures = None,
    max_run_pixels: RunPixels = MAX_RUN_PIXELS,
    precision: InPrecision = "fp32",
    calibrate: Calibrate = None,
    force: Force = False,
) -> None:
    """A torch module of your own becomes a bundle. Runs your code: nothing else here runs any."""
    with _sentences():
        require_new(bundle)
        wanted = Wanted(
            name=_name(name, bundle),
            licence=licence,
            pictures=pictures,
            max_run_pixels=max_run_pixels,
            precision=precision,
            calibrate=calibrate,
            force=force,
        )
        typer.echo(f"vae-export: running {target}, which is your own code", err=True)
        _make(torch_module.load(target, weights=weights), bundle, wanted)


@app.command("verify")
def verify_bundle(bundle: AnyBundle) -> None:
    """Prove again all that needs no source: bytes, digest, graphs, probe, and every shape that was proven."""
    with _sentences():
        for sentence in proof.prove(bundle):
            print(f"{bundle}: {sentence}")


@app.command("inspect")
def inspect_bundle(bundle: AnyBundle) -> None:
    """Print what a bundle is."""
    with _sentences():
        print(summary(read(bundle).manifest))


@app.command("pack")
def pack_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle that states a licence.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.zip", help="File to write.", show_default="BUNDLE.zip")
    ] = None,
) -> None:
    """Put a bundle into one file, the same to the byte wherever it is done."""
    with _sentences():
        target = file or Path(f"{bundle.resolve()}.zip")
        print(f"{target}: {in_words(pack(bundle, target))}")


def _pairs(places: list[Path], *, into: Path | None, name: str | None) -> list[tuple[Path, Path]]:
    """Each source with the bundle that it becomes."""
    if into is None:
        if len(places) != 2:
            raise CannotWrite(f"got {len(places)} paths, expected SOURCE and BUNDLE, or sources and --into FOLDER")
        return [(places[0], places[1])]
    if name is not None:
        raise CannotWrite(f"--name: got {name!r} with --into, expected none: each bundle has the name of its source")
    pairs = [(source, into / source.resolve().name) for source in places]
    for source, bundle in pairs:
        require_new(bundle)
        require_name(bundle.name)
        if sum(other == bundle for _, other in pairs) > 1:
            raise CannotWrite(f"{source}: got its name twice, expected sources of different names with --into")
    return pairs


def _name(asked: str | None, bundle: Path) -> str:
    return bundle.resolve().name if asked is None else asked


def _parse_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise CannotImport(f"--outputs: got {text!r}, expected names of outputs between commas, as mu,logvar")
    return names


def _parse_range(text: str) -> tuple[float, float]:
    try:
        black, white = map(float, text.split(","))
    except ValueError as error:
        raise CannotImport(f"--pixel-range: got {text!r}, expected two numbers, as 0,1 or -1,1") from error
    return black, white


def _make(frozen: Frozen, bundle: Path, wanted: Wanted) -> None:
    """A bundle, and what was measured on the way."""
    manifest = make(frozen, bundle, wanted)
    parity = manifest.parity
    print(f"{bundle}: {manifest.label}")
    size = in_words(sum(entry.size_bytes for entry in manifest.files.values()))
    print(f"{size} in {len(manifest.files)} files")
    logvar = f"logvar {parity.logvar.max:.2g}, " if parity.logvar else ""
    score = f", log-likelihood {parity.log_likelihood.max:.2g} of itself" if parity.log_likelihood else ""
    print(f"largest difference to the source over {parity.pictures} pictures, {runs_in_words(parity.shapes)}:")
    print(f"  mu {parity.mu.max:.2g}, {logvar}pictures {parity.image.max:g} grey levels{score}")
    if parity.mu_in_sigma:
        print(f"pictures {parity.psnr_db:.1f} dB from the source's, mu {parity.mu_in_sigma.mean:.2g} sigma on average;")
        print(f"  {_gain(manifest.variant)}")


def _gain(variant: Variant | None) -> str:
    if variant is None:
        return "how fast that is could not be measured here"
    speed = f"encoder {variant.encoder_speedup:.2f}, decoder {variant.decoder_speedup:.2f} times as fast"
    return f"{speed}, {variant.size_ratio:.0%} of the size in fp32, at {variant.batch_rows} rows here"


@contextmanager
def _sentences(about: Path | None = None) -> Iterator[None]:
    """What a person can put right is said in one line, with exit code 2; of one of several sources, with its path."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        _stop(f"{'.'.join(map(str, first['loc']))}: got {first['input']!r:.200}, {first['msg']}", about=about)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), about=about)
    except (
        BadBundle,
        BadCheckpoint,
        BadData,
        BadEngine,
        CannotImport,
        CannotReduce,
        CannotWrite,
        NotEqual,
    ) as error:
        _stop(str(error), about=about)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _IS_OF_MEMORY.search(str(error)):
            raise
        said = " ".join(str(error).split())[:200] or "out of memory"
        _stop(f"{said}; fewer pixels in a run (--max-run-pixels) take less as a bundle is made", about=about)


def _stop(sentence: str, *, about: Path | None) -> None:
    named = "" if about is None or sentence.startswith(str(about)) else f"{about}: "
    typer.echo(f"vae-export: {named}{sentence}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
