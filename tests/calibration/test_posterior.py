"""A posterior in which parameters are set by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim2real.calibration import Posterior, diagnose
from sim2real.errors import ParameterError
from sim2real.randomization import ParameterSet

MASS, GAIN = "dynamics.payload.mass", "execution.gain.gain"


@pytest.fixture
def posterior() -> Posterior:
    prior = ParameterSet.parse({MASS: "=U(0, 2)", GAIN: "=U(0, 2)"}, {MASS: "kg", GAIN: "1"})
    samples = np.random.default_rng(0).multivariate_normal([0.7, 1.0], [[0.01, 0.009], [0.009, 0.01]], 300)
    return Posterior(prior, np.array([0.7, 1.0]), samples, np.array([0.002]), {"settled": True})


def test_do_sets_one_parameter_and_leaves_the_others(posterior: Posterior, tmp_path: Path) -> None:
    changed = posterior.do({MASS: 0.1})
    assert changed.values == {MASS: 0.1, GAIN: 1.0}
    assert (changed.sample(np.random.default_rng(0), 50)[MASS] == 0.1).all()
    np.testing.assert_array_equal(changed.samples[:, 1], posterior.samples[:, 1])
    assert posterior.values[MASS] == 0.7
    assert changed.interval(MASS) == (0.1, 0.1)
    changed.save(tmp_path)
    again = Posterior.load(tmp_path)
    assert again.prior[MASS].notation == "=0.1"
    assert again == changed


def test_do_refuses_an_unknown_name(posterior: Posterior) -> None:
    with pytest.raises(ParameterError, match=r"no parameter named 'dynamics.payload.mas'; did you mean"):
        posterior.do({"dynamics.payload.mas": 1.0})


def test_a_parameter_without_spread_is_correlated_with_nothing(posterior: Posterior) -> None:
    """The standard deviation of two hundred times 0.1 is not quite zero."""
    with np.errstate(all="raise"):
        assert not any(f.code == "only-together" for f in diagnose(posterior.do({MASS: 0.1})))


def test_a_name_that_is_not_there_is_one_clear_error(posterior: Posterior) -> None:
    for ask in (posterior.interval, posterior.marginal):
        with pytest.raises(ParameterError, match=r"no parameter.*payload\.mass"):
            ask("dynamics.payload.mas")
    with pytest.raises(ParameterError, match="between 0 and 1, found 90"):
        posterior.interval(MASS, 90)
    assert posterior.marginal(MASS).names == (MASS,)
