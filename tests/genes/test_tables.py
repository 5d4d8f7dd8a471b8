"""Gene tables, and how training and curation match genes by them."""

from __future__ import annotations

import gzip
import logging
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.curation.genes import match_genes
from scdataloader.curation.recipe import Recipe
from scdataloader.errors import GeneOverlapError
from scdataloader.genes.alignment import GeneAlignment, align
from scdataloader.genes.names import gene_names
from scdataloader.genes.organisms import infer_organism
from scdataloader.genes.tables import SHIPPED, GeneTable, find_gene_table, package_table
from scdataloader.protocols import SourceSelection
from scdataloader.testing import MemorySource, named_values
from tests.conftest import DATA
from tests.curation.helpers import IDS, table

TP53, CD4, MYC, PTEN = "ENSG00000141510", "ENSG00000010610", "ENSG00000136997", "ENSG00000171862"


@pytest.fixture(scope="module")
def human_table():
    path = DATA.parent / "genes" / "genes_homo_sapiens.csv.gz"
    if not path.exists():
        pytest.skip(f"no table of genes: {path} does not exist")
    return GeneTable.read(path)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", f"{TP53},TP53,20,1,protein_coding\n{CD4},CD4,1,1,protein_coding\n"),
        ("a.csv.gz", f"{TP53}.20,TP53\n{CD4},CD4\n"),
        ("a.csv", f"number,symbol,ensembl_gene_id\n0,TP53,{TP53}\n1,CD4,{CD4}\n"),
        ("a.tsv", f"gene_id\tgene_name\n{TP53}.3\tTP53\n{CD4}\tCD4\n"),
    ],
)
def test_with_and_without_header(tmp_path, name, text):
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert GeneTable.read(tmp_path / name).by_symbol == {"TP53": TP53, "CD4": CD4}


def test_a_shared_symbol_is_left_out_and_nan_is_a_symbol(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text(f"{TP53},A\n{CD4},A\n{MYC},NaN\n{MYC}.2,NaN\n{PTEN},\n")
    with caplog.at_level(logging.INFO, logger="scdataloader"):
        assert GeneTable.read(path).by_symbol == {"NaN": MYC}
    assert "1 symbols are shared by several genes" in caplog.text


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("cell,count\nc1,3\n")
    with pytest.raises(ValueError, match=r"a\.csv is not a gene table: expected a header.*\['cell', 'count'\]"):
        GeneTable.read(path)


def test_the_human_table(human_table):
    assert human_table.by_symbol["TP53"] == TP53
    assert human_table.by_symbol["IL3RA"] == "ENSG00000185291"  # on X
    assert len(human_table.by_symbol) == 78_894 - 2_111 + 36  # rows whose symbol is shared, but by a copy on Y


def test_a_table_has_symbols_synonyms_and_ambiguous_names(tmp_path):
    read = GeneTable.read(table(tmp_path))
    assert list(read.symbols) == IDS
    assert read.by_symbol == {
        "TP53": IDS[0],
        "CD4": IDS[1],
        "MT-ND1": IDS[2],
        "MT-CO1": IDS[3],
        "ND1": IDS[7],  # the symbol of one gene before the synonym of another
    }
    assert read.by_synonym == {"P53": IDS[0], "BCC7": IDS[0], "COX1": IDS[3]}
    assert read.ambiguous == {"TWICE", "SHARED"}


@pytest.mark.parametrize("form", ["tsv", "parquet", "csv.gz", "bare"])
def test_tables_of_all_forms_are_read_alike(tmp_path, form):
    rows = pd.read_csv(table(tmp_path), dtype=str, keep_default_na=False)
    path = tmp_path / f"other.{form}"
    if form == "parquet":
        rows.replace("", None).to_parquet(path)
    elif form == "bare":  # ids and symbols, without header and synonyms
        rows.iloc[:, :2].to_csv(path, index=False, header=False)
    else:
        rows.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    found, expected = GeneTable.read(str(path)), GeneTable.read(str(tmp_path / "genes.csv"))
    assert found.symbols == expected.symbols
    if form != "bare":
        assert found == expected
    assert found.by_symbol == {"TP53": IDS[0], "CD4": IDS[1], "MT-ND1": IDS[2], "MT-CO1": IDS[3], "ND1": IDS[7]}


def test_a_table_that_changes_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"{TP53},TP53\n")
    tables = {"Homo sapiens": str(path)}
    assert find_gene_table("NCBITaxon:9606", tables) is find_gene_table("NCBITaxon:9606", tables)
    assert find_gene_table("NCBITaxon:10090", tables) is None
    path.write_text(f"{TP53},TP53\n{CD4},CD4\n")
    assert list(find_gene_table("NCBITaxon:9606", tables).by_symbol) == ["TP53", "CD4"]


@pytest.mark.parametrize("marked", [False, True])
def test_a_pseudoautosomal_symbol_is_the_gene_on_x(tmp_path, marked):
    path = tmp_path / "genes.csv"
    copy = "ENSG00000002586.20_PAR_Y" if marked else "ENSG00000292348"
    path.write_text(f"gene_id,symbol\n{copy},CD99\nENSG00000002586.20,CD99\n{TP53},TWICE\n{CD4},TWICE\n")
    table = GeneTable.read(path)
    assert table.match(["CD99", copy])[0] == ["ENSG00000002586", copy.replace(".20", "")]
    assert table.ambiguous == {"TWICE"}


def test_the_tables_of_the_package():
    organisms = [path.stem.replace("_", ":") for path in SHIPPED.glob("*.parquet")]
    assert len(organisms) == 14
    for organism in organisms:
        genes = pd.read_parquet(SHIPPED / f"{organism.replace(':', '_')}.parquet")
        assert genes["gene_id"].is_monotonic_increasing
        assert genes["gene_id"].is_unique
        assert infer_organism(genes["gene_id"]) == organism
        assert f"{len(genes):,}" in (SHIPPED / "README.md").read_text()
    human = package_table("NCBITaxon:9606")
    par = ("CD99", "IL3RA", "CSF2RA", "CRLF2", "P2RY8", "SLC25A6", "VAMP7")
    assert not human.ambiguous.intersection(par)
    assert {human.by_symbol[symbol] < "ENSG00000292000" for symbol in par} == {True}
    genes = pd.read_parquet(SHIPPED / "NCBITaxon_9606.parquet").set_index("gene_id")
    assert genes.loc[TP53].tolist() == ["TP53", "17", 7661779]
    assert package_table("NCBITaxon:9913") is None


# ------------------------------------------------------------------------------------------------------------- matching


def test_symbols_are_looked_up_and_other_names_stay():
    names = ["TP53", "CD4", "CD4-1", "7SK_ENSG00000260682", "ENSG00000136997.4", "LINC_ENSG_1"]
    by_symbol = {"TP53": TP53, "CD4": CD4}
    symbols = {gene: symbol for symbol, gene in by_symbol.items()}
    known = GeneTable(symbols=symbols, by_symbol=by_symbol, by_synonym={}, ambiguous=frozenset())
    assert known.match(names) == ([TP53, CD4, "CD4-1", "ENSG00000260682", MYC, "LINC_ENSG_1"], frozenset())


def test_an_id_is_its_own_gene_whatever_it_is_a_synonym_of(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"gene_id,symbol,synonyms\n{TP53},A,{CD4}|{MYC}\n{CD4},B,\n")
    assert GeneTable.read(path).match([CD4, MYC])[0] == [CD4, TP53]


def test_real_files(real_data, human_table):
    import anndata

    found = {}
    for name in ("mouse_brain_merfish", "human_gut_scp1884", "human_cd4_perturb", "worm_l2"):
        var = anndata.read_h5ad(real_data / f"{name}.h5ad", backed="r").var
        ids, _ = human_table.match(gene_names(var, source=name))
        found[name] = (infer_organism(ids), ids[0])
    assert found == {
        "mouse_brain_merfish": ("NCBITaxon:10090", "ENSMUSG00000024798"),
        "human_gut_scp1884": ("NCBITaxon:9606", "ENSG00000260682"),  # named 7SK_ENSG00000260682
        "human_cd4_perturb": ("NCBITaxon:9606", "ENSG00000145365"),
        "worm_l2": ("NCBITaxon:6239", "WBGene00000010"),
    }


# -------------------------------------------------------------------------------- one matcher for training and curation


def trained(names, path):
    """The id of each gene in training, by a vocabulary of the whole table; None outside. And the aligned source."""
    source = MemorySource("s", named_values(2, len(names), density=1), names)
    ids = sorted(GeneTable.read(path).symbols)
    how = GeneAlignment(vocabulary=ids, organisms="human", tables={"human": str(path)}, min_overlap=0)
    _, (aligned,) = align([SourceSelection(source=source)], how)
    return [None if number < 0 else ids[number] for number in aligned.genes.lut], aligned


def curated(names, path):
    """The id of each gene in curation; None if it is dropped. And the genes of the curated file."""
    recipe = Recipe(genes={"human": str(path)}, min_gene_overlap=0)
    made = match_genes(pd.DataFrame(index=names), "NCBITaxon:9606", recipe, "s")
    return [None if number < 0 else made.var.index[number] for number in made.lut], made


def test_an_old_symbol_is_its_gene_in_training_and_curation(tmp_path):
    path = tmp_path / "genes.csv"
    lines = [f"{IDS[i]},GENE{i + 1},{'OLD1' if i == 0 else ''}\n" for i in range(3)]
    path.write_text("".join(["ensembl_gene_id,symbol,synonyms\n", *lines]))
    names = ["OLD1", "GENE2", "GENE3"]
    _, aligned = trained(names, path)
    _, made = curated(names, path)
    assert aligned.genes.lut.tolist() == made.lut.tolist() == [0, 1, 2]
    assert aligned.genes.n_dropped == 0
    assert made.notes == ()


def test_what_is_not_matched_is_reported_alike(tmp_path, caplog):
    names = ["P53", "TP53", "TWICE", "GFP", "CD4", "CD4"]
    path = table(tmp_path)
    with caplog.at_level(logging.INFO, logger="scdataloader"):
        trained(names, path)
    _, made = curated(names, path)
    assert made.notes == (
        "genes without match, dropped: 3 (GFP, P53, TWICE)",
        "of these, ambiguous names: 2 (P53, TWICE)",
        f"genes that occur more than once, summed: 1 ({IDS[1]})",
    )
    assert all(note in caplog.text for note in made.notes)


@st.composite
def tables_and_names(draw):
    """A table with shared symbols and synonyms, and names of all kinds, some of them twice."""
    words = ["A", "B", "C", "D"]
    n_genes = draw(st.integers(1, 5))
    rows = [
        (IDS[i], draw(st.sampled_from(["", *words])), draw(st.lists(st.sampled_from([*words, *IDS[:6]]), max_size=2)))
        for i in range(n_genes)
    ]
    ids = IDS[: n_genes + 1]
    kinds = [*words, *ids, *(f"{gene}.3" for gene in ids), *(f"X_{gene}" for gene in ids), "GFP", "AC01.2"]
    return rows, draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=8))


def expected_ids(rows, names):
    """The rules, one name at a time."""
    ids = [gene for gene, _, _ in rows]
    n_ids = sum(name.startswith("ENSG") for name in names)

    def own(name):
        gene = name.split(".")[0] if name.startswith("ENSG") else name
        with_symbol = [gene for gene, symbol, _ in rows if symbol == name]
        if gene in ids or name.startswith("ENSG"):
            return gene
        if len(with_symbol) == 1:
            return with_symbol[0]
        if name.startswith("X_") and n_ids <= len(names) / 2:
            return name[2:]
        return name

    def by_synonym(name):
        if name in ids or any(symbol == name for _, symbol, _ in rows):
            return None
        genes = [gene for gene, _, synonyms in rows if name in synonyms]
        return genes[0] if len(genes) == 1 else None

    distinct = {own(name) for name in names}
    meaning = Counter(by_synonym(name) or name for name in distinct)
    return [gene if (gene := by_synonym(own(name))) and meaning[gene] == 1 else own(name) for name in names]


@given(tables_and_names())
def test_training_and_curation_match_by_the_same_rules(tmp_path_factory, given_):
    rows, names = given_
    path = tmp_path_factory.mktemp("genes") / "genes.csv"
    lines = [f"{gene},{symbol},{'|'.join(synonyms)}\n" for gene, symbol, synonyms in rows]
    path.write_text("".join(["gene_id,symbol,synonyms\n", *lines]))
    known = {gene for gene, _, _ in rows}
    expected = [gene if gene in known else None for gene in expected_ids(rows, names)]
    if not any(expected):
        with pytest.raises(GeneOverlapError):
            trained(names, path)
        with pytest.raises(GeneOverlapError):
            curated(names, path)
        return
    by_training, aligned = trained(names, path)
    by_curation, made = curated(names, path)
    assert by_training == by_curation == expected
    # G1: genes with one id are summed, and reported once
    n_times = Counter(gene for gene in expected if gene)
    repeated = [gene for gene in sorted(n_times) if n_times[gene] > 1]
    assert list(aligned.genes.duplicates) == repeated
    assert [note for note in made.notes if "more than once" in note] == [
        f"genes that occur more than once, summed: {len(repeated)} ({', '.join(repeated)})"
    ][: len(repeated)]
    assert list(made.var.index) == sorted(n_times)
    values = aligned.source.dense
    summed = np.stack([values[:, [own == gene for own in expected]].sum(axis=1) for gene in sorted(n_times)], axis=1)
    np.testing.assert_array_equal(made.renumber(aligned.source.read(np.arange(2)), "s").toarray(), summed)
