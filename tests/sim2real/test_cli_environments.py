"""The command line on environments: from a list of parameters to a recipe, and what the recipe does."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
import yaml

from sim2real import wrap
from sim2real.cli import main
from sim2real.preview import preview
from sim2real.randomization import robots


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_parameters_of_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parameters", "Hopper-v5"]) == 0
    found = lines(capsys)
    assert found[0].split() == ["parameter", "shape", "nominal", "unit", "affects"]
    (torso,) = [line for line in found if line.startswith("dynamics.torso.mass ")]
    mass = gym.make("Hopper-v5").unwrapped.model.body("torso").mass[0]  # type: ignore[attr-defined]
    assert torso.split()[1:3] == [f"{mass:.6g}", "kg"]
    (inertia,) = [line for line in found if line.startswith("dynamics.torso.inertia")]
    assert "(3,)" in inertia
    assert "kg·m²" in inertia


@pytest.mark.parametrize("target", ["CartPole-v1", "LunarLander-v3", "gymnasium_robotics:PointMaze_UMaze-v3", "furuta"])
def test_parameters_of_others(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parameters", target]) == 0
    assert any(line.startswith("dynamics.") for line in lines(capsys))


def test_parameters_of_a_robot_file_with_a_free_joint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "robot.xml"
    file.write_text(
        "<mujoco><worldbody><body name='box'><freejoint/><geom size='.1'/></body></worldbody></mujoco>",
        encoding="utf-8",
    )
    assert main(["parameters", str(file)]) == 0
    assert any(line.startswith("dynamics.box.mass") for line in lines(capsys))
    assert main(["parameters", str(robots.path("furuta"))]) == 0


@pytest.mark.parametrize("target", ["Hopper-v5", "CartPole-v1", "Acrobot-v1"])
def test_starter_recipe_is_accepted_and_does_something(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["parameters", target, "--yaml"]) == 0
    text = capsys.readouterr().out
    recipe = yaml.safe_load(text)
    assert recipe["env"] == target
    env = wrap(gym.make(target), recipe)
    first, second = (env.reset(seed=seed)[1]["parameters"] for seed in (0, 1))
    assert all(first[name] != second[name] for name in first)
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["preview", str(file), "--steps", "20"]) == 0
    shown = lines(capsys)
    rows = preview(target, recipe, steps=20)
    assert [line.split()[0] for line in shown[1 : 1 + len(rows)]] == [row.name for row in rows]
    assert all(row.low < row.high for row in rows)
    assert max(row.effect for row in rows) > 0.01


def test_preview_tells_what_has_no_effect(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "parameters:\n"
        "  dynamics.floor.friction[0]: '*U(0.9, 1.1)'\n"
        "  dynamics.foot_geom.friction[0]: '*U(0.1, 0.2)'\n"  # below the floor's, which counts
        "  dynamics.torso.mass: '*U(0.5, 2)'\n"
        "randomization:\n"
        "  - {parameters: {dynamics.leg.mass: '*U(0.5, 2)'}, when: {step: {at: 0.01}}}\n",
        encoding="utf-8",
    )
    rows = {row.name: row for row in preview("Hopper-v5", file)}
    assert rows["dynamics.torso.mass"].effect > 0.05
    assert rows["dynamics.leg.mass"].notation == "*U(0.5, 2) at step at=0.01"
    assert main(["preview", str(file), "--env", "Hopper-v5", "--steps", "5"]) == 0
    assert any("no effect" in line for line in lines(capsys))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["parameters", "Hoper-v5"], 1, "did you mean Hopper-v5"),
        (["parameters", "nothere.xml"], 1, "does not exist"),
        (["preview", "nothere.yaml"], 2, "no recipe at nothere.yaml"),
        (["preview", "{file}"], 2, "give it `env: HalfCheetah-v5`"),
        (["preview", "{file}", "--env", "Hopper-v5"], 1, "did you mean dynamics.torso.mass"),
    ],
)
def test_refusals_are_one_clear_line(
    arguments: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("parameters: {dynamics.torso.mas: '*U(1, 2)'}\n", encoding="utf-8")
    assert main([a.format(file=file) for a in arguments]) == status
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
