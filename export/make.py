"""A source becomes a bundle: frozen, measured beside what it was, written if it is equal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import pictures, precision
from export.bundle import CannotWrite, bundle_files, manifest_of, require_name, staged, write
from export.frozen import Frozen, Graphs
from export.precision import CannotReduce
from export.runs import MAX_RUN_PIXELS
from export.verify import Candidate, Measured, measure, probe_of, require
from model.errors import BadData
from model.sources import hub
from service.bundle import BadBundle, Probe, read
from service.engine import Engine
from service.manifest import Manifest, Precision, Tolerance

TOLERANCE = Tolerance(mu=1e-4, logvar=1e-4, image=1)

# Pictures that a variant below fp32 is measured on.
_PICTURES = 128


@dataclass(frozen=True)
class Wanted:
    """What a person asks of a bundle, whatever it is made from.

    Raises:  CannotWrite if the name is none that an address can carry or the licence is empty, CannotReduce if what is
             asked of the precision does not belong together, BadData if there is nothing where pictures should be
    """

    name: str
    """Of the model, as `?model=` takes it."""
    licence: str | None = None
    """Of weights and data."""
    pictures: Path | None = None
    """Data set of pictures to measure with, in place of the source's own; without either, `calibrate` is it."""
    max_run_pixels: int = MAX_RUN_PIXELS
    """Pixels that one run may hold."""
    precision: Precision = "fp32"
    """In which the graphs compute."""
    calibrate: Path | None = None
    """Data set of pictures like those to be served, to whose training part int8 fits its ranges."""
    force: bool = False
    """Whether a variant below fp32 is written whatever it loses."""

    def __post_init__(self) -> None:
        """Refuse what could not be had in the end before anything is begun."""
        require_name(self.name)
        if self.licence is not None and not self.licence.strip():
            raise CannotWrite(
                f"--licence: got {self.licence!r}, expected the licence of weights and data, or no such option"
            )
        if (self.precision == "int8") != (self.calibrate is not None):
            got = "nothing with int8" if self.calibrate is None else f"{self.calibrate} with {self.precision}"
            raise CannotReduce(f"--calibrate: got {got}, expected pictures like those to be served, for int8 alone")
        if self.force and self.precision == "fp32":
            raise CannotReduce("--force: got it with fp32, expected it below fp32 alone, where pictures lose something")
        for option, path in (("--pictures", self.pictures), ("--calibrate", self.calibrate)):
            if path is not None and not str(path).startswith(hub.PREFIX) and not path.exists():
                raise BadData(f"{path}: got nothing there, expected a data set of pictures for {option}")


def make(frozen: Frozen, folder: Path, wanted: Wanted) -> Manifest:
    """A bundle of what was frozen, measured against its source with the engine that will serve.

    Raises:  NotEqual if the graphs differ from it by more than TOLERANCE, CannotReduce if they lose more than they may
             in fewer bits, CannotWrite if the folder exists, CannotImport or BadData if source or pictures do not fit;
             nothing is written then
    """
    image = frozen.described.image
    shared = pictures.real_of(wanted.pictures, own=frozen.pictures, image=image)
    real = shared
    if wanted.pictures is None and frozen.pictures is None:
        real = pictures.real_of(wanted.calibrate, own=None, image=image)  # to measure with; none of them is in a bundle
    exact, opset = _measured(frozen, frozen.graphs, real=real, max_run_pixels=wanted.max_run_pixels)
    require(exact, TOLERANCE)
    probe = probe_of(frozen.source, image=image, real=shared)
    if wanted.precision == "fp32":
        graphs, proof = frozen.graphs, {"tolerance": TOLERANCE, "parity": exact.parity(), "opset": opset}
    else:
        graphs, proof = _in_fewer_bits(frozen, wanted, real=real, probe=probe)
    files = bundle_files(graphs, probe=probe, others=frozen.files)
    asked = {"name": wanted.name, "licence": wanted.licence, "precision": wanted.precision}
    manifest = manifest_of(files, {**vars(frozen.described), **asked, **proof})
    with staged(folder) as place:
        write(place, files, manifest)
        try:
            Engine(read(place), device="cpu", threads=0)  # what would not be served is not written
        except BadBundle as error:  # the staged place is gone when a person reads of it
            raise BadBundle(str(error).replace(str(place), str(folder))) from error
    return manifest


def _measured(frozen: Frozen, graphs: Graphs, *, real: pictures.Real, max_run_pixels: int) -> tuple[Measured, int]:
    """How far graphs are from the source, and the highest opset of one of them."""
    described = frozen.described
    candidate = Candidate.of(
        graphs, image=described.image, latent_shape=described.latent_shape, family=described.family
    )
    measured = measure(
        frozen.source,
        candidate,
        image=described.image,
        real=real,
        scale_head=described.scale_head,
        max_run_pixels=max_run_pixels,
    )
    return measured, candidate.opset


def _in_fewer_bits(
    frozen: Frozen, wanted: Wanted, *, real: pictures.Real, probe: Probe
) -> tuple[Graphs, dict[str, Any]]:
    """The graphs below fp32, and what a manifest says of what they lose and gain."""
    assert wanted.precision != "fp32"  # noqa: S101  # the caller has asked
    image = frozen.described.image
    most = wanted.max_run_pixels
    calibration = None if wanted.calibrate is None else pictures.to_learn_from(wanted.calibrate, image)
    graphs = precision.reduce(frozen, precision=wanted.precision, calibration=calibration, max_run_pixels=most)
    measured_on = pictures.natural(real, image.default_shape, n=_PICTURES, seed=0)
    loss = precision.measure_reduced(frozen, graphs, pictures=measured_on, max_run_pixels=most)
    if not wanted.force:
        precision.require_small(loss, precision=wanted.precision)
    measured, opset = _measured(frozen, graphs, real=real, max_run_pixels=most)
    lost = {"mu_in_sigma": loss.mu_in_sigma, "logvar": loss.logvar, "psnr_db": loss.psnr_db}
    parity = measured.parity().model_copy(update=lost)
    return graphs, {
        "tolerance": precision.tolerance(frozen, graphs, loss=loss, probe=probe),
        "parity": parity,
        "opset": opset,
        "variant": precision.gained(frozen, graphs, precision=wanted.precision, max_run_pixels=most),
    }
