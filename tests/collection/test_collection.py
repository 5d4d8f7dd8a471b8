"""G1, G2, G4, L3: many sources read as one table."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from scdataloader.collection.collection import Collection
from scdataloader.errors import GeneOverlapError, NotCountsError, SourcesError
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.protocols import Source
from scdataloader.runtime.faults import Faults
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.store.convert import convert
from scdataloader.testing import MemorySource, named_values

GENES = [f"ENSG{i:011d}" for i in range(30)]


def sources():
    """Three sources: genes in order, in another order with strangers between, and with a gene that occurs twice."""
    rng = np.random.default_rng(1)
    shuffled = list(rng.permutation(GENES[5:25]))
    return [
        MemorySource(
            "a", named_values(7, 12, seed=1), GENES[:12], {"type": pd.Categorical(list("xxyyxyx"))}, mapped=True
        ),
        MemorySource("b", named_values(5, 20, seed=2), shuffled, {"n": np.arange(5)}),
        MemorySource("c", named_values(4, 6, seed=3), [*GENES[20:24], GENES[20], "ENSG00000000029.7"], mapped=True),
    ]


def reference(vocabulary, parts):
    """What AnnData would give: each source's columns reindexed onto the vocabulary, equal ids summed, else zeros."""
    frames = []
    for source in parts:
        ids = [gene.split(".")[0] for gene in source.var.index]
        frame = pd.DataFrame(source.dense, columns=ids).T.groupby(level=0).sum().T
        frames.append(frame.reindex(columns=vocabulary, fill_value=0))
    return np.concatenate(frames)


@given(st.lists(st.integers(0, 15), max_size=40))
def test_reading_is_reindexing(rows):
    collection = Collection.open(sources())
    rows = np.array(rows, np.int64)
    expected = reference(collection.vocabulary.ids, sources())[rows]
    got = collection.cells(rows)
    assert np.array_equal(got.x.to_scipy().toarray(), expected)
    assert np.array_equal(got.source, np.repeat([0, 1, 2], [7, 5, 4])[rows])
    assert np.array_equal(got.row, rows)
    assert len(collection) == 16


@pytest.mark.parametrize("vocabulary", [GENES[3:9], GENES[::-1], [*GENES[10:12], "ENSG99999999999", *GENES[20:22]]])
def test_reading_through_a_given_vocabulary_drops_what_is_outside(vocabulary):
    given_sources = [source for source in sources() if set(vocabulary) & {g.split(".")[0] for g in source.var.index}]
    collection = Collection.open(given_sources, genes=GeneAlignment(vocabulary=vocabulary, min_overlap=0))
    assert collection.vocabulary.ids == vocabulary
    rows = np.random.default_rng(0).integers(0, len(collection), 50)
    got = collection.cells(rows)
    assert np.array_equal(got.x.to_scipy().toarray(), reference(vocabulary, given_sources)[rows])
    totals = np.concatenate([source.dense.sum(axis=1) for source in given_sources])
    assert np.array_equal(got.depth, totals[rows].astype(np.float32))


def test_every_source_says_which_genes_it_measured():
    collection = Collection.open(sources())
    for row, source in zip(collection.measured, sources(), strict=True):
        own = {gene.split(".")[0] for gene in source.var.index}
        assert [gene in own for gene in collection.vocabulary.ids] == row.tolist()


def test_a_column_that_a_source_lacks_is_missing_there():
    obs = Collection.open(sources()).obs(["type", "n"])
    assert obs["type"].tolist()[:7] == list("xxyyxyx")
    assert obs["type"].isna().tolist() == [False] * 7 + [True] * 9
    assert obs["n"].tolist()[7:12] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="no source has the obs column 'tissue'"):
        Collection.open(sources()).obs(["tissue"])


def mixed_source():
    labels = pd.Categorical(["human", "mouse", "human", "mouse", "mouse"], categories=["mouse", "rat", "human"])
    genes = ["ENSG00000000001", "ENSMUSG00000000001", "ENSG00000000002", "ENSMUSG00000000009"]
    return MemorySource("mixed", named_values(5, 4, density=1), genes, {"organism": labels})


def test_a_file_that_mixes_organisms_is_split():
    collection = Collection.open([mixed_source()], genes=GeneAlignment(min_overlap=0))
    assert [part.organism for part in collection.parts] == ["NCBITaxon:10090", "NCBITaxon:9606"]
    assert [part.rows.tolist() for part in collection.parts] == [[1, 3, 4], [0, 2]]
    values = collection.read(np.arange(5)).to_scipy().toarray()
    assert values.max(axis=1).tolist() == [1004, 3004, 4004, 3, 2003]
    assert collection.obs(["organism"])["organism"].tolist() == ["mouse"] * 3 + ["human"] * 2


def test_a_file_that_leaves_some_organisms_out_is_refused():
    source = mixed_source()
    source._obs.loc[3, "organism"] = np.nan
    with pytest.raises(ValueError, match=r"1 of the 5 cells of mixed have no organism in obs\['organism'\]"):
        Collection.open([source])


@pytest.mark.parametrize(
    "columns",
    [
        [pd.Categorical(["b", "a"], ["b", "a"], ordered=True)],
        [pd.Categorical([2, 1]), None],
        [pd.Categorical([2, 1]), pd.Categorical(["x", "y"])],
    ],
)
def test_categories_of_any_kind_are_joined(columns):
    data = [
        MemorySource(f"s{i}", named_values(2, 3, seed=i), GENES[:3], None if values is None else {"k": values})
        for i, values in enumerate(columns)
    ]
    expected = [value for values in columns for value in ([np.nan] * 2 if values is None else list(values))]
    got = Collection.open(data).obs(["k"])["k"]
    assert [str(value) for value in got] == [str(value) for value in expected]


def test_stored_values_are_counted_with_and_without_offsets():
    collection = Collection.open(sources())
    expected = np.concatenate([(source.dense > 0).sum(axis=1) for source in sources()])
    assert np.array_equal(collection.nnz(), expected)


def test_organisms_have_their_parts_of_the_vocabulary():
    human = MemorySource("h", named_values(3, 4), GENES[:4])
    mouse = MemorySource("m", named_values(3, 4), [f"ENSMUSG{i:011d}" for i in range(4)])
    worm = MemorySource("w", named_values(3, 4), ["aap-1", "unc-54", "dpy-7", "lin-3"])
    collection = Collection.open([mouse, worm, human], genes=GeneAlignment(organisms={"w*": "C. elegans"}))
    assert list(collection.vocabulary.genes_dict) == ["NCBITaxon:10090", "NCBITaxon:6239", "NCBITaxon:9606"]
    for number, genes in enumerate(collection.vocabulary.genes_dict.values()):
        own = np.flatnonzero(collection.measured[number])
        assert [collection.vocabulary.ids[gene] for gene in own] == genes


def test_a_source_that_hides_its_organism_among_others_is_refused():
    named, silent = (
        MemorySource("h", named_values(3, 4), GENES[:4]),
        MemorySource("s", named_values(2, 2), ["A1", "B2"]),
    )
    with pytest.raises(ValueError, match=r"no organism found for s .*organisms=\{'s': 'human'\}"):
        Collection.open([named, silent])
    assert len(Collection.open([silent])) == 2  # alone it needs none


@pytest.mark.parametrize("option", ["organisms", "column"])
def test_an_option_for_a_source_that_is_not_there_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option} names 'x\*', which matches no source; the sources are a, b, c"):
        Collection.open(sources(), genes=GeneAlignment(**{option: {"x*": "human"}}))


def test_too_few_shared_genes_are_refused_with_examples():
    with pytest.raises(GeneOverlapError, match=r"shares 1 genes.*its 12 genes.*ENSG00000000002.*ENSG00000000090"):
        Collection.open(
            sources(), genes=GeneAlignment(vocabulary=[GENES[11], *(f"ENSG{i:011d}" for i in range(90, 200))])
        )


def test_the_same_cells_twice_are_refused():
    with pytest.raises(ValueError, match=r"a and a hold the same cells .* name the data once"):
        Collection.open([sources()[0], sources()[0]])


@pytest.mark.parametrize("rows", [[-1], [16], [0, 99]])
def test_rows_outside_are_refused(rows):
    with pytest.raises(IndexError, match=r"rows must be in \[0, 16\)"):
        Collection.open(sources()).read(np.array(rows))


def test_a_value_that_is_no_count_is_refused():
    values = named_values(3, 4, density=1)
    values[1, 2] = 0.5
    collection = Collection.open([MemorySource("f", values, GENES[:4], mapped=True)])
    collection.read(np.array([0, 2]))
    with pytest.raises(NotCountsError, match="cell 1 of f has a value that is not a count"):
        collection.read(np.array([0, 2, 1]))


def test_the_fingerprint_changes_with_content_order_and_vocabulary():
    a, b, c = sources()
    prints = [
        Collection.open(data, genes=genes).fingerprint
        for data, genes in [
            ([a, b, c], None),
            ([a, c, b], None),
            ([a, b], None),
            ([a, b, c], GeneAlignment(vocabulary=GENES[::-1])),
            ([MemorySource("a", a.dense + 1, GENES[:12]), b, c], None),
        ]
    ]
    assert len(set(prints)) == 5
    assert Collection.open(sources()).fingerprint == prints[0]


def test_a_users_own_source_fits_the_protocol():
    assert all(isinstance(source, Source) for source in sources())


def test_all_faults_of_all_files_in_one_error(tmp_path):
    for folder, values in (("good", 1), ("fractions", 0.5), ("negative", -1)):
        (tmp_path / folder).mkdir()
        adata = AnnData(csr_matrix(np.full((3, 4), values, np.float32)), var=pd.DataFrame(index=GENES[:4]))
        adata.write_h5ad(tmp_path / folder / "a.h5ad")
    (tmp_path / "b.h5ad").write_bytes(b"no HDF5")
    (memory,) = sources()[:1]
    data = [f"{tmp_path}/*/a.h5ad", str(tmp_path / "b.h5ad"), "missing.h5ad", memory, memory]
    with pytest.raises(SourcesError) as refused:
        Collection.open(data)
    first, *lines = str(refused.value).splitlines()
    assert first == "5 sources cannot be used:"
    named = [
        "fractions/a.h5ad: no counts",
        "negative/a.h5ad: no counts",
        "b.h5ad is not an HDF5",
        "missing.h5ad does not",
    ]
    for name, line in zip([*named, "hold the same cells"], lines, strict=True):
        assert name in line
    with pytest.raises(NotCountsError):  # a single one is raised as it is
        Collection.open(f"{tmp_path}/[fg]*/a.h5ad")
    faults = Faults(listed=True)
    assert [part.source.name for part in Collection.open(data, faults=faults).parts] == ["a.h5ad", "a"]
    assert len(faults.lines) == 5


def test_files_of_one_name_are_told_apart(tmp_path):
    for number, folder in enumerate(("human", "mouse")):
        (tmp_path / folder).mkdir()
        adata = AnnData(csr_matrix(np.full((3, 4), number + 1, np.float32)), var=pd.DataFrame(index=list("abcd")))
        adata.write_h5ad(tmp_path / folder / "a.h5ad")
    absolute = f"{tmp_path}/mouse/a.h5ad"
    for patterns in (("human/*", "mouse/*"), ("human/a.h5ad", "mouse/a.h5ad"), ("h*/a.h5ad", absolute)):
        how = GeneAlignment(organisms=dict(zip(patterns, ("human", "mouse"), strict=True)), min_overlap=0)
        parts = Collection.open(f"{tmp_path}/*/a.h5ad", genes=how).parts
        assert [part.source.name for part in parts] == ["human/a.h5ad", "mouse/a.h5ad"]
        assert [part.organism for part in parts] == ["NCBITaxon:9606", "NCBITaxon:10090"]
    store = convert(f"{tmp_path}/*/a.h5ad", tmp_path / "a.cells", n_processes=1)
    assert [source.name for source in store.sources] == ["human/a.h5ad", "mouse/a.h5ad"]


def test_corpora_are_named_sources_in_one_table():
    a, b, c = sources()
    collection = Collection.open({"human": [a, [c]], "tahoe": b})
    assert [part.source.name for part in collection.parts] == ["a", "c", "b"]
    assert collection.corpora == ("human", "human", "tahoe")
    assert collection.obs(["corpus", "source"]).iloc[[0, 10, 11]].to_numpy().tolist() == [
        ["human", "a"],
        ["human", "c"],
        ["tahoe", "b"],
    ]
    cells = CollectionCells(collection, np.array([1, 10, 12]))
    assert cells.corpus_names == ["human", "tahoe"]
    assert cells.corpus.tolist() == [0, 0, 1]
    assert cells.classes(["corpus"])[0].tolist() == [0, 0, 1]


def test_without_corpora_there_is_no_such_column():
    collection = Collection.open(sources())
    with pytest.raises(KeyError, match="'corpus'"):
        collection.column("corpus")
    cells = CollectionCells(collection, np.arange(3))
    assert (cells.corpus_names, cells.corpus.tolist()) == ([], [0, 0, 0])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({}, ValueError, "no data"),
        ({"human": sources()[0], "tahoe": []}, ValueError, r"'tahoe'.*no data"),
        ({"human": sources()[0], "tahoe": "*.nothing"}, FileNotFoundError, "nothing"),
        ({"human": {"blood": sources()[0]}}, TypeError, r"'human': dict"),
        ({3: sources()[0]}, TypeError, "3: MemorySource"),
        ({"human": sources()[0], "tahoe": sources()[0]}, ValueError, "same cells"),
    ],
)
def test_corpora_that_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        Collection.open(data)


def test_every_corpus_has_cells_that_where_selects():
    a, b = (MemorySource(name, named_values(4, 9, seed=7), GENES[:9], {"x": [name] * 4}) for name in "ab")
    with pytest.raises(LookupError, match=r"corpus 'tahoe'.*'a'"):
        Collection.open({"human": a, "tahoe": b}, where={"x": "a"})


def test_a_store_has_no_corpora(tmp_path):
    with pytest.raises(ValueError, match=r"no corpora; got human, tahoe"):
        convert({"human": sources()[0], "tahoe": sources()[1]}, tmp_path / "a.cells")
