"""The world model against loops, closed forms and systems whose motion and noise are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from sim2real.adapters import Chain
from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError, ModelError, NonFiniteError
from sim2real.estimation import Estimate
from sim2real.plant import Plant
from sim2real.randomization import RobotModel
from sim2real.world_model import (
    EnsembleConfig,
    EnsembleDynamics,
    Excitation,
    Stretches,
    fit,
    from_episodes,
    rollout_error,
    simulate,
)
from sim2real.world_model.network import BatchedMLP

Array = NDArray[np.float64]
DT = 0.05
RAIL = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="cart">
      <inertial pos="0 0 0" mass="2" diaginertia="1 1 1"/>
      <joint name="rail" type="slide" axis="1 0 0"/>
    </body>
  </worldbody>
  <actuator><motor name="drive" joint="rail"/></actuator>
</mujoco>
"""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def random_model(seed: int = 0, **changed: Any) -> EnsembleDynamics:
    """A model of two joints with random normalisers, as if it had been trained."""
    settings: dict[str, Any] = {
        "wraps": (True, False),
        "actions": 2,
        "timestep": DT,
        "history": 3,
        "members": 4,
        "hidden": (7, 5),
    }
    model = EnsembleDynamics(EnsembleConfig(**(settings | changed)), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for buffer in (model.feature_mean, model.target_scale, model.feature_scale):
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model


def coasting(covariance: Tensor) -> EnsembleDynamics:
    """A model of one joint that nothing pushes, sure of its motion but not of its start."""
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, history=1, members=2, hidden=()))
    with torch.no_grad():
        model.dynamics.weights[0].zero_()
        model.dynamics.biases[0].copy_(torch.tensor([0.0, 0.0, -60.0, -60.0]))
    model.log_variance_low.fill_(-30.0)
    model.start_covariance.copy_(covariance)
    return model


# architecture


def test_batched_network_equals_a_loop_over_members() -> None:
    generator = torch.Generator().manual_seed(0)
    network = BatchedMLP(3, 4, 2, (6, 5), generator)
    with torch.no_grad():
        for bias in network.biases:
            bias.normal_(generator=generator)
    x = torch.randn(3, 8, 4, generator=generator)
    for member in range(3):
        y = x[member]
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            y = y @ weight[member] + bias[member]
            y = y * torch.sigmoid(y) if i < 2 else y
        torch.testing.assert_close(network(x)[member], y, atol=1e-6, rtol=1e-5)


def test_rollout_is_repeated_steps() -> None:
    model = random_model()
    state, commands = torch.randn(4, 6, 4), torch.randn(4, 6, 3 - 1 + 5, 2)
    path = model.rollout(state, commands)
    assert path.shape == (4, 6, 5, 4)
    for k in range(5):
        state, _ = model.step(state, commands[:, :, k : k + 3])
        torch.testing.assert_close(path[:, :, k], state)


def test_the_command_about_to_act_is_the_last_one() -> None:
    model = random_model()
    state, commands = torch.randn(4, 1, 4), torch.randn(4, 1, 3, 2)
    raw = model.features(state, commands) * model.feature_scale + model.feature_mean
    torch.testing.assert_close(raw[..., -2:], commands[..., -1, :])
    torch.testing.assert_close(raw[..., :3], torch.stack([state[..., 0].sin(), state[..., 0].cos(), state[..., 1]], -1))


def test_positions_come_from_velocities() -> None:
    model = random_model()
    with torch.no_grad():  # the part of the output that moves positions on their own
        model.dynamics.weights[-1][..., 2:4] = 0.0
    q, v = torch.randn(2, 4, 9, 2)
    after, _ = model.step(torch.cat([q, v], -1), torch.randn(4, 9, 3, 2))
    assert (after[..., 2:] - v).abs().min() > 1e-6
    torch.testing.assert_close(after[..., :2], q + DT * 0.5 * (v + after[..., 2:]))
    # and `raw_target` is what `step` undoes
    target = model.raw_target(torch.cat([q, v], -1), after)
    torch.testing.assert_close(target, torch.cat([after[..., 2:] - v, torch.zeros_like(q)], -1), atol=1e-6, rtol=0)


def test_whole_turns_change_nothing_but_the_turn() -> None:
    model = random_model()
    state, commands = np.random.default_rng(0).normal(size=(5, 4)), np.random.default_rng(1).normal(size=(5, 9, 2))
    turned = state + np.array([2 * np.pi, 0, 0, 0])
    here, there = (model.predict(Estimate(s, commands[:, :2]), commands[:, 2:]) for s in (state, turned))
    torch.testing.assert_close(there.mean[..., 0], here.mean[..., 0] + 2 * np.pi, atol=1e-4, rtol=0)
    torch.testing.assert_close(there.mean[..., 1:], here.mean[..., 1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(there.variance, here.variance, rtol=1e-3, atol=1e-6)
    shifted = state + np.array([0, 2 * np.pi, 0, 0])  # the other joint does not turn round
    elsewhere = model.predict(Estimate(shifted, commands[:, :2]), commands[:, 2:])
    assert (elsewhere.mean[..., 2] - here.mean[..., 2]).abs().max() > 1e-3


# training


def spring(states: Array, commands: Array, noise: Array | float = 0.0) -> Array:
    """States (N, K + 1, 2) of a damped spring under held commands (N, K), exact; `noise` kicks the velocities."""
    continuous = np.zeros((3, 3))
    continuous[:2] = [[0, 1, 0], [-4.0, -0.5, 2.0]]
    exact, path = expm(continuous * DT), [states]
    kicks = np.broadcast_to(noise, commands.shape)
    for k, u in enumerate(commands.T):
        kick = kicks[:, k : k + 1] * [0.5 * DT, 1.0]
        path.append(np.concatenate([path[-1], u[:, None]], 1) @ exact[:2].T + kick)
    return np.stack(path, 1)


def stretches(states: Array, commands: Array) -> Stretches:
    tensors = (torch.as_tensor(x, dtype=torch.float32)[None] for x in (states, commands[..., None]))
    return Stretches(*tensors, torch.arange(len(states)))


def spring_data(rng: np.random.Generator, many: int, late: int = 0, noise: float = 0.0, steps: int = 20) -> Stretches:
    """Stretches with a history of three commands, of which the one `late` steps ago acts."""
    u = rng.normal(size=(many, 2 + steps))
    kicks = rng.normal(0, noise, (many, steps)) if noise else 0.0
    return stretches(spring(rng.normal(size=(many, 2)), u[:, 2 - late : 2 - late + steps], kicks), u)


@pytest.mark.parametrize("late", [0, 2])
def test_a_linear_system_is_learned(late: int) -> None:
    rng = np.random.default_rng(0)
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, history=3, members=2, hidden=(24,)))
    lines: list[str] = []
    fit(
        model, spring_data(rng, 300, late), step_iterations=350, rollout_iterations=30, rate=0.01, progress=lines.append
    )
    errors = rollout_error(model, spring_data(rng, 100, late), at=(1, 5, 20))
    assert max(errors) < 0.05
    assert lines[-1].startswith("rollout 30/30: loss")
    # the same through `predict`: against the matrix exponential
    test = spring_data(rng, 20, late)
    states, commands = test.states[0].double().numpy(), test.commands[0].double().numpy()
    found = model.predict(Estimate(states[:, 0], commands[:, :2]), commands[:, 2:])
    error = (found.mean.numpy() - states[:, 1:])[..., 0]
    assert np.sqrt((error**2).mean()) < 0.05 * states[..., 0].std()


def test_the_noise_of_a_system_is_learned_as_aleatoric() -> None:
    rng, sigma, steps = np.random.default_rng(1), 0.1, 8
    model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, history=3, members=3, hidden=(16,)))
    fit(model, spring_data(rng, 800, noise=sigma, steps=4), step_iterations=400, rollout_iterations=0, rate=0.01)
    states, commands = rng.normal(size=(30, 2)), rng.normal(size=(30, 2 + steps, 1))
    found = model.predict(Estimate(states, commands[:, :2]), commands[:, 2:], particles=64)
    runs = np.stack([spring(states, commands[:, 2:, 0], rng.normal(0, sigma, (30, steps)))[:, 1:] for _ in range(400)])
    expected = runs.var(0).mean(0)  # (steps, 2)
    np.testing.assert_allclose(found.aleatoric.mean(0)[:, 1], expected[:, 1], rtol=0.4)
    np.testing.assert_allclose(found.aleatoric.mean(0)[:, 0], expected[:, 0], rtol=0.4)
    assert found.epistemic[:, 0, 1].mean() < 0.2 * sigma**2  # plenty of data


def test_fitting_is_deterministic_for_a_seed() -> None:
    data = spring_data(np.random.default_rng(2), 50)

    def weights(seed: int) -> bytes:
        model = EnsembleDynamics(EnsembleConfig((False,), 1, DT, history=3, members=2, hidden=(8,)), seed=7)
        fit(model, data, step_iterations=10, rollout_iterations=3, seed=seed)
        return b"".join(t.numpy().tobytes() for t in model.state_dict().values())

    assert weights(0) == weights(0)
    assert weights(0) != weights(1)


def test_divergence_is_an_error() -> None:
    data = spring_data(np.random.default_rng(3), 20)
    data.states[0, :, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="training loss is not finite at iteration 0"):
        fit(random_model(wraps=(False,), actions=1), data, step_iterations=3, rollout_iterations=0)


# prediction


def test_uncertainty_of_the_start_grows_with_time() -> None:
    covariance = torch.tensor([[0.04, -0.01], [-0.01, 0.09]])
    model, steps = coasting(covariance), 10
    state = np.random.default_rng(0).normal(size=(200, 2))
    found = model.predict(Estimate(state, np.zeros((200, 1, 1))), np.zeros((200, steps, 1)), particles=40)
    t = DT * np.arange(1, steps + 1)
    np.testing.assert_allclose(found.mean[..., 0], state[:, :1] + state[:, 1:] * t, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.aleatoric[..., 0].mean(0), 0.04 - 0.02 * t + 0.09 * t**2, rtol=0.05)
    np.testing.assert_allclose(found.aleatoric[..., 1].mean(0), 0.09, rtol=0.05)
    assert found.epistemic.abs().max() == 0.0  # all members are alike
    np.testing.assert_allclose(found.horizon, t, rtol=1e-6)


def test_members_that_disagree_are_epistemic() -> None:
    model = coasting(torch.zeros(2, 2))
    with torch.no_grad():
        model.dynamics.biases[0][:, 0, 0] = torch.tensor([0.3, -0.1])  # velocity gained in each step
    found = model.predict(Estimate(np.zeros((3, 2)), np.zeros((3, 0, 1))), np.zeros((3, 4, 1)))
    k = np.arange(1, 5)
    np.testing.assert_allclose(found.mean[..., 1], np.broadcast_to(0.1 * k, (3, 4)), rtol=1e-5)
    np.testing.assert_allclose(found.epistemic[..., 1], np.broadcast_to((0.2 * k) ** 2, (3, 4)), rtol=1e-5)
    assert found.aleatoric.max() < 1e-8


def test_too_few_commands_and_divergence_are_errors() -> None:
    model = random_model()
    state, commands = np.zeros((2, 4)), np.zeros((2, 5, 2))
    with pytest.raises(ModelError, match="needs the last 2 commands, the estimate has 1"):
        model.predict(Estimate(state, commands[:, :1]), commands)
    model.target_scale.fill_(1e30)
    with pytest.raises(NonFiniteError, match="diverged"):
        model.predict(Estimate(state, commands[:, :2]), commands)


# files


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    model = random_model()
    model.start_covariance.copy_(0.01 * torch.eye(4))
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = EnsembleDynamics.load(str(tmp_path / "model"))
    assert again.config == model.config
    estimate, actions = Estimate(np.ones((3, 4)), np.ones((3, 2, 2))), np.ones((3, 6, 2))
    before, after = (m.predict(estimate, actions) for m in (model, again))
    for part in ("mean", "aleatoric", "epistemic"):
        assert torch.equal(getattr(before, part), getattr(after, part))


def edit(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        document.pop(key) if value is None else document.update({key: value})
        (folder / "config.json").write_text(json.dumps(document))

    return change


def cut(name: str) -> Any:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edit("format_version", 2), "has format 2, this version reads 1"),
        (edit("format_version", None), "has format None"),
        (edit("wraps", None), "is damaged"),
        (edit("members", 3), "do not fit its config.json"),
        (edit("hidden", "wide"), "is damaged"),
        (cut("config.json"), "is damaged"),
        (cut("model.safetensors"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "has format None"),
        (lambda folder: (folder / "config.json").unlink(), r"expected config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"no model in .*expected model\.safetensors"),
    ],
    ids=["version", "no version", "no key", "size", "type", "config cut", "cut", "list", "no config", "no weights"],
)
def test_a_damaged_model_is_one_error(tmp_path: Path, damage: Any, said: str) -> None:
    random_model().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=said) as error:
        EnsembleDynamics.load(tmp_path)
    assert "\n" not in str(error.value)


# data


@pytest.fixture(scope="module")
def rail(tmp_path_factory: pytest.TempPathFactory) -> RobotModel:
    path = tmp_path_factory.mktemp("robot") / "rail.xml"
    path.write_text(RAIL)
    return RobotModel(path)


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_each_member_is_given_the_motion_of_its_own_draw(rail: RobotModel, delay: float) -> None:
    plant = Plant(rail, Chain.from_config([{"stage": "latency"}]), 0.01, threads=1)
    gears = np.array([0.5, 1.0, 3.0])
    draws = {"dynamics.drive.gear": gears, "execution.latency.delay": np.full(3, delay)}
    excitation = Excitation((2.0,), (0.5,), (1.5,))
    data = simulate(
        plant, draws, excitation, stretches=20, steps=7, history=3, timestep=DT, rng=np.random.default_rng(0)
    )
    assert data.states.shape == (3, 20, 8, 2)
    assert data.commands.shape == (3, 20, 2 + 7, 1)
    assert data.steps == 7
    # the command about to act stands two beyond the state's own row; a delay of one step takes the one before
    late = round(delay / DT)
    acting = data.commands[:, :, 2 - late : 2 - late + 7, 0].numpy()
    gained = np.diff(data.states[..., 1].numpy(), axis=-1)
    np.testing.assert_allclose(gained, gears[:, None, None] * acting * DT / 2.0, atol=1e-6)
    # inside its bounds, spread, and the same for the same generator
    assert data.commands.abs().max() <= 2.0
    assert data.states[:, :, 0, 0].abs().max() <= 1.5
    assert data.states[:, :, 0, 1].std() == pytest.approx(0.5, rel=0.3)
    again = simulate(
        plant, draws, excitation, stretches=20, steps=7, history=3, timestep=DT, rng=np.random.default_rng(0)
    )
    assert torch.equal(data.states, again.states)


def recorded(late: int = 0, name: str = "log", **changed: Any) -> Episode:
    """A mass pushed for one model step at 1.0 s, the push acting `late` steps later; 100 readings a second."""
    t: Array = 0.01 * np.arange(401, dtype=np.float64)
    force = np.where((t[:-1] >= 1.0 - 1e-9) & (t[:-1] < 1.0 + DT - 1e-9), 2.0, 0.0)
    acting = np.concatenate([np.zeros(round(late * DT / 0.01)), force])[: len(force)]
    velocity = np.concatenate([[0.0], np.cumsum(0.01 * acting)])
    position = np.concatenate([[0.0], np.cumsum(0.01 * velocity[:-1] + 0.5e-4 * acting)])
    channels = Channels((("position", "m"),), (("force", "N"),))
    return Episode(name, t + 7.0, position[:, None], t[:-1] + 7.0, force[:, None], "commanded", channels, **changed)


@pytest.mark.parametrize("late", [0, 2])
def test_commands_of_recordings_stand_where_they_act(late: int) -> None:
    data = from_episodes([recorded(late)], ["position"], steps=6, history=3, timestep=DT, stride=1)
    pushed = (data.commands[0, :, :, 0] - 2.0).abs() < 1e-4
    gained = data.states[0, :, 1:, 1] - data.states[0, :, :-1, 1]
    seen = 0
    for push, gain in zip(pushed, gained, strict=True):
        if gain.max() > 0.08:  # the whole gain of 0.1 m/s lies inside the stretch, not smeared over its end
            (at,) = push.nonzero().flatten().tolist()
            # gain k comes from the command at L - 1 + k
            assert int(gain.argmax()) == at - 2 + late
            seen += 1
    assert seen >= 4


def test_stretches_know_their_block_and_leave_out_what_is_excluded() -> None:
    clean = recorded(excluded=((9.0, 9.5),))
    ruined = clean.observations.copy()
    ruined[(clean.observed_at > 9.0) & (clean.observed_at < 9.5)] += 100.0
    spoiled = recorded(excluded=clean.excluded)
    object.__setattr__(spoiled, "observations", ruined)
    data, same = (from_episodes([e], ["position"], steps=6, history=3, timestep=DT) for e in (clean, spoiled))
    assert torch.equal(data.states, same.states)
    whole = from_episodes([recorded(), recorded(name="second")], ["position"], steps=6, history=3, timestep=DT)
    assert data.states.shape[1] < whole.states.shape[1] / 2
    first, second = whole.block.chunk(2)
    assert first.unique().tolist() == [0, 1, 2, 3]
    assert not set(first.tolist()) & set(second.tolist())
    with pytest.raises(LogError, match=r"no stretch of 5 s fits the recordings \(log\)"):
        from_episodes([recorded()], ["position"], steps=100, history=3, timestep=DT)
