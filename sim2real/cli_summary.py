"""What the command line says of a run that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Share of the periods in which plans may be late before it is worth a word.
LATE = 0.05


def plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def summarise(directory: Path, verb: str, console: Console) -> None:
    """Say in a few lines what a run found."""
    from sim2real.run_directory import read_json

    def result(name: str) -> Any:
        return read_json(directory / "stages" / f"{name}.json")["result"]

    if verb == "identify":
        console.print(_parameter_table(result("identify")["parameters"]))
        told = result("identify")["evidence"]
        console.print(
            f"mean error {told['mean_absolute_error']:.2g} rad or m, in windows of {told['window']:.3g} s "
            f"({told['windows']} of them)"
        )
        for finding in result("identify").get("findings", ()):
            console.print(f"• \\[{finding['code']}] {plain(finding['what'])}")
            console.print(f"  {plain(finding['remedy'])}")
        console.print(f"posterior: {plain(str(directory / 'posterior'))}")
        robot = result("identify").get("robot_file", "not written")
        console.print(f"robot file: {plain(robot if robot.startswith('not written') else str(directory / robot))}")
        console.print(f"report: {plain(str(directory / 'identification.html'))}")
    elif verb == "finetune":
        told = result("finetune")
        console.print(_finetune_table(told))
        for name, error in told["tried"].items():
            console.print(f"{plain(name):>11}: error {error:.3g} on stretches of time it was not tuned on")
        if told["forgetting"]:
            before, after = (f"{told['forgetting'][k]:.3g}" for k in ("before", "after"))
            console.print(f"error on replayed simulations, relative to how far the robot gets: {before}, now {after}")
        console.print(f"fine-tuning ({plain(told['method'])}) {plain(told['reason'])}")
        console.print(f"model: {plain(str(directory / 'model' / 'finetuned'))}")
        console.print(f"report: {plain(str(directory / 'finetuning.html'))}")
    elif verb == "control":
        from sim2real.report.closed_loop import MEANING

        found = result("control")
        for name, value in found.get("returns", {}).items():
            words = f", {MEANING[name]}" if name in MEANING else ""
            console.print(f"{name:>9}: mean {found['measure']} {value:.3f} (0 to 1){words}")
        for name, reasons in found.get("safety", {}).items():
            told = ", ".join(f"{reason} {many}" for reason, many in reasons.items()) or "never"
            console.print(f"{name:>9}: the safety filter stepped in: {told}")
        for name, share in found.get("backed_off", {}).items():
            console.print(f"{name:>9}: backed off in {share:.1%} of the periods")
        if found.get("loop"):
            console.print(f"real time: {plain(_clock(found['loop']))}")
            if "failed" not in found["loop"]:
                console.print(f"recording: {plain(str(directory / 'loop' / 'logs'))}")
        if "not_applicable" in found:
            console.print(f"not applicable: {plain(found['not_applicable'])}")
    else:
        console.print(_score_table(result("evaluate")["scores"]))
    if verb == "run":
        from sim2real.report import findings

        for line in findings(read_json(directory / "metrics.json")):
            console.print(f"• {plain(line)}")
        console.print(f"report: {plain(str(directory / 'report.html'))}")


def _parameter_table(parameters: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("parameter", "value", "90 % interval", "unit", "prior", box=None, pad_edge=False)
    for name, p in parameters.items():
        low, high = p["interval90"]
        table.add_row(name, f"{p['mean']:.4g}", f"{low:.4g} to {high:.4g}", p["unit"], plain(p["prior"]))
    return table


def _clock(told: dict[str, Any]) -> str:
    """Return what the clock said of a control loop, in words."""
    if "failed" in told:
        return f"given up: {told['failed']}; a safety filter (control.safety) would have braked and gone on"
    words = (
        f"{told['periods']} periods at {told['rate_hz']:.3g} Hz, {told['missed']} late by a tenth or more; command "
        f"after {told['command_ms_p50']:.2g} ms, 99 % within {told['command_ms_p99']:.2g} ms; plan before followed "
        f"{told['followed']} times; mean closeness to the goal {told['closeness']:.3f}"
    )
    if told["followed"] > LATE * told["periods"]:
        words += (
            " (plans come too late for this rate: fewer candidates or iterations, a shorter horizon, a quiet machine)"
        )
    if told["safety"]:
        words += "; safety filter: " + ", ".join(f"{reason} {many}" for reason, many in told["safety"].items())
    return words


def _finetune_table(told: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("seconds ahead", "held-out CRPS before", "after", box=None, pad_edge=False)
    for horizon, before in told["crps"]["before"].items():
        after = told["crps"]["after"][horizon]
        table.add_row(horizon, f"{before:.3g}", f"{after:.3g} ({100 * (after / before - 1):+.0f} %)")
    return table


def _score_table(scores: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table("recording", "predictor", "mean NRMSE", "CRPS", "90 % coverage", box=None, pad_edge=False)
    for split in ("test", "shift"):
        for recording, rows in scores.get(split, {}).items():
            for k, (name, s) in enumerate(rows.items()):
                table.add_row(
                    plain(recording) if k == 0 else "",
                    name,
                    f"{s['mean_nrmse']:.4f}",
                    f"{s['crps']:.4f}",
                    f"{s['coverage90']:.2f}",
                )
    return table
