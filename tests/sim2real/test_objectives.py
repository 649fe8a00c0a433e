"""What sweeps score: policies that learn, randomizations that transfer, and functions of one's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import sim2real.recipes
from sim2real.errors import ParameterError, RecipeError
from sim2real.objectives import (
    OF_PIPELINES,
    OF_POLICIES,
    function_scores,
    objective_of,
    policy_scores,
    require_policy,
    transfer_scores,
)
from sim2real.policy_recipe import PolicyRecipe, load_policy_recipe
from sim2real.recipe import OBJECTIVES, Recipe, load_recipe, validated, with_overrides
from sim2real.search_space import search_space

FOLDER = Path(sim2real.recipes.__file__).parent
learns = pytest.mark.skipif(not importlib.util.find_spec("stable_baselines3"), reason="needs stable-baselines3")
POLICY: dict[str, Any] = {
    "env": "InvertedPendulum-v5",
    "parameters": {"dynamics.pole.mass": "*U(0.9, 1.1)"},
    "twin": {"parameters": {"dynamics.pole.mass": "*2"}},
    "train": {"steps": 512, "envs": 4, "episodes": 3, "hidden": [8]},
    "max_episode_steps": 60,
    "sweep": {"objective": "policy", "keys": {"train.rate": "LogU(1e-4, 1e-2)"}},
}


def policy(**changed: Any) -> PolicyRecipe:
    return validated(PolicyRecipe, {**POLICY, **changed}, "recipe")


def swept(**section: Any) -> Recipe:
    keys = {"parameters.dynamics.payload.mass": "choice(*U(0.5, 2), *U(0.9, 1.1))"}
    return with_overrides(load_recipe(FOLDER / "pendulum.yaml"), {"sweep": {"keys": keys, **section}})


def test_every_objective_that_a_recipe_may_name_is_there() -> None:
    assert {*OF_PIPELINES, *OF_POLICIES, "robustness"} == set(OBJECTIVES)


def test_an_objective_is_of_one_kind_of_recipe() -> None:
    with pytest.raises(RecipeError, match=r"about the whole loop expected identify, .*found 'policy'"):
        objective_of(swept(objective="policy"))
    with pytest.raises(RecipeError, match=r"about an environment expected policy, robustness.*found 'transfer'"):
        objective_of(policy(sweep={"objective": "transfer", "keys": {"train.rate": "U(0, 1)"}}))
    with pytest.raises(RecipeError, match=r"did you mean policy.*found 'polcy'"):
        policy(sweep={"objective": "polcy", "keys": {}})
    with pytest.raises(RecipeError, match="key 'env' is missing"):
        objective_of(policy(env=None))


def test_a_population_needs_something_that_goes_on() -> None:
    with pytest.raises(RecipeError, match=r"sweep.scheduler: a population is trained, which identify does not do"):
        objective_of(swept(scheduler="pbt"))
    assert objective_of(policy(sweep={"objective": "policy", "keys": {}, "scheduler": "pbt"})).trains


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"shares": [0.5, 0.25, 1]}, "growing shares"),
        ({"shares": [0.5]}, "growing shares"),
        ({"shares": []}, "growing shares"),
        ({"sceduler": "asha"}, "unknown key 'sweep.sceduler'; did you mean scheduler"),
        ({"scheduler": "hyperband"}, "sweep.scheduler"),
    ],
)
def test_wrong_sections_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        swept(**section)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("twin.parameters", "choice({a: =1}, {a: =2})", "does not use it"),
        ("max_episode_steps", "int(5, 9)", "changes what is asked of a policy"),
        ("train.rat", "U(0, 1)", "no key 'train.rat'; did you mean train.rate"),
    ],
)
def test_keys_of_a_policy_that_cannot_be_swept(key: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        search_space(policy(sweep={"objective": "policy", "keys": {key: text}}))


def test_what_a_sweep_is_called_does_not_depend_on_how_much_is_tried() -> None:
    sections = [swept(**more).sweep for more in ({}, {"trials": 99, "concurrent": 1, "confirm": 3, "retries": 0})]
    assert sections[0] is not None
    assert sections[1] is not None
    assert sections[0].identity() == sections[1].identity()
    other = swept(objective="transfer").sweep
    assert other is not None
    assert other.identity() != sections[0].identity()


# functions of one's own


@pytest.fixture
def own(tmp_path: Path) -> PolicyRecipe:
    (tmp_path / "own.py").write_text(
        "def score(recipe, share, folder):\n"
        "    seen = folder / 'seen'\n"
        "    seen.write_text((seen.read_text() if seen.exists() else '') + f'{share} ')\n"
        "    return recipe.settings['x'] * share\n"
        "number = 3\n"
    )
    (tmp_path / "recipe.yaml").write_text(
        "settings: {x: 2.0}\nsweep: {objective: 'own.py:score', keys: {settings.x: 'U(0, 1)'}, shares: [0.5, 1]}\n"
    )
    return load_policy_recipe(tmp_path / "recipe.yaml")


def test_a_function_is_called_for_every_share_and_goes_on_from_what_it_left(own: PolicyRecipe, tmp_path: Path) -> None:
    objective = objective_of(own)
    assert objective.shares == (0.5, 1.0)
    first, second = function_scores(tmp_path / "runs", own, objective.shares, None)
    assert (first.score, second.score) == (1.0, 2.0)
    assert second.saved is not None
    assert (second.saved / "seen").read_text() == "0.5 1.0 "
    # from what had been kept after the first share, elsewhere
    kept = tmp_path / "kept"
    scores = function_scores(tmp_path / "a", own, objective.shares, None)
    saved = next(scores).saved
    assert saved is not None
    saved.rename(kept)
    (rest,) = function_scores(tmp_path / "b", own, objective.shares, kept)
    assert (rest.share, rest.score) == (1.0, 2.0)
    assert rest.saved is not None
    assert (rest.saved / "seen").read_text() == "0.5 1.0 "


def test_a_function_that_is_none_is_told(own: PolicyRecipe, tmp_path: Path) -> None:
    for name, message in (("number", "is a int, not a function"), ("scores", "has no 'scores'")):
        with pytest.raises(RecipeError, match=message):
            objective_of(with_overrides(own, {"sweep.objective": f"{tmp_path}/own.py:{name}"}))
    with pytest.raises(RecipeError, match="there is no file"):
        objective_of(with_overrides(own, {"sweep.objective": "nowhere.py:score"}))


# policies that learn


@learns
@pytest.mark.slow
def test_a_policy_that_goes_on_elsewhere_is_the_one_that_was_never_interrupted(tmp_path: Path) -> None:
    recipe = policy()
    whole = list(policy_scores(tmp_path / "whole", recipe, (0.5, 1.0), None))
    scores = policy_scores(tmp_path / "part", recipe, (0.5, 1.0), None)
    first = next(scores)
    scores.close()
    assert first.saved is not None
    (rest,) = policy_scores(tmp_path / "rest", recipe, (0.5, 1.0), first.saved)
    assert [s.score for s in whole] == [first.score, rest.score]
    assert all(0 < s.score <= 60 for s in whole)
    assert rest.saved is not None
    from sim2real.policies import load_policy

    assert load_policy(rest.saved / "policy.zip")([[0.0, 0.0, 0.0, 0.0]]).shape == (1, 1)


@learns
@pytest.mark.slow
def test_sac_goes_on_with_what_it_remembers(tmp_path: Path) -> None:
    recipe = policy(train={"algorithm": "sac", "steps": 240, "envs": 4, "episodes": 2, "hidden": [8]})
    scores = policy_scores(tmp_path / "part", recipe, (0.5, 1.0), None)
    first = next(scores)
    scores.close()
    assert first.saved is not None
    (rest,) = policy_scores(tmp_path / "rest", recipe, (0.5, 1.0), first.saved)
    from stable_baselines3 import SAC

    assert rest.saved is not None
    model = SAC.load(rest.saved / "policy.zip")
    model.load_replay_buffer(rest.saved / "replay.pkl")
    assert model.num_timesteps == 240
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() * 4 == 240


@learns
def test_what_is_wrong_with_a_policy_recipe_is_said_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="no environment 'InvertedPendulm-v5'; did you mean InvertedPendulum-v5"):
        require_policy(policy(env="InvertedPendulm-v5"))
    with pytest.raises(ParameterError, match=r"dynamics.pol.mass"):
        require_policy(policy(parameters={"dynamics.pol.mass": "*U(0.9, 1.1)"}))
    with pytest.raises(ParameterError, match=r"dynamics.pol.mass"):
        require_policy(policy(twin={"parameters": {"dynamics.pol.mass": "*2"}}))
    require_policy(policy())


# randomizations that transfer


@pytest.mark.slow
def test_a_randomization_is_scored_by_the_twin_that_it_meets(tmp_path: Path) -> None:
    quick = [
        "twin.record.seconds=9",
        "twin.record.test_seconds=2.1",
        "observer.bandwidths=[45]",
        "model.iterations=60",
        "model.stretches=20",
        "control={limit: 3.0, seconds: 1.0, starts: 2, candidates: 20}",
    ]
    recipe = with_overrides(
        load_recipe(FOLDER / "pendulum.yaml", quick),
        {"sweep": {"objective": "transfer", "keys": {"model.rate": "LogU(1e-3, 1e-1)"}}},
    )
    rough, score = transfer_scores(tmp_path, recipe, (0.5, 1.0))
    assert 0 < score.score < 1
    assert rough.score != score.score
    assert list(transfer_scores(tmp_path, recipe, (0.5, 1.0))) == [rough, score]
    assert search_space(recipe)
