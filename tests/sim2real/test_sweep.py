"""Sweeps: the notation of ranges, what is refused, and a search that is interrupted and gone on with."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import sim2real.recipes
from sim2real.errors import LogError, MissingExtraError, RecipeError
from sim2real.objectives import OF_PIPELINES, Scored, stage_scores
from sim2real.preparation import prepare
from sim2real.recipe import Recipe, load_recipe, value_of, with_overrides
from sim2real.run_directory import write_json
from sim2real.search_space import parse_range, require_same_recordings, search_space
from sim2real.sweep import sweep

DELAY = "parameters.execution.latency.delay"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sweep_in_python.py"
PENDULUM = Path(sim2real.recipes.__file__).parent / "pendulum.yaml"
# a recording and an identification as short as they can be
SHORT = (
    "twin.record.seconds=9",
    "twin.record.test_seconds=2.1",
    "twin.record.validation_share=0.3",
    "observer.bandwidths=[45]",
    *("identify.tries=0", "identify.rounds=1", "identify.samples=10"),
)


def swept(keys: dict[str, str], *overrides: str, **more: Any) -> Recipe:
    recipe = load_recipe(PENDULUM, [*SHORT, *overrides])
    return with_overrides(recipe, {"sweep": {"keys": keys, **more}})


# notation

numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


@settings(deadline=None)
@given(st.tuples(numbers, numbers).filter(lambda b: b[0] < b[1]), st.floats(0, 1))
def test_a_uniform_range_prints_as_it_is_parsed_and_keeps_its_bounds(bounds: tuple[float, float], share: float) -> None:
    low, high = bounds
    parsed = parse_range("key", f"U({low}, {high})")
    assert parse_range("key", str(parsed)) == parsed
    value = parsed.value(low + share * (high - low))
    assert low <= value <= high
    assert value == pytest.approx(low + share * (high - low), rel=1e-5, abs=1e-9)
    assert all(low <= p <= high for p in parsed.probes)


@settings(deadline=None)
@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_a_whole_range_holds_both_its_bounds(low: int, width: int) -> None:
    parsed = parse_range("key", f" int({low},{low + width}) ")
    assert parsed.probes == (low, low + width)
    assert parse_range("key", str(parsed)) == parsed


def test_ray_draws_whole_numbers_from_both_bounds() -> None:
    pytest.importorskip("ray")
    domain = parse_range("key", "int(2, 3)").domain()
    assert {domain.sample() for _ in range(100)} == {2, 3}


words = st.text("abcxyz_", min_size=1, max_size=6).filter(lambda w: isinstance(yaml.safe_load(w), str))
plain = st.one_of(
    st.integers(-99, 99), st.booleans(), words, st.sampled_from(["=U(0, 0.08)", "*U(0.4, 3)", "*LogN(1, 0.3)"])
)
options = st.one_of(
    plain, st.lists(st.integers(0, 99), max_size=3), st.dictionaries(words, st.integers(0, 9), max_size=2)
)


def written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


@settings(deadline=None)
@given(st.lists(options, min_size=2, max_size=5, unique_by=repr))
def test_the_options_of_a_choice_are_yaml_split_at_outer_commas(values: list[Any]) -> None:
    if any(a == b for k, a in enumerate(values) for b in values[:k]):  # 1 and True
        return
    parsed = parse_range("key", f"choice({', '.join(map(written, values))})")
    assert list(parsed.probes) == values
    assert parse_range("key", str(parsed)) == parsed
    assert [parsed.value(option) for option in map(written, values)] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.4", r"expected U\(a, b\), LogU\(a, b\), int\(a, b\), choice.*found '0.4'"),
        ("uniform(0, 1)", "no range is called 'uniform'"),
        ("Choice(a, b)", "no range is called 'Choice'; did you mean choice"),
        ("U(1, 0.5)", "needs low < high"),
        ("U(1)", "takes 2 numbers"),
        ("LogU(0, 1)", "needs 0 < low < high"),
        ("int(1.5, 3)", "two whole numbers"),
        ("int(3, 1)", "two whole numbers"),
        ("choice()", "two options or more"),
        ("choice(a)", "two options or more"),
        ("choice(a, a)", "all different"),
        ("choice(a,, b)", "two options or more"),
        ("choice(=U(0, 1, b)", r"'\)' is missing"),
        ("choice(a], b)", "']' closes nothing"),
        ("choice('a, b)", '"\'" is missing'),
        ("choice([a: b: c], 2)", "cannot read the value"),
    ],
)
def test_wrong_notations_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_range("some.key", text)


# search spaces


@pytest.mark.parametrize(
    ("keys", "more", "message"),
    [
        ({"identify.windw": "U(0.3, 0.8)"}, {}, "no key 'identify.windw'; did you mean identify.window"),
        ({"parameters.execution.latency.dely": "choice(=U(0, 1), =U(0, 2))"}, {}, f"did you mean {DELAY}"),
        ({"split.train": "choice([a], [b])"}, {}, "split is not a section"),
        ({"identify.tries": "U(2, 5)"}, {}, "identify.tries: .*valid integer"),
        ({"identify.window": "U(-1, 1)"}, {}, "identify.window: .*a positive number of seconds"),
        ({"finetune.rate": "LogU(1e-4, 1e-2)"}, {}, "identification, which .*does not use it.*objective: finetune"),
        ({"control.horizon": "U(0.3, 1)"}, {}, "does not use it.*objective: control"),
        (
            {"control.horizon": "U(0.3, 1)"},
            {"objective": "finetune"},
            "fine-tuning, which is scored here, does not use it.*objective: control",
        ),
        ({"control.target": "U(0, 3)"}, {"objective": "control"}, "changes what is asked of a controller"),
        ({"sweep.trials": "int(1, 9)"}, {}, "no result depends on it"),
        ({}, {}, "nothing to sweep"),
    ],
)
def test_keys_that_cannot_be_swept(keys: dict[str, str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        search_space(swept(keys, **more))


def test_a_key_of_a_later_stage_can_be_swept_where_that_stage_is_scored() -> None:
    (values,) = search_space(swept({"finetune.rate": "LogU(1e-4, 1e-2)"}, objective="finetune")).values()
    assert str(values) == "LogU(0.0001, 0.01)"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("seed", "int(0, 3)", "seed: 3 changes the validation recordings"),
        ("learn.timestep", "choice(0.01, 0.02)", "no objective scores"),
        ("control.limit", "choice(2.0, 3.0)", "limit: 2.0 changes the validation recordings"),
        (DELAY, "choice(=U(0, 0.08), =V(0, 0.08))", f"{DELAY}: no distribution named 'V'"),
    ],
)
def test_what_changes_the_recordings_is_refused(key: str, text: str, message: str) -> None:
    recipe = swept({key: text})
    with pytest.raises(RecipeError, match=message):
        require_same_recordings(prepare(recipe), search_space(recipe))


def test_missing_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sim2real-toolkit\[tune\]'"):
        sweep(swept({"identify.window": "U(0.3, 0.8)"}), tmp_path)


def test_importing_the_sweep_imports_no_ray() -> None:
    code = "import sys, sim2real.sweep; sys.exit('ray' in sys.modules or 'optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# scores


@pytest.mark.slow
def test_a_recipe_is_scored_with_a_part_of_its_recordings_and_then_with_all(tmp_path: Path) -> None:
    recipe = swept({"identify.window": "U(0.3, 0.8)"})
    part, whole = stage_scores(tmp_path, recipe, (0.5, 1.0))
    assert (part.share, whole.share) == (0.5, 1.0)
    rough, score = part.score, whole.score
    assert 0 < score < 0.1
    assert score != rough
    assert (tmp_path / f"pendulum-{recipe.digest()}" / "posterior").is_dir()
    assert (tmp_path / "first-50-percent" / f"pendulum-{recipe.digest()}" / "posterior").is_dir()
    # what has finished is read, not done again
    stage = tmp_path / f"pendulum-{recipe.digest()}" / "stages" / "observe.json"
    assert list(stage_scores(tmp_path, recipe, (1.0,))) == [Scored(1.0, score)]
    write_json(stage, {"seconds": 0.0, "result": {"validation_nrmse": {"20": 0.25, "30": 0.125}}})
    assert list(stage_scores(tmp_path, recipe, (1.0,))) == [Scored(1.0, 0.125)]


@pytest.mark.slow
def test_a_controller_is_scored_on_what_was_identified_and_trials_share_what_was_learned(tmp_path: Path) -> None:
    said = "control={limit: 3.0, seconds: 1.0, starts: 2, candidates: 20}"
    scores = []
    for horizon in (0.04, 0.6):
        recipe = swept({"control.horizon": "U(0.04, 1)"}, said, f"control.horizon={horizon}", objective="control")
        (found,) = stage_scores(tmp_path, recipe, (1.0,))
        scores.append(found.score)
    assert all(0 < s < 1 for s in scores)
    assert scores[0] != scores[1]
    (run,) = tmp_path.glob("pendulum-*")
    assert (run / "model" / "finetuned").is_dir()
    # the same again is the same to the bit
    assert list(stage_scores(tmp_path, recipe, (1.0,))) == [Scored(1.0, scores[1])]


def test_a_part_too_short_to_learn_from_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise LogError("no window fits")

    monkeypatch.setattr("sim2real.stages.identify_stage", refuse)
    recipe = swept({"identify.window": "U(0.3, 0.8)"})
    assert list(stage_scores(tmp_path, recipe, (0.1,))) == []
    with pytest.raises(LogError, match="no window fits"):
        list(stage_scores(tmp_path, recipe, (1.0,)))


# the whole, on Ray, with a score that takes no time

TRIALS = 5
KEYS = {"identify.window": "U(0.3, 0.8)", DELAY: "choice(=U(0, 0.02), =U(0, 0.08))"}


def distance_scorer(scored: Path) -> Callable[..., Iterator[Scored]]:
    """Score by the distance of the window from 0.7 s; local, so that Ray hands it to its processes by value."""

    def scores(runs: Path, recipe: Any, shares: Sequence[float], kept: Path | None) -> Iterator[Scored]:
        for share in shares:
            with scored.open("a") as file:
                file.write(f"{share:.2f} {recipe.identify.window}\n")
            yield Scored(share, abs(recipe.identify.window - 0.7) + 0.1 * (1 - share))

    return scores


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sweep that is interrupted when its first trial ends, and then gone on with; and the example."""
    ray = pytest.importorskip("ray")
    output = tmp_path_factory.mktemp("with space")
    recipe = swept(KEYS, trials=TRIALS)
    lines: list[str] = []

    def interrupt(line: str) -> None:
        if "trial 1/" in line:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        scored = replace(OF_PIPELINES["identify"], scores=distance_scorer(output / "scored"))
        patch.setitem(OF_PIPELINES, "identify", scored)
        with contextlib.suppress(KeyboardInterrupt):
            sweep(recipe, output, say=interrupt)
        assert not ray.is_initialized()
        # once for all that follows: to start it takes longer than what is done
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        result = sweep(recipe, output, say=lines.append)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert ray.is_initialized()
    ray.shutdown()
    return {"recipe": recipe, "result": result, "lines": lines, "output": output, "printed": printed.getvalue()}


@pytest.mark.slow
def test_a_sweep_ends_with_a_score_for_every_trial(finished: dict[str, Any]) -> None:
    from pyarrow import parquet

    table = parquet.read_table(finished["result"].results).to_pydict()
    assert table["trial"] == list(range(TRIALS + 1))
    assert table["identify.window"][0] == 0.5
    assert table[DELAY][0] == "=U(0, 0.08)"
    assert set(table["status"]) <= {"finished", "stopped early"}
    for window, score, status, share in zip(
        *(table[k] for k in ("identify.window", "score", "status", "share")), strict=True
    ):
        assert 0.3 <= window <= 0.8
        assert (share == 1) == (status == "finished")
        assert score == pytest.approx(abs(window - 0.7) + 0.1 * (1 - share))


@pytest.mark.slow
def test_the_best_is_never_worse_than_the_recipe_as_it_was(finished: dict[str, Any]) -> None:
    result = finished["result"]
    assert result.baseline_score == pytest.approx(0.2)
    assert result.best_score <= result.baseline_score
    best = load_recipe(result.best_recipe)
    assert abs(best.identify.window - 0.7) == pytest.approx(result.best_score)
    assert best.sweep is None
    same = {key: value_of(finished["recipe"], key) for key in KEYS}
    assert with_overrides(best, same).digest() == finished["recipe"].digest()


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(finished: dict[str, Any]) -> None:
    assert any("going on" in line for line in finished["lines"])
    assert any(f"trial {TRIALS}/{TRIALS}" in line for line in finished["lines"])
    assert len(list((finished["result"].directory / "tune").glob("trial_*"))) == TRIALS


@pytest.mark.slow
def test_a_finished_sweep_is_only_read(finished: dict[str, Any]) -> None:
    lines: list[str] = []
    scored = (finished["output"] / "scored").read_text()
    assert sweep(finished["recipe"], finished["output"], say=lines.append) == finished["result"]
    assert any("finished earlier" in line for line in lines)
    assert (finished["output"] / "scored").read_text() == scored


@pytest.mark.slow
def test_a_sweep_leaves_a_tensorboard_log_of_every_trial(finished: dict[str, Any]) -> None:
    trials = (finished["result"].directory / "tune").glob("trial_*")
    assert all(list(trial.glob("events.out.tfevents.*")) for trial in trials)


@pytest.mark.slow
def test_the_example_finds_what_is_no_worse(finished: dict[str, Any]) -> None:
    *rows, last = finished["printed"].strip().splitlines()
    assert sum(row.startswith("{'trial'") for row in rows) == 4
    best, unswept = (float(number) for number in re.findall(r"best: (\S+), unswept: (\S+),", last)[0])
    assert 0 < best <= unswept < 1


@pytest.mark.slow
def test_a_sweep_leaves_the_process_as_it_was(finished: dict[str, Any]) -> None:
    assert finished["result"].results.is_file()
    assert "TUNE_GLOBAL_CHECKPOINT_S" not in os.environ


def test_what_became_of_a_trial_is_said_in_a_line() -> None:
    ray = pytest.importorskip("ray")
    from sim2real.trials import Row

    space = {"identify.window": parse_range("identify.window", "U(0.3, 0.8)")}
    config = {"identify.window": 0.5}
    ended = {"score": 2.0, "share": 1.0, "time_total_s": 3.0}
    assert Row.of(space, config, ended, None) == Row({"identify.window": 0.5}, "finished", 2.0, 1.0, 3.0)
    assert Row.of(space, config, {**ended, "share": 0.5}, None).status == "stopped early"
    said = {
        "its score is not finite: nan": ({**ended, "score": float("nan")}, None),
        "its score is not finite: inf": ({**ended, "score": float("inf")}, None),
        "ValueError: x is <bad>": ({**ended, "score": float("nan"), "failed": "ValueError: x is <bad>"}, None),
        "its process was killed each time": (ended, ray.exceptions.RayActorError()),
        "out of memory": (ended, ray.exceptions.OutOfMemoryError("of a node")),
        "no window fits": (None, LogError("no window\nfits")),
    }
    for why, (metrics, error) in said.items():
        row = Row.of(space, config, metrics, error)
        assert row.failed
        assert row.status.startswith(f"failed: {why}")
        assert row.score != row.score
