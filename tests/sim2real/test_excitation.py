"""How simulations are excited: at random, and as recordings were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim2real.episodes import Channels, Episode
from sim2real.errors import ModelError
from sim2real.world_model import Driven, Excitation

DT = 0.02


def recording(gain: float, seconds: float = 4.0) -> Episode:
    t = np.arange(0.0, seconds + 1e-9, 0.01)
    goals = np.stack([np.sin(t[:-1]), np.full(len(t) - 1, gain)], 1)
    return Episode(
        name=f"gain {gain:g}",
        channels=Channels((("angle", "rad"),), (("goal", "rad"), ("gain", "1"))),
        observed_at=t,
        observations=np.cos(t)[:, None],
        commanded_at=t[:-1],
        actions=goals,
        action_source="commanded",
    )


def excitation(share: float, *episodes: Episode) -> Excitation:
    return Excitation((1.0, 2.0), (3.0,), (0.5,), Driven.of(episodes, ["angle"], DT), share)


def test_gains_go_with_the_recording_that_had_them_and_states_lie_near_it() -> None:
    some = excitation(1.0, recording(100.0), recording(800.0))
    commands, states = some.draw(np.random.default_rng(0), 400, 30, weakest=0.05)
    gains = commands[..., 1].round(6)
    assert commands.shape == (400, 30, 2)
    assert states.shape == (400, 2)
    assert set(np.unique(gains)) == {100.0, 800.0}
    assert np.ptp(gains, axis=1).max() == 0
    assert 100 < (gains[:, 0] == 100).sum() < 300
    # goal = sin(t), angle = cos(t), velocity = -sin(t)
    assert np.abs(states[:, 0] ** 2 + commands[:, 0, 0] ** 2 - 1).max() < 0.25
    assert np.abs(states[:, 1] + commands[:, 0, 0]).std() == pytest.approx(0.1 * 3.0, rel=0.5)


def test_states_come_after_the_commands_before_them() -> None:
    commands, states = excitation(1.0, recording(100.0)).draw(np.random.default_rng(0), 200, 12, before=5)
    assert np.abs(states[:, 0] ** 2 + commands[:, 5, 0] ** 2 - 1).max() < 0.25
    assert np.abs(states[:, 1] + commands[:, 5, 0]).std() == pytest.approx(0.1 * 3.0, rel=0.5)


def test_excluded_stretches_are_not_gone_through() -> None:
    whole = recording(100.0)
    parts = Driven.of([replace(whole, excluded=((1.0, 1.5),))], ["angle"], DT)
    assert [len(p.commands) for p in parts] == pytest.approx([50, 124], abs=2)
    np.testing.assert_allclose(parts[1].states[0, 0], np.cos(1.52), atol=0.03)


def test_a_share_is_recorded_and_the_others_are_what_they_would_be_without() -> None:
    mixed, wild = excitation(0.3, recording(100.0)), Excitation((1.0, 2.0), (3.0,), (0.5,))
    commands, states = mixed.draw(np.random.default_rng(1), 1000, 10, weakest=0.1)
    others, starts = wild.draw(np.random.default_rng(1), 1000, 10, weakest=0.1)
    recorded = commands[:, 0, 1] > 50
    assert 0.25 < recorded.mean() < 0.35
    np.testing.assert_array_equal(commands[~recorded], others[~recorded])
    np.testing.assert_array_equal(states[~recorded], starts[~recorded])
    assert np.abs(others).max(axis=(0, 1)) == pytest.approx([1.0, 2.0], rel=0.05)


def test_a_short_recording_holds_its_last_command() -> None:
    one = recording(100.0, seconds=0.2)
    commands, _ = excitation(1.0, one).draw(np.random.default_rng(0), 5, 40)
    np.testing.assert_array_equal(commands[:, 20:], np.broadcast_to(commands[:, -1:], (5, 20, 2)))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ModelError, match="share of recorded commands from 0 to 1"):
        excitation(share, recording(100.0))


def test_a_share_needs_recordings() -> None:
    with pytest.raises(ModelError, match="0 recordings"):
        excitation(0.5)
