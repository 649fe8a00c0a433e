"""Distributions of lists, joint draws, patterns, clocks and masks, against scipy, exact fractions and brute force."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sim2real.errors import ParameterError
from sim2real.randomization import (
    Categorical,
    Distribution,
    Empirical,
    Fixed,
    JointEmpirical,
    JointNormal,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    ParameterSet,
    Randomization,
    TruncatedNormal,
    Uniform,
    parse_distribution,
    parse_randomizations,
)
from sim2real.randomization.addressing import BoundParameters, match_names
from sim2real.randomization.parameters import check_values
from sim2real.randomization.randomization import Randomizer, stream
from sim2real.randomization.schedules import SCHEDULES, parse_schedule

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
A, B, DAMPING = "dynamics.a.mass", "dynamics.b.mass", "dynamics.a.damping"
GRIP = tuple(f"dynamics.b.friction[{k}]" for k in range(3))
NOMINAL = {A: 2.0, B: 3.0, DAMPING: 0.0, GRIP[0]: 1.0, GRIP[1]: 0.5, GRIP[2]: 0.25}
UNITS = {A: "kg", B: "kg", DAMPING: "N·m·s/rad", GRIP[0]: "", GRIP[1]: "m", GRIP[2]: "m"}


class Plants:
    """n plants that are nothing but parameters; remembers what it was told to write."""

    def __init__(self, n: int, limits: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.n, self._limits = n, dict(limits or {})
        self.values = {name: np.full(n, value) for name, value in NOMINAL.items()}
        self.written: list[tuple[set[str], Mask]] = []

    def nominal(self) -> dict[str, float]:
        return dict(NOMINAL)

    def units(self) -> dict[str, str]:
        return dict(UNITS)

    def limits(self) -> dict[str, tuple[float, float]]:
        return self._limits

    def silent(self) -> dict[str, str]:
        return {"dynamics.c.friction[1]": "it touches nothing"}

    def write(self, values: Mapping[str, Array], mask: Mask | None = None) -> None:
        check_values(values, NOMINAL, self.n)
        rows = np.ones(self.n, bool) if mask is None else mask
        self.written.append((set(values), rows.copy()))
        for name, value in values.items():
            self.values[name][rows] = value[rows]

    def read(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.values.items()}

    def restore(self, mask: Mask | None = None, names: Any = None) -> None:
        rows = np.ones(self.n, bool) if mask is None else mask
        for name in NOMINAL if names is None else names:
            self.values[name][rows] = NOMINAL[name]


class Run:
    """A randomizer at work on n plants, with the generators that belong to seeds 0, 1, ..."""

    def __init__(self, source: Any, n: int, dt: float = 0.1, first_seed: int = 0) -> None:
        self.plants, self.all = Plants(n), np.ones(n, bool)
        self.streams = [stream(first_seed + k, "dynamics") for k in range(n)]
        self.randomizer = Randomizer(parse_randomizations(source), self.plants, n, dt)

    def begin(self, mask: Any = None, fresh: bool = False, forced: Any = None) -> dict[str, Array]:
        rows = self.all if mask is None else np.array(mask)
        self.randomizer.begin(self.streams, rows, rows & fresh, forced)
        return self.plants.read()

    def advance(self, mask: Any = None) -> dict[str, Array]:
        self.randomizer.advance(self.streams, self.all if mask is None else np.array(mask))
        return self.plants.read()

    def path(self, steps: int, name: str = A) -> Array:
        return np.array([self.begin()[name], *(self.advance()[name] for _ in range(steps))])

    def states(self) -> list[Any]:
        return [s.bit_generator.state["state"] for s in self.streams]


def moved(kind: str, notation: str = "=U(10, 20)", **arguments: Any) -> list[dict[str, Any]]:
    return [{"parameters": {A: notation}, "when": {kind: arguments}}]


# Distributions of lists of numbers.

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
lists = st.lists(numbers, min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1)


@settings(deadline=None)
@given(lists, st.floats(0.0, 0.999))
def test_the_quantile_of_a_category_is_the_smallest_that_enough_draws_reach(values: list[float], u: float) -> None:
    ordered = sorted(values)
    near = [abs(u - k / len(values)) < 1e-9 for k in range(len(values) + 1)]
    expected = ordered[min(max(int(np.ceil(u * len(values))) - 1, 0), len(values) - 1)]
    if not any(near):
        assert Categorical(tuple(values)).quantile(u) == expected


@settings(deadline=None)
@given(lists)
def test_categories_are_as_likely_as_they_are_named_often(values: list[float]) -> None:
    d = Categorical(tuple(values))
    for x in set(values):
        assert np.exp(d.log_prob(x)) == pytest.approx(values.count(x) / len(values))
    assert d.log_prob(1e6) == -np.inf
    assert d.support == (min(values), max(values))
    assert d.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert d.std == pytest.approx(np.std(values), abs=1e-3)
    assert set(d.sample(np.random.default_rng(0), 50)) <= set(values)
    assert [float(x) for x in d.quantile([0.0, 1.0])] == [min(values), max(values)]


@settings(deadline=None)
@given(lists, st.floats(0.1, 5), st.floats(-5, 5))
def test_samples_are_equally_likely_to_lie_between_neighbours(values: list[float], scale: float, shift: float) -> None:
    d, distinct = Empirical(tuple(values)), sorted(set(values))
    # by hand: each sample lends half of itself to either side, the outermost all to the one side that they have
    mass = np.zeros(len(distinct) - 1)
    for x in values:
        k = distinct.index(x)
        sides = [side for side in (k - 1, k) if 0 <= side < len(mass)]
        mass[sides] += 1 / len(sides) / len(values)
    cumulated = np.concatenate([[0.0], np.cumsum(mass)])
    u = np.linspace(0, 1, 23)
    np.testing.assert_allclose(d.quantile(u), np.interp(u, cumulated, distinct), atol=1e-6)
    for (low, high), m in zip(pairwise(distinct), mass, strict=True):
        assert np.exp(d.log_prob((low + high) / 2)) == pytest.approx(m / (high - low), rel=1e-6)
    assert d.log_prob(distinct[0] - 1) == d.log_prob(distinct[-1] + 1) == -np.inf
    moved_there = d.affine(scale, shift)
    np.testing.assert_allclose(moved_there.quantile(u), scale * d.quantile(u) + shift, atol=1e-6)


def test_many_samples_give_back_the_distribution_that_they_are_from() -> None:
    draws = stats.gamma(3).rvs(3000, random_state=np.random.default_rng(0))
    d = Empirical(tuple(draws))
    assert stats.kstest(d.sample(np.random.default_rng(1), 3000), stats.gamma(3).cdf).pvalue > 1e-3
    edges = np.sort(draws)
    total = np.sum(np.exp(d.log_prob((edges[1:] + edges[:-1]) / 2)) * np.diff(edges))
    assert total == pytest.approx(1.0, abs=1e-6)
    low, high = d.interval(0.9)
    assert stats.gamma(3).cdf(high) - stats.gamma(3).cdf(low) == pytest.approx(0.9, abs=0.02)


QUANTILES = [
    (Uniform(-0.5, 2.0), stats.uniform(-0.5, 2.5)),
    (LogUniform(0.01, 3.0), stats.loguniform(0.01, 3.0)),
    (Normal(0.3, 0.2), stats.norm(0.3, 0.2)),
    (TruncatedNormal(0.3, 0.5, 0.0, 1.0), stats.truncnorm(-0.6, 1.4, 0.3, 0.5)),
    (LogNormal(0.7, 0.4), stats.lognorm(0.4, scale=0.7)),
    (Categorical((3.0, 1.0, 3.0, 8.0)), stats.rv_discrete(values=([1, 3, 8], [0.25, 0.5, 0.25]))),
    (Empirical((4.0, 1.0, 2.0)), stats.rv_histogram(([1.5, 1.5], [1, 2, 4]), density=False)),
]


@pytest.mark.parametrize(("distribution", "reference"), QUANTILES, ids=lambda x: type(x).__name__)
def test_a_quantile_is_that_of_scipy_spelled_out(distribution: Distribution, reference: Any) -> None:
    u = np.random.default_rng(0).random((40, 3))
    np.testing.assert_allclose(distribution.quantile(u), reference.ppf(u), rtol=1e-12)
    assert np.shape(distribution.quantile(0.5)) == ()


positive = st.floats(1e-3, 1e3)
any_distribution: st.SearchStrategy[Distribution] = st.one_of(
    numbers.map(Fixed),
    lists.map(lambda x: Uniform(min(x), max(x))),
    st.tuples(positive, positive).filter(lambda x: x[0] < x[1]).map(lambda x: LogUniform(*x)),
    st.builds(Normal, numbers, positive),
    st.builds(LogNormal, positive, positive),
    st.tuples(numbers, positive, lists).map(lambda x: TruncatedNormal(x[0], x[1], min(x[2]), max(x[2]))),
    lists.map(lambda x: Categorical(tuple(x))),
    lists.map(lambda x: Empirical(tuple(x))),
)


@settings(deadline=None)
@given(
    any_distribution,
    st.sampled_from(["set", "scale", "add"]),
    st.sampled_from(["", "kg", "N·m·s/rad", "m/s²", "1/s"]),
    st.booleans(),
    st.sampled_from([A, "dynamics.*.mass, dynamics.b.friction"]),
)
def test_a_randomization_survives_json(d: Distribution, operation: Any, unit: str, shared: bool, name: str) -> None:
    one = Parameter(name=name, unit=unit, distribution=d, operation=operation, shared=shared)
    randomization = Randomization(ParameterSet((one,)), "startup")
    assert parse_randomizations(json.loads(json.dumps([randomization.to_config()]))) == (randomization,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cat(1)", r"two different numbers or more, found Cat\(1\)"),
        ("Cat(2, 2)", "two different numbers"),
        ("Emp(1)", "two different samples"),
        ("Cat()", "cannot read"),
        ("Cat(1, inf)", "must be finite"),
        ("Emp(1, nan)", "must be finite"),
        ("Cats(1, 2)", "no distribution named 'Cats'; did you mean Cat"),
    ],
)
def test_lists_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_distribution(text)


# Joint draws.

MEAN, COVARIANCE = np.array([1.0, 2.0, -1.0]), np.array([[0.04, 0.03, 0.0], [0.03, 0.09, -0.05], [0.0, -0.05, 0.16]])
THREE = (A, B, DAMPING)


def values_of(draws: Mapping[str, Array], names: tuple[str, ...] = THREE) -> Array:
    return np.stack([draws[name] for name in names], -1)


def test_the_marginals_and_the_dependence_of_a_joint_normal_are_right() -> None:
    joint = JointNormal(THREE, MEAN, COVARIANCE)
    rng = np.random.default_rng(3)
    for draws in (joint.quantile(rng.random((20_000, 3))), joint.sample(rng, 20_000)):
        x = values_of(draws)
        # whitened by the true covariance, nothing but independent standard normals is left
        white = (x - MEAN) @ np.linalg.inv(np.linalg.cholesky(COVARIANCE)).T
        for column in white.T:
            assert stats.kstest(column, stats.norm.cdf).pvalue > 1e-3
        np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=0.04)
    assert joint.dimension == 3
    np.testing.assert_allclose(joint.precision() @ COVARIANCE, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(joint.std, np.sqrt(np.diag(COVARIANCE)))


@pytest.mark.parametrize(("operation", "scale"), [("set", [1, 1]), ("scale", [2, 3]), ("add", [1, 1])])
def test_a_joint_normal_against_nominal_values_is_that_of_the_values(operation: Any, scale: list[float]) -> None:
    joint = JointNormal((A, B), MEAN[:2], COVARIANCE[:2, :2], operation, ("kg", "kg"))
    values = joint.against(NOMINAL)
    u = np.random.default_rng(0).random((50, 2))
    bound = BoundParameters(joint, Plants(50)).values(u)
    for name in (A, B):
        np.testing.assert_allclose(bound[name], values.quantile(u)[name])
        assert values[name].operation == "set"
    # a density changes by the factors
    draws = joint.quantile(u)
    expected = joint.log_prob(draws) - np.log(np.prod(scale))
    np.testing.assert_allclose(values.log_prob(bound), expected)
    reference = stats.multivariate_normal(values.mean, values.covariance)
    np.testing.assert_allclose(values.log_prob(bound), reference.logpdf(values_of(bound, (A, B))))


def test_a_joint_normal_draws_for_patterns_and_vectors() -> None:
    run = Run({"dynamics.?.mass, dynamics.b.friction": "*MVN([1, 1], [[0.04, 0.0396], [0.0396, 0.04]])"}, 500)
    values = run.begin()
    for first, second in ((A, B), *pairwise(GRIP)):  # one factor for all that a name means
        np.testing.assert_allclose(values[first] / NOMINAL[first], values[second] / NOMINAL[second])
    assert np.corrcoef(values[A], values[GRIP[0]])[0, 1] == pytest.approx(0.99, abs=0.01)
    assert run.randomizer.names == (A, B, *GRIP)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*MVN([1], [[1]])", "MVN of 2 names needs 2 means and a 2 x 2 covariance"),
        ("*MVN([1, 1], [[1, 0]])", "MVN of 2 names"),
        ("*MVN([1, 1], [[1, 0.5], [0.4, 1]])", "must be symmetric"),
        ("*MVN([1, 1], [[1, 2], [2, 1]])", "must be positive definite"),
        ("MVN([1, 1], [[1, 0], [0, 1]])", "cannot read"),
        ("*MVN([1, 1], [[1, 0], [0, 1])", "cannot read"),
        ("*MVN([1, 1])", "cannot read"),
    ],
)
def test_joint_normals_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_randomizations({f"{A}, {B}": text})


def test_joint_normals_are_equal_where_all_their_numbers_are() -> None:
    one, same, other = (JointNormal((A, B), np.ones(2), np.array([[1, r], [r, 1]])) for r in (0.5, 0.5, -0.5))
    assert one == same
    assert one != other
    assert Randomization(one) != Randomization(other)


def empirical(samples: Any) -> JointEmpirical:
    names = (A, B)[: np.shape(samples)[1]]
    return JointEmpirical(
        tuple(Parameter(name=n, unit="kg", distribution=Normal(0, 1)) for n in names), np.array(samples, float)
    )


def test_joint_samples_are_equal_where_the_samples_are() -> None:
    assert empirical([[1, 2], [3, 4]]) == empirical([[1, 2], [3, 4]])
    assert empirical([[1, 2], [3, 4]]) != empirical([[1, 2], [3, 5]])


def test_joint_samples_are_drawn_evenly_and_together() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 2)) @ np.array([[1, 0.5], [0, 1]])
    joint = empirical(samples)
    assert joint.dimension == 1
    every = values_of(joint.quantile((np.arange(80)[:, None] + 0.5) / 80), (A, B))
    np.testing.assert_array_equal(every, samples.repeat(2, 0))
    drawn = values_of(joint.sample(np.random.default_rng(1), 100), (A, B))
    counts = (drawn[:, None] == samples[None]).all(-1).sum(0)
    assert set(counts) == {2, 3}
    np.testing.assert_allclose(joint.covariance, np.cov(samples.T))
    reference = stats.multivariate_normal(samples.mean(0), np.cov(samples.T))
    x = {A: np.array([0.3, 1.0]), B: np.array([0.1, -2.0])}
    np.testing.assert_allclose(joint.log_prob(x), reference.logpdf(values_of(x, (A, B))))
    for bad in ([[1.0, np.nan]], np.ones((2, 2, 2))):
        with pytest.raises(ParameterError, match="finite samples"):
            JointEmpirical(joint.parameters, np.array(bad))


def test_joint_samples_are_drawn_afresh_within_episodes() -> None:
    samples = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]
    run = Run([Randomization(empirical(samples), parse_schedule({"interval": 0.2}))], 300)
    seen = [run.begin(), *(run.advance() for _ in range(4))]
    for values in seen:
        np.testing.assert_array_equal(values[B], 10 * values[A])
        assert stats.chisquare(np.unique(values[A], return_counts=True)[1]).pvalue > 1e-3
    changed = [(a[A] != b[A]).mean() for a, b in pairwise(seen)]
    assert changed[0] == changed[2] == 0
    assert 0.5 < changed[1] < 0.8  # two of three others
    assert 0.5 < changed[3] < 0.8


# Patterns.

KNOWN = ["dynamics.leg.mass", "dynamics.leg.mass_scale", "dynamics.arm.mass", "dynamics.arm.com[0]"]
KNOWN += [f"dynamics.arm.com[{k}]" for k in (1, 10)] + ["execution.latency.delay"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("dynamics.leg.mass", [0]),
        ("*.mass", [0, 2]),
        ("dynamics.*", [0, 1, 2, 3, 4, 5]),
        ("dynamics.arm.com", [3, 4, 5]),
        ("dynamics.*.com", [3, 4, 5]),
        ("dynamics.arm.com[?]", [3, 4]),
        ("dynamics.arm.com[1*]", [4, 5]),
        ("dynamics.???.mass", [0, 2]),
        ("dynamics.arm.mass,dynamics.leg.mass", [0, 2]),
        ("dynamics.arm.mass, dynamics.arm.*", [2, 3, 4, 5]),
        ("execution.latency.*, *.mass_scale", [1, 6]),
    ],
)
def test_a_pattern_means_names_in_the_order_of_the_store(pattern: str, expected: list[int]) -> None:
    assert match_names(pattern, KNOWN) == tuple(KNOWN[k] for k in expected)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("dynamics.leg.mas", "no parameter named 'dynamics.leg.mas'; did you mean dynamics.leg.mass"),
        ("*.mass, *.length", r"no parameter named '\*.length'"),
        ("dynamics.leg.mas.", "no parameter named"),  # a dot is a dot
        ("dynamics.leg", "did you mean dynamics.leg.mass"),
        ("dynamics.c.friction", "would change nothing: it touches nothing"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        match_names(pattern, KNOWN, Plants(1).silent())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dynamics.b.friction": "+N(0, 0.1)"}, r"different units \('', 'm'\); scale them"),
        ({"dynamics.b.friction": "=U(1, 2) m"}, "different units"),
        ({"dynamics.b.friction": "*U(1, 2) m"}, "the unit is"),
        ({"dynamics.?.mass": "+N(0, 0.1) g"}, "the unit is 'kg', found 'g'"),
        ({"dynamics.a.damping, dynamics.a.damping": "*2"}, "the nominal value is 0, which no factor changes"),
        ({A: "*2", f"{A}, {B}": "*2 each"}, f"found twice: {A}"),
        ({A: "*2", f"{A}, {B}": "*2"}, f"two parameters of one randomization mean {A}"),
        ([{"parameters": {"dynamics.?.mass": "*2 each"}}, {"parameters": {B: "*MVN([1], [[1]])"}}], f"claim {B}"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Run(source, 2)


def test_a_shared_offset_is_one_number_and_each_has_its_own_otherwise() -> None:
    shared, each = (Run({"dynamics.?.mass": "+U(0, 1) kg" + word}, 200).begin() for word in ("", " each"))
    np.testing.assert_allclose(shared[A] - 2, shared[B] - 3)
    assert abs(np.corrcoef(each[A], each[B])[0, 1]) < 0.2
    for values in (shared, each):
        assert stats.kstest(values[B], stats.uniform(3, 1).cdf).pvalue > 1e-3


def test_draws_that_a_store_would_refuse_are_refused_at_once() -> None:
    plants = Plants(1, {A: (0.0, 5.0)})
    Randomizer(parse_randomizations({A: "*U(0, 2.5)"}), plants, 1, 0.1)
    for notation in ("*U(0, 2.6)", "+N(0, 1)", "=Cat(1, 6)", "=6"):
        with pytest.raises(ParameterError, match=r"dynamics.a.mass could be drawn as .*, and must lie between 0 and 5"):
            Randomizer(parse_randomizations({A: notation}), plants, 1, 0.1)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.9])
def test_joint_draws_that_a_store_would_refuse_are_refused_whatever_their_correlation(correlation: float) -> None:
    covariance = [[0.01, 0.025 * correlation], [0.025 * correlation, 0.0625]]
    with pytest.raises(ParameterError, match=r"dynamics.b.mass could be drawn as .*, and must lie between 0 and"):
        Randomizer(
            parse_randomizations({f"{A}, {B}": f"*MVN([1, 1], {covariance})"}), Plants(1, {B: (0.0, np.inf)}), 1, 0.1
        )


# Within episodes.


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 80))
def test_an_update_comes_with_the_first_step_at_or_after_its_time(dt_ms: int, every_ms: int, steps: int) -> None:
    run = Run(moved("uniform", every=every_ms / 1000), 1)
    run.randomizer.dt = dt_ms / 1000
    changes = np.flatnonzero(np.diff(run.path(steps)[:, 0])) + 1
    # in whole milliseconds, so that nothing rounds
    due = {int(np.ceil(Fraction(k * every_ms, dt_ms))) for k in range(1, steps * dt_ms // every_ms + 1)}
    assert changes.tolist() == sorted(due)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("notation", ["=U(10, 20)", "=N(5, 2)", "=LogN(2, 0.5)", "=Cat(1, 2, 5)", "=Emp(1, 2, 4)"])
def test_whatever_moves_stays_finite_in_its_support_and_gives_the_same_bytes(kind: str, notation: str) -> None:
    arguments = {"step": {"at": 0.5}, "drift": {"over": 1.0}}.get(kind, {})
    if kind in ("sinusoid", "saw_tooth"):
        arguments = {"period": 0.7}
    elif "std" in SCHEDULES[kind].__dataclass_fields__:
        arguments = {"std": 0.4}
    path, again = (Run(moved(kind, notation, **arguments), 20).path(40) for _ in range(2))
    assert path.tobytes() == again.tobytes()
    assert np.isfinite(path).all()
    low, high = parse_distribution(notation[1:]).support
    inside = (path >= low - 1e-9) & (path <= high + 1e-9)
    if kind in ("step", "drift"):
        inside |= (path >= min(low, 2)) & (path <= max(high, 2))  # on the way from the nominal value
    assert inside.all()
    assert len(np.unique(path[-1])) > 2 or notation.startswith("=Cat") or kind.startswith("drift_")


@pytest.mark.parametrize("std", [0.05, 0.3, 2.0])
def test_random_walks_of_any_pace_stay_uniform_and_take_normal_steps(std: float) -> None:
    path = Run(moved("random_walk", "=U(0, 1)", std=std), 2000).path(30)
    for row in path[[1, 3, 10, 30]]:
        assert stats.kstest(row, stats.uniform.cdf).pvalue > 1e-3
    if std < 0.1:
        middle = (path[:-1] > 0.3) & (path[:-1] < 0.7)
        steps = np.diff(path, axis=0)[middle]
        assert stats.kstest(steps[:4000], stats.norm(0, std).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("kind", "sign"), [("drift_pos", 1), ("drift_neg", -1), ("cyclic_pos", 1), ("cyclic_neg", -1)])
def test_one_sided_walks_take_half_normal_steps_from_the_draw(kind: str, sign: int) -> None:
    run = Run(moved(kind, "=U(0, 1)", std=0.02), 2000)
    path = run.path(3)
    far = (path > 0.2).all(0) & (path < 0.8).all(0)
    steps = sign * np.diff(path, axis=0)[:, far].ravel()
    assert stats.kstest(steps, stats.halfnorm(0, 0.02).cdf).pvalue > 1e-3
    again = run.begin()[A]
    assert stats.kstest(again, stats.uniform.cdf).pvalue > 1e-3  # the next episode starts from a draw of its own
    assert (again != path[0]).all()


def test_an_episode_starts_its_own_clock_and_leaves_those_of_others() -> None:
    run = Run(moved("drift", over=1.0), 3)
    run.begin()
    for _ in range(4):
        run.advance()
    late = run.begin(mask=[False, True, False])[A]
    run.advance(mask=[True, True, False])
    values = run.advance(mask=[True, True, False])[A]
    u = [stream(k, "dynamics").random(2) for k in range(3)]
    draws = [10 + 10 * u[k][int(k == 1)] for k in range(3)]
    shares = [0.6, 0.2, 0.4]
    np.testing.assert_allclose(values, [2 + s * (d - 2) for s, d in zip(shares, draws, strict=True)])
    assert late[1] == 2.0


def test_generators_of_others_are_not_touched() -> None:
    run = Run([*moved("random_walk"), {"parameters": {B: "*U(1, 2)"}, "when": "startup"}], 3)
    run.begin(fresh=True)
    before = run.states()
    run.begin(mask=[False, True, False])
    assert [a == b for a, b in zip(before, run.states(), strict=True)] == [True, False, True]
    before = run.states()
    run.advance(mask=[False, False, True])
    assert [a == b for a, b in zip(before, run.states(), strict=True)] == [True, True, False]
    assert all(rows.tolist() == [False, False, True] for _, rows in run.plants.written[-1:])
    before = run.states()
    written = len(run.plants.written)
    assert run.randomizer.sample(np.random.default_rng(0), 5)[A].shape == (5,)
    assert run.states() == before
    assert len(run.plants.written) == written


@pytest.mark.parametrize("kind", ["step", "drift", "sinusoid", "saw_tooth", "constant"])
def test_what_is_not_random_draws_no_numbers_on_the_way(kind: str) -> None:
    run = Run(moved(kind, **{"step": {"at": 1}, "drift": {"over": 1}, "constant": {}}.get(kind, {"period": 1})), 2)
    run.begin()
    before = run.states()
    run.advance()
    assert run.states() == before


def test_old_reports_keep_what_was_in_force() -> None:
    run = Run(moved("uniform"), 4)
    run.begin()
    report = run.randomizer.in_force
    old = report[A].copy()
    run.advance()
    np.testing.assert_array_equal(report[A], old)
    assert (run.randomizer.in_force[A] != old).all()
    np.testing.assert_array_equal(run.randomizer.in_force[A], run.plants.values[A])


# Forced values.


def test_a_forced_startup_draw_comes_back() -> None:
    run = Run([{"parameters": {"dynamics.?.mass": "*U(1, 2) each"}, "when": "startup"}], 2)
    drawn = run.begin(fresh=True)
    forced = run.begin(forced={A: 9.0})
    assert forced[A].tolist() == [9, 9]
    np.testing.assert_array_equal(forced[B], drawn[B])
    np.testing.assert_array_equal(run.begin()[A], drawn[A])


def test_forcing_does_not_change_what_else_is_drawn() -> None:
    source = {"dynamics.?.mass": "*U(1, 2) each", "dynamics.b.friction": "*U(1, 2)"}
    free, tied = Run(source, 3), Run(source, 3)
    for forced in ({A: 1.0}, {}, {"dynamics.b.friction[1], dynamics.a.*": 0.1}):
        a, b = free.begin(), tied.begin(forced=forced)
        for name in NOMINAL:
            if not any(name in match_names(pattern, list(NOMINAL)) for pattern in forced):
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert b[A].tolist() == b[DAMPING].tolist() == b[GRIP[1]].tolist() == [0.1] * 3


def test_a_vector_is_forced_by_one_number_or_one_a_component() -> None:
    run = Run({A: "*U(1, 2)"}, 2)
    values = run.begin(forced={"dynamics.b.friction": [0.1, 0.2, 0.3]})
    assert [values[name].tolist() for name in GRIP] == [[0.1] * 2, [0.2] * 2, [0.3] * 2]
    values = run.begin(forced={"dynamics.b.friction": 0.4})
    assert [values[name].tolist() for name in GRIP] == [[0.4] * 2] * 3
    values = run.begin(forced={"dynamics.b.friction": [0.1, 0.2]})  # one a plant
    assert [values[name].tolist() for name in GRIP] == [[0.1, 0.2]] * 3
    values = run.begin()
    assert [values[name].tolist() for name in GRIP] == [[NOMINAL[name]] * 2 for name in GRIP]


def test_forced_values_hold_on_masked_plants_only() -> None:
    run = Run([*moved("uniform"), {"parameters": {B: "*U(1, 2)"}}], 3)
    before = run.begin()
    run.begin(mask=[True, False, True], forced={A: [5.0, 6.0, 7.0], DAMPING: 0.2})
    values = run.advance()
    assert values[A][[0, 2]].tolist() == [5, 7]
    assert values[A][1] not in (6.0, before[A][1])
    assert values[DAMPING].tolist() == [0.2, 0, 0.2]
    assert values[B][1] == before[B][1]
    assert run.randomizer.holds(DAMPING).tolist() == [True, False, True]
    assert run.randomizer.holds(A).all()


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"dynamics.a.mas": 1.0}, "did you mean dynamics.a.mass"),
        ({A: [1.0, 2.0, 3.0, 4.0]}, r"found shape \(4,\)"),
        ({A: np.nan}, "must be finite"),
        ({A: "heavy"}, "a forced value is a number, found 'heavy'"),
        ({A: None}, "must be finite|is a number"),
        ({"dynamics.c.friction[1]": 1.0}, "it touches nothing"),
    ],
)
def test_forced_values_that_make_no_sense_are_refused(forced: dict[str, Any], message: str) -> None:
    run = Run({B: "*U(1, 2)"}, 3)
    with pytest.raises(ParameterError, match=message):
        run.begin(forced=forced)
    assert run.plants.values[A].tolist() == [2, 2, 2]


# What people write.


@pytest.mark.parametrize(
    "source",
    [
        {A: "*U(0.8, 1.2)"},
        {"parameters": {A: "*U(0.8, 1.2)"}},
        [{"parameters": {A: "*U(0.8, 1.2)"}, "when": "reset"}],
        ({"parameters": {A: "*U(0.8, 1.2)"}},),
        ParameterSet.parse({A: "*U(0.8, 1.2)"}),
        [ParameterSet.parse({A: "*U(0.8, 1.2)"})],
        Randomization(ParameterSet.parse({A: "*U(0.8, 1.2)"})),
        [Randomization(ParameterSet.parse({A: "*U(0.8, 1.2)"}), "reset")],
    ],
)
def test_one_thing_can_be_written_in_many_ways(source: Any) -> None:
    assert parse_randomizations(source) == (Randomization(ParameterSet.parse({A: "*U(0.8, 1.2)"}), "reset"),)


def test_nothing_is_randomized_by_nothing() -> None:
    assert parse_randomizations({}) == parse_randomizations([]) == parse_randomizations(()) == ()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (A, "expected"),
        ([{"parameters": {A: "*2"}, "whn": "reset"}], "keys parameters and when, found 'whn'"),
        ([{"when": "reset"}], "needs parameters"),
        ([{"parameters": [A]}], "needs parameters"),
        ([{"parameters": {A: "*2"}, "when": "episode"}], "startup, reset, a schedule or a curriculum, found 'episode'"),
        ([{"parameters": {A: "*2"}, "when": {"interval": -1}}], "every must be positive, found -1"),
        ([{"parameters": {A: "*2"}, "when": {"sinusoidal": {}}}], "did you mean sinusoid"),
        ([{"parameters": {A: "2"}}], "expected =,"),
        ([{"samples": [[1.0]]}], "units"),
        ([{"samples": [[1.0, 2.0]], "units": {A: "kg"}}], "samples"),
        ([{"samples": [[1.0, 2.0], [1.0]], "units": {A: "kg", B: "kg"}}], "samples"),
        ([{"samples": [[1.0], [2.0]], "units": {A: "kg"}, "when": {"drift": {"over": 1}}}], "not moved by a schedule"),
    ],
)
def test_what_cannot_be_read_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_randomizations(source)


def test_the_description_says_what_is_drawn_when_and_for_whom() -> None:
    run = Run(
        [
            {"parameters": {"dynamics.?.mass": "*U(1, 2)"}, "when": "startup"},
            {"parameters": {"dynamics.b.friction": "*N(1, 0.1) each"}, "when": {"random_walk": {"every": 0.5}}},
            {"parameters": {DAMPING: "=0.5"}},
        ],
        1,
    )
    assert run.randomizer.draws() == {
        "dynamics.?.mass": ((A, B), "*U(1, 2) at startup"),
        **{name: ((name,), "*N(1, 0.1) at random_walk every=0.5 std=0.1") for name in GRIP},
        DAMPING: ((DAMPING,), "=0.5"),
    }


def test_generators_depend_on_the_seed_the_role_and_the_copy_alone() -> None:
    first = [stream(0, "dynamics").random(), stream(1, "dynamics").random(), stream(0, "push").random()]
    first.append(stream(0, "dynamics", 1).random())
    assert len(set(first)) == 4
    assert stream(0, "dynamics").random() == first[0]
    assert np.random.default_rng(0).random() != first[0]
