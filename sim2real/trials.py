"""The trials of a sweep, on Ray Tune. Loaded only when a sweep runs, for importing Ray takes seconds."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from sim2real.errors import Sim2RealError
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.recipe import Recipe, value_of, with_overrides
from sim2real.search_space import SearchRange, shown

# Share of every training recording that a trial learns from at each rung of the halving.
RUNGS = (1 / 3, 1.0)
Space = Mapping[str, SearchRange]
Say = Callable[[str], None]
# (recipe, shares of the recordings) -> (share, score) one after the other
Scorer = Callable[[Recipe, Sequence[float]], Iterator[tuple[float, float]]]


@dataclass(frozen=True)
class Row:
    """A trial: what it tried and what came of it.

    Attributes:
        values: of the swept keys.
        status: "finished", "stopped early" or "failed: why".
        score: the last that it reported; nan where it failed.
        share: of the training recordings that the score was learned from.
        seconds: that it took.
    """

    values: dict[str, Any]
    status: str
    score: float
    share: float
    seconds: float

    @classmethod
    def of(cls, space: Space, config: Mapping[str, Any], metrics: Mapping[str, Any] | None, error: Any) -> Row:
        """Read a trial from what Ray says of it."""
        metrics, values = metrics or {}, _values(space, config)
        share, seconds = float(metrics.get("share", 0.0)), float(metrics.get("time_total_s", 0.0))
        if error is not None:
            return cls(values, f"failed: {_why(error)}", math.nan, share, seconds)
        return cls(values, "finished" if share == 1 else "stopped early", float(metrics["score"]), share, seconds)


def _why(error: Any) -> str:
    cause = getattr(error, "cause", error)
    if isinstance(cause, Sim2RealError):
        return " ".join(str(cause).split())
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"


def search(recipe: Recipe, space: Space, directory: Path, scores: Scorer, say: Say) -> list[Row]:
    """Run the trials of a recipe's sweep, or go on with them.

    Args:
        recipe: with a `sweep:` section.
        space: what each key may become.
        directory: of the sweep; an absolute path, for trials change directory.
        scores: scores a recipe, in another process.
        say: told of each trial that has ended.

    Returns:
        a row for the recipe as it was, then one for each trial.

    Raises:
        Sim2RealError: the recipe as it was fails.
        KeyboardInterrupt: interrupted, with everything saved.
    """
    assert recipe.sweep is not None
    cores = available_threads()
    threads = cores // min(recipe.sweep.concurrent, recipe.sweep.trials, cores)
    with _quiet_ray(cores, threads):
        progress = _Progress(say, recipe, space, ray.remote(num_cpus=threads)(_unswept).remote(recipe, threads, scores))
        _PROGRESS.set(progress)
        results = _fit(recipe, space, directory / "tune", _trainable(recipe, space, threads, scores), say)
        if results.num_terminated + results.num_errors < recipe.sweep.trials:
            raise KeyboardInterrupt  # Ray has caught it, and saved where it was
        progress.look(None)
    return [progress.unswept, *(Row.of(space, r.config, r.metrics, r.error) for r in results)]


def _unswept(recipe: Recipe, threads: int, scores: Scorer) -> tuple[float, float]:
    """Return the score of the recipe as it was, and the seconds that it took."""
    os.environ["SIM2REAL_THREADS"] = str(threads)
    start = time.perf_counter()
    (_, score), *_ = scores(recipe, (1.0,))
    return score, time.perf_counter() - start


def _trainable(recipe: Recipe, space: Space, threads: int, scores: Scorer) -> Any:
    def trial(config: dict[str, Any]) -> None:
        os.environ["SIM2REAL_THREADS"] = str(threads)
        for share, score in scores(with_overrides(recipe, _values(space, config)), RUNGS):
            tune.report({"score": score, "share": share, "rung": 1 + RUNGS.index(share)})

    return tune.with_resources(trial, {"cpu": threads})


def _fit(recipe: Recipe, space: Space, path: Path, trainable: Any, say: Say) -> Any:
    assert recipe.sweep is not None
    trials = recipe.sweep.trials
    if path.is_dir():
        try:
            tuner = tune.Tuner.restore(str(path), trainable)
            begun = len(tuner.get_results())
        except Exception:  # whatever a pickle raises that a kill has left half written
            begun = 0
        if begun:
            say(f"going on: {begun} of {trials} trials had begun")
            results = tuner.fit()
            # Ray starts again, with one trial, where it cannot read its own state
            if results.num_terminated + results.num_errors < len(results) or len(results) > 1 or trials == 1:
                return results
        shutil.rmtree(path)
    startup = min(10, max(2, trials // 2))
    return tune.Tuner(
        trainable,
        param_space={_label(key): values.domain() for key, values in space.items()},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
            search_alg=OptunaSearch(sampler=optuna.samplers.TPESampler(seed=recipe.seed, n_startup_trials=startup)),
            scheduler=ASHAScheduler(time_attr="rung", max_t=len(RUNGS), grace_period=1, reduction_factor=2),
            num_samples=trials,
            max_concurrent_trials=recipe.sweep.concurrent,
            reuse_actors=True,  # importing torch anew for every trial would take longer than many a trial
            trial_dirname_creator=_directory_name,
        ),
        run_config=tune.RunConfig(storage_path=str(path.parent), name=path.name, callbacks=[_Listener()], verbose=0),
    ).fit()


class _Progress:
    """Tells the user of each trial that has ended, and stops the sweep where the recipe itself fails."""

    def __init__(self, say: Say, recipe: Recipe, space: Space, baseline: Any) -> None:
        assert recipe.sweep is not None
        self.say, self.trials, self.space, self.baseline = say, recipe.sweep.trials, space, baseline
        self.ended: set[str] = set()
        self.unswept = Row({key: value_of(recipe, key) for key in space}, "running", math.nan, 1.0, 0.0)

    def look(self, seconds: float | None) -> None:
        """Look whether the recipe as it was has been scored, for some seconds; None waits until it has."""
        if self.unswept.status == "finished" or not ray.wait([self.baseline], timeout=seconds)[0]:
            return
        try:
            score, duration = ray.get(self.baseline)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Sim2RealError) else error) from None
        self.unswept = Row(self.unswept.values, "finished", score, 1.0, duration)
        self._tell("unswept", self.unswept)

    def trial(self, trials: Sequence[Any], trial: Any) -> None:
        self.ended |= {t.trial_id for t in trials if t.is_finished()} | {trial.trial_id}
        # Ray's own error file of a trial of this sweep; Trial.get_pickled_error looks where it has not been copied yet
        file = trial.pickled_error_file
        error = ray.cloudpickle.loads(Path(file).read_bytes()) if file else trial.get_error()
        row = Row.of(self.space, trial.config, trial.last_result, error)
        self._tell(f"trial {len(self.ended)}/{self.trials}", row)

    def _tell(self, name: str, row: Row) -> None:
        status, _, why = row.status.partition(": ")
        came = f"{row.score:.5g}" if status == "finished" else status
        values = ", ".join(f"{k}: {shown(v)}" for k, v in row.values.items())
        self.say(f"  {name:<12} {came:<14} {row.seconds:5.0f} s   {values}{why and f' ({why})'}")


_PROGRESS: ContextVar[_Progress] = ContextVar("progress")


class _Listener(tune.Callback):  # type: ignore[misc]
    """Hands what Ray says to the present progress. Ray pickles it with the sweep; it comes back bound anew."""

    def __init__(self) -> None:
        self.progress = _PROGRESS.get()

    def __reduce__(self) -> Any:
        return _Listener, ()

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        self.progress.look(0)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.progress.trial(trials, trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.progress.trial(trials, trial)


def _directory_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


def _label(key: str) -> str:
    return key.replace("/", "|")  # to Ray a slash is a level of nesting


def _values(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values.value(config[_label(key)]) for key, values in space.items()}


@contextlib.contextmanager
def _quiet_ray(cores: int, threads: int) -> Iterator[None]:
    """Start Ray on this machine unless it runs already, without its dashboard, its chatter and its usage report."""
    pool = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = {"TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0", **pool}
    before, verbosity, level = dict(os.environ), optuna.logging.get_verbosity(), logging.getLogger("ray").level
    started = not ray.is_initialized()
    os.environ.update(ours)
    try:
        if started:
            ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        yield
    finally:
        if started:
            ray.shutdown()
        logging.getLogger("ray").setLevel(level)
        optuna.logging.set_verbosity(verbosity)
        for name in ours:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
