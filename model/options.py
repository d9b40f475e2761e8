"""Options that several commands have, and what the words given with an option mean."""

import re
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from model.errors import BadSetting
from model.measuring import NllRequest
from model.nll import Precision
from model.training import TrainConfig
from model.vae import ModelConfig

DATA = "A folder or zip of pictures, a folder of IDX files, an .npz, a .parquet, or hf:owner/name."

DataPath = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help=DATA, show_default="scikit-learn's digits")
]
Features = Annotated[
    int | None,
    typer.Option(help="Channels of the widest map, or units of a layer.", show_default="the preset's", min=1),
]
Depth = Annotated[
    int | None,
    typer.Option(help="Residual blocks at each size, or hidden layers.", show_default="the preset's", min=1),
]
Size = Annotated[
    str | None, typer.Option(metavar="HxW", help="Fit pictures to this size.", show_default="their own, if shared")
]
Channels = Annotated[
    int | None, typer.Option(help="1 (grey) or 3 (RGB).", show_default="1 if all pictures are grey, else 3", min=1)
]


def of_config(kind: type[ModelConfig] | type[TrainConfig], name: str, text: str) -> Any:
    """The option of a field; not given it is None, so that a run's own value is known from one that was asked for."""
    return typer.Option(help=text, show_default=str(getattr(kind, name)))


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: value for name, value in options.items() if value is not None}


def parse_sigma(text: str) -> float | str:
    """A number if it is one; any other word is the config's to judge."""
    try:
        return float(text)
    except ValueError:
        return text


def nll_request(
    *, is_wanted: bool, images: int | None, draws: int | None, samples: str | None, precision: str | None
) -> NllRequest | None:
    """What the options of that estimate say, which mean nothing without it."""
    options = {"--nll-images": images, "--nll-draws": draws, "--nll-samples": samples, "--precision": precision}
    if not is_wanted:
        for name, value in given(**options).items():
            raise BadSetting(f"{name}: got {value!r} without --nll, expected both")
        return None
    return NllRequest(
        n_images=images,
        draws=NllRequest.draws if draws is None else draws,
        samples=NllRequest.samples if samples is None else _parse_samples(samples),
        precision=NllRequest.precision if precision is None else _parse_precision(precision),
    )


def _parse_samples(text: str) -> tuple[int, ...]:
    if re.fullmatch(r"\d{1,9}(,\d{1,9})*", text) is None:
        raise BadSetting(f"--nll-samples: got {text!r}, expected whole numbers between commas, as 128,1000,5000")
    return tuple(sorted(map(int, text.split(","))))


def _parse_precision(text: str) -> Precision:
    if text not in get_args(Precision):
        raise BadSetting(f"--precision: got {text!r}, expected one of {', '.join(get_args(Precision))}")
    return cast("Precision", text)


def parse_size(text: str) -> tuple[int, int]:
    """(h, w).

    Raises:  BadSetting
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise BadSetting(f"--size: got {text!r}, expected HxW in pixels, as 64x64")
    return int(match[1]), int(match[2])
