"""The verbs of `sim2real logs`: check, schema and convert."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim2real.errors import LogError

Say = Callable[[str], None]


def add_parsers(verbs: Any) -> None:
    """Add `logs` and its actions to the verbs of a parser."""
    logs = verbs.add_parser("logs", help="check, describe and convert recorded logs")
    actions = logs.add_subparsers(dest="action", required=True, metavar="action")
    check = actions.add_parser("check", help="say what is wrong with logs, what that prevents and how to mend it")
    _reading(check)
    check.add_argument(
        "--format", choices=("text", "json", "html"), default="text", help="of the report (default: text)"
    )
    check.add_argument("--output", type=Path, help="file for the report; the screen where it is left out")
    schema = actions.add_parser("schema", help="draft the schema of a log by looking at it")
    schema.add_argument("path", nargs="?", help="a log, or a folder of logs")
    schema.add_argument(
        "--json-schema", action="store_true", help="print the JSON Schema of schemas, for editors, instead"
    )
    schema.add_argument("--output", type=Path, help="file to write, which must not exist yet")
    convert = actions.add_parser("convert", help="write logs as Parquet of our own or as a LeRobot v3.0 data set")
    _reading(convert)
    convert.add_argument("--to", choices=("parquet", "lerobot"), default="parquet", help="format (default: parquet)")
    convert.add_argument("--fps", type=float, help="frames a second of the LeRobot data set (default: as recorded)")
    convert.add_argument("--task", default="", help="what the robot was to do, for LeRobot")
    convert.add_argument("--output", type=Path, required=True, help="folder to write")


def _reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder, file, data set, archive, or a glob in quotes")
    parser.add_argument(
        "--schema", type=Path, help="YAML file that says what the columns are; our own Parquet needs none"
    )
    parser.add_argument("--names", nargs="+", help="recordings to read (default: all)")


def run(options: argparse.Namespace, say: Say) -> int:
    """Carry out an action; return the exit status."""
    if options.action == "check":
        return _check(options, say)
    if options.action == "schema":
        return _schema(options, say)
    return _convert(options, say)


def _check(options: argparse.Namespace, say: Say) -> int:
    from sim2real.logs.find import Skipped
    from sim2real.logs.lint import check_recordings
    from sim2real.logs.raw import raw_of
    from sim2real.logs.read import read_logs, read_raw
    from sim2real.logs.schema import LogSchema

    skipped: list[Skipped] = []
    if options.schema is None:
        episodes = read_logs(options.path, None, options.names, on_error="skip")
        recordings, skipped = [raw_of(e) for e in episodes], list(episodes.skipped)
    else:
        recordings = read_raw(options.path, LogSchema.load(options.schema), options.names, skipped)
    report = check_recordings(recordings, tuple((s.name, s.reason) for s in skipped))
    text = {"text": report.text, "json": lambda: json.dumps(report.to_json(), indent=1), "html": report.html}[
        options.format
    ]()
    if options.output is None:
        say(text)
    else:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
        say(f"report: {options.output}")
    return int(any(f.severity == "error" for f in report.findings))


def _schema(options: argparse.Namespace, say: Say) -> int:
    from sim2real.logs.draft import draft_schema
    from sim2real.logs.json_schema import json_schema

    if options.json_schema:
        text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    elif options.path is None:
        raise LogError("name a log to look at: sim2real logs schema FILE (or --json-schema for that of schemas)")
    else:
        text = draft_schema(options.path).rstrip()
    if options.output is None:
        say(text)
    elif options.output.exists():
        raise LogError(f"{options.output}: is there already; name another file, or remove it")
    else:
        options.output.write_text(text + "\n", encoding="utf-8")
        say(f"schema: {options.output}; look at it, then: sim2real logs check {options.path} --schema {options.output}")
    return 0


def _convert(options: argparse.Namespace, say: Say) -> int:
    from sim2real.logs.lerobot import write_lerobot
    from sim2real.logs.read import read_logs
    from sim2real.logs.write import write_parquet

    episodes = read_logs(options.path, options.schema, options.names)
    if options.to == "parquet":
        written = write_parquet(episodes, options.output)
        say(f"wrote {len(written)} recordings to {options.output}")
    else:
        write_lerobot(episodes, options.output, fps=options.fps, task=options.task)
        say(f"wrote {len(episodes)} episodes to {options.output}")
    return 0
