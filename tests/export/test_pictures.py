"""Pictures to measure with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.pictures import Real, natural, real_of, sample, smooth, to_learn_from
from model.errors import BadData
from service.manifest import ImageSpec
from tests.export.linear import noise

IMAGE = ImageSpec(height=6, width=5, channels=3)
OPEN = ImageSpec(height=None, width=None, channels=3, stride=2, default_side=8, max_side=16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty pictures, each of one colour of its own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (40, 30), (10 * index, 0, 255)).save(folder / f"{index}.png")
    return folder


def of(found: np.ndarray | None) -> Real:
    return lambda *_: found


def test_real_pictures_come_in_turn_with_noise() -> None:
    real = noise(4, (6, 5, 3)) // 2  # below 128, which noise is not
    drawn = sample(of(real), (6, 5, 3), n=6, seed=0)
    assert drawn.real == 3
    np.testing.assert_array_equal(drawn.images[::2], real[[0, 2, 3]])
    assert all(picture.max() > 127 for picture in drawn.images[1::2])


def test_where_there_are_too_few_there_are_no_more() -> None:
    drawn = sample(of(noise(2, (6, 5, 3))), (6, 5, 3), n=100, seed=0)
    assert (len(drawn.images), drawn.real) == (4, 2)


def test_without_real_pictures_smooth_ones_stand_in() -> None:
    drawn = sample(of(None), (20, 30, 3), n=6, seed=0)
    assert (drawn.images.shape, drawn.real) == ((6, 20, 30, 3), 0)

    def steps(pictures: np.ndarray) -> float:
        return float(np.abs(np.diff(pictures.astype(int), axis=1)).mean())

    assert steps(drawn.images[::2]) < 32 < 64 < steps(drawn.images[1::2])


def test_one_seed_gives_the_same_pictures() -> None:
    first, again, other = (sample(of(None), (6, 5, 1), n=4, seed=seed).images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 3), (300, 2, 3)])
def test_smooth_pictures_have_any_shape(shape: tuple[int, int, int]) -> None:
    assert smooth(3, shape, np.random.default_rng(0)).shape == (3, *shape)


def test_smooth_pictures_span_the_grey_levels() -> None:
    grey = smooth(32, (16, 16, 1), np.random.default_rng(0))
    assert grey.min() < 16
    assert grey.max() > 239


def test_a_source_brings_its_own_pictures_in_their_own_size() -> None:
    own = noise(3, (8, 8, 3))
    real = real_of(None, own=own, image=OPEN)
    assert real(8, 8) is own
    assert real(4, 8) is None
    assert real_of(None, own=None, image=OPEN)(8, 8) is None


def test_pictures_from_a_path_are_fitted_to_every_size_and_take_the_place_of_the_sources_own(photos: Path) -> None:
    real = real_of(photos, own=noise(3, (8, 8, 3)), image=OPEN)
    for height, width in ((8, 8), (4, 16)):
        found = real(height, width)
        assert found is not None
        assert found.shape == (2, height, width, 3)  # the test part
        assert (found[..., 2] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_fitted_where_a_model_takes_any_size_and_refused_elsewhere(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "arrays.npz"
    images = noise(6, (8, 12, channels))
    np.savez(path, x_train=images[:4], x_test=images[4:])
    image = OPEN.model_copy(update={"channels": channels})
    own = real_of(path, own=None, image=image)(8, 12)
    assert own is not None
    np.testing.assert_array_equal(own, images[4:])
    fitted = real_of(path, own=None, image=image)(4, 4)
    assert fitted is not None
    assert fitted.shape == (2, 4, 4, channels)
    for row, picture in enumerate(images):
        file = tmp_path / "encoded" / ("train" if row < 4 else "test") / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0] if channels == 1 else picture).save(file)
    np.testing.assert_array_equal(fitted, real_of(tmp_path / "encoded", own=None, image=image)(4, 4))
    assert to_learn_from(path, image).shape == (4, 8, 8, channels)
    with pytest.raises(BadData, match=r"got pictures of shape \(8, 12, [13]\), expected \(6, 5, "):
        real_of(path, own=None, image=IMAGE)(6, 5)


def test_no_more_pictures_are_read_than_are_needed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.pictures._READ", 10)
    monkeypatch.setattr("export.pictures._LEAST", 2)
    learnt, measured = to_learn_from(photos, OPEN), real_of(photos, own=None, image=OPEN)(8, 8)
    assert measured is not None
    assert (len(learnt), len(measured)) == (9, 1)
    assert {picture[0, 0, 0] for picture in learnt}.isdisjoint(picture[0, 0, 0] for picture in measured)


def test_a_path_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="nowhere: got nothing there, expected a folder or zip of pictures"):
        real_of(tmp_path / "nowhere", own=None, image=IMAGE)(6, 5)


def test_natural_pictures_are_real_where_there_are_some() -> None:
    real = noise(5, (6, 5, 3))
    chosen = real[
        np.linspace(0, len(real) - 1, 3).round().astype(int)
    ]  # of all classes, should they be sorted by class
    np.testing.assert_array_equal(natural(of(real), (6, 5, 3), n=3, seed=0), chosen)
    assert natural(of(None), (6, 5, 3), n=3, seed=0).shape == (3, 6, 5, 3)


def test_what_is_learnt_from_is_not_what_is_measured_on(photos: Path) -> None:
    learnt, measured = to_learn_from(photos, OPEN), real_of(photos, own=None, image=OPEN)(8, 8)
    assert measured is not None
    assert len(learnt) + len(measured) == 20
    assert {picture[0, 0, 0] for picture in learnt}.isdisjoint(picture[0, 0, 0] for picture in measured)
