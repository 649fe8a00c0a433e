"""The Kalman filter: the textbook's in the limit, honest about its errors, causal, and better than differences."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import expm, solve_discrete_are
from scipy.stats import chi2

from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError
from sim2real.estimation import DerivativeFilter
from sim2real.kalman import KalmanFilter, log_likelihood, process_noise, transition

DATA = Path(__file__).parents[3] / "shared" / "data"


def generated(rng, n, jerk, noise, dt=0.005, uneven=0.3):
    """A path of white jerk and its readings: t (N,), states (N, 3), readings (N,)."""
    t = np.concatenate([[0.0], np.cumsum(dt * (1 + uneven * rng.uniform(-1, 1, n - 1)))])
    states = np.zeros((n, 3))
    for k in range(1, n):
        h = t[k] - t[k - 1]
        states[k] = transition(h) @ states[k - 1] + jerk * np.linalg.cholesky(process_noise(h)) @ rng.normal(size=3)
    return t, states, states[:, 0] + noise * rng.normal(size=n)


def run(estimator, t, q):
    """Position and velocity after each reading: (N, 2)."""
    estimator.reset(q[:1, None])
    out = [[q[0], 0.0]]
    for h, reading in zip(np.diff(t), q[1:], strict=True):
        out.append(estimator.update(float(h), np.array([[reading]]), np.zeros((1, 0)))[0])
    return np.array(out)


def test_transition_and_noise_are_the_integrals_of_the_model():
    dt, a = 0.013, np.diag([1.0, 1.0], 1)
    np.testing.assert_allclose(transition(dt), expm(a * dt))
    fine = np.linspace(0, dt, 4001)
    g = np.stack([fine**2 / 2, fine, np.ones_like(fine)])
    np.testing.assert_allclose(process_noise(dt), np.trapezoid(g[:, None] * g[None], fine), rtol=1e-6)


def test_the_steady_covariance_solves_the_riccati_equation():
    dt, jerk, noise = 0.004, 300.0, 0.001
    f, h = transition(dt), np.array([[1.0, 0.0, 0.0]])
    before = solve_discrete_are(f.T, h.T, jerk**2 * process_noise(dt), np.array([[noise**2]]))
    after = before - before @ h.T @ h @ before / (before[0, 0] + noise**2)
    estimator = KalmanFilter([jerk], [noise])
    run(estimator, dt * np.arange(400), np.zeros(400))
    np.testing.assert_allclose(estimator.covariance[0], after, rtol=1e-6)


def test_errors_are_as_large_as_the_covariance_says():
    rng = np.random.default_rng(0)
    squared, hits = [], []
    for _ in range(60):
        t, states, q = generated(rng, 150, 200.0, 0.002)
        estimator = KalmanFilter([200.0], [0.002])
        estimates = run(estimator, t, q)
        error = np.array([*(estimates[-1] - states[-1, :2])])
        covariance = estimator.covariance[0][:2, :2]
        squared.append(float(error @ np.linalg.solve(covariance, error)))
        hits.append(abs(error[1]) < 1.645 * np.sqrt(covariance[1, 1]))
    low, high = chi2.ppf([0.001, 0.999], 2 * len(squared))
    assert low < sum(squared) < high
    assert 0.78 <= np.mean(hits) <= 0.98


def test_the_likelihood_is_that_of_all_readings_together():
    """The filter's innovations against the joint normal density of the readings."""
    rng = np.random.default_rng(1)
    t, _, q = generated(rng, 12, 50.0, 0.01, dt=0.02)
    jerk, noise = 40.0, 0.02
    # states at t[k] as sums of the start and of what each step added
    n = len(t)
    start = np.diag([noise**2, jerk**2 / 3 + noise**2, jerk**2])
    cross = np.zeros((n, n))
    for i in range(n):
        for j in range(i, n):
            move = lambda a, b: transition(t[b] - t[a])[0]  # noqa: E731
            total = move(0, i) @ start @ move(0, j)
            for k in range(1, i + 1):
                total += move(k, i) @ (jerk**2 * process_noise(t[k] - t[k - 1])) @ move(k, j)
            cross[i, j] = cross[j, i] = total
    mean = np.full(n, q[0])  # the filter starts at the first reading
    some = slice(1, n)
    c = cross[some, some] + noise**2 * np.eye(n - 1)
    r = (q - mean)[some]
    expected = -0.5 * (r @ np.linalg.solve(c, r) + np.linalg.slogdet(c)[1] + (n - 1) * np.log(2 * np.pi))
    assert log_likelihood(t, q, jerk, noise) == pytest.approx(expected, rel=1e-9)


def episode(t, q):
    return Episode(
        "e", t, q[:, None], t[:-1], np.zeros((len(t) - 1, 1)), "commanded", Channels((("q", "rad"),), (("u", "N·m"),))
    )


def test_noises_are_found_from_recordings():
    rng = np.random.default_rng(2)
    parts = [generated(rng, 1500, 150.0, 0.003) for _ in range(2)]
    found = KalmanFilter.fit([episode(t, q) for t, _, q in parts], ["q"])
    assert found.noise[0] == pytest.approx(0.003, rel=0.1)
    assert found.jerk[0] == pytest.approx(150.0, rel=0.25)


def test_better_than_a_polynomial_on_an_encoder_and_causal():
    rng = np.random.default_rng(3)
    t = np.cumsum(0.004 + 0.0002 * rng.normal(size=4000))
    truth = 4 * np.cos(5 * t) + 2 * np.cos(13 * t)
    q = 0.8 * np.sin(5 * t) + 2 / 13 * np.sin(13 * t)
    q = 0.003 * np.round(q / 0.003)
    kalman = KalmanFilter.fit([episode(t[:2000], q[:2000])], ["q"])
    late = slice(2000, None)
    errors = {
        name: np.sqrt(np.mean((run(e, t, q)[late, 1] - truth[late]) ** 2))
        for name, e in (("kalman", kalman), ("polynomial", DerivativeFilter()))
    }
    assert errors["kalman"] < errors["polynomial"]
    changed = q.copy()
    changed[3000:] += 1.0
    np.testing.assert_array_equal(run(kalman, t, q)[:3000], run(kalman, t, changed)[:3000])


def test_many_plants_at_once_are_the_same_as_one_at_a_time():
    rng = np.random.default_rng(4)
    q = np.cumsum(rng.normal(size=(30, 4, 2)), 0)
    both = KalmanFilter([10.0, 30.0], [0.1, 0.2])
    both.reset(q[0])
    single = [KalmanFilter([10.0, 30.0], [0.1, 0.2]) for _ in range(4)]
    for k, s in enumerate(single):
        s.reset(q[0, k : k + 1])
    for row in q[1:]:
        together = both.update(0.01, row, np.zeros((4, 0)))
        apart = np.concatenate([s.update(0.01, row[k : k + 1], np.zeros((1, 0))) for k, s in enumerate(single)])
        np.testing.assert_allclose(together, apart)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(LogError, match="takes a positive jerk and noise a joint"):
        KalmanFilter([1.0, 2.0], [0.1])
    with pytest.raises(LogError, match="found positions of 2"):
        KalmanFilter([1.0], [0.1]).reset(np.zeros((1, 2)))
    with pytest.raises(LogError, match="fitted to recordings, found none"):
        KalmanFilter.fit([], ["q"])
    with pytest.raises(LogError, match="q does not move in any recording"):
        KalmanFilter.fit([episode(np.arange(20.0), np.zeros(20))], ["q"])


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded robots (../shared/data) are not here")
def test_on_a_robot_whose_logged_speeds_are_late():
    spec = importlib.util.spec_from_file_location("loaders", DATA / "loaders.py")
    loaders = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaders)
    fitted, scored = (loaders.load(str(DATA), "qube", name) for name in ("su5p5_0", "su5p5_4"))
    kalman = KalmanFilter.fit([episode(fitted.t, fitted.q[:, 1])], ["q"])
    q, t = scored.q[:, 1], scored.t
    reference = np.gradient(q, t)
    kernel = np.ones(3) / 3
    reference = np.convolve(reference, kernel, "same")
    inner = slice(50, -50)

    def rms(v):
        return float(np.sqrt(np.mean((v - reference)[inner] ** 2)))

    logged, polynomial = rms(scored.v_raw[:, 1]), rms(run(DerivativeFilter(), t, q)[:, 1])
    ours = rms(run(kalman, t, q)[:, 1])
    print(f"velocity of the pole, rms off [rad/s]: logged {logged:.2f}, polynomial {polynomial:.2f}, Kalman {ours:.2f}")
    assert ours < 0.5 * logged
    assert ours < polynomial
