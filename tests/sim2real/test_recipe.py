"""Recipes: what loads, what overrides do, and what is said about mistakes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import sim2real.recipes
from sim2real.errors import RecipeError
from sim2real.policy_recipe import load_policy_recipe
from sim2real.randomization import load_function
from sim2real.randomization.robots import ROBOTS
from sim2real.recipe import Recipe, TuningMethod, asked_for, load_recipe, parse_recipe
from sim2real.search_space import search_space

RECIPES = sorted(Path(sim2real.recipes.__file__).parent.glob("*.yaml"))
PACKAGED = [path for path in RECIPES if not asked_for(path)[1]]
TWIN: dict[str, Any] = {
    "name": "small",
    "robot": "pendulum",
    "execution": [{"stage": "latency"}],
    "parameters": {"dynamics.payload.mass": "*U(0.4, 3)", "execution.latency.delay": "=U(0, 0.08)"},
    "twin": {"parameters": {"dynamics.payload.mass": 0.85}},
    "control": {"limit": 3.0},
    "sweep": {"keys": {"identify.window": "U(0.3, 0.8)"}, "trials": 4},
}
LOGS: dict[str, Any] = {
    **{k: v for k, v in TWIN.items() if k not in ("twin", "sweep")},
    "logs": "folder",
    "log_schema": {"file": "{name}.csv"},
    "split": {
        "train": ["a"],
        "validation": ["b"],
        "shift": [{"adapt_to": "c", "seconds": 2.0, "recordings": ["c", "d"]}],
    },
}


def written(folder: Path, document: dict[str, Any], **changed: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**document, **changed}, allow_unicode=True))
    return path


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.stem)
def test_packaged_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert (recipe.twin is None) != (recipe.split is None)
    assert recipe.robot in ROBOTS or load_function(recipe.robot).joint_names
    assert recipe.control.limit > 0


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in PACKAGED], ids=lambda p: p.stem)
def test_packaged_recipes_of_environments_load(path: Path) -> None:
    recipe = load_policy_recipe(path)
    assert recipe.name == path.stem
    assert recipe.sweep is not None
    assert set(search_space(recipe)) == set(recipe.sweep.keys)


def test_there_are_packaged_recipes() -> None:
    assert {p.stem for p in PACKAGED} >= {"pendulum", "dfki_pendulum"}
    assert {p.stem for p in RECIPES} >= {"late_cartpole"}


# mistakes


@pytest.mark.parametrize(
    ("base", "key", "said"),
    [
        (TWIN, "idntify", "unknown key 'idntify'; did you mean identify"),
        (TWIN, "identify.windw", "unknown key 'identify.windw'; did you mean window"),
        (TWIN, "twin.record.hodl", "unknown key 'twin.record.hodl'; did you mean hold"),
        (TWIN, "model.excitation.velocty", "unknown key 'model.excitation.velocty'; did you mean velocity"),
        (LOGS, "split.trian", "unknown key 'split.trian'; did you mean train"),
    ],
)
def test_unknown_keys_come_with_the_nearest(tmp_path: Path, base: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(tmp_path, base), [f"{key}=1"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_in_a_list_come_with_the_nearest() -> None:
    document = copy.deepcopy(LOGS)
    document["split"]["shift"][0]["recrdings"] = document["split"]["shift"][0].pop("recordings")
    with pytest.raises(RecipeError) as error:
        parse_recipe(document, "here")
    assert "unknown key 'split.shift.0.recrdings'; did you mean recordings" in str(error.value)
    assert "key 'split.shift.0.recordings' is missing" in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("identify.window=wide", "identify.window: expected auto, .inf or a positive number of seconds.*found 'wide'"),
        ("identify.window=-1", "identify.window: expected auto, .inf or a positive number of seconds.*found -1"),
        ("model.members=2.5", "model.members: .*found 2.5"),
        ("model.hidden=[64, big]", "model.hidden.1: .*found 'big'"),
        ("parameters=[1, 2]", "parameters: input should be a valid dictionary"),
        ("control=null", "control: "),
        ("name.first=x", "name.first: 'name' is not a section"),
        ("seed", "an override is section.key=value, found 'seed'"),
        ("=1", "an override is section.key=value, found '=1'"),
        ("seed=[1", r"seed: cannot read the value '\[1' as YAML"),
        ("sweep.objective=fast", "sweep.objective: .*found 'fast'"),
        (
            "learn.timestep=0.0125",
            "learn.timestep has to be a whole number of .* 0.001 s .*found 0.0125 s; .*rehearse: fal",
        ),
    ],
)
def test_wrong_overrides_say_what_was_found(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        load_recipe(written(tmp_path, TWIN), [override])
    assert "\n" not in str(error.value)


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="key 'control' is missing"):
        parse_recipe({k: v for k, v in TWIN.items() if k != "control"}, "here")
    path = written(tmp_path, TWIN)
    with pytest.raises(RecipeError, match=r"no recipe at .*recipes\.yaml; did you mean recipe\.yaml"):
        load_recipe(tmp_path / "recipes.yaml")
    path.write_text("name: [unclosed")
    with pytest.raises(RecipeError, match="is not valid YAML") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
    path.write_text("- a list")
    with pytest.raises(RecipeError, match="must be a mapping of keys such as name, robot, parameters; found list"):
        load_recipe(path)
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({k: v for k, v in TWIN.items() if k != "twin"}, "needs either `twin:`"),
        ({**LOGS, "twin": {}}, "needs either `twin:`"),
        ({k: v for k, v in LOGS.items() if k != "logs"}, "`split:` needs `logs:`"),
        ({k: v for k, v in LOGS.items() if k != "log_schema"}, "`split:` needs `logs:`"),
    ],
    ids=["none", "both", "no logs", "no schema"],
)
def test_there_is_exactly_one_source(document: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(document, "here")


def test_models_that_rehearse_nothing_need_no_whole_steps() -> None:
    assert parse_recipe({**TWIN, "learn": {"timestep": 0.0125, "rehearse": False}}, "here").learn is not None
    learned = parse_recipe({**TWIN, "learn": {"timestep": 0.012}}, "here").learn
    assert learned is not None
    assert learned.rehearse


# overrides


def test_overrides_reach_every_depth(tmp_path: Path) -> None:
    path = written(tmp_path, TWIN)
    found = load_recipe(
        path,
        [
            "seed=7",
            "identify.tries=3",
            "model.hidden=[8, 8]",
            "twin.record.seconds=5.5",
            "parameters.execution.latency.delay==U(0, 0.02)",
            "parameters.dynamics.payload.mass=*U(0.9, 1.1)",
            "parameters.dynamics.hinge.damping==N(0.02, 0.01)",
            "twin.parameters.dynamics.hinge.damping=0.07",
        ],
    )
    assert (found.seed, found.identify.tries, found.model.hidden) == (7, 3, (8, 8))
    assert found.parameters == {
        "dynamics.payload.mass": "*U(0.9, 1.1)",
        "execution.latency.delay": "=U(0, 0.02)",
        "dynamics.hinge.damping": "=N(0.02, 0.01)",
    }
    assert found.twin is not None
    assert found.twin.record.seconds == 5.5
    assert found.twin.parameters == {"dynamics.payload.mass": 0.85, "dynamics.hinge.damping": 0.07}
    # what is not named stays, and the file too
    assert found.identify.window == load_recipe(path).identify.window
    assert load_recipe(path).seed == 0


def test_paths_are_relative_to_the_recipe_or_to_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = written(tmp_path, LOGS, robot="my/robot.xml")
    found = load_recipe(path)
    assert found.robot == str(tmp_path / "my" / "robot.xml")
    assert found.logs == str(tmp_path / "folder")
    assert load_recipe(path, ["logs=here"]).logs == str(elsewhere / "here")
    assert load_recipe(path, ["robot=cartpole"]).robot == "cartpole"  # the name of a packaged robot is no path


# the resolved recipe


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.stem)
def test_the_resolved_recipe_reads_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["seed=3", "model.hidden=[32]"])
    copied = tmp_path / "deep" / "recipe.yaml"
    copied.parent.mkdir()
    copied.write_text(recipe.to_yaml())
    again = load_recipe(copied)
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.to_yaml() == recipe.to_yaml()


def test_the_digest_is_of_what_results_depend_on() -> None:
    def digest(**changed: Any) -> str:
        return parse_recipe({**TWIN, **changed}, "here").digest()

    assert digest() == digest()
    assert len(digest()) == 8
    assert digest(sweep={"keys": {}, "trials": 9}) == digest()
    assert digest(identify={}) == digest()  # a default spelled out
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"timestep": 0.002},
        {"identify": {"window": 0.4}},
        {"twin": {"parameters": {"dynamics.payload.mass": 0.86}}},
        {"parameters": {"dynamics.payload.mass": "*U(0.4, 3.1)"}},
        {"execution": [{"stage": "latency", "delay": 0.01}]},
    ]
    assert len({digest(**c) for c in [{}, *changes]}) == len(changes) + 1


def test_a_recipe_cannot_be_changed() -> None:
    recipe: Recipe = parse_recipe(TWIN, "here")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_the_methods_of_a_recipe_are_those_that_there_are() -> None:
    from sim2real.calibration.tuning import METHODS

    assert get_args(TuningMethod) == (*METHODS, "auto")
