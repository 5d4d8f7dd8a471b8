"""The environment scvi."""

from importlib.metadata import version


def test_the_versions_are_those_that_are_supported():
    assert (1, 4) <= tuple(map(int, version("scvi-tools").split(".")[:2])) < (1, 6)
