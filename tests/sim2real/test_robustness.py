"""Margins are those of brute force, Sobol indices those of a closed form, and a killed run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim2real import robustness as module
from sim2real.cli import main
from sim2real.errors import ModelError, ParameterError, RecipeError
from sim2real.margins import Line, surely
from sim2real.randomization.env_parameters import attribute, register_parameters
from sim2real.report.robustness_page import PAGE
from sim2real.robustness import RobustnessRecipe, load_robustness_recipe, read_robustness, robustness


class Slope(gym.Env[Any, Any]):
    """Pays 10 - 2 a - b in each of two steps, and something that each seed draws."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float64)
    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 50}  # noqa: RUF012

    def __init__(self, a: float = 0.0) -> None:
        self.a, self.b = a, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.extra = self.np_random.normal(0.0, 0.1)
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        reward = 10.0 - 2.0 * self.a - self.b + self.extra
        return np.zeros(2), reward, False, False, {}


register_parameters(Slope, {"dynamics.slope.a": attribute("a", ""), "dynamics.slope.b": attribute("b", "")})
gym.register("Slope-v0", Slope, max_episode_steps=2)
gym.register("Slope-v1", Slope, max_episode_steps=2, kwargs={"a": -2.0})


def still(observations: Any) -> Any:
    return np.zeros((len(observations), 1))


def recipe(**changes: Any) -> RobustnessRecipe:
    section = {"objective": "robustness", "lose": 10.0, "episodes": 8, "samples": 256, "map_episodes": 1}
    document: dict[str, Any] = {
        "env": "Slope-v0",
        "policy": "somewhere.pt",
        "parameters": {"dynamics.slope.a": "=U(0, 4)", "dynamics.slope.b": "=U(0, 4)"},
        "sweep": section | changes.pop("sweep", {}),
    }
    return RobustnessRecipe.model_validate(document | changes)


@given(
    size=st.integers(5, 60),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_halving_finds_the_ends_of_what_is_good_about_the_start(size: int, data: Any) -> None:
    start = data.draw(st.integers(0, size - 1))
    low, high = data.draw(st.integers(0, start)), data.draw(st.integers(start, size - 1))
    line, asked, tried = Line(0, start, size), Line(0, start, size).scan(), 0
    while asked:
        for at in asked:
            assert at not in line.found, "nothing is tried twice"
            line.found[at] = (1.0 if low <= at <= high else 0.0, 1)
        tried += len(asked)
        asked = line.next(0.5)
    assert line.edges(0.5) == (low, high)
    assert tried <= 13 + 2 * np.ceil(np.log2(max(size / 8, 1)) + 1)


def test_where_the_start_fails_nothing_more_is_asked() -> None:
    line = Line(0, 3, 9)
    line.found = {at: (0.0, 1) for at in line.scan()}
    assert line.next(0.5) == []


def test_means_are_told_apart_only_when_they_are() -> None:
    assert surely([1.0, 1.1, 0.9, 1.0], 0.5, 0.1)
    assert not surely([1.0, 0.0, 1.0, 0.0], 0.45, 0.1)
    # four starts that are alike say little of one in five that falls
    assert not surely([200.0] * 4, 170.0, 60.0)
    assert surely([200.0] * 16, 120.0, 160.0)


def test_margins_and_indices_are_those_of_the_closed_form(tmp_path: Path) -> None:
    found = robustness(recipe(), tmp_path, policy=still)
    a, b = found.margins
    # returns of two steps are 20 - 4 a - 2 b: below 10 from a = 2.5, and never for b up to 4
    assert found.nominal == pytest.approx(20.0, abs=0.3)
    step = 4.0 / 40
    assert a.fails_above == pytest.approx(2.5, abs=1.01 * step)
    assert a.fails_above == pytest.approx(a.high + step)
    assert (a.low, a.fails_below) == (0.0, None)
    assert (b.low, b.high, b.fails_above) == (0.0, 4.0, None)
    assert a.told() == f"slope.a: survives 0 to {a.high:.3g}, fails at {a.fails_above:.3g}"
    assert b.told() == "slope.b: survives 0 to 4, all that was asked"
    assert found.told()[0] == a.told(), "what fails is said first"
    # variances go with the squares of the slopes
    for name, share in (("dynamics.slope.a", 0.8), ("dynamics.slope.b", 0.2)):
        assert found.sobol[name]["first"] == pytest.approx(share, abs=0.03)
        assert found.sobol[name]["total"] == pytest.approx(share, abs=0.03)
    (one,) = found.maps
    assert one["names"] == ["dynamics.slope.a", "dynamics.slope.b"]
    np.testing.assert_allclose(
        one["returns"],
        20.0 - 4.0 * np.array(one["values"][0])[:, None] - 2.0 * np.array(one["values"][1]) + one["returns"][0][0] - 20,
    )
    rows = pq.read_table(found.directory / "results.parquet").to_pylist()
    assert sum(row["part"] == "sobol" for row in rows) == 256 * 4
    assert sum(row["episodes"] or 0 for row in rows) == sum(many for m in found.margins for *_, many in m.tried)
    assert read_robustness(found.directory) == found


def test_a_clear_value_takes_few_episodes_and_a_close_one_all(tmp_path: Path) -> None:
    found = robustness(recipe(sweep={"episodes": 64, "samples": 0, "map_episodes": 0}), tmp_path, policy=still)
    many = {value: count for value, _, count in found.margins[0].tried}
    assert many[4.0] == 16
    assert max(many.values()) == 64
    assert found.sobol == {}
    assert found.maps == ()


def test_a_share_is_of_what_is_reached_at_the_nominal_parameters(tmp_path: Path) -> None:
    small = {"samples": 0, "map_episodes": 0}
    found = robustness(recipe(sweep={"lose": "75 %", **small}), tmp_path, policy=still)
    assert found.lose == pytest.approx(0.75 * found.nominal)
    lost = robustness(recipe(sweep={"lose": 100, **small}), tmp_path, policy=still)
    assert lost.told() == [f"it fails at the nominal parameters: {lost.nominal:.4g} is below 100"]
    assert lost.margins == ()
    assert "it fails at the nominal" in (lost.directory / PAGE).read_text()


def test_what_is_nominally_below_zero_keeps_its_ends(tmp_path: Path) -> None:
    found = robustness(
        recipe(
            env="Slope-v1",
            parameters={"dynamics.slope.a": "*LogU(0.1, 10)"},
            sweep={"lose": 28.0, "samples": 0, "map_episodes": 0},
        ),
        tmp_path,
        policy=still,
    )
    # of a = -2: returns are 20 - 4 a, at least 28 up to a = -2; less of it fails, more survives
    (a,) = found.margins
    assert a.fails_below is None
    assert a.low == pytest.approx(-20.0)
    assert -2.01 < a.high < a.fails_above < -1.5
    assert [value for value, *_ in a.tried] == sorted(value for value, *_ in a.tried)


def test_a_nominal_value_outside_of_the_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"dynamics\.slope\.a: its nominal value 0 lies outside of 1 to 2"):
        robustness(recipe(parameters={"dynamics.slope.a": "=U(1, 2)"}), tmp_path, policy=still)


def test_a_function_that_was_rewritten_is_asked_anew(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def still(o):\n    return 0 * o[:, :1]\n")
    first = robustness(recipe(policy=f"{file}:still"), tmp_path / "runs")
    file.write_text("def still(o):\n    return 0.0 * o[:, :1]\n")
    assert robustness(recipe(policy=f"{file}:still"), tmp_path / "runs").directory != first.directory


def test_what_had_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def still(o):\n    return 0 * o[:, :1]\n")
    mine = recipe(policy=f"{tmp_path}/mine.py:still")
    whole = robustness(mine, tmp_path / "whole")

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module._Asked, "sobol", killed)
        with pytest.raises(KeyboardInterrupt):
            robustness(mine, tmp_path / "half")
    monkeypatch.setattr(module._Asked, "margins", killed)
    again = robustness(mine, tmp_path / "half")
    assert again.margins == whole.margins
    assert again.sobol == whole.sobol
    assert again.maps == whole.maps
    # a function may be another one next time
    monkeypatch.undo()
    assert robustness(mine, tmp_path / "half", policy=still).margins == whole.margins


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": {"objective": "robustness", "loose": 3}}, "unknown key 'sweep.loose'; did you mean lose"),
        ({"sweep": {"objective": "robustness", "samples": 100}}, "sweep.samples: expected a power of two.* found 100"),
        (
            {"sweep": {"objective": "robustness", "lose": "a lot"}},
            "sweep.lose: expected a return, or a share such as '80 %', found 'a lot'",
        ),
        ({"sweep": {"objective": "robustness", "lose": float("nan")}}, "expected a finite return"),
        ({"sweep": {"objective": "robustness", "lose": True}}, "expected a return, or a share"),
        ({"parameters": {}}, "nothing varies"),
        ({"env": None}, "key 'env' is missing"),
        ({"polcy": "x"}, "unknown key 'polcy'; did you mean policy"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe().model_dump(mode="json", exclude_defaults=True) | change))
    with pytest.raises(RecipeError, match=message):
        load_robustness_recipe(file)


def test_what_the_environment_or_the_policy_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no parameter named 'dynamics\.slope\.c'; did you mean"):
        robustness(recipe(parameters={"dynamics.slope.c": "=U(0, 1)"}), tmp_path, policy=still)
    with pytest.raises(ModelError, match=r"returns shape \(1, 3\) for one observation, expected \(1, 1\)"):
        robustness(recipe(), tmp_path, policy=lambda o: np.zeros((len(o), 3)))
    with pytest.raises(ModelError, match=r"does not take observations of shape \(1, 2\): no"):
        robustness(recipe(), tmp_path, policy=_fails)
    joint = {"dynamics.slope.a, dynamics.slope.b": "=MVN([1, 1], [[1, 0], [0, 1]])"}
    with pytest.raises(RecipeError, match="drawn jointly"):
        robustness(recipe(parameters=joint), tmp_path, policy=still)


def _fails(observations: Any) -> Any:
    raise ValueError("no")


@pytest.fixture
def balancing(tmp_path: Path) -> Path:
    """A recipe beside the policy that it names: a linear one that keeps the cart-pole's pole up."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def up(o):\n"
        "    x, s, c, v, w = np.moveaxis(np.asarray(o), 1, 0)\n"
        "    return np.clip(-(0.3 * x - 4 * s + 0.4 * v + 0.7 * w), -1, 1)[:, None] * SIGN\n".replace(" * SIGN", "")
    )
    document = {
        "env": "cartpole",
        "policy": "mine.py:up",
        "max_episode_steps": 60,
        "execution": [{"stage": "latency", "delay": 0.0, "longest": 0.2}],
        "parameters": {"execution.latency.delay": "=U(0, 0.2) s", "dynamics.*.mass": "*LogU(0.1, 10)"},
        "sweep": {"objective": "robustness", "episodes": 4, "grid": 9, "samples": 8, "map_episodes": 1},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_the_command_line_says_it(balancing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(balancing.parent / "runs")
    assert main(["sweep", str(balancing), "--output", folder]) == 0
    said = capsys.readouterr().out
    assert "execution.latency.delay" in said
    (run,) = (balancing.parent / "runs").iterdir()
    assert run.name.startswith("cartpole-robustness-")
    page = (run / PAGE).read_text()
    assert "fails" in page
    assert "mine.py:up" in page
    found = json.loads((run / "robustness.json").read_text())
    assert {m["name"]: m["factor"] for m in found["margins"]} == {
        "execution.latency.delay": False,
        "dynamics.*.mass": True,
    }
    # another limit is another run, and a misspelt key is refused before anything runs
    assert main(["sweep", str(balancing), "--output", folder, "sweep.lose=50 %"]) == 0
    assert len(list((balancing.parent / "runs").iterdir())) == 2
    assert main(["sweep", str(balancing), "--output", folder, "sweep.grid_size=3"]) == 2
    assert main(["sweep", str(balancing), "--output", folder, "sweep.objective=robust"]) == 2
    assert main(["sweep", str(balancing), "--output", folder, "env=cartpol"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "did you mean robustness" in said
    assert "found 'robust'" in said
    assert "no environment 'cartpol'; did you mean cartpole" in said
    assert len(list((balancing.parent / "runs").iterdir())) == 2
