"""Many sources: what they share, and what opening them does not read."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdataloader.collection.collection import Collection
from scdataloader.errors import SourcesError, StoreFormatError
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.store.manifest import Manifest
from scdataloader.store.reader import Store
from scdataloader.store.tables import Table
from scdataloader.store.verify import verify
from scdataloader.testing import check_source
from tests.store.conversions import Stored, here
from tests.store.store_damage import reseal

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
    assert collection.parts[0].source.labels == {"organism": "NCBITaxon:9606", "assay": "10x", "a.b": "dotted"}
    assert verify(store).n_cells == 24


def test_a_manifest_with_other_labels_is_refused(store):
    manifest = Manifest.load(store)
    wrong = replace(manifest.sources[0], columns={**manifest.sources[0].columns, "donor": "a"})
    replace(manifest, sources=(wrong, *manifest.sources[1:])).save(store)
    with pytest.raises(StoreFormatError, match=r"obs/00000.parquet has other columns or labels"):
        verify(store)


# --- different genes --------------------------------------------------------------------------------------------------


def features(genes, **columns):
    return pd.DataFrame(columns, index=genes)


DIFFERENT = {
    "all": features(GENES),
    "some": features(GENES[3:30]),
    "versions": features([f"{gene}.{at}" for at, gene in enumerate(GENES[5:35])]),
    "column": features([f"G{i}" for i in range(20)], gene_ids=GENES[10:30]),
    "antibodies": features([*GENES[:9], "CD3"], feature_types=["Gene Expression"] * 9 + ["Antibody Capture"]),
    "few": features([GENES[39], GENES[2], "eGFP"]),
}


def different(name):
    var = DIFFERENT[name]
    x = sp.csr_matrix(np.arange(1, 4 * len(var) + 1, dtype=np.float32).reshape(4, len(var)))
    return Stored(name, x, var, pd.DataFrame(COLUMNS, index=[f"{name}{i}" for i in range(4)]))


@pytest.fixture
def of_different_genes(out):
    here([different(name) for name in list(DIFFERENT)[:4]], out)
    here([different(name) for name in list(DIFFERENT)[4:]], out, append=True)
    return out


def read_tables(monkeypatch):
    """Names of the folders of the tables that are read."""
    found, read = [], Table.read
    monkeypatch.setattr(
        Table, "read", lambda table, *args, **kw: found.append(table.path.parent.name) or read(table, *args, **kw)
    )
    return found


@pytest.mark.parametrize("vocabulary", [None, GENES[::-1], [*GENES[8:12], "eGFP", GENES[2]]])
def test_different_genes_are_those_of_their_tables(of_different_genes, vocabulary, monkeypatch):
    manifest, genes = Manifest.load(of_different_genes), GeneAlignment(vocabulary=vocabulary, organisms="human")
    assert len(manifest.gene_index) == 2
    tables = read_tables(monkeypatch)
    collection = Collection.open(of_different_genes, genes=genes)
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(24), 2))
    cells = collection.cells(rows)
    assert tables.count("var") == 2  # their names are in a column, or some of their features are antibodies
    assert verify(of_different_genes).n_cells == 24
    replace(manifest, gene_index=()).save(of_different_genes)
    before = Collection.open(of_different_genes, genes=genes)
    assert (before.vocabulary, before.fingerprint) == (collection.vocabulary, collection.fingerprint)
    for one, other in zip(collection.parts, before.parts, strict=True):
        np.testing.assert_array_equal(one.genes.lut, other.genes.lut)
        assert one.genes.duplicates == other.genes.duplicates
        assert one.genes.monotone is other.genes.monotone
    np.testing.assert_array_equal(collection.measured, before.measured)
    expected = before.cells(rows)
    np.testing.assert_array_equal(cells.x.to_scipy().toarray(), expected.x.to_scipy().toarray())
    np.testing.assert_array_equal(cells.depth, expected.depth)


def test_sources_of_different_genes_share_look_up_tables(out):
    here([source(f"s{i}", GENES[i:] if i % 2 else GENES[: 40 - i]) for i in range(8)], out)
    (group,) = Collection.open(out)._groups
    assert len(group._genes.look_up.how) == 1
    reverse = Collection.open(out, genes=GeneAlignment(vocabulary=GENES[::-1]))
    (group,) = reverse._groups
    assert len(group._genes.look_up.how) == 1
    assert reverse.read(np.array([4])).indices.tolist() == list(range(39))


def test_a_store_with_a_gene_index_can_be_pickled_and_checked(of_different_genes):
    for one in Store.open(of_different_genes).sources:
        check_source(lambda name=one.name: _named(of_different_genes, name))


def _named(store, name):
    return next(source for source in Store.open(store).sources if source.name == name)


def index_of(store):
    return Manifest.load(store).gene_index[0].path


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("genes", b"\xff" * 6, "is not a gene index: its row"),
        ("genes", b"\xff" * 2, "is not a gene index: its row"),
        ("space", 7, "is not a gene index: its row"),
        ("are_names", 3, "is not a gene index: its row"),
        ("elsewhere", 3, "is not a gene index: it has the columns"),
    ],
)
def test_a_wrong_gene_index_is_refused(store, column, value, why):
    path = store / index_of(store)
    frame = pd.read_parquet(path)
    frame[column] = [value] * len(frame)
    frame.to_parquet(path)
    reseal(store)
    for act in (Collection.open, verify):
        with pytest.raises((StoreFormatError, SourcesError), match=f"{path.name} {why}"):
            act(store)


def test_a_gene_index_of_other_genes_is_refused(store):
    path = store / index_of(store)
    frame = pd.read_parquet(path)
    frame["genes"] = [bytes([genes[0] ^ 1]) + genes[1:] for genes in frame["genes"]]
    frame.to_parquet(path)
    reseal(store)
    with pytest.raises(StoreFormatError, match=rf"{path.name} states other genes than gene table \w+ has"):
        verify(store)
    with pytest.raises(StoreFormatError, match=r"var/\w+.parquet has other genes than the store's gene index states"):
        Store.open(store).sources[0].var  # noqa: B018
