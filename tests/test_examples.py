"""Every example runs, and so do the nine lines of the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Run by other tests, which need what they need: a Genesis or a Ray that has started, a training that is killed.
ELSEWHERE = ("sweep_in_python", "two_engines", "widen_bounds")
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem not in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip(), "an example that prints nothing shows nothing"


def test_readme_snippet_runs(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert sum(bool(line.strip()) for line in snippet.splitlines()) <= 9, "the README promises nine lines"
    (tmp_path / "logs").mkdir()
    t = 0.01 * np.arange(200)
    rows = "\n".join(f"{a:.2f},{0.3 * np.sin(3 * a):.5f},{np.sin(3 * a):.4f}" for a in t)
    (tmp_path / "logs" / "one.csv").write_text("t,q,u\n" + rows + "\n")
    (tmp_path / "schema.yaml").write_text(
        'file: "{name}.csv"\n'
        "time: {column: t, unit: s}\n"
        "observations: {position: {column: q, unit: rad}}\n"
        "actions: {torque: {column: u, unit: N·m}}\n"
        "action_source: commanded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "dynamics.payload.mass" in done.stdout
    assert (tmp_path / "posterior" / "posterior.json").is_file()
