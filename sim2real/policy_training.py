"""Training of a policy in a randomized environment by stable-baselines3, share by share. Loaded only where one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim2real.environment_recipe import episode_limit, gaps, make_envs
from sim2real.errors import require
from sim2real.policy_episodes import returns_of
from sim2real.policy_recipe import PolicyRecipe
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.randomization.vector import to_stable_baselines


class Training:
    """A policy on its way.

    Args:
        recipe: with an `env`.
        kept: folder of what `save` wrote, to go on from; None to begin.

    Raises:
        RecipeError: there is no such environment, or its episodes never end.
        ParameterError: it has no such parameter, or no such stage.
        MissingExtraError: stable-baselines3 is not installed.
    """

    def __init__(self, recipe: PolicyRecipe, kept: Path | None) -> None:
        library = require("stable_baselines3", "rl")
        self.recipe, train = recipe, recipe.train
        how = {"threads": available_threads(), "max_episode_steps": recipe.max_episode_steps}
        self._twin = make_envs(recipe, train.episodes, gaps({"env": recipe.env, **recipe.twin.model_dump()}), **how)
        self._limit = episode_limit(self._twin, recipe.env or "")
        learner = to_stable_baselines(make_envs(recipe, train.envs, gaps(recipe), autoreset_mode="SameStep", **how))
        algorithm = {"ppo": library.PPO, "sac": library.SAC}[train.algorithm]
        if kept is None:
            own: dict[str, Any] = {"n_steps": max(2048 // train.envs, 16), "batch_size": 256}
            if train.algorithm == "sac":
                own = {"buffer_size": train.steps, "batch_size": 256, "train_freq": 1, "gradient_steps": train.envs}
            self.model = algorithm(
                "MlpPolicy", learner, learning_rate=train.rate, gamma=train.gamma, seed=recipe.seed, device="cpu",
                policy_kwargs={"net_arch": list(train.hidden)}, **own,
            )  # fmt: skip
        else:
            # the rate of learning and the discount may be another's: in a population they change on the way
            now = {"learning_rate": train.rate, "gamma": train.gamma}
            self.model = algorithm.load(kept / "policy.zip", learner, device="cpu", custom_objects=now)
            if train.algorithm == "sac":
                self.model.load_replay_buffer(kept / "replay.pkl")

    def to(self, share: float) -> None:
        """Train on, up to a share of the steps."""
        target = round(share * self.recipe.train.steps)
        seed = self.recipe.seed + 1 + target
        self.model.set_random_seed(seed)
        self.model.get_env().seed(seed)
        self.model._last_obs = None  # where it stands is not saved: every share begins with a reset
        self.model.learn(max(target - self.model.num_timesteps, 1), reset_num_timesteps=False)

    def save(self, folder: Path) -> None:
        """Write `policy.zip`, and what else going on needs."""
        self.model.save(folder / "policy.zip")
        if self.recipe.train.algorithm == "sac":
            self.model.save_replay_buffer(folder / "replay.pkl")

    def score(self) -> float:
        """Return the mean return of an episode on the twin."""
        observation, _ = self._twin.reset(seed=self.recipe.seed)
        returns = returns_of(
            self._twin, lambda seen: self.model.predict(seen, deterministic=True)[0], observation, self._limit
        )
        return float(returns.mean())

    def close(self) -> None:
        """Close the environments."""
        self._twin.close()
        self.model.get_env().close()
