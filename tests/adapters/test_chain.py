"""Chains: order, names, recipes, and the parameters of a chain at work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from sim2real.adapters import (
    STAGES,
    Chain,
    DeadZone,
    Field,
    FilteredDifference,
    FirstOrderLag,
    Friction,
    Gain,
    Latency,
    Quantization,
    Stage,
    TorqueLimit,
    register_stage,
)
from sim2real.errors import ParameterError, RecipeError, Sim2RealError
from sim2real.randomization import ParameterStore

DELAY, WIDTH = "execution.latency.delay", "execution.dead_zone.width"


def test_the_order_of_the_stages_matters() -> None:
    zone, limit = DeadZone(width=0.5), TorqueLimit(limit=1.0)
    three = np.full((1, 1, 1), 3.0)
    assert Chain([zone, limit]).bind(1, 1, 0.001).apply(three).item() == 1.0
    assert Chain([limit, zone]).bind(1, 1, 0.001).apply(three).item() == 0.5


def test_a_chain_is_its_stages_one_after_the_other() -> None:
    stages = [Latency(delay=0.0035), DeadZone(width=0.2), FirstOrderLag(time_constant=0.01), TorqueLimit(limit=1.0)]
    signal = 2 * np.random.default_rng(0).normal(size=(3, 50, 2))
    expected = signal
    for stage in stages:
        expected = Chain([stage]).bind(3, 2, 0.001).apply(expected)
    np.testing.assert_array_equal(Chain(stages).bind(3, 2, 0.001).apply(signal), expected)


def test_an_empty_chain_changes_nothing() -> None:
    line = Chain().bind(2, 1, 0.001)
    signal = np.ones((2, 3, 1))
    np.testing.assert_array_equal(line.apply(signal), signal)
    line.reset()
    line.reset(np.array([True, False]))
    assert (line.nominal(), line.units(), line.read()) == ({}, {}, {})


def test_parameters_are_named_by_gap_stage_and_field() -> None:
    chain = Chain([Latency(delay=0.02), Latency(name="bus", delay=0.01), Quantization(step=0.001)])
    nominal = {DELAY: 0.02, "execution.bus.delay": 0.01, "perception.encoder.step": 0.001}
    assert chain.nominal() == nominal
    assert chain.units() == {DELAY: "s", "execution.bus.delay": "s", "perception.encoder.step": "rad"}
    line = chain.bind(2, 1, 0.001)
    assert (line.nominal(), line.units()) == (chain.nominal(), chain.units())
    assert isinstance(line, ParameterStore)
    signal = np.arange(50.0)[None, :, None].repeat(2, 0)
    assert line.apply(signal)[0, 40, 0] == pytest.approx(10.0)  # both delays: 30 substeps


def test_two_stages_need_two_names() -> None:
    with pytest.raises(ParameterError, match="two stages are named 'latency'"):
        Chain([Latency(), Latency()])
    Chain([Latency(), Latency(name="other")])


def test_only_feedback_stages_ask_for_single_substeps() -> None:
    assert Chain([Latency(), Friction()]).feedback
    assert not Chain([Latency(), FilteredDifference()]).feedback


def test_a_chain_prints_its_stages() -> None:
    assert repr(Chain([DeadZone(width=0.1)])) == (
        "Chain(DeadZone(name='dead_zone', gap='execution', channels=None, native=False, width=0.1, asymmetry=0.0, "
        "shape='offset'))"
    )


# From a recipe


def test_a_recipe_names_the_stages() -> None:
    config = [
        {"stage": "latency", "delay": 0.02, "longest": 0.1},
        {"stage": "dead_zone", "name": "gap", "shape": "hard"},
    ]
    chain = Chain.from_config(config)
    assert chain.stages == (Latency(delay=0.02, longest=0.1), DeadZone(name="gap", shape="hard"))
    assert config[0]["stage"] == "latency"  # left as it was
    assert Chain.from_config([]).stages == ()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stage": "latnecy"}, "no stage named 'latnecy'; did you mean latency"),
        ({"delay": 0.1}, "no stage named ''; available: backlash"),
        ({"stage": "latency", "delai": 0.1}, "stage latency has no argument 'delai'; did you mean delay"),
        (
            {"stage": "latency", "delay": -0.1},
            r"execution.latency.delay: expected a number in \[0, inf\] s, found -0.1",
        ),
        ({"stage": "latency", "delay": "short"}, "found 'short'"),
        ({"stage": "latency", "delay": 0.3}, "delay line"),
        ({"stage": "dead_zone", "shape": "soft"}, "offset or hard"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Sim2RealError, match=message) as error:
        Chain.from_config([config])
    assert isinstance(error.value, RecipeError | ParameterError)


# At work


def test_values_are_written_and_read() -> None:
    line = Chain([Latency(delay=0.02), DeadZone()]).bind(3, 2, 0.001)
    assert line.read()[DELAY].tolist() == [0.02] * 3
    line.write({DELAY: np.array([0.0, 0.01, 0.02]), WIDTH: np.arange(6.0).reshape(3, 2)})
    assert line.read()[DELAY].tolist() == [0.0, 0.01, 0.02]
    assert line.read()[WIDTH].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert line.nominal() == {DELAY: 0.02, WIDTH: 0.0, "execution.dead_zone.asymmetry": 0.0}  # captured once


def test_a_mask_selects_rows() -> None:
    line, mask = Chain([DeadZone(width=0.1)]).bind(3, 2, 0.001), np.array([True, False, True])
    line.write({WIDTH: np.array([1.0, 2.0, 3.0])}, mask)
    assert line.read()[WIDTH].tolist() == [1.0, 0.1, 3.0]
    line.write({WIDTH: np.array([[4.0, 5.0]] * 3)}, ~mask)
    assert line.read()[WIDTH].tolist() == [[1, 1], [4, 5], [3, 3]]


@pytest.mark.parametrize("like", [np.zeros(0), torch.zeros(0, dtype=torch.float64)], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"execution.latency.delaz": np.zeros(3)}, "did you mean execution.latency.delay"),
        ({DELAY: np.zeros(4)}, r"expected \(3,\) or \(3, 2\) values, found shape \(4,\)"),
        ({DELAY: np.zeros((3, 3))}, r"found shape \(3, 3\)"),
        ({DELAY: np.array([0.0, -0.1, 0.0])}, r"expected values in \[0, inf\] s"),
        ({DELAY: np.array([0.0, np.nan, 0.0])}, "outside or NaN"),
    ],
)
def test_a_bad_write_is_refused_and_writes_nothing(like: Any, values: dict[str, Any], message: str) -> None:
    line = Chain([Latency(), DeadZone()]).bind(3, 2, 0.001, like)
    with pytest.raises(ParameterError, match=message):
        line.write({WIDTH: np.ones(3), **values})
    assert all(not bool(v.any()) for v in line.read().values())


@pytest.mark.parametrize("like", [np.zeros(0), torch.zeros(0, dtype=torch.float64)], ids=["numpy", "torch"])
def test_what_is_written_and_read_is_nobody_elses(like: Any) -> None:
    line = Chain([DeadZone()]).bind(2, 1, 0.001, like)
    own = torch.tensor([0.1, 0.2], dtype=torch.float64) if isinstance(like, torch.Tensor) else np.array([0.1, 0.2])
    for value in (np.array([0.1, 0.2]), own):
        line.write({WIDTH: value})
        value[:] = 9.0
        line.read()[WIDTH][:] = 9.0
        assert line.read()[WIDTH].tolist() == [0.1, 0.2]


def test_a_parameter_may_change_while_the_chain_is_at_work() -> None:
    line = Chain([Latency()]).bind(1, 1, 0.001)
    signal = np.arange(1.0, 41.0)[None, :, None]
    line.apply(signal[:, :20])
    line.write({DELAY: np.array([0.005])})
    np.testing.assert_array_equal(line.apply(signal[:, 20:])[0, :, 0], np.arange(16.0, 36.0))


def test_a_stage_that_widens_the_signal_is_followed_by_a_wider_stage() -> None:
    chain = Chain([Quantization(step=0.01), FilteredDifference(), Latency(gap="perception", delay=0.002)])
    assert chain.bind(2, 3, 0.001).apply(np.ones((2, 5, 3))).shape == (2, 5, 6)


def test_a_row_put_back_to_rest_keeps_its_parameters() -> None:
    line = Chain([Latency(), FirstOrderLag()]).bind(2, 1, 0.001)
    line.write({DELAY: np.array([0.002, 0.003]), "execution.lag.time_constant": np.array([0.01, 0.02])})
    first = line.apply(np.ones((2, 10, 1)))
    line.reset(np.array([True, False]))
    again = line.apply(np.ones((2, 10, 1)))
    np.testing.assert_array_equal(again[0], first[0])
    assert (again[1] > first[1]).all()
    line.reset()
    np.testing.assert_array_equal(line.apply(np.ones((2, 10, 1))), first)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", [(2, 30, 7), (50, 30, 3), (2, 0, 3), (2, 3), (1, 30, 3), (2, 30, 1)])
def test_signals_of_another_shape_are_refused(shape: tuple[int, ...], fused: bool) -> None:
    line = Chain([FirstOrderLag(time_constant=0.1)]).bind(2, 3, 0.001, fused=fused)
    with pytest.raises(ParameterError, match=r"expected a signal \(2, substeps, 3\)"):
        line.apply(np.ones(shape))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Chain([Latency()]).bind(0, 1, 0.001), "at least one signal"),
        (lambda: Chain([Latency()]).bind(1, 1, -0.001), "a substep above 0 s"),
        (lambda: Chain([Latency()]).bind(2, 1, 0.001).reset(np.array([1, 0])), r"\(2,\) booleans"),
        (lambda: Chain([Latency()]).bind(2, 1, 0.001).seed([1]), "a seed for each of 2"),
        (lambda: DeadZone(channels=(0, 0)), "each once"),
        (lambda: DeadZone(channels=(True,)), "each once"),
        (lambda: DeadZone(channels=0), "a list of columns"),  # type: ignore[arg-type]
        (lambda: DeadZone(name="a.b"), "letters, digits"),
        (lambda: Gain(to="banana"), "one of V, A"),
    ],
)
def test_what_makes_no_chain_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ParameterError, match=why):
        make()


def test_a_chain_is_made_of_a_list() -> None:
    for config in ({"stage": "latency"}, "latency", ["latency"]):
        with pytest.raises(RecipeError, match="expected a list of stages"):
            Chain.from_config(config)  # type: ignore[arg-type]


def test_a_chain_does_not_go_on_from_another_substep() -> None:
    saved = Chain([FirstOrderLag()]).bind(1, 1, 0.001).save()
    with pytest.raises(ParameterError, match=r"substeps of 0.001 s, this chain does at 0.002 s"):
        Chain([FirstOrderLag()]).bind(1, 1, 0.002).load(saved)
    with pytest.raises(ParameterError, match=r"state\.0\.0 of shape \(1, 2\), found \(1, 1\)"):
        Chain([FirstOrderLag()]).bind(1, 2, 0.001).load(saved)


def test_a_stage_of_ones_own_is_found_by_its_kind() -> None:
    @register_stage
    @dataclass(frozen=True, kw_only=True)
    class Square(Stage):
        kind: ClassVar[str] = "square_of_the_test"
        FIELDS: ClassVar[dict[str, Field]] = {"factor": Field("1")}
        factor: float = 1.0

        def kernel(self, xp: Any) -> Any:
            return lambda u, s, p, e, m: (p[0] * u * u, s)

    line = Chain.from_config([{"stage": "square_of_the_test", "factor": 2.0}]).bind(1, 1, 0.1)
    assert line.apply(np.full((1, 1, 1), 3.0)).item() == 18.0
    with pytest.raises(ParameterError, match="there is a stage 'latency' already"):

        @register_stage
        @dataclass(frozen=True, kw_only=True)
        class Another(Square):
            kind: ClassVar[str] = "latency"

    with pytest.raises(ParameterError, match="found uniforms"):

        class Typo(Square):
            DRAWS = ("uniforms",)  # type: ignore[assignment]

    del STAGES["square_of_the_test"]
