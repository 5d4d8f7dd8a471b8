"""What a terminal and a notebook show of the objects that users hold."""

import re
from html import unescape

import numpy as np
import pytest

import scdataloader as scd
from scdataloader.runtime.facts import as_html, as_text
from scdataloader.testing.data import MemorySource, named_values

NAME = "<b>first</b>"


def rows_of(html):
    """{fact: value} of a table in HTML."""
    return {fact: unescape(value) for fact, value in re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", html)}


def test_facts_are_aligned_and_escaped():
    facts = {"n": 1234567, "name": "<b>"}
    assert as_text("Thing", facts) == "Thing\n  n     1,234,567\n  name  <b>"
    assert rows_of(as_html("<i>", facts)) == {"n": "1,234,567", "name": "<b>"}
    assert "<b>&lt;i&gt;</b>" in as_html("<i>", facts)
    assert len(as_text("Thing", {"long": "x" * 1000})) < 250


@pytest.fixture
def dm():
    genes = [f"ENSG{i:011d}" for i in range(5)]
    obs = {"cell_type": np.tile(["a", "b"], 20)}
    sources = [MemorySource(name, named_values(40, 5, seed=seed), genes, obs) for seed, name in enumerate((NAME, "x"))]
    return scd.DataModule(data=sources, labels="cell_type", split=scd.Split(val=0.25), batch_size=8)


def test_objects_state_what_they_hold(dm, tmp_path):
    shown = repr(dm.collection)
    assert re.search(r"cells +80\n  sources +2: <b>first</b>, x\n  genes +5\n  organisms +NCBITaxon:9606\n", shown)
    assert rows_of(dm.collection._repr_html_())["sources"] == "2: <b>first</b>, x"
    shown = repr(dm.train_dataloader())
    assert re.search(r"batches +7 per epoch.*\n.*8 cells on each of 1 rank\n.*60 per epoch, of 80", shown)
    store = scd.convert(dm.data, tmp_path / "out.cells", n_processes=1, progress=False)
    assert re.search(r"Store .*out\.cells\n  cells +80\n  sources +2: ", repr(store))


def test_a_module_shows_its_options_and_opens_nothing(dm):
    assert rows_of(dm._repr_html_())["batch_size"] == "8"
    assert "collection" not in vars(dm)
    dm.setup("fit")
    rows = rows_of(dm._repr_html_())
    assert (rows["cells"], rows["split into"]) == ("80", "60 training, 20 validation, 0 test")
    assert rows["classes"] == "2 of cell_type"
    assert repr(dm).startswith("DataModule(data=[")
