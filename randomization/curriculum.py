"""Curricula: how what is drawn changes from episode to episode, as a training gets on."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from sim2real.errors import ParameterError, did_you_mean
from sim2real.randomization.addressing import BoundParameters
from sim2real.randomization.joint import JointEmpirical, JointNormal
from sim2real.randomization.parameters import Array, ParameterSet
from sim2real.run_directory import write_json

Performance = Literal["return", "length"]
FORMAT = 1


class Curriculum(ABC):
    """What the draws of episodes depend on, beside chance; environments tell it how their episodes went.

    The `when` of a `Randomization`: `Randomization(parameters, curriculum)`, or a curriculum by itself where it has
    parameters of its own. One curriculum may serve many environments of one process.

    Attributes:
        of: what is told of an episode that has ended: its `return`, or its `length` in control steps.
    """

    kind: ClassVar[str]
    of: Performance = "return"

    @abstractmethod
    def attach(self, bound: BoundParameters) -> None:
        """Learn which parameters are drawn, and what their nominal values are; called by each environment."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> tuple[Array, int]:
        """Return the uniform numbers (D,) that an episode's values are made from, and a token to tell of it by."""

    @abstractmethod
    def ended(self, token: int, performance: float) -> None:
        """Take note of how an episode went that `draw` gave a token for."""

    @abstractmethod
    def describe(self) -> str:
        """Return it in a few words."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Return what `parse_curriculum` reads: how it was set up, not how far it has got."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return how far it has got."""

    @abstractmethod
    def from_json(self, document: Mapping[str, Any]) -> None:
        """Go on where another one of the same setup was.

        Raises:
            ParameterError: it was of another setup.
        """

    def save(self, file: str | Path) -> None:
        """Write how far it has got, whole or not at all."""
        write_json(Path(file), {"format": FORMAT, "kind": self.kind, **self.to_json()})

    def load(self, file: str | Path) -> None:
        """Go on where the one was that was saved.

        Raises:
            ParameterError: it was another one, or the file is none of a curriculum.
        """
        try:
            document = json.loads(Path(file).read_text())
            if document["format"] != FORMAT or document["kind"] != self.kind:
                raise ParameterError(
                    f"{file} is of kind {document['kind']}, format {document['format']}; "
                    f"expected {self.kind}, format {FORMAT}"
                )
            self.from_json(document)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ParameterError(f"{file} is no saved curriculum: {error}") from error


class Automatic(Curriculum):
    """Bounds that widen while the performance at them holds: automatic domain randomization (Akkaya et al. 2019).

    Draws start at the nominal values. With probability `at_bound` an episode has one parameter at one of its two
    present bounds and all others anywhere within theirs; the performances of such episodes are collected for that
    bound. Once there are `episodes` of them the bound moves outwards where their mean is at least `hold`, inwards where
    it is below `lose`, and they are forgotten. No bound goes beyond the distribution that the parameter has, nor into
    the last thousandth of one without an end.

    Bounds live where draws do, in probability: of `LogU(0.1, 10)` a step covers as much below 1 as above.

    Args:
        hold: mean performance at which a bound moves outwards.
        lose: mean performance below which it moves back; `hold` or less.
        episodes: at a bound, before it moves.
        step: how far it moves, as a share of the distribution's probability.
        at_bound: probability that an episode is at a bound.
        of: `return` or `length` of episodes.

    Attributes:
        low, high: (D,) present bounds, as probabilities.
        moves: bounds moved so far.

    Raises:
        ParameterError: numbers that make no sense.

    Example:
        >>> from sim2real.randomization import ParameterSet, Randomization
        >>> from sim2real.randomization.vector import make_vec
        >>> curriculum = Automatic(hold=150, lose=50)
        >>> masses = ParameterSet.parse({"dynamics.pole.mass": "*LogU(0.2, 5)"})
        >>> envs = make_vec("cartpole", 4, parameters=[Randomization(masses, curriculum)], max_episode_steps=200)
        >>> curriculum.bounds()
        {'dynamics.pole.mass': (1.0, 1.0)}
    """

    kind = "automatic"

    def __init__(
        self,
        hold: float,
        lose: float,
        *,
        episodes: int = 20,
        step: float = 0.05,
        at_bound: float = 0.5,
        of: Performance = "return",
    ) -> None:
        numbers = isinstance(hold, int | float) and isinstance(lose, int | float)
        if not (numbers and np.isfinite(hold) and np.isfinite(lose) and lose <= hold):
            raise ParameterError(f"a bound moves back below lose, which is at most hold; found {lose!r} and {hold!r}")
        if not isinstance(episodes, int) or episodes < 1 or not 0 < step <= 1 or not 0 < at_bound <= 1:
            raise ParameterError(
                "expected one episode or more at a bound, a step and a probability above 0 and up to 1; found "
                f"episodes={episodes!r}, step={step!r}, at_bound={at_bound!r}"
            )
        if of not in ("return", "length"):
            raise ParameterError(f"the performance of an episode is its return or its length, found {of!r}")
        self.hold, self.lose, self.episodes, self.step = float(hold), float(lose), episodes, float(step)
        self.at_bound, self.of = float(at_bound), of
        self.low: Array = np.zeros(0)
        self.high: Array = np.zeros(0)
        self.moves = 0
        self._at: list[deque[float]] = []
        self._names: tuple[str, ...] = ()
        self._draws: ParameterSet | None = None
        self._kept: Mapping[str, Any] | None = None

    def attach(self, bound: BoundParameters) -> None:
        if isinstance(bound.parameters, JointNormal | JointEmpirical):
            raise ParameterError("bounds widen one parameter at a time: parameters that are drawn together have none")
        if self._draws is not None:
            if bound.parameters.names != self._names:
                raise ParameterError(
                    f"a curriculum has one set of parameters; found {', '.join(bound.parameters.names)}"
                    f" beside {', '.join(self._names)}"
                )
            return
        self._names, self._draws = bound.parameters.names, bound.parameters
        self.low = np.array([_probability(bound, name) for name in self._names])
        self.high = self.low.copy()
        # the ends of an unbounded distribution lie at infinity
        low, high = bound.parameters.bounds
        self._least = np.where(np.isfinite(low), 0.0, 1e-3)
        self._most = np.where(np.isfinite(high), 1.0, 1.0 - 1e-3)
        self._at = [deque(maxlen=self.episodes) for _ in range(2 * len(self._names))]
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self.from_json(kept)

    def draw(self, rng: np.random.Generator) -> tuple[Array, int]:
        # as many numbers whatever comes of them, so that the next episode does not depend on it
        u, where, which = rng.random(len(self.low)), rng.random(), int(rng.integers(2 * len(self.low)))
        out = self.low + u * (self.high - self.low)
        if where >= self.at_bound:
            return out, -1
        parameter, upper = divmod(which, 2)
        out[parameter] = self.high[parameter] if upper else self.low[parameter]
        return out, which

    def ended(self, token: int, performance: float) -> None:
        if token < 0:
            return
        self._at[token].append(float(performance))
        if len(self._at[token]) < self.episodes:
            return
        mean = float(np.mean(self._at[token]))
        self._at[token].clear()
        parameter, upper = divmod(token, 2)
        outwards = 1.0 if mean >= self.hold else -1.0 if mean < self.lose else 0.0
        if not outwards:
            return
        if upper:
            moved = np.clip(self.high[parameter] + outwards * self.step, self.low[parameter], self._most[parameter])
            self.moves += bool(moved != self.high[parameter])
            self.high[parameter] = moved
        else:
            moved = np.clip(self.low[parameter] - outwards * self.step, self._least[parameter], self.high[parameter])
            self.moves += bool(moved != self.low[parameter])
            self.low[parameter] = moved

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Return the present bounds of each draw: name -> lowest and highest value, factor or offset.

        Raises:
            ParameterError: no environment has the curriculum yet.
        """
        if self._draws is None:
            raise ParameterError("no environment has the curriculum yet: make one with Randomization(parameters, it)")
        ends = [self._draws.quantile(u[None]) for u in (self.low, self.high)]
        # to ten digits: a probability is not a value, and back again
        return {name: tuple(float(f"{end[name][0]:.10g}") for end in ends) for name in self._names}  # type: ignore[misc]

    @property
    def width(self) -> float:
        """How much of the distributions lies between the bounds, on average over parameters [1]."""
        return float((self.high - self.low).mean()) if len(self.low) else 0.0

    def describe(self) -> str:
        return f"automatic hold={self.hold:g} lose={self.lose:g}"

    def to_config(self) -> dict[str, Any]:
        own = ("hold", "lose", "episodes", "step", "at_bound", "of")
        return {self.kind: {name: getattr(self, name) for name in own}}

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self._names),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "moves": self.moves,
            "at": [list(collected) for collected in self._at],
        }

    def from_json(self, document: Mapping[str, Any]) -> None:
        if self._draws is None:
            self._kept = dict(document)
            return
        if tuple(document["names"]) != self._names:
            raise ParameterError(
                f"what was saved is of {', '.join(document['names']) or 'nothing'}, this curriculum of "
                f"{', '.join(self._names)}"
            )
        self.low, self.high = np.array(document["low"], float), np.array(document["high"], float)
        self.moves = int(document["moves"])
        self._at = [deque(collected, maxlen=self.episodes) for collected in document["at"]]


class Annealing(Curriculum):
    """From one randomization to another: an ever larger share of episodes has draws of the second one.

    From a wide guess to the posterior of an identification, for instance: a policy learns on the wide one first.

    Args:
        start: what episodes are drawn from at first.
        end: of the same names, and at the end alone: a `Posterior` is one.
        over: episodes after which that is so; 0 to leave it to `share`, which a training loop moves.

    Attributes:
        share: of the episodes that are drawn from the end now, from 0 to 1.

    Raises:
        ParameterError: other names, or a number of episodes that is none.
    """

    kind = "annealing"

    def __init__(self, start: ParameterSet, end: ParameterSet, over: int = 0) -> None:
        if set(start.names) != set(end.names):
            raise ParameterError(
                f"both have the same parameters: expected {', '.join(start.names)}, found {', '.join(end.names)}"
            )
        if not isinstance(over, int) or over < 0:
            raise ParameterError(f"over is a number of episodes, found {over!r}")
        self.start, self.end, self.over, self.share = start, end, over, 0.0
        self.parameters = _Either(start, end)

    def attach(self, bound: BoundParameters) -> None:
        if bound.parameters is not self.parameters:
            raise ParameterError("an annealing brings its own parameters: give it alone, without a Randomization")

    def draw(self, rng: np.random.Generator) -> tuple[Array, int]:
        u = rng.random(self.parameters.dimension)
        # the first number says which of both
        u[0] = float(u[0] < self.share)
        if self.over:
            self.share = min(self.share + 1.0 / self.over, 1.0)
        return u, -1

    def ended(self, token: int, performance: float) -> None:
        """It goes by the number of episodes."""

    def describe(self) -> str:
        return f"annealing over={self.over}"

    def to_config(self) -> dict[str, Any]:
        raise ParameterError("an annealing is made in Python, of two sets of parameters; it has no notation")

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.start.names), "share": self.share}

    def from_json(self, document: Mapping[str, Any]) -> None:
        if document["names"] != list(self.start.names):
            raise ParameterError(f"what was saved is of {', '.join(document['names'])}")
        self.share = float(document["share"])


class _Either(ParameterSet):
    """Draws of one set where the first uniform number is 0, and of another where it is 1."""

    def __init__(self, one: ParameterSet, other: ParameterSet) -> None:
        super().__init__(one.parameters)
        self._both = one, other

    @property
    def dimension(self) -> int:
        return 1 + max(each.dimension for each in self._both)

    def quantile(self, u: Array) -> dict[str, Array]:
        drawn = [each.quantile(u[:, 1 : 1 + each.dimension]) for each in self._both]
        return {name: np.where(u[:, 0] < 1.0, drawn[0][name], drawn[1][name]) for name in self.names}


def _probability(bound: BoundParameters, name: str) -> float:
    """Return the probability below the draw that leaves a parameter at its nominal value."""
    p = next(p for p in bound.parameters if p.name == name)
    nominal = bound.nominal(name)
    wanted = 1.0 if p.operation == "scale" else 0.0 if p.operation == "add" else nominal
    low, high = p.distribution.support
    if not low <= wanted <= high:
        raise ParameterError(
            f"{name}: bounds widen from the nominal value, {wanted:g} as it is drawn, which {p.notation} does not hold"
        )
    ends = np.array([0.0, 1.0])
    for _ in range(60):
        middle = ends.mean()
        ends[int(p.distribution.quantile(middle) >= wanted)] = middle
    return float(ends.mean())


def parse_curriculum(config: Mapping[str, Any]) -> Automatic:
    """Build a curriculum from `{automatic: {hold: 150, lose: 50}}`.

    Raises:
        ParameterError: an unknown argument, or one that is missing.
    """
    arguments = config[Automatic.kind]
    known = ("hold", "lose", "episodes", "step", "at_bound", "of")
    if not isinstance(arguments, Mapping):
        raise ParameterError(f"automatic: expected its arguments by name, found {arguments!r}")
    for key in arguments:
        if key not in known:
            raise ParameterError(f"automatic has no argument {key!r}{did_you_mean(str(key), known)}")
    for key in ("hold", "lose"):
        if not isinstance(arguments.get(key), int | float):
            raise ParameterError(
                f"automatic needs {key}, the performance of an episode at which a bound moves "
                f"{'outwards' if key == 'hold' else 'back'}"
            )
    return Automatic(**arguments)
