"""`run`: the stages of a recipe in order, in a run directory, each once."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sim2real import __version__, comparison, control_stages, controllers, finetuning, stages
from sim2real.calibration import Adaptation, Posterior, diagnose
from sim2real.calibration.export import to_mjcf, to_yaml
from sim2real.errors import NonFiniteError, ParameterError, RecipeError, RobotError, did_you_mean
from sim2real.estimation import Observation
from sim2real.evaluation import Predictor, start_covariance
from sim2real.plant import repeated
from sim2real.preparation import Setup, prepare
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.recipe import ControlSection, Recipe
from sim2real.run_directory import RunDirectory, read_json, write_json
from sim2real.twin import Twin
from sim2real.world_model import EnsembleDynamics, storage

STAGES = ("identify", "observe", "pretrain", "finetune", "learn", "adapt", "evaluate", "control", "report")
# Draws from the posterior that the recordings are replayed with, for the bands of the report.
REPLAYED = 60
# Windows of the replay are no longer than this [s], so that something can be seen in them.
REPLAYED_SECONDS = 2.0


@dataclass(frozen=True)
class Watcher:
    """Who is told how a run goes.

    Attributes:
        begin: a stage begins: its name.
        say: a line within it.
        end: a stage has ended: its name, the seconds it took, whether it had finished before.
    """

    begin: Callable[[str], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    end: Callable[[str, float, bool], None] = lambda _a, _b, _c: None


def run(
    recipe: Recipe,
    output: Path = Path("runs"),
    *,
    until: str = "report",
    again: bool = False,
    watcher: Watcher | None = None,
) -> Path:
    """Run a recipe, or go on with a run of the same recipe that was interrupted.

    Args:
        recipe: what to do.
        output: folder of runs; this one goes to `<name>-<fingerprint of the recipe>`.
        until: the last stage to run, one of `STAGES`.
        again: start over where the run had finished.
        watcher: told about progress.

    Returns:
        the run directory, with recipe.yaml, metrics.json, report.html, identification.html, posterior/ and model/.

    Raises:
        Sim2RealError: with one line that says what to mend; what had finished stays.
    """
    if until not in STAGES:
        raise RecipeError(f"no stage named {until!r}{did_you_mean(until, STAGES)}")
    watch = watcher or Watcher()
    set_threads()
    setup = prepare(recipe)
    # what is wrong with these is said before anything takes time, and leaves nothing behind
    saved = finetuning.saved_model(setup)
    if STAGES.index(until) >= STAGES.index("control"):
        controllers.require(setup)
    directory = RunDirectory(output / f"{recipe.name}-{recipe.digest()}")
    (directory.path / "recipe.yaml").write_text(recipe.to_yaml())
    work = [name for name in STAGES[: STAGES.index(until) + 1] if name != "report"]
    if again and all(directory.finished(name) for name in work):
        directory.clear()
    of_model = "" if saved is None else f", model {storage.digest(saved)}"
    directory.belongs_to(setup.recordings.fingerprint() + of_model)
    StagedRun(directory, setup, watch).to(until)
    return directory.path


def set_threads() -> None:
    """Keep torch on one thread; MuJoCo steps on all of them.

    The networks are small: a second thread gains about a quarter on an idle machine, and on a busy one each product
    waits for the slower of the two, which made training forty times slower.
    """
    torch.set_num_threads(1)


class StagedRun:
    """The stages of one run. Each reads what it needs from the directory, so that resuming changes nothing.

    Args:
        directory: of the run.
        setup: what to run.
        watch: told about progress.
        examine: whether to look for what the posterior cannot know, and to write the page of the identification.
    """

    def __init__(self, directory: RunDirectory, setup: Setup, watch: Watcher, examine: bool = True) -> None:
        self.directory, self.setup, self.watch, self.examine = directory, setup, watch, examine
        self.path = directory.path

    def to(self, until: str) -> None:
        """Run the stages up to one of them."""
        for name in STAGES[: STAGES.index(until) + 1]:
            before = self.directory.finished(name)
            self.watch.begin(name)
            # the report is cheap and depends on everything: always anew
            if name == "report":
                self.report()
                self.watch.end(name, 0.0, False)
                continue
            document = self.directory.stage(name, getattr(self, name))
            if name == "identify" and self.examine:
                self.identification_report()
            if name == "finetune" and self.examine:
                self.finetuning_report()
            self.watch.end(name, float(document["seconds"]), before)

    # what finished stages left behind

    @property
    def posterior(self) -> Posterior:
        return Posterior.load(self.path / "posterior")

    def model(self, which: str) -> EnsembleDynamics:
        return EnsembleDynamics.load(self.path / "model" / which)

    def result(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.path / "stages" / f"{stage}.json")["result"]
        return found

    def observation(self) -> tuple[Observation, np.ndarray]:
        found = self.result("observe")
        return Observation(found["span"], found["bandwidth"]), np.array(found["covariance"])

    # the stages

    def identify(self) -> dict[str, Any]:
        posterior = stages.identify_stage(self.setup, self.watch.say, self.examine)
        if self.examine:
            pushed = stages.outside_stage(self.setup, posterior, self.watch.say)
            posterior.evidence["outside_forces"] = [force.to_json() for force in pushed]
        posterior.save(self.path / "posterior")
        if self.examine:
            self._save_replay(posterior)
        (self.path / "posterior" / "parameters.yaml").write_text(to_yaml(posterior))
        return {
            "robot_file": self._write_robot(posterior),
            "parameters": posterior.summary(),
            "evidence": posterior.evidence,
            "noise": posterior.noise.tolist(),
            "findings": [finding.to_json() for finding in diagnose(posterior)],
        }

    def _save_replay(self, posterior: Posterior) -> None:
        """Keep what a report shows of the recordings; where the replay diverges there is nothing to show."""
        from sim2real.report.replay_evidence import replay_evidence

        setup, path = self.setup, self.path / "posterior" / "replay.npz"
        path.unlink(missing_ok=True)
        window, rng = min(posterior.evidence["window"], REPLAYED_SECONDS), setup.rng("evidence")
        self.watch.say("replaying the recordings")
        with contextlib.suppress(NonFiniteError):
            found = replay_evidence(
                setup.plant, setup.recordings.train, posterior, setup.channels, window, REPLAYED, rng
            )
            np.savez_compressed(path, **found)

    def _write_robot(self, posterior: Posterior) -> str:
        """Write the robot file with the identified values; return its place, or why there is none."""
        try:
            text = to_mjcf(self.setup.plant, posterior.values)
        except (RobotError, ParameterError) as error:
            return f"not written: {error}"
        (self.path / "posterior" / "robot.xml").write_text(text)
        return "posterior/robot.xml"

    def observe(self) -> dict[str, Any]:
        setup, values = self.setup, self.posterior.values
        observation, errors = stages.choose_observer(setup, values)
        recordings = [*setup.recordings.train, *setup.recordings.validation]
        covariance = start_covariance(setup.plant, values, observation, recordings, setup.channels)
        return {
            "span": observation.span,
            "bandwidth": observation.bandwidth,
            "validation_nrmse": errors,
            "covariance": covariance.tolist(),
        }

    def pretrain(self) -> dict[str, Any]:
        setup, posterior, saved = self.setup, self.posterior, finetuning.saved_model(self.setup)
        _, covariance = self.observation()
        if saved is None:
            draws = posterior.sample(setup.rng("members"), setup.recipe.model.members)
            saved = stages.pretrain(setup, setup.plant, draws, covariance, self.watch.say)
        saved.save(self.path / "model" / "pretrained")
        return {"saved": setup.recipe.finetune.model}

    def finetune(self) -> dict[str, Any]:
        setup, posterior, before = self.setup, self.posterior, self.model("pretrained")
        observation, _ = self.observation()
        found = finetuning.finetune_stage(setup, before, posterior, observation, self.watch.say)
        found.model.save(self.path / "model" / "finetuned")
        if self.examine:
            shown = finetuning.show(setup, before, found.tuned, posterior.values, observation)
            shown.save(self.path / "model" / "finetuning.npz")
        return found.to_json()

    def learn(self) -> dict[str, Any]:
        learned = stages.learn_stage(self.setup, self.posterior, self.watch.say)
        for name, model in learned.items():
            model.save(self.path / "model" / name)
        told: dict[str, Any] = {"models": list(learned)}
        if self.setup.recipe.learn is not None and self.setup.recipe.learn.distill:
            simulator = comparison.identified_simulator(self.setup, self.posterior, *self.observation())
            found = stages.distill_stage(self.setup, simulator, learned, self.watch.say)
            found.model.save(self.path / "model" / "distilled_model")
            told["distilled"] = found.to_json()
        return told

    def adapt(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for shift in self.setup.recordings.shift:
            name = shift.name
            adaptation = stages.adapt_stage(self.setup, self.posterior, shift, self.watch.say)
            adaptation.posterior.save(self.path / "posterior" / "adapted" / name)
            found[name] = {
                **adaptation.to_json(),
                "seconds": shift.adapt_to.duration,
                "parameters": adaptation.posterior.summary(),
            }
            self._adapt_model(name, adaptation)
        return found

    def _adapt_model(self, name: str, adaptation: Adaptation) -> None:
        """Train the world model anew on simulations of the robot as it is now."""
        _, covariance = self.observation()
        setup = self.setup
        draws = adaptation.posterior.sample(setup.rng("members"), setup.recipe.model.members)
        self.watch.say(f"training the world model for {name}")
        model = stages.pretrain(setup, setup.plant, draws, covariance, self.watch.say)
        model.save(self.path / "model" / "adapted" / name)

    def evaluate(self) -> dict[str, Any]:
        setup = self.setup
        observation, covariance = self.observation()
        posterior, learned = self.posterior, self.result("learn")
        compared = comparison.predictors(
            setup,
            posterior,
            self.model("pretrained"),
            self.model("finetuned"),
            {name: self.model(name) for name in learned["models"]},
            self.model("distilled_model") if "distilled" in learned else None,
            observation,
            covariance,
        )
        adapted: dict[str, dict[str, Predictor]] = {}
        for shift in setup.recordings.shift:
            now = Posterior.load(self.path / "posterior" / "adapted" / shift.name)
            simulator = comparison.identified_simulator(setup, now, observation, covariance)
            model = stages.model_predictor(setup, self.model(f"adapted/{shift.name}"), now.values, observation)
            for episode in shift.recordings:
                adapted[episode.name] = {"adapted_simulator": simulator, "adapted_model": model}
        scores = comparison.evaluate_stage(setup, compared, adapted, self.watch.say)
        return {
            "scores": scores,
            "attribution": comparison.attribute(setup, posterior.values, observation, self.watch.say),
        }

    def control(self) -> dict[str, Any]:
        setup = self.setup
        if setup.twin is None:
            return {"not_applicable": "recordings cannot answer a controller; give the recipe a `twin:` to try it on"}
        observation, covariance = self.observation()
        posterior, twin = self.posterior, setup.twin
        nominal = {name: setup.plant.nominal()[name] for name in posterior.names}
        true = {name: twin.values[name] for name in dict.fromkeys([*posterior.names, *twin.truth])}
        rivals = {"before": (setup.plant, nominal), "oracle": (twin.plant, true)}
        contestants = {
            "fallback": controllers.Controller(None, setup.plant, posterior.values),
            "after": self.controller(),
        }
        for name, (plant, values) in rivals.items():
            self.watch.say(f"training the world model of {name}")
            members = repeated(values, setup.recipe.model.members)
            model = stages.pretrain(setup, plant, members, covariance, self.watch.say)
            model.save(self.path / "model" / name)
            contestants[name] = controllers.Controller(self.model(name), plant, values)
        contestants = {
            name: control_stages.calm_of(setup, controller, observation, posterior.noise, self.watch.say)
            for name, controller in contestants.items()
        }
        tried = control_stages.control_stage(setup, contestants, observation, self.watch.say)
        runs = {name: t.run for name, t in tried.items()}
        control_stages.save_runs(runs, self.path / "closed_loop.npz")
        in_time = None
        if setup.recipe.control.loop is not None:
            in_time = control_stages.real_time_stage(
                setup, contestants["after"], observation, self.path / "loop", self.watch.say
            )
        task = controllers.task_of(setup)
        each = {name: control_stages.returns(r, task) for name, r in runs.items()}
        return {
            "measure": setup.recipe.control.measure,
            "returns": {name: float(v.mean()) for name, v in each.items()},
            "each": {name: v.tolist() for name, v in each.items()},
            "milliseconds": {name: float(np.median(r.milliseconds)) for name, r in runs.items()},
            "safety": {name: t.interventions for name, t in tried.items() if t.interventions is not None},
            "backed_off": {name: t.backed_off for name, t in tried.items() if t.backed_off is not None},
            "loop": in_time,
        }

    def rehearsed_return(self, control: ControlSection) -> float:
        """Return how close to its goal the controller of a recipe keeps the identified simulator, 0 to 1."""
        setup, posterior = self.setup, self.posterior
        period = setup.recipe.model.timestep
        rehearsed = replace(
            setup,
            recipe=setup.recipe.model_copy(update={"control": control}),
            twin=Twin(setup.plant, posterior.values, period=period),
        )
        controller, observation = self.controller(), self.observation()[0]
        controller = control_stages.calm_of(rehearsed, controller, observation, posterior.noise, self.watch.say)
        tried = control_stages.control_stage(rehearsed, {"after": controller}, observation, self.watch.say)
        return float(control_stages.returns(tried["after"].run, controllers.task_of(rehearsed)).mean())

    def controller(self) -> controllers.Controller:
        """Return what this run's world model controls with."""
        return controllers.Controller(self.model("finetuned"), self.setup.plant, self.posterior.values)

    def identification_report(self) -> None:
        from sim2real.report import write_identification_report

        write_identification_report(self.path)

    def finetuning_report(self) -> None:
        from sim2real.report import write_finetuning_report

        write_finetuning_report(self.path)

    def report(self) -> None:
        from sim2real.report import write_report

        metrics = self.metrics()
        write_json(self.path / "metrics.json", metrics)
        write_report(self.path)

    def metrics(self) -> dict[str, Any]:
        """Assemble metrics.json from what the stages said."""
        setup, identified = self.setup, self.result("identify")
        control = self.result("control")
        seconds = {s: read_json(self.path / "stages" / f"{s}.json")["seconds"] for s in STAGES[:-1]}
        nominal = setup.plant.nominal()
        parameters = {n: {**p, "nominal": nominal[n]} for n, p in identified["parameters"].items()}
        if setup.twin is not None:
            for name, value in setup.twin.values.items():
                if name in parameters:
                    parameters[name]["truth"] = value
        return {
            "name": setup.recipe.name,
            "seed": setup.recipe.seed,
            "robot": setup.recipe.robot,
            "joints": list(setup.plant.model.joint_names),
            "recorded_seconds": {
                "train": sum(e.duration for e in setup.recordings.train),
                "validation": sum(e.duration for e in setup.recordings.validation),
                "test": sum(e.duration for e in setup.recordings.test),
            },
            **self.result("evaluate"),
            "parameters": parameters,
            "identification": identified["evidence"]
            | {"noise": identified["noise"], "findings": identified.get("findings", [])},
            "observer": {k: v for k, v in self.result("observe").items() if k != "covariance"},
            "finetune": self.result("finetune"),
            "learn": self.result("learn"),
            "adaptation": self.result("adapt"),
            "closed_loop": control.get("returns"),
            "closed_loop_each": control.get("each"),
            "closed_loop_measure": control.get("measure"),
            "backed_off": control.get("backed_off"),
            "closed_loop_not_applicable": control.get("not_applicable"),
            "planning_milliseconds": control.get("milliseconds"),
            "control_loop": control.get("loop"),
            "seconds": seconds,
            "environment": {
                "sim2real": __version__,
                "python": platform.python_version(),
                "machine": f"{platform.machine()}, {available_threads()} cores, no GPU"
                if not torch.cuda.is_available()
                else f"{platform.machine()}, {torch.cuda.get_device_name()}",
                **{p: importlib.metadata.version(p) for p in ("mujoco", "torch", "numpy", "scipy")},
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        }
