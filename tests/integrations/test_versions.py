"""The warning of versions that are not tested."""

import importlib.metadata

import pytest

from scdataloader.integrations import versions


@pytest.fixture(autouse=True)
def _nothing_is_warned_of():
    versions.warn_untested.cache_clear()
    yield
    versions.warn_untested.cache_clear()


@pytest.mark.parametrize(
    ("found", "is_tested"),
    [
        ("1.4", True), ("1.4.2", True), ("1.5", True), ("1.5.0.post1", True), ("1.5rc1", True), ("1.4.0+cpu", True),
        ("1.3.9", False), ("1", False), ("0.9", False), ("1.6", False), ("1.10", False), ("2", False),
    ],
)  # fmt: skip
def test_versions_in_the_range_are_silent(found, is_tested, monkeypatch, caplog):
    monkeypatch.setattr(versions, "version", {"scvi-tools": found}.__getitem__)
    for _ in range(2):
        versions.warn_untested("scvi-tools", "1.4", "1.5")
    expected = [] if is_tested else [f"scvi-tools {found} is not tested with scdataloader"]
    assert [message.partition(",")[0] for message in caplog.messages] == expected
    assert is_tested or "1.4 to 1.5" in caplog.text


def test_a_bound_counts_to_its_last_number(monkeypatch, caplog):
    monkeypatch.setattr(versions, "version", {"jax": "0.4.30"}.__getitem__)
    versions.warn_untested("jax", "0.4.31", "0.9")
    assert "jax 0.4.30 is not tested" in caplog.text


def test_the_installed_version_is_compared(caplog):
    versions.warn_untested("numpy", "0.1", "0.2")
    versions.warn_untested("not-installed", "0.1", "0.2")
    assert [message.split()[:2] for message in caplog.messages] == [["numpy", importlib.metadata.version("numpy")]]
