"""Recording: a Gymnasium wrapper that keeps what an environment, or a robot behind one, does, step by step on disk."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TextIO

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from sim2real.episodes import Array, Channels, Episode
from sim2real.errors import LogError
from sim2real.logs.write import write_parquet
from sim2real.randomization.env_parameters import GoalWrapper, check_period, control_period, refuse_batch

VERSION = 1
PART = ".part.jsonl"
MOST = 4096  # elements of an observation; more is an image


class RecordEpisodes(GoalWrapper, RecordConstructorArgs):
    """Records every episode into `<path>/episode_000000.parquet`, ..., which `read_logs(path)` reads without a schema.

    Each step is appended to a part file as it happens, so that a kill loses at most the step that was under way: part
    files of runs that ended so are made into episodes by the next `RecordEpisodes` on the folder, or by `recover`.

    The clock is that of the simulation, step by step, or with `clock="wall"` that of the machine, for an environment
    that is a robot: then an action is stamped when `step` is called, and an observation when it returns.

    Args:
        env: a single environment with observations of numbers, in boxes, or dictionaries of such.
        path: folder of the recordings, made where it does not exist.
        names: of the observations, in their order; by default `obs[0]`, or keys of a dictionary.
        units: channel -> SI unit; "1" for those that are left out. Actions are called `action[0]`, ...
        action_names: of the actions.
        measured: key of `info` under which the environment reports what the actuators did.
        leave_out: keys of a dictionary of observations that are not recorded, such as images.
        clock: "simulated" or "wall".
        dt: control period [s], where the environment does not say it.

    Raises:
        LogError: observations or actions that are not numbers, or names that do not fit.
        ParameterError: a batch of environments, or an environment that does not say its period.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        path: str | Path,
        names: Sequence[str] | None = None,
        units: Mapping[str, str] | None = None,
        action_names: Sequence[str] | None = None,
        measured: str | None = None,
        leave_out: Sequence[str] = (),
        clock: Literal["simulated", "wall"] = "simulated",
        dt: float | None = None,
    ) -> None:
        refuse_batch(env, type(self).__name__)
        check_period(dt)
        RecordConstructorArgs.__init__(
            self,
            path=str(path),
            names=names,
            units=units,
            action_names=action_names,
            measured=measured,
            leave_out=leave_out,
            clock=clock,
            dt=dt,
        )
        gym.Wrapper.__init__(self, env)
        if clock not in ("simulated", "wall"):
            raise LogError(f"clock must be 'simulated' or 'wall', found {clock!r}")
        self._leave_out, self._measured, self._wall = frozenset(leave_out), measured, clock == "wall"
        self._dt = 0.0 if self._wall else dt or control_period(env)
        observed = _named("obs", env.observation_space, self._leave_out, names)
        acted = _named("action", env.action_space, frozenset(), action_names)
        units = units or {}
        for name in units.keys() - {*observed, *acted}:
            raise LogError(f"units: no channel {name!r}; there are {', '.join([*observed, *acted][:20])}")
        self._channels = Channels(*(tuple((n, units.get(n, "1")) for n in some) for some in (observed, acted)))
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        recover(self.path)
        self._file: TextIO | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a recording, and end the one before."""
        self._finish()
        observation, info = self.env.reset(seed=seed, options=options)
        self._began = time.monotonic()
        about = {
            "version": VERSION,
            "channels": {g: getattr(self._channels, g) for g in ("observations", "actions")},
            "measured": self._measured is not None,
            "provenance": {
                "environment": self.env.spec.to_json() if self.env.spec is not None else repr(self.env),
                "clock": "wall" if self._wall else "simulated",
                "seed": seed,
                **({"parameters": info["parameters"]} if "parameters" in info else {}),
            },
        }
        self._file = _next(self.path).open("x", encoding="utf-8")
        self._steps = 0
        self._write(about)
        self._write({"t": 0.0, "o": _flat(observation, self._leave_out)})
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and append what happened."""
        sent = self._now()
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._file is not None:
            self._steps += 1
            row = {
                "c": sent,
                "a": _flat(action, frozenset()),
                "t": self._now(),
                "o": _flat(observation, self._leave_out),
                "r": float(reward),
            }
            if self._measured is not None:
                if self._measured not in info:
                    raise LogError(f"the environment reports no {self._measured!r}; its info has {', '.join(info)}")
                row["m"] = _flat(info[self._measured], frozenset())
            self._write(row | ({"end": True} if terminated else {}))
            if terminated or truncated:
                self._finish()
        return observation, reward, terminated, truncated, info

    def end(self) -> None:
        """End the recording: what is under way becomes an episode. The next reset begins another."""
        self._finish()

    def close(self) -> None:
        """End the recording and close the environment."""
        self._finish()
        super().close()

    def _now(self) -> float:
        return time.monotonic() - self._began if self._wall else self._steps * self._dt

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(row, default=_plain) + "\n")
        self._file.flush()  # what the kernel has outlives this process

    def _finish(self) -> None:
        if self._file is not None:
            self._file.close()
            _convert(Path(self._file.name))
            self._file = None


def recover(path: str | Path) -> list[Path]:
    """Make the part files of a folder into episodes; return the new files.

    A last line that was cut off by a kill is left out. Part files of runs that go on must not be touched: recover a
    folder only when nothing records into it.
    """
    return [made for part in sorted(Path(path).glob(f"*{PART}")) if (made := _convert(part)) is not None]


def _next(folder: Path) -> Path:
    numbers = [int(f.name[8:14]) for f in folder.glob("episode_*") if f.name[8:14].isdecimal()]
    return folder / f"episode_{max(numbers, default=-1) + 1:06d}{PART}"


def _convert(part: Path) -> Path | None:
    """Make a part file into an episode, and remove it; None where nothing but a start was recorded."""
    name = part.name.removesuffix(PART)
    rows = []
    with part.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                if line.endswith("\n"):
                    raise LogError(f"{part}: line {number} cannot be read: {error}; cut it and what follows") from error
                warnings.warn(f"{part}: the last step was cut off, and is left out", stacklevel=3)
    if len(rows) < 3:
        part.unlink()
        return None
    about, first, *steps = rows
    if about.get("version") != VERSION:
        raise LogError(
            f"{part}: is of version {about.get('version')}, this toolkit reads {VERSION}; update the toolkit"
        )

    def column(key: str) -> Array:
        return np.array([row[key] for row in steps], dtype=np.float64)

    episode = Episode(
        name=name,
        observed_at=np.concatenate([[first["t"]], column("t")]),
        observations=np.concatenate([np.array([first["o"]], dtype=np.float64), column("o")]),
        commanded_at=column("c"),
        actions=column("a"),
        action_source="commanded",
        channels=Channels(**{g: tuple((n, u) for n, u in some) for g, some in about["channels"].items()}),
        measured_actions=column("m") if about["measured"] else None,
        rewards=column("r"),
        terminated=bool(steps[-1].get("end", False)),
        provenance=about["provenance"],
    )
    (made,) = write_parquet([episode], part.parent)
    os.unlink(part)
    return made


def _named(prefix: str, space: gym.Space[Any], leave_out: frozenset[str], names: Sequence[str] | None) -> list[str]:
    """Return the names of the numbers in a space."""
    found = list(_leaves(prefix, space, leave_out))
    if names is None:
        return found
    if len(names) != len(found) or len(set(names)) != len(names):
        raise LogError(f"expected {len(found)} different names ({', '.join(found[:8])} ...), found {len(names)}")
    return list(names)


def _leaves(name: str, space: gym.Space[Any], leave_out: frozenset[str]) -> list[str]:
    if isinstance(space, gym.spaces.Dict):
        inside = [
            (f"{key}" if name == "obs" else f"{name}.{key}", s) for key, s in space.items() if key not in leave_out
        ]
        return [leaf for key, s in inside for leaf in _leaves(key, s, leave_out)]
    if isinstance(space, gym.spaces.Discrete):
        return [name]
    if isinstance(space, gym.spaces.Box | gym.spaces.MultiBinary | gym.spaces.MultiDiscrete):
        size = int(np.prod(space.shape))
        if size > MOST:
            raise LogError(f"{name} has {size:,} numbers, an image: leave it out (leave_out=[{name.split('.')[-1]!r}])")
        return [f"{name}[{k}]" for k in range(size)] if space.shape else [name]
    raise LogError(f"{name} is {space}, expected numbers in a Box, or a dictionary of such; leave it out (leave_out)")


def _flat(value: Any, leave_out: frozenset[str]) -> list[float]:
    if isinstance(value, Mapping):
        return [x for key, inner in value.items() if key not in leave_out for x in _flat(inner, leave_out)]
    return np.asarray(value, dtype=np.float64).ravel().tolist()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
