"""The environment frameworks."""

from importlib.metadata import version


def test_the_versions_are_those_that_are_supported():
    assert int(version("transformers").split(".")[0]) >= 4
