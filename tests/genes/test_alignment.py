"""G1, G3, G4: sources of a collection, their genes, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from scdataloader.collection.collection import Collection
from scdataloader.errors import GeneOverlapError
from scdataloader.genes import tables
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.genes.tables import package_table
from scdataloader.store.convert import convert
from scdataloader.store.reader import Store
from scdataloader.testing import MemorySource, named_values

HUMAN, MOUSE = "NCBITaxon:9606", "NCBITaxon:10090"
IDS = [f"ENSG{i:011d}" for i in range(60)]
SYMBOLS = [f"GENE{i}" for i in range(60)]
REAL = {"TP53": "ENSG00000141510", "CD4": "ENSG00000010610", "CD99": "ENSG00000002586", "MYC": "ENSG00000136997"}


def source(name, genes, organism=None, *, seed=None, **columns):
    """A source of three cells; ``columns`` are those of var."""
    made = MemorySource(name, named_values(3, len(genes), seed=sum(name.encode()) if seed is None else seed), genes)
    made.organism = organism
    for column, values in columns.items():
        made.var[column] = values
    return made


def opened(*sources, **options):
    return Collection.open(list(sources), genes=GeneAlignment(**options))


# ------------------------------------------------------------------------------------------- genes that sources share


def test_an_inner_join_has_the_genes_of_all_sources_of_an_organism():
    mouse = [name.replace("ENSG", "ENSMUSG") for name in IDS]
    data = [source("a", IDS[5:]), source("b", IDS[:40][::-1]), source("c", mouse[:9]), source("d", mouse[3:])]
    collection = opened(*data, join="inner")
    assert collection.vocabulary.genes_dict == {HUMAN: IDS[5:40], MOUSE: mouse[3:9]}
    rows = collection.cells(np.array([4])).x  # the second cell of b
    dense = np.zeros(len(collection.vocabulary), np.float32)
    dense[rows.indices] = rows.data
    assert np.array_equal(dense[6:], data[1].dense[1][::-1][5:40])
    with pytest.raises(GeneOverlapError, match=r"no gene of NCBITaxon:9606 .*a \(20\), b \(20\)"):
        opened(source("a", IDS[:20]), source("b", IDS[20:40]), join="inner", min_overlap=0.0)
    for options in ({"join": "iner"}, {"join": "inner", "vocabulary": IDS}):
        with pytest.raises(ValueError, match="join"):
            GeneAlignment(**options)


@pytest.mark.parametrize(
    ("groups", "odd"),
    [
        ({"ids": IDS, "symbols": SYMBOLS}, "symbols"),
        ({"upper": SYMBOLS, "title": [name.title() for name in SYMBOLS]}, "title"),
        ({"ids": IDS, "numbers": list(map(str, range(60)))}, "numbers"),
        ({"a": IDS, "b": IDS[:50], "odd": SYMBOLS}, "odd"),
        ({"a": IDS[:40], "b": IDS[:50], "odd": SYMBOLS}, "odd"),  # which has most genes
        ({"a": IDS, "b": IDS[:50], "c": SYMBOLS, "d": SYMBOLS[:50]}, "c, d"),  # two groups
        ({"ids": [*IDS, "ERCC-00002"], "symbols": [*SYMBOLS, "ERCC-00002"]}, "symbols"),
        ({"a": IDS, "b": [*SYMBOLS[:55], *IDS[:5]]}, "b"),
    ],
)
@pytest.mark.parametrize("organism", ["cow", None])
def test_sources_without_common_genes_are_refused(groups, odd, organism):
    if organism is None:  # all are unstated: none has ids of an organism
        groups = {name: [gene.replace("ENSG", "GENE_") for gene in genes] for name, genes in groups.items()}
    data = [source(name, genes, organism) for name, genes in groups.items()]
    with pytest.raises(
        GeneOverlapError, match=rf"^{odd} shares [0-5] of its \d+ genes.* is needed; its genes look like"
    ) as error:
        opened(*data)
    assert all(name in str(error.value) for name in groups)
    assert opened(*data, min_overlap=0).n_genes > 60


def test_all_groups_without_common_genes_are_in_one_error():
    cow, pig = ([f"{prefix}{i:011d}" for i in range(40)] for prefix in ("ENSBTAG", "ENSSSCG"))
    lower = [name.lower() for name in SYMBOLS]
    data = [source(name, cow, "cow") for name in "ab"] + [source("c", SYMBOLS, "cow"), source("d", lower, "cow")]
    data += [source("e", pig, "pig"), source("f", lower[:30], "pig")]
    with pytest.raises(GeneOverlapError) as error:
        opened(*data)
    heading, *lines = str(error.value).splitlines()
    assert heading == "3 sources cannot be used:"
    wanted = ("f shares 0 of its 30 genes", "c shares 0 of its 60 genes", "d shares 0 of its 60 genes")
    assert all(line.startswith(f"  {text} ") for line, text in zip(lines, wanted, strict=True)), lines


@pytest.mark.parametrize(
    "groups",
    [
        {"only": SYMBOLS},
        {"atlas": IDS, "panel": IDS[10:13]},  # all of its genes, 5 % of the atlas
        {"panel": IDS[:6], "atlas": IDS[:40], "second": [*IDS[20:23], *SYMBOLS[:17]]},  # 15 % of its genes
        {"a": IDS[:20], "bridge": IDS[15:40], "b": IDS[35:60]},
        {"panel": IDS[:31], "other": IDS[30:]},  # ids of one genome
    ],
)
def test_sources_with_enough_of_their_genes_in_common_are_not(groups):
    assert len(opened(*(source(name, genes, "human") for name, genes in groups.items()))) == 3 * len(groups)


def test_panels_of_ids_share_at_least_one_gene():
    with pytest.raises(GeneOverlapError, match="other shares 0 of its 30 genes"):
        opened(source("panel", IDS[:30]), source("other", IDS[30:]))


def test_organisms_need_no_common_genes():
    collection = opened(source("h", IDS), source("m", [gene.replace("ENSG", "ENSMUSG") for gene in IDS]))
    assert list(collection.vocabulary.genes_dict) == [MOUSE, HUMAN]


def test_numbered_genes_are_reported(caplog):
    numbers = list(map(str, range(9)))
    opened(source("a", numbers, seed=1), source("b", numbers, seed=2))
    assert "genes are only numbered, and taken to be the same in the same order, in a, b" in caplog.text


# --------------------------------------------------------------------------------------------------------- gene tables


def test_symbols_need_no_option(caplog):
    symbols = source("symbols", [*REAL, "NO1"], "human")
    collection = opened(symbols, source("ids", [f"{gene}.3" for gene in REAL.values()]))
    assert collection.vocabulary.ids == [*sorted(REAL.values()), "NO1"]
    assert collection.measured.sum(1).tolist() == [5, 4]
    assert "symbols that the gene table does not know keep their names: symbols 1 of 5 (NO1)" in caplog.text
    values = collection.read(np.arange(3)).to_scipy().toarray()
    order = [collection.vocabulary.ids.index(gene) for gene in [*REAL.values(), "NO1"]]
    assert np.array_equal(values[:, order], symbols.dense)


@pytest.mark.parametrize("names", [[*REAL], [*REAL.values()]])
@pytest.mark.parametrize("vocabulary", [["MYC", "other", "CD4"], {"human": ["MYC", "other", "CD4"]}])
def test_a_vocabulary_of_symbols_takes_symbols_and_ids(names, vocabulary):
    collection = opened(source("s", names, "human"), vocabulary=vocabulary)
    assert collection.vocabulary.genes_dict == {HUMAN: ["MYC", "other", "CD4"]}
    assert collection.parts[0].genes.lut.tolist() == [-1, 2, -1, 0]


def test_a_vocabulary_of_ids_tells_the_organism_of_symbols():
    collection = opened(source("s", [*REAL]), vocabulary=[*REAL.values()])
    assert collection.vocabulary.genes_dict == {HUMAN: [*REAL.values()]}
    assert collection.parts[0].genes.lut.tolist() == [0, 1, 2, 3]


def test_the_symbols_of_a_genome_tell_the_organism_those_of_a_panel_do_not(caplog):
    symbols = [symbol for symbol in package_table(MOUSE).symbols.values() if symbol][::100]
    assert opened(source("mouse", symbols)).parts[0].organism == MOUSE
    assert "no organism is stated for mouse; by their symbols, they are taken to be of mus musculus" in caplog.text
    by_id = source("ids", [gene for gene, symbol in package_table(MOUSE).symbols.items() if symbol][::50])
    assert {part.organism for part in opened(source("m", symbols), by_id).parts} == {MOUSE}
    with pytest.raises(ValueError, match="no organism found for m "):
        opened(source("m", symbols), source("h", IDS))
    upper = [symbol for symbol in package_table(HUMAN).symbols.values() if symbol][::100]
    with pytest.raises(GeneOverlapError, match=r"shares 0 of its .* with the other sources of no stated organism"):
        opened(source("m", symbols), source("h", upper))
    assert opened(source("panel", [*REAL])).parts[0].organism == "NCBITaxon:32644"
    assert "no organism is stated for panel; their symbols may be of " in caplog.text


def test_a_checkpoint_of_symbols_without_organism_is_read_as_it_was():
    saved = {"NCBITaxon:32644": sorted(REAL)}
    collection = opened(source("s", [*REAL]), vocabulary=saved)
    assert collection.vocabulary.genes_dict == saved
    assert collection.measured.all()


def gene_table(folder, names=SYMBOLS):
    path = folder / "genes.csv"
    path.write_text("gene_id,symbol\n" + "".join(f"{gene},{name}\n" for gene, name in zip(IDS, names, strict=True)))
    return str(path)


@pytest.mark.parametrize("organism", ["human", None])
@pytest.mark.parametrize("vocabulary", [None, IDS, {"human": IDS}])
def test_the_users_table_is_used_or_refused(tmp_path, organism, vocabulary):
    own = {"human": gene_table(tmp_path)}
    collection = opened(source("s", SYMBOLS, organism), tables=own, vocabulary=vocabulary)
    assert collection.vocabulary.genes_dict == {HUMAN: IDS}
    with pytest.raises(GeneOverlapError, match=r"s shares 0 of its 60 genes with the gene table of NCBITaxon:9606"):
        opened(source("s", [f"X{name}" for name in SYMBOLS], organism), tables=own, vocabulary=vocabulary)


def test_tables_of_other_organisms_only_are_refused(tmp_path):
    own = {"mouse": gene_table(tmp_path)}
    with pytest.raises(ValueError, match=r"tables are of mouse, but the sources of NCBITaxon:9606"):
        opened(source("s", SYMBOLS, "human"), tables=own)
    with pytest.raises(ValueError, match=r"no organism found for s .*organisms=\{'s': 'human'\}"):
        opened(source("s", SYMBOLS), tables=own | {"human": own["mouse"]})


# --------------------------------------------------------------------------------------------------------- organisms


@pytest.mark.parametrize("genes", ["ERCC-00002", "eGFP"])
def test_a_gene_of_two_organisms_is_two_genes(tmp_path, genes):
    mouse = [gene.replace("ENSG", "ENSMUSG") for gene in IDS[:3]]
    data = [source("h", [*IDS[:3], genes], seed=1), source("m", [genes, *mouse], seed=2)]
    convert(data, tmp_path / "both.cells", n_processes=1, progress=False)
    for opened_from in (data, str(tmp_path / "both.cells")):
        collection = Collection.open(opened_from)
        assert collection.vocabulary.ids == [*mouse, genes, *IDS[:3], genes]
        values = collection.read(np.arange(6)).to_scipy().toarray()
        assert np.array_equal(values[:3, 4:], data[0].dense)
        assert np.array_equal(values[3:, :4], data[1].dense[:, [1, 2, 3, 0]])
        assert not values[:3, :4].any()
        again = Collection.open(opened_from, genes=GeneAlignment(vocabulary=collection.vocabulary.genes_dict))
        assert again.fingerprint == collection.fingerprint


# -------------------------------------------------------------------------------------------------- features, not genes


TYPES = ["Gene Expression", "Gene Expression", "Antibody Capture", "Gene Expression"]


@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("vocabulary", [None, ["CD4", "B"], ["B", "CD8"]])
def test_antibodies_are_neither_genes_nor_counted(tmp_path, caplog, column, stored, vocabulary):
    names = ["CD8", "B", "CD3_TotalSeqB", "CD4"]
    cite = source("cite", names, "cow", **{column: pd.Categorical(TYPES)})
    data = cite
    if stored:
        convert([cite], tmp_path / "c.cells", n_processes=1, progress=False)
        data = str(tmp_path / "c.cells")
        assert set(Store.open(data).sources[0].var.index) == set(names)
    collection = Collection.open(data, genes=GeneAlignment(vocabulary=vocabulary))
    got = collection.cells(np.array([2, 0]))
    wanted = vocabulary or ["B", "CD4", "CD8"]
    assert collection.vocabulary.ids == wanted
    assert np.array_equal(got.x.to_scipy().toarray(), cite.dense[[2, 0]][:, [names.index(name) for name in wanted]])
    assert np.array_equal(got.depth, cite.dense[[2, 0]][:, [0, 1, 3]].sum(axis=1))
    assert f"cite 1 Antibody Capture by var['{column}']; to keep them, set feature_types" in caplog.text
    every = Collection.open(data, genes=GeneAlignment(feature_types="all"))
    assert every.n_genes == 4
    assert np.array_equal(every.cells(np.arange(3)).depth, cite.dense.sum(axis=1))


@pytest.mark.parametrize("stored", [False, True])
def test_antibodies_do_not_count_as_values_of_a_cell(tmp_path, stored):
    """Of cell i, gene j is there if (i + j) % 3 > 0: whole numbers by hand, and by a factor of the weights."""
    names = ["CD8", "B", "CD3_TotalSeqB", "CD4"]
    x = ((np.arange(7)[:, None] + np.arange(4)) % 3).astype(np.float32)
    obs = {"organism": ["cow"] * 7, "primary": np.arange(7) > 1}
    cite = MemorySource("cite", x, names, obs)
    cite.var["feature_types"] = TYPES
    data = cite
    if stored:
        data = convert([cite], tmp_path / "c.cells", n_processes=1, progress=False).path
    genes = (x[:, [0, 1, 3]] > 0).sum(axis=1)
    for options, wanted in (
        ({}, genes),
        ({"vocabulary": ["B"]}, genes),
        ({"feature_types": "all"}, (x > 0).sum(axis=1)),
    ):
        collection = Collection.open(data, genes=GeneAlignment(**options))
        assert collection.nnz().tolist() == wanted.tolist()
        chosen = Collection.open(data, where={"primary": True}, genes=GeneAlignment(**options))
        assert chosen.nnz().tolist() == wanted[2:].tolist()


def test_feature_types_can_be_chosen():
    cite = source("cite", ["CD4", "TP53", "CD4", "MYC"], "cow", feature_types=TYPES)
    collection = opened(cite, feature_types=["Antibody Capture"])
    assert collection.vocabulary.ids == ["CD4"]
    assert np.array_equal(collection.read(np.arange(3)).to_scipy().toarray(), cite.dense[:, [2]])
    with pytest.raises(ValueError, match=r"cite has no features of the types .*the nearest are 'Antibody Capture'"):
        opened(cite, feature_types="antibody captur")


@pytest.mark.parametrize("types", [["protein_coding"] * 3 + ["lncRNA"], ["Antibody Capture"] * 4])
def test_a_column_without_genes_states_nothing(types):
    assert opened(source("a", IDS[:4], feature_type=types)).n_genes == 4


def test_a_table_is_read_once(caplog):
    caplog.set_level(logging.INFO)
    tables._read_once.cache_clear()
    opened(*(source(f"s{i}", [*REAL], "human", seed=i) for i in range(3)))
    assert caplog.text.count("symbols are shared by several genes") == 1
