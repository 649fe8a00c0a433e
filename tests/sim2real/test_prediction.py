"""Predictions and their recalibration against closed forms."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from sim2real.errors import NonFiniteError
from sim2real.prediction import Prediction, Recalibration, _quantile

HORIZON = torch.tensor([0.1, 0.5])
SCALE = np.array([[0.5, 2.0], [1.0, 3.0]])
FLOOR = np.array([[0.05, 0.01], [0.1, 0.1]])


def gaussian(rng: np.random.Generator, windows: int = 20000, heavy: bool = False) -> tuple[Prediction, torch.Tensor]:
    """Predictions (W, 2, 2) whose errors have the variance SCALE² * variance + FLOOR² (Student's t where heavy)."""
    mean = rng.normal(size=(windows, 2, 2))
    variance = np.exp(rng.normal(0, 1.2, mean.shape)) * [0.01, 1.0]
    z = rng.normal(size=mean.shape)
    if heavy:
        z = rng.standard_t(3, size=mean.shape) / np.sqrt(3)
    truth = mean + z * np.sqrt(SCALE**2 * variance + FLOOR**2)
    split = rng.uniform(0.2, 0.8, mean.shape)
    parts = (torch.as_tensor(x) for x in (mean, split * variance, (1 - split) * variance))
    return Prediction(*parts, HORIZON), torch.as_tensor(truth)


def covered(prediction: Prediction, truth: torch.Tensor, level: float = 0.9) -> np.ndarray:
    low, high = prediction.interval(level)
    return ((low <= truth) & (truth <= high)).double().mean(0).numpy()


def test_members_add_up_by_the_law_of_total_variance() -> None:
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(4, 1, 2, 1)), rng.uniform(0.1, 2, (4, 1, 2, 1))
    found = Prediction.from_members(torch.as_tensor(means), torch.as_tensor(deviations**2), HORIZON)
    # the mixture itself: as many draws from each member
    draws = (means + deviations * rng.normal(size=(200000, 4, 1, 2, 1))).reshape(-1, 1, 2, 1)
    np.testing.assert_allclose(found.mean, draws.mean(0), atol=0.01)
    np.testing.assert_allclose(found.variance, draws.var(0), rtol=0.02)
    assert torch.equal(found.variance, found.aleatoric + found.epistemic)
    sure = Prediction.from_members(torch.as_tensor(means[:1]).repeat(4, 1, 1, 1), torch.ones(4, 1, 2, 1), HORIZON)
    assert sure.epistemic.abs().max() < 1e-15


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_intervals_hold_their_share_of_gaussian_samples(level: float) -> None:
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.1, 2, (40000, 2, 1))
    truth = torch.as_tensor(3 + rng.normal(size=spread.shape) * spread)
    parts = (torch.as_tensor(x) for x in (np.full(spread.shape, 3.0), 0.3 * spread**2, 0.7 * spread**2))
    np.testing.assert_allclose(covered(Prediction(*parts, HORIZON), truth, level), level, atol=0.01)


def test_concatenated_predictions_keep_their_rows() -> None:
    whole, _ = gaussian(np.random.default_rng(2), windows=10)
    rows = (slice(3), slice(3, 10))
    joined = Prediction.concatenate(
        [Prediction(whole.mean[r], whole.aleatoric[r], whole.epistemic[r], HORIZON) for r in rows]
    )
    assert all(
        torch.equal(getattr(joined, p), getattr(whole, p)) for p in ("mean", "aleatoric", "epistemic", "horizon")
    )


def test_recalibration_finds_the_scale_and_the_floor() -> None:
    prediction, truth = gaussian(np.random.default_rng(3))
    found = Recalibration.fit(prediction, truth)
    np.testing.assert_allclose(found.scale, SCALE, rtol=0.08)
    np.testing.assert_allclose(found.floor[:, 0], FLOOR[:, 0], rtol=0.08)
    assert (found.floor[:, 1] < 0.3).all()  # beside errors of 2 and more a small floor cannot be told from none
    assert found.factor == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_recalibrated_intervals_cover_new_errors(heavy: bool) -> None:
    rng = np.random.default_rng(4)
    found = Recalibration.fit(*gaussian(rng, heavy=heavy))
    prediction, truth = gaussian(rng, heavy=heavy)
    after = covered(found.apply(prediction), truth)
    assert after.mean() == pytest.approx(0.9, abs=0.01)
    np.testing.assert_allclose(after, 0.9, atol=0.03)
    assert np.abs(covered(prediction, truth) - 0.9).max() > 0.1  # it was needed


def test_apply_scales_both_kinds_and_adds_the_floor_to_one() -> None:
    prediction, _ = gaussian(np.random.default_rng(5), windows=3)
    found = Recalibration(HORIZON.numpy(), SCALE, FLOOR, factor=2.0).apply(prediction)
    assert torch.equal(found.mean, prediction.mean)
    np.testing.assert_allclose(found.epistemic, 4 * SCALE**2 * prediction.epistemic.numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.aleatoric, 4 * (SCALE**2 * prediction.aleatoric.numpy() + FLOOR**2), rtol=1e-12)


def test_a_predictor_keeps_its_own_doubt_where_held_out_errors_say_nothing_of_it() -> None:
    rng = np.random.default_rng(0)
    mean = torch.zeros(5000, 2, 2, dtype=torch.float64)
    spread = torch.as_tensor(0.01 * rng.lognormal(sigma=0.7, size=mean.shape))
    truth = torch.as_tensor(0.1 * rng.normal(size=mean.shape))  # of the same size, but not where the spread is large
    found = Recalibration.fit(Prediction(mean, spread, torch.zeros_like(mean), HORIZON), truth)
    lost = Prediction(mean, torch.zeros_like(mean), torch.full_like(mean, 100.0), HORIZON)
    assert (found.apply(lost).variance.sqrt() > 3.0).all()  # said 10, where errors of 0.1 went with 0.1


def test_between_horizons_it_is_interpolated() -> None:
    prediction, _ = gaussian(np.random.default_rng(5), windows=3)
    found = Recalibration(HORIZON.numpy(), SCALE, FLOOR)
    between = replace(prediction, horizon=torch.tensor([0.2, 9.0]))
    at = np.stack([0.75 * SCALE[0] + 0.25 * SCALE[1], SCALE[1]])
    floor = np.stack([0.75 * FLOOR[0] + 0.25 * FLOOR[1], FLOOR[1]])
    expected = at**2 * prediction.variance.numpy() + floor**2
    np.testing.assert_allclose(found.apply(between).variance, expected, rtol=1e-6)


def test_a_predictor_without_spread_is_given_the_errors() -> None:
    mean = torch.zeros(5000, 2, 2, dtype=torch.float64)
    nothing = Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), HORIZON)
    truth = torch.as_tensor(np.random.default_rng(6).normal(size=mean.shape) * FLOOR)
    found = Recalibration.fit(nothing, truth)
    np.testing.assert_allclose(found.factor * found.floor, FLOOR, rtol=0.06)
    np.testing.assert_allclose(covered(found.apply(nothing), truth), 0.9, atol=0.02)


def test_recalibration_survives_json() -> None:
    found = Recalibration(HORIZON.numpy(), SCALE / 3, FLOOR / 7, factor=float(stats.norm.ppf(0.95)))
    again = Recalibration.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_array_equal(again.horizon, found.horizon)
    assert again.scale.tobytes() == found.scale.tobytes()
    assert again.floor.tobytes() == found.floor.tobytes()
    assert again.factor == found.factor


@pytest.mark.parametrize("part", ["mean", "aleatoric", "epistemic"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(part: str, value: float) -> None:
    prediction, _ = gaussian(np.random.default_rng(7), windows=3)
    assert prediction.require_finite("a model") is prediction
    getattr(prediction, part)[1, 0, 1] = value
    with pytest.raises(NonFiniteError, match=f"the world model predicted a {part} that is not finite"):
        prediction.require_finite("the world model")


def test_a_long_recording_does_not_drown_a_short_one() -> None:
    """Windows of two recordings, one ten times as long and three times as well predicted."""
    rng = np.random.default_rng(0)
    spread = np.repeat([1.0, 3.0], [3000, 300])
    truth = torch.as_tensor(spread[:, None, None] * rng.normal(size=(3300, 1, 1)))
    nothing = torch.zeros_like(truth)
    guess = Prediction(nothing, nothing + 1, nothing, torch.tensor([0.1]))

    def held(weight: np.ndarray | None) -> float:
        low, high = Recalibration.fit(guess, truth, weight).apply(guess).interval(0.9)
        inside = ((low < truth) & (truth < high)).numpy().ravel()
        return float(0.5 * (inside[:3000].mean() + inside[3000:].mean()))

    assert held(None) < 0.85
    assert held(1 / np.repeat([3000.0, 300.0], [3000, 300])) == pytest.approx(0.9, abs=0.01)


def test_alike_weights_are_no_weights() -> None:
    rng = np.random.default_rng(1)
    truth = torch.as_tensor(rng.normal(size=(200, 2, 1)))
    nothing = torch.zeros_like(truth)
    guess = Prediction(nothing, nothing + 0.3, nothing, torch.tensor([0.1, 0.2]))
    one, other = Recalibration.fit(guess, truth), Recalibration.fit(guess, truth, np.full(200, 7.0))
    assert other.factor == pytest.approx(one.factor)
    z = np.abs(truth.numpy()) / np.sqrt(one.scale**2 * 0.3 + one.floor**2)
    assert one.factor == pytest.approx(np.quantile(z, 0.9) / 1.6448536, rel=1e-6)


def test_a_heavy_value_counts_as_much_at_either_end() -> None:
    light, weight = np.linspace(1.0, 2.0, 101), np.full(101, 0.5 / 101)
    low = _quantile(np.concatenate([[0.0], light]), np.concatenate([[0.5], weight]), 0.9)
    high = _quantile(np.concatenate([[3.0], -light]), np.concatenate([[0.5], weight]), 0.1)
    assert low == pytest.approx(1.8, abs=0.15)
    assert high == pytest.approx(-1.8, abs=0.15)
