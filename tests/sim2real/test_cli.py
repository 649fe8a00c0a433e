"""The command line, end to end: a whole run, a kill in the middle of it, and every kind of bad input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sim2real.cli import main
from sim2real.logs import read_logs
from sim2real.world_model import EnsembleConfig, EnsembleDynamics

ROOT = Path(__file__).resolve().parents[2]
PENDULUM = ROOT / "recipes" / "pendulum.yaml"
# The whole loop in seconds: everything is there, nothing is good.
SMALL = [
    "twin.record={seconds: 6, test_seconds: 3}",
    "identify={tries: 4, starts: 1, rounds: 1, samples: 50}",
    "observer.bandwidths=[45]",
    "model={stretches: 20, iterations: 60, members: 3, hidden: [16], steps: 10}",
    "finetune={iterations: 5, steps: 5}",
    "learn={timestep: 0.02, iterations: 12, members: 2, hidden: [8], batch: 8, latents: 1, windows: 60}",
    "learn.distill=true",
    "learn.practice=6",
    "control={limit: 3.0, seconds: 0.4, starts: 2, candidates: 20}",
]


def sim2real(*arguments: object, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sim2real.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)


def called(*arguments: object, cwd: Path, capsys: pytest.CaptureFixture[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line within this process, which spares the imports; as `sim2real` otherwise."""
    with contextlib.chdir(cwd):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    out, err = capsys.readouterr()
    return subprocess.CompletedProcess([], status, out, err)


def metrics(output: Path) -> dict[str, Any]:
    (path,) = output.glob("*/metrics.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def without_clocks(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what may differ between two runs of the same recipe: clocks."""
    return {k: v for k, v in found.items() if k not in ("seconds", "planning_milliseconds", "environment")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An unbroken small run: its output folder, and what it printed."""
    cwd = tmp_path_factory.mktemp("unbroken")
    done = sim2real("run", PENDULUM, *SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "runs", done.stdout


def test_a_check_says_how_many_truths_were_held_and_keeps_them(tmp_path: Path) -> None:
    few = ("identify", PENDULUM, *SMALL, "--check", 2)
    first = sim2real(*few, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert re.search(r"dynamics.payload.mass +[0-2] of 2 ", first.stdout), first.stdout
    assert re.search(r"90 % intervals hold [0-9.]+% of the truths", first.stdout)
    (kept,) = tmp_path.glob("runs/*/check")
    assert json.loads((kept / "check.json").read_text())["truths"] == 2
    before = (kept / "truth-0001.json").stat().st_mtime_ns
    again = sim2real(*few, cwd=tmp_path)
    assert again.stdout == first.stdout
    assert (kept / "truth-0001.json").stat().st_mtime_ns == before, "it was not identified again"


def test_run_writes_everything(finished: tuple[Path, str]) -> None:
    output, printed = finished
    (run,) = output.iterdir()
    artifacts = (
        "recipe.yaml",
        "metrics.json",
        "report.html",
        "posterior/posterior.json",
        "posterior/samples.safetensors",
        "model/finetuned/config.json",
        "model/recordings_model/config.json",
        "model/rehearsed_model/recalibration.json",
        "model/distilled_model/recalibration.json",
    )
    for name in artifacts:
        assert (run / name).is_file(), name
    assert "report:" in printed
    assert "Traceback" not in printed


def test_finetune_tells_before_and_after_and_what_was_forgotten(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = called("finetune", PENDULUM, *SMALL, cwd=finished[0].parent, capsys=capsys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"seconds ahead +held-out CRPS before +after", done.stdout), done.stdout
    assert re.search(r"\n1 +[0-9.]+ +[0-9.]+ \([+-][0-9]+ %\)", done.stdout), done.stdout
    assert re.search(r"error on replayed simulations.*: [0-9.]+, now [0-9.]+", done.stdout), done.stdout
    assert re.search(r"fine-tuning \(anchored\) (accepted|refused): CRPS", done.stdout), done.stdout


def tuned_in_place(
    name: str, finished: Path, place: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[Path, tuple[object, ...]]:
    """Fine-tune a model of the finished run; return where the new run is, and with what it was called."""
    (run,) = finished.glob("*/")
    asked = (PENDULUM, *SMALL, f"finetune.model={run / 'model' / name}", *more)
    done = called("finetune", *asked, cwd=place, capsys=capsys)
    assert done.returncode == 0, done.stderr
    (new,) = (place / "runs").glob("*/")
    weights = "model.safetensors"
    assert (new / "model" / "pretrained" / weights).read_bytes() == (run / "model" / name / weights).read_bytes()
    return new, asked


def test_a_saved_model_is_tuned_in_place_of_one_that_is_trained(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, _ = tuned_in_place("finetuned", finished[0], tmp_path, capsys)
    page = (new / "finetuning.html").read_text()
    assert page.count("worst second</h3>") == 1
    assert page.count('<script type="application/json" data-plot=') == 3  # scores, a typical window, the worst


def test_a_saved_model_that_looks_back_is_tuned_and_controls_behind_a_safety_filter(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safe = ("control.limit=14", "control.safety={velocity: [12], rate: [200]}", "control.planner=icem")
    safe += ("control.loop={seconds: 0.6}", "control.back_off={seconds: 4, false_alarms: 0.1}", "control.fallback=hold")
    _, asked = tuned_in_place("rehearsed_model", finished[0], tmp_path, capsys, *safe)
    done = called("control", *asked, cwd=tmp_path, capsys=capsys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"after: the safety filter stepped in: .*rate \d+", done.stdout), done.stdout
    assert "stopped" not in done.stdout
    assert re.search(r"after: backed off in \d+\.\d% of the periods", done.stdout), done.stdout
    assert re.search(r"real time: \d+ periods at ", done.stdout), done.stdout
    (place,) = re.findall(r"recording: (.*)", done.stdout)
    (episode,) = read_logs(tmp_path / place)
    assert episode.duration == pytest.approx(0.6, abs=0.1)
    assert (tmp_path / place).parent.joinpath("clock.npz").is_file()


def test_limits_that_a_robot_cannot_keep_are_refused_before_anything_takes_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = called("control", PENDULUM, *SMALL, "control.safety={velocity: [12]}", cwd=tmp_path, capsys=capsys)
    _refused(weak, 2, "control.safety: efforts of [3.0] cannot stop and hold pendulum everywhere within its limits")
    wrong = called("control", PENDULUM, *SMALL, "control.cost=[{cost: uprihgt}]", cwd=tmp_path, capsys=capsys)
    _refused(wrong, 2, "no cost named 'uprihgt'; did you mean upright?")
    none = called("control", PENDULUM, *SMALL, "control.cost=[]", cwd=tmp_path, capsys=capsys)
    _refused(none, 2, "no term has a goal")
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def test_a_saved_model_of_another_robot_is_refused_before_anything_takes_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EnsembleDynamics(EnsembleConfig((True, False), 1, 0.02, hidden=(4,))).save(tmp_path / "other")
    for place, why in (("other", "of a robot with 2 joints, 1 of them turning freely"), ("none", "no model in")):
        done = called("finetune", PENDULUM, *SMALL, f"finetune.model={place}", cwd=tmp_path, capsys=capsys)
        _refused(done, 1, why)
        assert not list(tmp_path.glob("runs/*/stages/identify.json"))


def test_rounds_go_on_from_a_run_and_are_kept(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "dagger={rounds: 1, seconds: 2.6, episode: 1.3, iterations: 3}"
    asked = ("dagger", PENDULUM, *SMALL, small)
    done = called(*asked, cwd=finished[0].parent, capsys=capsys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 +2\.6 s +50% +[0-9.e-]+ +[0-9.e-]+ +(accepted|refused): CRPS", done.stdout), done.stdout
    assert re.search(r"before: mean uprightness 0\.\d+ .*\n +after: mean uprightness 0\.\d+", done.stdout), done.stdout
    (directory,) = finished[0].glob("*/rounds-*")
    assert (directory / "round-01" / "model" / "recalibration.json").is_file()
    assert len(list((directory / "round-01" / "logs").glob("*.parquet"))) == 2
    before = (directory / "round-01" / "round.json").stat().st_mtime_ns
    assert called(*asked, cwd=finished[0].parent, capsys=capsys).stdout == done.stdout
    assert (directory / "round-01" / "round.json").stat().st_mtime_ns == before, "the round was not run again"
    two = small.replace("rounds: 1", "rounds: 2, scratch: true")
    more = called(*asked[:-1], two, cwd=finished[0].parent, capsys=capsys)
    assert re.search(r"\n2 +2\.6 s +25%", more.stdout), more.stdout
    assert len(list(finished[0].glob("*/rounds-*"))) == 1
    curve = json.loads((directory / "rounds.json").read_text())["curve"]
    assert [round(point["seconds"], 1) for point in curve] == [2.6, 5.2]
    assert {len(point["scratch"]) for point in curve} == {len(point["after"]) for point in curve} == {2}
    page = (directory / "rounds.html").read_text()
    assert page.count('<script type="application/json" data-plot=') == 2
    assert "planning with a model of the recordings alone" in page
    assert "With 5.20 s of the robot, mean uprightness went from" in page
    again = called(*asked[:-1], small.replace("iterations: 3", "anew: true"), cwd=finished[0].parent, capsys=capsys)
    assert re.search(r"1 +2\.6 s +50% +[0-9.e-]+ +[0-9.e-]+ +(accepted|refused): CRPS", again.stdout), again.stdout
    assert len(list(finished[0].glob("*/rounds-*"))) == 2
    without = called("dagger", PENDULUM, cwd=tmp_path, capsys=capsys)
    _refused(without, 2, "give the recipe a `learn:` section")
    for robot in ("NoSuchRobot-v0", "no_such_module:Robot-v0"):
        asked = ("dagger", PENDULUM, "learn={timestep: 0.02}", f"dagger.env={robot}")
        _refused(called(*asked, cwd=tmp_path, capsys=capsys), 2, "dagger.env: ")
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_a_dry_run_says_what_recordings_see_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = called("finetune", PENDULUM, *SMALL[:-1], "--dry-run", SMALL[-1], cwd=tmp_path, capsys=capsys)
    assert done.returncode == 0, done.stderr
    assert re.search(r"training part\) +train +4\.5 +\d+ +commanded", done.stdout), done.stdout
    assert "stretches of 0.1 s in 5 seconds; not enough for finetune.method=auto" in done.stdout
    assert re.search(r"hinge \[rad, rad/s\] +-3\.\d+ to \d\.\d+, .* \d+% +\d+%", done.stdout), done.stdout
    assert not (tmp_path / "runs").exists()


def test_metrics_hold_what_they_promise(finished: tuple[Path, str]) -> None:
    found = metrics(finished[0])
    rows = found["scores"]["test"]["test_recording"]
    predictors = {
        "persistence",
        "nominal_simulator",
        "identified_simulator",
        "pretrained_model",
        "finetuned_model",
        "recordings_model",
        "rehearsed_model",
        "distilled_model",
        "combined",
    }
    assert set(rows) == predictors
    for scores in rows.values():
        assert scores["mean_nrmse"] >= 0
        for horizon in ("0.1", "0.2", "0.5", "1"):
            s = scores[horizon]
            assert set(s["coverage"]) == {"0.5", "0.9", "0.95"}
            low, high = s["coverage90_interval"]
            assert 0 <= low <= high <= 1
            assert s["rmse"]["hinge"] >= 0
    assert rows["identified_simulator"]["mean_nrmse"] < 0.5 * rows["nominal_simulator"]["mean_nrmse"]
    assert set(found["closed_loop"]) == {"fallback", "before", "after", "oracle"}
    delay = found["parameters"]["execution.latency.delay"]
    assert delay["unit"] == "s"
    assert delay["interval90"][0] <= delay["mean"] <= delay["interval90"][1]
    assert found["seconds"]["identify"] > 0


def test_finished_run_is_not_repeated(finished: tuple[Path, str]) -> None:
    before = without_clocks(metrics(finished[0]))
    done = sim2real("run", PENDULUM, *SMALL, cwd=finished[0].parent)
    assert done.returncode == 0
    assert "finished earlier" in done.stdout
    assert without_clocks(metrics(finished[0])) == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "control"])
def test_kill_and_go_on(stage: str, finished: tuple[Path, str], tmp_path: Path) -> None:
    """Kill -9 while a stage is at work, run again: the same metrics as without the kill."""
    order = ["identify", "observe", "pretrain", "finetune", "learn", "adapt", "evaluate", "control", "report"]
    before, after = order[: order.index(stage)], order[order.index(stage) :]
    # as if the run had got so far: what comes before is tried by runs that begin anew
    (run,) = (Path(shutil.copytree(finished[0], tmp_path / "runs"))).iterdir()
    for name in after:
        (run / "stages" / f"{name}.json").unlink(missing_ok=True)
    for left in ("metrics.json", "report.html", "closed_loop.npz", *(["model"] if stage == "pretrain" else [])):
        place = run / left
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sim2real.cli", "run", str(PENDULUM), *SMALL]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == [before[-1]]:
            break
    time.sleep(0.3)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "stages" / f"{stage}.json").exists()
    again = sim2real("run", PENDULUM, *SMALL, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "finished earlier" in again.stdout
    assert without_clocks(metrics(tmp_path / "runs")) == without_clocks(metrics(finished[0]))


def test_report_can_be_rebuilt(finished: tuple[Path, str]) -> None:
    (run,) = finished[0].iterdir()
    (run / "report.html").unlink()
    done = sim2real("report", run, cwd=run)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").is_file()


def _refused(done: subprocess.CompletedProcess[str], status: int, *said: str) -> None:
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    for words in said:
        assert words in done.stderr


def test_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(
        called("run", PENDULUM, "identify.windw=0.4", cwd=tmp_path, capsys=capsys),
        2,
        "identify.windw",
        "did you mean window",
    )


def test_unknown_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = "parameters={dynamics.payload.masss: '*U(0.5, 2)'}"
    _refused(
        called("run", PENDULUM, override, cwd=tmp_path, capsys=capsys),
        1,
        "dynamics.payload.masss",
        "dynamics.payload.mass",
    )


def test_missing_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(called("run", tmp_path / "nothing.yaml", cwd=tmp_path, capsys=capsys), 2, "nothing.yaml")


def test_robot_that_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    robot = tmp_path / "robot.xml"
    robot.write_text("<mujoco><worldbody><body></mujoco>")
    _refused(called("run", PENDULUM, f"robot={robot}", cwd=tmp_path, capsys=capsys), 1, "robot.xml", "does not parse")


def test_missing_robot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _refused(called("run", PENDULUM, "robot=pendulm", cwd=tmp_path, capsys=capsys), 1, "pendulm", "pendulum")


RECIPE = """
name: from_logs
robot: pendulum
parameters: {dynamics.payload.mass: "*U(0.5, 2)"}
logs: logs
log_schema:
  file: "{name}.csv"
  time: {column: t, unit: s}
  observations: {position: {column: q, unit: rad}}
  actions: {torque: {column: u, unit: N·m}}
  action_source: commanded
split: {train: [a], validation: [a]}
control: {limit: 1.0}
"""
ROWS = "t,q,u\n" + "".join(f"{0.01 * k:.2f},{0.001 * k:.4f},0.5\n" for k in range(300))


@pytest.mark.parametrize(
    ("change", "recipe", "status", "said"),
    [
        (lambda csv: csv.replace("t,q,u", "t,angle,u"), RECIPE, 1, ["q", "angle"]),
        (lambda csv: csv, RECIPE.replace("unit: rad}", "unit: radd}"), 1, ["radd", "rad"]),
        (lambda csv: csv.replace("\n0.50,", "\n0.49,"), RECIPE, 1, ["increase"]),
        (lambda csv: csv.replace("\n0.50,", "\nnan,"), RECIPE, 1, ["finite"]),
        (lambda csv: "", RECIPE, 1, ["a.csv"]),
        (lambda csv: csv, RECIPE.replace("train: [a]", "train: [b]"), 1, ["b", "a"]),
    ],
    ids=["missing column", "wrong unit", "clock goes back", "clock is NaN", "empty file", "missing recording"],
)
def test_bad_logs(
    change: Any, recipe: str, status: int, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.csv").write_text(change(ROWS))
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = called("identify", "recipe.yaml", cwd=tmp_path, capsys=capsys)
    _refused(done, status, *said)
    assert not (tmp_path / "runs").exists(), "nothing had begun, so nothing is left behind"


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(cwd=tmp_path, capsys=capsys).returncode == 2
    assert called("--help", cwd=tmp_path, capsys=capsys).returncode == 0
    verbs = (
        "run",
        "identify",
        "finetune",
        "evaluate",
        "control",
        "dagger",
        "sweep",
        "report",
        "logs",
        "parameters",
        "preview",
        "doctor",
    )
    for verb in verbs:
        done = called(verb, "--help", cwd=tmp_path, capsys=capsys)
        assert done.returncode == 0
        assert "usage: sim2real" in done.stdout


def test_doctor_and_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = called("doctor", cwd=tmp_path, capsys=capsys)
    assert done.returncode == 0
    assert "torch" in done.stdout
    listed = called("parameters", "pendulum", cwd=tmp_path, capsys=capsys)
    assert "dynamics.payload.mass" in listed.stdout
    assert "kg" in listed.stdout
