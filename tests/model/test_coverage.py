"""Density, coverage and nearest neighbours against the authors' own code, brute force and cases worked by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model import coverage as module
from model.coverage import Neighbours, check_copies, coverage, expected_coverage, neighbours

Images = NDArray[np.uint8]


def waves(n: int, phase: float) -> Images:
    """(n, 3, 4, 1) pictures, as a formula that any program can repeat."""
    i, j = np.meshgrid(np.arange(n), np.arange(12), indexing="ij")
    grey = 127.5 + 127.4 * np.sin(phase + 0.37 * i * i + 0.9 * j * (1 + i % 7))
    return grey.astype(np.uint8).reshape(n, 3, 4, 1)


def noise(n: int, *, seed: int, shape: tuple[int, int, int] = (4, 4, 1)) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def line(*greys: int) -> Images:
    """Pictures of one pixel."""
    return np.array(greys, np.uint8).reshape(-1, 1, 1, 1)


# compute_prdc(real / 255, generated / 255, nearest_k) of prdc 0.2, the code of Naeem et al.
@pytest.mark.parametrize(
    ("nearest", "density", "covered"),
    [(5, 2.008888888888889, 0.9833333333333333), (3, 0.9851851851851852, 0.8333333333333334)],
)
def test_density_and_coverage_are_those_of_the_authors_code(nearest: int, density: float, covered: float) -> None:
    generated = (waves(45, 0.6) * 0.8).astype(np.uint8)
    found = coverage(generated, waves(60, 0.0), nearest=nearest)
    assert found.density == pytest.approx(density)
    assert found.coverage == pytest.approx(covered)
    assert (found.nearest, found.n_generated, found.n_real) == (nearest, 45, 60)


def test_density_and_coverage_of_points_on_a_line_are_those_worked_by_hand() -> None:
    # Balls: 10 reaches 10, 20 reaches 10, 30 reaches 10 and 100 reaches 70, their ends included.
    found = coverage(line(20, 40, 200), line(10, 20, 30, 100), nearest=1)
    # 20 lies in the balls of 10, 20 and 30; 40 in those of 30 and 100; 200 in none.
    assert found.density == pytest.approx(5 / 3)
    assert found.coverage == 1
    assert coverage(line(40, 200), line(10, 20, 30, 100), nearest=1).coverage == pytest.approx(2 / 4)


def test_pictures_of_one_distribution_cover_as_much_as_lemma_2_expects() -> None:
    found = [coverage(noise(80, seed=2 * s), noise(120, seed=2 * s + 1)) for s in range(40)]
    assert found[0].expected_coverage == pytest.approx(expected_coverage(n_generated=80, n_real=120, nearest=5))
    shares = [one.coverage for one in found]
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - found[0].expected_coverage) < 4 * standard_error
    assert np.mean([one.density for one in found]) == pytest.approx(1, abs=0.1)


def test_one_kind_of_picture_alone_is_dense_and_covers_little() -> None:
    real = np.concatenate([line(*range(20)), line(*range(200, 220))])
    found = coverage(line(*[10] * 40), real)
    assert found.density > 1
    assert found.coverage < 0.5


def test_figures_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = noise(30, seed=1, shape=(40, 20, 3)), noise(25, seed=2, shape=(40, 20, 3))
    whole, near = coverage(generated, real), neighbours(generated, real)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 6000)
    assert coverage(generated, real) == whole
    in_chunks = neighbours(generated, real)
    np.testing.assert_array_equal(in_chunks.indices, near.indices)
    np.testing.assert_allclose(in_chunks.distances, near.distances)


def test_neighbours_are_those_of_brute_force() -> None:
    images, among = noise(20, seed=3, shape=(5, 3, 3)), noise(50, seed=4, shape=(5, 3, 3))
    found = neighbours(images, among)
    for i, image in enumerate(images):
        distances = [np.linalg.norm((image / 255 - other / 255).ravel()) for other in among]
        assert found.indices[i] == np.argmin(distances)
        assert found.distances[i] == pytest.approx(min(distances))


def test_a_copy_is_found_at_distance_zero_and_the_first_of_equals_is_named() -> None:
    training = noise(50, seed=5, shape=(28, 28, 1))
    training[30] = training[7]
    found = neighbours(training[[30, 12]], training)
    assert found.distances.tolist() == [0, 0]
    assert found.indices.tolist() == [7, 12]


def test_large_pictures_are_compared_by_their_area_means() -> None:
    fine = noise(6, seed=6, shape=(64, 48, 1))
    means = fine.reshape(6, 32, 2, 24, 2).mean(axis=(2, 4)).reshape(6, -1) / 255
    found = neighbours(fine[:2], fine[2:])
    expected = np.linalg.norm(means[:2, None] - means[None, 2:], axis=2)
    np.testing.assert_allclose(found.distances, expected.min(axis=1))
    np.testing.assert_array_equal(found.indices, expected.argmin(axis=1))


def test_a_very_flat_picture_keeps_a_row() -> None:
    assert neighbours(np.full((1, 1, 200, 3), 9, np.uint8), np.zeros((2, 1, 200, 3), np.uint8)).indices.tolist() == [0]


def test_copies_lie_nearer_to_training_pictures_than_held_out_ones_and_fresh_ones_as_near() -> None:
    training, held_out = noise(200, seed=7), noise(50, seed=8)
    copies = np.clip(training[:50].astype(int) + 1, 0, 255).astype(np.uint8)
    near = check_copies(copies, held_out=held_out, training=training)
    assert np.median(near.samples.distances) < 0.02 * np.median(near.held_out.distances)
    fresh = check_copies(noise(50, seed=9), held_out=held_out, training=training)
    assert np.median(fresh.samples.distances) == pytest.approx(np.median(fresh.held_out.distances), rel=0.1)
    assert isinstance(fresh.samples, Neighbours)


def test_pictures_of_two_sizes_and_too_few_real_ones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pictures: got \(4, 4, 1\) and \(4, 5, 1\), expected one size"):
        neighbours(noise(2, seed=0), noise(2, seed=0, shape=(4, 5, 1)))
    with pytest.raises(ValueError, match=r"real: got 5 pictures, expected more than 5"):
        coverage(noise(9, seed=0), noise(5, seed=0))
