"""Findings: what a posterior cannot know."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Gain, Latency
from sim2real.calibration import Check, Posterior, check, diagnose, identify
from sim2real.calibration.check import simulate_episode
from sim2real.episodes import Episode
from sim2real.errors import LogError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

MASS, GAIN, DELAY = "dynamics.payload.mass", "execution.gain.gain", "execution.latency.delay"


def posterior(samples: Any, prior: dict[str, str] | None = None, **evidence: Any) -> Posterior:
    units = {MASS: "kg", GAIN: "1", DELAY: "s"}
    parameters = ParameterSet.parse(prior or {MASS: "=U(0, 2)", GAIN: "=U(0, 2)"}, units)
    samples = np.asarray(samples, float)
    return Posterior(parameters, samples.mean(0), samples, np.array([0.01]), evidence)


def codes(found: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.code, f.subject) for f in found]


def test_nothing_is_said_of_a_good_posterior() -> None:
    samples = np.random.default_rng(0).normal(1.0, 0.05, (400, 2))
    evidence = {
        "settled": True, "at_bound": [], "window": 0.5, "residual_correlation": {"position": 0.004},
        "recordings": {"a": 1.0, "b": 1.1, "c": 2.0},
    }  # fmt: skip
    assert diagnose(posterior(samples, **evidence)) == []


@pytest.mark.parametrize(("sign", "word"), [(1, "ratio"), (-1, "product")])
def test_two_parameters_of_which_a_ratio_is_known(sign: int, word: str) -> None:
    rng = np.random.default_rng(0)
    mass = np.exp(rng.normal(0, 0.1, 400))
    gain = mass**sign * np.exp(rng.normal(0, 0.004, 400))
    (found,) = diagnose(posterior(np.stack([mass, gain], 1)))
    assert (found.code, found.subject) == ("only-together", (MASS, GAIN))
    assert f"their {word} to 0.4%, each alone to 10." in found.what
    assert "fix one of them" in str(found)


def test_parameters_that_all_hang_together_are_one_finding() -> None:
    rng = np.random.default_rng(0)
    common = 1 + 0.1 * rng.normal(size=400)
    samples = np.stack([common + 0.005 * rng.normal(size=400) for _ in range(3)], 1)
    found = diagnose(posterior(samples, {MASS: "=U(0, 2)", GAIN: "=U(0, 2)", DELAY: "=U(0, 2)"}))
    assert codes(found) == [("only-together", (MASS, GAIN, DELAY))]
    assert f"{MASS}, {GAIN} and {DELAY} are known only together: 99." in found[0].what
    assert found[0].what.endswith("kg")
    low, high = np.quantile(samples[:, 0], [0.05, 0.95])
    assert f"from {low:.3g} to {high:.3g} kg" in found[0].what


def test_each_kind_of_evidence_has_its_finding() -> None:
    rng = np.random.default_rng(0)
    samples = np.stack([rng.normal(1, 0.01, 400), rng.uniform(0.1, 1.9, 400)], 1)
    evidence = {
        "settled": False, "at_bound": [MASS], "window": 0.5, "residual_correlation": {"position": 0.2},
        "recordings": {"a": 1.0, "b": 1.1, "c": 2.9},
    }  # fmt: skip
    assert codes(diagnose(posterior(samples, **evidence))) == [
        ("not-settled", ()),
        ("at-bound", (MASS,)),
        ("not-informed", (GAIN,)),
        ("correlated-residuals", ("position",)),
        ("unexplained-recording", ("c",)),
    ]


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(RobotModel("pendulum"), Chain([Latency(), Gain()]), timestep=0.005, threads=1)


def logs(plant: Plant, masses: list[float], seconds: float = 8.0) -> list[Episode]:
    rng = np.random.default_rng(0)
    out = []
    for k, mass in enumerate(masses):
        twin = Twin(plant, {MASS: mass, DELAY: 0.02})
        out.append(twin.record(f"log{k}", excite(rng, seconds, 0.02, np.array([4.0]), (0.5, 1.3)), hold=0.02))
    return out


def prior(plant: Plant, *names: str) -> ParameterSet:
    known = {MASS: "*U(0.4, 3)", DELAY: "=U(0, 0.06)", "dynamics.world.gravity": "*U(0.5, 2)", GAIN: "=U(0.5, 2)"}
    return ParameterSet.parse({name: known[name] for name in names}, plant.units())


def test_a_recording_with_another_payload_stands_out(plant: Plant) -> None:
    found = identify(
        plant, logs(plant, [0.6, 0.6, 1.2, 0.6], 4.0), prior(plant, MASS, DELAY), channels=["position"], tries=4,
        starts=1, samples=100, block=0.5, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert ("unexplained-recording", ("log2",)) in codes(diagnose(found))
    assert found.values[MASS] == pytest.approx(0.6, rel=0.05)


def fit(plant: Plant, episodes: Any, prior: ParameterSet, rng: np.random.Generator, **settings: Any) -> Posterior:
    return identify(plant, episodes, prior, channels=["position"], tries=0, starts=1, samples=200, rng=rng, **settings)


def test_intervals_hold_the_truths_of_a_recipe(plant: Plant) -> None:
    lines: list[str] = []
    result = check(
        plant, logs(plant, [0.6], 6.0), prior(plant, MASS, DELAY), partial(fit, block=0.5), channels=["position"],
        noise=np.array([0.003]), truths=8, progress=lines.append,
    )  # fmt: skip
    assert result.truth.shape == result.ranks.shape == (8, 2)
    assert len(lines) == 8
    assert result.settled.all()
    assert result.coverage()[0] >= 0.75
    np.testing.assert_allclose(result.best, result.truth, rtol=0.15, atol=2e-3)
    document = result.to_json()
    assert set(document["parameters"]) == {MASS, DELAY}
    assert all(row["uniform_p"] > 0.001 for row in document["parameters"].values())


def no_fit(plant: Plant, episodes: Any, prior: ParameterSet, rng: np.random.Generator) -> Posterior:
    raise AssertionError("what was identified before is identified again")


def test_a_check_goes_on_where_it_was(plant: Plant, tmp_path: Path) -> None:
    recordings, lines = logs(plant, [0.6], 3.0), []

    def go(identify: Any, truths: int, noise: float = 0.003) -> Check:
        return check(
            plant, recordings, prior(plant, MASS), identify, channels=["position"], noise=np.array([noise]),
            truths=truths, folder=tmp_path, progress=lines.append,
        )  # fmt: skip

    first = go(partial(fit, block=0.5), 2)
    again = go(no_fit, 2)
    np.testing.assert_array_equal(again.ranks, first.ranks)
    assert again.settled.dtype == bool
    assert "2 of 2 truths were identified before" in lines
    more = go(partial(fit, block=0.5), 3)
    np.testing.assert_array_equal(more.truth[:2], first.truth)
    assert len(more.truth) == 3
    with pytest.raises(LogError, match=r"truth-0000.json is of another check \(noise differs\)"):
        go(no_fit, 2, noise=0.01)


def test_a_check_sees_intervals_that_are_too_narrow_and_ranks_that_lean() -> None:
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.uniform(size=60), np.clip(rng.normal(0.5, 1.0, 60), 0, 1), rng.uniform(0.5, 1, 60)], 1)
    names, zeros = ("dynamics.a.b", "dynamics.c.d", "dynamics.e.f"), np.zeros((60, 3))
    result = Check(names, zeros, zeros, ranks, np.ones(60, bool), np.ones(60))
    uniform = result.uniformity()
    assert uniform["dynamics.a.b"] > 0.05
    assert max(uniform["dynamics.c.d"], uniform["dynamics.e.f"]) < 1e-6
    assert result.covered()[:, 1].mean() < 0.5
    low, high = result.coverage()[1:]
    assert low < result.coverage()[0] < high


def test_simulated_noise_is_as_wide_and_as_correlated_as_asked(plant: Plant) -> None:
    (log,) = logs(plant, [0.6], 60.0)
    still = plant.nominal() | {GAIN: 0.0, "dynamics.world.gravity": 0.0}
    for correlation, expected in ((0.0, 0.0), (0.1, np.exp(-0.01 / 0.1))):
        made = simulate_episode(
            plant, log, still, ["position"], np.array([0.02]), np.random.default_rng(0), correlation
        )
        error = made.observations[:, 0] - log.observations[0, 0]
        assert error.std() == pytest.approx(0.02, rel=0.1)
        assert np.corrcoef(error[1:], error[:-1])[0, 1] == pytest.approx(expected, abs=0.05)
