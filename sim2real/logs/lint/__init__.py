"""What is wrong with a log, what that prevents, and how to mend it: findings with codes, as text, JSON and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sim2real.logs.lint.channels import check_channels
from sim2real.logs.lint.clocks import check_clocks
from sim2real.logs.lint.commands import check_commands
from sim2real.logs.lint.findings import CODES, Finding, Rule
from sim2real.logs.lint.motion import check_motion
from sim2real.logs.lint.report import LintReport
from sim2real.logs.lint.view import View
from sim2real.logs.raw import RawRecording

RULES: tuple[Callable[[View], Iterator[Finding]], ...] = (check_clocks, check_channels, check_motion, check_commands)


def check_recordings(recordings: Sequence[RawRecording], skipped: Sequence[tuple[str, str]] = ()) -> LintReport:
    """Look for everything that the rules know in every recording.

    Args:
        recordings: as they stand in their files.
        skipped: name and reason of those that could not be read.

    Returns:
        The findings, those of a recording together, and what was looked at.
    """
    findings = [Finding("LOG000", "error", name, (), reason) for name, reason in skipped]
    for recording in recordings:
        view = View(recording)
        for rule in RULES:
            findings += rule(view)
    return LintReport(tuple(findings), tuple(recordings))


__all__ = ["CODES", "RULES", "Finding", "LintReport", "Rule", "check_recordings"]
