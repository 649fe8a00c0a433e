"""How models lie on disk, with a format version, never pickle.

`config.json` and `model.safetensors`; `recalibration.json` beside them where a model was recalibrated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sim2real.errors import ModelError
from sim2real.prediction import Recalibration

FORMAT_VERSION = 1
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, config: Mapping[str, Any], directory: str | Path) -> None:
    """Write the weights and buffers of a model and what it is built from into a directory, which is made."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    document = {"format_version": FORMAT_VERSION, "class": type(model).__name__, **config}
    (directory / "config.json").write_text(json.dumps(document, indent=1))


def load(kind: type[Model], config: type[Any], directory: str | Path) -> Model:
    """Read what `save` wrote: a model of a kind that is built from a dataclass of its configuration.

    Raises:
        ModelError: files are missing, damaged, of another format or of another kind of model.
    """
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise ModelError(f"no model in {directory}: expected {name}")
    try:
        document = json.loads((directory / "config.json").read_text())
        tensors = load_file(directory / "model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise ModelError(f"the model in {directory} is damaged: {error}") from None
    found = document.get("format_version") if isinstance(document, dict) else None
    if found != FORMAT_VERSION:
        raise ModelError(f"the model in {directory} has format {found}, this version reads {FORMAT_VERSION}")
    if document.get("class") != kind.__name__:
        raise ModelError(f"{directory} holds a {document.get('class')}, expected a {kind.__name__}")
    known = {f.name for f in fields(config)}
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items() if k in known}
    try:
        model = kind(config(**settings))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model in {directory} is damaged: its config.json: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the weights in {directory} do not fit its config.json: {reason}") from None
    return model


def save_recalibration(found: Recalibration | None, directory: str | Path) -> None:
    """Write `recalibration.json` beside a model, or remove that of the one that lay there before."""
    path = Path(directory) / "recalibration.json"
    if found is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(found.to_json()))


def load_recalibration(directory: str | Path, channels: int) -> Recalibration | None:
    """Read what `save_recalibration` wrote; None where there was nothing to write.

    Raises:
        ModelError: the file is damaged, or of another number of channels.
    """
    path = Path(directory) / "recalibration.json"
    if not path.is_file():
        return None
    try:
        found = Recalibration.from_json(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    shape = (len(found.horizon), channels)
    if not found.scale.shape == found.floor.shape == shape:
        raise ModelError(f"{path} is of another model: expected {channels} channels, found {found.scale.shape}")
    return found


def digest(model: nn.Module) -> str:
    """Return a digest of the weights and buffers of a model."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()
