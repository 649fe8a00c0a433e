"""What kernels may use of an array namespace, for single numbers in loops that numba compiles."""

from __future__ import annotations

import numpy as np
from numba import njit

inline = njit(inline="always")


@inline
def where(condition, yes, no):  # type: ignore[no-untyped-def]
    return yes if condition else no


@inline
def minimum(a, b):  # type: ignore[no-untyped-def]
    return np.minimum(a, b)


@inline
def maximum(a, b):  # type: ignore[no-untyped-def]
    return np.maximum(a, b)


@inline
def abs(a):  # type: ignore[no-untyped-def]
    return np.abs(a)


@inline
def exp(a):  # type: ignore[no-untyped-def]
    return np.exp(a)


@inline
def sqrt(a):  # type: ignore[no-untyped-def]
    return np.sqrt(a)


@inline
def round(a):  # type: ignore[no-untyped-def]
    return np.rint(a)


@inline
def sign(a):  # type: ignore[no-untyped-def]
    return np.sign(a)
