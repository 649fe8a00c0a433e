"""Randomizations over time against closed forms and known statistics, and the patterns, draws and forced values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sim2real.errors import ParameterError
from sim2real.randomization import (
    Categorical,
    Empirical,
    JointEmpirical,
    JointNormal,
    Parameter,
    ParameterSet,
    Randomization,
    parse_distribution,
    parse_randomizations,
)
from sim2real.randomization.addressing import BoundParameters
from sim2real.randomization.distributions import FAMILIES
from sim2real.randomization.randomization import Randomizer, stream
from sim2real.randomization.schedules import SCHEDULES, parse_schedule

Array = NDArray[np.float64]
A, B, ZERO = "dynamics.a.mass", "dynamics.b.mass", "dynamics.a.damping"
NOMINAL = {A: 2.0, B: 3.0, ZERO: 0.0, "dynamics.b.friction[0]": 1.0, "dynamics.b.friction[1]": 0.5}
UNITS = {A: "kg", B: "kg", ZERO: "N", "dynamics.b.friction[0]": "", "dynamics.b.friction[1]": "m"}


class Store:
    """n plants that are nothing but their parameters."""

    def __init__(self, n: int) -> None:
        self.n, self.values = n, {k: np.full(n, v) for k, v in NOMINAL.items()}

    def nominal(self) -> dict[str, float]:
        return dict(NOMINAL)

    def units(self) -> dict[str, str]:
        return dict(UNITS)

    def silent(self) -> dict[str, str]:
        return {"dynamics.c.friction[1]": "it touches nothing"}

    def write(self, values: Mapping[str, Array], mask: NDArray[np.bool_] | None = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else mask
        for name, value in values.items():
            self.values[name][rows] = value[rows]

    def read(self) -> dict[str, Array]:
        return {k: v.copy() for k, v in self.values.items()}

    def restore(self, mask: NDArray[np.bool_] | None = None, names: Any = None) -> None:
        self.write({k: np.full(self.n, NOMINAL[k]) for k in (NOMINAL if names is None else names)}, mask)


class Plants:
    """n plants under randomizations, stepped by hand."""

    def __init__(self, source: Any, n: int, dt: float = 0.1, seeds: Any = None) -> None:
        self.n, self.store = n, Store(n)
        self.all = np.ones(n, bool)
        self.streams = [stream(int(s), "dynamics") for s in (range(n) if seeds is None else seeds)]
        self.randomizer = Randomizer(parse_randomizations(source), self.store, n, dt)

    def begin(self, mask: Any = None, fresh: bool = False, forced: Any = None) -> Array:
        rows = self.all if mask is None else np.array(mask)
        self.randomizer.begin(self.streams, rows, rows & fresh, forced)
        return self.store.values[A].copy()

    def advance(self, steps: int = 1, mask: Any = None) -> Array:
        for _ in range(steps):
            self.randomizer.advance(self.streams, self.all if mask is None else np.array(mask))
        return self.store.values[A].copy()

    def path(self, steps: int) -> Array:
        return np.array([self.begin(), *(self.advance() for _ in range(steps))])


def moving(schedule: dict[str, Any], notation: str = "=U(10, 20)") -> list[dict[str, Any]]:
    return [{"parameters": {A: notation}, "when": schedule}]


TIME = 0.1 * np.arange(31)[:, None]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"step": {"at": 1.05}}, lambda u: np.where(TIME >= 1.05, 10 + 10 * u, 2.0)),
        ({"step": {"at": 1.0}}, lambda u: np.where(np.arange(31)[:, None] >= 10, 10 + 10 * u, 2.0)),
        ({"drift": {"over": 2.0}}, lambda u: 2 + np.minimum(TIME / 2, 1) * (8 + 10 * u)),
        ({"sinusoid": {"period": 1.7}}, lambda u: 15 + 5 * np.sin(2 * np.pi * TIME / 1.7 + np.arcsin(2 * u - 1))),
        ({"saw_tooth": {"period": 1.7}}, lambda u: 10 + 10 * ((u + TIME / 1.7) % 1)),
        ({"constant": {}}, lambda u: 10 + 10 * u + 0 * TIME),
        (
            {"sinusoid": {"period": 1.7, "every": 0.25}},  # updates at 0.3, 0.5, 0.8, 1.0, ... s
            lambda u: (
                15
                + 5
                * np.sin(
                    2 * np.pi * 0.1 * np.ceil(np.floor(TIME / 0.25 + 1e-9) * 2.5 - 1e-9) / 1.7 + np.arcsin(2 * u - 1)
                )
            ),
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_schedule_has_its_closed_form(schedule: dict[str, Any], expected: Any) -> None:
    plants = Plants(moving(schedule), 5)
    path = plants.path(30)
    u = np.array([stream(k, "dynamics").random() for k in range(5)])
    np.testing.assert_allclose(path, expected(u), rtol=1e-9)
    assert plants.path(30)[-1].tolist() != path[-1].tolist()


def test_a_random_walk_keeps_the_distribution_at_all_times() -> None:
    path = Plants(moving({"random_walk": {"std": 0.2}}, "=N(5, 2)"), 3000).path(20)
    for row in path[::5]:
        assert stats.kstest(row, stats.norm(5, 2).cdf).pvalue > 1e-3
    steps = np.diff(stats.norm(5, 2).cdf(path), axis=0)
    assert 0.1 < steps.std() < 0.2  # turning back at the ends makes some shorter
    assert abs(np.corrcoef(path[0], path[-1])[0, 1]) < 0.2


def test_uniform_draws_afresh_at_its_interval() -> None:
    path = Plants(moving({"interval": 0.5}), 2000).path(12)
    changes = (np.diff(path, axis=0) != 0).all(1)
    assert np.flatnonzero(changes).tolist() == [4, 9]
    assert stats.kstest(path[-1], stats.uniform(10, 10).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(path[0], path[-1])[0, 1]) < 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_drifts_end_at_the_end_and_cycles_start_again(sign: int) -> None:
    end, kind = (20.0, "pos") if sign > 0 else (10.0, "neg")
    drift = Plants(moving({f"drift_{kind}": {"std": 0.1}}), 50).path(60)
    assert (sign * np.diff(drift, axis=0) >= 0).all()
    np.testing.assert_allclose(drift[-1], end)
    cycle = Plants(moving({f"cyclic_{kind}": {"std": 0.1}}), 50).path(60)
    back = sign * np.diff(cycle, axis=0) < 0
    assert back.any(0).all()
    np.testing.assert_allclose(cycle[1:][back], np.broadcast_to(cycle[0], back.shape)[back])


def test_a_saw_wave_goes_up_and_down() -> None:
    path = Plants(moving({"saw_wave": {"std": 0.05}}), 200).path(200)
    turns = np.diff(np.sign(np.diff(path, axis=0)), axis=0) != 0
    assert path.min() >= 10
    assert path.max() <= 20
    # 200 steps of 0.04 in the mean are eight times up or down
    assert 5 < turns.sum(0).mean() < 10
    assert (np.minimum(path[1:-1] - 10, 20 - path[1:-1])[turns] < 2.5).all()  # and turns are at the ends


def test_the_names_of_the_real_world_rl_suite_are_there() -> None:
    names = ["constant", "random_walk", "drift_pos", "drift_neg", "cyclic_pos", "cyclic_neg", "uniform", "saw_wave"]
    for name in names:
        schedule = parse_schedule({name: {"every": 2}})
        assert parse_schedule(schedule.to_config()) == schedule
        assert schedule.describe() == f"{name} every=2" + (" std=0.1" if hasattr(schedule, "std") else "")
    assert set(names) < set(SCHEDULES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sinus": {"period": 1}}, "did you mean sinusoid"),
        ({"sinusoid": {"periode": 1}}, "did you mean period"),
        ({"sinusoid": {}}, "needs period"),
        ({"sinusoid": {"period": 0}}, "period must be positive"),
        ({"sinusoid": {"period": "long"}}, "must be a number"),
        ({"random_walk": {"std": -1}}, "std must be positive"),
        ({"step": 2}, "arguments by name"),
        ({"step": {"at": 1}, "drift": {"over": 1}}, "one name and its arguments"),
    ],
)
def test_bad_schedules_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_schedule(config)


# When, for whom, and what is forced.


def test_startup_is_drawn_once_and_again_when_fresh() -> None:
    plants = Plants([{"parameters": {A: "*U(1, 2)"}, "when": "startup"}, {"parameters": {B: "*U(1, 2)"}}], 4)
    first, other = plants.begin(fresh=True), plants.store.values[B].copy()
    assert len(set(first)) == 4
    np.testing.assert_array_equal(plants.begin(), first)
    assert (plants.store.values[B] != other).all()
    assert (plants.begin(fresh=True) != first).all()


def test_n_plants_are_n_single_ones() -> None:
    source = [
        *moving({"random_walk": {"std": 0.3}}),
        {"parameters": {f"{B}, dynamics.b.friction": "*U(0.5, 2) each"}, "when": {"cyclic_pos": {"every": 0.25}}},
    ]
    many, singles = Plants(source, 3), [Plants(source, 1, seeds=[k]) for k in range(3)]
    many.begin()
    for single in singles:
        single.begin()
    many.advance(4)
    many.begin(mask=[False, True, False])
    many.advance(3, mask=[True, True, False])
    for k, single in enumerate(singles):
        single.advance(4)
        if k == 1:
            single.begin()
        if k < 2:
            single.advance(3)
        for name, value in single.store.read().items():
            assert value[0] == many.store.values[name][k], (name, k)


def test_forced_values_hold_for_the_episode_and_no_longer() -> None:
    plants = Plants([*moving({"interval": 0.1}), {"parameters": {B: "*U(1, 2)"}}], 3)
    forced = {"dynamics.*.mass": np.array([7.0, 8.0, 9.0]), ZERO: 0.3}
    plants.begin(forced=forced)
    assert plants.advance(3).tolist() == [7, 8, 9]
    assert plants.randomizer.in_force[ZERO].tolist() == [0.3] * 3
    plants.begin(mask=[True, False, False])
    assert plants.store.values[ZERO].tolist() == [0, 0.3, 0.3]
    assert plants.randomizer.holds(ZERO).tolist() == [False, True, True]
    after = plants.advance()
    assert (after == [7, 8, 9]).tolist() == [False, True, True]
    plants.begin()
    assert plants.store.values[ZERO].tolist() == [0, 0, 0]
    assert ZERO not in plants.randomizer.in_force
    with pytest.raises(ParameterError, match="expected a number or"):
        plants.begin(forced={A: [1.0, 2.0]})
    with pytest.raises(ParameterError, match="would change nothing: it touches nothing"):
        plants.begin(forced={"dynamics.c.friction": 1.0})


def test_factors_act_on_the_nominal_value_whatever_is_in_force() -> None:
    plants = Plants({A: "*2", B: "+1"}, 2)
    for _ in range(3):
        plants.begin()
    assert plants.store.values[A].tolist() == [4, 4]
    assert plants.store.values[B].tolist() == [4, 4]


# Patterns.


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("dynamics.*.mass", [A, B]),
        ("dynamics.?.mass", [A, B]),
        (f"{B}, {A}", [A, B]),
        ("dynamics.b.friction", ["dynamics.b.friction[0]", "dynamics.b.friction[1]"]),
        ("dynamics.*.friction[1]", ["dynamics.b.friction[1]"]),
        ("dynamics.a.*", [A]),  # a factor leaves the damping of zero alone
    ],
)
def test_patterns_share_a_draw_or_draw_each(name: str, targets: list[str]) -> None:
    for each in (False, True):
        bound = BoundParameters(ParameterSet.parse({name: "*U(0.5, 1.5)" + " each" * each}), Store(1))
        assert list(bound.names) == targets
        assert bound.dimension == (len(targets) if each else 1)
        u = np.linspace(0.1, 0.9, 3 * bound.dimension).reshape(3, -1)
        values = bound.values(u)
        for k, target in enumerate(targets):
            np.testing.assert_allclose(values[target], NOMINAL[target] * (0.5 + u[:, k if each else 0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dynamics.*.mas": "*U(1, 2)"}, "did you mean dynamics"),
        ({"dynamics.b.friction": "=U(1, 2)"}, "different units"),
        ({A: "=U(1, 2) g"}, "the unit is 'kg', found 'g'"),
        ({ZERO: "*U(1, 2)"}, "the nominal value is 0, which no factor changes"),
        ({"dynamics.c.friction[1]": "*U(1, 2)"}, "would change nothing: it touches nothing"),
        ({A: "*U(1, 2)", "dynamics.*.mass": "*U(1, 2)"}, "two parameters of one randomization mean dynamics.a.mass"),
    ],
)
def test_bad_patterns_are_refused(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Plants(parameters, 1)
    with pytest.raises(ParameterError, match="two randomizations claim"):
        Plants([{"parameters": {A: "*2"}}, {"parameters": {A: "*3"}, "when": "startup"}], 1)


# Distributions and joint draws.

NOTATIONS = [
    "U(1, 3)",
    "LogU(0.1, 10)",
    "N(1, 2)",
    "TN(0, 1, -1, 2)",
    "LogN(2, 0.5)",
    "Cat(1, 2, 2, 5)",
    "Emp(1, 2, 4)",
]


@pytest.mark.parametrize("notation", [*NOTATIONS, "1.5"])
def test_quantiles_are_those_of_scipy_and_draws_follow_them(notation: str) -> None:
    d = parse_distribution(notation)
    u = np.linspace(0.001, 0.999, 101)
    if notation != "1.5":
        np.testing.assert_allclose(d.quantile(u), d.scipy.ppf(u), rtol=1e-9)
    assert d.quantile(0.5).shape == ()
    low, high = d.support
    assert ((d.quantile(u) >= low) & (d.quantile(u) <= high)).all()
    draws = d.sample(np.random.default_rng(0), 4000)
    np.testing.assert_allclose(draws.mean(), d.mean, atol=5 * d.std / np.sqrt(4000) + 1e-12)
    assert parse_distribution(str(d)) == d


def test_every_family_is_tried() -> None:
    assert {n.split("(")[0] for n in NOTATIONS} | {"Fixed"} == set(FAMILIES)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6, unique=True))
def test_lists_of_numbers_print_and_parse(values: list[float]) -> None:
    for family in (Categorical, Empirical):
        d = family(tuple(values))
        assert parse_distribution(str(d)) == d
        assert d.support == (min(values), max(values))


def test_categories_have_their_probabilities() -> None:
    d = parse_distribution("Cat(1, 2, 2, 5)")
    np.testing.assert_allclose(np.exp(d.log_prob([1, 2, 5, 3])), [0.25, 0.5, 0.25, 0])
    values, counts = np.unique(d.quantile(np.arange(0, 1, 0.001)), return_counts=True)
    assert values.tolist() == [1, 2, 5]
    np.testing.assert_allclose(counts, [250, 500, 250], atol=2)
    for few in ("Cat(1)", "Cat(1, 1)", "Emp(2)"):
        with pytest.raises(ParameterError):
            parse_distribution(few)


def test_a_joint_normal_is_one() -> None:
    mean, covariance = np.array([1.0, 2.0]), np.array([[0.04, 0.03], [0.03, 0.09]])
    notation = "*MVN([1.0, 2.0], [[0.04, 0.03], [0.03, 0.09]])"
    joint = JointNormal.from_notation(f"{A}, {B}", notation, UNITS)
    assert joint.notations() == {f"{A}, {B}": notation}
    rng = np.random.default_rng(0)
    for draws in (joint.quantile(rng.random((20000, 2))), joint.sample(rng, 20000)):
        both = np.stack([draws[A], draws[B]])
        np.testing.assert_allclose(both.mean(1), mean, atol=0.01)
        np.testing.assert_allclose(np.cov(both), covariance, atol=0.003)
    x = {A: np.array([1.1, 0.7]), B: np.array([2.2, 1.9])}
    expected = stats.multivariate_normal(mean, covariance).logpdf(np.stack([x[A], x[B]], 1))
    np.testing.assert_allclose(joint.log_prob(x), expected)
    values = joint.against(NOMINAL)
    np.testing.assert_allclose(values.mean, [2, 6])
    np.testing.assert_allclose(values.covariance, covariance * np.outer([2, 3], [2, 3]))
    plants = Plants({f"{A}, {B}": notation, "dynamics.b.friction[0]": "*U(1, 2)"}, 3000)
    plants.begin()
    both = np.stack([plants.store.values[A] / 2, plants.store.values[B] / 3])
    np.testing.assert_allclose(np.cov(both), covariance, atol=0.01)
    for bad in (
        "*MVN([1], [[1, 0], [0, 1]])",
        "*MVN([1, 1], [[1, 2], [2, 1]])",
        "*MVN(1, 2)",
        "MVN([1, 1], [[1, 0], [0, 1]])",
    ):
        with pytest.raises(ParameterError):
            JointNormal.from_notation(f"{A}, {B}", bad, {})


def test_joint_samples_stay_together() -> None:
    samples = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    parameters = tuple(Parameter(name=n, unit="kg", distribution=parse_distribution("N(0, 1)")) for n in (A, B))
    joint = JointEmpirical(parameters, samples)
    plants = Plants(joint, 300)
    plants.begin()
    np.testing.assert_array_equal(plants.store.values[B], 10 * plants.store.values[A])
    assert set(plants.store.values[A]) == {1, 2, 3}
    again = Plants(json.loads(json.dumps([Randomization(joint).to_config()])), 300)
    again.begin()
    np.testing.assert_array_equal(again.store.values[A], plants.store.values[A])
    with pytest.raises(ParameterError, match="not moved by a schedule"):
        Randomization(joint, parse_schedule({"sinusoid": {"period": 1}}))


def test_randomizations_survive_their_config() -> None:
    source = [
        {"parameters": {A: "*U(0.5, 1.5) kg"}, "when": "startup"},
        {
            "parameters": {"dynamics.*.friction[0]": "+N(0, 0.1) each"},
            "when": {"random_walk": {"every": 0.1, "std": 0.2}},
        },
        {"parameters": {f"{B}, {ZERO}": "+MVN([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])"}},
    ]
    parsed = parse_randomizations(source)
    config = [r.to_config() for r in parsed]
    assert parse_randomizations(json.loads(json.dumps(config)))[:2] == parsed[:2]
    assert [r.to_config() for r in parse_randomizations(config)] == config
    assert parse_randomizations({}) == ()
    for bad in ("mass", 3, [3], [{"parameters": {}}], [{"parameters": {A: "*2"}, "whn": "reset"}], [{"when": "reset"}]):
        with pytest.raises(ParameterError):
            parse_randomizations(bad)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="startup, reset, a schedule or a curriculum"):
        parse_randomizations([{"parameters": {A: "*2"}, "when": "never"}])
