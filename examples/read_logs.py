"""Read a robot's log: write a small CSV into a temporary folder, read it back, print what it holds."""

import math
import tempfile
from pathlib import Path

from sim2real.logs import LogSchema, read_logs

SCHEMA = """
file: "{name}.csv"
time: {column: stamp, unit: ms}
observations:
  position: {column: angle, unit: deg}
  velocity: {column: speed, unit: rpm}
actions:
  torque: {column: torque_asked, unit: mN·m}
action_source: commanded
measured_actions:
  torque: {column: torque_read, unit: mN·m}
exogenous:
  supply: {column: battery, unit: V, scale: 2.0}    # read behind a divider by two
recordings:
  swing: {excluded: [[0.4, 0.5]]}                   # a push, in seconds of the log's clock
  swing_start: {recording: swing, stop: 0.25}
"""


def write(path: Path) -> None:
    """Write one second of a swinging pendulum, a row every 5 ms."""
    rows = ["stamp, angle, speed, torque_asked, torque_read, battery"]
    for k in range(201):
        t = 0.005 * k
        angle, speed = 30 * math.cos(6 * t), -30 * math.sin(6 * t)
        rows.append(f"{1000 * t}, {angle}, {speed}, {100 * math.sin(t)}, {98 * math.sin(t)}, 6.1")
    path.write_text("\n".join(rows) + "\n")


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "swing.csv"))
        schema_file = Path(folder, "schema.yaml")
        schema_file.write_text(SCHEMA, encoding="utf-8")
        for episode in read_logs(folder, LogSchema.load(schema_file), names=["swing", "swing_start"]):
            print(f"{episode.name}: {len(episode)} transitions in {episode.duration:.3f} s, {episode.action_source}")
            for group in ("observations", "actions", "exogenous"):
                for name, unit in getattr(episode.channels, group):
                    print(f"  {group:12} {name} [{unit}]")


if __name__ == "__main__":
    main()
