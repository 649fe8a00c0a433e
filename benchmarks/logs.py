"""How fast are logs read? Every format, by us into episodes, and by the format's own library into the same arrays.

    python benchmarks/logs.py [--quick] [--json FILE]

Both read the same file, of 12 positions and 12 torques and a clock, in turns in one process; the best round of each
counts. What the library reads is only put into arrays; ours also finds the columns by the schema, converts units and
checks clocks and values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _log_corpus import FORMATS, signals

from sim2real.logs import LogSchema, read_logs

# messages and records are slow to read in Python, by whomever
SLOW = ("json", "jsonl", "ros1", "ros2_sqlite", "ros2_mcap", "mcap_json")


def seconds(work: Callable[[], Any]) -> float:
    """Time a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter logs, fewer rounds")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rounds, scale = (2, 0.05) if options.quick else (5, 1.0)
    figures: dict[str, float] = {}
    print(f"{'format':>12} {'MB':>7} {'library GB/s':>13} {'ours GB/s':>10} {'ratio':>6}")
    for name, kind in FORMATS.items():
        rows = int(scale * (40_000 if name in SLOW else 500_000))
        with tempfile.TemporaryDirectory() as folder:
            truth = signals(rows, 12)
            path = kind.write(truth, Path(folder))
            schema = LogSchema.load(kind.schema)
            (episode,) = read_logs(path, schema)  # what is timed reads the same values
            np.testing.assert_allclose(episode.observations, truth.q, rtol=1e-12)
            np.testing.assert_allclose(kind.library(path)[1], truth.q, rtol=1e-12)
            theirs = ours = np.inf
            for _ in range(rounds):
                theirs = min(theirs, seconds(lambda: kind.library(path)))  # noqa: B023
                ours = min(ours, seconds(lambda: read_logs(path, schema)))  # noqa: B023
            size = size_of(path)
            figures |= {
                f"throughput_ratio.{name}": theirs / ours,
                f"gigabytes_per_second.{name}": size / ours / 1e9,
            }
            print(
                f"{name:>12} {size / 1e6:7.1f} {size / theirs / 1e9:13.4f} {size / ours / 1e9:10.4f} "
                f"{theirs / ours:6.2f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
