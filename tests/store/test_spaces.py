"""Gene spaces: which sources share one, what becomes of them when a store grows, and genes that are in none."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.collection.collection import Collection
from scdataloader.errors import StoreFormatError
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.genes.numbers import GeneNumbers
from scdataloader.kernels.records.decode import COMPLETE, IN_ORDER, SHIFTED
from scdataloader.store.convert import convert
from scdataloader.store.export import export, to_anndata
from scdataloader.store.gene_spaces import GeneTables, choose_spaces
from scdataloader.store.manifest import Manifest
from scdataloader.store.reader import Store
from scdataloader.store.verify import verify
from scdataloader.types import GenePlaces
from tests.store.conversions import Stored, check, tree
from tests.store.store_damage import reseal
from tests.store.stores import given_counts, given_floats, make_store

HUMAN, MOUSE = ([f"{prefix}{i:011d}" for i in range(60)] for prefix in ("ENSG", "ENSMUSG"))


def source(name, genes, n_cells=6):
    """Counts of genes in an order of their own."""
    rng = np.random.default_rng(len(name) + len(genes))
    x = rng.geometric(0.01, (n_cells, len(genes))) * (rng.random((n_cells, len(genes))) < 0.5)
    obs = pd.DataFrame({"row": np.arange(n_cells)}, index=[f"{name}{i}" for i in range(n_cells)])
    var = pd.DataFrame({"symbol": [f"G{gene[-2:]}" for gene in genes]}, index=rng.permutation(genes))
    return Stored(name, sp.csr_matrix(x.astype(np.float32)), var, obs)


def here(data, out, **options):
    return convert(data, out, **{"n_processes": 1, "cells_per_shard": 5, "progress": False} | options)


def chosen(sources, there=()):
    names = GeneNumbers()
    return choose_spaces(names, [names.numbers(genes) for genes in sources], there)


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "there", "new", "of_source"),
    [
        (["ab", "bc", "cd", "xy"], [], ["abcd", "xy"], (0, 0, 0, 1)),
        (["abc", "cde", "bcd"], [], ["abcd", "cde"], (0, 1, 0)),  # a third is too little, and two thirds is enough
        (["ba", "cab"], [], ["abc"], (0, 0)),
        (["abcd", "wxyz", "cdwx"], [], ["abcdwx", "wxyz"], (0, 1, 0)),  # the first that will do
        (["x", "cdx", "abcd"], [], ["abcdx"], (0, 0, 0)),  # from the one of most genes to that of fewest
        (["ab", "abc", "cde", "de"], ["ab", "cdef"], ["abc"], (0, 2, 1, 1)),  # old ones are taken as they are, or not
        (["", "ab", ""], [], ["ab"], (0, 0, 0)),
        ([], ["ab"], [], ()),
    ],
)
def test_spaces_are_chosen_by_the_genes_in_common(sources, there, new, of_source):
    found = chosen(sources, there)
    assert ["".join(ids) for ids in found.new] == new
    assert found.of_source == of_source
    assert found.n_genes == [len([*there, *new][at]) for at in of_source]


@given(
    sources=st.lists(st.lists(st.integers(0, 30).map(str), unique=True, max_size=20), max_size=8),
    there=st.lists(st.lists(st.integers(0, 30).map(str), unique=True, max_size=20).map(sorted), max_size=2),
)
def test_every_gene_has_its_place_in_the_space_of_its_source(sources, there):
    found = chosen(sources, there)
    spaces = [*there, *found.new]
    for genes, at, rank in zip(sources, found.of_source, found.ranks, strict=True):
        assert [spaces[at][place] for place in rank] == genes
    for ids in spaces:
        assert ids == sorted(set(ids))
    used = {gene for genes, at in zip(sources, found.of_source, strict=True) if at >= len(there) for gene in genes}
    assert {gene for ids in found.new for gene in ids} == used
    assert chosen(sources, there).digests == found.digests


# --- stores -----------------------------------------------------------------------------------------------------------


def spaces_of(store):
    """The space of each source, and the genes of each space."""
    return [record.space for record in store.manifest.sources], [record.n_genes for record in store.manifest.spaces]


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_parts_of_an_annotation_share_a_space_and_organisms_do_not(tmp_path, layout):
    made = [
        source("a", HUMAN[:40]),
        source("mouse", MOUSE[10:]),
        source("b", HUMAN[20:]),
        source("c", HUMAN[::2]),
        source("symbols", [f"G{i}" for i in range(9)]),
    ]
    store = here(made, tmp_path / "s.cells", layout=layout)
    assert spaces_of(store) == ([1, 0, 1, 1, 2], [50, 60, 9])
    assert len(list((tmp_path / "s.cells" / "genes").iterdir())) == 3 + 1  # with the gene index
    check(store, made)


@pytest.mark.parametrize("layout", ["source", "shuffled"])
def test_a_space_that_is_there_is_taken_or_left_but_never_changed(tmp_path, layout):
    out = tmp_path / "s.cells"
    made = [source("a", HUMAN[:40]), source("b", HUMAN[5:45])]
    here(made, out, layout=layout)
    before = {name: content for name, content in tree(out).items() if name != "manifest.json"}
    made.append(source("part", HUMAN[3:44]))
    assert spaces_of(here(made[2:], out, append=True)) == ([0, 0, 0], [45])
    more = [source("more", HUMAN[4:46]), source("again", HUMAN[40:60]), source("fits", HUMAN[:7])]
    store = here(more, out, append=True)
    assert spaces_of(store) == ([0, 0, 0, 1, 2, 0], [45, 42, 20])
    check(store, [*made, *more])
    assert before.items() <= tree(out).items()
    assert not verify(out).unnamed


def test_a_damaged_space_is_not_added_to(tmp_path):
    out = tmp_path / "s.cells"
    here([source("a", HUMAN)], out)
    path = out / Manifest.load(out).spaces[0].file.path
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.raises(StoreFormatError, match=f"{path.name} is damaged: its checksum does not match"):
        here([source("b", HUMAN)], out, append=True)


def test_in_the_vocabulary_of_all_genes_every_source_is_a_shift_away(tmp_path):
    made = [source("a", HUMAN[:40]), source("b", MOUSE[::2]), source("c", HUMAN[20:]), source("d", MOUSE)]
    for part in made[1::2]:
        part.organism = "mouse"
    store = here(made, tmp_path / "s.cells", layout="shuffled")
    collection = Collection.open(tmp_path / "s.cells")
    (group,) = collection._groups
    assert (group._genes.look_up.how & SHIFTED).all()
    assert group._genes.of_source.tolist() == [0, 1, 0, 1]  # one table for each space
    rows = np.random.default_rng(0).integers(0, len(collection), 50)
    np.testing.assert_array_equal(
        collection.cells(rows).x.to_scipy().toarray(), reindexed(store, collection.vocabulary.ids)[rows]
    )


def reindexed(store, vocabulary):
    """``(n_obs, n_vocabulary)`` all cells of a store in the order in which it has them."""
    out = np.zeros((store.n_obs, len(vocabulary)), np.float32)
    for one in store.sources:
        cells = one.read(np.arange(one.n_obs)).to_scipy().toarray()
        out[one.rows] = pd.DataFrame(cells, columns=one.var.index).reindex(columns=vocabulary, fill_value=0)
    return out


# --- tables -----------------------------------------------------------------------------------------------------------


@st.composite
def numberings(draw):
    """Places of some genes in a space, and their numbers in a vocabulary: in order or not, all of them or not."""
    n_space = draw(st.integers(1, 12))
    place = sorted(draw(st.sets(st.integers(0, n_space - 1))))
    n_genes = draw(st.integers(0, 20))
    how = draw(st.sampled_from(["shift", "order", "any"]))
    if how == "shift":
        shift = draw(st.integers(-3, 5))
        lut = [at + shift if 0 <= at + shift < n_genes else -1 for at in place]
    else:
        lut = [draw(st.integers(-1, n_genes - 1)) for _ in place]
        lut = sorted(set(lut) - {-1}) if how == "order" else lut
    place = place[: len(lut)]
    return GenePlaces.of(np.array(place, np.int64), n_space), np.array(lut[: len(place)], np.int32), n_genes


@given(numberings())
def test_whatever_gene_a_record_has_its_number_is_in_range(numbering):
    own, lut, n_genes = numbering
    tables = GeneTables([lut, lut], [own, own], n_genes)
    (how,), table = tables.look_up.how, tables.look_up.luts
    assert tables.of_source.tolist() == [0, 0]
    assert len(table) == own.n_space
    assert table[own.place].tolist() == lut.tolist()
    assert table.max() < n_genes
    in_order, complete = (np.diff(lut[lut >= 0]) > 0).all(), len(lut) > 0 and (lut >= 0).all()
    assert (bool(how & IN_ORDER), bool(how & COMPLETE)) == (in_order, complete)
    if how & COMPLETE and how & IN_ORDER:
        assert table.min() >= 0
    else:
        assert table.min() >= -1
        assert (np.delete(table, own.place) == -1).all()
    if how & SHIFTED:
        assert complete
        assert (np.diff(table) == 1).all()


# --- genes that a source has not --------------------------------------------------------------------------------------


KEPT = np.arange(400) % 4 > 0
"""The genes that the first source is left with, of those that are sorted."""


@pytest.fixture(params=["counts", "floats", "mixed"])
def foreign(request, tmp_path):
    """A store of two sources, of which the first has values of genes that are not in its gene table any more.

    With it ``(n_obs, 400)`` all its cells, as they were, and the ids of all genes.
    """
    made = given_floats if request.param == "floats" else given_counts
    given = [made("a", 9, 400, 0), made("b", 6, 400, 1)]
    store = make_store(tmp_path / "s.cells", given, mixed=request.param == "mixed")
    opened = Store.open(store)
    ids = opened.spaces[0].read().tolist()
    before = reindexed(opened, ids)
    manifest = json.loads((store / "manifest.json").read_bytes())
    path = store / manifest["genes"][manifest["sources"][0]["genes"]]["path"]
    var = pd.read_parquet(path)[KEPT]
    var.assign(__position__=range(len(var))).to_parquet(path)
    reseal(store, gene_index=[])
    return store, before, ids


WHY = "it has a gene that its source does not have"


def test_genes_that_a_source_has_not_are_refused(foreign, tmp_path):
    store, before, _ = foreign
    opened = Store.open(store)
    one, other = opened.sources
    for row, cell in enumerate(one.rows):
        for read in (one.read, one.read_stored):
            if before[cell, ~KEPT].any():
                where = rf"00000.cells is damaged at cell {cell} \(cell {cell} of the store\)"
                with pytest.raises(StoreFormatError, match=f"{where}: {WHY}"):
                    read(np.array([row, row]))
            else:
                np.testing.assert_array_equal(read(np.array([row])).data, before[cell][before[cell] != 0])
    np.testing.assert_array_equal(other.read(np.arange(6)).to_scipy().toarray(), before[other.rows])
    for away in (lambda: to_anndata(opened, 0), lambda: export(store, tmp_path / "out")):
        with pytest.raises(StoreFormatError, match=WHY):
            away()
    assert to_anndata(opened, 1).shape == (6, 400)
    with pytest.raises(StoreFormatError) as caught:
        verify(store)
    n_wrong = int(before[one.rows][:, ~KEPT].any(1).sum())
    assert str(caught.value).count(WHY) == n_wrong > 3
    assert str(caught.value).startswith(f"{store} is damaged, {n_wrong} problems")


@pytest.mark.parametrize(
    ("vocabulary", "how"),
    [
        (lambda ids: ids, IN_ORDER | COMPLETE | SHIFTED),
        (lambda ids: ["ENSG99999999998", *ids], IN_ORDER | COMPLETE | SHIFTED),
        (lambda ids: [*ids[:200], "ENSG99999999998", *ids[200:]], IN_ORDER | COMPLETE),
        (lambda ids: ids[1:], IN_ORDER | COMPLETE),  # a shift, by which the first gene of the space had number -1
        (lambda ids: ids[:-1], IN_ORDER),
        (lambda ids: [gene for gene, kept in zip(ids, KEPT, strict=True) if kept], IN_ORDER | COMPLETE),
        (lambda ids: ids[100:300], IN_ORDER),
        (lambda ids: ids[::-1], COMPLETE),
        (lambda ids: ids[300:100:-1], 0),
    ],
)
def test_genes_that_a_source_has_not_are_never_out_of_range(foreign, vocabulary, how):
    store, before, ids = foreign
    chosen_ids = vocabulary(ids)
    collection = Collection.open(store, genes=GeneAlignment(vocabulary=chosen_ids, organisms="human"), values="any")
    (group,) = collection._groups
    assert group._genes.look_up.how[group._genes.of_source[0]] == how
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(len(collection)), 3))
    x = collection.cells(rows).x
    assert len(x.indices)
    assert (x.indices >= 0).all()
    assert (x.indices < len(chosen_ids)).all()
    if not (how & COMPLETE and how & IN_ORDER):  # then they are left out, or kept
        lacks = np.zeros_like(before, bool)
        lacks[np.ix_(Store.open(store).sources[0].rows, ~KEPT)] = True
        expected, lacking = (pd.DataFrame(table, columns=ids).reindex(columns=chosen_ids, fill_value=0).to_numpy()[rows]
                             for table in (before, lacks))  # fmt: skip
        found = x.to_scipy().toarray()
        np.testing.assert_array_equal(found[~lacking.astype(bool)], expected[~lacking.astype(bool)])
        assert (np.isclose(found, expected, rtol=0, atol=0, equal_nan=True) | (found == 0)).all()


def test_a_source_whose_genes_are_not_all_in_its_space_is_refused(tmp_path):
    store = make_store(tmp_path / "s.cells", [given_counts("a", 9, 40, 0)])
    path = store / "genes" / "00000.parquet"
    pd.read_parquet(path).replace("ENSG00000000003", "ENSG00000000003b").to_parquet(path)
    reseal(store)
    opened = Store.open(store)
    why = r"var/\w+.parquet has the gene 'ENSG00000000003', which is not in its gene space, genes/00000.parquet"
    read = opened.sources[0].read
    for act in (
        lambda: read(np.array([0])),
        lambda: to_anndata(opened),
        lambda: Collection.open(store),
        lambda: verify(store),
    ):
        with pytest.raises(StoreFormatError, match=why):
            act()
