"""Curricula: bounds that widen and narrow with performance, draws at bounds, annealing, and going on after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sim2real.errors import ParameterError
from sim2real.randomization import (
    Annealing,
    Automatic,
    JointEmpirical,
    Parameter,
    ParameterSet,
    Randomization,
    parse_distribution,
    parse_randomizations,
)
from sim2real.randomization.vector import make_vec, resumed
from sim2real.randomization.wrappers import RandomizeDynamics

MASS, GEAR = "dynamics.pole.mass", "dynamics.motor.gear"
WIDEST = ParameterSet.parse({MASS: "*LogU(0.25, 4)", GEAR: "*U(0.5, 2.5)"})


def cartpoles(curriculum: Any, n: int = 4, mode: str = "SameStep", **more: Any) -> Any:
    parameters = [Randomization(WIDEST, curriculum)]
    return make_vec("cartpole", n, parameters=parameters, autoreset_mode=mode, max_episode_steps=8, threads=1, **more)


def drawn(infos: dict[str, Any], envs: Any) -> dict[str, np.ndarray]:
    nominal = envs.parameter_store().nominal()
    return {name: infos["parameters"][name] / nominal[name] for name in (MASS, GEAR)}


def test_draws_start_at_the_nominal_values_and_stay_within_the_bounds() -> None:
    curriculum = Automatic(hold=1e9, lose=-1e9)
    envs = cartpoles(curriculum, 64)
    for value in drawn(envs.reset(seed=0)[1], envs).values():
        np.testing.assert_allclose(value, 1.0)
    np.testing.assert_allclose(list(curriculum.bounds().values()), 1.0)
    # of a logarithm nominal is in the middle, of U(0.5, 2.5) at a quarter
    np.testing.assert_allclose(curriculum.low, [0.5, 0.25], atol=1e-9)
    curriculum.low[:], curriculum.high[:] = [0.25, 0.2], [0.75, 0.5]
    seen: dict[str, list[float]] = {MASS: [], GEAR: []}
    for _ in range(40):
        for name, value in drawn(envs.reset()[1], envs).items():
            seen[name] += value.tolist()
    at_a_bound = np.zeros(64 * 40, bool)
    for name, (low, high) in curriculum.bounds().items():
        values = np.array(seen[name])
        assert (values >= low * (1 - 1e-9)).all()
        assert (values <= high * (1 + 1e-9)).all()
        ends = [np.isclose(values, end, rtol=1e-9) for end in (low, high)]
        for end in ends:  # each of four bounds in an eighth of the episodes
            assert end.mean() == pytest.approx(1 / 8, abs=0.03)
        assert not (at_a_bound & (ends[0] | ends[1])).any()  # one parameter at a time
        at_a_bound |= ends[0] | ends[1]
    assert at_a_bound.mean() == pytest.approx(0.5, abs=0.05)


def survives(curriculum: Automatic, reach: dict[str, tuple[float, float]], episodes: int = 4000) -> None:
    """Play episodes that go well where every factor lies within `reach`."""
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        u, token = curriculum.draw(rng)
        draws = WIDEST.quantile(u[None])
        well = all(low <= draws[name][0] <= high for name, (low, high) in reach.items())
        curriculum.ended(token, 100.0 if well else 0.0)


def attached(**more: Any) -> Automatic:
    curriculum = Automatic(hold=80.0, lose=40.0, **{"episodes": 5, "step": 0.02, **more})
    cartpoles(curriculum)
    return curriculum


def test_bounds_widen_to_where_performance_holds_and_no_further() -> None:
    curriculum = attached()
    reach = {MASS: (0.7, 2.0), GEAR: (0.8, 1.6)}
    survives(curriculum, reach)
    steps = {MASS: 4.0 ** (2 * 0.02), GEAR: 2.0 * 0.02}
    for name, (low, high) in curriculum.bounds().items():
        # a step beyond it is lost again, and the bound comes back
        assert reach[name][0] / (steps[MASS] ** 2) - 0.08 <= low <= reach[name][0] + 0.1
        assert reach[name][1] - 0.15 <= high <= reach[name][1] * steps[MASS] + 0.08
    assert 0.2 < curriculum.width < 0.6
    assert curriculum.moves > 20


def test_bounds_never_leave_the_distribution_and_narrow_again_where_it_is_lost() -> None:
    curriculum = attached()
    survives(curriculum, {MASS: (0.0, 99.0), GEAR: (0.0, 99.0)})
    np.testing.assert_array_equal(curriculum.low, 0.0)
    np.testing.assert_array_equal(curriculum.high, 1.0)
    assert curriculum.bounds()[GEAR] == (0.5, 2.5)
    wide = curriculum.width
    survives(curriculum, {MASS: (0.9, 1.1), GEAR: (0.95, 1.05)})
    assert curriculum.width < 0.5 * wide


def test_between_hold_and_lose_nothing_moves() -> None:
    curriculum = attached()
    rng = np.random.default_rng(1)
    for _ in range(300):
        curriculum.ended(curriculum.draw(rng)[1], 60.0)
    assert curriculum.moves == 0
    assert curriculum.width == 0.0


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("of", ["return", "length"])
def test_environments_tell_it_how_their_episodes_went(mode: str, of: Any) -> None:
    told: list[tuple[int, float]] = []

    class Watched(Automatic):
        def ended(self, token: int, performance: float) -> None:
            told.append((token, performance))

        def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
            u, token = super().draw(rng)
            return u, token + 100

    envs = cartpoles(Watched(hold=1.0, lose=0.0, of=of), 3, mode)
    envs.reset(seed=0)
    expected, sums, lengths = [], np.zeros(3), np.zeros(3)
    begins = np.zeros(3, bool)
    for _ in range(30):
        _, reward, terminated, truncated, _ = envs.step(np.ones((3, 1), np.float32))
        sums += reward
        lengths += ~begins
        done = terminated | truncated
        for i in np.flatnonzero(done):
            expected.append(sums[i] if of == "return" else lengths[i])
            sums[i] = lengths[i] = 0.0
        begins = done if mode == "NextStep" else np.zeros(3, bool)
        if mode == "Disabled" and done.any():
            envs.reset(options={"reset_mask": done})
    assert len(expected) > 6
    assert all(token >= 99 for token, _ in told)
    np.testing.assert_allclose([p for _, p in told], expected[: len(told)])
    assert len(told) >= len(expected) - 3
    before = len(told)
    envs.reset(seed=1)  # episodes that were broken off tell nothing
    assert len(told) - before <= (3 if mode == "NextStep" else 0)


def test_a_single_environment_tells_it_too() -> None:
    curriculum = Automatic(hold=1.0, lose=0.0, episodes=1, at_bound=1.0, step=0.1)
    parameters = [Randomization(ParameterSet.parse({MASS: "*U(0.5, 1.5)"}), curriculum)]
    env = RandomizeDynamics(gym.make("CartPole-v1", max_episode_steps=5), parameters)
    for k in range(6):
        env.reset(seed=k)
        for _ in range(4 if k == 5 else 5):
            env.step(env.action_space.sample())
    assert curriculum.moves == 5  # of six episodes the last has not ended
    env.reset()
    assert curriculum.moves == 5
    assert curriculum.width == pytest.approx(0.5)


def test_what_was_saved_goes_on_where_it_was_also_before_an_environment_is_made(tmp_path: Path) -> None:
    curriculum = attached()
    survives(curriculum, {MASS: (0.7, 2.0), GEAR: (0.8, 1.6)}, 1003)
    curriculum.save(tmp_path / "deep" / "curriculum.json")
    early = Automatic(hold=80.0, lose=40.0, episodes=5, step=0.02)
    early.load(tmp_path / "deep" / "curriculum.json")
    cartpoles(early)
    late = attached()
    late.load(tmp_path / "deep" / "curriculum.json")
    for other in (early, late):
        assert other.to_json() == curriculum.to_json()
        survives(other, {MASS: (0.7, 2.0), GEAR: (0.8, 1.6)}, 500)
    survives(curriculum, {MASS: (0.7, 2.0), GEAR: (0.8, 1.6)}, 500)
    assert early.to_json() == late.to_json() == curriculum.to_json()


def test_what_is_no_curriculum_or_another_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "curriculum.json"
    curriculum = attached()
    with pytest.raises(ParameterError, match="no saved curriculum"):
        curriculum.load(file)
    file.write_text('{"format": 1}')
    with pytest.raises(ParameterError, match="no saved curriculum"):
        curriculum.load(file)
    curriculum.save(file)
    other = Automatic(hold=1.0, lose=0.0)
    make_vec("pendulum", 2, parameters=[Randomization(ParameterSet.parse({GEAR: "*U(0.5, 2)"}), other)], threads=1)
    with pytest.raises(ParameterError, match=r"is of dynamics\.pole\.mass, dynamics\.motor\.gear, this"):
        other.load(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "annealing"}))
    with pytest.raises(ParameterError, match="is of kind annealing"):
        curriculum.load(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hold": 1.0, "lose": 2.0}, "lose, which is at most hold"),
        ({"hold": np.nan, "lose": 0.0}, "lose, which is at most hold"),
        ({"hold": "a", "lose": 0.0}, "lose, which is at most hold"),
        ({"hold": 1.0, "lose": 0.0, "episodes": 0}, "one episode or more"),
        ({"hold": 1.0, "lose": 0.0, "step": 0.0}, "step=0.0"),
        ({"hold": 1.0, "lose": 0.0, "of": "reward"}, "return or its length"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Automatic(**arguments)


def test_a_recipe_may_ask_for_it() -> None:
    source = [{"parameters": {MASS: "*U(0.5, 2)"}, "when": {"automatic": {"hold": 6, "lose": 3, "episodes": 2}}}]
    (randomization,) = parse_randomizations(source)
    assert isinstance(randomization.when, Automatic)
    assert randomization.when.episodes == 2
    assert parse_randomizations([randomization.to_config()])[0].to_config() == randomization.to_config()
    envs = make_vec("cartpole", 2, parameters=source, threads=1)
    (found,) = envs.unwrapped.randomizer.curricula  # type: ignore[attr-defined]
    assert found.bounds() == {MASS: (pytest.approx(1.0), pytest.approx(1.0))}
    for wrong, message in (
        ({"hold": 1}, "needs lose"),
        ({"hold": 1, "lose": 0, "episode": 3}, "did you mean episodes"),
        (3, "its arguments by name"),
    ):
        with pytest.raises(ParameterError, match=message):
            parse_randomizations([{"parameters": {MASS: "*U(0.5, 2)"}, "when": {"automatic": wrong}}])


def test_it_needs_parameters_of_their_own_that_hold_the_nominal_value() -> None:
    with pytest.raises(ParameterError, match="which \\*U\\(2, 3\\) does not hold"):
        make_vec(
            "cartpole", 2, threads=1,
            parameters=[Randomization(ParameterSet.parse({MASS: "*U(2, 3)"}), Automatic(1.0, 0.0))],
        )  # fmt: skip
    together = {f"{MASS}, {GEAR}": "*MVN([1, 1], [[0.01, 0.005], [0.005, 0.01]])"}
    joint = Randomization(parse_randomizations(together)[0].parameters, Automatic(1.0, 0.0))
    with pytest.raises(ParameterError, match="drawn together have none"):
        make_vec("cartpole", 2, threads=1, parameters=[joint])
    with pytest.raises(ParameterError, match="no environment has the curriculum yet"):
        Automatic(1.0, 0.0).bounds()


def test_a_killed_training_goes_on_with_its_bounds(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed (extra `rl`)")
    script = Path(__file__).parents[2] / "examples" / "widen_bounds.py"
    command = [sys.executable, str(script), "--folder", str(tmp_path / "run"), "--steps"]
    started = subprocess.Popen([*command, "10000000"], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while len(list((tmp_path / "run").glob("checkpoint-*[0-9]"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        started.kill()  # -9
        started.wait()
    kept = sorted((tmp_path / "run").glob("checkpoint-*[0-9]"))
    saved = json.loads((kept[-1] / "curriculum.json").read_text())
    step = int(kept[-1].name.removeprefix("checkpoint-"))
    done = subprocess.run([*command, str(step + 1)], capture_output=True, text=True, timeout=120, check=True)
    first = done.stdout.splitlines()[0]
    assert f"going on from step {step}, bounds" in first
    assert len(saved["names"]) == 2
    last = resumed(tmp_path / "run", Automatic(hold=80.0, lose=50.0, episodes=5, step=0.05))
    assert last is not None
    assert last.is_file()
    assert "times the nominal value" in done.stdout
    newest = json.loads((last.parent / "curriculum.json").read_text())
    assert newest["moves"] >= saved["moves"]


def test_annealing_draws_ever_more_from_the_posterior() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal([0.2, 3.0], [0.002, 0.01], (500, 2))
    parameters = tuple(
        Parameter(name=name, unit=unit, distribution=parse_distribution(f"N({mean}, 1)"))
        for name, unit, mean in ((MASS, "kg", 0.2), (GEAR, "", 3.0))
    )
    posterior = JointEmpirical(parameters, samples)
    wide = ParameterSet.parse({MASS: "=U(0.05, 1) kg", GEAR: "=U(1, 20)"})
    annealing = Annealing(wide, posterior, over=400)
    envs = make_vec("cartpole", 100, parameters=annealing, threads=1)
    shares = []
    for _ in range(5):
        infos = envs.reset(seed=len(shares))[1]
        gears = infos["parameters"][GEAR]
        shares.append(float((np.abs(gears - 3.0) < 0.05).mean()))
    assert shares[0] < 0.3
    assert shares[2] == pytest.approx(0.6, abs=0.2)
    assert shares[4] == 1.0
    assert np.diff(shares).min() > 0
    by_hand = Annealing(wide, posterior)
    envs = make_vec("cartpole", 50, parameters=[by_hand], threads=1)
    envs.reset(seed=0)
    by_hand.share = 1.0
    assert (np.abs(envs.reset()[1]["parameters"][GEAR] - 3.0) < 0.05).all()


def test_an_annealing_is_between_the_same_parameters_and_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="both have the same parameters"):
        Annealing(WIDEST, ParameterSet.parse({MASS: "*U(0.9, 1.1)"}))
    annealing = Annealing(WIDEST, WIDEST, over=10)
    with pytest.raises(ParameterError, match="brings its own parameters"):
        make_vec("cartpole", 2, parameters=[Randomization(WIDEST, annealing)], threads=1)
    annealing.share = 0.4
    annealing.save(tmp_path / "a.json")
    again = Annealing(WIDEST, WIDEST, over=10)
    again.load(tmp_path / "a.json")
    assert again.share == 0.4


def test_bounds_of_an_unbounded_distribution_stay_finite() -> None:
    curriculum = Automatic(hold=-1.0, lose=-2.0, episodes=1, step=0.3, at_bound=1.0)
    masses = ParameterSet.parse({MASS: "*TN(1, 0.1, 0.5, 99)", GEAR: "*LogN(1, 0.2)"})
    envs = make_vec("cartpole", 8, parameters=[Randomization(masses, curriculum)], max_episode_steps=2, threads=1)
    envs.reset(seed=0)
    for _ in range(60):
        envs.step(np.zeros((8, 1), np.float32))
    assert curriculum.width > 0.99
    assert np.isfinite(list(curriculum.bounds().values())).all()
