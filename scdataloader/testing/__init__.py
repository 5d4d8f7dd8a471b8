"""Checks for authors of plug-ins: each states the laws of a protocol and raises where an object breaks one.

In a test of your own::

    from scdataloader.testing import check_source

    def test_source():
        check_source(lambda: MySource("my://cells"))
"""

from scdataloader.testing.collates import check_collate, check_transform
from scdataloader.testing.data import MemorySource, named_batch, named_values
from scdataloader.testing.samplers import check_plan, check_sampler
from scdataloader.testing.sources import check_source

__all__ = [
    "MemorySource",
    "check_collate",
    "check_plan",
    "check_sampler",
    "check_source",
    "check_transform",
    "named_batch",
    "named_values",
]
