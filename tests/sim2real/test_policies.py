"""A policy says the same whatever it was saved as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from sim2real.errors import ModelError
from sim2real.policies import load_policy

OBSERVATIONS = np.random.default_rng(0).normal(size=(5, 3))


def test_stable_baselines_policies_are_those_that_were_saved(tmp_path: Path) -> None:
    from stable_baselines3 import PPO, SAC, TD3

    for algorithm in (PPO, SAC, TD3):
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
        model.save(tmp_path / "policy.zip")
        expected = model.predict(OBSERVATIONS.astype(np.float32), deterministic=True)[0]
        np.testing.assert_allclose(load_policy(tmp_path / "policy.zip")(OBSERVATIONS), expected, rtol=1e-6)


def test_statistics_of_vec_normalize_come_first(tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    envs = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    envs.obs_rms.mean, envs.obs_rms.var = np.array([1.0, 2.0, 3.0]), np.array([4.0, 9.0, 16.0])
    model = PPO("MlpPolicy", envs, n_steps=8, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "policy.zip")
    envs.save(tmp_path / "statistics.pkl")
    expected = model.predict(envs.normalize_obs(OBSERVATIONS), deterministic=True)[0]
    act = load_policy(tmp_path / "policy.zip", tmp_path / "statistics.pkl")
    np.testing.assert_allclose(act(OBSERVATIONS), expected, rtol=1e-6)
    with pytest.raises(ModelError, match="holds no statistics"):
        load_policy(tmp_path / "policy.zip", tmp_path / "policy.zip")


def test_torch_script_and_onnx_and_functions_are_called(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    given = torch.as_tensor(OBSERVATIONS, dtype=torch.float32)
    expected = network(given).detach().numpy()
    torch.jit.trace(network, given).save(str(tmp_path / "policy.pt"))
    np.testing.assert_allclose(load_policy(tmp_path / "policy.pt")(OBSERVATIONS), expected, rtol=1e-5)
    _write_onnx(tmp_path / "policy.onnx")
    np.testing.assert_allclose(load_policy(tmp_path / "policy.onnx")(OBSERVATIONS), 2 * OBSERVATIONS, rtol=1e-6)
    (tmp_path / "mine.py").write_text("def act(o):\n    return [row[:1] for row in o]\n")
    np.testing.assert_array_equal(load_policy(f"{tmp_path}/mine.py:act")(OBSERVATIONS), OBSERVATIONS[:, :1])


def _write_onnx(file: Path) -> None:
    """Write the model `y = x + x` as the few bytes of protocol buffers that it is."""

    def field(number: int, value: Any) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        value = value.encode() if isinstance(value, str) else value
        return bytes([number << 3 | 2, len(value)]) + value

    shape = field(2, field(1, field(2, "n")) + field(1, field(1, 3)))

    def tensor(name: str) -> bytes:
        return field(1, name) + field(2, field(1, field(1, 1) + shape))

    node = field(1, "x") + field(1, "x") + field(2, "y") + field(4, "Add")
    graph = field(1, node) + field(2, "double") + field(11, tensor("x")) + field(12, tensor("y"))
    file.write_bytes(field(1, 8) + field(7, graph) + field(8, field(2, 13)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.zip", "there is no policy at missing.zip"),
        ("policy.pkl", r"a policy is a file \(\.zip, \.pt, \.onnx\) or a function"),
        ("math:pi", "is a float, not a function"),
        ("math:pie", "math has no 'pie'"),
        ("no_such_module_at_all:act", "No module named"),
    ],
)
def test_what_is_no_policy_is_refused(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_policy(source)


@pytest.mark.parametrize("kind", [".zip", ".pt", ".onnx"])
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"policy{kind}").write_bytes(b"not a policy")
    with pytest.raises(ModelError, match="holds no policy that can be read"):
        load_policy(tmp_path / f"policy{kind}")
