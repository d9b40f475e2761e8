"""How a stranger's graph takes and gives pictures: as numbers in a range or bytes, channels first or last."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto

from export.foreign.files import axes, require_floats
from export.foreign.surgery import Step, cast
from export.frozen import CannotImport, Uint8
from export.verify import require_numbers

Layout = Literal["nchw", "nhwc"]
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")

TO_CHANNELS_FIRST, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class Pixels:
    """Black and white as a graph's numbers, in its type of numbers (ONNX's code); None where those are bytes.

    Each conversion stands here twice: in numpy, for the source that a bundle is compared with, and as steps of a graph.
    """

    layout: Layout
    dtype: int
    black_white: tuple[float, float] | None

    @classmethod
    def at(
        cls, value: ValueInfoProto, *, layout: Layout | None, black_white: tuple[float, float] | None, path: Path
    ) -> "Pixels":
        """The pixels of an input or output: what its type says, and where it does not, what a person said.

        Raises:  CannotImport if neither says it
        """
        dtype = value.type.tensor_type.elem_type
        if dtype == TensorProto.UINT8:
            return cls(layout or "nhwc", dtype, None)
        require_floats(value, path=path)
        if layout is None or black_white is None:
            missing = "--layout (nchw or nhwc)" if layout is None else "--pixel-range (black and white, as -1,1)"
            raise CannotImport(f"{path}: {value.name} is of floats, expected {missing} to say which pictures they are")
        return cls(layout, dtype, black_white)

    def axes(self, value: ValueInfoProto, *, path: Path) -> tuple[int | None, int | None, int | None]:
        """Height, width and channels of an input, None where free.

        Raises:  CannotImport if it has not four axes, the first being the batch's
        """
        found = axes(value, path=path)
        if len(found) != 4:
            raise CannotImport(f"{path}: {value.name} has {len(found)} axes, expected four, as of {self.layout}")
        _, *picture = (found[place] for place in (TO_CHANNELS_LAST if self.layout == "nchw" else range(4)))
        height, width, channels = picture
        return height, width, channels

    def of(self, image: Uint8) -> NDArray[Any]:
        """Pictures as the graph takes them.

        Shapes:  image (n, h, w, c) -> in the graph's layout
        """
        ordered = image.transpose(TO_CHANNELS_FIRST) if self.layout == "nchw" else image
        if self.black_white is None:
            return ordered
        black, white = self.black_white
        return ordered / np.float32(255) * np.float32(white - black) + np.float32(black)

    def image(self, given: NDArray[Any]) -> Uint8:
        """What the graph gave, as pictures; numbers out of the range are cut to it.

        Shapes:  given in the graph's layout -> (n, h, w, c)
        Raises:  CannotImport if one is NaN or infinite
        """
        require_numbers("image", given)
        if self.black_white is not None:
            black, white = self.black_white
            grey = (given.astype(np.float64) - black) / (white - black) * 255
            given = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
        image: Uint8 = np.ascontiguousarray(given.transpose(TO_CHANNELS_LAST) if self.layout == "nchw" else given)
        return image

    def steps_of(self) -> list[Step]:
        """`of`, inside a graph."""
        steps = [Step("Transpose", attributes={"perm": TO_CHANNELS_FIRST})] if self.layout == "nchw" else []
        if self.black_white is None:
            return steps
        black, white = self.black_white
        steps += cast(TensorProto.UINT8, TensorProto.FLOAT)
        if white - black != 255:
            steps.append(Step("Div", (_number(255 / (white - black)),)))
        if black:
            steps.append(Step("Add", (_number(black),)))
        return steps + cast(TensorProto.FLOAT, self.dtype)

    def steps_image(self) -> list[Step]:
        """`image`, inside a graph."""
        steps = []
        if self.black_white is not None:
            black, white = self.black_white
            steps += cast(self.dtype, TensorProto.FLOAT)
            if black:
                steps.append(Step("Sub", (_number(black),)))
            if white - black != 255:
                steps.append(Step("Mul", (_number(255 / (white - black)),)))
            steps += [
                Step("Clip", (_number(0), _number(255))),
                Step("Round"),
                *cast(TensorProto.FLOAT, TensorProto.UINT8),
            ]
        if self.layout == "nchw":
            steps.append(Step("Transpose", attributes={"perm": TO_CHANNELS_LAST}))
        return steps


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)
