"""A page: one HTML file, readable offline, with everything in it; what comes from outside is escaped."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sim2real.report.notation import digits, small_percent, trimmed

_UNBROKEN = re.compile(r"(?<=\d) (?=%|(?:s|ms|rad|mrad|mm)\b)")


def write_page(path: Path, text: str) -> Path:
    """Write a page in one piece: a kill leaves the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def fill(template: str, **context: Any) -> str:
    """Fill one of the templates of this folder; all of them get the style and plotly.

    Args:
        template: name of its file.
        context: what it needs.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_file),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"digits": digits, "small_percent": small_percent, "trimmed": trimmed}
    environment.filters |= {"figure": figure_json, "unbroken": unbroken}
    style, plotly = Markup(_file("style.css")), Markup(get_plotlyjs())
    return environment.get_template(template).render(**context, style=style, plotly=plotly)


def figure_json(figure: Any) -> Markup:
    """Return a figure as JSON that cannot end the script element around it."""
    text = json.dumps(json.loads(figure.to_json()), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def unbroken(text: str) -> str:
    """Keep a number and its unit on one line."""
    return _UNBROKEN.sub("\N{NO-BREAK SPACE}", text)


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
