"""Several predictors as one: weights by precision, disagreement as epistemic variance, nothing hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sim2real.combination import CombinedPredictor, Range, recalibrate
from sim2real.episodes import Channels, Episode
from sim2real.errors import ModelError, NonFiniteError
from sim2real.estimation import Observation
from sim2real.evaluation import HORIZONS, Predictor, Questions, SimulatorPredictor, persistence
from sim2real.plant import Plant
from sim2real.prediction import Prediction
from sim2real.randomization import RobotModel


def saying(mean: float, variance: float) -> Prediction:
    full = torch.full((3, 2, 1), 1.0, dtype=torch.float64)
    return Prediction(mean * full, 0.5 * variance * full, 0.5 * variance * full, torch.tensor([0.1, 0.2]))


def recording(name: str, seed: int) -> Episode:
    """A random walk of position."""
    t = 0.01 * np.arange(2001)
    q = np.cumsum(0.02 * np.random.default_rng(seed).normal(size=len(t)))
    return Episode(
        name=name,
        observed_at=t,
        observations=q[:, None],
        commanded_at=t[:-1],
        actions=np.zeros((len(t) - 1, 1)),
        action_source="commanded",
        channels=Channels((("position", "rad"),), (("torque", "N·m"),)),
    )


def with_noise(spread: float, seed: int) -> Predictor:
    """A predictor that knows the truth up to noise, and says nothing of that noise."""

    def predict(questions: Questions) -> Prediction:
        noise = spread * np.random.default_rng(seed).normal(size=questions.truth.shape)
        mean = torch.as_tensor(questions.truth + noise)
        return Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), torch.tensor(HORIZONS))

    return predict


def test_alike_predictions_are_kept() -> None:
    found = Prediction.combined([saying(1.0, 0.04), saying(1.0, 0.04)])
    assert found.mean == pytest.approx(torch.full((3, 2, 1), 1.0))
    assert found.variance == pytest.approx(torch.full((3, 2, 1), 0.04))


def test_weights_are_squares_of_precisions_and_disagreement_is_epistemic() -> None:
    found = Prediction.combined([saying(0.0, 0.1), saying(1.0, 0.2)])
    assert float(found.mean[0, 0, 0]) == pytest.approx(1 / 5)
    # the moments of the mixture: means of the variances, and the variance of the means
    assert float(found.aleatoric[0, 0, 0]) == pytest.approx(0.5 * (0.8 * 0.1 + 0.2 * 0.2))
    disagreement = 0.8 * 0.2**2 + 0.2 * 0.8**2
    assert float(found.epistemic[0, 0, 0]) == pytest.approx(0.5 * (0.8 * 0.1 + 0.2 * 0.2) + disagreement)


def test_who_contradicts_the_reference_by_too_much_counts_less() -> None:
    near, far = (Prediction.combined([saying(0.0, 0.1), saying(m, 0.2)], reference=0) for m in (1.0, 100.0))
    # 1 / 0.1² beside 1 / 0.2² / (1 + 1² / (0.1 + 0.2))
    doubted = 25 / (1 + 1 / 0.3)
    assert float(near.mean[0, 0, 0]) == pytest.approx(doubted / (100 + doubted))
    assert float(far.mean[0, 0, 0]) == pytest.approx(0.0, abs=1e-3 * 100)
    agreed = [Prediction.combined([saying(1.0, 0.1), saying(1.0, 0.2)], reference=r) for r in (None, 0, 1)]
    assert torch.equal(agreed[0].variance, agreed[1].variance)
    assert torch.equal(agreed[0].variance, agreed[2].variance)


def test_the_simulator_is_the_reference() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.01, threads=1)
    values = {"dynamics.payload.mass": 0.5}
    simulator = SimulatorPredictor(plant, values, {}, np.zeros((2, 2)), Observation(0.1, 50.0), ["position"])
    asked = Questions.of(recording("asked", 1), ["position"])
    truth = simulator(asked).mean.numpy()
    known = [replace(asked, truth=truth + 0.1 * np.random.default_rng(0).normal(size=truth.shape))]

    def stray(questions: Questions) -> Prediction:
        mean = simulator(questions).mean + away
        return Prediction(mean, torch.zeros_like(mean), torch.zeros_like(mean), questions.horizon)

    away = 0.0
    both = CombinedPredictor.fit([stray, simulator], known)
    away = 10.0
    assert (both(asked).mean - simulator(asked).mean).abs().max() < 0.1


@pytest.mark.parametrize("what", ["commands", "motion", "place", "turn", "nothing"])
def test_models_of_recordings_count_less_outside_what_was_recorded(what: str) -> None:
    known = recording("known", 1)
    known = replace(known, actions=np.sin(10 * known.commanded_at)[:, None])
    asked = Questions.of(known, ["position"])
    inside = Range.of([asked])
    np.testing.assert_array_equal(inside.doubt(asked, asked.truth), 1.0)
    new, going = asked, asked.truth.copy()
    if what == "commands":
        new = replace(asked, episode=replace(known, actions=1.5 * known.actions))
    elif what == "motion":
        going += 3 * (going - asked.now[:, None])
    elif what == "place":
        new, going = replace(asked, now=asked.now + 1.0), going + 1.0
    elif what == "turn":
        new, going = replace(asked, now=asked.now + 2 * np.pi), going + 2 * np.pi
    doubt = inside.doubt(new, going)
    assert doubt.shape == (len(asked.now), len(asked.horizons), 1)
    assert (doubt >= 1).all()
    assert (doubt.max() > 1.2) == (what not in ("turn", "nothing"))


def test_ranges_are_known_between_horizons() -> None:
    asked = Questions.of(recording("known", 1), ["position"])
    inside = Range.of([asked])
    between = Questions.of(asked.episode, ["position"], horizons=(0.05, 0.15, 0.3, 0.7, 0.9))
    assert np.median(inside.doubt(between, between.truth)) == 1.0
    assert np.median(inside.doubt(between, between.truth + 9 * inside.most[-1, -1])) > 1.2


def test_half_the_weight_is_lost_a_tenth_of_the_range_outside_it() -> None:
    asked = Questions.of(recording("known", 1), ["position"])
    anything = np.full((len(asked.horizons), 3), 1e12)
    inside = Range(np.array(asked.horizons), -anything, anything, np.array([-1.0]), np.array([1.0]))
    doubt = torch.as_tensor(inside.doubt(asked, np.full(asked.truth.shape, 1.2)))
    weight = saying(0.0, 1.0).widened(doubt[:3, :2]).variance ** -2
    np.testing.assert_allclose(weight, 0.5, rtol=2e-3)


def test_who_knows_nothing_does_not_matter_and_who_is_certain_decides() -> None:
    assert float(Prediction.combined([saying(0.0, 0.01), saying(50.0, 1e6)]).mean[0, 0, 0]) == pytest.approx(
        0, abs=1e-9
    )
    certain = Prediction.combined([saying(0.0, 1.0), saying(2.0, 0.0)])
    assert torch.isfinite(certain.variance).all()
    assert float(certain.mean[0, 0, 0]) == pytest.approx(2.0)


def test_held_out_recordings_decide_who_is_believed() -> None:
    held = [Questions.of(recording("held out", 1), ["position"])]
    new = Questions.of(recording("new", 2), ["position"])
    good, poor = with_noise(0.02, 3), with_noise(0.2, 4)
    combined = CombinedPredictor.fit([good, poor], held)(new)
    error = np.sqrt(np.mean((combined.mean.numpy() - new.truth) ** 2))
    alone = np.sqrt(np.mean((good(new).mean.numpy() - new.truth) ** 2))
    assert error == pytest.approx(alone, rel=0.05)
    inside = np.abs(combined.mean.numpy() - new.truth) < 1.645 * combined.variance.sqrt().numpy()
    assert 0.87 < inside.mean() < 0.99  # the variances of a mixture are cautious


def test_weights_may_come_of_another_recalibration_than_variances() -> None:
    said = [saying(0.0, 0.3), saying(1.0, 0.3)]
    found = Prediction.combined(said, precise=[saying(0.0, 0.1), saying(1.0, 0.2)])
    assert float(found.mean[0, 0, 0]) == pytest.approx(1 / 5)
    assert float(found.variance[0, 0, 0]) == pytest.approx(0.3 + 0.8 * 0.2**2 + 0.2 * 0.8**2)


def test_a_simulator_is_as_sure_as_it_is_right_on_what_it_was_identified_on_too() -> None:
    plant = Plant(RobotModel("pendulum"), timestep=0.01, threads=1)
    values = {"dynamics.payload.mass": 0.5}
    simulator = SimulatorPredictor(plant, values, {}, np.zeros((2, 2)), Observation(0.1, 50.0), ["position"])
    held, train = ([Questions.of(recording(name, k), ["position"])] for k, name in enumerate(("held", "train")))
    both = CombinedPredictor.fit([simulator, persistence], held, train)
    (_, weighs, says), (_, one, same) = both.parts
    for found, expected in (
        (weighs, recalibrate(simulator, held)),
        (says, recalibrate(simulator, [*held, *train])),
        (one, recalibrate(persistence, held)),
        (same, one),
    ):
        assert found.factor == expected.factor
        assert (found.floor == expected.floor).all()
    assert says.factor != weighs.factor
    answer = simulator(held[0])
    nothing = CombinedPredictor(((simulator, weighs, says),))(held[0])
    assert torch.equal(nothing.variance, says.apply(answer).variance.double())


def test_what_is_not_finite_is_said_by_number() -> None:
    broken = saying(float("nan"), 1.0)
    with pytest.raises(NonFiniteError, match="predictor 2 of 2"):
        Prediction.combined([saying(0.0, 1.0), broken])


def test_nothing_to_combine_is_refused() -> None:
    with pytest.raises(ModelError, match="1 predictors, 0 recordings"):
        CombinedPredictor.fit([with_noise(0.1, 0)], [])
