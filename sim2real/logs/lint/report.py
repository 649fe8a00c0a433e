"""A report of findings: as text for a terminal, as JSON, and as one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sim2real.logs.lint.findings import Finding
from sim2real.logs.raw import RawRecording

VERSION = 1
EXAMPLES = 3  # findings of a kind that the text shows
ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class LintReport:
    """What was found.

    Attributes:
        findings: in the order of the recordings.
        recordings: what was looked at.
    """

    findings: tuple[Finding, ...]
    recordings: tuple[RawRecording, ...]

    def groups(self) -> list[list[Finding]]:
        """Return findings of one code and severity together; the worst first."""
        found: dict[tuple[int, str], list[Finding]] = {}
        for f in self.findings:
            found.setdefault((ORDER[f.severity], f.code), []).append(f)
        return [found[key] for key in sorted(found)]

    def count(self, severity: str) -> int:
        """Return how many findings there are of a severity."""
        return sum(f.severity == severity for f in self.findings)

    def summary(self) -> str:
        """Return one line."""
        n = len(self.recordings)
        counts = ", ".join(f"{self.count(s)} {s}{'s' if self.count(s) != 1 else ''}" for s in ORDER)
        seconds = sum(duration(r) for r in self.recordings)
        return f"{n} recording{'s' if n != 1 else ''}, {seconds:.1f} s: {counts}"

    def text(self) -> str:
        """Return the findings for a terminal: of those that are alike, three."""
        lines = []
        for group in self.groups():
            first = group[0]
            names = list(dict.fromkeys(f.recording for f in group))
            where = f" in {len(names)} of {len(self.recordings)} recordings" if len(self.recordings) > 1 else ""
            lines.append(f"{first.code} {first.severity}: {first.rule.title}{where}")
            for f in _examples(group):
                channels = f" {', '.join(f.channels[:2])}{', ...' if len(f.channels) > 2 else ''}" if f.channels else ""
                at = f" ({f.where})" if f.where else ""
                lines.append(f"    {f.recording}:{channels} {f.what}{at}")
            if len(group) > EXAMPLES:
                lines.append(f"    and {len(group) - EXAMPLES} more like these")
            lines += [f"    prevents: {first.rule.prevents}", f"    mend: {first.rule.mend}", ""]
        return "\n".join([*lines, self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "version": VERSION,
            "recordings": [
                {"name": r.name, "seconds": duration(r), "channels": {c.role: c.unit for c in r.channels}}
                for r in self.recordings
            ],
            "counts": {severity: self.count(severity) for severity in ORDER},
            "findings": [f.to_json() for f in self.findings],
        }

    def html(self) -> str:
        """Return one HTML file that needs nothing else."""
        from sim2real.logs.lint.page import write_page  # templates take a while to load

        return write_page(self)


def _examples(group: list[Finding]) -> list[Finding]:
    """Return a few findings of a group, of different channels first."""
    firsts = {f.channels: f for f in reversed(group)}
    chosen = sorted(firsts.values(), key=group.index)[:EXAMPLES]
    return chosen + [f for f in group if f not in chosen][: EXAMPLES - len(chosen)]


def duration(recording: RawRecording) -> float:
    """Return how long a recording lasts, by the clock of its observations [s]."""
    t = recording.channels[0].t if recording.channels else np.empty(0)
    t = t[np.isfinite(t)]
    return float(t.max() - t.min()) if len(t) else 0.0
