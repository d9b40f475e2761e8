"""Each unit of a tolerance against cases worked by hand."""

import math

import numpy as np
import pytest

from service.differences import absolute, in_sigma, of_logvar, of_mu, of_sums, psnr_db


def test_differences_of_bytes_do_not_wrap_around() -> None:
    found, expected = np.array([[0, 255, 7]], np.uint8), np.array([[255, 0, 7]], np.uint8)
    assert absolute(found, expected).tolist() == [[255, 255, 0]]


def test_logvar_is_compared_as_it_is() -> None:
    expected = np.log(np.array([1.0, 1e-4, 1e-10]) ** 2)
    for head in ("logvar", "log_sigma", None):
        np.testing.assert_allclose(of_logvar(expected + 0.25, expected, scale_head=head), 0.25)


@pytest.mark.parametrize("head", ["sigma", "variance"])
def test_a_small_sigma_of_a_converted_head_is_compared_as_sigma(head: str) -> None:
    sigma, found = np.array([0.5, 1.1e-3, 9e-4, 1e-6]), np.array([0.25, 1e-3, 5e-4, 3e-6])
    apart = of_logvar(2 * np.log(found), 2 * np.log(sigma), scale_head=head)
    expected = [2 * math.log(2), 2 * math.log(1.1), 4e-4, 2e-6]
    np.testing.assert_allclose(apart, expected, rtol=1e-9)


def test_sums_are_compared_by_their_size_above_one() -> None:
    found, expected = np.array([0.5, -1000.5, 10.0]), np.array([0.25, -1000.0, 10.0])
    np.testing.assert_allclose(of_sums(found, expected), [0.25, 0.0005, 0])


def test_mu_is_compared_by_its_spread_above_one() -> None:
    mu = np.array([[300.0, -300.0], [-300.0, 300.0]])
    np.testing.assert_allclose(of_mu(mu + 0.03, mu), 1e-4)
    np.testing.assert_allclose(of_mu(mu / 600 + 0.03, mu / 600), 0.03)


def test_mu_is_compared_in_sigma() -> None:
    sigma = np.array([[2.0, 0.5], [1.0, 0.05]])
    mu = np.array([[1.0, -1.0], [0.0, 5.0]])
    apart = in_sigma(mu + np.array([[1, 1], [-1, 0.025]]), mu, 2 * np.log(sigma))
    np.testing.assert_allclose(apart, [[0.5, 2], [1, 0.5]])


def test_where_sigma_is_tiny_mu_is_compared_in_a_hundredth_of_its_spread() -> None:
    sigma = np.array([[1e-4, 1e-4], [0.5, 1e-9]])
    mu = np.array([[4.0, -4.0], [4.0, -4.0]])
    apart = in_sigma(mu + np.array([[0.02, -0.04], [0.05, 0]]), mu, 2 * np.log(sigma))
    np.testing.assert_allclose(apart, [[0.5, 1], [0.1, 0]], rtol=1e-6)


def test_an_autoencoders_mu_is_compared_in_the_spread_of_all_of_it() -> None:
    mu = np.array([[3.0, -3.0], [3.0, -3.0]])
    np.testing.assert_allclose(in_sigma(mu + 0.75, mu, None), 0.25)


def test_a_mu_without_any_spread_admits_no_difference() -> None:
    mu = np.ones((1, 1))
    assert in_sigma(mu, mu, None).max() == 0
    assert in_sigma(mu + 1e-6, mu, None).max() > 1e20


def test_psnr_is_that_of_all_pictures_together() -> None:
    expected = np.zeros((2, 2, 2, 1), np.uint8)
    found = expected.copy()
    found[0] = 2
    # A mean square of 2: 10 log10(65025 / 2).
    assert psnr_db(found, expected) == pytest.approx(45.12, abs=0.005)
    assert psnr_db(expected, expected) == math.inf
