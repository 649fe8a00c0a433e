"""Physics priors: what they cost by hand, what they leave alone, and what they make of a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sim2real.calibration import OfReadings
from sim2real.calibration.evidence import begin
from sim2real.episodes import Channels, Episode
from sim2real.errors import ModelError
from sim2real.world_model import EnsembleConfig, EnsembleDynamics, PhysicsPriors, fit_to_recordings

DT = 0.02
UNIT = torch.ones(1)


def states(*pairs: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a start (1, 2) and a path (1, T, 2) of one joint."""
    all_of_them = torch.tensor(pairs)[None]
    return all_of_them[:, 0], all_of_them[:, 1:]


def kinetic(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * v.square().sum(-1)


def test_stops_cost_what_is_beyond_them_as_a_share_of_the_range() -> None:
    prior = PhysicsPriors(limits=3.0, stops=((-1.0, 1.0),))
    assert float(prior(*states((0.9, 0), (1.0, 0), (2.0, 0), (-1.5, 0)), UNIT, DT)) == pytest.approx(
        3 * (0.5**2 + 0.25**2) / 4
    )
    endless = PhysicsPriors(limits=3.0, stops=((-np.inf, np.inf),))
    assert float(endless(*states((0.9, 0), (100.0, 0)), UNIT, DT)) == 0.0


def test_a_constant_acceleration_is_smooth_and_its_change_is_not() -> None:
    prior = PhysicsPriors(smoothness=2.0)
    assert float(prior(*states((0, 0.0), (0, 0.5), (0, 1.0), (0, 1.5)), UNIT, DT)) == pytest.approx(0, abs=1e-12)
    rough = states((0, 0.0), (0, 0.5), (0, 0.0))
    assert float(prior(*rough, 0.5 * UNIT, DT)) == pytest.approx(2.0 * (1.0 / 0.5) ** 2)


def test_energy_may_rise_by_what_the_motors_can_do_and_fall_freely() -> None:
    falls = states((0, 2.0), (0, 1.0), (0, 0.5))
    rises = states((0, 1.0), (0, 1.2), (0, 1.4))  # by 0.22 and 0.26 J, at 1.1 and 1.3 rad/s: 10 N m in 20 ms, each
    free, strong, weak = (
        PhysicsPriors(energy=1.0, mechanical=kinetic, effort=(effort,)) for effort in (0.0, 10.01, 9.0)
    )
    assert float(free(*falls, UNIT, DT)) == 0.0
    assert float(strong(*rises, UNIT, DT)) == 0.0
    spread = float(torch.tensor([0.5, 0.72, 0.98]).std())
    created = np.array([0.22 - 9 * 0.02 * 1.1, 0.26 - 9 * 0.02 * 1.3]) / spread
    assert float(weak(*rises, UNIT, DT)) == pytest.approx(np.square(created).mean(), rel=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"limits": 1.0}, {"energy": 1.0}, {"energy": 1.0, "effort": (1.0,)}, {"smoothness": -1.0}]
)
def test_a_penalty_without_what_it_needs_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ModelError):
        PhysicsPriors(**wrong)  # type: ignore[arg-type]


def test_training_with_a_penalty_makes_rollouts_smoother() -> None:
    t = np.arange(0.0, 4.0, 0.01)
    shaken = Episode(
        name="shaken", channels=Channels((("q", "rad"),), (("u", "N·m"),)), observed_at=t,
        observations=0.1 * np.sin(20 * t)[:, None], commanded_at=t[:-1], actions=np.cos(20 * t[:-1])[:, None],
        action_source="commanded",
    )  # fmt: skip
    config = EnsembleConfig((False,), 1, DT, history=2, members=2, hidden=(16,), lookback=3)

    def jerk(physics: PhysicsPriors | None) -> float:
        model = EnsembleDynamics(config)
        fit_to_recordings(model, [shaken], ["q"], physics=physics, iterations=150, batch=32)
        seen = OfReadings.of(model, [shaken], ["q"], 0.2).data.expanded(2)
        path = model.rollout(begin(model, seen), seen.commands).detach()
        return float(path[..., 1].diff(n=2).square().mean())

    assert jerk(PhysicsPriors(smoothness=1e3)) < 0.5 * jerk(None)
