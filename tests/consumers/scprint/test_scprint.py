"""The environment scprint."""

from importlib.metadata import version


def test_the_versions_are_those_that_are_supported():
    assert version("scprint2") == "1.0.3"
