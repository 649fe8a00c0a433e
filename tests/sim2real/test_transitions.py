"""The model of any environment's observations against systems whose noise is known, and its training against kills."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sim2real.episodes import Channels, Episode
from sim2real.errors import LogError, ModelError
from sim2real.world_model import Schedule, TransitionConfig, TransitionEnsemble, Transitions, fit_transitions
from sim2real.world_model.transition_training import held_out_nll

NOISE = np.array([0.02, 3.0])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def springs(many: int, seed: int = 0) -> Transitions:
    """Two observations of very different scale."""
    rng = np.random.default_rng(seed)
    seen = rng.uniform(-2.0, 2.0, (many, 2)) * [1.0, 100.0]
    sent = rng.uniform(-1, 1, (many, 1))
    after = seen + np.stack([0.1 * np.sin(2 * seen[:, 0]) + 0.2 * sent[:, 0], 10 * sent[:, 0] - 0.1 * seen[:, 1]], 1)
    after += rng.normal(size=after.shape) * NOISE
    return Transitions(seen, sent, after, ("angle", "speed"))


def small(seed: int = 0, **changed: Any) -> TransitionEnsemble:
    settings: dict[str, Any] = {
        "observations": 2, "actions": 1, "timestep": 0.05, "members": 3, "elites": 2, "hidden": (32, 32),
    }  # fmt: skip
    return TransitionEnsemble(TransitionConfig(**(settings | changed)), seed)


@pytest.fixture(scope="module")
def trained() -> TransitionEnsemble:
    torch.set_num_threads(1)
    model = small()
    fit_transitions(model, springs(3000), Schedule(epochs=30, batch=128, rate=1e-2))
    return model


# what is learned


def test_noise_is_told_in_the_units_of_each_observation(trained: TransitionEnsemble) -> None:
    data = springs(500, seed=1)
    x = torch.as_tensor(data.observations, dtype=torch.float32).expand(3, -1, -1)
    u = torch.as_tensor(data.actions, dtype=torch.float32).expand(3, -1, -1)
    with torch.no_grad():
        mean, spread = trained.step(x, u)
    left = (mean.mean(0) - torch.as_tensor(data.following)).std(0)
    np.testing.assert_allclose(left, NOISE, rtol=0.15)
    np.testing.assert_allclose(spread.mean((0, 1)), NOISE, rtol=0.2)


def test_intervals_of_a_rollout_hold_the_truth(trained: TransitionEnsemble) -> None:
    start, rng = springs(300, seed=2).observations * 0.7, np.random.default_rng(3)
    sent, state = rng.uniform(-1, 1, (300, 5, 1)), start
    path = []
    for k in range(5):
        u = sent[:, k]
        change = np.stack([0.1 * np.sin(2 * state[:, 0]) + 0.2 * u[:, 0], 10 * u[:, 0] - 0.1 * state[:, 1]], 1)
        state = state + change + rng.normal(size=state.shape) * NOISE
        path.append(state)
    found = trained.predict(start, sent, particles=50)
    assert found.mean.shape == (300, 5, 2)
    np.testing.assert_allclose(found.horizon, 0.05 * np.arange(1, 6))
    low, high = (v.numpy() for v in found.interval(0.9))
    inside = ((low <= np.stack(path, 1)) & (np.stack(path, 1) <= high)).mean((0, 2))
    assert ((inside > 0.84) & (inside < 0.96)).all(), inside


def test_members_differ_where_nothing_was_recorded() -> None:
    data = springs(2000)
    seen = np.abs(data.observations[:, 0]) > 0.7
    model = small(members=5, elites=5)
    some = Transitions(data.observations[seen], data.actions[seen], data.following[seen])
    fit_transitions(model, some, Schedule(epochs=30, batch=128, rate=1e-2))
    near, far = (np.stack([np.full(50, x), np.linspace(-150, 150, 50)], 1) for x in (1.5, 0.0))
    known, unknown = (model.predict(x, np.zeros((50, 1, 1))).epistemic[:, 0, 0].mean() for x in (near, far))
    assert unknown > 3 * known


def test_recalibration_stretches_what_is_too_sure(trained: TransitionEnsemble) -> None:
    data, rows = springs(2000, seed=4), np.arange(2000)
    with torch.no_grad():
        kept = trained.network.biases[-1][..., 2:].clone()
        trained.network.biases[-1][..., 2:] -= 2 * np.log(3.0)
        before = trained.stretch.clone()
        trained.recalibrate(data, rows)
        stretched = trained.stretch.clone()
        trained.network.biases[-1][..., 2:] = kept
        trained.stretch.copy_(before)
    np.testing.assert_allclose(stretched / before, 3.0, rtol=0.15)


def test_the_noise_of_trajectories_is_stretched_and_their_means_are_not_noisy(trained: TransitionEnsemble) -> None:
    start, sent = springs(20, seed=5).observations, np.zeros((20, 1, 1))
    before, other = (trained.predict(start, sent, particles=400, seed=seed) for seed in (0, 1))
    assert torch.equal(before.mean, other.mean)
    assert not torch.equal(before.aleatoric, other.aleatoric)
    trained.stretch.mul_(2.0)
    after = trained.predict(start, sent, particles=400)
    trained.stretch.div_(2.0)
    np.testing.assert_allclose(after.aleatoric / before.aleatoric, 4.0, rtol=1e-3)
    assert torch.equal(after.epistemic, before.epistemic)


# training


def test_every_transition_counts_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 of 90 train in batches of 32: the last one has 26, and each member sees every row once."""
    data, seen = springs(100), []
    real = TransitionEnsemble.normalised

    def spy(self: TransitionEnsemble, data: Transitions, rows: Any) -> Any:
        seen.append(rows)
        return real(self, data, rows)

    monkeypatch.setattr(TransitionEnsemble, "normalised", spy)
    fit_transitions(small(), data, Schedule(epochs=1, batch=32))
    batches = [rows for rows in seen if rows.ndim == 2]
    assert [rows.shape for rows in batches] == [(3, 32), (3, 32), (3, 26)]
    for member in range(3):
        rows = np.concatenate([b[member] for b in batches])
        assert len(set(rows.tolist())) == 90
    held = {int(r) for rows in seen if rows.ndim == 1 for r in rows}
    assert held.isdisjoint(np.concatenate([b.ravel() for b in batches]).tolist())


def test_members_keep_their_own_best_weights_and_elites_are_the_likeliest() -> None:
    data, model = springs(400), small(members=4, elites=2)
    training = fit_transitions(model, data, Schedule(epochs=12, rate=0.05, batch=32))
    found = torch.tensor([row["held_out"] for row in training.history])
    held = np.sort(np.random.default_rng(0).permutation(400)[:40])
    np.testing.assert_allclose(held_out_nll(model, data, held), training.best, rtol=1e-5)
    assert (training.best <= found.min(0).values + 2e-3).all()
    assert model.elites.tolist() == sorted(torch.argsort(training.best)[:2].tolist())


def test_training_stops_when_no_member_gets_better() -> None:
    rng = np.random.default_rng(0)
    noise = Transitions(rng.normal(size=(200, 2)), rng.normal(size=(200, 1)), rng.normal(size=(200, 2)))
    training = fit_transitions(small(), noise, Schedule(epochs=200, patience=3, rate=0.02))
    assert training.waited == 3
    assert len(training.history) < 200


def test_a_killed_training_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    data, schedule, path = springs(300), Schedule(epochs=6, batch=64), tmp_path / "training.safetensors"
    whole, killed = small(), small()
    fit_transitions(whole, data, schedule, checkpoint=tmp_path / "other.safetensors")

    def kill(line: str) -> None:
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_transitions(killed, data, schedule, checkpoint=path, progress=kill)
    kept = path.read_bytes()
    for again in (small(), small(seed=5), killed):
        path.write_bytes(kept)
        lines: list[str] = []
        fit_transitions(again, data, schedule, checkpoint=path, progress=lines.append)
        assert lines[0] == "3 epochs were trained before"
        for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ModelError, match="another model, schedule or other transitions"):
        fit_transitions(small(), data, replace(schedule, rate=1e-4), checkpoint=path)
    with pytest.raises(ModelError, match="another model, schedule or other transitions"):
        fit_transitions(small(), springs(300, seed=9), schedule, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="is damaged"):
        fit_transitions(small(), data, schedule, checkpoint=path)


def test_the_same_seed_gives_the_same_model_and_another_another() -> None:
    models = [small(), small()]
    for model in models:
        fit_transitions(model, springs(200), Schedule(epochs=2))
    assert torch.equal(models[0].network.weights[0], models[1].network.weights[0])
    other = small()
    fit_transitions(other, springs(200), Schedule(epochs=2, seed=1))
    assert not torch.equal(models[0].network.weights[0], other.network.weights[0])


def test_curves_are_written_for_tensorboard(tmp_path: Path) -> None:
    fit_transitions(small(), springs(100), Schedule(epochs=2), curves=tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"nll/train", "nll/held_out"}
    assert len(events.Scalars("nll/train")) == 2


def test_anchored_weights_stay_near_where_they_began() -> None:
    data, distances = springs(200), []
    for anchor in (0.0, 1e4):
        model = small()
        before = [w.detach().clone() for w in model.network.parameters()]
        fit_transitions(model, data, Schedule(epochs=10, anchor=anchor))
        after = [w.detach() for w in model.network.parameters()]
        distances.append(sum(float((a - b).norm()) for a, b in zip(before, after, strict=True)))
    assert distances[1] < 0.3 * distances[0]


# data


def test_what_is_not_a_number_is_refused_by_name() -> None:
    data = springs(100_000)
    data.following[70_001, 1] = np.nan
    with pytest.raises(LogError, match="speed is nan in the following observation of row 70001"):
        Transitions(data.observations, data.actions, data.following, data.names)
    data.actions[3, 0] = np.inf
    with pytest.raises(LogError, match="action 0 is inf in the transition of row 3"):
        Transitions(data.observations, data.actions, data.observations)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5,), (5, 1), (5,)), "expected observations of two axes"),
        (((5, 2), (4, 1), (5, 2)), "expected observations"),
        (((5, 2), (5, 1), (5, 3)), "expected observations"),
        (((0, 2), (0, 1), (0, 2)), "no transition"),
    ],
)
def test_shapes_that_disagree_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(LogError, match=message):
        Transitions(*(np.zeros(s) for s in shapes))


def test_whole_numbers_that_would_wrap_are_refused() -> None:
    falling = np.arange(5, 0, -1, dtype=np.uint8)[:, None]
    with pytest.raises(LogError, match=r"floating numbers, found .* uint8"):
        Transitions(falling, np.zeros((5, 1)), falling)


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"observations": 0}, {"hidden": (-3, 4)}])
def test_widths_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="expected widths of one at least"):
        small(**wrong)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"epochs": 0}, {"batch": 0}, {"seed": -1}, {"held_out": 1.0}])
def test_schedules_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="expected"):
        Schedule(**wrong)


def test_data_of_another_width_are_refused() -> None:
    with pytest.raises(LogError, match="the model has 3 observations and 1 actions, the data 2 and 1"):
        fit_transitions(small(observations=3), springs(50))
    with pytest.raises(LogError, match="too few"):
        fit_transitions(small(), springs(3))
    with pytest.raises(ModelError, match="elites"):
        TransitionConfig(2, 1, 0.05, members=3, elites=4)


def test_a_million_transitions_train_from_the_disk(tmp_path: Path) -> None:
    many, width = 1_000_000, 4
    shapes = {"observations": width, "actions": 1, "following": width}
    for field, columns in shapes.items():
        array = np.lib.format.open_memmap(tmp_path / f"{field}.npy", "w+", np.float32, (many, columns))
        array[:] = np.random.default_rng(0).normal(size=(many, columns))
        array.flush()
    small_one = Transitions(*(np.zeros((1, c)) for c in shapes.values()))
    small_one.save(tmp_path / "small")
    (tmp_path / "transitions.json").write_bytes((tmp_path / "small" / "transitions.json").read_bytes())
    tracemalloc.start()
    data = Transitions.open(tmp_path)
    model = small(observations=width, hidden=(4,), members=1, elites=1)
    model.normalise(data)
    held_out_nll(model, data, np.arange(0, many, 10))
    model.normalised(data, np.arange(0, many, 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * data.observations.nbytes
    np.testing.assert_allclose(model.input_mean, 0.0, atol=0.01)
    np.testing.assert_allclose(model.input_scale, 1.0, atol=0.01)


def test_transitions_come_back_from_the_disk(tmp_path: Path) -> None:
    data = springs(50)
    data.save(tmp_path)
    again = Transitions.open(tmp_path)
    assert again.names == ("angle", "speed")
    np.testing.assert_array_equal(again.following, data.following)
    again.save(tmp_path)  # over the very files that it is mapped from
    np.testing.assert_array_equal(Transitions.open(tmp_path).following, data.following)
    (tmp_path / "observations.npy").write_bytes(b"")
    with pytest.raises(ModelError, match="are damaged"):
        Transitions.open(tmp_path)
    data.save(tmp_path)
    (tmp_path / "actions.npy").unlink()
    with pytest.raises(ModelError, match=r"actions.npy is missing"):
        Transitions.open(tmp_path)


def episode(**changed: Any) -> Episode:
    t = 0.05 * np.arange(11)
    channels = Channels((("angle", "rad"), ("speed", "rad/s")), (("torque", "N·m"),))
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "name": "log", "observed_at": t, "observations": rng.normal(size=(11, 2)), "commanded_at": t[:-1],
        "actions": rng.normal(size=(10, 1)), "action_source": "commanded", "channels": channels,
    }  # fmt: skip
    return Episode(**(parts | changed))


def test_episodes_give_their_transitions_but_for_what_is_excluded() -> None:
    log = episode(excluded=((0.21, 0.24),))
    data = Transitions.of([log, episode()])
    assert len(data) == 9 + 10
    assert data.names == ("angle", "speed")
    kept = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(data.following[:9], log.observations[1:][kept])
    np.testing.assert_array_equal(data.observations[:9], log.observations[:-1][kept])
    with pytest.raises(LogError, match="log has other channels than log"):
        Transitions.of([log, episode(channels=Channels((("angle", "deg"), ("speed", "rad/s")), (("torque", "N·m"),)))])
    with pytest.raises(LogError, match="log: expected an action at the time of every observation"):
        Transitions.of([episode(commanded_at=0.05 * np.arange(10) + 0.01)])


# saving


def test_a_saved_model_predicts_the_same(trained: TransitionEnsemble, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = TransitionEnsemble.load(tmp_path)
    start, sent = springs(5).observations, np.zeros((5, 3, 1))
    for part in ("mean", "aleatoric", "epistemic"):
        assert torch.equal(getattr(trained.predict(start, sent), part), getattr(again.predict(start, sent), part))
    assert not torch.equal(again.stretch, torch.ones(2))
    assert torch.equal(again.change_scale, trained.change_scale)


def test_models_of_another_kind_are_refused(trained: TransitionEnsemble, tmp_path: Path) -> None:
    from sim2real.world_model import EnsembleDynamics

    trained.save(tmp_path)
    with pytest.raises(ModelError, match="holds a TransitionEnsemble, expected a EnsembleDynamics"):
        EnsembleDynamics.load(tmp_path)


def test_shapes_of_a_question_are_checked(trained: TransitionEnsemble) -> None:
    with pytest.raises(ModelError, match=r"expected observations \(B, 2\) and actions \(B, H, 1\)"):
        trained.predict(np.zeros((3, 2)), np.zeros((3, 4, 2)))
    with pytest.raises(ModelError, match="expected two particles and one step"):
        trained.predict(np.zeros((3, 2)), np.zeros((3, 4, 1)), particles=1)
    with pytest.raises(ModelError, match="expected two particles and one step"):
        trained.predict(np.zeros((3, 2)), np.zeros((3, 0, 1)))
