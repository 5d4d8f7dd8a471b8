"""Tables of models, matched to the genes of a vocabulary."""

import json
import logging
import pickle

import numpy as np
import pytest

import scdataloader as scd
from scdataloader.batches.tokens.tables import per_gene, read_numbers, read_tokens
from scdataloader.protocols import BatchContext
from scdataloader.sampling.samplers import ShuffleSampler

HUMAN = ["ENSG00000141510", "ENSG00000010610", "ENSG00000153563"]
"""TP53, CD4, CD8A."""
SYMBOLS = ["TP53", "CD4", "CD8A"]
MOUSE = ["ENSMUSG00000059552", "ENSMUSG00000023274"]
"""Trp53, Cd4."""
TOKENS = {"<pad>": 0, "<cls>": 1, "ENSG00000010610": 7, "ENSG00000141510.12": 8, "ENSMUSG00000023274": 9}


def context(tables=None, **genes):
    return BatchContext(vocabulary=scd.GeneVocabulary.from_dict(genes), gene_tables=tables or {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", json.dumps(TOKENS).encode()),
        ("token_dictionary.pkl", pickle.dumps({gene: np.int64(token) for gene, token in TOKENS.items()})),
    ],
)
def test_the_files_of_models_are_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for table in (read_tokens(TOKENS), read_tokens(tmp_path / name), read_tokens(str(tmp_path / name))):
        assert table.special("<cls>", "<pad>") == [1, 0]
        values, known = per_gene(table, context(human=HUMAN))
        assert values.tolist() == [8, 7, 0]
        assert known.tolist() == [True, True, False]
        assert values.dtype == np.int64


@pytest.mark.parametrize("text", ["<pad>\nCD4\nTP53\n", "gene_name\n<pad>\nCD4\nTP53\n"])
def test_the_lines_of_a_text_number_its_genes_and_special_tokens(tmp_path, text):
    (tmp_path / "genes.txt").write_text(text)
    assert dict(read_tokens(tmp_path / "genes.txt").values) == {"<pad>": 0, "CD4": 1, "TP53": 2}


def test_symbols_and_ids_are_matched_by_the_gene_table():
    symbols = read_numbers(dict(zip(SYMBOLS, [1.5, 2.5, np.nan], strict=True)), "medians")
    values, known = per_gene(symbols, context(human=HUMAN))
    assert values.tolist() == [1.5, 2.5, 0]
    assert known.tolist() == [True, True, False]
    values, _ = per_gene(read_tokens(TOKENS), context(human=SYMBOLS))
    assert values.tolist() == [8, 7, 0]


def test_the_users_gene_table_decides(tmp_path):
    (tmp_path / "genes.csv").write_text("gene_id,symbol\nMINE1,GeneA\nMINE2,GeneB\n")
    mine = context({"zebrafish": str(tmp_path / "genes.csv")}, zebrafish=["MINE2", "MINE1"])
    assert per_gene(read_tokens(["GeneA", "GeneB"]), mine).values.tolist() == [1, 0]
    with pytest.raises(ValueError, match="none of the 2 genes"):
        per_gene(read_tokens(["GeneA", "GeneB"]), context(zebrafish=["MINE2", "MINE1"]))


def test_collections_hand_on_the_users_gene_tables(tmp_path):
    (tmp_path / "genes.csv").write_text("gene_id,symbol\nMINE1,GeneA\nMINE2,GeneB\n")
    alignment = scd.GeneAlignment(tables={"zebrafish": str(tmp_path / "genes.csv")}, organisms="zebrafish")
    source = scd.testing.MemorySource("cells", scd.testing.named_values(4, 2), ["GeneA", "GeneB"])
    collection = scd.Collection.open(source, genes=alignment)
    seen = []

    class Binding(scd.Dense):
        def bind(self, context):
            seen.append(context.gene_tables)
            return self

    scd.Loader(collection, ShuffleSampler(4), Binding(), batch_size=2)
    dm = scd.DataModule(data=source, alignment=alignment, collate=Binding(), batch_size=2)
    dm.setup("fit")
    dm.train_dataloader()
    assert seen == [alignment.tables] * len(seen)
    assert len(seen) > 1


def test_each_organism_has_its_genes():
    values, _ = per_gene(read_tokens(TOKENS), context(human=HUMAN, mouse=MOUSE))
    assert values.tolist() == [8, 7, 0, 0, 9]


def test_of_two_entries_the_one_named_as_in_the_vocabulary_counts():
    for table in ({"TP53": 1, HUMAN[0]: 2, "CD4": 3}, {HUMAN[0]: 2, "TP53": 1, "CD4": 3}):
        assert per_gene(read_tokens(table), context(human=HUMAN)).values[0] == 2
    assert per_gene(read_tokens({HUMAN[0] + ".1": 4, HUMAN[0] + ".2": 5}), context(human=HUMAN)).values[0] == 4


def test_genes_without_entry_are_counted_once(caplog):
    caplog.set_level(logging.INFO)
    per_gene(read_tokens(TOKENS), context(human=HUMAN))
    assert len(caplog.records) == 1
    assert f"given tokens: 1 of the 3 genes of the vocabulary have none and are left out ({HUMAN[2]})" in caplog.text


def test_tables_without_a_gene_of_the_vocabulary_are_refused():
    message = rf"none of the 3 genes.*{HUMAN[0]}.*among the 2 genes of the given tokens.*{MOUSE[0]}"
    with pytest.raises(ValueError, match=message):
        per_gene(read_tokens(["<pad>", *MOUSE]), context(human=HUMAN))


def test_missing_special_tokens_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(TOKENS))
    with pytest.raises(KeyError, match=r"tokens of .*vocab\.json lack the special tokens <mask>, <clss>; .*'<pad>'"):
        read_tokens(tmp_path / "vocab.json").special("<mask>", "<pad>", "<clss>")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"TP53": "one"}, TypeError, "TP53: 'one'"),
        ({"TP53": [1]}, TypeError, "TP53"),
        (7, TypeError, "got int"),
        (["TP53", "CD4", "TP53"], ValueError, r"1 genes occur twice \(TP53\)"),
        ({"TP53": -1}, ValueError, "TP53: -1"),
        ({"TP53": 1.5}, ValueError, "TP53: 1.5"),
    ],
)
def test_what_is_no_table_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        read_tokens(given)
