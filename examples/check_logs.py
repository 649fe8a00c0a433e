"""What is wrong with a log: a pendulum whose velocity comes from a slow filter, and whose commands were copied."""

import tempfile
from pathlib import Path

import numpy as np

from sim2real.logs import LogSchema
from sim2real.logs.draft import draft_schema
from sim2real.logs.lint import check_recordings
from sim2real.logs.read import read_raw


def write(path: Path) -> None:
    """Write eight seconds of a swinging pendulum, a row every 4 ms or so."""
    rng = np.random.default_rng(0)
    t = np.cumsum(rng.normal(0.004, 0.00004, 2000))
    angle = 0.8 * np.sin(4 * t) + 0.2 * np.sin(9 * t)
    late = t - 0.016
    speed = 3.2 * np.cos(4 * late) + 1.8 * np.cos(9 * late)
    torque = np.round(0.4 * np.cos(7 * t), 3)
    rows = np.stack([t, np.round(angle, 4), speed, torque, torque], 1)
    np.savetxt(path, rows, delimiter=",", header="t,angle,speed,torque_cmd,torque_measured", comments="", fmt="%.6f")


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "swing.csv"))
        schema = Path(folder, "schema.yaml")
        schema.write_text(draft_schema(folder), encoding="utf-8")
        print(schema.read_text(encoding="utf-8"))
        report = check_recordings(read_raw(folder, LogSchema.load(schema)))
        print(report.text())


if __name__ == "__main__":
    main()
