"""Python objects that a recipe names: `package.module:name`, or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim2real.errors import Sim2RealError


def imported(source: str) -> Any:
    """Return what a recipe names; this runs the file or module: it is code, like an environment's.

    Args:
        source: `package.module:name`, or `file.py:name`.

    Raises:
        ImportError: with one line that says what is missing.
    """
    place, _, name = source.rpartition(":")
    if not place or not name or place.startswith("."):
        raise ImportError(f"expected package.module:name or file.py:name, found {source!r}")
    if place.endswith(".py"):
        path = Path(place)
        spec = importlib.util.spec_from_file_location(f"sim2real_file_{path.stem}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ImportError(f"there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    if not hasattr(module, name):
        known = [k for k in vars(module) if not k.startswith("_")]
        raise ImportError(f"{place} has no {name!r}; it has {', '.join(known[:20]) or 'nothing'}")
    return getattr(module, name)


def imported_function(source: str, where: str, expected: str, kind: type[Sim2RealError]) -> Callable[..., Any]:
    """Return the function that a key names.

    Args:
        source: as for `imported`.
        where: the key, for errors.
        expected: what it should have been, for errors.
        kind: of error.

    Raises:
        Sim2RealError: of that kind: it cannot be imported, or is no function.
    """
    try:
        found = imported(source)
    except ImportError as error:
        raise kind(f"{where}: {error}") from error
    if not callable(found):
        raise kind(f"{where}: {source} is a {type(found).__name__}, {expected}")
    return found  # type: ignore[no-any-return]
