"""What do damaged logs do? A thousand mutated files a format: bytes flipped, cut off, moved, columns swapped.

    python benchmarks/log_fuzz.py [--quick] [--files N] [--json FILE] [FORMAT ...]

Files are read in a process apart, with a limit on time and memory. Counted are: files refused with one LogError; read
as they were; read with other numbers (a flipped digit of a text cannot be told from another digit; formats that have
checksums must never do this); and what must never happen: another exception, a crash, a hang, memory beyond the limit,
and a misread header, that is, numbers under a name that was changed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _log_corpus import FORMATS, Signals, signals

from sim2real.errors import LogError
from sim2real.logs import LogSchema, read_logs

CHECKED = ("npz", "mcap_json")  # the whole of their content has checksums
NAMED = ("csv", "parquet", "arrow", "lerobot21", "lerobot30", "ros1", "ros2_sqlite", "ros2_mcap")
SECONDS, MEMORY = 20, 1 << 29  # a file; bytes beyond what the process had
OUTCOMES = ("refused", "as it was", "other numbers", "misread header", "exception", "crash", "hang", "memory")


def mutate(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Return what was done to a file, and the result."""
    how = str(
        rng.choice(
            ["flip", "flip", "flips", "cut", "zero", "move", "insert", "empty"],
            p=[0.3, 0.2, 0.15, 0.15, 0.08, 0.06, 0.05, 0.01],
        )
    )
    out = bytearray(data)
    n = len(out)
    if how == "flip":
        out[int(rng.integers(n))] ^= 1 << int(rng.integers(8))
    elif how == "flips":
        for k in rng.integers(n, size=int(rng.integers(2, 40))).tolist():
            out[k] = int(rng.integers(256))
    elif how == "cut":
        out = out[: int(rng.integers(n))]
    elif how in ("zero", "move"):
        a = int(rng.integers(n))
        b = min(n, a + int(rng.integers(1, 200)))
        piece = out[a:b]
        out[a:b] = bytes(b - a) if how == "zero" else piece[::-1]
    elif how == "insert":
        a = int(rng.integers(n))
        out[a:a] = rng.integers(256, size=int(rng.integers(1, 50))).astype(np.uint8).tobytes()
    else:
        out = bytearray()
    return how, bytes(out)


def files_of(path: Path) -> list[Path]:
    """Return the files of a log."""
    return [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())


def outcome(path: Path, schema: LogSchema, truth: Signals, tolerance: float) -> str:
    """Read a log, and say what came of it."""
    try:
        episodes = read_logs(path, schema)
    except LogError:
        return "refused"
    if len(episodes) == 1 and same(episodes[0], truth, tolerance):
        return "as it was"
    return "other numbers"


def same(episode: Any, truth: Signals, tolerance: float) -> bool:
    """Whether an episode holds what was written."""
    if episode.observations.shape != truth.q.shape or episode.actions.shape[1] != truth.u.shape[1]:
        return False
    channels = (episode.channels.observations, episode.channels.actions)  # in the order of the file
    q, u = (np.argsort([name for name, _ in some]) for some in channels)
    return (
        np.array_equal(episode.observations[:, q], truth.q)
        and np.array_equal(episode.actions[:, u], truth.u[: len(truth.t) - 1])
        and bool(np.allclose(episode.observed_at, truth.t, rtol=0, atol=max(tolerance, 1e-6)))
    )


def worker(jobs: Any, results: Any) -> None:
    """Read files until there are none."""
    warnings.simplefilter("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    first = True
    while (job := jobs.get()) is not None:
        number, path, schema, truth, tolerance = job
        if not first:
            signal.alarm(SECONDS)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            found = outcome(Path(path), LogSchema.load(schema), truth, tolerance)
        except BaseException as error:
            found = f"exception {type(error).__name__}: {str(error)[:100]}"
        signal.alarm(0)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        results.put((number, "memory" if grown > MEMORY and not first else found))
        first = False


def swapped(name: str, truth: Signals, folder: Path) -> list[tuple[str, Path]]:
    """Return the log with its columns in another order, where it has columns: it must be read as it was."""
    if name not in ("csv", "parquet", "arrow", "jsonl"):
        return []
    import _log_corpus

    plain = _log_corpus._columns
    try:
        _log_corpus._columns = lambda s: dict(reversed(plain(s).items()))
        return [("swap", FORMATS[name].write(truth, folder))]
    finally:
        _log_corpus._columns = plain


class Reader:
    """A process that reads files, and is made anew when one of them kills it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("fork")
        self._start()

    def _start(self) -> None:
        self._jobs, self._results = self._context.Queue(), self._context.Queue()
        self._process = self._context.Process(target=worker, args=(self._jobs, self._results), daemon=True)
        self._process.start()

    def read(self, *job: Any) -> str:
        """Return what came of one file."""
        import queue

        self._jobs.put((0, *job))
        for _ in range(SECONDS + 40):
            try:
                return str(self._results.get(timeout=1)[1])
            except queue.Empty:
                if not self._process.is_alive():
                    code = self._process.exitcode
                    self._start()
                    return "hang" if code == -signal.SIGALRM else f"crash {code}"
        self._process.kill()
        self._start()
        return "hang"

    def close(self) -> None:
        """End the process."""
        self._process.kill()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", help=f"of {', '.join(FORMATS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="50 files a format")
    parser.add_argument("--files", type=int, default=1000, help="a format (default: 1000)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    count = 50 if options.quick else options.files
    figures: dict[str, int] = {}
    print(f"{'format':>12} " + " ".join(f"{o:>14}" for o in OUTCOMES))
    for name in options.formats or FORMATS:
        kind, rng, found, said = FORMATS[name], np.random.default_rng(0), Counter[str](), []
        truth = signals(60, 3)
        # where columns have names, they are asked for by name
        schema = kind.schema | ({"joints": truth.names} if name in NAMED else {})
        if "rate" in kind.schema["time"]:
            truth = Signals(np.arange(60) / kind.schema["time"]["rate"], truth.q, truth.u)
        with tempfile.TemporaryDirectory() as folder:
            original = kind.write(
                truth, Path(folder, "whole") if Path(folder, "whole").mkdir() is None else Path(folder)
            )
            reader = Reader()
            assert reader.read(str(original), schema, truth, kind.clock) == "as it was", name
            for k in range(count):
                place = Path(folder, "mutated")
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                copy = place / original.name
                shutil.copytree(original, copy) if original.is_dir() else shutil.copy(original, copy)
                some = files_of(copy)
                sizes = np.array([f.stat().st_size for f in some], float)
                # the small files beside the data are hit as well
                victim = some[int(rng.choice(len(some), p=(sizes + sizes.mean()) / (sizes + sizes.mean()).sum()))]
                how, data = mutate(victim.read_bytes(), rng)
                victim.write_bytes(data)
                result = reader.read(str(copy), schema, truth, kind.clock)
                if result == "other numbers" and header_changed(name, original, copy, victim):
                    result = "misread header"
                found[result.split()[0] if result.startswith(("exception", "crash")) else result] += 1
                if result not in ("refused", "as it was", "other numbers"):
                    said.append(f"{k} {how} {victim.name}: {result}")
            for how, path in swapped(name, truth, Path(folder)):
                result = reader.read(str(path), schema, truth, kind.clock)
                if result != "as it was":
                    said.append(f"{how}: {result}")
                    found["misread header"] += 1
            reader.close()
        print(f"{name:>12} " + " ".join(f"{found[o]:>14}" for o in OUTCOMES), flush=True)
        for line in said[:5]:
            print(f"{'':>12} {line}")
        figures |= {f"{name}.{o}": found[o] for o in OUTCOMES}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def header_changed(name: str, original: Path, copy: Path, victim: Path) -> bool:
    """Whether names of columns were changed, as far as that can be seen from outside."""
    if name == "csv":
        return original.read_bytes().split(b"\n")[0] != copy.read_bytes().split(b"\n")[0]
    if name.startswith("lerobot"):
        return victim.suffix == ".json"
    return name in CHECKED


if __name__ == "__main__":
    main()
