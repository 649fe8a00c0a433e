"""One directory a run: stages that are finished stay finished, whatever kills the process."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim2real.errors import LogError, ModelError


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file in one piece: a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("w") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ModelError: it does not exist or is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist; is {path.parent} the directory of a whole run, of `sim2real run`?"
        ) from None
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}); remove it and run again") from None


class RunDirectory:
    """The directory of a run.

    Args:
        path: made when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def finished(self, stage: str) -> bool:
        """Return whether a stage has finished here."""
        return (self.path / "stages" / f"{stage}.json").is_file()

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what a stage had to say; do its work unless it has finished here before.

        The work writes its artifacts first; the stage counts as finished only when its own file is in place.
        """
        path = self.path / "stages" / f"{name}.json"
        if not path.is_file():
            start = time.perf_counter()
            result = work()
            write_json(path, {"seconds": time.perf_counter() - start, "result": result})
        document: dict[str, Any] = read_json(path)
        return document

    def belongs_to(self, fingerprint: str) -> None:
        """Remember what the run learns from; refuse to go on with something else.

        Raises:
            LogError: stages have finished here on other recordings.
        """
        path = self.path / "stages" / "recordings.json"
        if path.is_file() and read_json(path) != fingerprint:
            raise LogError(
                f"the recordings, or the model that is tuned, have changed since {self.path} was begun; "
                "remove it, or name another --output, to start over"
            )
        write_json(path, fingerprint)

    def clear(self) -> None:
        """Forget every stage, so that the run starts over."""
        shutil.rmtree(self.path / "stages", ignore_errors=True)
