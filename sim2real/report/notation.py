"""How the report writes numbers, names and colours: three significant digits, and one colour a predictor everywhere."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# What an optimiser leaves of a zero at the bound of a prior.
_NOTHING = 1e-12


def digits(x: float | None, significant: int = 3) -> str:
    """Write a number with significant digits: `0.850`, `1230`, `2.10×10⁻⁵`; an en dash where there is none."""
    if x is None or not math.isfinite(x):
        return "–"
    if abs(x) < _NOTHING:
        return "0"
    mantissa, power = f"{x:.{significant - 1}e}".split("e")
    exponent = int(power)
    if -4 <= exponent < 6:
        return f"{float(f'{mantissa}e{exponent}'):.{max(significant - 1 - exponent, 0)}f}"
    return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}"


def trimmed(x: float | None, significant: int = 3) -> str:
    """Write a number that is exact, such as the end of a prior: as `digits`, without trailing zeros."""
    text = digits(x, significant)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def quantity(x: float | None, unit: str) -> str:
    """Write a number with its unit; the unit 1 is not written."""
    return digits(x) if unit in ("", "1") else f"{digits(x)} {unit}"


def quantity_range(low: float, high: float, unit: str) -> str:
    """Write an interval with its unit: `0.848 to 0.852 kg`."""
    return f"{digits(low)} to {quantity(high, unit)}"


def resolving(low: float, high: float) -> int:
    """Return with how many significant digits the ends of an interval are told apart: three at least."""
    width, size = high - low, max(abs(low), abs(high))
    if not (math.isfinite(size) and width > 0):
        return 3
    return min(max(3, 1 + math.ceil(math.log10(size / width))), 9)


def percent(share: float | None) -> str:
    """Write a share: `86 %`, with three digits from 99 % on, where they matter."""
    if share is None or not math.isfinite(share):
        return "–"
    whole = 100 * share
    return f"{whole:.1f} %" if 99 <= whole < 100 else f"{whole:.0f} %"


def small_percent(share: float) -> str:
    """Write a share that may be small, with two significant digits: `0.42 %`, `15 %`."""
    return f"{digits(100 * share, 2)} %" if math.isfinite(share) else "–"


def change(before: float, now: float) -> str:
    """Say how an error changed: `72 times smaller`, `13 % larger`, `unchanged`."""
    if not (math.isfinite(before) and math.isfinite(now) and before > 0 and now > 0):
        return "not comparable"
    word, ratio = ("smaller", before / now) if before >= now else ("larger", now / before)
    if ratio < 1.01:
        return "unchanged"
    if ratio >= 1.95:
        return f"{digits(ratio, 2)} times {word}"
    return f"{percent(1 - 1 / ratio if word == 'smaller' else ratio - 1)} {word}"


def listed(words: list[str]) -> str:
    """Join words: `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def few(words: list[str], most: int = 5) -> str:
    """Join words, and count those that are too many."""
    return listed(words if len(words) <= most + 1 else [*words[:most], f"{len(words) - most} others"])


@dataclass(frozen=True)
class Look:
    """How one predictor or controller appears in words and in every figure.

    Attributes:
        label: in words.
        colour: of the palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
        symbol: marker, so that no figure depends on colour alone.
    """

    label: str
    colour: str
    symbol: str


LOOKS = {
    "persistence": Look("nothing moves", "#7a7a7a", "x"),
    "nominal_simulator": Look("nominal simulator", "#d55e00", "square"),
    "identified_simulator": Look("identified simulator", "#0072b2", "circle"),
    "pretrained_model": Look("pre-trained model", "#56b4e9", "triangle-up"),
    "finetuned_model": Look("fine-tuned model", "#009e73", "diamond"),
    "recordings_model": Look("model of the logs", "#f0e442", "triangle-down"),
    "rehearsed_model": Look("rehearsed model", "#8b5a2b", "cross"),
    "distilled_model": Look("distilled model", "#5d3a9b", "triangle-left"),
    "combined": Look("combined", "#222222", "hexagon"),
    "adapted_simulator": Look("adapted simulator", "#cc79a7", "star"),
    "adapted_model": Look("adapted model", "#e69f00", "pentagon"),
    # a controller has the colour of what it plans with
    "fallback": Look("fallback", "#7a7a7a", "x"),
    "before": Look("before", "#d55e00", "square"),
    "after": Look("after", "#009e73", "diamond"),
    "oracle": Look("oracle", "#222222", "circle"),
}


def look(name: str) -> Look:
    """Return how a predictor or controller appears; one that this report does not know keeps its own name."""
    return LOOKS.get(name, Look(name.replace("_", " "), "#f0e442", "cross"))


def short(parameter: str) -> str:
    """Name a parameter without its gap: `hinge.damping` of `dynamics.hinge.damping`."""
    return parameter.partition(".")[2] or parameter


def figure_text(text: str, width: int = 28) -> str:
    """Make outside text safe in a plotly label, which reads some HTML, and shorten its middle to a width."""
    if len(text) > width:
        text = f"{text[: width // 2]}…{text[len(text) + 1 - (width - width // 2) :]}"
    return html.escape(text, quote=False)
