"""What identification returns: a joint distribution over named parameters, which is the next randomization."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sim2real.errors import ModelError, ParameterError
from sim2real.randomization import Fixed, JointEmpirical, Parameter, ParameterSet, TruncatedNormal
from sim2real.randomization.parameters import Array

FORMAT_VERSION = 2
# What a posterior is kept in: numbers that people read, and draws.
TEXT, DRAWS = "posterior.json", "samples.safetensors"


class Posterior(JointEmpirical):
    """A `JointEmpirical` with what it was found from: the prior, the best values, the noise, the evidence.

    Args:
        prior: the parameters with the distributions that they had, as distributions of the values themselves.
        best: (P,) the most probable values.
        samples: (S, P) draws from the posterior.
        noise: (D,) robust standard deviation of what the fit leaves of each joint position [rad or m].
        evidence: what `identify` has to say about the fit, for reports.
    """

    def __init__(
        self,
        prior: ParameterSet,
        best: Array,
        samples: Array,
        noise: Array,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        if samples.ndim != 2 or samples.shape[1] != len(prior) or not np.isfinite(samples).all():
            raise ModelError(f"a posterior of {len(prior)} parameters needs finite samples (S, {len(prior)})")
        if best.shape != (len(prior),) or not np.isfinite(best).all():
            raise ModelError(f"a posterior of {len(prior)} parameters needs as many finite values, found {best}")
        self.prior, self.best, self.noise = prior, best, noise
        self.evidence = dict(evidence or {})
        low, high = prior.bounds
        marginals = []
        for i, p in enumerate(prior):
            sigma = float(samples[:, i].std(ddof=1))
            if np.ptp(samples[:, i]) > 0:
                distribution = TruncatedNormal(float(best[i]), sigma, float(low[i]), float(high[i]))
                marginals.append(Parameter(name=p.name, unit=p.unit, distribution=distribution))
            else:
                marginals.append(Parameter(name=p.name, unit=p.unit, distribution=Fixed(float(best[i]))))
        super().__init__(tuple(marginals), samples)

    @property
    def values(self) -> dict[str, float]:
        """The most probable values: name -> number."""
        return {name: float(v) for name, v in zip(self.names, self.best, strict=True)}

    @property
    def mean(self) -> Array:
        return self.best

    def precision(self) -> Array:
        """(P, P) inverse covariance: this posterior as the normal prior of the next identification."""
        return shrunk_precision(self.covariance)

    def _column(self, name: str) -> int:
        return self.names.index(self[name].name)

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Return the central interval of one parameter at the given probability.

        Raises:
            ParameterError: no such parameter, or a level that is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ParameterError(f"an interval has a probability between 0 and 1, found {level}: 0.9 for 90 %")
        column = self.samples[:, self._column(name)]
        low, high = np.quantile(column, [0.5 - level / 2, 0.5 + level / 2])
        return float(low), float(high)

    def marginal(self, names: Sequence[str]) -> Posterior:
        """Return what is known of some of the parameters, the others left out."""
        names = [names] if isinstance(names, str) else list(names)
        columns = [self._column(name) for name in names]
        prior = ParameterSet(tuple(self.prior[name] for name in names))
        return Posterior(prior, self.best[columns], self.samples[:, columns], self.noise, self.evidence)

    def do(self, values: Mapping[str, float]) -> Posterior:
        """Return the posterior with some parameters set by hand and all others as they were.

        An intervention (Pearl 2009), not a condition: what was known of the others through those that are set stays.

        Raises:
            ParameterError: a name that is not among the parameters.
        """
        prior, best, samples = list(self.prior), self.best.copy(), self.samples.copy()
        for name, value in values.items():
            i = self._column(name)
            prior[i] = replace(prior[i], distribution=Fixed(float(value)), operation="set")
            best[i], samples[:, i] = value, value
        return Posterior(ParameterSet(tuple(prior)), best, samples, self.noise, self.evidence)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Return `{name: {mean, interval90, unit, prior}}`, as metrics.json holds it."""
        return {
            p.name: {
                "mean": float(self.best[i]),
                "interval90": list(self.interval(p.name)),
                "unit": p.unit,
                "prior": self.prior[p.name].notation,
            }
            for i, p in enumerate(self)
        }

    def save(self, directory: str | Path) -> None:
        """Write `posterior.json` and `samples.safetensors` into a directory, which is made."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        document = {
            "format_version": FORMAT_VERSION,
            "prior": self.prior.notations(),
            "units": {p.name: p.unit for p in self.prior},
            "best": self.best.tolist(),
            "noise": self.noise.tolist(),
            "evidence": self.evidence,
        }
        save_file({"samples": np.ascontiguousarray(self.samples)}, directory / DRAWS)
        (directory / TEXT).write_text(json.dumps(document, indent=1, ensure_ascii=False))

    @classmethod
    def load(cls, directory: str | Path) -> Posterior:
        """Read what `save` wrote.

        Raises:
            ModelError: there is no posterior, or one that is damaged or of another format.
        """
        path, draws = Path(directory) / TEXT, Path(directory) / DRAWS
        if not path.is_file():
            raise ModelError(f"no posterior in {directory}: expected {TEXT}; run `sim2real identify` first")
        try:
            document = json.loads(path.read_text())
        except ValueError as error:
            raise ModelError(f"{path} is not valid JSON ({error}); identify again") from None
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise ModelError(f"{path} is a posterior of format {version}, this version reads {FORMAT_VERSION}")
        try:
            return cls(
                ParameterSet.parse(document["prior"], document["units"]),
                np.array(document["best"], float),
                load_file(draws)["samples"],
                np.array(document["noise"], float),
                document["evidence"],
            )
        except FileNotFoundError:
            raise ModelError(f"{path} lies there without its {DRAWS}; identify again") from None
        except KeyError as error:
            raise ModelError(f"{path} or {DRAWS} is damaged: it has no {error}; identify again") from None
        except SafetensorError as error:
            raise ModelError(f"{draws} is damaged: {error}; identify again") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is damaged: {error}; identify again") from None


def shrunk_precision(covariance: Array) -> Array:
    """Invert a covariance (P, P) whose correlations are shrunk by 5 % first.

    So a finite sample of nearly collinear parameters is not read as certainty.
    """
    scale = np.maximum(np.sqrt(np.diag(covariance)), 1e-12)
    correlation = 0.95 * covariance / np.outer(scale, scale) + 0.05 * np.eye(len(scale))
    return np.asarray(np.linalg.inv(correlation) / np.outer(scale, scale))
