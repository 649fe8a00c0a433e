"""The JSON Schema of log schemas, for editors that complete and check YAML."""

from __future__ import annotations

import re
from typing import Any

from sim2real.logs.schema import LogSchema


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of log schemas, for editors that complete and check YAML."""
    found = LogSchema.model_json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    joints = found["properties"]["joints"]
    found["properties"]["joints"] = {
        "description": joints.get("description", ""),
        "anyOf": [
            {"type": "array", "items": {"type": "string"}},
            {k: v for k, v in joints.items() if k != "description"},
        ],
    }
    parts = [*found.get("$defs", {}).values(), found]
    own = [_texts(part.get("description", "")) for part in parts]
    known = {name: text for texts in own for name, text in texts.items()}  # a clock has what a column has
    for part, texts in zip(parts, own, strict=True):
        for name, what in part.get("properties", {}).items():
            if name in known:
                what["description"] = texts.get(name, known[name])
        part["description"] = part.get("description", "").split("\n\nAttributes:")[0]
    return found


def _texts(docstring: str) -> dict[str, str]:
    """Return attribute -> what the docstring of its class says of it."""
    attributes = docstring.partition("Attributes:\n")[2]
    found: list[tuple[str, str]] = re.findall(r"^ {4}([\w, ]+): ((?:.|\n(?! {4}[\w, ]+:))+)", attributes, re.M)
    return {name.strip(): " ".join(text.split()) for names, text in found for name in names.split(",")}
