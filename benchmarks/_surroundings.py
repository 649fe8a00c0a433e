"""What a measurement ran on, and on how many threads."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any


def surroundings(*packages: str) -> dict[str, Any]:
    """Return the machine, and the versions of the toolkit and of packages, where they are installed."""
    information, versions = Path("/proc/cpuinfo"), {"python": platform.python_version()}
    lines = information.read_text().splitlines() if information.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    for package in ("sim2real-toolkit", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"machine": {"cpu": cpu, "cores": os.cpu_count(), "threads": 1}, "versions": versions}


def one_thread() -> None:
    """Start the script anew with one thread where it has more: numerical libraries read this when they are loaded."""
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "SIM2REAL_THREADS"), "1")
    if any(os.environ.get(k) != v for k, v in alone.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | alone)
