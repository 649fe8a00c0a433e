"""The code of some pages runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

from sim2real import RandomizeDynamics, gaps, make_vec, wrap
from sim2real.errors import RenderError
from sim2real.robustness import load_robustness_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")


def test_python_runs() -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        if "MyEnv" not in block:
            exec(block.replace("num_envs=1024", "num_envs=8"), names)
    assert names["envs"].num_envs == 256
    env = RandomizeDynamics(gym.make("HalfCheetah-v5"), names["parameters"])
    env.reset(seed=0)
    seen = {env.step(env.action_space.sample())[4]["parameters"]["dynamics.floor.friction[0]"] for _ in range(5)}
    assert len(seen) == 5, "the sinusoid of the page moves"


def test_costs_run() -> None:
    page = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert np.isfinite(names["value"](torch.zeros(3, 2))).all()


def test_robustness_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert "pole.mass" in capsys.readouterr().out
    (text,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text)
    assert load_robustness_recipe(tmp_path / "recipe.yaml").sweep.lose == "60 %"


def test_pictures_run() -> None:
    page = (ROOT / "docs" / "pictures.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    try:
        exec(block, names)
    except RenderError as error:
        pytest.skip(str(error))
    assert names["pictures"].shape == (4, 64, 64, 3)
    assert len({picture.tobytes() for picture in names["pictures"]}) == 4


def test_recipe_is_accepted() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    recipe = yaml.safe_load(text)
    one, many = wrap(gym.make("Hopper-v5"), recipe), make_vec("Hopper-v5", 2, **gaps(recipe))
    observation, info = one.reset(seed=3)
    observations, infos = many.reset(seed=3)
    assert observation.tolist() == observations[0].tolist()
    assert info["parameters"]["execution.latency.delay"] == infos["parameters"]["execution.latency.delay"][0] > 0


def test_curricula_run() -> None:
    page = (ROOT / "docs" / "curricula.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(block, names)
    assert names["curriculum"].bounds()["dynamics.pole.mass"] == (1.0, 1.0)
