"""What encoders say of a posterior's scale, brought to logvar: in numpy, and as steps of a graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from export.foreign.surgery import Step, cast
from export.frozen import Float32
from model.gaussian import ScaleHead

# Of those that are no logarithm, which is minus infinity at 0: sigma from e^-15 to e^10.
_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Scale:
    """A head, and the range that logvar is cut to; None where it is not cut."""

    head: ScaleHead
    logvar_range: tuple[float, float] | None

    @classmethod
    def of(cls, head: ScaleHead) -> "Scale":
        """A head with the range that its conversion needs."""
        return cls(head, None if head in ("logvar", "log_sigma") else _RANGE)

    @property
    def is_positive(self) -> bool:
        """Whether what the head emits is never below 0."""
        return self.head in ("variance", "sigma")

    def logvar(self, emitted: NDArray[np.floating]) -> Float32:
        """What a head emitted, as the natural log of the variance."""
        exact = emitted.astype(np.float64)
        lowest, highest = self.logvar_range or (-np.inf, np.inf)
        match self.head:
            case "log_sigma":
                exact = 2 * exact
            case "variance":
                exact = np.log(np.maximum(exact, np.exp(lowest)))
            case "sigma":
                exact = 2 * np.log(np.maximum(exact, np.exp(lowest / 2)))
        return np.clip(exact, lowest, highest).astype(np.float32)

    def steps(self, dtype: int) -> list[Step]:
        """`logvar`, inside a graph whose head emits this type of numbers (ONNX's code)."""
        steps = cast(dtype, TensorProto.FLOAT)
        if self.is_positive:
            steps += [Step("Max", (np.array(0, np.float32),)), Step("Log")]
        if self.head in ("log_sigma", "sigma"):
            steps.append(Step("Mul", (np.array(2, np.float32),)))
        if self.logvar_range:
            steps.append(Step("Clip", tuple(np.array(bound, np.float32) for bound in self.logvar_range)))
        return steps
