"""What `datasets` reads: parquet that it wrote itself, and names on a hub that is out of reach."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from model import data
from model.errors import BadData

IMAGE = datasets.Image()
LETTER = datasets.ClassLabel(names=["a", "b", "c"])


@pytest.fixture(autouse=True)
def _quiet_cache_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 5), value, np.uint8))


def numbered(n: int, *, start: int = 0, labels: list[int] | None = None) -> datasets.Dataset:
    """Picture i has all pixels start + i."""
    columns = {"picture": [picture(start + i) for i in range(n)], "letter": labels or [i % 3 for i in range(n)]}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(picture=IMAGE, letter=LETTER))


def test_a_parquet_file_is_split_and_its_labels_go_with_its_pictures(tmp_path: Path) -> None:
    numbered(30).to_parquet(tmp_path / "some[1].parquet")  # brackets, which `datasets` would take for a pattern
    dataset = data.read(tmp_path / "some[1].parquet")
    assert dataset.name == "some[1]"
    assert dataset.image_shape == (4, 5, 1)
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (27, 3, 0)
    assert dataset.train_labels is not None
    assert dataset.train_labels.tolist() == (dataset.train[:, 0, 0, 0] % 3).tolist()


def test_a_folder_of_parquet_files_keeps_its_parts(tmp_path: Path) -> None:
    folder = tmp_path / "letters*" / "data"
    folder.mkdir(parents=True)
    for part, n, start in (("train", 6, 0), ("test", 3, 100), ("validation", 2, 200)):
        numbered(n, start=start).to_parquet(folder / f"{part}-00000-of-00001.parquet")
    dataset = data.read(folder.parent)
    assert dataset.name == "letters*"
    assert dataset.train[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.test[:, 0, 0, 0].tolist() == [100, 101, 102]
    assert dataset.validation[:, 0, 0, 0].tolist() == [200, 201]
    assert dataset.validation_labels is not None
    assert dataset.validation_labels.tolist() == [0, 1]


def test_parquet_pictures_are_fitted_as_files_are(tmp_path: Path) -> None:
    numbered(10).to_parquet(tmp_path / "some.parquet")
    assert data.read(tmp_path / "some.parquet", size=(8, 8), channels=3).image_shape == (8, 8, 3)


def test_hidden_labels_are_no_labels(tmp_path: Path) -> None:
    numbered(10, labels=[-1] * 10).to_parquet(tmp_path / "some.parquet")
    assert data.read(tmp_path / "some.parquet").train_labels is None


def test_columns_of_several_pictures_need_one_named_image(tmp_path: Path) -> None:
    columns = {"picture": [picture(i) for i in range(10)], "mask": [picture(255)] * 10}
    masked = datasets.Dataset.from_dict(columns, features=datasets.Features(picture=IMAGE, mask=IMAGE))
    masked.to_parquet(tmp_path / "some.parquet")
    with pytest.raises(BadData, match=r"got picture Image\(.*\), mask Image\(.*\), expected one column of pictures"):
        data.read(tmp_path / "some.parquet")
    masked.rename_column("picture", "image").to_parquet(tmp_path / "other.parquet")
    assert data.read(tmp_path / "other.parquet").train.max() == 9


def test_a_parquet_file_without_pictures_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"n": [1, 2]}).to_parquet(tmp_path / "some.parquet")
    with pytest.raises(BadData, match=r"got n Value\('int64'\), expected one column of pictures"):
        data.read(tmp_path / "some.parquet")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.parquet").write_bytes(b"hello, this is text")
    with pytest.raises(BadData, match=r"some\.parquet: got .*Parquet.*, expected a data set that Hugging Face"):
        data.read(tmp_path / "some.parquet")


def test_splits_without_train_are_refused(tmp_path: Path) -> None:
    for name in ("test", "validation"):
        numbered(4).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    with pytest.raises(BadData, match=r"got splits .*, expected one named train"):
        data.read(tmp_path)


def write_cells(path: Path, *cells: dict[str, bytes | str | None] | None) -> Path:
    """Parquet with a hundred pictures and these cells, which `datasets` itself would not write."""
    file = path.with_name("whole.png")
    picture(7).save(file)
    whole = {"bytes": file.read_bytes(), "path": None}
    features = datasets.Features(picture=IMAGE)
    table = pyarrow.table({"picture": pyarrow.array([whole] * 100 + [*cells], type=IMAGE.pa_type)})
    pyarrow.parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    return path


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "got an empty cell, expected a picture"),
        ({"bytes": b"hello", "path": "a.png"}, "got something else, expected a picture in one of"),
        ({"bytes": None, "path": None}, "got an empty cell, expected a picture"),
    ],
)
def test_a_row_without_a_picture_is_skipped(tmp_path: Path, cell: dict[str, bytes | str | None], reason: str) -> None:
    dataset = data.read(write_cells(tmp_path / "some.parquet", cell))
    assert dataset.n_skipped == 1
    assert dataset.skipped[0].startswith(f"train, row 100: {reason}")


def test_a_path_in_a_parquet_file_opens_nothing_on_this_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "private" / "photo.png"
    private.parent.mkdir()
    picture(99).save(private)
    path = write_cells(tmp_path / "some.parquet", {"bytes": None, "path": str(private)})
    dataset = data.read(path)
    assert dataset.skipped == ("train, row 100: got a path and no bytes, expected the picture itself",)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # where downloads of `datasets` lie
    dataset = data.read(path)
    assert dataset.n_skipped == 0
    assert 99 in [*dataset.train[:, 0, 0, 0], *dataset.test[:, 0, 0, 0]]


def test_a_name_on_the_hub_gets_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*arguments: object) -> datasets.DatasetDict:
        asked.append(arguments)
        return datasets.DatasetDict(train=numbered(6), test=numbered(3, start=100), extra=numbered(1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = data.read("hf:owner/letters")
    assert dataset.name == "owner/letters"
    assert (len(dataset.train), len(dataset.test), len(dataset.validation)) == (6, 3, 0)
    data.read(Path("hf:owner/letters:small"))
    assert asked == [("owner/letters", None), ("owner/letters", "small")]


def test_a_hub_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadData, match=r"^hf:ylecun/mnist: got no answer \(.*\), expected a network, or a data set"):
        data.read("hf:ylecun/mnist")


def test_without_datasets_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadData, match=r"got no package `datasets`, expected it: install vaeserve\[hub\]"):
        data.read("hf:ylecun/mnist")


def test_reading_other_data_does_not_load_datasets() -> None:
    program = "import sys, model.data; model.data.read(None); assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], check=True, timeout=60)


@pytest.mark.parametrize("name", ["hf:", "hf::small"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadData, match=f"^{name}: got no name, expected hf:owner/name$"):
        data.read(name)
