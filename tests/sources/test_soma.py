"""Addresses of TileDB-SOMA; tests with the library are in tests/consumers/scvi."""

from importlib.util import find_spec

import pytest
import yaml

import scdataloader as scd
from scdataloader.sources.soma import _parsed

FILTER = "is_primary_data==True&cell_type in ['B', 'NK'] & age>=3&dose!=0"


@pytest.mark.parametrize("place", ["exp", "/data/exp", "s3://bucket/exp", "a b/exp"])
@pytest.mark.parametrize("start", ["soma:", "soma://"])
def test_an_address_is_a_place_and_options(start, place):
    text = f"{start}{place}?measurement=RNA&obs_query={FILTER}&layer=raw"
    assert yaml.safe_load(f"data: {text}")["data"] == text
    assert _parsed(text) == (place, {"measurement": "RNA", "obs_query": FILTER, "layer": "raw"})
    assert _parsed(f"{start}{place}") == (place, {})


def test_a_path_has_no_prefix():
    assert _parsed("//data/exp") == ("//data/exp", {})


@pytest.mark.skipif(find_spec("tiledbsoma") is not None, reason="tiledbsoma is installed")
def test_the_extra_is_named_where_it_is_missing(tmp_path):
    (tmp_path / "__tiledb_group.tdb").touch()
    for data in (tmp_path, f"soma:{tmp_path}"):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'scdataloader\[soma\]'"):
            scd.Collection.open(data)
