"""Multiple shooting: start states that do not wait for one another, slopes that follow the steps, rough ground."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim2real.calibration.replay import replays
from sim2real.calibration.shooting import MOST_DAMPED, ShootingProblem, _step, fit_starts, refine
from sim2real.calibration.sigma_points import EnsembleProblem, at_scale
from sim2real.calibration.unknowns import Unknowns
from sim2real.episodes import Channels, Episode
from sim2real.errors import NonFiniteError
from sim2real.plant import Plant
from sim2real.randomization import FunctionModel, FunctionParameter

NAMES = ("dynamics.cart.damping", "dynamics.cart.pull")
TRUTH = np.array([0.8, 2.0])


def plant(kinked: bool = False) -> Plant:
    """x'' = pull u - damping v - sin x; `kinked`, with the pull rounded to steps of 0.01: flat, with edges."""

    def step(x: Any, u: Any, p: Any, dt: float) -> Any:
        q, v = x[:, :1], x[:, 1:]
        pull = np.round(p["cart.pull"] / 0.01) * 0.01 if kinked else p["cart.pull"]
        v = v + dt * (pull * u - p["cart.damping"] * v - np.sin(q))
        return np.concatenate([q + dt * v, v], 1)

    parameters = {
        NAMES[0]: FunctionParameter(0.5, "1/s", low=0.0),
        NAMES[1]: FunctionParameter(1.0, "1/kg", low=0.0),
    }
    return Plant(FunctionModel(step, parameters, ("x",), ("u",), ("m",), ("N",)), timestep=0.005, threads=1)


def problem(some: Plant, noise: float = 1e-3, seconds: float = 12.0) -> ShootingProblem:
    rng, period = np.random.default_rng(0), 0.01
    running = some.start(1, dict(zip(NAMES, TRUTH[:, None], strict=True)))
    running.reset(np.zeros((1, 2)))
    commands = np.repeat(rng.uniform(-3, 3, round(seconds / 0.2)), 20)[:, None]
    path = running.step(np.repeat(commands, 2, 0)[None])[0, 1::2, :1]
    q = np.concatenate([np.zeros((1, 1)), path]) + noise * rng.normal(size=(len(path) + 1, 1))
    t = period * np.arange(len(q))
    log = Episode("log", t, q, t[:-1], commands, "commanded", Channels((("x", "m"),), (("u", "N"),)))
    unknowns = Unknowns(NAMES)
    cut = replays(some, [log], unknowns, channels=["x"], window=0.5, block=1.0, stride=0.5)
    return ShootingProblem(
        parts=cut,
        names=NAMES,
        lower=np.zeros(2),
        upper=np.full(2, 10.0),
        steps=np.full(2, 1e-4),
        noise=np.full(1, noise),
        robust=2.0,
        center=np.ones(2),
        factor=np.zeros((2, 2)),
    )


def test_a_window_with_a_wild_guess_does_not_hold_up_the_others() -> None:
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    right = posed.starts[0].copy()
    posed.starts[0][:] = right + 0.05
    posed.starts[0][3] = [40.0, -300.0]
    fit_starts(posed, TRUTH)
    off = np.abs(posed.starts[0] - right)
    assert np.delete(off, 3, 0).max() < 1e-3


def test_a_window_that_diverges_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    right = posed.starts[0].copy()
    part = posed.parts[0]
    part.start = right + 0.05
    wild, original = part.windows.positions[3].copy(), type(part).run

    def fragile(self: Any, parameters: Any, start: Any) -> Any:
        mine = [k for k, q in enumerate(self.windows.positions) if np.array_equal(q, wild)]
        if mine and np.abs(start[:, mine] - right[3] - 0.05).max() > 1e-3:
            raise NonFiniteError("diverged")
        return original(self, parameters, start)

    monkeypatch.setattr(type(part), "run", fragile)
    fit_starts(posed, TRUTH)
    off = np.abs(posed.starts[0] - right)
    assert np.delete(off, 3, 0).max() < 1e-3
    assert off[3] == pytest.approx([0.05, 0.05])


def test_the_largest_damping_is_still_tried() -> None:
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    x = np.array([0.1, 0.5])
    _, damping, gain = _step(posed, x, posed.sensitivities(x), MOST_DAMPED, near=False)
    assert gain > 0
    assert damping <= MOST_DAMPED


def test_only_simulated_slopes_settle_a_fit() -> None:
    posed = problem(plant(kinked=True))
    rng = np.random.default_rng(3)
    for _ in range(8):
        fit = refine(posed, rng.uniform(0.5, 3.0, 2), iterations=12)
        if fit.settled:
            _, _, gain = _step(posed, fit.x, posed.sensitivities(fit.x), 1e-3, near=False)
            assert gain < 1e-3


def test_states_that_others_hold_are_left_alone() -> None:
    posed = problem(plant())
    held = posed.starts
    kept = [s.copy() for s in held]
    fit_starts(posed, TRUTH)
    refine(posed, np.array([0.1, 0.5]), iterations=3)
    assert all((one == other).all() for one, other in zip(held, kept, strict=True))
    assert any((one != other).any() for one, other in zip(held, posed.starts, strict=True))


def test_updated_slopes_explain_the_step_that_was_taken() -> None:
    """Broyden's secant condition, and no change across the step."""
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    x, told = TRUTH, posed.sensitivities(TRUTH)
    before, residual = (x, [s.copy() for s in posed.starts]), told[0].residual
    moved = x + np.array([0.3, -0.2])
    posed.starts = [s + 0.01 for s in posed.starts]
    now = posed.updated(moved, told, before)[0]
    step = np.concatenate([np.repeat((moved - x)[None], len(residual), 0), np.full((len(residual), 2), 0.01)], 1)
    slopes = np.concatenate([now.by_parameter, now.by_state], -1)
    assert np.einsum("wmdk,wk->wmd", slopes, step) == pytest.approx(now.residual - residual, abs=1e-8)
    old = np.concatenate([told[0].by_parameter, told[0].by_state], -1)
    scale = (old**2).sum((1, 2))
    across = np.random.default_rng(1).normal(size=step.shape)
    along = scale * step
    across -= along * ((across * along).sum(1) / (along**2).sum(1))[:, None]
    change = np.einsum("wmdk,wk->wmd", slopes - old, across)
    assert np.abs(change).max() < 1e-9 * np.abs(old).max()
    assert told[0].residual is residual  # what was told before is left as it was


def test_a_fit_needs_few_simulations(monkeypatch: pytest.MonkeyPatch) -> None:
    posed, simulated = problem(plant()), 0
    original = type(posed.parts[0]).run

    def counted(self: Any, parameters: Any, start: Any) -> Any:
        nonlocal simulated
        simulated += len(parameters) * len(self.windows)
        return original(self, parameters, start)

    monkeypatch.setattr(type(posed.parts[0]), "run", counted)
    first = refine(posed, np.array([0.1, 0.5]), iterations=12)
    second = refine(posed, first.x, iterations=12, afresh=False)
    fit = refine(posed, second.x, iterations=12, afresh=False)
    assert fit.settled
    assert fit.x == pytest.approx(TRUTH, abs=0.01)
    assert simulated < 76 * len(posed.parts[0].windows)  # 82 without updated slopes


def test_wide_steps_cross_the_edges_that_stop_narrow_ones() -> None:
    posed = problem(plant(kinked=True))
    start = np.array([0.7, 1.803])
    narrow = refine(posed, start, iterations=12)
    assert abs(narrow.x[1] - TRUTH[1]) > 0.05  # flat to the left and to the right
    posed = problem(plant(kinked=True))
    wide = EnsembleProblem.of(posed, np.diag([0.1, 0.1]))
    assert refine(wide, start, iterations=12).x[1] == pytest.approx(TRUTH[1], abs=0.02)


def test_sensitivities_at_scale_are_those_of_regression_and_keep_their_axes() -> None:
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    told = at_scale(posed, TRUTH)
    exact = replace(posed, axes=None).sensitivities(TRUTH)
    assert told[0].by_parameter == pytest.approx(exact[0].by_parameter, abs=0.02 * np.abs(exact[0].by_parameter).max())
    assert posed.axes is not None
    sigma = np.sqrt(np.diag(np.linalg.inv(sum(t.precision() for t in told))))
    assert np.linalg.norm(posed.axes, axis=0) == pytest.approx(sigma, rel=0.05)


def test_a_sample_that_jumps_is_left_out_for_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving it out for one would break what parameters do together: two of one sum would seem to be told apart."""
    posed = problem(plant())
    fit_starts(posed, TRUTH)
    found, secants = at_scale(posed, TRUTH)[0].by_parameter, ShootingProblem.secants

    def jumping(self: ShootingProblem, *given: Any) -> list[np.ndarray]:
        out = secants(self, *given)
        out[0][4, 20, 0, 1] += 1e5
        return out

    monkeypatch.setattr(ShootingProblem, "secants", jumping)
    left = at_scale(posed, TRUTH)[0].by_parameter
    assert found[4, 20, 0].all()
    gone = ~left.any(-1)
    assert gone[4, 20, 0]
    assert (left[~gone] != 0).all()
