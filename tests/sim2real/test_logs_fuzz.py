"""Damaged logs: whatever is done to a file, it is read, or refused with one LogError; see benchmarks/log_fuzz.py."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_mutated_files_of_every_format(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "log_fuzz.py"), "--files", "25", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    never = ("misread header", "exception", "crash", "hang", "memory")
    assert {key: n for key, n in found.items() if n and key.split(".")[1] in never} == {}, done.stdout
    assert all(found[f"{name}.refused"] > 5 for name in {key.split(".")[0] for key in found})
    # what has checksums is never read with other numbers
    assert found["npz.other numbers"] == found["mcap_json.other numbers"] == 0
