"""Run directories: finished stages stay finished, crashes leave nothing half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim2real.errors import LogError, ModelError
from sim2real.run_directory import RunDirectory, read_json, write_json


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "one")


def counting(result: dict[str, Any]) -> tuple[list[int], Callable[[], dict[str, Any]]]:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return result

    return calls, work


def test_a_stage_works_once(directory: RunDirectory) -> None:
    calls, work = counting({"mass": 0.1 + 0.2, "unit": "N·m"})
    assert not directory.finished("identify")
    first = directory.stage("identify", work)
    assert directory.finished("identify")
    again = RunDirectory(directory.path).stage("identify", work)  # another process
    assert first == again
    assert first["result"] == {"mass": 0.1 + 0.2, "unit": "N·m"}
    assert first["seconds"] >= 0
    assert len(calls) == 1
    directory.stage("observe", work)
    assert len(calls) == 2


def test_a_crash_after_the_artifact_runs_again(directory: RunDirectory) -> None:
    artifact = directory.path / "posterior" / "posterior.json"

    def crash() -> dict[str, Any]:
        write_json(artifact, {"half": True})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        directory.stage("identify", crash)
    assert artifact.is_file()
    assert not directory.finished("identify")
    calls, work = counting({})
    directory.stage("identify", work)
    assert len(calls) == 1


def test_a_crash_while_writing_leaves_the_old_file(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory.path / "metrics.json"
    write_json(path, {"version": 1})

    def killed(document: Any, file: Any, **_: Any) -> None:
        file.write('{"version": ')
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(json, "dump", killed)
        with pytest.raises(KeyboardInterrupt):
            write_json(path, {"version": 2})
        with pytest.raises(KeyboardInterrupt):
            directory.stage("identify", dict)
    assert read_json(path) == {"version": 1}
    assert not directory.finished("identify")
    write_json(path, {"version": 3})
    assert read_json(path) == {"version": 3}
    assert [p.name for p in directory.path.iterdir() if p.is_file()] == ["metrics.json"]


def test_what_json_cannot_hold_does_not_finish_a_stage(directory: RunDirectory) -> None:
    with pytest.raises(TypeError):
        directory.stage("identify", lambda: {"path": Path("x")})
    assert not directory.finished("identify")


@pytest.mark.parametrize("text", ['{"seconds": 1.0, "res', "", "\x00\x01"])
def test_a_damaged_file_is_one_line(directory: RunDirectory, text: str) -> None:
    directory.stage("identify", dict)
    path = directory.path / "stages" / "identify.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"identify\.json is damaged .*remove it and run again") as error:
        directory.stage("identify", dict)
    assert "\n" not in str(error.value)


def test_a_missing_file_asks_whether_this_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"metrics\.json does not exist; is .* the directory of a whole run"):
        read_json(tmp_path / "metrics.json")


def test_clearing_starts_over_and_keeps_artifacts(directory: RunDirectory) -> None:
    calls, work = counting({})
    directory.stage("identify", work)
    write_json(directory.path / "model" / "config.json", {})
    directory.clear()
    directory.clear()
    assert not directory.finished("identify")
    assert (directory.path / "model" / "config.json").is_file()
    directory.stage("identify", work)
    assert len(calls) == 2


def test_other_recordings_are_refused(directory: RunDirectory) -> None:
    directory.belongs_to("a1")
    RunDirectory(directory.path).belongs_to("a1")
    with pytest.raises(LogError, match=r"the recordings.* have changed since .* was begun"):
        directory.belongs_to("b2")
    directory.clear()
    directory.belongs_to("b2")
