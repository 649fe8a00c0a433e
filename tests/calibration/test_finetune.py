"""Dynamics-only fine-tuning of a linear model, whose true weights are known, and the gate."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from sim2real.calibration import FinetuneResult, finetune_dynamics, gate
from sim2real.episodes import Channels, Episode
from sim2real.errors import NonFiniteError
from sim2real.estimation import Estimate
from sim2real.evaluation import HORIZONS, Questions
from sim2real.prediction import Prediction
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Stretches, from_episodes

Array = NDArray[np.float64]
DT, PERIOD, HISTORY, MEMBERS = 0.05, 0.01, 2, 3
CHANNELS = Channels((("position", "m"), ("velocity", "m/s")), (("force", "N"),))
BUFFERS = {
    "feature_mean",
    "feature_scale",
    "target_scale",
    "log_variance_low",
    "log_variance_high",
    "start_covariance",
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def steps(gain: float, states: Array, commands: Array, dt: float) -> Array:
    """States (N, K + 1, 2) of a damped spring under held commands (N, K): exact, by the matrix exponential."""
    continuous = np.zeros((3, 3))
    continuous[:2] = [[0, 1, 0], [-4.0, -0.4, gain]]
    exact = expm(continuous * dt)
    path = [states]
    for u in commands.T:
        path.append(np.concatenate([path[-1], u[:, None]], 1) @ exact[:2].T)
    return np.stack(path, 1)


def episode(gain: float, seed: int, seconds: float = 12.0) -> Episode:
    rng = np.random.default_rng(seed)
    many = round(seconds / PERIOD)
    force = np.repeat(rng.normal(size=many // 25 + 1), 25)[:many]
    path = steps(gain, np.zeros((1, 2)), force[None], PERIOD)[0]
    t = PERIOD * np.arange(many + 1)
    path += rng.normal(0, 1e-4, path.shape)
    return Episode(f"gain {gain:g}", t, path, t[:-1], force[:, None], "commanded", CHANNELS)


def simulated(gains: Array, seed: int = 0, stretches: int = 100, length: int = 10) -> Stretches:
    """Stretches of one simulated spring a member."""
    rng = np.random.default_rng(seed)
    states, commands = [], []
    for gain in gains:
        u = rng.normal(size=(stretches, HISTORY - 1 + length))
        states.append(steps(gain, rng.normal(size=(stretches, 2)), u[:, HISTORY - 1 :], DT))
        commands.append(u[..., None])
    return Stretches(
        torch.as_tensor(np.stack(states), dtype=torch.float32),
        torch.as_tensor(np.stack(commands), dtype=torch.float32),
        torch.arange(stretches),
    )


@pytest.fixture(scope="module")
def model() -> EnsembleDynamics:
    """An ensemble without hidden layers, solved for one gain a member: a posterior of 1.0 give or take 0.05."""
    config = EnsembleConfig((False,), 1, DT, HISTORY, MEMBERS, hidden=())
    made, data = EnsembleDynamics(config), simulated(np.array([0.95, 1.0, 1.05]))
    before, commands, after = data.states[:, :, 0], data.commands[:, :, :HISTORY], data.states[:, :, 1]
    made.normalise(before.flatten(0, 1), commands.flatten(0, 1), after.flatten(0, 1))
    with torch.no_grad():
        inputs = made.features(before, commands)
        target = made.raw_target(before, after) / made.target_scale
        ones = torch.ones(*inputs.shape[:-1], 1)
        solution = torch.linalg.lstsq(torch.cat([inputs, ones], -1).double(), target.double()).solution.float()
        made.dynamics.weights[0].zero_()[..., :2] = solution[:, :-1]
        made.dynamics.biases[0].zero_()[..., :2] = solution[:, -1:]
        made.dynamics.biases[0][..., 2:] = -6.0
        made.start_covariance.copy_(torch.tensor([[4e-6, 1e-6], [1e-6, 9e-6]]))
    return made


def answer(model: EnsembleDynamics, questions: Questions) -> Prediction:
    """Ask the model from the logged state; horizons are whole steps."""
    log, starts = questions.episode, questions.starts
    ahead = round(max(HORIZONS) / DT)
    at = log.observed_at[starts][:, None] + DT * np.arange(1 - HISTORY, ahead) + 0.5 * PERIOD
    commands = log.commands_at(at)
    every = model.predict(Estimate(log.observations[starts], commands[:, : HISTORY - 1]), commands[:, HISTORY - 1 :])
    rows = [round(h / DT) - 1 for h in HORIZONS]
    parts = (p[:, rows, :1] for p in (every.mean, every.aleatoric, every.epistemic))
    return Prediction(*parts, torch.tensor(HORIZONS))


def held_out(gain: float) -> list[Questions]:
    return [Questions.of(episode(gain, seed), ["position"], stride=5) for seed in (11, 12)]


def tune(model: EnsembleDynamics, gain: float = 1.5, **changed: object) -> FinetuneResult:
    real = from_episodes([episode(gain, 1)], ["position"], steps=10, history=HISTORY, timestep=DT)
    settings: dict[str, object] = {
        "answer": answer,
        "held_out": held_out(gain),
        "iterations": 60,
        "rate": 0.03,
        "anchor": 0.001,
    }
    return finetune_dynamics(model, **({"real": real} | settings | changed))  # type: ignore[arg-type]


def gains(model: EnsembleDynamics) -> Array:
    """What each member thinks the gain is: from a unit command at rest, whose velocity after a step is known."""
    rest, push = torch.zeros(MEMBERS, 1, 2), torch.ones(MEMBERS, 1, HISTORY, 1)
    with torch.no_grad():
        velocity = (model.step(rest, push)[0] - model.step(rest, 0 * push)[0])[:, 0, 1].numpy()
    return np.asarray(velocity / steps(1.0, np.zeros((1, 2)), np.ones((1, 1)), DT)[0, 1, 1])


def as_bytes(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in tensors.items()}


def test_the_linear_model_is_exact(model: EnsembleDynamics) -> None:
    np.testing.assert_allclose(gains(model), [0.95, 1.0, 1.05], rtol=1e-3)


def test_only_the_dynamics_change_and_they_find_the_gain(model: EnsembleDynamics) -> None:
    before = as_bytes(model.state_dict())
    found = tune(model)
    assert found.accepted, found.reason
    assert as_bytes(model.state_dict()) == before  # the model that was given is not touched
    after = as_bytes(found.model.state_dict())
    assert before.keys() == after.keys()
    assert {name for name in after if not name.startswith("dynamics.")} == BUFFERS
    assert {name for name in after if after[name] != before[name]} == {"dynamics.weights.0", "dynamics.biases.0"}
    np.testing.assert_allclose(gains(found.model), 1.5, atol=0.1)
    assert list(found.crps) == ["before", "after"]
    assert list(found.crps["after"]) == ["0.1", "0.2", "0.5", "1"]
    assert all(found.crps["after"][h] < 0.5 * found.crps["before"][h] for h in ("0.5", "1"))


def test_one_seed_gives_the_same_bytes(model: EnsembleDynamics) -> None:
    first, second, other = (tune(model, iterations=20, seed=s).model for s in (4, 4, 5))
    assert as_bytes(first.state_dict()) == as_bytes(second.state_dict())
    assert as_bytes(first.state_dict()) != as_bytes(other.state_dict())


def test_garbage_is_refused_and_the_old_model_stays(model: EnsembleDynamics) -> None:
    before = as_bytes(model.state_dict())
    noise = torch.Generator().manual_seed(0)
    states, commands = 3 * torch.randn(1, 80, 11, 2, generator=noise), torch.randn(1, 80, 11, 1, generator=noise)
    garbage = Stretches(states, commands, torch.arange(80) // 10)
    found = tune(model, real=garbage, held_out=held_out(1.0))
    assert not found.accepted
    assert found.model is model
    assert found.reason.startswith("refused: CRPS on held-out recordings changed by +")
    assert as_bytes(model.state_dict()) == before


def test_a_strong_anchor_holds_the_weights(model: EnsembleDynamics) -> None:
    shift = [gains(tune(model, anchor=a).model).mean() - 1.0 for a in (0.0, 10.0, 1e3)]
    assert shift[0] > 0.45  # all the way from 1.0 to 1.5
    assert 0.2 < shift[1] < 0.45
    assert 0.0 < shift[2] < 0.1


def test_replayed_simulations_hold_back_too(model: EnsembleDynamics) -> None:
    replay = simulated(np.array([0.95, 1.0, 1.05]), seed=5)
    alone = tune(model, anchor=0.0)
    mixed = tune(model, anchor=0.0, replay=replay, replay_weight=3.0)
    assert gains(mixed.model).mean() < gains(alone.model).mean() - 0.1


def test_members_see_the_data_under_their_own_weights(model: EnsembleDynamics) -> None:
    same = copy.deepcopy(model)
    with torch.no_grad():
        for p in same.dynamics.parameters():
            p.copy_(p[1:2].expand_as(p))
    # half of the recording says one gain, half another: only its weighting can tell the members apart
    parts = [
        from_episodes([episode(g, s, 6.0)], ["position"], steps=10, history=HISTORY, timestep=DT)
        for g, s in ((1.0, 1), (1.6, 2))
    ]
    both = Stretches(
        torch.cat([p.states for p in parts], 1),
        torch.cat([p.commands for p in parts], 1),
        torch.cat([parts[0].block, parts[1].block + 10]),
    )
    found = tune(same, real=both, anchor=0.0, held_out=held_out(1.3))
    assert np.ptp(gains(found.model)) > 0.02
    assert abs(gains(found.model).mean() - 1.3) < 0.2


def test_what_is_not_finite_is_an_error(model: EnsembleDynamics) -> None:
    bad = from_episodes([episode(1.5, 1)], ["position"], steps=10, history=HISTORY, timestep=DT)
    bad.states[0, :, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="training loss is not finite at iteration"):
        tune(model, real=bad)


# the gate: (W, H) errors of an old and a new model on the same windows


def decide(ratio: Array, blocks: int = 20) -> tuple[bool, str]:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 1.5, (10 * blocks, 4, 2))
    after = before * np.broadcast_to(ratio if np.ndim(ratio) == 3 else np.asarray(ratio)[..., None], before.shape)
    return gate(before, after, np.repeat(np.arange(blocks), 10), np.random.default_rng(1))


def test_the_gate_accepts_a_clear_improvement() -> None:
    accepted, reason = decide(np.full(4, 0.8))
    assert accepted
    assert reason == (
        "accepted: CRPS on held-out recordings changed by -20.0 % (pooled over horizons), in 100 % of resampled blocks"
    )


@pytest.mark.parametrize("ratio", [1.0, 1.02, 3.0])
def test_the_gate_refuses_what_is_no_better(ratio: float) -> None:
    accepted, reason = decide(np.full(4, ratio))
    assert not accepted
    assert f"changed by {100 * (ratio - 1):+.1f} %" in reason
    assert reason.endswith("the old model stays")


@pytest.mark.parametrize(("worst", "accepted"), [(1.04, True), (1.06, False)])
def test_the_gate_refuses_one_horizon_that_gets_worse(worst: float, accepted: bool) -> None:
    found, reason = decide(np.array([0.5, 0.5, worst, 0.5]))
    assert found is accepted
    if not accepted:
        assert "but by +6.0 % at 0.5 s" in reason


def test_the_gate_does_not_refuse_a_horizon_for_bad_luck() -> None:
    """Worse on average at 0.5 s, but because of one block of twenty."""
    ratio = np.full((200, 4), 0.5)
    ratio[:10, 2] = 14.0
    assert ratio[:, 2].mean() > 1.1
    found, reason = decide(ratio[..., None] * np.ones(2))
    assert found, reason
    # the same rise, spread evenly over the blocks, is believed
    ratio[:, 2] = ratio[:, 2].mean()
    assert not decide(ratio[..., None] * np.ones(2))[0]


def test_the_gate_refuses_luck() -> None:
    # one block of twenty is much better, the others slightly worse: better on average, not in most resampled blocks
    ratio = np.full((200, 1), 1.01)
    ratio[:10] = 0.2
    accepted, reason = decide(ratio)
    assert not accepted
    assert "% of resampled blocks agree" in reason
    # the same gain, spread evenly over the blocks, is believed
    assert decide(np.full((200, 1), float(ratio.mean())))[0]


@pytest.mark.parametrize(("rise", "noise", "accepted"), [(1.3, 0.0, False), (1.04, 0.0, True), (1.3, 1.0, True)])
def test_the_gate_refuses_one_channel_that_surely_gets_worse(rise: float, noise: float, accepted: bool) -> None:
    """The second channel at 0.5 s, whose errors are a tenth of the first's, so that the horizon as a whole improves."""
    ratio = np.full((200, 4, 2), 0.5)
    # by blocks: what happens in a few of them may be chance
    ratio[:, 2, 1] = rise * np.exp(noise * np.repeat(np.random.default_rng(3).normal(size=20), 10) - 0.5 * noise**2)
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 1.5, (200, 4, 2)) * [1.0, 0.1]
    found, reason = gate(before, before * ratio, np.repeat(np.arange(20), 10), np.random.default_rng(1))
    assert found is accepted, reason
    if not accepted:
        assert "in channel 2 at 0.5 s" in reason
