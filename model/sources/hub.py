"""What Hugging Face's `datasets` reads, as picture files: parquet on this machine, and names on its hub."""

import glob
from collections.abc import Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from model.errors import BadData
from model.fitting import PictureFile, PictureFiles
from model.parts import PART_NAMES

PREFIX = "hf:"


def in_parquet(path: Path) -> PictureFiles:
    """The pictures of a parquet file, or by part those of a folder of such files.

    Raises:  BadData if `datasets` is not installed, or finds no pictures in it
    """
    place = glob.escape(str(path.resolve()))  # `datasets` takes a path for a pattern
    files = {"data_dir": place} if path.is_dir() else {"data_files": {"train": place}}
    return _parts(str(path), _loaded(str(path), "parquet", **files))


def on_hub(name: str) -> PictureFiles:
    """The pictures of `hf:owner/name` or `hf:owner/name:config` by part, downloaded once into the cache of `datasets`.

    Raises:  BadData if `datasets` is not installed, the hub does not answer, or there are no pictures of that name
    """
    repository, _, config = name.removeprefix(PREFIX).partition(":")
    if not repository:
        raise BadData(f"{name}: got no name, expected hf:owner/name")
    return _parts(name, _loaded(name, repository, config or None))


def _loaded(source: str, *arguments: str | None, **options: object) -> Mapping[str, Any]:
    """Splits by name, their pictures left encoded."""
    try:
        import datasets  # an extra, and a second to import
    except ImportError as error:
        raise BadData(f"{source}: got no package `datasets`, expected it: install vaeserve[hub]") from error
    try:
        return dict(datasets.load_dataset(*arguments, **options))
    except ConnectionError as error:
        expected = "expected a network, or a data set that was downloaded before"
        raise BadData(f"{source}: got no answer ({error}), {expected}") from error
    except Exception as error:  # its builders raise whatever a file that is none of theirs makes them trip over
        told = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        raise BadData(f"{source}: got {told}, expected a data set that Hugging Face `datasets` reads") from error


def _parts(source: str, splits: Mapping[str, Any]) -> PictureFiles:
    names = {PART_NAMES[name]: name for name in splits if name in PART_NAMES}
    if len(splits) == 1:
        names = {"train": next(iter(splits))}
    if "train" not in names:
        raise BadData(f"{source}: got splits {', '.join(splits)}, expected one named train")
    return {part: _picture_files(source, name, splits[name]) for part, name in names.items()}


def _picture_files(source: str, name: str, split: Any) -> list[PictureFile]:
    from datasets import ClassLabel, Image

    column = _column(split, Image, preferred="image")
    if column is None:
        found = ", ".join(f"{column} {feature}" for column, feature in split.features.items())
        raise BadData(f"{source}: got {found}, expected one column of pictures (Image), or one named image")
    pictures = split.select_columns([column]).cast_column(column, Image(decode=False))
    label_column = _column(split, ClassLabel, preferred="label")
    labels = [None] * len(split) if label_column is None else split[label_column][:]
    return [
        PictureFile(
            name=f"{name}, row {row}",
            label=label if label is not None and label >= 0 else None,  # -1 is how hidden labels are published
            open=partial(_opened, pictures, row),
        )
        for row, label in enumerate(labels)
    ]


def _column(split: Any, feature: type, *, preferred: str) -> str | None:
    """The one column of that feature, among several the one of that name."""
    columns = [name for name, found in split.features.items() if isinstance(found, feature)]
    return columns[0] if len(columns) == 1 else next((name for name in columns if name == preferred), None)


def _opened(pictures: Any, row: int) -> IO[bytes]:
    (cell,) = pictures[row].values()
    if cell is None or cell["bytes"] is cell["path"] is None:
        raise BadData("got an empty cell, expected a picture")
    if cell["bytes"] is not None:
        return BytesIO(cell["bytes"])
    path = Path(cell["path"]).resolve()
    if not any(path.is_relative_to(cache) for cache in _caches()):
        raise BadData("got a path and no bytes, expected the picture itself")
    return path.open("rb")


def _caches() -> list[Path]:
    """Where downloads lie; a path that leads elsewhere is one that the data's author chose on a reader's disk."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(cache).resolve() for cache in (config.HF_DATASETS_CACHE, HF_HUB_CACHE)]
