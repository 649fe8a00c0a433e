"""Parameters: notation, operations against the nominal value, and sets of them."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sim2real.errors import ParameterError
from sim2real.randomization import Fixed, Normal, Parameter, ParameterSet, ParameterStore, Uniform
from sim2real.randomization.parameters import check_values

MASS, DELAY = "dynamics.payload.mass", "execution.latency.delay"
UNITS = {MASS: "kg", DELAY: "s", "dynamics.motor.gear": "", "perception.encoder.step": "rad"}

finite = st.floats(-1e3, 1e3)
distributions = st.one_of(
    st.builds(Fixed, finite),
    st.builds(Normal, finite, st.floats(1e-3, 1e3)),
    st.tuples(finite, finite).map(sorted).filter(lambda x: x[0] + 1e-3 < x[1]).map(lambda x: Uniform(*x)),
)
parameters = st.builds(
    Parameter,
    name=st.just(MASS),
    unit=st.sampled_from(["kg", "N·m·s/rad", ""]),
    distribution=distributions,
    operation=st.sampled_from(["set", "scale", "add"]),
)


@settings(deadline=None)
@given(parameters)
def test_a_parameter_parses_back_from_its_notation(parameter: Parameter) -> None:
    assert Parameter.parse(MASS, parameter.notation, parameter.unit) == parameter
    assert Parameter.parse(MASS, f"{parameter.notation} {parameter.unit}") == parameter


@settings(deadline=None)
@given(st.lists(parameters, max_size=1))
def test_a_set_survives_yaml(some: list[Parameter]) -> None:
    written = ParameterSet(tuple(some))
    text = yaml.safe_dump(written.notations(), allow_unicode=True)
    assert ParameterSet.parse(yaml.safe_load(text)) == written


def test_a_set_parses_prints_and_compares() -> None:
    notations = {MASS: "*U(0.8, 1.2) kg", DELAY: "=LogU(0.001, 0.1) s", "dynamics.motor.gear": "+N(0, 0.01)"}
    some = ParameterSet.parse(notations, UNITS)
    assert some.notations() == notations
    assert ParameterSet.parse(some.notations()) == some == ParameterSet.parse(some.notations(), UNITS)
    assert hash(some) == hash(ParameterSet.parse(notations))
    assert repr(some).startswith("ParameterSet(dynamics.payload.mass *U(0.8, 1.2) kg, ")
    assert some.names == tuple(notations)
    assert [p.operation for p in some] == ["scale", "set", "add"]
    assert some[DELAY].unit == "s"
    assert len(some) == 3


@pytest.mark.parametrize("text", ["=0.5", " = 0.5 kg ", "=5e-1", "=+0.5kg"])
def test_a_number_is_set(text: str) -> None:
    assert Parameter.parse(MASS, text, "kg") == Parameter(name=MASS, unit="kg", distribution=Fixed(0.5))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (MASS, "U(0, 1)", "expected =, \\* or \\+"),
        (MASS, "=around 3", "cannot read"),
        (MASS, "=U(0, 1) g", "the unit is 'kg', found 'g'"),
        (MASS, "*U(0, 1) g", "the unit is 'kg', found 'g'"),
        (MASS, "+N(0, 1) s", "the unit is 'kg', found 's'"),
        ("dynamics.motor.gear", "=U(1, 2) kg", "the unit is '', found 'kg'"),
        ("dynamics.payload.mas", "=1", "no parameter named 'dynamics.payload.mas'; did you mean dynamics.payload.mass"),
        ("colour", "=1", "available: dynamics.motor.gear"),
    ],
)
def test_a_set_refuses_what_it_cannot_read(name: str, text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ParameterSet.parse({name: text}, UNITS)


@pytest.mark.parametrize("name", ["mass", "dynamics.mass", "physics.payload.mass"])
def test_a_name_says_its_gap(name: str) -> None:
    with pytest.raises(ParameterError, match=r"<gap>.<entity>.<field>"):
        Parameter.parse(name, "=1")


def test_a_name_may_stand_once() -> None:
    parameter = Parameter.parse(MASS, "=1")
    with pytest.raises(ParameterError, match=r"found twice: dynamics.payload.mass"):
        ParameterSet((parameter, parameter))


def test_an_unknown_name_is_refused_everywhere() -> None:
    some = ParameterSet.parse({MASS: "*U(0.8, 1.2)"})
    with pytest.raises(ParameterError, match=r"did you mean dynamics.payload.mass"):
        some["dynamics.payload.maas"]
    with pytest.raises(ParameterError, match=r"no parameter named 'dynamics.payload.mass'"):
        some.against({DELAY: 0.0})


@settings(deadline=None)
@given(distributions, st.floats(0.1, 10.0), st.sampled_from(["set", "scale", "add"]))
def test_operations_act_on_the_nominal_value(distribution: object, nominal: float, operation: str) -> None:
    parameter = Parameter(name=MASS, unit="kg", distribution=distribution, operation=operation)
    drawn = distribution.sample(np.random.default_rng(0), 5)
    expected = {"set": drawn, "scale": nominal * drawn, "add": nominal + drawn}[operation]
    against = parameter.against(nominal)
    assert (against.operation, against.unit, against.name) == ("set", "kg", MASS)
    np.testing.assert_allclose(against.distribution.sample(np.random.default_rng(0), 5), expected, atol=1e-9)


def test_twice_three_times_is_twice() -> None:
    double = ParameterSet.parse({MASS: "*2"})
    once = double.against({MASS: 0.5})
    assert once.sample(np.random.default_rng(0), 1)[MASS] == [1.0]
    # already a value, so that nothing is left to multiply
    assert once.against({MASS: 0.5}).against({MASS: 1.0}) == once


def test_what_is_drawn_once_a_match_stays_so() -> None:
    each = Parameter(name=MASS, unit="kg", distribution=Uniform(0.5, 2), operation="scale", shared=False)
    assert each.against(2.0) == Parameter(name=MASS, unit="kg", distribution=Uniform(1, 4), shared=False)


@pytest.mark.parametrize("nominal", [0.0, -1.0])
def test_nothing_scales_a_nominal_value_that_is_not_positive(nominal: float) -> None:
    with pytest.raises(ParameterError, match="cannot scale a nominal value"):
        Parameter.parse(MASS, "*U(0.5, 2)").against(nominal)


def test_the_joint_density_is_the_product() -> None:
    some = ParameterSet.parse({MASS: "=N(1, 0.1)", DELAY: "=U(0, 0.04)"})
    values = some.sample(np.random.default_rng(0), 100)
    assert {k: v.shape for k, v in values.items()} == {MASS: (100,), DELAY: (100,)}
    expected = stats.norm(1, 0.1).logpdf(values[MASS]) - np.log(0.04)
    np.testing.assert_allclose(some.log_prob(values), expected)


def test_moments_bounds_and_precision_stand_in_order() -> None:
    some = ParameterSet.parse({MASS: "=N(1, 0.1)", DELAY: "=U(0, 0.04)", "dynamics.motor.gear": "=TN(1, 0.5, 0, 2)"})
    np.testing.assert_allclose(some.mean, [1, 0.02, 1])
    np.testing.assert_allclose(some.std[:2], [0.1, 0.04 / np.sqrt(12)])
    low, high = some.bounds
    assert low.tolist() == [-np.inf, 0, 0]
    assert high.tolist() == [np.inf, 0.04, 2]
    np.testing.assert_allclose(some.precision(), np.diag([100, 0, 4]))


def test_an_empty_set_has_empty_everything() -> None:
    empty = ParameterSet(())
    assert empty.sample(np.random.default_rng(0), 3) == {}
    assert [len(x) for x in (empty.mean, empty.std, *empty.bounds, empty.precision())] == [0] * 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dynamics.payload.mas": np.ones(2)}, "did you mean dynamics.payload.mass"),
        ({MASS: np.ones(3)}, r"each of 2 plants, found shape \(3,\)"),
        ({MASS: np.array([1, np.nan])}, "must be finite, found nan"),
    ],
)
def test_values_are_checked(values: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_values(values, UNITS, 2)


def test_a_store_is_what_can_be_written_and_read() -> None:
    from sim2real.adapters import Chain

    assert isinstance(Chain().bind(n=1, width=1, dt=0.001), ParameterStore)
    assert not isinstance(object(), ParameterStore)
