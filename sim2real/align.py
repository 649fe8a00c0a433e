"""Signals on other clocks: states band-limited, commands held; and how two clocks stand to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2real.errors import LogError

Array = NDArray[np.float64]

LOBES = 3  # of the windowed sinc on either side


def band_limited(t: Array, values: Array, at: Array) -> Array:
    """Return a signal at other times: what the new clock cannot show is filtered out, not folded down.

    Where the new clock is slower than the old one, each value is a mean of the old ones about it, weighted by a Lanczos
    kernel (Duchon 1979) as wide as the new period; it has no delay, and so looks ahead by three periods. Where the new
    clock is as fast or faster, the signal is interpolated by a line from sample to sample.

    Args:
        t: (N,) [s], increasing.
        values: (N,) or (N, C).
        at: (M,) [s], inside of `t`.

    Returns:
        (M,) or (M, C).
    """
    columns = values[:, None] if values.ndim == 1 else values
    period = float(np.median(np.diff(at))) if len(at) > 1 else 0.0
    if len(t) < 2 or period < 1.2 * float(np.median(np.diff(t))):
        out = np.stack([np.interp(at, t, column) for column in columns.T], 1)
    else:
        # each old value stands for the time that is nearer to it than to others
        edges = np.concatenate([t[:1], (t[1:] + t[:-1]) / 2, t[-1:]])
        share = np.diff(edges)
        first = np.searchsorted(t, at - LOBES * period)
        width = int((np.searchsorted(t, at + LOBES * period) - first).max(initial=1))
        out = np.empty((len(at), columns.shape[1]))
        rows_at_once = max(1, (1 << 20) // max(width, 1))
        for a in range(0, len(at), rows_at_once):
            near = first[a : a + rows_at_once, None] + np.arange(width)
            k = np.minimum(near, len(t) - 1)
            x = (t[k] - at[a : a + rows_at_once, None]) / period
            weight = np.where((near < len(t)) & (abs(x) < LOBES), np.sinc(x) * np.sinc(x / LOBES), 0.0) * share[k]
            total = weight.sum(1, keepdims=True)
            thin = abs(total[:, 0]) < 0.2 * period  # a gap, in which the kernel has next to nothing to weigh
            weight = weight / np.where(total == 0, 1.0, total)
            block = np.einsum("rk,rkc->rc", weight, columns[k])
            # the mean is for the mean time of its samples, which is another one at the ends and where steps are uneven
            there = at[a : a + rows_at_once]
            off = there - (weight * t[k]).sum(1)
            before, after = np.maximum(there - period, t[0]), np.minimum(there + period, t[-1])
            rise = np.stack([np.interp(after, t, c) - np.interp(before, t, c) for c in columns.T], 1)
            block += rise * (off / np.maximum(after - before, 1e-12))[:, None]
            if thin.any():
                block[thin] = np.stack([np.interp(there[thin], t, column) for column in columns.T], 1)
            out[a : a + rows_at_once] = block
    return out[:, 0] if values.ndim == 1 else out


def held(t: Array, values: Array, at: Array) -> Array:
    """Return a command at other times: the last one stamped by then, zero before the first.

    Args:
        t: (N,) [s], increasing.
        values: (N,) or (N, C).
        at: (M,) [s].

    Returns:
        (M,) or (M, C).
    """
    k = np.searchsorted(t, at + 1e-9, side="right") - 1
    found = values[np.maximum(k, 0)]
    return np.where((k >= 0).reshape(-1, *[1] * (values.ndim - 1)), found, 0.0)


@dataclass(frozen=True)
class ClockRelation:
    """How a clock stands to a reference: `reference = stamp + offset + drift * (stamp - first) + delay`, delay >= 0.

    Attributes:
        offset: at the first stamp [s]; it holds the shortest delay too, which cannot be told from it.
        drift: how much faster the reference runs [s/s].
        delay: median of what is above the shortest delay [s].
    """

    offset: float
    drift: float
    delay: float


def relate_clocks(stamps: Array, received: Array) -> ClockRelation:
    """Return how the clock of a sender stands to that of the receiver, from messages that take different times.

    Delays are never negative, so the line below all differences `received - stamp` is the relation of the clocks: the
    edge of the lower convex hull over the middle of the recording (Moon, Skelly and Towsley 1999).

    Args:
        stamps: (N,) by the sender [s], increasing.
        received: (N,) by the receiver [s].

    Raises:
        LogError: fewer than two messages.
    """
    if len(stamps) < 2 or stamps[-1] <= stamps[0]:
        raise LogError(f"the relation of two clocks takes two messages at different times, found {len(stamps)}")
    x, y = stamps - stamps[0], received - stamps
    hull: list[int] = []
    for i in np.flatnonzero(np.diff(x, prepend=-1.0) > 0).tolist():
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) >= (y[i] - y[a]) * (x[b] - x[a]):
                hull.pop()
            else:
                break
        hull.append(i)
    middle = x[-1] / 2
    k = next(j for j in range(1, len(hull)) if x[hull[j]] >= middle)
    a, b = hull[k - 1], hull[k]
    drift = float((y[b] - y[a]) / (x[b] - x[a]))
    offset = float(y[a] - drift * x[a])
    return ClockRelation(offset, drift, float(np.median(y - offset - drift * x)))
