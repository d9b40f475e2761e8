"""A stranger's ONNX file as it came, run by onnxruntime: what the bundle made of it is compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.foreign.files import one_line
from export.frozen import CannotImport
from service.machine import available_cores

_DTYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Original:
    """A graph that takes one array of rows; inputs beside it, which the kept outputs do not need, are zeros of as many
    rows.

    Raises:  CannotImport if onnxruntime refuses the file
    """

    def __init__(self, path: Path, *, takes: str, gives: Sequence[str], content: bytes | None = None) -> None:
        """The file, or `content` in its place: the file with more outputs."""
        self._path = path
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions, and are told once
        options.intra_op_num_threads = available_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(content or str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception classes share no public base
            raise CannotImport(f"{path}: onnxruntime refuses it ({one_line(error)})") from error
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._takes, self._gives = inputs.pop(takes), list(gives)
        for name, node in inputs.items():
            if node.type not in _DTYPES:
                raise CannotImport(f"{path}: the input {name} is {node.type}, expected numbers")
        self._unneeded = list(inputs.values())
        rows = self._takes.shape[0] if self._takes.shape else None
        self._rows = rows if isinstance(rows, int) else None

    def run(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """What the file gives for any number of rows, a fixed number at a time where its batch axis is fixed.

        Raises:  CannotImport if onnxruntime fails on it
        """
        step = self._rows or len(x)
        runs = [self._run(x[start : start + step], step) for start in range(0, len(x), step)]
        return tuple(np.concatenate(parts) for parts in zip(*runs, strict=True))

    def _run(self, x: NDArray[Any], rows: int) -> list[NDArray[Any]]:
        padded = np.zeros((rows, *x.shape[1:]), _DTYPES[self._takes.type])
        padded[: len(x)] = x
        axes = zip(self._takes.shape, padded.shape, strict=False)
        named = {axis: length for axis, length in axes if isinstance(axis, str)}
        unneeded = {node.name: _zeros(node, named, rows=rows) for node in self._unneeded}
        try:
            given = self._session.run(self._gives, {self._takes.name: padded} | unneeded)
        except Exception as error:  # as in __init__
            raise CannotImport(f"{self._path}: onnxruntime fails on {padded.shape} ({one_line(error)})") from error
        for name, array in zip(self._gives, given, strict=True):
            if array.shape[:1] != (rows,):
                raise CannotImport(f"{self._path}: {name} is {array.shape} for {rows} rows, expected as many rows")
        return [array[: len(x)] for array in cast("list[NDArray[Any]]", given)]


def _zeros(node: Any, named: Mapping[str, int], *, rows: int) -> NDArray[Any]:
    """What an input takes, all of it 0: free axes have the length of their name, or else the first as many as there are
    rows, which exporters may name anew at each input, and others 1.
    """
    free = [rows, *(1 for _ in node.shape)]
    axes = zip(node.shape, free, strict=False)
    shape = [axis if isinstance(axis, int) else named.get(axis, length) for axis, length in axes]
    return np.zeros(shape, _DTYPES[node.type])
