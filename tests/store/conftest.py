"""Fixtures of the tests of the store."""

import pytest

from scdataloader.store.writing import matrices, tasks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Conversions of a few cells have several blocks, and note each."""
    monkeypatch.setattr(tasks, "_CELLS_PER_BLOCK", 3)
    monkeypatch.setattr(matrices, "_CELLS_PER_BLOCK", 3)
    monkeypatch.setattr(tasks, "_SECONDS_PER_NOTE", 0.0)


@pytest.fixture
def out(tmp_path):
    """The store to convert into."""
    return tmp_path / "atlas.cells"
