"""Does the log linter find what is wrong, and nothing in logs that are clean? Generated arms, 15 planted faults.

    python benchmarks/lint_logs.py [--quick] [--json FILE]

An alarm is a finding of severity warning or error. Faults are planted one at a time into clean logs in which they can
be seen at all: the order of joints takes two of them, and an action that is one row late can be told from a delay only
where the delay is shorter than a row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from _lint_logs import FAULTS, make_logs

from sim2real.logs.lint import check_recordings


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 logs instead of 200")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    count, each = (40, 10) if options.quick else (200, 40)
    logs = make_logs(count, seed=2026)
    alarms, inside = 0, []
    for log in logs:
        findings = check_recordings([log.recording]).findings
        alarms += any(f.severity != "note" for f in findings)
        if log.kind != "target":
            inside += [f.values["low"] <= log.latency <= f.values["high"] for f in findings if f.code == "LOG012"]
    figures = {"false_alarms": alarms / count, "delay_coverage": float(np.mean(inside))}
    print(f"false alarms: {alarms} of {count} clean logs ({100 * alarms / count:.1f} %)")
    print(f"the delay lies in its 90 % interval in {100 * np.mean(inside):.0f} % of {len(inside)} joints")
    rng = np.random.default_rng(0)
    for fault, (code, plant, visible) in FAULTS.items():
        some = [log for log in logs if visible(log)][:each]
        found = [{f.code for f in check_recordings([plant(log, rng)]).findings if f.severity != "note"} for log in some]
        hits = sum(code in f for f in found)
        others = sum(bool(f - {code}) for f in found)
        figures[f"detected.{fault}"] = hits / len(some)
        print(f"{fault:>34}  {code}  found in {hits} of {len(some)}, beside other alarms in {others}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
