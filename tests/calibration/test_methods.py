"""The methods of identification find the same, and say so of what each recording has of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, DeadZone, Latency
from sim2real.calibration import Posterior, diagnose, identify
from sim2real.calibration.neural import Learned
from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Episode
from sim2real.errors import LogError, ParameterError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, DELAY, DAMPING = "dynamics.payload.mass", "execution.latency.delay", "dynamics.hinge.damping"
DEAD = "execution.dead_zone.width"


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Latency(), DeadZone()]), timestep=0.005, threads=1)


def log(
    plant: Plant,
    truth: dict[str, float],
    name: str = "log",
    seconds: float = 16.0,
    seed: int = 0,
    strength: float = 4.0,
) -> Episode:
    rng = np.random.default_rng(seed)
    made = Twin(plant, truth).record(name, excite(rng, seconds, 0.02, np.array([strength]), (0.5, 1.3)), hold=0.02)
    noisy = made.observations.copy()
    noisy[:, 0] += 0.003 * rng.normal(size=len(noisy))
    return Episode(**{**made.__dict__, "observations": noisy})


def prior(plant: Plant, *names: str) -> ParameterSet:
    known = {MASS: "*U(0.4, 3)", DELAY: "=U(0, 0.06)", DAMPING: "=U(0, 0.3)", DEAD: "=U(0, 1)"}
    return ParameterSet.parse({name: known[name] for name in names}, plant.units())


def fit(plant: Plant, episodes: list[Episode], prior: ParameterSet, **settings: Any) -> Posterior:
    settings = {"tries": 8, "starts": 1, "block": 0.5, "rng": np.random.default_rng(1), **settings}
    return identify(plant, episodes, prior, channels=["position"], **settings)


@pytest.fixture(scope="module")
def found(plant: Plant) -> dict[str, Posterior]:
    recorded = [log(plant, TRUTH, seconds=10.0)]
    return {m: fit(plant, recorded, prior(plant, *TRUTH), method=m) for m in ("least_squares", "ensemble", "npe")}


TRUTH = {MASS: 0.83, DELAY: 0.023, DEAD: 0.4}


@pytest.mark.parametrize("method", ["least_squares", "ensemble", "npe"])
def test_every_method_holds_the_truth(found: dict[str, Posterior], method: str) -> None:
    posterior = found[method]
    assert posterior.evidence["method"] == method
    assert posterior.evidence["settled"]
    off = (posterior.best - np.array(list(TRUTH.values()))) / posterior.samples.std(0)
    np.testing.assert_array_less(np.abs(off), 4)
    reference = found["least_squares"].samples.std(0)
    np.testing.assert_array_less(posterior.samples.std(0), 2.5 * reference)
    np.testing.assert_array_less(0.4 * reference, posterior.samples.std(0))


def test_an_unknown_method_and_a_posterior_for_npe_are_refused(plant: Plant, found: dict[str, Posterior]) -> None:
    recorded = [log(plant, TRUTH, seconds=4.0)]
    with pytest.raises(ParameterError, match="no method 'mcmc'; available: ensemble, least_squares, npe"):
        fit(plant, recorded, prior(plant, MASS), method="mcmc")
    with pytest.raises(ParameterError, match="needs independent parameters"):
        fit(plant, recorded, found["least_squares"], method="npe")
    with pytest.raises(ParameterError, match=r"own: 'dynamics.payload.mas' is not .*did you mean"):
        fit(plant, recorded, prior(plant, MASS), own=["dynamics.payload.mas"])


def test_each_recording_may_have_a_parameter_of_its_own(plant: Plant) -> None:
    masses = {"a": 0.6, "b": 1.2, "c": 0.9}
    recorded = [
        log(plant, {MASS: m, DELAY: 0.02, DAMPING: 0.08}, name, 8.0, k) for k, (name, m) in enumerate(masses.items())
    ]
    posterior = fit(plant, recorded, prior(plant, MASS, DELAY, DAMPING), own=[MASS])
    own = posterior.evidence["of_recordings"]
    assert set(own) == {MASS}
    for name, mass in masses.items():
        assert own[MASS][name]["mean"] == pytest.approx(mass, rel=0.02)
        assert own[MASS][name]["interval90"][0] < own[MASS][name]["mean"] < own[MASS][name]["interval90"][1]
    assert posterior.values[DELAY] == pytest.approx(0.02, abs=1e-3)
    assert posterior.values[MASS] == pytest.approx(0.9, rel=0.02)
    low, high = posterior.interval(MASS)  # that of a recording at random: as wide as they differ
    assert low < 0.65
    assert high > 1.15


def test_a_recording_with_another_payload_is_named_with_the_parameter_that_differs(plant: Plant) -> None:
    truth = {DELAY: 0.02, DAMPING: 0.08}
    recorded = [log(plant, truth | {MASS: 0.6}, f"log{k}", 8.0, k) for k in range(3)]
    recorded.append(log(plant, truth | {MASS: 1.2}, "heavy", 8.0, 3))
    posterior = fit(plant, recorded, prior(plant, MASS, DELAY, DAMPING))
    (differs,) = [f for f in diagnose(posterior) if f.code == "recording-differs"]
    assert differs.subject == ("heavy", MASS)
    told = posterior.evidence["recordings_differ"]["heavy"]
    assert told["own"] == pytest.approx(1.2, rel=0.1)
    assert told["error_own"] < 0.8 * told["error"]


def test_halves_that_disagree_are_named(plant: Plant) -> None:
    truth = {MASS: 0.6, DELAY: 0.02}
    slow, fast = (log(plant, truth | {DAMPING: d}, f"day{k}", 12.0, k) for k, d in enumerate((0.05, 0.12)))
    names = (MASS, DELAY, DAMPING)
    apart = diagnose(fit(plant, [slow, fast], prior(plant, *names)))
    (disagree,) = [f for f in apart if f.code == "halves-disagree"]
    assert DAMPING in disagree.subject
    same = fit(plant, [log(plant, truth | {DAMPING: 0.08}, f"day{k}", 12.0, k) for k in range(2)], prior(plant, *names))
    assert same.evidence["halves"].keys() == set(names)
    assert max(same.evidence["halves"].values()) < 3


def test_unknowns_spread_vectors_and_fold_draws() -> None:
    unknowns = Unknowns(("a", "b"), ("b",), ("x", "y"))
    assert unknowns.names == ("a", "b of x", "b of y")
    assert unknowns.source.tolist() == [0, 1, 1]
    assert unknowns.columns(["b", "a"], "y").tolist() == [2, 0]
    tied = unknowns.precision(np.array([[2.0, 1.0], [1.0, 3.0]]))
    np.testing.assert_array_equal(tied, np.diag([2.0, 3.0, 3.0]))
    draws = np.array([[1.0, 10.0, 20.0]] * 1000)
    folded = unknowns.fold(draws, np.random.default_rng(0))
    assert set(folded[:, 1]) == {10.0, 20.0}
    assert folded[:, 1].mean() == pytest.approx(15, abs=0.6)


def test_whole_recordings_say_more_than_short_windows_where_the_model_is_right(plant: Plant) -> None:
    truth = {MASS: 0.83, DELAY: 0.023, DAMPING: 0.25}
    recorded, names = [log(plant, truth, strength=2.0)], tuple(truth)
    short = fit(plant, recorded, prior(plant, *names))
    whole = fit(plant, recorded, prior(plant, *names), window=np.inf)
    assert whole.evidence["windows"] == 1
    assert whole.evidence["window"] == pytest.approx(16, abs=0.1)
    assert whole.evidence["blocks"] == pytest.approx(32, abs=1)
    assert (whole.samples.std(0) < short.samples.std(0)).all()
    off = np.abs(whole.best - np.array(list(truth.values()))) / whole.samples.std(0)
    np.testing.assert_array_less(off, 4)
    assert not {"rough", "diverging-motion"} & {f.code for f in diagnose(short) + diagnose(whole)}


def test_motions_that_are_replayed_for_too_long_are_told(plant: Plant) -> None:
    """At full torque the pendulum whirls: after sixteen seconds the smallest change decides which way it goes."""
    truth = {MASS: 0.83, DELAY: 0.023, DAMPING: 0.1}
    whole = fit(plant, [log(plant, truth, seed=2)], prior(plant, *truth), window=np.inf)
    assert "diverging-motion" in {f.code for f in diagnose(whole)}


def test_whole_recordings_cannot_have_excluded_stretches(plant: Plant) -> None:
    recorded = Episode(**{**log(plant, TRUTH, seconds=4.0).__dict__, "excluded": ((1.0, 1.5),)})
    with pytest.raises(LogError, match="log has excluded stretches, so it cannot be replayed as a whole"):
        fit(plant, [recorded], prior(plant, MASS), window=np.inf)


def test_a_learned_posterior_repeats_by_seed() -> None:
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (300, 2))
    learned = Learned.on(theta, theta + 0.1 * rng.normal(size=theta.shape), seed=3)
    one, same, other = (learned.sample(np.zeros(2), 200, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.abs(one.mean(0)).max() < 0.1


def test_what_npe_learns_is_as_unsure_of_simulations_that_it_has_not_seen() -> None:
    """300 simulations are few for 45 terms of a regression: its own residuals are too small to learn a spread from."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(-1, 1, (450, 8))
    x = theta + 0.2 * rng.normal(size=theta.shape)
    learned = Learned.on(theta[:300], x[:300], 0)
    ranks = np.stack([(learned.sample(x[k], 400, k) < theta[k]).mean(0) for k in range(300, 450)])
    assert 0.86 < (np.abs(ranks - 0.5) <= 0.45).mean() < 0.95
