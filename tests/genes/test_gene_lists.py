"""Vocabularies as users have them."""

import gzip
import json

import pandas as pd
import pytest

import scdataloader as scd
from scdataloader.genes.gene_lists import gene_lists
from scdataloader.testing import MemorySource, named_values

IDS = ["ENSG00000141510", "ENSG00000010610", "ENSG00000136997"]
SYMBOLS = ["TP53", "CD4", "NA"]
TABLE = pd.DataFrame({"symbol": SYMBOLS, "length": [3, 1, 2], "ensembl_id": IDS})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (tuple(IDS), IDS),
        (pd.Series(IDS), IDS),
        (pd.Index(SYMBOLS), SYMBOLS),
        ({"CD4": 1, "NA": 2, "TP53": 0, "<cls>": 4, "<pad>": 3}, SYMBOLS),
        ({"<pad>": 0, "<cls>": 1, "TP53": 2, "CD4": 3, "NA": 4}, SYMBOLS),
        (["[PAD]", *SYMBOLS], SYMBOLS),
        ({"human": {"CD4": 1, "TP53": 0, "NA": 7}, "mouse": ["Tp53"]}, {"human": SYMBOLS, "mouse": ["Tp53"]}),
    ],
)
def test_lists_and_numberings_of_tokens(given, meant):
    assert gene_lists(given) == meant


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("g.txt", "\n".join(IDS) + "\n\n", IDS),
        ("g.txt", "gene_id\n" + "\n".join(IDS), IDS),
        ("g.txt", "Gene\r\n" + "\r\n".join(SYMBOLS), SYMBOLS),
        ("genes", "eGFP\n" + "\n".join(IDS), ["eGFP", *IDS]),  # not a header
        ("g.csv", "0\n" + "\n".join(SYMBOLS), SYMBOLS),
        ("g.csv", TABLE.to_csv(), IDS),
        ("g.csv", TABLE.to_csv(index=False), IDS),
        ("g.tsv", TABLE.to_csv(sep="\t", index=False), IDS),
        ("g.txt", TABLE.to_csv(sep="\t", index=False), IDS),
        ("g.csv", TABLE.drop(columns="ensembl_id").to_csv(index=False), SYMBOLS),
        ("g.csv", pd.DataFrame({"n_cells": [1, 2, 3]}, index=SYMBOLS).to_csv(), SYMBOLS),
        ("g.csv", pd.DataFrame({"which": IDS, "n": [1, 2, 3]}).to_csv(index=False), IDS),
        ("features.tsv", "\n".join(f"{i}\t{s}\tGene Expression" for i, s in zip(IDS, SYMBOLS, strict=True)), IDS),
        ("vocab.json", json.dumps({"CD4": 1, "NA": 2, "TP53": 0, "<pad>": 3}), SYMBOLS),
        ("vocab.json", json.dumps(IDS), IDS),
        ("vocab.json", json.dumps({"human": IDS}), {"human": IDS}),
    ],
)
def test_files(tmp_path, name, text, meant):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert gene_lists(tmp_path / name) == meant
    if isinstance(meant, list):
        assert gene_lists({"human": str(tmp_path / name)}) == {"human": meant}


def test_binary_and_compressed_files(tmp_path):
    TABLE.to_parquet(tmp_path / "g.parquet")
    TABLE[["length"]].set_axis(IDS).to_parquet(tmp_path / "var.parquet")
    (tmp_path / "g.csv.gz").write_bytes(gzip.compress(TABLE.to_csv().encode()))
    for name in ("g.parquet", "var.parquet", "g.csv.gz"):
        assert gene_lists(tmp_path / name) == IDS


def test_numbers_that_a_batch_cannot_keep_are_reported(caplog):
    gene_lists({"<pad>": 0, "TP53": 1, "CD4": 2})
    assert "2 genes have other numbers than in the vocabulary (TP53: 0, not 1)" in caplog.text


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"TP53": 0, "CD4": 0}, ValueError, r"numbers of 1 genes twice \(TP53\)"),
        ({"TP53": 0, "human": ["CD4"]}, TypeError, "must be a list of genes"),
        ({"human": {"mouse": ["Tp53"]}}, TypeError, "the vocabulary of human must be a list"),
        (60_000, TypeError, "must be a list of genes.*got int 60000"),
    ],
)
def test_what_is_no_vocabulary_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        gene_lists(given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("g.csv", "colour,size\nred,1\nblue,2\n", "no column of genes; its first row is colour, size"),
        ("vocab.json", "{", "vocab.json is not JSON"),
        ("token_dictionary.pkl", "", "is not a pickle"),
    ],
)
def test_files_without_genes_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        gene_lists(tmp_path / name)


def test_a_collection_has_the_genes_in_the_order_of_their_numbers():
    source = MemorySource("cells", named_values(4, 3, seed=0), IDS, {})
    numbers = {gene: place for place, gene in enumerate(reversed(IDS))}
    opened = scd.Collection.open(source, genes=scd.GeneAlignment(vocabulary=numbers))
    assert opened.vocabulary.ids == IDS[::-1]
    again = scd.Collection.open(source, genes=scd.GeneAlignment(vocabulary=opened.vocabulary))
    assert again.vocabulary.ids == IDS[::-1]
