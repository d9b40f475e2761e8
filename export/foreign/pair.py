"""An encoder and a decoder in two files that others wrote, run as they came on the pictures that bundles take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from export.foreign import files
from export.foreign.original import Original
from export.foreign.pixels import Pixels
from export.foreign.scales import Scale
from export.frozen import CannotImport, Uint8


@dataclass(frozen=True, eq=False)
class Part:
    """One file of a pair: the part of its graph that is kept, and that part's outputs as the file itself gives them."""

    path: Path
    model: ModelProto
    run: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]]

    @classmethod
    def of(cls, path: Path, model: ModelProto, outputs: Sequence[str]) -> "Part":
        """What gives these outputs of a file.

        Raises:  CannotImport if they cannot be cut out, or onnxruntime refuses the file
        """
        part = files.cut(model, outputs, path=path)
        return cls(path, part, Original(path, takes=part.graph.input[0].name, gives=outputs).run)

    @property
    def takes(self) -> ValueInfoProto:
        """The one input."""
        value: ValueInfoProto = self.model.graph.input[0]
        return value

    @property
    def gives(self) -> list[ValueInfoProto]:
        """The outputs that are kept."""
        return list(self.model.graph.output)

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The input's axes, None where free."""
        return files.axes(self.takes, path=self.path)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two files and how they speak. Without a scale, the encoder's one output is the code of an autoencoder."""

    encoder: Part
    decoder: Part
    pixels_in: Pixels
    pixels_out: Pixels
    scale: Scale | None

    def __post_init__(self) -> None:
        """Refuse latents that are no floats."""
        files.require_floats(self.decoder.takes, path=self.decoder.path)
        for value in self.encoder.gives:
            files.require_floats(value, path=self.encoder.path)

    def encode(self, image: Uint8) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Mu, and what the encoder emits for the scale, as the file gives them.

        Raises:  CannotImport if mu and scale are not of one shape, or the scale cannot be what it is said to be
        """
        mu, *others = self.encoder.run(self.pixels_in.of(image))
        if self.scale is None:
            return mu, None
        (emitted,) = others
        path, (mean, scale) = self.encoder.path, (value.name for value in self.encoder.gives)
        if emitted.shape != mu.shape:
            raise CannotImport(f"{path}: {mean} is {mu.shape} and {scale} {emitted.shape}, expected one shape for both")
        if self.scale.is_positive and (emitted < 0).any():
            found = f"{scale} is said to be a {self.scale.head} and reaches {emitted.min():.3g}"
            raise CannotImport(f"{path}: {found}, expected nothing below 0: is --scale-head right?")
        return mu, emitted

    def decode(self, z: NDArray[Any]) -> Uint8:
        """Pictures of latents as the files have them.

        Raises:  CannotImport if what the decoder gives is no pictures
        """
        (given,) = self.decoder.run(z)
        if given.ndim != 4:
            name = self.decoder.gives[0].name
            raise CannotImport(f"{self.decoder.path}: {name} is {given.shape}, expected pictures, four axes")
        return self.pixels_out.image(given)
