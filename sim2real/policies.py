"""Trained policies as functions: of stable-baselines3, TorchScript, ONNX, or anything that can be imported."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import ModelError, require

# (n, ...) observations -> (n, ...) actions
PolicyFunction = Callable[[Any], NDArray[Any]]
# Which algorithm of stable-baselines3 has policies that are defined where.
_HOMES = {"sac": "SAC", "td3": "TD3", "dqn": "DQN", "common": "PPO"}


def load_policy(source: str | Path, normalize: str | Path | None = None) -> PolicyFunction:
    """Return a saved policy as a deterministic function of observations (n, ...).

    Loading a `.zip` of stable-baselines3, a pickle of its statistics, or code runs what is in there: only load what you
    trust.

    Args:
        source: `.zip` of stable-baselines3 (PPO, A2C, SAC, TD3, DDPG, DQN), `.pt` of TorchScript, `.onnx`, or a
            function of observations as `package.module:name` or `file.py:name`.
        normalize: what `VecNormalize.save` wrote; observations are normalised by it first.

    Raises:
        ModelError: there is no such file, it cannot be read, or it is none of these.
        MissingExtraError: what reads it is not installed.
    """
    text = str(source)
    if ":" in text and not Path(text).exists():
        act = _imported(text)
    else:
        file = Path(source)
        kinds = {".zip": _stable_baselines, ".pt": _torch_script, ".onnx": _onnx}
        if file.suffix not in kinds:
            raise ModelError(
                f"a policy is a file ({', '.join(kinds)}) or a function (module:name, file.py:name); found {text!r}"
            )
        if not file.is_file():
            raise ModelError(f"there is no policy at {file}")
        try:
            act = kinds[file.suffix](file)
        except ImportError:
            raise
        except Exception as error:  # damaged files fail in as many ways as there are libraries
            raise ModelError(f"{file} holds no policy that can be read: {error}") from error
    return act if normalize is None else _normalized(act, Path(normalize))


def _imported(source: str) -> PolicyFunction:
    from sim2real.importing import imported_function

    found = imported_function(source, "policy", "not a function of observations", ModelError)
    return lambda observations: np.asarray(found(observations))


def _stable_baselines(file: Path) -> PolicyFunction:
    library = require("stable_baselines3", "rl")
    with zipfile.ZipFile(file) as archive:
        module = str(json.loads(archive.read("data"))["policy_class"].get("__module__", ""))
    family = module.removeprefix("stable_baselines3.").partition(".")[0]
    # of a policy class of one's own nothing tells the algorithm but that it loads
    names = [_HOMES[family]] if family in _HOMES else ["PPO", "SAC", "TD3", "DQN"]
    said = []
    for name in names:
        try:
            model = getattr(library, name).load(file, device="cpu")
        except Exception as error:
            said.append(f"{name}: {error}")
        else:
            return lambda observations: np.asarray(model.predict(observations, deterministic=True)[0])
    raise ModelError(f"none of {', '.join(names)} loads it ({'; '.join(said)}); file.py:function serves any policy")


def _torch_script(file: Path) -> PolicyFunction:
    import torch

    model: Any = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    model.eval()

    def act(observations: Any) -> NDArray[Any]:
        with torch.no_grad():
            return np.asarray(model(torch.as_tensor(np.asarray(observations), dtype=torch.float32)).numpy())

    return act


def _onnx(file: Path) -> PolicyFunction:
    session = require("onnxruntime", "rl").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda observations: np.asarray(session.run(None, {name: np.asarray(observations, np.float32)})[0])


def _normalized(act: PolicyFunction, file: Path) -> PolicyFunction:
    import pickle

    require("stable_baselines3", "rl")
    if not file.is_file():
        raise ModelError(f"there are no statistics at {file}")
    try:
        statistics = pickle.loads(file.read_bytes())
        statistics.training = False
        normalize = statistics.normalize_obs
    except Exception as error:
        raise ModelError(f"{file} holds no statistics of VecNormalize: {error}") from error
    return lambda observations: act(normalize(observations))
