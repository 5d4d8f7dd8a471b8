"""Many sources: what they share, and what opening them does not read."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.collection.collection import Collection
from scdataloader.errors import StoreFormatError
from scdataloader.store.manifest import Manifest
from scdataloader.store.reader import Store
from scdataloader.store.tables import Table
from scdataloader.store.verify import verify
from tests.store.conversions import Stored, here

GENES = [f"ENSG{i:011d}" for i in range(40)]
COLUMNS = {
    "organism": pd.Categorical(["NCBITaxon:9606"] * 4, categories=["NCBITaxon:10090", "NCBITaxon:9606"]),
    "assay": ["10x"] * 4,
    "donor": ["a", "a", "b", "a"],
    "partly": ["x", None, "x", "x"],
    "age": [3, 3, 3, 3],
    "a.b": ["dotted"] * 4,
}


def source(name, genes=GENES, n_cells=4):
    obs = pd.DataFrame({key: list(values)[:n_cells] for key, values in COLUMNS.items()})
    obs["organism"] = COLUMNS["organism"][:n_cells]
    x = sp.csr_matrix(np.full((n_cells, len(genes)), 1 + len(name), np.float32))
    return Stored(name, x, pd.DataFrame(index=genes), obs.set_axis([f"{name}{i}" for i in range(n_cells)]))


@pytest.fixture
def store(out):
    here([source(f"s{i}", GENES[:30] if i % 2 else GENES) for i in range(6)], out)
    return out


def test_labels_that_all_cells_have(out):
    here([source("one"), source("no cells", n_cells=0)], out)
    one, empty = Store.open(out).sources
    assert one.labels == {"organism": "NCBITaxon:9606", "assay": "10x", "a.b": "dotted"}
    assert one.obs_columns == list(COLUMNS) == empty.obs_columns
    assert empty.labels == {}


@pytest.mark.parametrize("layout", ["source", "shuffled", "grouped:donor"])
def test_opening_reads_no_cell_table(out, layout, monkeypatch):
    here([source("a"), source("b")], out, layout=layout)
    read = Table.read
    monkeypatch.setattr(Table, "read", lambda table, *args, **kw: _no_obs(table) or read(table, *args, **kw))
    collection = Collection.open(out)
    assert [part.organism for part in collection.parts] == ["NCBITaxon:9606"] * 2
    monkeypatch.undo()
    assert collection.obs(["donor", "organism"])["donor"].value_counts().to_dict() == {"a": 6, "b": 2}


def _no_obs(table):
    if table.path.parent.name == "obs":
        pytest.fail(f"{table.path} was read")


def test_sources_with_equal_genes_share_them(store):
    parts = Collection.open(store).parts
    assert len({id(part.genes) for part in parts}) == 2
    assert len({id(part.source.places) for part in parts}) == 2
    assert parts[0].source.var is parts[2].source.var


def test_a_store_of_an_earlier_release_states_no_labels(store):
    manifest, fingerprint = Manifest.load(store), Collection.open(store).fingerprint
    replace(manifest, sources=tuple(replace(one, columns=None) for one in manifest.sources)).save(store)
    collection = Collection.open(store)
    assert collection.fingerprint == fingerprint
    assert collection.parts[0].source.obs_columns == list(COLUMNS)
    assert verify(store).n_cells == 24


def test_a_manifest_with_other_labels_is_refused(store):
    manifest = Manifest.load(store)
    wrong = replace(manifest.sources[0], columns={**manifest.sources[0].columns, "donor": "a"})
    replace(manifest, sources=(wrong, *manifest.sources[1:])).save(store)
    with pytest.raises(StoreFormatError, match=r"obs/00000.parquet has other columns or labels"):
        verify(store)
