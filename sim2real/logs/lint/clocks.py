"""Rules of clocks: LOG001, LOG002, LOG003 (stamps), LOG004 (stamps), LOG016 to LOG019."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sim2real.align import relate_clocks
from sim2real.logs.lint.findings import Finding
from sim2real.logs.lint.view import View
from sim2real.logs.raw import RawChannel

FEWEST, SHORTEST = 50, 1.0  # rows and seconds of a recording that can teach something
GAP = 4.0  # median steps
UNEVEN, VERY_UNEVEN = 0.02, 0.12  # standard deviation of the steps, as a share of the median one
DRIFT = 20e-6  # s/s: what two free-running clocks differ by


def check_clocks(view: View) -> Iterator[Finding]:
    """Yield what is wrong with the clocks of a recording."""
    for name, channels in _by_clock(view).items():
        yield from _clock(view, name, channels)
    yield from _stamps(view)


def _by_clock(view: View) -> dict[str, list[RawChannel]]:
    found: dict[str, list[RawChannel]] = {}
    for channel in view.recording.channels:
        found.setdefault(channel.clock, []).append(channel)
    return found


def _clock(view: View, name: str, channels: list[RawChannel]) -> Iterator[Finding]:
    recording = view.recording.name
    t = max((c.t for c in channels), key=len)
    main = name == view.recording.channels[0].clock
    roles = (f"clock {name}",)
    lost = np.flatnonzero(~np.isfinite(t))
    if len(lost):
        what = f"{len(lost)} of {len(t)} stamps are missing"
        yield Finding("LOG004", "error", recording, roles, what, f"first in row {lost[0]}", {"count": len(lost)})
        t = t[np.isfinite(t)]
    steps = np.diff(t)
    back, same = np.flatnonzero(steps < 0), np.flatnonzero(steps == 0)
    if len(back):
        what = f"the clock goes back {len(back)} times, by up to {-steps.min():.3g} s"
        yield Finding("LOG019", "error", recording, roles, what, f"first at row {back[0] + 1}", {"count": len(back)})
    if len(same):
        what = f"{len(same)} stamps are there twice"
        yield Finding("LOG003", "error", recording, roles, what, f"first at row {same[0] + 1}", {"count": len(same)})
    duration = float(t[-1] - t[0]) if len(t) else 0.0
    if main and (len(t) < FEWEST or duration < SHORTEST):
        what = f"lasts {duration:.3g} s, in {len(t)} rows; a second and {FEWEST} rows are the least"
        yield Finding("LOG016", "warning", recording, (), what, values={"seconds": duration, "rows": len(t)})
    steps = steps[steps > 0]
    if len(steps) < 10:
        return
    median = float(np.median(steps))
    gaps = np.flatnonzero(np.diff(t) > GAP * median)
    if len(gaps):
        longest = float(np.diff(t).max())
        what = f"{len(gaps)} steps are over {GAP:g} times the usual {1e3 * median:.3g} ms: up to {longest:.3g} s"
        where = "after " + ", ".join(f"{t[k] - t[0]:.2f} s" for k in gaps[:3]) + (" ..." if len(gaps) > 3 else "")
        yield Finding("LOG002", "warning", recording, roles, what, where, {"count": len(gaps), "longest": longest})
    even = steps[steps <= GAP * median]
    single = bool((t == t.astype(np.float32)).all())  # stamps that were kept in 32 bits are off by their rounding
    rounding = 2 * float(np.spacing(np.float32(abs(t).max()))) if single else 0.0
    if bool((abs(even - median) <= max(1e-5 * median, rounding)).all()) or (main and view.recording.synthetic):
        why = view.recording.synthetic or f"every step is exactly {1e3 * median:.6g} ms"
        yield Finding("LOG017", "note", recording, roles, f"stamps are nominal: {why}", values={"period": median})
        return
    spread = float(even.std() / median)
    if spread > UNEVEN:
        low, high = np.quantile(even, [0.01, 0.99])
        what = (
            f"steps vary by {100 * spread:.1f} % about {1e3 * median:.3g} ms (98 % lie between {1e3 * low:.3g} and "
            f"{1e3 * high:.3g} ms)"
        )
        values = {"spread": spread, "median": median}
        curves = {"step [ms] over time [s]": (t[1:] - t[0], 1e3 * np.diff(t))}
        yield Finding(
            "LOG001", "warning" if spread > VERY_UNEVEN else "note", recording, roles, what, "", values, curves
        )


def _stamps(view: View) -> Iterator[Finding]:
    for topic, pair in view.recording.stamps:
        pair = pair[np.isfinite(pair).all(1)]
        if len(pair) < 20 or pair[-1, 0] - pair[0, 0] < 5.0:
            continue
        found = relate_clocks(pair[:, 0], pair[:, 1])
        seconds = pair[-1, 0] - pair[0, 0]
        if abs(found.drift) > DRIFT and abs(found.drift) * seconds > 1e-3:
            what = (
                f"the stamps of {topic} drift by {1e6 * found.drift:.0f} µs a second against the clock of the recorder "
                f"({1e3 * abs(found.drift) * seconds:.1f} ms in this recording)"
            )
            values = {"drift": found.drift, "offset": found.offset}
            yield Finding("LOG018", "warning", view.recording.name, (topic,), what, values=values)
