"""Recipes: one YAML file that says what the pipeline does. Validated once, here; overridden by `section.key=value`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sim2real.errors import RecipeError, did_you_mean

# Keys whose values are paths.
PATHS = ("robot", "logs", "log_schema", "finetune.model", "compare.policy", "sweep.objective")
# Of these, those that may name what is packaged, or code.
NAMES = ("robot", "compare.policy", "sweep.objective")
# Those of `tune_dynamics`, named here so that reading a recipe does not load torch.
TuningMethod = Literal["anchored", "full", "low_rank", "delta", "last_layer", "auto"]


class Section(BaseModel):
    """A part of a recipe: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


S = TypeVar("S", bound=Section)
# What a sweep can score; of those of `sim2real.objectives` and `sim2real.robustness`, so that neither is loaded.
OBJECTIVES = ("identify", "finetune", "control", "transfer", "policy", "robustness")


def _wrong_objective(name: str) -> str:
    """Return what was expected where a sweep has no such objective; nothing where it has."""
    if name in OBJECTIVES or ":" in name:
        return ""
    return f"expected {', '.join(OBJECTIVES)} or a function such as package.module:name{did_you_mean(name, OBJECTIVES)}"


class ShiftSection(Section):
    """A changed robot: adapt to the first seconds of a recording, score what comes after them in `recordings`."""

    adapt_to: str
    seconds: float = Field(gt=0)
    recordings: list[str] = Field(min_length=1)


class SplitSection(Section):
    """Which recordings are for what. Choices are made on train and validation only."""

    train: list[str]
    validation: list[str]
    test: list[str] = []
    shift: list[ShiftSection] = []


class RecordingSection(Section):
    """How a twin is recorded."""

    seconds: float = Field(default=20.0, gt=2)
    validation_share: float = Field(default=0.25, gt=0, lt=0.9)
    test_seconds: float = Field(default=10.0, gt=2)
    hold: float = Field(default=0.02, gt=0)
    frequencies: tuple[float, ...] = (0.35, 0.8, 1.7)


class TwinSection(Section):
    """A simulated robot to discover; `parameters` and stages are its truth, which the pipeline is not told."""

    parameters: dict[str, float] = {}
    execution: list[dict[str, Any]] | None = None
    perception: list[dict[str, Any]] = []
    timestep: float | None = Field(default=None, gt=0)
    period: float = Field(default=0.01, gt=0)
    record: RecordingSection = RecordingSection()


class IdentifySection(Section):
    """Settings of the identification."""

    method: Literal["least_squares", "ensemble", "npe"] = "least_squares"
    own: list[str] = []
    window: float | str = 0.5  # "auto", or seconds; .inf: whole recordings
    stride: float | None = Field(default=None, gt=0)
    block: float = Field(default=1.0, gt=0)
    tries: int = Field(default=32, ge=0)
    starts: int = Field(default=3, ge=1)
    rounds: int = Field(default=6, ge=1)
    samples: int = Field(default=400, ge=10)
    discrepancy: float = Field(default=0.0, ge=0, le=1, strict=True)

    @field_validator("window")
    @classmethod
    def _a_length(cls, value: float | str) -> float | str:
        if value != "auto" and (isinstance(value, str | bool) or not value > 0):
            raise ValueError("expected auto, .inf or a positive number of seconds")
        return value


class ObserverSection(Section):
    """The state estimate that predictions start from; the bandwidth is chosen on validation recordings."""

    span: float = Field(default=0.1, gt=0)
    bandwidths: tuple[float, ...] = (20.0, 30.0, 45.0, 70.0)


class ExcitationSection(Section):
    """Where simulated training data lie: half width of positions, spread of velocities; the share as recorded."""

    position: float = Field(default=3.141592653589793, gt=0)
    velocity: float = Field(default=5.0, gt=0)
    recorded: float = Field(default=0.0, ge=0, le=1)


class ModelSection(Section):
    """The world model and its pre-training."""

    timestep: float = Field(default=0.02, gt=0)
    history: int = Field(default=4, ge=1)
    members: int = Field(default=5, ge=2)
    hidden: tuple[int, ...] = (64, 64)
    stretches: int = Field(default=200, ge=10)
    steps: int = Field(default=25, ge=2)
    iterations: int = Field(default=2000, ge=1)
    rollout_iterations: int = Field(default=0, ge=0)
    rate: float = Field(default=0.01, gt=0)
    excitation: ExcitationSection = ExcitationSection()


class FinetuneSection(Section):
    """Dynamics-only fine-tuning of a model that is trained first, or of a saved one; see `finetune_dynamics`."""

    model: str | None = None
    method: TuningMethod = "anchored"
    iterations: int = Field(default=200, ge=1)
    steps: int = Field(default=15, ge=2)
    anchor: float = Field(default=0.05, ge=0)
    replay_weight: float = Field(default=0.3, ge=0)
    rate: float = Field(default=0.001, gt=0)


class LearnSection(Section):
    """Models that learn from the recordings themselves, alone and beside simulations; see `fit_to_recordings`.

    `windows` are simulated for each member to rehearse on; `practice` are the episodes that a distilled model sees of
    its teacher, beside the recordings.
    """

    timestep: float = Field(default=0.01, gt=0)
    windows: int = Field(default=2000, ge=10)
    practice: int = Field(default=60, ge=1)
    history: int = Field(default=6, ge=1)
    lookback: int = Field(default=8, ge=1)
    latents: int = Field(default=4, ge=0)
    members: int = Field(default=5, ge=2)
    hidden: tuple[int, ...] = (128, 128)
    iterations: int = Field(default=3000, ge=1)
    batch: int = Field(default=64, ge=1)
    rate: float = Field(default=0.003, gt=0)
    rehearse: bool = True
    trust: float = Field(default=0.3, gt=0)
    smoothness: float = Field(default=0.0, ge=0)
    limits: float = Field(default=0.0, ge=0)
    distill: bool = False


class DaggerSection(Section):
    """Rounds of control, recording and fine-tuning; see `dagger`.

    `anew` identifies the simulator and learns the model anew in each round, as `learn:` has it, on the recordings of
    before and those of all rounds, in place of tuning. On a twin, `scratch` has a model of the rounds' recordings alone
    scored beside that of the round.
    """

    env: str | None = None
    names: list[str] | None = None
    rounds: int = Field(default=3, ge=1)
    seconds: float = Field(default=10.0, gt=0)
    episode: float = Field(default=2.5, gt=0)
    shares: tuple[float, ...] = (0.5, 0.25, 0.0)
    segment: float = Field(default=0.5, gt=0)
    clock: Literal["simulated", "wall"] = "simulated"
    method: TuningMethod = "anchored"
    iterations: int = Field(default=300, ge=1)
    anchor: float = Field(default=0.05, ge=0)
    rate: float = Field(default=0.001, gt=0)
    patience: int = Field(default=2, ge=1)
    anew: bool = False
    scratch: bool = False


class SafetySection(Section):
    """Hard limits of the driven joints, in their order; see `Limits`. Efforts are those of `control.limit`."""

    position: list[tuple[float, float]] = []
    velocity: list[float] = []
    rate: list[float] = []
    free: float = Field(default=10.0, gt=0)
    margin: float = Field(default=0.2, ge=0, lt=1)


class LoopSection(Section):
    """One robot in real time, the planner in a process of its own; see `ControlLoop` and `PlannerProcess`.

    `deadline` is that of its plans [ms], two thirds of the period where it is not given.
    """

    seconds: float = Field(default=6.0, gt=0)
    deadline: float | None = Field(default=None, gt=0)
    patience: int = Field(default=3, ge=0)


class BackOffSection(Section):
    """How a planner backs off where its model is unsure or wrong, calibrated on the simulator; see `BackOff`."""

    false_alarms: float = Field(default=0.002, gt=0, lt=1)
    ahead: float = Field(default=0.2, gt=0)
    seconds: float = Field(default=60.0, gt=0)


class ControlSection(Section):
    """The controller, and how it is tried on the twin; what is not given is the planner's own default.

    `cost` is a list of costs by name, see `named_cost`; without it the first joint is to stand upright, at `target`.
    """

    limit: float = Field(gt=0)
    cost: list[dict[str, Any]] | None = None
    target: float = 3.141592653589793
    planner: Literal["mppi", "icem", "predictive_sampling", "gradient"] = "mppi"
    horizon: float = Field(default=1.0, gt=0)
    candidates: int | None = Field(default=None, ge=10)
    iterations: int | None = Field(default=None, ge=1)
    noise: float | None = Field(default=None, gt=0)
    temperature: float = Field(default=0.1, gt=0)
    risk: Literal["turns", "mean", "worst", "cvar"] | None = None
    deadline: float | None = Field(default=None, gt=0)
    safety: SafetySection | None = None
    loop: LoopSection | None = None
    back_off: BackOffSection | None = None
    fallback: Literal["damping", "hold", "gravity"] = "damping"
    fallback_gain: float = Field(default=0.2, ge=0)
    fallback_stiffness: float = Field(default=2.0, ge=0)
    seconds: float = Field(default=6.0, gt=0)
    starts: int = Field(default=10, ge=1)
    spread: float = Field(default=0.5, ge=0)

    @property
    def measure(self) -> str:
        """What a run is scored by, in words, from 0 to 1."""
        only_upright = all(term.get("cost") == "upright" for term in self.cost or ())
        return "uprightness" if only_upright else "closeness to the goal"


class SweepSection(Section):
    """A search over keys of the recipe with Ray Tune; see `sweep`.

    Attributes:
        keys: dotted key -> range, in the notation of `search_space`.
        trials: how many values are tried, besides the recipe as it is.
        objective: what is scored: the name of an `Objective`, or a function of one's own as `module:function`.
        better: of a function of one's own, whether less or more is.
        scheduler: asynchronous successive halving, population-based training, or every trial to its end.
        shares: of the work after which a trial is scored, growing; the last is 1. Each objective has its own.
        concurrent: trials at once.
        cpus: cores of a trial; an equal share of this machine's where it is not said.
        gpus: of a trial; half of one is allowed.
        retries: how often a trial begins again whose process died, or its machine.
        storage: where Ray keeps its state, a folder or the URI of an object store; the sweep's own folder if not said.
        confirm: other seeds that the best recipe and the one that was given are scored with in the end.
    """

    keys: dict[str, str]
    trials: int = Field(default=8, ge=1)
    objective: str = "identify"
    better: Literal["less", "more"] = "less"
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    shares: tuple[float, ...] | None = None
    concurrent: int = Field(default=2, ge=1)
    cpus: int | None = Field(default=None, ge=1)
    gpus: float = Field(default=0.0, ge=0)
    retries: int = Field(default=2, ge=0)
    storage: str | None = None
    confirm: int = Field(default=0, ge=0)

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str) -> str:
        wrong = _wrong_objective(value)
        if wrong:
            raise ValueError(wrong)
        return value

    @field_validator("shares")
    @classmethod
    def _growing(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or value[-1] != 1 or min(value) <= 0 or list(value) != sorted(set(value))):
            raise ValueError("expected growing shares of the work, above 0, the last of them 1")
        return value

    def identity(self) -> dict[str, Any]:
        """Return what makes it another sweep where it changes: not how much is tried, nor with what machines."""
        return self.model_dump(include={"objective", "better", "scheduler", "shares"})


class CompareSection(Section):
    """How simulators are compared: draws of the parameters, each from a start of its own; see `compare_simulators`.

    `policy` is a function of states (draws, positions and velocities) and time [s] that returns commands (draws,
    actuators), `file.py:name` or `module:name`; without it, commands that excite.
    """

    policy: str | None = None
    draws: int = Field(default=16, ge=1)
    seconds: float = Field(default=2.0, ge=0.1)
    period: float = Field(default=0.01, gt=0)
    spread: float = Field(default=0.5, ge=0)


class NamedRecipe(Section):
    """A recipe whose runs are told apart by a fingerprint.

    Attributes:
        APART: keys that no result of a run depends on.
    """

    APART: ClassVar[frozenset[str]] = frozenset({"sweep"})

    def digest(self) -> str:
        """Return a short fingerprint of everything that the results of a run depend on."""
        text = json.dumps(self.model_dump(mode="json", exclude=set(self.APART)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """Return the resolved recipe, which can be read again."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120
        )


class Recipe(NamedRecipe):
    """What `sim2real run` reads. Exactly one of `logs` and `twin` says where the recordings come from."""

    APART: ClassVar[frozenset[str]] = frozenset({"sweep", "dagger", "simulators", "compare"})

    name: str
    seed: int = 0
    robot: str
    timestep: float = Field(default=0.001, gt=0)
    positions: list[str] = ["position"]
    execution: list[dict[str, Any]] = []
    parameters: dict[str, str]
    logs: str | None = None
    log_schema: str | dict[str, Any] | None = None
    split: SplitSection | None = None
    twin: TwinSection | None = None
    identify: IdentifySection = IdentifySection()
    observer: ObserverSection = ObserverSection()
    model: ModelSection = ModelSection()
    finetune: FinetuneSection = FinetuneSection()
    learn: LearnSection | None = None
    dagger: DaggerSection = DaggerSection()
    control: ControlSection
    sweep: SweepSection | None = None
    simulators: list[Literal["mujoco", "genesis"]] = []
    compare: CompareSection = CompareSection()

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if (self.twin is None) == (self.split is None):
            raise ValueError("needs either `twin:` (a simulated robot) or `logs:`, `log_schema:` and `split:`")
        if self.split is not None and (self.logs is None or self.log_schema is None):
            raise ValueError("`split:` needs `logs:` (a folder of recordings) and `log_schema:` (what its columns are)")
        return self

    @field_validator("simulators")
    @classmethod
    def _two(cls, value: list[str]) -> list[str]:
        if value and (len(value) != 2 or value[0] == value[1]):
            raise ValueError(f"expected two simulators, simulators=[mujoco,genesis]; found [{', '.join(value)}]")
        return value

    @model_validator(mode="after")
    def _whole_steps(self) -> Recipe:
        if self.learn is not None and self.learn.rehearse:
            substeps = self.learn.timestep / self.timestep
            if abs(substeps - round(substeps)) > 1e-6 * substeps:
                raise ValueError(
                    f"learn.timestep has to be a whole number of the simulator's steps of {self.timestep:g} s to be "
                    f"rehearsed with, found {self.learn.timestep:g} s; or set learn.rehearse: false"
                )
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, whose values are YAML.

    Paths in the recipe (`robot`, `logs`, `log_schema`, `finetune.model`) are relative to the recipe; those in overrides
    to the present folder.

    Raises:
        RecipeError: the file does not exist or is not YAML, or a key is unknown, missing or of the wrong type.
    """
    return parse_recipe(apply_overrides(read_document(Path(path)), overrides), str(path))


def asked_for(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, bool]:
    """Return the `sweep.objective` of a recipe, "" where it says none, and whether it is not about the whole loop.

    Raises:
        RecipeError: the file does not exist, is not a mapping in YAML, or its objective is none.
    """
    document = apply_overrides(read_document(Path(path)), overrides)
    section = document.get("sweep")
    objective = str(section.get("objective", "")) if isinstance(section, dict) else ""
    wrong = _wrong_objective(objective) if objective else ""
    if wrong:
        raise RecipeError(f"{path}: sweep.objective: {wrong}, found {objective!r}")
    return objective, "control" not in document and ("env" in document or "settings" in document)


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe as plain data with `section.key=value` put into it.

    Raises:
        RecipeError: an override is none.
    """
    for override in overrides:
        _override(document, override)
    return document


def read_document(file: Path) -> dict[str, Any]:
    """Read a recipe file as plain data, its paths made absolute.

    Raises:
        RecipeError: the file does not exist, or is not a mapping in YAML.
    """
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise RecipeError(f"no recipe at {file}{did_you_mean(file.name, near)}")
    try:
        document = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        found = type(document).__name__
        raise RecipeError(f"{file} must be a mapping of keys such as name, robot, parameters; found {found}")
    for key in PATHS:
        *outer, last = key.split(".")
        section = document
        for part in outer:
            section = section.get(part) if isinstance(section, dict) else None  # type: ignore[assignment]
        if isinstance(section, dict) and isinstance(section.get(last), str):
            section[last] = _relative_to(section[last], file.resolve().parent, is_robot=key in NAMES)
    control = document.get("control")
    for term in (control.get("cost") or []) if isinstance(control, dict) else []:
        own = term.get("cost") if isinstance(term, dict) else None
        if isinstance(own, str) and ".py:" in own:
            term["cost"] = _relative_to(own, file.resolve().parent, is_robot=True)
    return document


def parse_recipe(document: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe; `where` names it in errors.

    Raises:
        RecipeError: with every problem.
    """
    return validated(Recipe, document, where)


def validated(kind: type[S], document: Mapping[str, Any], where: str) -> S:
    """Return a document as a section of some kind; `where` names it in errors.

    Raises:
        RecipeError: with every problem.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        problems = [explain(dict(e), kind) for e in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(problems)) from None


def explain(error: dict[str, Any], root: type[Section]) -> str:
    """Return what is wrong with a document for `root`, from an error of pydantic."""
    path = [str(p) for p in error["loc"]]
    dotted = ".".join(path)
    if error["type"] == "extra_forbidden":
        section: Any = root
        for part in path[:-1]:
            section = _section_of(section, part)
        known = section.model_fields if section is not None else {}
        return f"unknown key {dotted!r}{did_you_mean(path[-1], known)}"
    if error["type"] == "missing":
        return f"key {dotted!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    found = "" if not dotted else f", found {error['input']!r}"
    return f"{dotted + ': ' if dotted else ''}{message[:1].lower()}{message[1:]}{found}"


def _section_of(section: Any, part: str) -> Any:
    """The section class that a key of a section holds, or None."""
    if section is None or part not in getattr(section, "model_fields", {}):
        return section if part.isdigit() else None
    annotation = section.model_fields[part].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)


def _relative_to(value: str, folder: Path, is_robot: bool) -> str:
    if is_robot and (not Path(value).suffix or (":" in value and ".py:" not in value)):
        return value  # the name of a packaged robot, or of a function in a module
    return str((folder / Path(value).expanduser()).resolve())


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"an override is section.key=value, found {override!r}")
    _put(document, key, read_value(key, text))


def read_value(key: str, text: str) -> Any:
    """Read the value of a dotted key from YAML; a path is relative to the present folder, `*U(0.4, 3)` needs no quotes.

    Raises:
        RecipeError: it is not YAML.
    """
    try:
        # to YAML a leading * is an alias; to a recipe it scales the nominal value
        value = text.strip() if text.strip().startswith("*") else yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{key}: cannot read the value {text!r} as YAML") from None
    if key in PATHS and isinstance(value, str):
        return _relative_to(value, Path.cwd(), is_robot=key in NAMES)
    return value


def with_overrides(recipe: S, values: Mapping[str, Any]) -> S:
    """Return the recipe with other values of some dotted keys, checked as a whole.

    Raises:
        RecipeError: a key is unknown, or its value is of the wrong type.
    """
    document = recipe.model_dump(mode="json")
    for key, value in values.items():
        _put(document, key, value)
    return validated(type(recipe), document, f"recipe {getattr(recipe, 'name', '')}")


def value_of(recipe: Section, key: str) -> Any:
    """Return what a recipe holds at a dotted key, as plain YAML data.

    Raises:
        RecipeError: it has no such key.
    """
    place: Any = recipe.model_dump(mode="json")
    reached = ""
    for part in _split_key(key, place):
        if not isinstance(place, dict):
            section = reached.removesuffix(".")
            raise RecipeError(f"the recipe has no key {key!r}: {section} is not a section, but {place!r}")
        if part not in place:
            near = did_you_mean(reached + part, [reached + k for k in place])
            raise RecipeError(f"the recipe has no key {key!r}{near}")
        place, reached = place[part], f"{reached}{part}."
    return place


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    place: Any = document
    *sections, last = _split_key(key, document)
    for part in sections:
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
        if not isinstance(place, dict):
            raise RecipeError(f"{key}: {part!r} is not a section")
    place[last] = value


def _split_key(key: str, document: Mapping[str, Any]) -> list[str]:
    """Split a dotted key; names of parameters have dots of their own: `parameters.execution.latency.delay`."""
    head, _, rest = key.partition(".")
    if head == "parameters" and rest:
        return [head, rest]
    if head == "twin" and rest.startswith("parameters."):
        return [head, "parameters", rest.removeprefix("parameters.")]
    return key.split(".")
