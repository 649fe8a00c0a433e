"""Order of the tests: the files that take longest go first, so that two workers finish together."""

from __future__ import annotations

import pytest

LONG = (
    "test_sweep.py",
    "test_vector.py",
    "test_examples.py",
    "test_cli.py",
    "test_packaging.py",
    "test_mujoco_fields.py",
    "test_identify.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return LONG.index(item.path.name) if item.path.name in LONG else len(LONG)

    items.sort(key=rank)
