"""The last layer updated step by step: the same as at once, bounded, and quick to notice a payload."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sim2real.calibration.evidence import OfStates
from sim2real.calibration.last_layer import regress_last_layer
from sim2real.calibration.online import Adapting, OnlineLastLayer
from sim2real.control import closed_loop
from sim2real.episodes import Array
from sim2real.errors import NonFiniteError, ParameterError
from sim2real.estimation import Estimate, ModelObserver
from sim2real.plant import Plant, repeated
from sim2real.randomization import RobotModel
from sim2real.twin import Twin
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, Excitation, Stretches, fit, simulate

DT, HISTORY, MEMBERS = 0.05, 2, 2
PAYLOAD = "dynamics.payload.mass"


@pytest.fixture(scope="module")
def plant() -> Plant:
    torch.set_num_threads(1)
    return Plant(RobotModel("pendulum"), timestep=0.01, threads=1)


def stretches(plant: Plant, mass: float, many: int, steps: int, seed: int = 0) -> Stretches:
    wild = Excitation((3.0,), (4.0,), (3.0,))
    return simulate(
        plant, repeated({PAYLOAD: mass}, MEMBERS), wild, stretches=many, steps=steps, history=HISTORY, timestep=DT,
        rng=np.random.default_rng(seed),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(plant: Plant) -> EnsembleDynamics:
    made = EnsembleDynamics(EnsembleConfig((True,), 1, DT, HISTORY, MEMBERS, hidden=(32, 32)))
    return fit(made, stretches(plant, 0.5, 200, 6), step_iterations=1500, rollout_iterations=0, rate=0.01)


def known(data: Stretches, k: int) -> tuple[Estimate, Array, Estimate]:
    """One step of the first stretch of the first member."""
    states, commands = data.states[0, :1, k : k + 2].double().numpy(), data.commands[0, :1].double().numpy()
    before, after = (Estimate(states[:, i], commands[:, k + i : k + i + HISTORY - 1]) for i in (0, 1))
    return before, commands[:, k + HISTORY - 1], after


def test_without_forgetting_it_is_the_regression_of_all_steps(model: EnsembleDynamics, plant: Plant) -> None:
    data = stretches(plant, 1.0, 1, 40, seed=3)
    online = OnlineLastLayer(copy.deepcopy(model), forgetting=1.0, anchor=4.0)
    for k in range(40):
        online.update(*known(data, k))
    pieces = [(data.states[:1, :, k : k + 2], data.commands[:1, :, k : k + HISTORY]) for k in range(40)]
    all_at_once = Stretches(*(torch.cat(part, 1) for part in zip(*pieces, strict=True)), torch.arange(40))
    expected = regress_last_layer(model, OfStates(all_at_once), torch.ones(MEMBERS, 40), anchor=4.0)
    for found, same in zip(online.model.dynamics.parameters(), expected.dynamics.parameters(), strict=True):
        torch.testing.assert_close(found, same, atol=2e-4, rtol=2e-3)
    moved = (expected.dynamics.weights[-1] - model.dynamics.weights[-1]).abs().max()
    assert float(moved.detach()) > 1e-2


def test_what_is_not_seen_again_is_forgotten(model: EnsembleDynamics, plant: Plant) -> None:
    heavy = stretches(plant, 1.0, 1, 60, seed=4)
    online = OnlineLastLayer(copy.deepcopy(model), forgetting=0.9)
    for k in range(60):
        online.update(*known(heavy, k))
    moved = (online.model.dynamics.weights[-1] - model.dynamics.weights[-1]).detach().norm()
    # at rest, hanging, without a command: nothing is seen that the model does not know
    rest = Estimate(np.zeros((1, 2)), np.zeros((1, HISTORY - 1, 1)))
    with torch.no_grad():
        stays = model.step(model.begin(rest), torch.zeros(MEMBERS, 1, HISTORY, 1))[0].mean(0).double().numpy()
    for _ in range(200):
        online.update(rest, np.zeros((1, 1)), replace(rest, state=stays))
    left = (online.model.dynamics.weights[-1] - model.dynamics.weights[-1]).detach().norm()
    assert float(left) < 0.2 * float(moved)
    assert float(online._seen.diagonal(dim1=1, dim2=2).max()) < 1e6


def test_a_payload_is_noticed_in_the_loop(model: EnsembleDynamics, plant: Plant) -> None:
    class Pushes:
        def reset(self) -> None:
            self.rng = np.random.default_rng(0)

        def act(self, estimate: Estimate, t: float) -> Array:
            return self.rng.uniform(-3, 3, (len(estimate.state), 1))

    unseen = stretches(plant, 1.0, 50, 6, seed=9)
    online = OnlineLastLayer(copy.deepcopy(model), forgetting=0.999)
    heavy = {PAYLOAD: 1.0}
    closed_loop(
        Twin(plant, heavy), Adapting(Pushes(), online), ModelObserver(plant.start(2, repeated(heavy, 2)), 30.0),
        np.array([[0.5, 0.0], [-2.0, 1.0]]), seconds=5.0, period=DT, limit=np.array([3.0]), history=HISTORY,
    )  # fmt: skip
    before, after = (float(OfStates(unseen).errors(m).mean()) for m in (model, online.model))
    assert after < 0.5 * before


def test_a_gap_is_not_a_step(model: EnsembleDynamics, plant: Plant) -> None:
    class Rests:
        def reset(self) -> None: ...

        def act(self, estimate: Estimate, t: float) -> Array:
            return np.zeros((1, 1))

    (before, _, after), online = known(stretches(plant, 1.0, 1, 2), 0), OnlineLastLayer(copy.deepcopy(model))
    policy = Adapting(Rests(), online)
    policy.act(before, 0.0)
    policy.act(after, 0.5)  # the fallback was in command in between
    assert all(torch.equal(a, b) for a, b in zip(online.model.parameters(), model.parameters(), strict=True))
    policy.act(before, 0.5 + DT)
    assert not torch.equal(online.model.dynamics.weights[-1], model.dynamics.weights[-1])


def test_nonsense_is_not_learned(model: EnsembleDynamics, plant: Plant) -> None:
    before, command, after = known(stretches(plant, 1.0, 1, 2), 0)
    online = OnlineLastLayer(copy.deepcopy(model))
    old = [p.clone() for p in online.model.dynamics.parameters()]
    with pytest.raises(NonFiniteError, match="a step to learn from is not finite"):
        online.update(before, command, replace(after, state=np.full((1, 2), np.nan)))
    assert all(torch.equal(a, b) for a, b in zip(old, online.model.dynamics.parameters(), strict=True))
    for forgetting, anchor in ((0.0, 1.0), (1.1, 1.0), (0.9, 0.0)):
        with pytest.raises(ParameterError, match="expected a forgetting above 0 and at most 1"):
            OnlineLastLayer(model, forgetting, anchor)
