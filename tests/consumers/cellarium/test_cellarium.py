"""The environment cellarium."""

from importlib.metadata import version


def test_the_versions_are_those_that_are_supported():
    assert version("cellarium-ml") == "0.0.15"
