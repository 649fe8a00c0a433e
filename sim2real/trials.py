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
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from sim2real.errors import RecipeError, Sim2RealError
from sim2real.objectives import Objective
from sim2real.policy_recipe import SweptRecipe
from sim2real.randomization.mujoco_simulator import available_threads
from sim2real.recipe import SweepSection, value_of, with_overrides
from sim2real.run_directory import read_json, write_json
from sim2real.search_space import SearchRange, shown

Space = Mapping[str, SearchRange]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A trial: what it tried and what came of it.

    Attributes:
        values: of the swept keys.
        status: "finished", "stopped early", "failed: why", or "running".
        score: the last that it reported; nan where it failed.
        share: of the work that the score was reached with.
        seconds: that it took.
    """

    values: dict[str, Any]
    status: str
    score: float
    share: float
    seconds: float

    @classmethod
    def of(cls, space: Space, config: Mapping[str, Any], metrics: Mapping[str, Any] | None, error: Any) -> Row:
        """Read a trial that has ended from what Ray says of it."""
        metrics, values = metrics or {}, _values(space, config)
        share, seconds = float(metrics.get("share", 0.0)), float(metrics.get("time_total_s", 0.0))
        score, why = float(metrics.get("score", math.nan)), str(metrics.get("failed", ""))
        if error is not None:
            why = _why(error)
        elif not why and not math.isfinite(score):
            why = f"its score is not finite: {score}"
        if why:
            return cls(values, f"failed: {why}", math.nan, share, seconds)
        return cls(values, "finished" if share == 1 else "stopped early", score, share, seconds)

    @property
    def failed(self) -> bool:
        return self.status.startswith("failed")


def _why(error: Any) -> str:
    """Say in a line what became of a trial."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, Sim2RealError):
        return " ".join(str(cause).split())
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return "out of memory: its process was ended before the machine's was used up; try fewer trials at once"
    if isinstance(cause, ray.exceptions.RayActorError):
        return "its process was killed each time that it was tried: out of memory, or its machine is gone"
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}".removesuffix(": ")


@dataclass(frozen=True)
class Found:
    """What a sweep found.

    Attributes:
        rows: the recipe as it was, then the trials.
        best: folder that the best trial saved; None where nothing is.
        wall: seconds from the first trial to the last, those that ended since this process began.
        busy: share of that time, of all trials at once, in which one was worked on; None where none ran.
        confirmed: scores of the recipe as it was and of the best one with other seeds; None where not asked for.
    """

    rows: list[Row]
    best: Path | None
    wall: float
    busy: float | None
    confirmed: dict[str, list[Any]] | None


def search(
    recipe: SweptRecipe,
    space: Space,
    directory: Path,
    objective: Objective,
    say: Say,
    keep: Callable[[Sequence[Row]], None] = lambda _: None,
    address: str | None = None,
) -> Found:
    """Run the trials of a recipe's sweep, or go on with them, or with more of them.

    Args:
        recipe: with a `sweep:` section.
        space: what each key may become.
        directory: of the sweep; an absolute path, for trials change directory.
        objective: scores a recipe, in another process.
        say: told of each trial that has ended.
        keep: given all rows whenever one is added.
        address: of a Ray cluster, such as "auto"; without it Ray is started on this machine where it does not run.

    Raises:
        Sim2RealError: the recipe as it was fails.
        RecipeError: no machine of the cluster has the cores that a trial asks for.
        KeyboardInterrupt: interrupted, with everything saved.
    """
    section = _section(recipe)
    cores = available_threads()
    # more trials at once than are asked for, or than there are cores, would only share them
    threads = section.cpus or max(cores // min(section.concurrent, section.trials, cores), 1)
    with _quiet_ray(cores, threads, address):
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        if threads > largest:
            raise RecipeError(f"sweep.cpus: a trial asks for {threads} cores, the largest machine has {largest}")
        work = _Work(recipe, space, directory / "runs", objective, threads)
        progress = _Progress(say, work, _Unswept(work, directory / "unswept.json"), keep)
        _PROGRESS.set(progress)
        begun = time.perf_counter()
        results: list[Any] = []
        for place, many in _batches(directory, section):
            results += _fit(work, place, many, _Memory(directory / "optuna.journal"), say)
            _Memory(directory / "optuna.journal").write(work, results)
        progress.look(None)
        wall = time.perf_counter() - begun
        rows = [progress.unswept, *(Row.of(space, r.config, r.metrics, r.error) for r in results)]
        keep(rows)
        slots = min(section.concurrent, section.trials)
        busy = progress.seconds / (wall * slots) if progress.seconds else None
        best = best_of(rows, objective)
        saved = None if best is rows[0] else results[[r is best for r in rows].index(True) - 1].checkpoint
        confirmed = _confirmed(work, rows[0], best, directory / "confirmed.json", say) if section.confirm else None
        return Found(rows, saved and _fetched(saved, directory / "best"), wall, busy, confirmed)


def best_of(rows: Sequence[Row], objective: Objective) -> Row:
    """Return the first of the best rows: the recipe as it was, where nothing beat it."""
    scored = [row for row in rows if row.status == "finished"]
    return min(scored, key=lambda row: row.score if objective.better == "less" else -row.score)


def _section(recipe: SweptRecipe) -> SweepSection:
    assert recipe.sweep is not None
    return recipe.sweep


@dataclass(frozen=True)
class _Work:
    """What is done in other processes."""

    recipe: SweptRecipe
    space: Space
    runs: Path
    objective: Objective
    threads: int

    @property
    def domains(self) -> dict[str, Any]:
        """What each key is drawn from, by the name that Ray knows it by."""
        return {_label(key): values.domain() for key, values in self.space.items()}

    @property
    def resources(self) -> dict[str, float]:
        return {"cpu": self.threads, "gpu": _section(self.recipe).gpus}

    def score(self, values: Mapping[str, Any]) -> tuple[float, float]:
        """Return the score of the whole work with other values, and the seconds that it took."""
        os.environ["SIM2REAL_THREADS"] = str(self.threads)
        start = time.perf_counter()
        # of what learns on its way, as trials do; of all else nothing but the whole is asked
        shares = self.objective.shares if self.objective.trains else (1.0,)
        *_, last = self.objective.scores(self.runs, with_overrides(self.recipe, values), shares, None)
        return last.score, time.perf_counter() - start

    def asked(self, values: Mapping[str, Any]) -> Any:
        """Begin to `score` in another process."""
        remote = ray.remote(num_cpus=self.threads, num_gpus=self.resources["gpu"], max_retries=3)
        return remote(_scored).remote(self, values)

    def trainable(self) -> Any:
        """Return the function that Ray Tune calls for every trial."""

        def trial(config: dict[str, Any]) -> None:
            os.environ["SIM2REAL_THREADS"] = str(self.threads)
            shares, kept = self.objective.shares, tune.get_checkpoint()
            try:
                recipe = with_overrides(self.recipe, _values(self.space, config))
                with contextlib.nullcontext() if kept is None else kept.as_directory() as folder:
                    for found in self.objective.scores(self.runs, recipe, shares, folder and Path(folder)):
                        tune.report(
                            {"score": found.score, "share": found.share, "rung": 1 + shares.index(found.share)},
                            checkpoint=found.saved and tune.Checkpoint.from_directory(str(found.saved)),
                        )
            except Exception as error:  # told as a result, for what fails once would fail at every retry
                tune.report({"score": math.nan, "share": 0.0, "rung": len(shares), "failed": _why(error)})

        return tune.with_resources(trial, self.resources)


def _scored(work: _Work, values: Mapping[str, Any]) -> tuple[float, float]:
    return work.score(values)


class _Unswept:
    """The score of the recipe as it was, which is worked on beside the trials, and kept."""

    def __init__(self, work: _Work, file: Path) -> None:
        self.values = {key: value_of(work.recipe, key) for key in work.space}
        self.file, self._task = file, None if file.is_file() else work.asked({})

    def row(self, seconds: float | None) -> Row | None:
        """Return the row, if it is there within some seconds; None waits until it is."""
        if self._task is not None:
            if not ray.wait([self._task], timeout=seconds)[0]:
                return None
            try:
                score, took = ray.get(self._task)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Sim2RealError) else error) from None
            if not math.isfinite(score):
                raise RecipeError(f"the recipe as it is has no score to be compared with: {score}")
            write_json(self.file, {"score": score, "seconds": took})
            self._task = None
        found = read_json(self.file)
        return Row(self.values, "finished", found["score"], 1.0, found["seconds"])


def _batches(directory: Path, section: SweepSection) -> list[tuple[str, int]]:
    """Return where Ray keeps its state, and how many trials it has there: one place each time that more were asked."""
    file = directory / "batches.json"
    sizes = read_json(file) if file.is_file() else []
    if sum(sizes) < section.trials:
        sizes.append(section.trials - sum(sizes))
        write_json(file, sizes)
    root = str(directory) if section.storage is None else f"{section.storage.rstrip('/')}/{directory.name}"
    return [(f"{root}/tune{'' if k == 0 else f'-{k + 1}'}", many) for k, many in enumerate(sizes)]


class _Memory:
    """What the trials of earlier batches came to, as a study of Optuna's that others can open, too.

    While a batch runs, Ray keeps the study with its own state: a file that is ahead of that, after a kill, would be
    told of trials twice.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def write(self, work: _Work, results: Sequence[Any]) -> None:
        """Write all trials there are, in one piece."""
        partial = self.file.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        direction = StudyDirection.MINIMIZE if work.objective.better == "less" else StudyDirection.MAXIMIZE
        study = optuna.create_study(storage=self._storage(partial), study_name="sweep", direction=direction)
        states = {"finished": TrialState.COMPLETE, "stopped early": TrialState.PRUNED}
        for r in results:
            row = Row.of(work.space, r.config, r.metrics, r.error)
            state = states.get(row.status, TrialState.FAIL)
            study.add_trial(
                optuna.create_trial(
                    state=state,
                    value=None if state == TrialState.FAIL else row.score,
                    params={name: r.config[name] for name in work.domains},
                    distributions=OptunaSearch.convert_search_space(work.domains),
                )
            )
        partial.replace(self.file)

    def points(self) -> dict[str, Any]:
        """Return what a search begins with: the values that were tried, and what they came to."""
        if not self.file.is_file():
            return {}
        study = optuna.load_study(storage=self._storage(self.file), study_name="sweep")
        known = [t for t in study.trials if t.value is not None]
        if not known:
            return {}
        return {"points_to_evaluate": [t.params for t in known], "evaluated_rewards": [t.value for t in known]}

    @staticmethod
    def _storage(file: Path) -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(file)))


def _fit(work: _Work, place: str, many: int, memory: _Memory, say: Say) -> list[Any]:
    """Run the trials of a batch, or go on with them.

    Raises:
        KeyboardInterrupt: Ray has caught it, and saved where it was.
    """
    results = _restored(work, place, many, say)
    if results is None:
        results = _tuner(work, place, many, memory).fit()
    if results.num_terminated + results.num_errors < many:
        raise KeyboardInterrupt
    # Ray does not restore them in the order in which they were: in that in which they ended, it is always the same
    return sorted(results, key=lambda r: ((r.metrics or {}).get("timestamp", math.inf), str(r.path)))


def _restored(work: _Work, place: str, many: int, say: Say) -> Any:
    """Return the results of a batch that had begun; None where there is nothing to go on from, and nothing is left."""
    try:
        if not tune.Tuner.can_restore(place):
            raise FileNotFoundError(place)
        tuner = tune.Tuner.restore(place, work.trainable(), restart_errored=False)
        before = tuner.get_results()
    except Exception:  # whatever a pickle raises that a kill has left half written
        before = ()
    if len(before):
        _PROGRESS.get().known([r for r in before if r.error is not None or (r.metrics or {}).get("done")])
        if before.num_terminated + before.num_errors == many:
            return before
        say(f"going on: {len(before)} of {many} trials had begun")
        results = tuner.fit()
        # Ray starts again, with one trial, where it cannot read its own state
        if results.num_terminated + results.num_errors < len(results) or len(results) > 1 or many == 1:
            return results
    if "://" not in place:
        shutil.rmtree(place, ignore_errors=True)
    return None


def _tuner(work: _Work, place: str, many: int, memory: _Memory) -> Any:
    section, root, _, name = _section(work.recipe), *place.rpartition("/")
    seed = work.recipe.seed + sum(map(ord, name))  # another batch draws other values
    mode = "min" if work.objective.better == "less" else "max"
    how: dict[str, Any] = {"metric": "score", "mode": mode, "num_samples": many}
    if section.scheduler == "pbt":  # draws at first, and changes what trials have on their way
        how |= {
            "search_alg": BasicVariantGenerator(random_state=seed),
            "scheduler": PopulationBasedTraining(
                time_attr="rung", perturbation_interval=1, hyperparam_mutations=work.domains, quantile_fraction=0.25
            ),
        }
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(2, many // 2)))
        halving = ASHAScheduler(time_attr="rung", max_t=len(work.objective.shares), grace_period=1, reduction_factor=2)
        how |= {
            "search_alg": OptunaSearch(sampler=sampler, **memory.points()),
            "scheduler": halving if section.scheduler == "asha" else FIFOScheduler(),
            "max_concurrent_trials": section.concurrent,
        }
    return tune.Tuner(
        work.trainable(),
        param_space=work.domains,
        tune_config=tune.TuneConfig(
            reuse_actors=True,  # importing torch anew for every trial would take longer than many a trial
            trial_dirname_creator=_directory_name,
            **how,
        ),
        run_config=tune.RunConfig(
            storage_path=root,
            name=name,
            callbacks=[_Listener()],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=section.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        ),
    )


def _confirmed(work: _Work, unswept: Row, best: Row, file: Path, say: Say) -> dict[str, list[Any]]:
    """Return scores of the recipe as it was and of the best one with other seeds, side by side."""
    many, seed = _section(work.recipe).confirm, work.recipe.seed
    kept: dict[str, float] = read_json(file) if file.is_file() else {}
    seeds = [seed + 1 + k for k in range(many)]
    asked = {}
    for s in seeds:
        for name, row in (("default", unswept), ("best", best)):
            key = f"{name} {s} {shown(row.values)}"
            if key not in kept:
                values = {} if row is unswept else row.values
                asked[work.asked({**values, "seed": s})] = key
    left = list(asked)
    while left:
        done, left = ray.wait(left)
        try:
            kept[asked[done[0]]] = ray.get(done[0])[0]
        except ray.exceptions.RayError as error:
            say(f"  {asked[done[0]]}: {_why(error)}")
            kept[asked[done[0]]] = math.nan
        write_json(file, kept)
    out: dict[str, list[Any]] = {"seeds": seeds}
    for name, row in (("default", unswept), ("best", best)):
        scores = [kept[f"{name} {s} {shown(row.values)}"] for s in seeds]
        out[name] = [s if math.isfinite(s) else None for s in scores]
    return out


def _fetched(checkpoint: Any, folder: Path) -> Path:
    """Copy what a trial saved to a folder of this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.to_directory(str(folder))
    return folder


class _Progress:
    """Tells the user of each trial that has ended, and stops the sweep where the recipe itself fails."""

    def __init__(self, say: Say, work: _Work, unswept: _Unswept, keep: Callable[[Sequence[Row]], None]) -> None:
        self.say, self.work, self._unswept, self._keep = say, work, unswept, keep
        self.trials = _section(work.recipe).trials
        self.rows: dict[str, Row] = {}
        self.seconds = 0.0
        self.unswept = Row(unswept.values, "running", math.nan, 1.0, 0.0)
        self.look(0)

    def known(self, results: Sequence[Any]) -> None:
        """Take up trials that had ended before."""
        for r in results:
            name = str((r.metrics or {}).get("trial_id", len(self.rows)))
            self.rows[name] = Row.of(self.work.space, r.config, r.metrics, r.error)

    def look(self, seconds: float | None) -> None:
        """Look whether the recipe as it was has been scored, for some seconds; None waits until it has."""
        if self.unswept.status == "finished":
            return
        known = self._unswept.file.is_file()
        found = self._unswept.row(seconds)
        if found is not None:
            self.unswept = found
            if not known:
                self.seconds += found.seconds
                self._tell("unswept", found)

    def trial(self, trial: Any) -> None:
        # Ray's own error file of a trial of this sweep; Trial.get_pickled_error looks where it has not been copied yet
        file = trial.pickled_error_file
        error = ray.cloudpickle.loads(Path(file).read_bytes()) if file else trial.get_error()
        row = Row.of(self.work.space, trial.config, trial.last_result, error)
        self.rows[trial.trial_id] = row
        self.seconds += row.seconds
        self._tell(f"trial {len(self.rows)}/{self.trials}", row)

    def _tell(self, name: str, row: Row) -> None:
        status, _, why = row.status.partition(": ")
        came = f"{row.score:.5g}" if status == "finished" else status
        values = ", ".join(f"{k}: {shown(v)}" for k, v in row.values.items())
        self._keep([self.unswept, *self.rows.values()])
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
        self.progress.trial(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.progress.trial(trial)


def _directory_name(trial: Any) -> str:
    return f"trial_{trial.trial_id}"


def _label(key: str) -> str:
    return key.replace("/", "|")  # to Ray a slash is a level of nesting


def _values(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values.value(config[_label(key)]) for key, values in space.items()}


@contextlib.contextmanager
def _quiet_ray(cores: int, threads: int, address: str | None) -> Iterator[None]:
    """Start Ray on this machine unless it runs already, without its dashboard, its chatter and its usage report."""
    pool = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    ours = {"TUNE_GLOBAL_CHECKPOINT_S": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0", **pool}
    before, verbosity, level = dict(os.environ), optuna.logging.get_verbosity(), logging.getLogger("ray").level
    started = not ray.is_initialized()
    os.environ.update(ours)
    try:
        if started:
            chosen: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False} if address is None else {}
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **chosen)
            except ConnectionError as error:
                raise RecipeError(f"no Ray cluster at {address!r}: `ray start --head` makes one ({error})") from None
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
