"""What a posterior cannot know, as findings with a code, in words, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from sim2real.calibration.posterior import Posterior

# code -> (what it means, what to do)
CODES: Mapping[str, tuple[str, str]] = {
    "not-settled": (
        "the fit was still moving when it stopped, or a step from where it stopped promises more than it brings",
        "allow more rounds (identify.rounds), or more starting points (identify.tries, identify.starts)",
    ),
    "rough": (
        "within the intervals the error of the replay is not the valley that they were made from",
        "replay shorter windows (identify.window), or try method: ensemble; do not trust the intervals",
    ),
    "diverging-motion": (
        "windows are so long that motions diverge in them, so that the fit has many local minima",
        "replay shorter windows (identify.window)",
    ),
    "at-bound": (
        "a parameter ended at the edge of its prior, which may exclude the truth",
        "widen the prior there, unless physics ends there (nothing is below zero friction)",
    ),
    "not-informed": (
        "the logs say hardly more of a parameter than the prior did",
        "fix it at a value from a data sheet, or record motions that it matters to",
    ),
    "only-together": (
        "parameters are known as a combination, not one by one",
        "fix one of them, or record motions that tell them apart",
    ),
    "correlated-residuals": (
        "what is left over is correlated in time: motion that the model does not describe",
        "add what is missing to the model (identify.discrepancy looks for friction and springs); the intervals allow "
        "for it, but they are about the best wrong model",
    ),
    "halves-disagree": (
        "two halves of the logs put a parameter further apart than its interval allows",
        "something changes over time (warmth, wear, payload): give the parameter to each recording by itself "
        "(identify.own); or the model lacks something: look for it (identify.discrepancy), or widen the randomization",
    ),
    "recording-differs": (
        "a recording is explained better with one parameter of its own",
        "another payload or setting on that day? leave it out, or give the parameter to each recording by itself "
        "(identify.own)",
    ),
    "explains-little": (
        "even the best parameters leave much of the motion unexplained",
        "check signs, units and the order of joints (channels, log_schema), and what the actions are (action_source)",
    ),
    "outside-force": (
        "in a stretch of a recording something acted that no logged command explains: a push, a hand, a stop",
        "look at it, and leave the stretch out (excluded)",
    ),
    "missing-term": (
        "the joints have friction or a spring that is not among the parameters",
        "add it to the parameters, with a prior that holds this value, and leave the discrepancy out; the other values "
        "hold only together with it",
    ),
    "unexplained-recording": (
        "a recording fits much worse than the others, with the same parameters",
        "look at it (sim2real logs check): another payload, a push, a wrong sign; leave it out, or fit it by itself",
    ),
}
# The spread of a posterior relative to that of its prior beyond which the logs have said little.
SHRUNK = 0.5
# Correlation of two parameters beyond which they are known together only.
TOGETHER = 0.95
# Time over which residuals may be correlated before it is worth a word, as a share of a window, or of a usual one [s].
COLOURED, USUAL = 0.1, 0.5
# How many times as fast, or as slowly, as assumed the error may grow within the intervals.
ROUGH = 4.0
# How many times a change of a window's start may grow within it.
DIVERGING = 100.0
# A joint has what its model lacks where it takes so many half widths of the 90 % interval.
SURELY = 2.0
# Halves of the logs that are so many standard errors apart are outside of each other's 90 % interval.
APART_90 = 1.645
# The share of a channel's motion in a window that a model may leave unexplained.
LITTLE = 0.3
# A recording whose error is so many times that of the median one stands out.
APART = 2.5


@dataclass(frozen=True)
class Finding:
    """Something that a posterior cannot know.

    Attributes:
        code: of `CODES`.
        subject: names of parameters, or of a recording.
        what: one sentence with numbers.
    """

    code: str
    subject: tuple[str, ...]
    what: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return CODES[self.code][1]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.code}: {self.what}; {self.remedy}"


def diagnose(posterior: Posterior) -> list[Finding]:
    """Return what a posterior cannot know, from itself and from what `identify` noted in its evidence."""
    evidence = posterior.evidence
    found = []
    if not evidence.get("settled", True):
        found.append(Finding("not-settled", (), CODES["not-settled"][0]))
    rough = evidence.get("roughness", 1.0)
    if not 1 / ROUGH < rough < ROUGH:
        what = f"within the intervals the error grows {rough:.2g} times as fast as they assume"
        found.append(Finding("rough", (), what))
    if evidence.get("divergence", 0.0) > DIVERGING:
        what = (
            f"in windows of {evidence['window']:.3g} s a change of the start grows {evidence['divergence']:.2g} times"
        )
        found.append(Finding("diverging-motion", (), what))
    for name in evidence.get("at_bound", ()):
        value, unit = posterior.values[name], _unit(posterior, name)
        what = f"{name} is {value:.4g} {unit}".rstrip() + f", at the edge of its prior {posterior.prior[name].notation}"
        found.append(Finding("at-bound", (name,), what))
    terms = evidence.get("discrepancy", {})
    for name, nominal in terms.items():
        (low, high), value, unit = posterior.interval(name), posterior.values[name], _unit(posterior, name)
        if abs(value - nominal) > SURELY * (high - low) / 2:
            what = f"the recordings ask for {name} {value:.3g} {unit} ({low:.3g} to {high:.3g})"
            what += f", the model has {nominal:.3g}"
            found.append(Finding("missing-term", (name,), what))
    spread, before = posterior.samples.std(0, ddof=1), posterior.prior.std
    for i, name in enumerate(posterior.names):
        if name not in terms and np.isfinite(before[i]) and before[i] > 0 and spread[i] > SHRUNK * before[i]:
            low, high = posterior.interval(name)
            what = f"{name} is known to {spread[i] / before[i]:.0%} of its prior: {low:.3g} to {high:.3g}"
            found.append(Finding("not-informed", (name,), f"{what} {_unit(posterior, name)}".rstrip()))
    found += _together(posterior)
    window, correlated = evidence.get("window"), evidence.get("residual_correlation", {})
    for channel, seconds in correlated.items():
        if window and seconds > COLOURED * min(window, USUAL):
            what = f"what is left of {channel} is correlated over {1e3 * seconds:.0f} ms"
            found.append(Finding("correlated-residuals", (channel,), what))
    for channel, share in evidence.get("unexplained", {}).items():
        if share > LITTLE:
            what = f"the best parameters leave {share:.0%} of the motion of {channel} unexplained"
            found.append(Finding("explains-little", (channel,), what))
    found += _disagreements(posterior)
    for f in evidence.get("outside_forces", ()):
        when = f"{f['recording']} from {f['start']:.1f} to {f['stop']:.1f} s"
        effort = f"{f['effort']:+.2g} {f['unit']}".rstrip()
        what = f"{when} moves as if {f['action']} were {effort} more (in similar motions: ±{f['usual']:.2g})"
        found.append(Finding("outside-force", (f["recording"],), what))
    errors = evidence.get("recordings", {})
    usual = float(np.median(list(errors.values()))) if errors else 0.0
    for name, error in errors.items():
        if len(errors) > 2 and error > APART * usual:
            what = f"{name} is replayed with {error / usual:.1f} times the error of the median recording"
            found.append(Finding("unexplained-recording", (name,), what))
    return found


def _disagreements(posterior: Posterior) -> list[Finding]:
    """Say where halves of the logs, or single recordings, ask for other parameters."""
    found = []
    terms = posterior.evidence.get("discrepancy", {})
    halves = {n: z for n, z in posterior.evidence.get("halves", {}).items() if z > APART_90 and n not in terms}
    if halves:
        apart = ", ".join(f"{n} ({z:.1f} standard errors)" for n, z in sorted(halves.items(), key=lambda i: -i[1]))
        what = f"two halves of the logs disagree about {apart}; by chance one parameter in ten does"
        found.append(Finding("halves-disagree", tuple(halves), what))
    for recording, d in posterior.evidence.get("recordings_differ", {}).items():
        name, unit = d["parameter"], _unit(posterior, d["parameter"])
        what = (
            f"{recording} is replayed with an error of {d['error_own']:.2g} in place of {d['error']:.2g} if {name} is "
            f"{d['own']:.3g} {unit}".rstrip()
        )
        what += f" there, not {d['common']:.3g}" + (f" ({d['own'] / d['common']:.2f} times)" if d["common"] else "")
        found.append(Finding("recording-differs", (recording, name), what))
    return found


def _together(posterior: Posterior) -> list[Finding]:
    """Say of which parameters, two or more, only a ratio, a product, a sum or a difference is known."""
    varies = np.flatnonzero(np.ptp(posterior.samples, axis=0) > 0)
    correlation = np.atleast_2d(np.corrcoef(posterior.samples[:, varies], rowvar=False))
    many, label = connected_components(np.abs(correlation) >= TOGETHER)
    found = []
    for group in (np.flatnonzero(label == k) for k in range(many)):
        names = tuple(posterior.names[varies[i]] for i in group)
        if len(group) == 2:
            rho = float(correlation[group[0], group[1]])
            what = f"{names[0]} and {names[1]} are known only together (correlation {rho:+.3f})"
            found.append(Finding("only-together", names, f"{what}: {_combination(posterior, names, rho)}"))
        elif len(group) > 2:
            share = np.linalg.eigvalsh(correlation[np.ix_(group, group)])[-1] / len(group)
            (low, high), unit = posterior.interval(names[0]), _unit(posterior, names[0])
            what = f"{', '.join(names[:-1])} and {names[-1]} are known only together: {share:.1%} of their scatter is "
            what += f"along one line, on which the first goes from {low:.3g} to {high:.3g} {unit}"
            found.append(Finding("only-together", names, what.rstrip()))
    return found


def _combination(posterior: Posterior, pair: Sequence[str], rho: float) -> str:
    """Say which combination of two parameters is known best, and how well."""
    x, y = (posterior.samples[:, posterior.names.index(name)] for name in pair)
    slope = float(x.std() / y.std()) * (1 if rho > 0 else -1)
    line = x - slope * y
    alone, known = float(x.std()), float(line.std())
    sign = "-" if slope > 0 else "+"
    text = f"{pair[0]} {sign} {abs(slope):.3g} × {pair[1]} to {known:.2g} where the first alone is known to {alone:.2g}"
    if (x > 0).all() and (y > 0).all():
        ratio = np.log(x) - np.sign(rho) * np.log(y)
        if ratio.std() < 0.3 * np.log(x).std():
            kind = "ratio" if rho > 0 else "product"
            text = f"their {kind} to {_percent(ratio.std())}, each alone to {_percent(np.log(x).std())}"
    return text


def _unit(posterior: Posterior, name: str) -> str:
    """Return the unit of a parameter; that of a bare number is nothing to speak of."""
    unit = posterior[name].unit
    return "" if unit == "1" else unit


def _percent(share: float) -> str:
    """One decimal, or one digit of what that would round to nothing."""
    return f"{share:.1%}" if share >= 5e-4 else f"{100 * share:.1g}%"


def residual_report(
    residuals: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    offsets: Sequence[np.ndarray],
    owners: Sequence[Sequence[str]],
    channels: Sequence[str],
) -> dict[str, Any]:
    """Return what identification notes of what is left over: by recording, by channel, and over what times correlated.

    Args:
        residuals: (W, M, D) a part.
        positions: (W, M, D) a part, as measured.
        valid: (W, M) a part.
        offsets: (W, M) a part, times in the window [s].
        owners: for each part, the recording of each window.
        channels: (D,) names.
    """
    errors: dict[str, list[float]] = {}
    top, bottom, gaps = np.zeros(len(channels)), np.zeros(len(channels)), []
    left, moved = np.zeros(len(channels)), np.zeros(len(channels))
    for r, q, ok, t, names in zip(residuals, positions, valid, offsets, owners, strict=True):
        left += (r[ok] ** 2).sum(0)
        moved += ((q - q[:, :1])[ok] ** 2).sum(0)
        for w, name in enumerate(names):
            errors.setdefault(name, []).append(float(np.median(np.abs(r[w][ok[w]]))))
        both = ok[:, 1:] & ok[:, :-1]
        scale = 1.4826 * np.median(np.abs(r[ok]), axis=0) + 1e-12
        z = np.clip(r / scale, -5, 5)
        top += (z[:, 1:] * z[:, :-1])[both].sum(0)
        bottom += (0.5 * (z[:, 1:] ** 2 + z[:, :-1] ** 2))[both].sum(0)
        gaps.append(np.diff(t, axis=1)[both])
    gap = float(np.median(np.concatenate(gaps))) if gaps and sum(map(len, gaps)) else 0.0
    keep = np.clip(top / np.maximum(bottom, 1e-300), 1e-6, 1 - 1e-6)
    longest = max((float(t.max()) for t in offsets), default=0.0)  # a window shows no more
    times = np.minimum(-gap / np.log(keep), longest)
    return {
        "recordings": {name: float(np.mean(e)) for name, e in errors.items()},
        "unexplained": {c: float(s) for c, s in zip(channels, np.sqrt(left / np.maximum(moved, 1e-300)), strict=True)},
        "residual_correlation": {c: float(s) for c, s in zip(channels, times, strict=True)},
    }
