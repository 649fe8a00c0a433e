"""The ways in which dynamics may move: what each leaves alone, and closed forms against solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sim2real.calibration import finetune_dynamics, tune_dynamics
from sim2real.calibration.evidence import OfReadings, begin
from sim2real.calibration.finetune import FinetuneResult
from sim2real.calibration.last_layer import design, prior_sizes, regress_last_layer
from sim2real.calibration.tuning import KINDS, RANK, UNITS, Delta, LowRank, Method, move
from sim2real.episodes import Channels, Episode
from sim2real.errors import ModelError
from sim2real.evaluation import Questions, RecordingPredictor
from sim2real.prediction import Prediction
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, fit_to_recordings

DT, HISTORY, MEMBERS = 0.02, 3, 2
METHODS: tuple[Method, ...] = get_args(Method)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spring(name: str, gain: float, seed: int, seconds: float = 20.0) -> Episode:
    """A damped spring under random held forces, half a millimetre of noise on its readings."""
    rng, dt = np.random.default_rng(seed), 0.001
    force = np.repeat(rng.normal(size=round(seconds / 0.2) + 1), 200)[: round(seconds / dt)]
    q, v, path = 0.0, 0.0, [0.0]
    for u in force:
        v += dt * (gain * u - 9.0 * q - 0.8 * v)
        q += dt * v
        path.append(q)
    read = np.array(path[::10]) + 5e-4 * rng.normal(size=len(path[::10]))
    t = 0.01 * np.arange(len(read))
    channels = Channels((("position", "m"),), (("force", "N"),))
    return Episode(name, t, read[:, None], t[:-1], force[::10][: len(t) - 1, None], "commanded", channels)


@pytest.fixture(scope="module")
def model() -> EnsembleDynamics:
    """A model that looks back, of a spring with a gain of 4."""
    torch.set_num_threads(1)
    config = EnsembleConfig((False,), 1, DT, HISTORY, MEMBERS, hidden=(24, 24), lookback=4, latents=1)
    logs = [spring("before", 4.0, seed) for seed in (1, 2)]
    return fit_to_recordings(EnsembleDynamics(config), logs, ["position"], iterations=400, rate=0.01)


@pytest.fixture(scope="module")
def real(model: EnsembleDynamics) -> OfReadings:
    """Of the same spring, pushed by half as much again."""
    return OfReadings.of(model, [spring("now", 6.0, 3)], ["position"], seconds=0.3)


def answer(model: EnsembleDynamics, questions: Questions) -> Prediction:
    return RecordingPredictor(model, ["position"])(questions)


def tune(
    model: EnsembleDynamics, real: OfReadings, method: str, gain: float = 6.0, iterations: int = 120
) -> FinetuneResult:
    held = [Questions.of(spring("held out", gain, 4), ["position"])]
    return finetune_dynamics(
        model, real, answer=answer, held_out=held, method=method, iterations=iterations, rate=0.005, anchor=0.01
    )  # type: ignore[arg-type]


def as_bytes(model: EnsembleDynamics) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_touches_the_dynamics_alone(
    model: EnsembleDynamics, real: OfReadings, method: Method
) -> None:
    before = as_bytes(model)
    found = tune(model, real, method)
    assert found.accepted, found.reason
    assert found.method == method
    assert as_bytes(model) == before
    after = as_bytes(found.model)
    moved = {name for name in before if after[name] != before[name]}
    assert moved
    assert all(name.startswith("dynamics.") for name in moved), moved
    assert any(name.startswith("encoder.") for name in before)
    assert all(found.crps["after"][h] < 0.8 * found.crps["before"][h] for h in ("0.1", "0.2", "0.5")), found.crps
    layers = (2,) if method == "last_layer" else (0, 1, 2)
    assert moved == {f"dynamics.{kind}.{i}" for kind in ("weights", "biases") for i in layers}


@pytest.mark.parametrize("method", ["anchored", "low_rank", "delta"])
def test_the_loss_reaches_every_number_that_is_free(model: EnsembleDynamics, real: OfReadings, method: Method) -> None:
    moving, generator = KINDS[method](model, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    ones = torch.ones(MEMBERS, 1)
    with torch.no_grad():  # away from where half of the factors of a product are zero
        for free in moving.free:
            free += 0.01 * torch.randn(free.shape, generator=generator)
    found: list[Tensor] = []

    def loss(moved: EnsembleDynamics) -> Tensor:
        value = real.loss(moved, ones, 16, torch.Generator().manual_seed(2))
        found.extend(torch.autograd.grad(value, moving.free, retain_graph=True, allow_unused=True))
        return value

    move(moving, loss, 0.0, 1, 1e-6, lambda i, v: None)
    assert all(g is not None and float(g.abs().max()) > 0 for g in found)


@pytest.mark.parametrize("method", ["anchored", "low_rank", "delta"])
def test_nothing_has_moved_before_anything_is_learned(model: EnsembleDynamics, method: Method) -> None:
    moving = KINDS[method](model, torch.Generator().manual_seed(0))
    assert float(moving.distance().detach()) == 0.0
    with torch.no_grad():
        for name, p in moving.model.dynamics.named_parameters():
            p.copy_(moving.dynamics()[name])
        x = torch.randn(MEMBERS, 50, model.config.features, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(moving.model.dynamics(x), model.dynamics(x), atol=1e-6, rtol=1e-5)


def test_a_low_rank_update_is_of_low_rank_and_few_numbers(model: EnsembleDynamics) -> None:
    moving = LowRank(model, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for free in moving.free:
            free += 0.1 * torch.randn(free.shape, generator=torch.Generator().manual_seed(2))
    change = moving.dynamics()["weights.1"] - model.dynamics.weights[1].detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-4).tolist() == [RANK] * MEMBERS
    assert sum(f.numel() for f in moving.free) < 0.7 * sum(p.numel() for p in model.dynamics.parameters())


def test_a_delta_leaves_the_frozen_network_where_it_is(model: EnsembleDynamics, real: OfReadings) -> None:
    found = tune(model, real, "delta").model
    assert found.config.hidden == (24 + UNITS, 24 + UNITS)
    old, new = model.dynamics, found.dynamics
    assert torch.equal(new.weights[1][:, :24, :24], old.weights[1])
    assert torch.equal(new.weights[2][:, :24], old.weights[2])
    assert new.weights[1][:, :24, 24:].abs().max() == 0
    assert new.weights[1][:, 24:, :24].abs().max() == 0
    assert new.weights[2][:, 24:].abs().max() > 0
    flat = EnsembleDynamics(EnsembleConfig((False,), 1, DT, hidden=()))
    with pytest.raises(ModelError, match="this model has none"):
        Delta(flat, torch.Generator())


def test_the_last_layer_is_the_posterior_mean(model: EnsembleDynamics, real: OfReadings) -> None:
    weight = torch.rand(MEMBERS, len(real.block), generator=torch.Generator().manual_seed(0))
    found = regress_last_layer(model, real, weight, anchor=3.0)
    x, y = design(model, *real.steps(model))
    precision = 3.0 / prior_sizes(model).numpy() ** 2
    for m, output in ((0, 0), (1, 1)):
        w = weight[m].double().numpy()
        a, b = x[m].numpy(), y[m, :, output].numpy()
        noise = (w * b**2).sum() / w.sum()
        expected = np.linalg.solve(a.T @ (w[:, None] * a) / noise + np.diag(precision), a.T @ (w * b) / noise)
        change = found.dynamics.weights[-1][m, :, output] - model.dynamics.weights[-1][m, :, output]
        np.testing.assert_allclose(change.detach(), expected[:-1], atol=2e-5, rtol=1e-3)
    variances = slice(2, 4)
    assert torch.equal(found.dynamics.weights[-1][..., variances], model.dynamics.weights[-1][..., variances])


def test_auto_compares_on_what_was_not_seen(model: EnsembleDynamics, real: OfReadings) -> None:
    found = tune(model, real, "auto", iterations=40)
    assert found.accepted, found.reason
    assert set(found.tried) == {"none", *METHODS}
    assert found.tried[found.method] <= 1.01 * min(found.tried.values())
    assert found.tried[found.method] < 0.8 * found.tried["none"]
    # a spring that did not change teaches next to nothing, and nothing is what is to be beaten
    same = OfReadings.of(model, [spring("as before", 4.0, 6)], ["position"], seconds=0.3)
    known = tune(model, same, "auto", gain=4.0, iterations=20)
    assert min(known.tried.values()) > 0.7 * known.tried["none"]


def test_auto_does_not_go_on_with_what_is_far_behind(model: EnsembleDynamics, real: OfReadings) -> None:
    told: list[str] = []
    found = tune_dynamics(model, real, method="auto", iterations=60, rate=0.05, anchor=1000.0, progress=told.append)
    folds = {
        name: sum(line.startswith("cross-validation") and line.endswith(f": {name}") for line in told)
        for name in METHODS
    }
    # pulled back so strongly, what is anchored does not move; what is free does
    assert folds["anchored"] == 2
    # what is left goes on, unless it is alone
    left = [name for name in METHODS if folds[name] == 4]
    assert found.method in left or set(folds.values()) == {2}
    assert len(left) != 1
    assert found.tried["anchored"] > 1.1 * found.tried[found.method]


def test_a_method_that_is_not_there_and_too_little_to_compare_on_are_told(
    model: EnsembleDynamics, real: OfReadings
) -> None:
    with pytest.raises(ModelError, match=r"no method named 'lowrank'.*low_rank"):
        tune(model, real, "lowrank")
    few = real.where(real.block < 5)
    with pytest.raises(ModelError, match="expected 8 blocks of recordings or more, found 5"):
        tune(model, few, "auto")
    states = EnsembleDynamics(EnsembleConfig((False,), 1, DT))
    with pytest.raises(ModelError, match="does not look back: tune it on stretches"):
        OfReadings.of(states, [spring("now", 6.0, 3, 3.0)], ["position"])


@pytest.mark.parametrize("poison", ["shuffled actions", "wrong units", "another robot"])
@pytest.mark.parametrize("method", ["anchored", "last_layer"])
def test_the_gate_refuses_poisoned_logs(model: EnsembleDynamics, poison: str, method: str) -> None:
    log = spring("poisoned", -5.0 if poison == "another robot" else 6.0, 10)
    if poison == "shuffled actions":
        log = replace(log, actions=np.random.default_rng(0).permutation(log.actions))
    elif poison == "wrong units":
        log = replace(log, actions=1000 * log.actions)
    found = tune(model, OfReadings.of(model, [log], ["position"], seconds=0.3), method)
    assert not found.accepted, found.reason
    assert found.model is model
    assert found.tuned is not model


def test_errors_are_of_the_ensemble_where_windows_are_shared_and_of_each_member_where_they_are_not(
    model: EnsembleDynamics, real: OfReadings
) -> None:
    together = real.errors(model).mean().sqrt()
    apart = OfReadings(real.data.expanded(MEMBERS), None, real.block)
    alone = apart.errors(model).mean().sqrt()
    path = model.rollout(begin(model, apart.data), apart.data.commands)[..., :1] - apart.data.positions
    expected = ((path / apart.scale).square().mean((0, 2, 3))).mean().sqrt()
    torch.testing.assert_close(alone, expected.detach())
    assert float(together) < float(alone)


def test_a_stretch_at_rest_is_measured_by_the_whole(model: EnsembleDynamics, real: OfReadings) -> None:
    part = real.where(real.block < 3)
    assert torch.equal(part.scale, real.scale)
    assert torch.equal(part.where(part.block < 2).scale, real.scale)
    torch.testing.assert_close(part.errors(model), real.errors(model)[real.block < 3])


def test_forgetting_is_told(model: EnsembleDynamics, real: OfReadings) -> None:
    replay = OfReadings.of(model, [spring("before", 4.0, 5)], ["position"], seconds=0.3)
    held = [Questions.of(spring("held out", 6.0, 4), ["position"])]
    free, mixed = (
        finetune_dynamics(
            model, real, answer=answer, held_out=held, method="full", replay=replay, replay_weight=w, iterations=120,
            rate=0.005,
        ).forgetting
        for w in (0.0, 3.0)
    )  # fmt: skip
    assert free["before"] == mixed["before"]
    assert free["after"] > 1.5 * free["before"]
    assert mixed["after"] < 0.8 * free["after"]
