"""UCE: sentences against the original's arrays, and the laws of their random choices."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import scdataloader as scd
from scdataloader.batches.tokens.uce import UCE
from scdataloader.protocols import BatchContext
from scdataloader.testing import check_collate
from tests.batches.token_cells import bits_of, cells_of, context, gene_ids, order_of, vectors

RNG = np.random.default_rng(0)
DRAW, CHROMOSOMES = 21, 22
SPECIAL = {"cls": 3, "right": 2, "offset": 1000, "pad": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def uce_reference(choice, chrom_order, *, chrom, start, token, width):
    """The original's sentence, given the drawn genes and the order of their chromosomes."""
    sentence = [SPECIAL["cls"]]
    for one in chrom_order:
        genes = sorted((gene for gene in choice if chrom[gene] == one), key=lambda gene: (start[gene], gene))
        sentence += [SPECIAL["offset"] + one, *(token[gene] for gene in genes), SPECIAL["right"]]
    return sentence + [SPECIAL["pad"]] * (width - len(sentence))


def test_the_reference_is_the_original():
    case = vectors("uce")
    tables = {name: case[name] for name in ("chrom", "start", "token")}
    for cell in case["cells"]:
        if "error" not in cell:
            got = uce_reference(cell["choice"], cell["chrom_order"], **tables, width=case["pad_len"])
            assert got == cell["sentence"]
            assert sum(cell["mask"]) == cell["length"] == 24 - cell["sentence"][::-1].index(2)


def bound(folder, chrom, start, token, **options):
    """UCE for a genome; -1 is no chromosome, or no token."""
    genes = pd.DataFrame({"gene_id": gene_ids(len(chrom)), "symbol": "", "chromosome": chrom, "start": start})
    path = folder / f"{abs(hash((tuple(chrom), tuple(start))))}.csv"
    genes[genes["chromosome"] >= 0].to_csv(path, index=False)
    vocabulary = {gene: one for gene, one in zip(gene_ids(len(token)), token, strict=True) if one >= 0}
    special = {"cls": 3, "right": 2, "chromosome_offset": 1000, "pad": 0}
    codes = {f"human_{one}": one for one in set(chrom) if one >= 0}
    uce = UCE(vocabulary, chromosomes=codes, **special, **options)
    return uce.bind(context(len(chrom), gene_tables={"human": str(path)}))


@st.composite
def genomes(draw):
    n = draw(st.integers(1, 20))
    numbers = st.lists(st.integers(-1, 3), min_size=n, max_size=n)
    chrom, start = draw(numbers), draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    token = draw(st.lists(st.integers(-1, 90), min_size=n, max_size=n))
    chrom[0], token[0] = 2, 7
    count = st.one_of(st.just(0), st.integers(1, 3), st.sampled_from([255.0, 256.0, 5000.0, 0.25]))
    return chrom, start, token, draw(st.lists(st.lists(count, min_size=n, max_size=n), min_size=1, max_size=3))


@given(genomes(), st.integers(1, 40))
def test_sentences_are_those_of_the_reference(folder, case, n_genes):
    chrom, start, token, counts = case
    made = bound(folder, chrom, start, token, n_genes=n_genes, max_len=60)(cells_of(counts), RNG)
    assert made["input_ids"].dtype == made["attention_mask"].dtype == torch.int64
    for position, row in enumerate(np.array(counts, np.float32)):
        genes = [gene for gene in np.flatnonzero(row) if chrom[gene] >= 0 and token[gene] >= 0]
        sums = np.cumsum(np.log1p(row[genes].astype(np.float64)))
        choice, present = [], []
        if genes:
            u = (bits_of(position, DRAW, n_genes) >> 11).astype(float) / 2**53
            choice = [genes[j] for j in np.searchsorted(sums, u * sums[-1], side="right")]
            present = sorted({chrom[gene] for gene in choice})
            present = [present[k] for k in order_of(position, CHROMOSOMES, len(present), len(present))]
        expected = uce_reference(choice, present, chrom=chrom, start=start, token=token, width=60)
        length = 1 + len(choice) + 2 * len(present)
        assert made["input_ids"][position].tolist() == expected
        assert made["attention_mask"][position].tolist() == [1] * length + [0] * (60 - length)


def test_genes_are_drawn_by_the_logarithms_of_their_values(folder):
    counts = np.tile([1, 3, 0, 7, 300, 0.5], (2000, 1))
    made = bound(folder, [0] * 6, range(6), range(10, 16), n_genes=8, pad_to="longest")(cells_of(counts), RNG)
    assert made["input_ids"].shape == (2000, 11)
    times = np.bincount(made["input_ids"][:, 2:10].ravel() - 10, minlength=6)
    share = np.log1p(counts[0])
    assert times[2] == 0
    assert chisquare(times[share > 0], times.sum() * (share / share.sum())[share > 0]).pvalue > 1e-4


def test_chromosomes_come_in_every_order(folder):
    made = bound(folder, [0, 1, 2], [1, 1, 1], [10, 11, 12], n_genes=30, max_len=40)(cells_of(np.ones((3000, 3))), RNG)
    whole = made["input_ids"][(made["attention_mask"].sum(1) == 37)].numpy()
    orders = ["".join(str(token - 1000) for token in row if token >= 1000) for row in whole]
    assert len(orders) > 2990
    assert chisquare([orders.count(one) for one in ("012", "021", "102", "120", "201", "210")]).pvalue > 1e-4


def test_sentences_that_do_not_fit_are_refused(folder):
    with pytest.raises(ValueError, match="27 tokens, more than max_len=26"):
        bound(folder, [0, 1, 2], [1, 1, 1], [10, 11, 12], n_genes=20, max_len=26)
    with pytest.raises(ValueError, match="position"):
        bound(folder, [0, 0, -1], [1, 1, 1], [-1, -1, 12], n_genes=20)
    with pytest.raises(ValueError, match=r"human_1.*'7'"):
        UCE(dict.fromkeys(gene_ids(3), 7), chromosomes={"7": 1}).bind(context(3))
    with pytest.raises(TypeError, match="bind"):
        UCE({})(cells_of(np.ones((1, 3))), RNG)


def test_positions_are_those_of_the_packages_tables(caplog):
    human = {"ENSG00000000419": 5, "ENSG00000000457": 6, "ENSG00000000460": 7, "ENSG00000000000": 8}
    mouse = {"ENSMUSG00000000001": 9}
    vocabulary = scd.GeneVocabulary.from_dict({"human": list(human), "mouse": list(mouse)})
    with caplog.at_level(logging.INFO):
        uce = UCE({**human, **mouse}, n_genes=2, max_len=8, chromosome_offset=100).bind(
            BatchContext(vocabulary=vocabulary)
        )
    assert "leaves out 1 genes" in caplog.text
    counts = np.zeros((4, 5))
    counts[:, 4] = 1, 0, 0, 1
    counts[1, 0] = counts[2, 1:4] = 1
    made = uce(cells_of(counts), RNG)["input_ids"]
    # numbers of the chromosomes of mouse (NCBITaxon:10090) come before those of human (NCBITaxon:9606)
    assert made[0].tolist() == [3, 100, 9, 9, 2, 0, 0, 0]
    assert made[1].tolist() == [3, 102, 5, 5, 2, 0, 0, 0]
    assert made[2, [0, 1, 4]].tolist() == [3, 101, 2]
    assert made[2, 2] >= made[2, 3]  # 457 starts after 460
    codes = {"Homo sapiens_1": 3, "house mouse_3": 4}
    own = UCE({**human, **mouse}, codes, n_genes=2, chromosome_offset=100).bind(BatchContext(vocabulary=vocabulary))
    made = own(cells_of(counts), RNG)["input_ids"]
    assert made[0, :5].tolist() == [3, 104, 9, 9, 2]
    assert made[1, :2].tolist() == [3, 0]  # its chromosome has no number
    assert made[2, 1] == 103


@pytest.mark.parametrize("pad_to", ["max_len", "longest"])
def test_laws(pad_to):
    numbers = range(419, 479)
    tokens = {f"ENSG{number:011d}": number for number in numbers}
    vocabulary = scd.GeneVocabulary.from_dict({"human": list(tokens)})
    check_collate(UCE(tokens, n_genes=30, max_len=100, pad_to=pad_to), context=BatchContext(vocabulary=vocabulary))
