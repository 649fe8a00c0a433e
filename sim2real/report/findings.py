"""What a run found, in sentences; what it could not find is said too, with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sim2real.report.notation import change, digits, few, listed, percent, quantity, trimmed
from sim2real.report.summary import (
    Metrics,
    Rows,
    by_cost,
    headline,
    headline_horizon,
    moved,
    no_closed_loop,
    nrmse,
    pooled_rmse,
    recovered,
    worst_coverage,
)

# Parameters, and findings of the identification, that get a sentence of their own; the tables have them all.
SPOKEN = 6
# A parameter costs something when putting it back raises the error by more than this share.
COSTS = 0.05


@dataclass(frozen=True)
class Finding:
    """One sentence or two.

    Attributes:
        topic: what it is about.
        text: a sentence; where the topic does not apply, the reason.
        applicable: whether there is something to find.
    """

    topic: str
    text: str
    applicable: bool = True

    @property
    def sentence(self) -> str:
        """The finding as it stands alone."""
        return self.text if self.applicable else f"{self.topic}: not applicable: {self.text}"


def findings(metrics: Metrics) -> list[str]:
    """Say in sentences what a run found.

    Args:
        metrics: what metrics.json holds.
    """
    return [f.sentence for f in all_findings(metrics)]


def all_findings(metrics: Metrics) -> list[Finding]:
    """Return the findings with their topics, in the order in which they are read."""
    return [
        *_gap(metrics),
        *_parameters(metrics),
        *_identification(metrics),
        _finetuning(metrics),
        _uncertainty(metrics),
        *_shift(metrics),
        _closed_loop(metrics),
    ]


def verdict(metrics: Metrics) -> str:
    """Say in one line what came of the gap."""
    split, rows = headline(metrics)
    if not rows:
        return "No recording was scored, so the size of the gap is not known."
    before, now = nrmse(rows, "nominal_simulator"), nrmse(rows, "identified_simulator")
    said = f"On {split} recordings, the identified simulator's prediction error is"
    changed = change(before, now)
    return f"{said} {'the same as' if changed == 'unchanged' else changed + ' than'} the nominal one's."


def _gap(metrics: Metrics) -> list[Finding]:
    split, rows = headline(metrics)
    if not rows:
        return [Finding("Gap", "no recording was scored.", False)]
    horizon = headline_horizon(rows)
    caution = [] if split == "test" else [_no_test()]

    def error(predictor: str) -> str:
        return f"RMSE {quantity(pooled_rmse(rows, predictor, horizon), 'rad')} {horizon} s ahead"

    before = nrmse(rows, "nominal_simulator")
    first = (
        f"The nominal simulator's mean NRMSE on the {split} recordings is {digits(before)} "
        f"({_each(rows, 'nominal_simulator')}1 = as bad as assuming that nothing moves); {error('nominal_simulator')}."
    )
    now, model = nrmse(rows, "identified_simulator"), nrmse(rows, "finetuned_model")
    second = (
        f"The identified simulator's is {digits(now)} ({_each(rows, 'identified_simulator')}{change(before, now)}); "
        f"{error('identified_simulator')}."
    )
    if math.isfinite(model):
        refused = (metrics.get("finetune") or {}).get("accepted") is False
        kind = "world model's (fine-tuning refused, so the pre-trained one)" if refused else "fine-tuned world model's"
        second += f" The {kind} is {digits(model)} ({change(before, model)}); {error('finetuned_model')}."
    return [*caution, Finding("Gap before", first), Finding("Gap now", second)]


def _no_test() -> Finding:
    text = (
        "the recipe keeps no recording apart; what follows is about the validation recordings, on which "
        "choices were made, and is optimistic."
    )
    return Finding("Test", text, False)


def _each(rows: Rows, predictor: str) -> str:
    """Return the error of each recording, where there are a few, to go before something else."""
    if not 2 <= len(rows) <= 4:
        return ""
    errors = {name: r[predictor]["mean_nrmse"] for name, r in rows.items() if predictor in r}
    return ", ".join(f"{name} {digits(error)}" for name, error in errors.items()) + "; "


def _parameters(metrics: Metrics) -> list[Finding]:
    parameters = metrics["parameters"]
    ordered = [name for name in by_cost(metrics) if moved(parameters[name])]
    still = [name for name in parameters if name not in ordered]
    found = [Finding("What moved", _moved(n, metrics)) for n in ordered[:SPOKEN]]
    if len(ordered) > SPOKEN:
        found.append(
            Finding("What moved", f"{few(ordered[SPOKEN:])} moved too; the table of parameters has the numbers.")
        )
    if not parameters:
        found.append(Finding("What moved", "the recipe names no parameter.", False))
    elif still:
        text = f"The nominal value lies in the 90 % interval of {few(still)}: no difference that these recordings show."
        found.append(Finding("Not moved", text))
    at_bound = (metrics.get("identification") or {}).get("at_bound") or []
    if at_bound:
        text = f"{few(list(at_bound))} ended at a bound of the prior; if values beyond it are possible, widen it."
        found.append(Finding("At a bound", text))
    return found


def _identification(metrics: Metrics) -> list[Finding]:
    """Return what identification cannot know, without the bounds, which are told with the parameters."""
    identification = metrics.get("identification") or {}
    told = {"at-bound"} if identification.get("at_bound") else set()
    found = [f for f in identification.get("findings") or [] if f["code"] not in told]
    said = [Finding("Identification", f"{f['what']}; {f['remedy']}.") for f in found[:SPOKEN]]
    if len(found) > SPOKEN:
        more = f"{len(found) - SPOKEN} more findings; the page of the identification has them all."
        said.append(Finding("Identification", more))
    return said


def _moved(name: str, metrics: Metrics) -> str:
    p = metrics["parameters"][name]
    low, high = p["interval90"]
    text = (
        f"{name} moved from {trimmed(p['nominal'])} to {quantity(p['mean'], p['unit'])} "
        f"(90 % interval {digits(low)} to {digits(high)})"
    )
    attribution: Mapping[str, Any] = metrics.get("attribution") or {}
    cost, identified = attribution.get("parameters", {}).get(name), attribution.get("identified")
    if cost is None or identified is None:
        return text + "."
    said = f"left at nominal alone, NRMSE {digits(cost)} instead of {digits(identified)}"
    return f"{text}; {said}." if cost > (1 + COSTS) * identified else f"{text}, which changes little: {said}."


def _finetuning(metrics: Metrics) -> Finding:
    reason = (metrics.get("finetune") or {}).get("reason")
    if not reason:
        return Finding("Fine-tuning", "the world model was not fine-tuned.", False)
    text = f"Fine-tuning was {reason}."
    split, rows = headline(metrics)
    before, now = nrmse(rows, "pretrained_model"), nrmse(rows, "finetuned_model")
    if split == "test" and math.isfinite(before) and math.isfinite(now) and before != now:
        goes = f"from {digits(before)} to {digits(now)} ({change(before, now)})"
        text += f" On the test recordings, which had no say in this, the world model's mean NRMSE went {goes}."
    return Finding("Fine-tuning", text)


def _uncertainty(metrics: Metrics) -> Finding:
    _, rows = headline(metrics)
    found = worst_coverage(rows, "finetuned_model")
    if found is None:
        return Finding("Uncertainty", "no recording was scored with a world model.", False)
    name, share, (low, high) = found
    if low <= 0.9 <= high:
        judged = "as wide as they should be, as far as this many windows tell"
    else:
        judged = "too narrow" if share < 0.9 else "wider than they need to be"
    where = f"{name} (the recording furthest from 90 %)" if len(rows) > 1 else name
    spread = f"block-bootstrap interval {percent(low).removesuffix(' %')} to {percent(high)}"
    text = f"The world model's 90 % intervals hold {percent(share)} of what happened on {where}, {spread}"
    return Finding("Uncertainty", f"{text}: {judged}.")


def _shift(metrics: Metrics) -> list[Finding]:
    adapted = metrics.get("adaptation") or {}
    if not adapted:
        return [Finding("Changed robot", "the recipe names no recording of a changed robot.", False)]
    return [Finding("Changed robot", _adapted(name, a, metrics)) for name, a in adapted.items()]


def _adapted(name: str, adaptation: Mapping[str, Any], metrics: Metrics) -> str:
    seconds = trimmed(adaptation.get("seconds"))
    text = f"{name}, adapted to its first {seconds} s: {adaptation['sentence']}"
    scored: Mapping[str, Any] = (metrics["scores"].get("shift") or {}).get(name, {})
    goes = [
        f"{digits(before)} to {digits(now)} ({of}, {change(before, now)})"
        for of, old, new in (
            ("simulator", "identified_simulator", "adapted_simulator"),
            ("world model", "finetuned_model", "adapted_model"),
        )
        if {old, new} <= scored.keys()
        for before, now in [(scored[old]["mean_nrmse"], scored[new]["mean_nrmse"])]
    ]
    return f"{text} On what follows, the mean NRMSE goes from {listed(goes)}." if goes else text


def _closed_loop(metrics: Metrics) -> Finding:
    returns = metrics.get("closed_loop")
    if not returns:
        return Finding("Closed loop", f"{no_closed_loop(metrics)}.", False)
    starts = len((metrics.get("closed_loop_each") or {}).get("after", []))
    said = {
        "before": "planning with the nominal simulator's world model",
        "after": "with this run's",
        "oracle": "with one of the true parameters (oracle)",
        "fallback": "with the fallback alone",
    }
    parts = [f"{digits(returns[k])} {words}" for k, words in said.items() if k in returns]
    over = f" over {starts} starts" if starts else ""
    measure = metrics.get("closed_loop_measure") or "uprightness"
    ends = "0 hanging, 1 upright" if measure == "uprightness" else "0 far away, 1 there"
    text = f"Mean {measure}{over} ({ends}) is {listed(parts)}"
    loop = metrics.get("control_loop") or {}
    late = f" In real time it was given up: {loop['failed']}." if "failed" in loop else ""
    backed = (metrics.get("backed_off") or {}).get("after")
    late = late if backed is None else f" It backed off in {percent(backed)} of the periods.{late}"
    share, before = recovered(returns, "after"), recovered(returns, "before")
    if not math.isfinite(share):
        return Finding(
            "Closed loop", f"{text}. The oracle is no better than the fallback, so no recovered share is given.{late}"
        )
    return Finding(
        "Closed loop", f"{text}: {percent(share)} of the oracle's gain is recovered, {percent(before)} before.{late}"
    )
