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
    texts: dict[str, str] = {}
    for part in (*found.get("$defs", {}).values(), found):  # a clock's columns are described with those of a column
        texts |= dict(
            re.findall(r"^ {4}(\w+): ((?:.|\n(?! {4}\w+:))+)", _attributes(part.get("description", "")), re.M)
        )
        for name, what in part.get("properties", {}).items():
            if name in texts:
                what["description"] = " ".join(texts[name].split())
        part["description"] = part.get("description", "").split("\n\nAttributes:")[0]
    return found


def _attributes(docstring: str) -> str:
    return docstring.partition("Attributes:\n")[2]
