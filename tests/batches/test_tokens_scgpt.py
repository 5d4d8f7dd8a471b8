"""ScGPT: tokens and binned values against the original's arrays, and the laws of its random choices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from scdataloader.batches.tokens.pairs import MaskedValues
from scdataloader.batches.tokens.scgpt import ScGPT
from scdataloader.batches.transforms import QuantileBins
from scdataloader.testing import check_collate
from tests.batches.token_cells import bits_of, cells_of, context, gene_ids, order_of, vectors

RNG = np.random.default_rng(0)
SPECIAL = {"<pad>": 0, "<cls>": 2}
BIN, ORDER, MASK = 16, 17, 19


def vocabulary(tokens):
    """A model's vocabulary; -1 for a gene without token."""
    genes = zip(gene_ids(len(tokens)), tokens, strict=True)
    return {**SPECIAL, **{gene: token for gene, token in genes if token >= 0}}


def scgpt_reference(counts, token, *, n_bins, max_len, drawn, keep):
    """The original, for one cell, with its random numbers given: u of each value, and the order of those it keeps."""
    genes = np.flatnonzero((counts > 0) & (token >= 0))
    values = counts[genes].astype(np.float64)
    bins = np.zeros(0)
    if len(values):
        edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
        left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
        bins = np.ceil(np.asarray(drawn) * (right - left) + left)
    gene, expr = np.append(SPECIAL["<cls>"], token[genes]), np.append(0.0, bins)
    return (gene, expr) if len(gene) <= max_len else (gene[keep], expr[keep])


def collated(scgpt, counts, **of):
    return scgpt.bind(context(np.shape(counts)[1]))(cells_of(counts, **of), RNG)


def test_the_reference_is_the_original():
    case = vectors("scgpt")
    for counts, cell in zip(case["counts"], case["cells"], strict=True):
        gene, expr = scgpt_reference(
            np.array(counts),
            np.array(case["token"]),
            n_bins=case["n_bins"],
            max_len=case["max_len"],
            drawn=cell["drawn"] or [],
            keep=cell["keep"],
        )
        assert gene.tolist() == cell["gene"]
        assert expr.tolist() == cell["expr"]


@st.composite
def rows(draw):
    """Counts of some cells, and a token or -1 of each gene."""
    n_genes = draw(st.integers(1, 30))
    count = st.one_of(st.just(0), st.integers(1, 3), st.sampled_from([7, 255, 256, 3000]))
    counts = draw(st.lists(st.lists(count, min_size=n_genes, max_size=n_genes), min_size=1, max_size=4))
    token = draw(st.lists(st.one_of(st.just(-1), st.integers(10, 99)), min_size=n_genes, max_size=n_genes))
    token[draw(st.integers(0, n_genes - 1))] = 7
    return np.array(counts), np.array(token)


@given(rows(), st.integers(1, 20), st.integers(3, 60))
def test_cells_are_those_of_the_reference(case, max_len, n_bins):
    counts, token = case
    made = collated(ScGPT(vocabulary(token), max_len=max_len, n_bins=n_bins), counts)
    assert made["gene"].shape == made["expr"].shape == (len(counts), max_len)
    assert made["gene"].dtype == torch.int64
    for position, row in enumerate(counts):
        n = int(((row > 0) & (token >= 0)).sum())
        drawn = (bits_of(position, BIN, n) >> 32).astype(float) / 2**32
        keep = [0, *(1 + place for place in order_of(position, ORDER, n, min(n, max_len - 1)))]
        gene, expr = scgpt_reference(row, token, n_bins=n_bins, max_len=max_len, drawn=drawn, keep=keep)
        assert made["gene"][position].tolist() == [*gene, *[0] * (max_len - len(gene))]
        assert made["expr"][position].tolist() == [*expr, *[0] * (max_len - len(expr))]


def test_an_empty_cell_is_cls():
    counts = np.zeros((2, 5))
    counts[1, 4] = 3  # a gene without token
    made = collated(ScGPT(vocabulary([5, 6, 7, 8, -1]), max_len=4, pad_value=-2, masking=MaskedValues(rate=1)), counts)
    assert made["gene"].tolist() == [[2, 0, 0, 0]] * 2
    assert made["expr"].tolist() == made["masked_expr"].tolist() == [[-2] * 4] * 2


def test_the_width_is_fixed_or_that_of_the_longest_cell():
    counts = np.triu(np.ones((6, 6)))  # 6 to 1 genes
    tokens = vocabulary(range(10, 16))
    assert collated(ScGPT(tokens, max_len=5), counts)["gene"].shape == (6, 5)
    dynamic = ScGPT(tokens, max_len=6, pad_to="longest").bind(context(6))
    assert [len(made["gene"][0]) for made in dynamic.many(cells_of(counts), 2)] == [6, 5, 3]


def test_bins_are_those_of_the_transform_where_all_genes_have_tokens():
    counts = RNG.geometric(0.5, (3, 20))
    for ties in ("random", "high"):
        cells = QuantileBins(n_bins=11, ties=ties)(cells_of(counts), RNG)
        expr = collated(ScGPT(vocabulary(range(10, 30)), max_len=21, n_bins=11, ties=ties), counts)["expr"]
        assert np.array_equal(expr[:, 1:], cells.x.data.reshape(3, 20))
        as_given = ScGPT(vocabulary(range(10, 30)), max_len=21, n_bins=None).bind(context(20))(cells, RNG)
        assert torch.equal(as_given["expr"], expr)


def test_masked_values_are_each_masked_at_the_rate():
    counts = np.tile(RNG.geometric(0.5, 40), (500, 1))
    scgpt = ScGPT(vocabulary(range(10, 50)), max_len=61, masking=MaskedValues(rate=0.2, value=-9))
    made = collated(scgpt, counts)
    masked = (made["masked_expr"] == -9).numpy()
    for position in (0, 499):
        bits = (bits_of(position, MASK, 41) >> 32).astype(float) / 2**32
        assert masked[position, 1:41].tolist() == (bits[1:] < 0.2).tolist()
    assert not masked[:, 0].any()
    assert not masked[:, 41:].any()
    assert torch.equal(made["masked_expr"][~masked], made["expr"][~masked])
    assert chisquare(np.bincount(masked.sum(1) > 8, minlength=2) / 500, [0.593, 0.407]).pvalue > 0.9
    assert chisquare(masked[:, 1:41].sum(0)).pvalue > 1e-4


def test_masks_of_an_exact_share():
    counts = np.ones((400, 10))
    counts[0, 3:] = 0
    scgpt = ScGPT(vocabulary(range(10, 20)), max_len=12, masking=MaskedValues(rate=0.35, exact=True))
    masked = (collated(scgpt, counts)["masked_expr"] == -1).numpy()
    assert masked.sum(1).tolist() == [1] + [3] * 399
    assert not masked[:, [0, 11]].any()
    assert chisquare(masked[1:, 1:11].sum(0)).pvalue > 1e-4


def test_choices_of_long_cells_are_evenly_likely_in_every_order():
    made = collated(ScGPT(vocabulary(range(10, 15)), max_len=4), np.ones((4000, 5)))["gene"].numpy()
    assert (made[:, 0] == 2).all()
    for one, other in pairwise(range(1, 4)):
        pairs = np.histogram2d(made[:, one], made[:, other], bins=np.arange(10, 16))[0]
        assert chisquare(pairs[~np.eye(5, dtype=bool)]).pvalue > 1e-4
        assert not pairs.diagonal().any()


def test_special_tokens_and_options_are_checked():
    with pytest.raises(KeyError, match="<cls>"):
        ScGPT({"<pad>": 0, **dict.fromkeys(gene_ids(3), 5)}).bind(context(3))
    with pytest.raises(TypeError, match="bind"):
        ScGPT(SPECIAL)(cells_of(np.ones((1, 3))), RNG)
    for wrong in ({"n_bins": 2}, {"ties": "low"}, {"max_len": 0}, {"pad_to": "widest"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ScGPT(SPECIAL, **wrong)
    with pytest.raises(ValueError, match="rate"):
        MaskedValues(rate=1.5)


@pytest.mark.parametrize("pad_to", ["max_len", "longest"])
@pytest.mark.parametrize("masking", [None, MaskedValues(), MaskedValues(exact=True)])
def test_laws(pad_to, masking):
    tokens = {**SPECIAL, **{f"ENSG{number:011d}": number + 3 for number in range(50)}}
    check_collate(ScGPT(tokens, max_len=18, masking=masking, pad_to=pad_to))
