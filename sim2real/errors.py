"""The exceptions of the toolkit: one base, each also the builtin that it is a kind of."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class Sim2RealError(Exception):
    """Base of every error that the toolkit raises on purpose.

    Its message is a whole sentence for the user: what was expected, what was found, what is available, how to mend it.
    """


class RecipeError(Sim2RealError, ValueError):
    """A recipe, or a `key=value` override of it, that cannot be used."""


class LogError(Sim2RealError, ValueError):
    """A recorded log, or the schema that describes it, that cannot be read."""


class RobotError(Sim2RealError, ValueError):
    """A robot file that cannot be loaded."""


class ParameterError(Sim2RealError, ValueError):
    """A parameter that does not exist, cannot be parsed, or did not take effect."""


class SafetyError(Sim2RealError):
    """A robot was stopped, and has to be looked at before it goes on."""


class NonFiniteError(Sim2RealError, ArithmeticError):
    """A simulator, an estimator or a model that returned NaN or infinity."""


class ModelError(Sim2RealError, ValueError):
    """A saved model or posterior that cannot be used."""


class RenderError(Sim2RealError, RuntimeError):
    """Pictures that cannot be drawn here."""


class MissingExtraError(Sim2RealError, ImportError):
    """An optional dependency that is not installed."""


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return '; did you mean a, b?' for the names nearest to `name`, or the available ones where none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"; available: {shown or 'none'}"


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which command installs it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module} is needed here and is not installed: pip install 'sim2real-toolkit[{extra}]'"
        ) from error
