"""Episodes: what they refuse, cutting, commands between stamps, and resampling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim2real.episodes import Channels, Episode, resample
from sim2real.errors import LogError

CHANNELS = Channels(observations=(("position", "rad"), ("velocity", "rad/s")), actions=(("torque", "N·m"),))


def make(observed_at, commanded_at=None, actions=None, **more):
    observed_at = np.asarray(observed_at, float)
    steps = len(observed_at) - 1
    fields = {
        "name": "test",
        "observed_at": observed_at,
        "observations": np.stack([observed_at, -2 * observed_at], 1),
        "commanded_at": observed_at[:-1] if commanded_at is None else np.asarray(commanded_at, float),
        "actions": np.arange(1.0, steps + 1)[:, None] if actions is None else np.asarray(actions, float),
        "action_source": "commanded",
        "channels": CHANNELS,
    }
    return Episode(**{**fields, **more})


def test_length_duration_and_period():
    episode = make([5.0, 5.1, 5.2, 5.4])
    assert len(episode) == 3
    assert episode.duration == pytest.approx(0.4)
    assert episode.period == pytest.approx(0.1)
    assert episode.channels.column("velocity") == 1


def test_an_unknown_channel_lists_the_known_ones():
    with pytest.raises(LogError, match=r"'speed'.*position, velocity"):
        CHANNELS.column("speed")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"observations": np.zeros((3, 3))}, r"observations has shape \(3, 3\), expected \(3, 2\)"),
        ({"rewards": np.zeros(3)}, r"rewards has shape \(3,\), expected \(2,\)"),
        ({"actions": [[0.0], [np.nan]]}, "actions is not finite in row 1"),
        ({"commanded_at": [1.0, 1.0]}, "commanded_at must increase.* at row 1"),
    ],
)
def test_bad_fields_are_refused(more, message):
    with pytest.raises(LogError, match=message):
        make([0.0, 1.0, 2.0], **more)


def test_an_episode_needs_a_transition():
    with pytest.raises(LogError, match="at least one transition"):
        make([0.0])


def test_slice_keeps_the_clock_and_pairs_rows_with_transitions():
    episode = make(
        10 + np.arange(6.0),
        measured_actions=np.arange(10.0, 15.0)[:, None],
        rewards=np.arange(5.0),
        exogenous=np.arange(6.0)[:, None],
        channels=Channels(CHANNELS.observations, CHANNELS.actions, (("supply", "V"),)),
        terminated=True,
        excluded=((11.0, 12.0),),
    )
    part = episode.slice(1.0, 3.5, name="part")
    assert part.name == "part"
    assert part.observed_at.tolist() == [11, 12, 13]
    assert part.commanded_at.tolist() == [11, 12]
    assert part.actions[:, 0].tolist() == [2, 3]
    assert part.measured_actions[:, 0].tolist() == [11, 12]
    assert part.rewards.tolist() == [1, 2]
    assert part.exogenous[:, 0].tolist() == [1, 2, 3]
    assert part.excluded == episode.excluded
    assert not part.terminated
    assert episode.slice(1.0, np.inf).terminated
    with pytest.raises(LogError, match=r"no two observations between 1\.2 s and 1\.8 s; it lasts 5 s"):
        episode.slice(1.2, 1.8)


def test_commands_are_held_and_nothing_is_sent_before_the_first_stamp():
    episode = make([0.0, 1.0, 2.0, 3.0], commanded_at=[0.5, 1.5, 2.5], actions=[[4.0], [5.0], [6.0]])
    times = np.array([[0.0, 0.49, 0.5], [1.49, 1.5, 99.0]])
    assert episode.commands_at(times)[..., 0].tolist() == [[0, 0, 4], [4, 5, 6]]


def test_excluded_stretches_touch_what_overlaps_them():
    episode = make([0.0, 1.0, 2.0], excluded=((0.5, 1.0),))
    assert episode.is_excluded(np.array([0.0, 0.9, 1.0]), np.array([0.5, 1.5, 2.0])).tolist() == [False, True, False]


@st.composite
def recordings(draw):
    """Commands that start with the observations or later, on a clock of their own that jitters."""
    steps = draw(st.integers(2, 12))
    gaps = st.lists(st.floats(0.05, 0.5), min_size=steps, max_size=steps)
    observed_at = draw(st.sampled_from([0.0, -3.0, 1.7e3])) + np.concatenate([[0.0], np.cumsum(draw(gaps))])
    late = draw(st.lists(st.floats(0.0, 0.04), min_size=steps, max_size=steps))
    values = draw(st.lists(st.floats(-10, 10), min_size=steps, max_size=steps))
    return make(observed_at, commanded_at=observed_at[:-1] + late, actions=np.array(values)[:, None])


@settings(max_examples=60, deadline=None)
@given(recordings(), st.floats(0.02, 0.09))
def test_resampling_conserves_the_impulse_and_the_lines_between_states(episode, period):
    new = resample(episode, period)
    assert np.diff(new.observed_at) == pytest.approx(period)
    # The oracle: the area under the held commands, up to the end of the last whole new step.
    end = new.observed_at[-1]
    until = np.minimum(np.append(episode.commanded_at[1:], np.inf), end)
    area = (episode.actions[:, 0] * np.maximum(until - episode.commanded_at, 0)).sum()
    assert (new.actions[:, 0] * np.diff(new.observed_at)).sum() == pytest.approx(area, abs=1e-9)
    assert new.observations[:, 1] == pytest.approx(-2 * np.minimum(new.observed_at, episode.observed_at[-1]), abs=1e-5)


def test_resampling_to_the_recorded_period_changes_nothing():
    episode = make(0.01 * np.arange(50))
    new = resample(episode, 0.01)
    assert new.actions == pytest.approx(episode.actions)
    assert new.observations == pytest.approx(episode.observations)


def test_resampling_holds_the_first_measured_action_but_not_the_first_command():
    episode = make(
        [0.0, 1.0, 2.0], commanded_at=[0.5, 1.5], actions=[[4.0], [8.0]], measured_actions=np.array([[4.0], [8.0]])
    )
    new = resample(episode, 1.0)
    assert new.actions[:, 0].tolist() == pytest.approx([2.0, 6.0])
    assert new.measured_actions[:, 0].tolist() == pytest.approx([4.0, 6.0])


def test_resampling_sums_the_rewards_of_the_steps_that_start_inside():
    episode = make(0.1 * np.arange(8), rewards=np.array([1.0, 2, 4, 8, 16, 32, 64]))
    assert resample(episode, 0.2).rewards.tolist() == [3, 12, 48]  # the seventh step is past the last whole one
    assert resample(episode, 0.05).rewards.tolist() == [1, 0, 2, 0, 4, 0, 8, 0, 16, 0, 32, 0, 64, 0]
    late = make([0.0, 1.0, 2.0], commanded_at=[0.9, 1.1], rewards=np.array([1.0, 2.0]))
    assert resample(late, 1.0).rewards.tolist() == [1, 2]


def test_resampling_needs_one_whole_step():
    with pytest.raises(LogError, match=r"lasts 0\.2 s, shorter than one step of 1 s"):
        resample(make([0.0, 0.1, 0.2]), 1.0)
