"""The log linter: silent on clean logs, each planted fault found by its code, true findings on the recorded robots."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sim2real.cli import main
from sim2real.logs import LogSchema, RawChannel, RawRecording
from sim2real.logs.lint import CODES, check_recordings
from sim2real.logs.lint.lags import regress_over_lags
from sim2real.logs.read import read_raw

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
spec = importlib.util.spec_from_file_location("_lint_logs", ROOT / "benchmarks" / "_lint_logs.py")
lint_logs = importlib.util.module_from_spec(spec)
sys.modules["_lint_logs"] = lint_logs
spec.loader.exec_module(lint_logs)


@pytest.fixture(scope="module")
def logs():
    return lint_logs.make_logs(30, seed=77)


@pytest.fixture(scope="module")
def reports(logs):
    return [check_recordings([log.recording]) for log in logs]


def codes(recording, *severities):
    wanted = severities or ("warning", "error")
    return {f.code for f in check_recordings([recording]).findings if f.severity in wanted}


def test_clean_logs_raise_no_alarm(reports):
    """The rate over 200 logs is in benchmarks/lint_logs.py."""
    assert [f for report in reports for f in report.findings if f.severity != "note"] == []


@pytest.mark.parametrize("fault", lint_logs.FAULTS)
def test_a_planted_fault_is_found_by_its_code(logs, fault):
    code, plant, visible = lint_logs.FAULTS[fault]
    rng = np.random.default_rng(5)
    some = [log for log in logs if visible(log)][:5]
    assert len(some) > 1
    findings = [check_recordings([plant(log, rng)]).findings for log in some]
    assert all(code in {f.code for f in found if f.severity != "note"} for found in findings)
    # and it is not taken for something else altogether
    assert {f.code for found in findings for f in found if f.severity == "error"} - {code} <= {"LOG005", "LOG010"}


def test_the_delay_of_a_command_lies_in_its_interval(logs, reports):
    inside = []
    for log, report in zip(logs, reports, strict=True):
        for f in report.findings:
            if f.code == "LOG012" and log.kind == "torque":
                inside.append(f.values["low"] <= log.latency <= f.values["high"])
                assert abs(f.values["delay"] - log.latency) < max(0.004, 0.35 * log.dt)
    assert len(inside) > 10
    assert np.mean(inside) > 0.8


def test_a_lag_is_found_between_samples():
    rng = np.random.default_rng(0)
    t = 0.004 * np.arange(5000)
    signal = lambda at: np.sin(3 * at) + 0.7 * np.sin(7.3 * at + 1) + 0.3 * np.sin(19 * at)  # noqa: E731
    covered = []
    for lag in (0.0, 0.0031, 0.0162, 0.031):
        y = -2 * signal(t - lag) + 0.1 * rng.normal(size=len(t))
        found = regress_over_lags(y, signal(t)[:, None], 0.004, -2, 15)
        assert found.lag == pytest.approx(lag, abs=0.0005)
        assert found.gain[0] == pytest.approx(-2, rel=0.01)
        covered.append(found.low - 0.0003 <= lag <= found.high + 0.0003)
    assert all(covered)


def channel(group, name, unit, t, values, clock="time"):
    return RawChannel(group, name, unit, t, np.asarray(values, float), f"{name}.csv", clock)


def test_clocks_that_go_back_and_clocks_that_drift():
    t = np.arange(0, 20, 0.01)
    back = t.copy()
    back[500] = 1.0
    q = np.sin(t)
    recording = RawRecording("a", (channel("observations", "q", "rad", back, q),), "commanded")
    assert "LOG019" in codes(recording)
    rng = np.random.default_rng(0)
    received = 5.0 + t * (1 + 150e-6) + rng.exponential(0.002, len(t))
    drifting = RawRecording(
        "b",
        (channel("observations", "q", "rad", t, q),),
        "commanded",
        stamps=(("/joints", np.stack([t, received], 1)),),
    )
    (found,) = [f for f in check_recordings([drifting]).findings if f.code == "LOG018"]
    assert found.values["drift"] == pytest.approx(150e-6, abs=20e-6)


def test_the_last_action_may_be_empty_and_what_is_not_there_is_said():
    t = np.arange(0, 5, 0.01)
    u = np.sin(9 * t)
    u[-1] = np.nan
    parts = (channel("observations", "q", "rad", t, np.sin(t)), channel("actions", "u", "N·m", t, u))
    assert "LOG004" not in codes(RawRecording("a", parts, "commanded"))
    report = check_recordings([], [("b.csv", "b.csv: the file is empty")])
    assert [f.code for f in report.findings] == ["LOG000"]


def test_every_code_says_what_it_prevents_and_how_to_mend_it():
    assert list(CODES) == [f"LOG{k:03d}" for k in range(20)]
    assert all(rule.title and rule.prevents and rule.mend for rule in CODES.values())


def test_reports(logs, tmp_path):
    report = check_recordings(
        [lint_logs.FAULTS["late velocity"][1](logs[0], np.random.default_rng(0)), logs[1].recording]
    )
    text = report.text()
    assert "LOG011 warning: velocity lags in 1 of 2 recordings" in text
    assert "mend: estimate the state from the positions" in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["counts"]["warning"] >= 1
    assert {"code", "severity", "what", "prevents", "mend", "values"} <= set(data["findings"][0])
    page = report.html()
    assert "LOG011" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_from_the_command_line(tmp_path, capsys):
    t = np.arange(0, 6, 0.01)
    v = 3 * np.cos(3 * (t - 0.02))
    rows = [f"{a:.3f},{np.sin(3 * a):.5f},{b:.5f},{np.cos(a):.5f}" for a, b in zip(t, v, strict=True)]
    (tmp_path / "swing.csv").write_text("t,q,v,u\n" + "\n".join(rows))
    (tmp_path / "broken.csv").write_text("t,q,v,u\n0,0\n")
    schema = {
        "time": {"column": "t", "unit": "s"},
        "observations": {"position": {"column": "q", "unit": "rad"}, "velocity": {"column": "v", "unit": "rad/s"}},
        "actions": {"torque": {"column": "u", "unit": "N·m"}},
        "action_source": "commanded",
    }
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(schema, allow_unicode=True))
    arguments = ["logs", "check", str(tmp_path), "--schema", str(tmp_path / "schema.yaml")]
    assert main(arguments) == 1  # one of the files cannot be read
    out = capsys.readouterr().out
    assert "LOG000 error: cannot be read" in out
    assert "20.0 ms late" in out
    (tmp_path / "broken.csv").unlink()
    assert main([*arguments, "--format", "json"]) == 0
    assert [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]][:1] == ["LOG017"]
    assert main([*arguments, "--format", "html", "--output", str(tmp_path / "report.html")]) == 0
    assert "LOG011" in (tmp_path / "report.html").read_text()


SCHEMAS = {
    "qube": """
time: {column: time, unit: s}
observations:
  arm: {column: "states[0]", unit: rad}
  pole: {column: "states[1]", unit: rad}
  arm_speed: {column: "states[2]", unit: rad/s}
  pole_speed: {column: "states[3]", unit: rad/s}
actions: {volts: {column: volts_commanded, unit: V}}
action_source: commanded
""",
    "xl330": """
time: {column: entries.timestamp, unit: s}
observations: {angle: {column: entries.position, unit: rad}, speed: {column: entries.speed, unit: rad/s}}
actions: {goal: {column: entries.goal_position, unit: rad}}
action_source: commanded
""",
    "pendulum": """
files: {measured: "{name}_measured.csv", desired: "{name}_desired.csv"}
time: {column: measured.time, unit: s}
observations: {angle: {column: measured.position, unit: rad}, speed: {column: measured.velocity, unit: rad/s}}
actions: {torque: {column: desired.torque, unit: N·m}}
action_source: commanded
measured_actions: {torque: {column: measured.torque, unit: N·m}}
recordings:  # played by the motor's own loop: what was asked of the torque means nothing
  pd_sysid: &measured {action_source: measured, actions: {torque: {column: measured.torque, unit: N·m}}}
  ddp: *measured
  direct_collocation: *measured
""",
    "double_pendulum": """
joints: {shoulder: {at: 1}, elbow: {at: 2}}
time: {column: time, unit: s}
observations: {"*_angle": {column: "pos_meas*", unit: rad}, "*_speed": {column: "vel_meas*", unit: rad/s}}
actions: {"*": {column: "tau_con*", unit: N·m}}
action_source: commanded
""",
    "lerobot_g1": """
time: {column: timestamp, unit: s}
observations: {"*": {column: "observation.state[*]", unit: rad}}
actions: {"*": {column: "action[*]", unit: rad}}
action_source: commanded
""",
}


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded robots (../shared/data) are not here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("robot", SCHEMAS)
def test_the_recorded_robots(robot):
    recordings = read_raw(DATA / robot, LogSchema.load(yaml.safe_load(SCHEMAS[robot])))[
        : 3 if robot == "lerobot_g1" else 15
    ]
    findings = check_recordings(recordings).findings
    found = {f.code for f in findings}
    # these logs are as their owners meant them: nothing is turned round, out of order or ahead of its cause
    assert not found & {"LOG004", "LOG005", "LOG007", "LOG008", "LOG009", "LOG010", "LOG015", "LOG019"}
    late = [1e3 * f.values["lag"] for f in findings if f.code == "LOG011"]
    if robot == "qube":
        assert len(late) == 30
        assert np.median(late) == pytest.approx(16, abs=1.5)
    elif robot == "xl330":
        assert np.median(late) == pytest.approx(20, abs=2)
        assert {f.recording for f in findings if f.code == "LOG001"} == {r.name for r in recordings}
    else:
        assert late == []
    assert ("LOG017" in found) == (robot in ("qube", "lerobot_g1"))
    assert ("LOG001" in found) == (robot in ("xl330", "double_pendulum"))
