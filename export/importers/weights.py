"""The tensors of a safetensors file, checked against the module that they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from export.frozen import CannotImport


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, every floating one as float32. Reading them executes nothing.

    Raises:  CannotImport if the file is missing, not whole, or holds NaN or infinity, or numbers that torch cannot read
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing"
        raise CannotImport(f"{path}: got {got} there, expected a file of safetensors")
    try:
        stored = safetensors.torch.load_file(path)
        tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise CannotImport(f"{path}: not readable as safetensors ({error}), expected whole ones") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CannotImport(f"{path}, {name}: holds NaN or infinity, expected finite numbers")
    return tensors


def matched(tensors: Mapping[str, Tensor], module: nn.Module, *, path: Path) -> dict[str, Tensor]:
    """The tensors that `load_state_dict` of a module takes: all of its own, and no other.

    A tensor that a module holds under two names stands in a safetensors file under one of them. Floats go into floats
    of another width; codes of a quantised model, which are whole numbers, are no floats without their scale.

    Raises:  CannotImport that names the first one that is missing, of another shape or type, or too many
    """
    expected = module.state_dict(keep_vars=True)
    shared = {id(own): tensors[name] for name, own in expected.items() if name in tensors}
    found = {**tensors, **{name: shared[id(own)] for name, own in expected.items() if id(own) in shared}}
    for name in sorted(found.keys() | expected.keys()):
        got, wanted = (_kind(side[name]) if name in side else "nothing" for side in (found, expected))
        if got != wanted:
            raise CannotImport(f"{path}, {name}: got {got}, the module has {wanted}")
    return found


def _kind(state: Any) -> str:
    """Type and shape of a tensor; a module may keep another object than a tensor, which no file of tensors holds."""
    if not isinstance(state, Tensor):
        return f"an object of type {type(state).__name__}"
    dtype = "float" if state.is_floating_point() else str(state.dtype).removeprefix("torch.")
    return f"{dtype} {tuple(state.shape)}"
