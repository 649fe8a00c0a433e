"""Identification against least squares on a linear plant, its coverage, and what it must not look at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sim2real.adapters import Chain
from sim2real.calibration import Posterior, identify
from sim2real.calibration.spread import CORRELATED, into_bounds
from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError, ModelError, ParameterError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.twin import Twin, excite

Array = NDArray[np.float64]

# A weight of 2 kg on a vertical rail: its position is linear in the gear of its motor and in gravity.
RAIL = """
<mujoco>
  <option gravity="0 0 -0.1"/>
  <worldbody>
    <body name="weight">
      <inertial pos="0 0 0" mass="2" diaginertia="1 1 1"/>
      <joint name="rail" type="slide" axis="0 0 1"/>
    </body>
  </worldbody>
  <actuator><motor name="drive" joint="rail"/></actuator>
</mujoco>
"""
MASS, GEAR, GRAVITY = 2.0, "dynamics.drive.gear", "dynamics.world.gravity"
# A power of two, so that samples, substeps and windows of 16 samples fall on one another exactly.
DT = 1 / 32
SAMPLES = 16
CHANNELS = Channels((("position", "m"),), (("force", "N"),))
LINEAR: dict[str, Any] = {
    "channels": ["position"],
    "window": (SAMPLES - 1) * DT,
    "stride": SAMPLES * DT,
    "block": SAMPLES * DT,
    "tries": 0,
    "starts": 1,
    "robust": 100.0,  # as good as squares
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RobotModel:
    path = tmp_path_factory.mktemp("robot") / "rail.xml"
    path.write_text(RAIL)
    return RobotModel(path)


@pytest.fixture(scope="module")
def plant(model: RobotModel) -> Plant:
    return Plant(model, timestep=DT, threads=1)


def moved(acceleration: Array) -> Array:
    """Positions (K + 1, ...) from rest under accelerations (K, ...), by semi-implicit Euler."""
    velocity = DT * np.cumsum(acceleration, 0)
    return np.concatenate([np.zeros_like(velocity[:1]), DT * np.cumsum(velocity, 0)])


def recording(
    rng: np.random.Generator, seconds: float, gear: float = 1.3, gravity: float = 0.1, noise: Array | float = 0.0
) -> Episode:
    """What the weight does under forces that change every eighth of a second; `noise` as (T + 1,) or a deviation."""
    steps = round(seconds / DT)
    force = np.repeat(rng.normal(size=(steps // 4 + 1, 1)), 4, 0)[:steps]
    position = moved(gear * force / MASS - gravity)
    error = rng.normal(0, noise, steps + 1) if np.isscalar(noise) else np.asarray(noise)
    t = DT * np.arange(steps + 1)
    return Episode("rail", t, position + error[:, None], t[:-1], force, "commanded", CHANNELS)


def least_squares(episode: Episode) -> tuple[Array, Array]:
    """Solve for gear and gravity and for a start in every window: values (2,), inverse normal matrix (2, 2)."""
    windows = (len(episode) + 1) // SAMPLES
    rows, target = [], []
    for w in range(windows):
        first = w * SAMPLES
        force = episode.actions[first : first + SAMPLES - 1, 0]
        block = np.zeros((SAMPLES, 2 + 2 * windows))
        block[:, 0], block[:, 1] = moved(force / MASS), moved(-np.ones(SAMPLES - 1))
        block[:, 2 + 2 * w], block[:, 3 + 2 * w] = 1.0, DT * np.arange(SAMPLES)
        rows.append(block)
        target.append(episode.observations[first : first + SAMPLES, 0])
    matrix = np.concatenate(rows)
    normal = matrix.T @ matrix
    return np.linalg.solve(normal, matrix.T @ np.concatenate(target))[:2], np.linalg.inv(normal)[:2, :2]


BOTH = ParameterSet.parse({GEAR: "=U(0.2, 3)", GRAVITY: "=U(-1, 1) m/s²"})
ONE = ParameterSet.parse({GEAR: "=U(0.2, 3)"})


def test_estimate_and_spread_are_those_of_least_squares(plant: Plant) -> None:
    sigma = 0.01
    episode = recording(np.random.default_rng(1), seconds=40, gravity=0.2, noise=sigma)
    expected, inverse = least_squares(episode)
    posterior = identify(plant, [episode], BOTH, **LINEAR, samples=2000, rng=np.random.default_rng(0))
    deviation = sigma * np.sqrt(np.diag(inverse))
    assert np.abs(posterior.best - expected).max() < 0.02 * deviation.min()
    np.testing.assert_allclose(posterior.noise, sigma, rtol=0.1)
    np.testing.assert_allclose(posterior.samples.std(0), deviation, rtol=0.25)
    correlation = inverse[0, 1] / np.sqrt(inverse[0, 0] * inverse[1, 1])
    assert abs(np.corrcoef(posterior.samples.T)[0, 1] - correlation) < 0.25


def test_a_normal_prior_pulls_by_its_precision(plant: Plant) -> None:
    episode = recording(np.random.default_rng(2), seconds=20, gravity=0.2, noise=0.01)
    estimate, inverse = least_squares(episode)
    width = 0.5 * 0.01 * np.sqrt(np.diag(inverse))  # twice as sure as the data are
    center = estimate + width * [1.0, -1.0]
    prior = ParameterSet.parse({GEAR: f"=N({center[0]}, {width[0]})", GRAVITY: f"=N({center[1]}, {width[1]}) m/s²"})
    posterior = identify(plant, [episode], prior, **LINEAR, samples=2000, rng=np.random.default_rng(0))
    data, pull = np.linalg.inv(inverse) / posterior.noise[0] ** 2, np.diag(width**-2.0)
    expected = np.linalg.solve(data + pull, data @ estimate + pull @ center)
    assert (np.abs(expected - estimate) > 0.2 * width).all()
    np.testing.assert_allclose(posterior.best, expected, atol=0.02 * width.min())
    deviation = np.sqrt(np.diag(np.linalg.inv(data + pull)))
    np.testing.assert_allclose(posterior.samples.std(0), deviation, rtol=0.2)


def test_too_few_blocks_to_resample_give_the_cautious_normal(plant: Plant) -> None:
    episode = recording(np.random.default_rng(3), seconds=1.5, noise=0.001)
    _, inverse = least_squares(episode)
    posterior = identify(plant, [episode], BOTH, **LINEAR, samples=4000, rng=np.random.default_rng(0))
    assert posterior.evidence["blocks"] == 3
    independent = posterior.evidence["windows"] * (SAMPLES - 1) * DT / CORRELATED
    share = independent / (posterior.evidence["windows"] * SAMPLES)
    expected = posterior.noise[0] ** 2 * inverse / share
    np.testing.assert_allclose(np.cov(posterior.samples.T), expected, rtol=0.1)


@pytest.mark.parametrize("correlated", [False, True], ids=["white", "correlated"])
def test_intervals_cover(plant: Plant, correlated: bool) -> None:
    rng, inside, width, deviation = np.random.default_rng(4), [], [], []
    rho = np.exp(-DT / 0.1) if correlated else 0.0
    for _ in range(40):
        white = rng.normal(0, 0.01 * np.sqrt(1 - rho**2), round(6 / DT) + 1)
        noise = np.empty_like(white)
        last = rng.normal(0, 0.01)
        for k, w in enumerate(white):
            last = noise[k] = rho * last + w
        episode = recording(rng, seconds=6, noise=noise)
        posterior = identify(plant, [episode], ONE, **LINEAR, rounds=1, samples=400, rng=rng)
        low, high = posterior.interval(GEAR)
        inside.append(low <= 1.3 <= high)
        width.append(high - low)
        deviation.append(posterior.best[0] - 1.3)
    assert 0.75 <= np.mean(inside) <= 1.0
    # and no wider than that takes: 2 * 1.645 standard deviations of the estimates
    assert np.mean(width) / (3.29 * np.std(deviation)) == pytest.approx(1.0, abs=0.4)


def test_measured_actions_say_nothing_of_the_execution(model: RobotModel) -> None:
    delayed = Plant(model, Chain.from_config([{"stage": "latency"}]), DT, threads=1)
    prior = ParameterSet.parse({GEAR: "=U(0.2, 3)", "execution.latency.delay": "=U(0, 0.1) s"})
    measured = replace(recording(np.random.default_rng(5), 4), action_source="measured")
    with pytest.raises(ParameterError, match=r"execution\.latency\.delay: no recording has commanded actions"):
        identify(delayed, [measured], prior, **LINEAR, rng=np.random.default_rng(0))


def test_measured_actions_go_past_the_chain(model: RobotModel) -> None:
    limited = Plant(model, Chain.from_config([{"stage": "torque_limit", "limit": 0.1}]), DT, threads=1)
    episode = recording(np.random.default_rng(6), 8)
    measured = replace(episode, action_source="measured")
    found = identify(limited, [measured], ONE, **LINEAR, rng=np.random.default_rng(0))
    assert found.values[GEAR] == pytest.approx(1.3, rel=1e-6)
    commanded = identify(limited, [episode], ONE, **LINEAR, rng=np.random.default_rng(0))
    assert commanded.values[GEAR] > 2.0  # through the chain, forces of 0.1 N at most must explain the same motion


def test_delay_is_recovered_from_a_simulated_log(model: RobotModel) -> None:
    chain = Chain.from_config([{"stage": "latency"}])
    twin = Twin(
        Plant(model, chain, 0.001, threads=1),
        {"execution.latency.delay": 0.0234, GEAR: 1.2},
        Chain.from_config([{"stage": "encoder", "step": 1e-4}]),
    )
    forces = excite(np.random.default_rng(7), 4, 0.02, np.array([3.0]), (0.4, 1.1))
    log = twin.record("log", forces, 0.02)
    measured = replace(log.slice(0, 2), action_source="measured", actions=np.roll(log.slice(0, 2).actions, 9))
    prior = ParameterSet.parse({GEAR: "=U(0.2, 3)", "execution.latency.delay": "=U(0, 0.08) s"})
    plant = Plant(model, chain, 0.002, threads=1)
    arguments: dict[str, Any] = {"channels": ["position"], "tries": 4, "starts": 1, "rounds": 1}
    found = identify(plant, [log], prior, **arguments, rng=np.random.default_rng(0))
    assert found.values["execution.latency.delay"] == pytest.approx(0.0234, abs=1e-3)
    low, high = found.interval("execution.latency.delay")
    assert high - low < 4e-3
    # a measured recording whose forces come at the wrong time does not move the delay much: it never goes through it
    both = identify(plant, [log, measured], prior, **arguments, rng=np.random.default_rng(0))
    assert both.values["execution.latency.delay"] == pytest.approx(0.0234, abs=3e-3)


def test_excluded_stretches_are_not_used(plant: Plant) -> None:
    clean = replace(recording(np.random.default_rng(8), 8, noise=0.01), excluded=((2.0, 3.0), (5.2, 5.3)))
    ruined = clean.observations.copy()
    for a, b in clean.excluded:
        ruined[(clean.observed_at > a) & (clean.observed_at < b)] += 7.0
    found = [
        identify(plant, [e], BOTH, **LINEAR, rng=np.random.default_rng(0))
        for e in (clean, replace(clean, observations=ruined))
    ]
    assert found[0].samples.tobytes() == found[1].samples.tobytes()
    everything = identify(plant, [replace(clean, excluded=())], BOTH, **LINEAR, rng=np.random.default_rng(0))
    assert found[0].evidence["windows"] == everything.evidence["windows"] - 3


def test_one_seed_gives_the_same_bytes(plant: Plant, tmp_path: Path) -> None:
    episode = recording(np.random.default_rng(9), 6, noise=0.01)
    arguments = LINEAR | {"tries": 6}
    for name in ("a", "b"):
        identify(plant, [episode], BOTH, **arguments, rng=np.random.default_rng(3)).save(tmp_path / name)
    for file in ("posterior.json", "samples.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_no_window_fits(plant: Plant) -> None:
    with pytest.raises(LogError, match="no window of"):
        identify(plant, [recording(np.random.default_rng(0), 0.25)], ONE, **LINEAR, rng=np.random.default_rng(0))


# posteriors


@pytest.fixture
def posterior() -> Posterior:
    rng = np.random.default_rng(10)
    covariance = 0.01 * np.array([[1.0, -0.9], [-0.9, 1.0]])
    samples = rng.multivariate_normal([1.3, 0.2], covariance, 5000)
    return Posterior(BOTH, np.array([1.3, 0.2]), samples, np.array([0.01]), {"windows": 12})


def test_a_posterior_is_a_parameter_set_that_keeps_correlation(posterior: Posterior) -> None:
    assert isinstance(posterior, ParameterSet)
    assert posterior.names == BOTH.names
    np.testing.assert_allclose(posterior.bounds, [[0.2, -1], [3, 1]])
    drawn = posterior.sample(np.random.default_rng(0), 12000)
    assert drawn[GEAR].shape == (12000,)
    assert np.corrcoef(drawn[GEAR], drawn[GRAVITY])[0, 1] == pytest.approx(-0.9, abs=0.02)
    # fewer draws than samples never repeat one
    few = posterior.sample(np.random.default_rng(0), 4000)[GEAR]
    assert len(np.unique(few)) == 4000
    at = {GEAR: np.array([1.3, 1.4, 1.4]), GRAVITY: np.array([0.2, 0.1, 0.3])}
    log_density = posterior.log_prob(at)
    # of the joint normal: along the correlation a deviation costs 0.5 / (1 - 0.9 ** 2) * 2 * (1 -+ 0.9)
    np.testing.assert_allclose(log_density[0] - log_density[1:], [1 / 1.9, 1 / 0.1], rtol=0.1)


def test_posterior_as_prior_has_its_own_precision(posterior: Posterior) -> None:
    expected = np.linalg.inv(0.01 * np.array([[1.0, -0.855], [-0.855, 1.0]]))  # correlation shrunk by 5 %
    np.testing.assert_allclose(posterior.precision(), expected, rtol=0.08)
    low, high = posterior.interval(GEAR, 0.9)
    assert (low, high) == pytest.approx((1.3 - 0.1645, 1.3 + 0.1645), abs=0.01)


def test_posterior_survives_the_disk(posterior: Posterior, tmp_path: Path) -> None:
    posterior.save(tmp_path)
    again = Posterior.load(tmp_path)
    assert again.samples.tobytes() == posterior.samples.tobytes()
    assert again.best.tobytes() == posterior.best.tobytes()
    assert again == posterior
    assert again.prior == posterior.prior
    assert again.evidence == posterior.evidence
    assert [p.unit for p in again] == ["", "m/s²"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: text.replace('"format_version": 2', '"format_version": 99'), "of format 99"),
        (lambda text: "[1, 2]", "of format None"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "best"}), "it has no 'best'"),
        (lambda text: text.replace("U(0.2, 3)", "Q(0.2, 3)"), "no distribution named 'Q'"),
        (lambda text: json.dumps(json.loads(text) | {"best": [1.0]}), "as many finite values"),
        (lambda text: json.dumps(json.loads(text) | {"noise": [[1.0, 2.0], [2.0]]}), "damaged"),
    ],
    ids=["cut", "format", "list", "key", "notation", "width", "ragged"],
)
def test_damaged_posterior_is_one_error(posterior: Posterior, tmp_path: Path, damage: Any, said: str) -> None:
    posterior.save(tmp_path)
    path = tmp_path / "posterior.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ModelError, match=said) as error:
        Posterior.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (None, "without its samples.safetensors"),
        (b"", "samples.safetensors is damaged"),
        ({"samples": np.ones((5, 1))}, "2 parameters"),
        ({"samples": np.full((5, 2), np.nan)}, "finite"),
        ({"draws": np.ones((5, 2))}, "it has no 'samples'"),
    ],
    ids=["absent", "empty", "width", "nan", "key"],
)
def test_damaged_draws_are_one_error(posterior: Posterior, tmp_path: Path, samples: Any, said: str) -> None:
    posterior.save(tmp_path)
    path = tmp_path / "samples.safetensors"
    path.unlink()
    if isinstance(samples, bytes):
        path.write_bytes(samples)
    elif samples is not None:
        save_file(samples, path)
    with pytest.raises(ModelError, match=said) as error:
        Posterior.load(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_posterior_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sim2real identify"):
        Posterior.load(tmp_path)


def test_draws_beyond_a_bound_move_along_the_correlation() -> None:
    rng = np.random.default_rng(11)
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    draws = rng.multivariate_normal([0.0, 0.0], covariance, 800)
    lower, upper = np.array([-0.5, -np.inf]), np.array([np.inf, np.inf])
    held = into_bounds(draws, np.linalg.inv(covariance), lower, upper)
    out = draws[:, 0] < -0.5
    assert 0.2 < out.mean() < 0.4
    np.testing.assert_array_equal(held[~out], draws[~out])
    np.testing.assert_allclose(held[out, 0], -0.5)
    # given x = -0.5 rather than x0, the most probable y of a normal moves by 0.9 of what x was moved by
    np.testing.assert_allclose(held[out, 1], draws[out, 1] + 0.9 * (-0.5 - draws[out, 0]), atol=1e-6)
