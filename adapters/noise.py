"""Counter-based random numbers: what a stage draws depends on a seed and a count alone.

Philox-2x32 with 7 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in int64 arithmetic
that wraps, so that numpy, torch and compiled loops draw the same bits, whatever the size of the batch.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Signal = Any
MULTIPLIER, WEYL, WORD, ROUNDS = 0xD256D193, 0x9E3779B9, 0xFFFFFFFF, 7
CHANNELS = 1 << 11  # at most so many channels draw
TINY = 2.0**-24


def identities(seeds: NDArray[np.uint64], stream: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the keys (n,) and lanes (n,) of a stream of numbers for each seed (n,): 53 bits of a hash of both."""
    salt = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    z = seeds.astype(np.uint64) ^ np.uint64(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of SplitMix64
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    lanes = (z >> np.uint64(32)) & np.uint64(WORD // CHANNELS)
    return (z & np.uint64(WORD)).astype(np.int64), lanes.astype(np.int64) * CHANNELS


def words(key: Signal, lane: Signal, count: Signal) -> tuple[Signal, Signal]:
    """Return two words of 32 random bits each, as int64, for integers that broadcast: key, lane + channel, count."""
    left, right = count & WORD, lane
    for _ in range(ROUNDS):
        product = left * MULTIPLIER
        left, right = ((product >> 32) & WORD) ^ key ^ right, product & WORD
        key = (key + WEYL) & WORD
    return left, right


def uniform(xp: Any, word: Signal, dtype: Any) -> Signal:
    """Return numbers in (0, 1) for words, exact in single precision: never 0 nor 1."""
    return (xp.astype(word >> 8, dtype) + 0.5) * TINY


def normals(xp: Any, left: Signal, right: Signal, dtype: Any) -> tuple[Signal, Signal]:
    """Return two independent standard normal numbers for two words each (Box and Muller)."""
    radius = xp.sqrt(-2.0 * xp.log(uniform(xp, left, dtype)))
    angle = 2.0 * np.pi * uniform(xp, right, dtype)
    return radius * xp.cos(angle), radius * xp.sin(angle)
