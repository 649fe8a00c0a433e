"""Setups: what a recipe makes of its recordings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sim2real.episodes import Channels, Episode
from sim2real.preparation import Shift


def recording(name: str, offset: float, seconds: float = 3.0) -> Episode:
    t = 0.01 * np.arange(round(seconds / 0.01) + 1)
    return Episode(
        name=name,
        observed_at=t,
        observations=np.sin(t + offset)[:, None],
        commanded_at=t[:-1],
        actions=np.zeros((len(t) - 1, 1)),
        action_source="commanded",
        channels=Channels((("position", "rad"),), (("torque", "N·m"),)),
    )


def test_only_what_was_adapted_to_is_not_scored() -> None:
    whole, other = recording("changed", 0.0), recording("another", 1.0)
    view = replace(whole, name="a view of it", excluded=((2.5, 3.0),))
    short = recording("too short to begin so", 0.0, 1.0)
    shift = Shift("changed", whole.slice(0, 2.0), [whole, view, other, short])
    assert [shift.after(e) for e in shift.recordings] == [2.0, 2.0, 0.0, 0.0]
