"""The command line: `sim2real <verb> recipe.yaml [section.key=value ...]`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim2real import __version__
from sim2real.cli_summary import plain, summarise
from sim2real.errors import Sim2RealError

if TYPE_CHECKING:
    from rich.console import Console

# The verbs that run a recipe, and the stage that they run to.
VERBS = {
    "run": ("report", "run the whole loop: identify, pre-train, fine-tune, evaluate, control, report"),
    "identify": ("identify", "identify the parameters of a robot from its logs"),
    "finetune": ("finetune", "identify, pre-train a world model, and fine-tune its dynamics on the logs"),
    "evaluate": (
        "evaluate",
        "score the simulator and the world model on held-out logs; with simulators=[mujoco,genesis] compare engines",
    ),
    "control": ("control", "let the controllers run on the recipe's twin"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sim2real",
        description="Measure how far a simulator is from a robot, say which part of the gap costs most, and close it.",
        epilog="exit status: 0 done, 1 the work failed, 2 wrong usage",
    )
    parser.add_argument("--version", action="version", version=f"sim2real {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    for verb, (_, text) in VERBS.items():
        one = verbs.add_parser(verb, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        _recipe_arguments(one)
        if verb == "identify":
            one.add_argument(
                "--check",
                type=int,
                default=0,
                metavar="N",
                help="instead, identify N simulated truths drawn from the prior: do the intervals hold them?",
            )
        if verb == "finetune":
            one.add_argument(
                "--dry-run",
                action="store_true",
                help="instead, check the recordings and say how much of the model's input space they see",
            )
    around = verbs.add_parser(
        "dagger",
        help="control, record, fine-tune, and again",
        description="Rounds of control, recording and fine-tuning, on the recipe's twin or on dagger.env.",
    )
    _recipe_arguments(around)
    sweep = verbs.add_parser("sweep", help="search over keys of a recipe with Ray Tune")
    _recipe_arguments(sweep)
    sweep.add_argument("--address", help="of a Ray cluster, such as auto; this machine alone if not given")
    report = verbs.add_parser("report", help="rebuild report.html of a run")
    report.add_argument("run_directory", type=Path)
    from sim2real.log_commands import add_parsers

    add_parsers(verbs)
    parameters = verbs.add_parser("parameters", help="list every parameter of an environment or a robot")
    parameters.add_argument("target", help="id of a Gymnasium environment, name of a packaged robot, or robot file")
    parameters.add_argument("--yaml", action="store_true", help="write a starter recipe with cautious ranges instead")
    preview = verbs.add_parser(
        "preview", help="show what a recipe randomizes in an environment, and how much it matters"
    )
    preview.add_argument("recipe", help="YAML recipe with `parameters:`, as `sim2real parameters ID --yaml` writes it")
    preview.add_argument("--env", help="id of the environment, where the recipe does not say `env:`")
    preview.add_argument("--steps", type=int, default=100, help="control steps of a trial (default: 100)")
    preview.add_argument("--seed", type=int, default=0, help="of start, actions and draws (default: 0)")
    learn = verbs.add_parser("learn", help="learn a model of an environment from its recordings, without a recipe")
    learn.add_argument("path", help="recordings of the environment, as RecordEpisodes writes them")
    learn.add_argument("--schema", type=Path, help="YAML file that says what the columns of other logs are")
    learn.add_argument("--output", type=Path, default=Path("runs/learn"), help="directory of the run")
    learn.add_argument("--epochs", type=int, default=60, help="at most (default: 60)")
    learn.add_argument("--members", type=int, default=5, help="of the ensemble (default: 5)")
    learn.add_argument("--hidden", type=int, nargs="+", default=[200, 200], help="widths of layers (default: 200 200)")
    learn.add_argument("--seed", type=int, default=0, help="of weights and orders (default: 0)")
    learn.add_argument("--again", action="store_true", help="start over instead of going on")
    verbs.add_parser("doctor", help="print versions, devices and extras")
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder of run directories (default: runs)")
    parser.add_argument("--again", action="store_true", help="start over when the run has finished before")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 1 the work failed, 2 wrong usage."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # keys of a recipe may stand after options, too
    if any(r.startswith("-") or "=" not in r for r in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    from rich.console import Console

    # a table that goes into a file or a pipe is not cut to the width of a screen
    width = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, soft_wrap=True, width=width)
    try:
        return _dispatch(options, console)
    except Sim2RealError as error:
        from sim2real.errors import RecipeError

        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {plain(str(error))}")
        return 2 if isinstance(error, RecipeError) else 1
    except BrokenPipeError:
        # the reader of our output has gone (`| head`): nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; run the same command again to go on")
        return 1


def _dispatch(options: argparse.Namespace, console: Console) -> int:
    if options.verb in VERBS:
        _run(options, console)
    elif options.verb == "dagger":
        _dagger(options, console)
    elif options.verb == "sweep":
        _sweep(options, console)
    elif options.verb == "report":
        from sim2real.report import write_report

        console.print(f"report: {write_report(options.run_directory)}")
    elif options.verb == "logs":
        from sim2real.log_commands import run

        return run(options, lambda text: console.print(plain(text)))
    elif options.verb == "learn":
        _learn(options, console)
    elif options.verb == "parameters":
        _parameters(options, console)
    elif options.verb == "preview":
        _preview(options, console)
    else:
        _doctor(console)
    return 0


def _run(options: argparse.Namespace, console: Console) -> None:
    from sim2real.recipe import load_recipe

    # what is misspelt is said before torch and MuJoCo are loaded
    recipe = load_recipe(options.recipe, options.overrides)
    if options.verb == "evaluate" and recipe.simulators:
        _simulators(recipe, options, console)
        return
    from sim2real.pipeline import Watcher, run

    if getattr(options, "check", 0):
        _check(recipe, options, console)
        return
    if getattr(options, "dry_run", False):
        _look(recipe, console)
        return
    directory = options.output / f"{recipe.name}-{recipe.digest()}"
    console.print(f"[bold]{recipe.name}[/] → {plain(str(directory))}")
    with console.status("reading") as status:
        stage = [""]

        def begin(name: str) -> None:
            stage[0] = name
            status.update(name)

        def end(name: str, seconds: float, before: bool) -> None:
            console.print(f"  {name:<10} " + ("finished earlier" if before else f"{seconds:6.1f} s"))

        watcher = Watcher(begin, lambda line: status.update(f"{stage[0]}: {plain(line)}"), end)
        run(recipe, options.output, until=VERBS[options.verb][0], again=options.again, watcher=watcher)
    summarise(directory, options.verb, console)


def _simulators(recipe: Any, options: argparse.Namespace, console: Console) -> None:
    """Say where two simulators of the recipe's robot part."""
    from rich.table import Table

    from sim2real.simulators import compare_recipe, read_disagreement, told

    with console.status("starting the simulators") as status:
        directory = compare_recipe(recipe, options.output, lambda line: status.update(plain(line)))
    found = read_disagreement(directory)
    table = Table("apart, share of the motion", *(f"{h:g} s" for h in found.horizons), box=None, pad_edge=False)
    for channel, shares in zip(found.channels, found.share.T, strict=True):
        table.add_row(plain(channel), *(f"{100 * share:.2g} %" for share in shares))
    console.print(table)
    for line in told(found):
        console.print(f"• {plain(line)}")
    console.print(f"report: {plain(str(directory / 'simulators.html'))}")


def _dagger(options: argparse.Namespace, console: Console) -> None:
    from rich.table import Table

    from sim2real.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from sim2real.pipeline import Watcher, run
    from sim2real.report import write_rounds_report
    from sim2real.rounds import go_round, require

    require(recipe)
    with console.status("learning") as status:
        watcher = Watcher(status.update, lambda line: status.update(plain(line)))
        directory = run(recipe, options.output, until="learn", again=options.again, watcher=watcher)
        found = go_round(recipe, directory, lambda line: status.update(plain(line)))
    table = Table("round", "robot time", "fallback", "CRPS before", "after", "", box=None, pad_edge=False)
    for r in found.rounds:
        crps = (f"{r.before:.3g}", f"{r.after:.3g}")
        table.add_row(str(r.number), f"{r.seconds:.3g} s", f"{r.share:.0%}", *crps, plain(r.reason))
    console.print(table)
    for name, value in found.returns.items():
        console.print(f"{name:>9}: mean {recipe.control.measure} {value:.3f} (0 to 1)")
    console.print(f"rounds: {plain(str(found.directory))}")
    console.print(f"report: {plain(str(write_rounds_report(found.directory)))}")


def _look(recipe: Any, console: Console) -> None:
    """Say what fine-tuning would learn from, and how much of the model's input space that sees."""
    from rich.table import Table

    from sim2real.calibration.finetune import FOLDS
    from sim2real.finetuning import look_before_finetuning
    from sim2real.preparation import prepare

    setup = prepare(recipe)
    table = Table("recording", "part", "seconds", "readings a second", "actions", box=None, pad_edge=False)
    parts = (("train", setup.recordings.train), ("validation", setup.recordings.validation))
    for part, episodes in parts:
        for e in episodes:
            used = e.action_source if part != "train" or e in setup.recordings.commanded else "measured: not used"
            table.add_row(plain(e.name), part, f"{e.duration:.3g}", f"{1 / e.period:.3g}", used)
    console.print(table)
    real, seen, timestep = look_before_finetuning(setup)
    seconds = len(set(real.block.tolist()))
    console.print(
        f"{real.states.shape[1]} stretches of {real.steps * timestep:.3g} s in {seconds} seconds; "
        + ("" if seconds >= 2 * FOLDS else "not ")
        + "enough for finetune.method=auto"
    )
    table = Table("part", "simulated", "recorded", "seen", "beyond", box=None, pad_edge=False)
    for one in seen:
        ranges = (", ".join(f"{low:.3g} to {high:.3g}" for low, high in r) for r in (one.trained, one.recorded))
        table.add_row(plain(one.name), *ranges, f"{one.share:.0%}", f"{one.outside:.0%}")
    console.print(table)
    console.print(
        "simulated: where pre-training goes, with the nominal robot\n"
        "seen: how much of it was recorded, in tenths of each axis; elsewhere the model stays as simulations made it\n"
        "beyond: how much of what was recorded simulations miss; where that is much, widen model.excitation or\n"
        "control.limit"
    )


def _check(recipe: Any, options: argparse.Namespace, console: Console) -> None:
    """Identify simulated truths, and say how often the intervals hold them."""
    from rich.table import Table

    from sim2real.errors import RecipeError
    from sim2real.pipeline import set_threads
    from sim2real.preparation import prepare
    from sim2real.randomization.mujoco_simulator import available_threads
    from sim2real.run_directory import RunDirectory, write_json
    from sim2real.stages import check_stage

    truths = options.check
    if truths < 2:
        raise RecipeError(f"--check takes the number of truths, 2 at least (50 tell much), found {truths}")
    set_threads()
    with console.status("identifying the recordings, for their noise") as status:
        folder = options.output / f"{recipe.name}-{recipe.digest()}" / "check"
        if options.again:
            shutil.rmtree(folder, ignore_errors=True)
        directory = RunDirectory(folder)
        workers = available_threads()
        found = check_stage(prepare(recipe), directory, truths, workers, lambda line: status.update(plain(line)))
    result = found.to_json()
    write_json(folder / "check.json", result)
    table = Table("parameter", "inside 90 %", "median error", "ranks uniform, p", box=None, pad_edge=False)
    for name, row in result["parameters"].items():
        count = f"{row['inside90']} of {truths}"
        table.add_row(plain(name), count, f"{row['median_error']:.3g}", f"{row['uniform_p']:.2g}")
    console.print(table)
    pooled, (low, high) = result["coverage90"]["pooled"], result["coverage90"]["interval"]
    console.print(
        f"90 % intervals hold {pooled:.1%} of the truths ({low:.1%} to {high:.1%} if others had been drawn); "
        f"{result['settled']} of {truths} fits say that they have converged; {result['seconds']:.0f} s each (median)"
    )
    console.print(f"kept: {plain(str(folder))}")


def _sweep(options: argparse.Namespace, console: Console) -> None:
    from sim2real.recipe import asked_for, load_recipe

    objective, about_env = asked_for(options.recipe, options.overrides)
    if objective == "robustness":
        _robustness(options, console)
        return
    from sim2real.policy_recipe import load_policy_recipe
    from sim2real.sweep import sweep

    recipe = (load_policy_recipe if about_env else load_recipe)(options.recipe, options.overrides)
    found = sweep(
        recipe,
        options.output,
        again=options.again,
        address=options.address,
        say=lambda line: console.print(plain(line), highlight=False),
    )
    console.print(f"best {found.best_score:.5g}, unswept {found.baseline_score:.5g}: {plain(found.measure)}")
    if found.busy_fraction is not None:
        console.print(f"a trial was worked on {found.busy_fraction:.0%} of the time, of as many as there are at once")
    console.print(f"best recipe: {plain(str(found.best_recipe))}")
    console.print(f"report: {plain(str(found.directory / 'sweep.html'))}")


def _robustness(options: argparse.Namespace, console: Console) -> None:
    """Say how far the parameters of an environment may go before a policy fails."""
    from rich.table import Table

    from sim2real.robustness import load_robustness_recipe, robustness

    recipe = load_robustness_recipe(options.recipe, options.overrides)
    from sim2real.pipeline import set_threads

    set_threads()
    with console.status("making the environment") as status:

        def say(line: str) -> None:
            console.print(f"  {plain(line)}")
            status.update("running episodes")

        found = robustness(recipe, options.output, again=options.again, say=say)
    console.print(f"mean return {found.nominal:.4g} at the nominal parameters; it fails below {found.lose:.4g}")
    if not found.margins:
        console.print(f"{plain(found.told()[0])}: nothing else was asked")
        return
    table = Table("parameter", "nominal", "survives", "fails at", "of return", box=None, pad_edge=False)
    for m in found.margins:
        fails = " and ".join(m.failures()) or "nowhere"
        share = ""
        if found.sobol:
            one = found.sobol[m.name]
            share = f"{max(one['total'], 0.0):.0%} ± {one['total_by_chance']:.0%}"
        table.add_row(plain(m.name), *map(plain, (m.shown(m.nominal), m.span(), fails)), share)
    console.print(table)
    if found.sobol:
        console.print("of return: share of its variance that the parameter takes part in when all vary, 95 % interval")
    console.print(f"{found.episodes:,} episodes; report: {plain(str(found.directory / 'robustness.html'))}")


def _learn(options: argparse.Namespace, console: Console) -> None:
    from rich.table import Table

    from sim2real.learn import learn
    from sim2real.logs import read_logs
    from sim2real.pipeline import set_threads

    set_threads()
    with console.status("reading") as status:
        found = learn(
            read_logs(options.path, options.schema),
            options.output,
            epochs=options.epochs,
            members=options.members,
            hidden=tuple(options.hidden),
            seed=options.seed,
            again=options.again,
            say=lambda line: status.update(plain(line)),
        )
    console.print(f"on {len(found.held_out)} recordings that were not learned from:")
    table = Table("steps", "seconds", "error, 1 = no change", "90 % holds", "by chance", box=None, pad_edge=False)
    table.add_column("furthest from 90 %")
    for row in found.scores:
        low, high = row["coverage90_interval"]
        worst = f"{row['worst']}: {row['coverage90_by_channel'][row['worst']]:.0%}"
        told = (f"{row['seconds']:.3g}", f"{row['nrmse']:.4f}", f"{row['coverage']['0.9']:.0%}")
        table.add_row(str(row["steps"]), *told, f"{low:.0%} to {high:.0%}", plain(worst))
    console.print(table)
    if found.outcomes:
        errors = ", ".join(f"{plain(name)} {error:.4f}" for name, error in found.outcomes.items())
        console.print(f"what a step brings, error (1 = foretelling its mean): {errors}")
    console.print(f"model: {plain(str(options.output / 'model'))}")


def _parameters(options: argparse.Namespace, console: Console) -> None:
    from rich.table import Table

    from sim2real.environment_recipe import starter_recipe
    from sim2real.preview import find_parameters
    from sim2real.randomization.env_parameters import affects
    from sim2real.randomization.mujoco_fields import MujocoFields

    found, is_env = find_parameters(options.target)
    if isinstance(found, MujocoFields):
        nominal = found.nominal
        units = {name: a.unit for name, a in found.addresses.items()}
        effects = {name: a.affects for name, a in found.addresses.items()}
    else:
        nominal, units, effects = found.nominal(), found.units(), affects(found)
    if options.yaml:
        print(starter_recipe(options.target, nominal, is_env), end="")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("parameter", "shape", "nominal", "unit"):
        table.add_column(title, no_wrap=True)
    table.add_column("affects")
    for name, parts in _vectors(nominal).items():
        values = ", ".join(f"{nominal[part]:.6g}" for part in parts)
        shape = f"({len(parts)},)" if parts != [name] else ""
        found_units = list(dict.fromkeys(units[part] for part in parts))
        text = list(dict.fromkeys(effects[part] for part in parts))
        table.add_row(plain(name), shape, values, ", ".join(u or "1" for u in found_units), "; ".join(text))
    console.print(table)
    console.print(
        f"{len(nominal)} numbers. Components are name\\[0], name\\[1], ...; the name of a vector means all of them; * "
        f"and ? match names.\nA starter recipe: sim2real parameters {plain(options.target)} --yaml"
    )


def _vectors(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the components of vectors: name -> its components, or itself."""
    out: dict[str, list[str]] = {}
    for name in names:
        out.setdefault(name.rpartition("[")[0] if name.endswith("]") else name, []).append(name)
    return out


def _preview(options: argparse.Namespace, console: Console) -> None:
    from rich.table import Table

    from sim2real.preview import preview, recipe_target

    env = options.env or recipe_target(options.recipe)
    with console.status(f"making {plain(env)}") as status:
        rows = preview(
            env,
            options.recipe,
            steps=options.steps,
            seed=options.seed,
            progress=lambda name: status.update(f"trying {plain(name)} alone on {plain(env)}"),
        )
    table = Table(box=None, pad_edge=False)
    for title in ("parameter", "drawn", "written to", "nominal", "5 %", "95 %", "unit", "effect"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        effect = f"{row.effect:.2g}" if row.effect else "[red]none[/]"
        values = (f"{x:.4g}" for x in (row.nominal, row.low, row.high))
        table.add_row(plain(row.name), plain(row.notation), str(len(row.targets)), *values, row.unit or "1", effect)
    console.print(table)
    console.print(
        "effect: how far the trajectories at 5 % and 95 % lie apart; 0.5 is as far as observations spread anyway"
    )
    without = [row.name for row in rows if not row.effect]
    if without:
        console.print(f"[red]no effect[/] within {options.steps} steps of random actions: {plain(', '.join(without))}")
        console.print("--steps tries longer")
        if any(".friction" in name for name in without):
            console.print("of the frictions of two geoms in contact the larger counts: randomize that, or both")


def _doctor(console: Console) -> None:
    import importlib.metadata
    import platform

    import torch

    from sim2real.randomization.mujoco_simulator import available_threads

    console.print(f"sim2real {__version__}, Python {platform.python_version()}, {platform.platform()}")
    console.print(f"cores: {available_threads()} (SIM2REAL_THREADS sets how many are used)")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    console.print(f"GPU: {gpu}")
    for extra, packages in _extras().items():
        rows = []
        for package in packages:
            try:
                rows.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                rows.append(f"[red]{package} missing[/]")
        mend = "" if all("missing" not in r for r in rows) else f"   pip install 'sim2real-toolkit\\[{extra}]'"
        console.print(f"{extra:>8}: {', '.join(rows)}{mend}")


def _extras() -> dict[str, list[str]]:
    """The dependencies of each extra, as the installed distribution declares them; "core" for those without one."""
    import importlib.metadata
    import re

    out: dict[str, list[str]] = {}
    try:
        declared = importlib.metadata.requires("sim2real-toolkit") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    for line in declared:
        package = re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]
        marker = re.search(r"extra == ['\"](\w+)['\"]", line)
        extra = marker[1] if marker else "core"
        if extra != "all" and package != "sim2real-toolkit":
            out.setdefault(extra, []).append(package)
    return out


if __name__ == "__main__":
    sys.exit(main())
