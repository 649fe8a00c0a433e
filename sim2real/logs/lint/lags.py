"""How late one signal is behind others, and how sure that is: regression over lags, bootstrapped over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sim2real.episodes import Array

RESAMPLES = 200


@dataclass(frozen=True)
class Lag:
    """A regression of one signal on others that come `lag` earlier.

    Attributes:
        lag: that explains the most [s].
        low, high: of its 90 % interval [s].
        gain: (C,) coefficients at that lag; `gain_low` and `gain_high` are the bounds of their 90 % intervals.
        explained: share of the variance that is explained at that lag.
    """

    lag: float
    low: float
    high: float
    gain: Array
    gain_low: Array
    gain_high: Array
    explained: float


def regress_over_lags(
    y: Array,
    x: Array,
    dt: float,
    first: int,
    last: int,
    *,
    beside: Array | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Lag:
    """Return the lag at which `y(t) = gain @ x(t - lag)` holds best, beside what `beside(t)` explains.

    Args:
        y: (N,) of mean zero.
        x: (N, C) of mean zero.
        dt: between samples [s].
        first, last: the lags to try, in samples; negative ones ask whether y comes first.
        beside: (N, P) what else explains y at the same instant; it is taken out of y and of x at every lag.
        noise: variance of the noise in x, which would make the gain seem smaller.
        seed: of the bootstrap.
    """
    lags = np.arange(first, last + 1)
    inner = slice(max(last, 0), len(y) + min(first, 0))
    n = inner.stop - inner.start
    blocks = max(4, min(40, int(n * dt)))  # of a second, roughly
    edges = np.linspace(0, n, blocks + 1).astype(int)
    basis = np.empty((n, 0)) if beside is None else np.linalg.qr(beside[inner])[0]
    target = y[inner] - basis @ (basis.T @ y[inner])
    c = x.shape[1]
    xx, xy = np.empty((len(lags), blocks, c, c)), np.empty((len(lags), blocks, c))
    for k, lag in enumerate(lags):
        moved = x[inner.start - lag : inner.stop - lag]
        moved = moved - basis @ (basis.T @ moved)
        for b in range(blocks):
            part = moved[edges[b] : edges[b + 1]]
            xx[k, b] = part.T @ part - noise * len(part) * np.eye(c)
            xy[k, b] = part.T @ target[edges[b] : edges[b + 1]]
    yy = np.array([float(target[a:b] @ target[a:b]) for a, b in pairwise(edges)])
    rng = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, blocks)), rng.multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES)])
    sxx, sxy = np.einsum("rb,kbcd->rkcd", weights, xx), np.einsum("rb,kbc->rkc", weights, xy)
    ridge = 1e-9 * np.trace(sxx, axis1=2, axis2=3)[..., None, None] * np.eye(c) + 1e-300 * np.eye(c)
    gains = np.linalg.solve(sxx + ridge, sxy[..., None])[..., 0]
    explained = np.einsum("rkc,rkc->rk", gains, sxy)
    best = explained.argmax(1)
    found = np.array([_refined(explained[r], best[r]) for r in range(len(weights))])
    at = (first + found) * dt
    gain = gains[np.arange(len(weights)), best]
    return Lag(
        lag=float(at[0]),
        low=float(np.quantile(at[1:], 0.05)),
        high=float(np.quantile(at[1:], 0.95)),
        gain=gain[0],
        gain_low=np.quantile(gain[1:], 0.05, axis=0),
        gain_high=np.quantile(gain[1:], 0.95, axis=0),
        explained=float(explained[0, best[0]] / max(yy.sum(), 1e-300)),
    )


def _refined(values: Array, k: int) -> float:
    """Return where a parabola through the greatest value and its neighbours has its top."""
    if not 0 < k < len(values) - 1:
        return float(k)
    a, b, c = values[k - 1 : k + 2]
    bend = a - 2 * b + c
    return k + float(np.clip(0.5 * (a - c) / bend, -0.5, 0.5)) if bend < 0 else float(k)
