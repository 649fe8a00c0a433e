"""Scores of predictive distributions against their definitions and two libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scoringrules
import uncertainty_toolbox as toolbox
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from sim2real.errors import ModelError
from sim2real.world_model.scores import (
    block_interval,
    calibration,
    detection,
    ence,
    gaussian_crps,
    gaussian_nll,
    half_width,
    inside,
    pit_histogram,
)


def predicted(seed: int, n: int = 4000, wrong: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) truth, mean and standard deviation that says `wrong` times what it should."""
    rng = np.random.default_rng(seed)
    sigma = np.exp(rng.normal(0, 0.7, n))
    mean = rng.normal(0, 3, n)
    return mean + sigma * rng.normal(size=n), mean, wrong * sigma


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**16), wrong=st.floats(0.2, 5))
def test_they_are_those_of_other_libraries(seed: int, wrong: float) -> None:
    truth, mean, sigma = predicted(seed, 200, wrong)
    error, variance = mean - truth, sigma**2
    np.testing.assert_allclose(gaussian_crps(error, variance), scoringrules.crps_normal(truth, mean, sigma), atol=1e-12)
    np.testing.assert_allclose(gaussian_nll(error, variance), scoringrules.logs_normal(truth, mean, sigma), atol=1e-12)
    assert gaussian_nll(error, variance).mean() == pytest.approx(toolbox.nll_gaussian(mean, sigma, truth), rel=1e-9)
    assert gaussian_crps(error, variance).mean() == pytest.approx(toolbox.crps_gaussian(mean, sigma, truth), rel=1e-9)
    for level in (0.5, 0.9, 0.95):
        theirs = toolbox.get_proportion_in_interval(mean, sigma, truth, level)
        assert inside(error, variance, level).mean() == pytest.approx(theirs, abs=1e-12)


def test_crps_is_its_integral() -> None:
    for error, sigma in ((0.0, 1.0), (0.3, 0.5), (-2.0, 0.7), (4.0, 0.1)):

        def squared(x: float, error: float = error, sigma: float = sigma) -> float:
            return float((stats.norm.cdf(x, error, sigma) - (x >= 0)) ** 2)

        expected = sum(integrate.quad(squared, *ends, limit=200)[0] for ends in ((-10.0, 0.0), (0.0, 10.0)))
        assert gaussian_crps(np.array(error), np.array(sigma**2)) == pytest.approx(expected, rel=1e-5)


def test_pit_is_flat_where_the_prediction_is_true_and_shows_how_it_is_not() -> None:
    truth, mean, sigma = predicted(1)
    flat = pit_histogram(mean - truth, sigma**2)
    assert flat.sum() == pytest.approx(1)
    # 4000 draws: a share of a tenth scatters by 0.0047
    np.testing.assert_allclose(flat, 0.1, atol=0.02)
    sure = pit_histogram(mean - truth, (0.4 * sigma) ** 2)
    assert min(sure[0], sure[-1]) > 0.25  # U-shaped
    unsure = pit_histogram(mean - truth, (3 * sigma) ** 2)
    assert max(unsure[0], unsure[-1]) < 0.01
    # measured below what was predicted: in the lower bins
    assert pit_histogram(np.full(10, 2.0), np.ones(10))[0] == 1
    assert pit_histogram(np.full(10, -2.0), np.ones(10))[-1] == 1
    assert pit_histogram(np.zeros((7, 2, 3)), np.ones((7, 2, 3)), bins=4).shape == (4, 2, 3)


@pytest.mark.parametrize("wrong", [0.5, 1.0, 2.0])
def test_ence_says_how_wrong_the_spread_is(wrong: float) -> None:
    truth, mean, sigma = predicted(2, 20000, wrong)
    found = float(ence(mean - truth, sigma**2))
    # the root mean square of an error is 1 / wrong times the spread
    assert found == pytest.approx(abs(1 - 1 / wrong), abs=0.02)


def test_ence_tells_a_constant_spread_from_a_true_one() -> None:
    rng = np.random.default_rng(3)
    sigma = rng.uniform(0.2, 2, 20000)
    error = sigma * rng.normal(size=20000)
    constant = np.full_like(sigma, error.var())
    assert float(ence(error, constant)) < 0.1  # one bin is like another
    shuffled = rng.permutation(sigma)
    assert float(ence(error, shuffled**2)) > 0.3
    assert float(ence(error[:3], sigma[:3] ** 2)) >= 0  # fewer windows than bins
    both = np.stack([error, error], 1)
    np.testing.assert_allclose(ence(both, np.stack([sigma, 2 * sigma], 1) ** 2), [0.0, 0.5], atol=0.03)


def test_an_interval_over_blocks_is_wider_where_windows_are_alike() -> None:
    rng = np.random.default_rng(4)
    values = (rng.uniform(size=400) < 0.9).astype(float)

    def expected(some: np.ndarray) -> float:
        return float(2 * 1.645 * some.std() / np.sqrt(len(some)))

    low, high = block_interval(values, np.arange(400), rng)
    assert high - low == pytest.approx(expected(values), rel=0.15)
    low, high = block_interval(np.repeat(values[:40], 10), np.repeat(np.arange(40), 10), rng)
    assert high - low == pytest.approx(expected(values[:40]), rel=0.25)


def test_the_worst_channel_is_named() -> None:
    truth, mean, sigma = predicted(5)
    error = np.stack([mean - truth] * 3, 1)
    variance = np.stack([sigma, 0.5 * sigma, 1.1 * sigma], 1) ** 2
    found = calibration(error, variance, ["arm", "pole", "cart"], np.arange(4000) // 10, np.random.default_rng(0))
    assert found["worst"] == "pole"
    assert found["coverage90_by_channel"]["arm"] == pytest.approx(0.9, abs=0.02)
    assert found["coverage90_by_channel"]["pole"] == pytest.approx(2 * stats.norm.cdf(0.5 * 1.6449) - 1, abs=0.02)
    assert found["coverage"]["0.9"] == pytest.approx(np.mean(list(found["coverage90_by_channel"].values())))
    low, high = found["coverage90_interval"]
    assert low < found["coverage"]["0.9"] < high
    assert found["width"]["0.95"] / found["width"]["0.5"] == pytest.approx(half_width(0.95) / half_width(0.5))
    assert sum(found["pit"]) == pytest.approx(1)


def test_what_cannot_be_scored_is_one_error() -> None:
    rng, blocks = np.random.default_rng(0), np.zeros(3, int)
    with pytest.raises(ModelError, match=r"expected errors and variances \(windows, 2\), found \(3, 1\)"):
        calibration(np.zeros((3, 1)), np.ones((3, 1)), ["a", "b"], blocks, rng)
    with pytest.raises(ModelError, match="a predicted variance is not positive"):
        calibration(np.zeros((3, 1)), np.zeros((3, 1)), ["a"], blocks, rng)
    with pytest.raises(ModelError, match="expected errors"):
        calibration(np.zeros((0, 1)), np.ones((0, 1)), ["a"], blocks[:0], rng)


def test_detection_is_the_area_under_the_roc_curve() -> None:
    rng = np.random.default_rng(5)
    error = np.abs(rng.normal(size=400))
    assert detection(error**3, error) == 1.0
    assert detection(-error, error) == 0.0
    assert detection(np.zeros(400), error) == pytest.approx(0.5)
    guess = error + rng.normal(size=400)
    # by its definition: how often of two windows the worse one is the less certain
    large = error > np.quantile(error, 0.9)
    pairs = np.sign(guess[large][:, None] - guess[~large])
    assert detection(guess, error, 0.9) == pytest.approx((pairs.mean() + 1) / 2)
    with pytest.raises(ModelError, match="cannot be parted"):
        detection(guess, np.ones(400))
    with pytest.raises(ModelError, match=r"found \(399,\) and \(400,\)"):
        detection(guess[1:], error)
