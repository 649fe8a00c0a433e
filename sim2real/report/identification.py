"""identification.html: what identification found, how well it is known, and what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sim2real.calibration import Posterior
from sim2real.report.figures import Panel
from sim2real.report.notation import digits, few, look, quantity, quantity_range, trimmed
from sim2real.report.page import fill, write_page
from sim2real.report.parameter_figures import varied
from sim2real.report.parameter_table import known_rows
from sim2real.report.posterior_figures import by_recording, distributions, pairs
from sim2real.report.replay_evidence import ReplayEvidence
from sim2real.report.replay_figures import recording_errors, recording_looks, replayed, small, spectra
from sim2real.run_directory import read_json

PAGE = "identification.html"
# What a joint position is measured in, where the run does not say it.
UNSAID = "rad or m"


def identified(run_directory: Path) -> bool:
    """Return whether a run has identified anything yet."""
    return _stage(run_directory).is_file() and (run_directory / "posterior" / "posterior.json").is_file()


def write_identification_report(run_directory: Path) -> Path:
    """Write identification.html into a run directory, in one piece.

    Args:
        run_directory: with posterior/posterior.json and stages/identify.json, and posterior/replay.npz and recipe.yaml
            where the run has them.

    Returns:
        the path of the page.

    Raises:
        ModelError: one of them is missing or damaged.
    """
    return write_page(run_directory / PAGE, render(run_directory))


def render(run_directory: Path) -> str:
    """Return the page."""
    posterior = Posterior.load(run_directory / "posterior")
    findings: list[dict[str, Any]] = read_json(_stage(run_directory))["result"].get("findings") or []
    path = run_directory / "posterior" / "replay.npz"
    evidence = ReplayEvidence.load(path) if path.is_file() else None
    recordings = replayed(evidence, posterior.noise) if evidence else []
    looks = recording_looks(evidence) if evidence else {}
    recipe = _recipe(run_directory / "recipe.yaml")
    return fill(
        "identification_template.html",
        name=str(recipe.get("name") or run_directory.name),
        robot=recipe.get("robot"),
        verdict=verdict(posterior, len(findings), evidence),
        findings=findings,
        rows=known_rows(posterior),
        own=by_recording(posterior),
        distributions=distributions(posterior),
        fixed=_fixed(posterior),
        pairs=pairs(posterior),
        recordings=recordings,
        unshown=len(evidence.recordings) - len(recordings) if evidence else 0,
        errors=_errors(posterior, findings, evidence),
        spectra=spectra(evidence) if evidence else [],
        drawn=list(looks),
        look=lambda name: looks.get(name) or look(name),
    )


def verdict(posterior: Posterior, findings: int, evidence: ReplayEvidence | None) -> str:
    """Say in one line what was found from what."""
    told, known = posterior.evidence, len(posterior)
    parts = [
        f"{counted(known, 'parameter')} from {_data(told, evidence)}",
        f"residual {_residual(posterior, evidence)}",
    ]
    return "; ".join([*parts, counted(findings, "finding") if findings else "no findings"]) + "."


def counted(number: int, what: str) -> str:
    """Count things: `1 finding`, `2 findings`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _data(told: Mapping[str, Any], evidence: ReplayEvidence | None) -> str:
    many = len(told.get("recordings") or ())
    if evidence is not None:
        return f"{digits(float(evidence.seconds.sum()))} s of {counted(len(evidence.recordings), 'recording')}"
    windows = f"{counted(told['windows'], 'window')} of {trimmed(told['window'])} s" if "window" in told else ""
    return " of ".join(filter(None, [windows, counted(many, "recording") if many else ""])) or "recordings"


def _residual(posterior: Posterior, evidence: ReplayEvidence | None) -> str:
    """Write the noise of the joint positions, unit by unit."""
    units: Sequence[str] = evidence.units.tolist() if evidence is not None else [UNSAID] * len(posterior.noise)
    said = []
    for unit in dict.fromkeys(units):
        fine, scale = small(unit)
        noise = [scale * float(n) for n, u in zip(posterior.noise, units, strict=True) if u == unit]
        low, high = min(noise), max(noise)
        said.append(quantity(low, fine) if digits(low) == digits(high) else quantity_range(low, high, fine))
    return " and ".join(said)


def _errors(
    posterior: Posterior, findings: Sequence[Mapping[str, Any]], evidence: ReplayEvidence | None
) -> Panel | None:
    errors: Mapping[str, float] = posterior.evidence.get("recordings") or {}
    if not errors:
        return None
    units = set(evidence.units.tolist()) if evidence is not None else set()
    apart = {name for f in findings if f["code"] == "unexplained-recording" for name in f["subject"]}
    return recording_errors(errors, units.pop() if len(units) == 1 else UNSAID, apart)


def _fixed(posterior: Posterior) -> str:
    """Name the parameters without a spread."""
    moving = set(varied(posterior).tolist())
    return few([name for i, name in enumerate(posterior.names) if i not in moving])


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _stage(run_directory: Path) -> Path:
    return run_directory / "stages" / "identify.json"
