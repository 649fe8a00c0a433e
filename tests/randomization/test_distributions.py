"""Distributions: their notation, their densities against quadrature and scipy, and their moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from sim2real.errors import ParameterError
from sim2real.randomization import (
    Distribution,
    Fixed,
    LogNormal,
    LogUniform,
    Normal,
    TruncatedNormal,
    Uniform,
    parse_distribution,
)

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
positive = st.floats(1e-6, 1e6)
# far enough apart that a shift does not round them together
ordered = st.tuples(numbers, numbers).map(sorted).filter(lambda x: x[1] - x[0] > 1e-6)
ordered_positive = st.tuples(positive, positive).map(sorted).filter(lambda x: x[1] > 1.001 * x[0])
any_distribution: st.SearchStrategy[Distribution] = st.one_of(
    st.builds(Fixed, numbers),
    ordered.map(lambda x: Uniform(*x)),
    ordered_positive.map(lambda x: LogUniform(*x)),
    st.builds(Normal, numbers, positive),
    st.builds(LogNormal, positive, positive),
    st.tuples(numbers, positive, ordered).map(lambda x: TruncatedNormal(x[0], x[1], *x[2])),
)

# Each beside the scipy distribution that it must be, spelled out here on its own.
REFERENCES = [
    (Uniform(-0.5, 2.0), stats.uniform(-0.5, 2.5)),
    (LogUniform(0.01, 3.0), stats.loguniform(0.01, 3.0)),
    (Normal(0.3, 0.2), stats.norm(0.3, 0.2)),
    (TruncatedNormal(0.3, 0.5, 0.0, 1.0), stats.truncnorm(-0.6, 1.4, 0.3, 0.5)),
    (LogNormal(0.7, 0.4), stats.lognorm(0.4, scale=0.7)),
]
continuous = pytest.mark.parametrize(
    ("distribution", "reference"), REFERENCES, ids=lambda x: str(x) if isinstance(x, Distribution) else ""
)


@settings(deadline=None)
@given(any_distribution)
def test_the_notation_parses_back_to_the_same_value(distribution: Distribution) -> None:
    assert parse_distribution(str(distribution)) == distribution


@pytest.mark.parametrize(
    ("distribution", "text"),
    [
        (Fixed(0.5), "0.5"),
        (Fixed(2), "2"),
        (Uniform(0.8, 1.2), "U(0.8, 1.2)"),
        (Uniform(np.float64(0.8), 1), "U(0.8, 1)"),
        (LogUniform(1e-3, 0.1), "LogU(0.001, 0.1)"),
        (Normal(0, 0.01), "N(0, 0.01)"),
        (TruncatedNormal(1, 0.1, 0.5, 1.5), "TN(1, 0.1, 0.5, 1.5)"),
        (LogNormal(0.2, 0.5), "LogN(0.2, 0.5)"),
    ],
)
def test_the_notation_reads_like_prose(distribution: Distribution, text: str) -> None:
    assert str(distribution) == text
    assert parse_distribution(f"  {text} ") == distribution


def test_a_normal_cut_on_one_side_only_parses_back() -> None:
    half = TruncatedNormal(0.1, 0.2, 0.0, float("inf"))
    assert parse_distribution(str(half)) == half
    assert half.support == (0.0, float("inf"))


def test_a_number_that_needs_all_its_digits_keeps_them() -> None:
    narrow = Uniform(1.0, np.nextafter(1.0, 2.0))
    assert parse_distribution(str(narrow)) == narrow


@continuous
def test_the_density_integrates_to_one_and_is_scipys(distribution: Distribution, reference: object) -> None:
    low, high = np.clip(distribution.support, -5.0, 20.0)
    total, _ = integrate.quad(lambda x: float(np.exp(distribution.log_prob(x))), low, high, limit=200)
    assert total == pytest.approx(1.0, abs=1e-7)
    x = np.linspace(-1, 3, 41).reshape(-1, 1)
    assert distribution.log_prob(x).shape == x.shape
    np.testing.assert_allclose(distribution.log_prob(x), reference.logpdf(x))


@continuous
def test_nothing_lies_outside_the_support(distribution: Distribution, reference: object) -> None:
    low, high = distribution.support
    outside = [x for x in (low - 0.1, high + 0.1) if np.isfinite(x)]
    assert (distribution.log_prob(outside) == -np.inf).all()
    draws = distribution.sample(np.random.default_rng(1), 1000)
    assert ((draws >= low) & (draws <= high)).all()


@continuous
def test_draws_have_the_moments_and_the_shape(distribution: Distribution, reference: object) -> None:
    n = 20_000
    draws = distribution.sample(np.random.default_rng(0), n)
    assert stats.kstest(draws, reference.cdf).pvalue > 1e-3
    assert distribution.mean == pytest.approx(float(reference.mean()))
    assert distribution.std == pytest.approx(float(reference.std()))
    assert draws.mean() == pytest.approx(distribution.mean, abs=4 * distribution.std / np.sqrt(n))
    assert draws.std() == pytest.approx(distribution.std, rel=0.05)
    assert distribution.sample(np.random.default_rng(0), (2, 3)).shape == (2, 3)
    assert distribution.sample(np.random.default_rng(0)).shape == ()


@continuous
def test_the_same_generator_gives_the_same_bytes(distribution: Distribution, reference: object) -> None:
    first, second = (distribution.sample(np.random.default_rng(7), 50) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@continuous
def test_the_interval_holds_its_probability(distribution: Distribution, reference: object) -> None:
    low, high = distribution.interval(0.9)
    assert reference.cdf([low, high]) == pytest.approx([0.05, 0.95])


@settings(deadline=None)
@given(any_distribution, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_an_affine_map_moves_the_moments_and_the_support(d: Distribution, scale: float, shift: float) -> None:
    if isinstance(d, LogUniform | LogNormal):
        shift = 0.0
    moved = d.affine(scale, shift)
    assert type(moved) is type(d)
    if (isinstance(d, LogNormal) and d.sigma > 10) or isinstance(d, TruncatedNormal):
        return  # moments that overflow; those of a cut normal have a test of their own
    span = abs(scale * d.mean) + scale * d.std + abs(shift)
    assert moved.mean == pytest.approx(scale * d.mean + shift, abs=1e-6 * span)
    assert moved.std == pytest.approx(scale * d.std, abs=1e-6 * span)
    assert moved.support == pytest.approx([scale * x + shift for x in d.support], abs=1e-6 * span)


@settings(deadline=None)
@given(st.floats(0.1, 10.0), st.floats(-5.0, 5.0), st.floats(-0.2, 1.2))
def test_an_affine_map_changes_the_density_by_its_scale(scale: float, shift: float, x: float) -> None:
    for d in (Uniform(-0.5, 2.0), Normal(0.3, 0.2), TruncatedNormal(0.3, 0.5, -0.3, 1.3)):
        expected = d.log_prob(x) - np.log(scale)
        assert d.affine(scale, shift).log_prob(scale * x + shift) == pytest.approx(expected, abs=1e-6)
    for d in (LogUniform(0.001, 3.0), LogNormal(0.7, 0.4)):
        expected = d.log_prob(abs(x) + 0.01) - np.log(scale)
        assert d.affine(scale, 0.0).log_prob(scale * (abs(x) + 0.01)) == pytest.approx(expected, abs=1e-6)


def test_a_fixed_number_is_certain() -> None:
    fixed = Fixed(0.3)
    assert fixed.sample(np.random.default_rng(0), 3).tolist() == [0.3, 0.3, 0.3]
    assert fixed.log_prob([0.3, 0.4]).tolist() == [0.0, -np.inf]
    assert (fixed.mean, fixed.std, fixed.support, fixed.interval(0.5)) == (0.3, 0.0, (0.3, 0.3), (0.3, 0.3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uniform(1, 1), r"low < high, found U\(1, 1\)"),
        (lambda: Uniform(float("nan"), 1), "low < high"),
        (lambda: LogUniform(0, 1), "0 < low < high"),
        (lambda: Normal(0, 0), "positive one, found 0"),
        (lambda: TruncatedNormal(0, 1, 2, 1), r"found TN\(0, 1, 2, 1\)"),
        (lambda: LogNormal(-1, 1), "both positive"),
        (lambda: LogUniform(1, 2).affine(1, 0.5), "cannot be added to a nominal value"),
        (lambda: LogNormal(1, 2).affine(1, 0.5), "cannot be added to a nominal value"),
        (lambda: parse_distribution("Uni(0, 1)"), "no distribution named 'Uni'"),
        (lambda: parse_distribution("logU(0.1, 1)"), "did you mean LogU"),
        (lambda: parse_distribution("U(0)"), r"U takes 2 numbers \(low, high\)"),
        (lambda: parse_distribution("U(0, one)"), "cannot read"),
        (lambda: parse_distribution("about 3"), "cannot read"),
        (lambda: parse_distribution("U(0, inf)"), "must be finite"),
        (lambda: parse_distribution("TN(0, inf, 0, 1)"), "must be finite"),
        (lambda: parse_distribution("TN(0, 1, 0, nan)"), "low < high"),
        (lambda: parse_distribution("nan"), "must be finite"),
        (lambda: parse_distribution("inf"), "must be finite"),
    ],
)
def test_what_makes_no_sense_is_refused(build: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build()
