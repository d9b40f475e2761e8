"""safetensors bytes to named arrays and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.errors import BadBody

MEDIA_TYPE = "application/vnd.safetensors"


def read(body: bytes) -> dict[str, NDArray[Any]]:
    """The tensors of a body.

    Raises:  BadBody if it is truncated, its header lies, or a dtype is one that numpy does not have
    """
    try:
        return load(body)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadBody(f"not readable as safetensors: {error}") from error


def write(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """One body of tensors, each stored contiguously."""
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
