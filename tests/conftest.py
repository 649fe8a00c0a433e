"""Order of the tests: the files that take longest go first, so that two workers finish together.

For that pytest-xdist must leave the order alone: `make test` says `--no-loadscope-reorder`.
"""

from __future__ import annotations

import pytest

LONG = (
    "test_examples.py",
    "test_cli.py",
    "test_sweep.py",
    "test_vector.py",
    "test_genesis.py",
    "test_control_loop.py",
    "test_packaging.py",
    "test_mujoco_fields.py",
    "test_identify.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return LONG.index(item.path.name) if item.path.name in LONG else len(LONG)

    items.sort(key=rank)
