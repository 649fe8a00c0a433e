"""Outcomes beside the next observation, and how trajectories are propagated, against systems that are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError, ModelError, NonFiniteError
from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, Transitions, fit_transitions

KEEPS, NOISE, REWARD_NOISE = 0.9, 0.05, 0.2
SCHEDULE = Schedule(epochs=25, batch=64, rate=1e-2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def chance(seen: Any, sent: Any) -> Any:
    """Probability that a step is the last one."""
    return 1 / (1 + np.exp(-(4 * seen[..., 0] + 2 * sent[..., 0] - 3)))


def damped(many: int, seed: int = 0) -> Transitions:
    """Linear and Gaussian; rewards in hundreds, ends that depend on state and action."""
    rng = np.random.default_rng(seed)
    seen, sent = rng.uniform(-1, 1, (many, 1)), rng.uniform(-1, 1, (many, 1))
    after = KEEPS * seen + 0.2 * sent + NOISE * rng.normal(size=seen.shape)
    reward = 100 * (after[:, 0] ** 2 + REWARD_NOISE * rng.normal(size=many))
    ends = rng.uniform(size=many) < chance(seen, sent)
    return Transitions(seen, sent, after, ("level",), {"reward": reward, "terminated": ends})


def model(**changed: Any) -> TransitionEnsemble:
    settings: dict[str, Any] = {
        "observations": 1, "actions": 1, "timestep": 0.1, "members": 3, "elites": 2, "hidden": (16, 16),
        "numbers": ("reward",), "events": ("terminated",),
    }  # fmt: skip
    return TransitionEnsemble(TransitionConfig(**(settings | changed)))


@pytest.fixture(scope="module")
def trained() -> TransitionEnsemble:
    torch.set_num_threads(1)
    found = model()
    fit_transitions(found, damped(4000), SCHEDULE)
    return found


# outcomes


def test_rewards_come_with_their_noise_and_ends_with_their_chance(trained: TransitionEnsemble) -> None:
    rng = np.random.default_rng(1)
    seen, sent = rng.uniform(-1, 1, (400, 1)), rng.uniform(-1, 1, (400, 1, 1))
    found = trained.foretell(seen, sent, particles=50)
    assert found.numbers is not None
    assert found.events is not None
    after = KEEPS * seen[:, 0] + 0.2 * sent[:, 0, 0]
    expected = 100 * (after**2 + NOISE**2)
    assert np.abs(found.numbers.mean[:, 0, 0].numpy() - expected).mean() < 4.0
    # the noise of the reward itself, and that of the observation that it is paid for
    spread = 100 * np.sqrt(REWARD_NOISE**2 + (2 * after * NOISE) ** 2)
    ratio = found.numbers.variance[:, 0, 0].sqrt().numpy() / spread
    assert np.median(ratio) == pytest.approx(1.0, abs=0.15)
    assert np.abs(found.events[:, 0, 0].numpy() - chance(seen, sent[:, 0])).mean() < 0.05


def test_an_event_has_happened_once_it_has_happened(trained: TransitionEnsemble) -> None:
    rng = np.random.default_rng(2)
    seen, sent = rng.uniform(-1, 1, (50, 1)), rng.uniform(-1, 1, (50, 6, 1))
    found = trained.foretell(seen, sent)
    assert found.numbers is not None
    assert found.events is not None
    assert found.events.shape == (50, 6, 1)
    assert found.numbers.mean.shape == (50, 6, 1)
    assert (found.events.diff(dim=1) >= 0).all()
    assert ((found.events >= 0) & (found.events <= 1)).all()
    # the observations are those of `predict`
    assert torch.equal(found.observations.mean, trained.predict(seen, sent).mean)
    assert torch.equal(found.observations.variance, trained.predict(seen, sent).variance)
    # of independent steps: none of them ended it
    ended = trained.foretell(np.zeros((1, 1)), np.full((1, 3, 1), -1.0), 400).events
    assert ended is not None
    state, survives = 0.0, 1.0
    for _ in range(3):
        survives *= 1 - chance(np.array([state]), np.array([-1.0]))
        state = KEEPS * state - 0.2
    assert float(ended[0, -1, 0]) == pytest.approx(1 - survives, abs=0.03)


def test_heads_and_dynamics_leave_each_other_alone(trained: TransitionEnsemble) -> None:
    alone = model(numbers=(), events=())
    fit_transitions(alone, damped(4000), SCHEDULE)
    for one, same in zip(alone.network.parameters(), trained.network.parameters(), strict=True):
        assert torch.equal(one, same)
    heads = {k: v.clone() for k, v in trained.heads.state_dict().items()} if trained.heads else {}
    assert heads
    again = model()
    again.load_state_dict(trained.state_dict())
    again.recalibrate(damped(500, 3), np.arange(500))
    for name, value in again.heads.state_dict().items() if again.heads else ():
        assert torch.equal(value, heads[name])


def test_every_head_may_be_alone(tmp_path: Path) -> None:
    few = Schedule(epochs=2, batch=64)
    for numbers, events in ((("reward",), ()), ((), ("terminated",))):
        found = model(numbers=numbers, events=events)
        fit_transitions(found, damped(300), few)
        found.save(tmp_path / "model")
        same = TransitionEnsemble.load(tmp_path / "model")
        one, other = (m.foretell(np.zeros((2, 1)), np.zeros((2, 3, 1))) for m in (found, same))
        assert (one.numbers is not None) == bool(numbers)
        assert (one.events is not None) == bool(events)
        if one.numbers is not None and other.numbers is not None:
            assert torch.equal(one.numbers.variance, other.numbers.variance)
        if one.events is not None and other.events is not None:
            assert torch.equal(one.events, other.events)


def test_what_was_not_recorded_is_refused_before_anything_is_trained() -> None:
    said: list[str] = []
    with pytest.raises(LogError, match="no outcome unsafe; recorded: reward, terminated"):
        fit_transitions(model(events=("unsafe",)), damped(300), SCHEDULE, progress=said.append)
    assert not said
    with pytest.raises(LogError, match="the event reward has to be told by truth values, found float64"):
        fit_transitions(model(numbers=(), events=("reward",)), damped(300), SCHEDULE)
    with pytest.raises(ModelError, match="found twice: reward"):
        model(events=("reward",))
    with pytest.raises(ModelError, match="no heads: name numbers or events"):
        model(numbers=(), events=()).foretell(np.zeros((1, 1)), np.zeros((1, 1, 1)))
    data = damped(20)
    broken = np.where(np.arange(20) == 7, np.nan, data.outcomes["reward"])
    with pytest.raises(LogError, match="the outcome reward is nan in row 7"):
        replace(data, outcomes={"reward": broken})
    with pytest.raises(LogError, match=r"the outcome reward of shape \(20,\), found \(19,\)"):
        replace(data, outcomes={"reward": broken[1:]})


def test_outcomes_come_back_from_the_disk(tmp_path: Path) -> None:
    data = damped(50)
    data.save(tmp_path)
    same = Transitions.open(tmp_path)
    for name in ("reward", "terminated"):
        assert same.outcomes[name].dtype == data.outcomes[name].dtype
        np.testing.assert_array_equal(same.outcomes[name], data.outcomes[name])
    with pytest.raises(ModelError, match="named by letters"):
        replace(data, outcomes={"../reward": data.outcomes["reward"]}).save(tmp_path)


def test_episodes_give_their_rewards_and_ends() -> None:
    t = 0.1 * np.arange(6)
    one = Episode(
        name="one",
        observed_at=t,
        observations=np.arange(6.0)[:, None],
        commanded_at=t[:-1],
        actions=np.zeros((5, 1)),
        action_source="commanded",
        channels=Channels((("level", "m"),), (("push", "N"),)),
        rewards=np.arange(5.0),
        terminated=True,
    )
    cut = replace(one, excluded=((0.05, 0.12),), terminated=False)
    found = Transitions.of([one, cut])
    np.testing.assert_array_equal(found.outcomes["reward"], [0, 1, 2, 3, 4, 2, 3, 4])
    np.testing.assert_array_equal(found.outcomes["terminated"], [False] * 4 + [True] + [False] * 3)
    assert set(Transitions.of([one, replace(one, rewards=None)]).outcomes) == {"terminated"}


# propagation


@pytest.mark.parametrize("propagation", ["trajectories", "moments"])
def test_a_linear_system_spreads_as_it_must(trained: TransitionEnsemble, propagation: Any) -> None:
    rng = np.random.default_rng(4)
    seen, sent = rng.uniform(-0.5, 0.5, (40, 1)), rng.uniform(-1, 1, (40, 8, 1))
    found = trained.predict(seen, sent, particles=200, propagation=propagation)
    state, expected = seen[:, 0], []
    for k in range(8):
        state = KEEPS * state + 0.2 * sent[:, k, 0]
        expected.append(state)
    np.testing.assert_allclose(found.mean[..., 0].numpy().T, expected, atol=0.06)
    spread = NOISE * np.sqrt(np.cumsum(KEEPS ** (2 * np.arange(8))))
    np.testing.assert_allclose(found.variance[..., 0].sqrt().mean(0), spread, rtol=0.15)


def test_moments_forget_which_member_a_trajectory_had(trained: TransitionEnsemble) -> None:
    """Far from the data members disagree more and more; each step anew that starts from one cloud."""
    seen, sent = np.full((5, 1), 3.0), np.zeros((5, 12, 1))
    kept = trained.predict(seen, sent, particles=100)
    drawn = trained.predict(seen, sent, particles=100, propagation="moments")
    assert (drawn.epistemic[:, -1] < kept.epistemic[:, -1]).all()
    torch.testing.assert_close(drawn.mean[:, 0], kept.mean[:, 0], atol=0.05, rtol=0.05)
    with pytest.raises(NonFiniteError, match="model of transitions"):
        trained.predict(np.full((5, 1), np.nan), sent, propagation="moments")
    with pytest.raises(ModelError, match="trajectories or moments, found 'particles'"):
        trained.predict(seen, sent, propagation="particles")  # type: ignore[arg-type]
