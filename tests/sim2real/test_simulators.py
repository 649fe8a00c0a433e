"""Sim-to-sim: a difference that was planted is measured, and the parameter that explains it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Latency
from sim2real.errors import ParameterError, RecipeError
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.randomization.robots import path
from sim2real.recipe import load_recipe
from sim2real.simulators import Disagreement, compare_recipe, compare_simulators, excitation, told

SPREADS = {"dynamics.payload.mass": 0.1, "dynamics.hinge.damping": 0.02, "execution.latency.delay": 0.01}


def plants(tmp_path: Path, change: tuple[str, str] = ("", "")) -> tuple[Plant, Plant]:
    file = tmp_path / "other.xml"
    file.write_text(path("pendulum").read_text().replace(*change))
    chain = Chain([Latency(delay=0.02, longest=0.05)])
    return Plant(RobotModel("pendulum"), chain, threads=1), Plant(RobotModel(file), chain, threads=1)


def compared(pair: tuple[Plant, Plant], n: int = 6, **more: Any) -> Disagreement:
    rng = np.random.default_rng(0)
    policy = excitation(n, 1.0, 0.01, np.array([1.5]), rng)
    starts = np.concatenate([rng.uniform(-0.5, 0.5, (n, 1)), np.zeros((n, 1))], 1)
    return compare_simulators(
        pair,
        {"dynamics.hinge.damping": rng.uniform(0.01, 0.03, n)},
        policy,
        starts,
        seconds=1.0,
        explain=SPREADS,
        **more,
    )


def test_a_simulator_agrees_with_itself_to_the_last_bit(tmp_path: Path) -> None:
    found = compared(plants(tmp_path))
    assert found.largest == 0.0
    assert set(found.explained.values()) == {0.0}
    assert told(found) == ["one and other agree: within 1 s apart by less than a hundredth of a percent of the motion"]


def test_a_heavier_payload_is_found_by_how_much_and_by_name(tmp_path: Path) -> None:
    found = compared(plants(tmp_path, ('mass="0.546"', 'mass="0.6006"')))
    assert found.largest > 0.02
    assert found.explained["dynamics.payload.mass"] > 0.97
    assert found.shift["dynamics.payload.mass"] == pytest.approx(0.0546, rel=0.1)
    others = [found.explained[name] for name in SPREADS if name != "dynamics.payload.mass"]
    assert max(others) < 0.9
    assert told(found)[1].startswith("dynamics.payload.mass of one, shifted by +0.05")
    assert found.channels == ("hinge.position", "hinge.velocity")
    assert found.units == ("rad", "rad/s")
    assert found.horizons == (0.05, 0.1, 0.25, 0.5, 1.0)
    np.testing.assert_allclose(found.apart / found.share, np.tile((found.apart / found.share)[0], (5, 1)))
    assert (np.diff(found.share[:, 0]) > 0)[:3].all()
    assert found.paths.shape == (2, 100, 2)
    again = Disagreement.from_json(found.to_json())
    assert again.to_json() == found.to_json()


def test_a_policy_sees_the_state_of_its_own_simulator(tmp_path: Path) -> None:
    seen = []

    def brake(state: np.ndarray, time: float) -> np.ndarray:
        seen.append((time, state.copy()))
        return -0.5 * state[:, 1:]

    pair = plants(tmp_path, ('mass="0.546"', 'mass="1.1"'))
    compare_simulators(pair, {}, brake, np.array([[1.0, 0.0]]), seconds=0.5, period=0.05)
    assert [t for t, _ in seen] == pytest.approx([0.05 * k for k in range(10)] * 2)
    assert seen[0][1].tolist() == seen[10][1].tolist() == [[1.0, 0.0]]
    assert abs(seen[9][1] - seen[19][1]).max() > 1e-3


def test_plants_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    pair = plants(tmp_path)
    policy = lambda state, time: np.zeros((1, 1))  # noqa: E731
    with pytest.raises(ParameterError, match="the same joints and substeps"):
        compare_simulators((pair[0], Plant(RobotModel("cartpole"), threads=1)), {}, policy, np.zeros((1, 2)))
    with pytest.raises(ParameterError, match="no whole number of substeps"):
        compare_simulators(pair, {}, policy, np.zeros((1, 2)), period=0.0105)
    with pytest.raises(ParameterError, match=r"did you mean dynamics\.payload\.mass"):
        compare_simulators(pair, {"dynamics.payloa.mass": np.ones(1)}, policy, np.zeros((1, 2)))


@pytest.mark.parametrize("simulators", ["[mujoco]", "[mujoco,mujoco]"])
def test_a_recipe_names_two(simulators: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected two simulators"):
        load_recipe("recipes/pendulum.yaml", [f"simulators={simulators}"])
    with pytest.raises(RecipeError, match="expected two simulators"):
        compare_recipe(load_recipe("recipes/pendulum.yaml"), tmp_path)
    with pytest.raises(RecipeError, match="genesis"):
        load_recipe("recipes/pendulum.yaml", ["simulators=[mujoco,bullet]"])


def test_a_policy_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    pair = plants(tmp_path)
    for policy, message in (
        (lambda state, time: np.zeros((1, 3)), r"finite commands \(1, 1\).* it returned \(1, 3\)"),
        (lambda state, time: np.full((1, 1), np.nan), "at 0 s it returned some that are not finite"),
    ):
        with pytest.raises(ParameterError, match=message):
            compare_simulators(pair, {}, policy, np.zeros((1, 2)))
    for source, message in (
        ("nix.py:mine", "compare.policy: there is no file"),
        ("sim2real.simulators:HORIZONS", "is a tuple, expected a function"),
    ):
        settings = ["simulators=[mujoco,genesis]", f"compare.policy={source}"]
        with pytest.raises(RecipeError, match=message):
            compare_recipe(load_recipe("recipes/pendulum.yaml", settings), tmp_path)
