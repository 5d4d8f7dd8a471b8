"""Families of pairs besides scGPT, against the original's arrays, and the laws of their random choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from scdataloader.batches.tokens.cellfm import CellFM
from scdataloader.batches.tokens.pairs import MaskedValues
from scdataloader.batches.tokens.scfoundation import ScFoundation
from scdataloader.batches.tokens.tahoe import TahoeX1
from scdataloader.batches.tokens.transcriptformer import TranscriptFormer
from scdataloader.testing import check_collate
from tests.batches.token_cells import bits_of, cells_of, context, gene_ids, order_of, vectors

RNG = np.random.default_rng(0)
SPECIAL = {"<pad>": 0, "<cls>": 2, "<drug>": 3, "[PAD]": 5}
ORDER, WEIGHT = 17, 18
MASKS = MaskedValues(rate=0.5, exact=True)
COUNTS = np.array([[0, 3, 1, 0, 7, 2], [2, 2, 2, 0, 0, 2], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 60]])


def vocabulary(tokens):
    genes = zip(gene_ids(len(tokens)), tokens, strict=True)
    return {**SPECIAL, **{gene: token for gene, token in genes if token >= 0}}


TOKENS = vocabulary([10, -1, 12, 13, 14, 15])


def collated(family, counts, of=None, **kwargs):
    return family.bind(context(np.shape(counts)[1]))(cells_of(counts, obs=of, **kwargs), RNG)


def trimmed(values, n):
    """``n`` of the values of a row, after which all are equal."""
    assert len(set(values[n:].tolist())) <= 1
    return values[:n].tolist()


# ------------------------------------------------------------------------------------------------------------ Tahoe-x1


def test_tahoe_bins_are_the_originals():
    case = vectors("tahoe")
    tahoe = TahoeX1(vocabulary(range(10, 22)), max_len=13, n_bins=case["n_bins"], masking=None)
    made = collated(tahoe, case["counts"])
    for row, bins in enumerate(case["bins"]):
        assert trimmed(made["expr_target"][row, 1:], len(bins)) == bins
        assert trimmed(made["expr_raw"][row, 1:], len(bins)) == [one for one in case["counts"][row] if one]


@given(st.integers(0, 2**32), st.integers(2, 30), st.booleans())
def test_tahoe_of_a_cell(seed, max_len, right):
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.5, 20) * (rng.random(20) < 0.7)
    token = np.where(rng.random(20) < 0.2, -1, np.arange(10, 30))
    token[0] = 10
    made = collated(TahoeX1(vocabulary(token), max_len=max_len, right_binning=right, masking=MASKS), counts[None])
    genes = np.flatnonzero((counts > 0) & (token >= 0))
    keep = np.arange(len(genes))
    if len(genes) >= max_len:
        keep = order_of(0, ORDER, len(genes), max_len - 1)
    values, n = torch.tensor(counts[genes], dtype=torch.float32), len(keep)
    bins = torch.zeros(0)
    if n:
        edges = torch.quantile(values, torch.linspace(0, 1, 50))
        bins = torch.bucketize(values, edges, right=right) + (not right)
    assert trimmed(made["gene"][0, 1:], n) == token[genes][keep].tolist()
    assert trimmed(made["expr_target"][0, 1:], n) == bins[keep].tolist()
    assert trimmed(made["expr_raw"][0, 1:], n) == counts[genes][keep].tolist()
    mask = made["gen_mask"][0]
    assert mask.sum() == int(n * 0.5)
    assert not mask[0]
    assert not mask[1 + n :].any()
    assert torch.equal(made["expr"][0][mask], torch.full((int(mask.sum()),), -1.0))
    assert torch.equal(made["expr"][0][~mask], made["expr_target"][0][~mask])


def test_tahoe_with_logarithms_drugs_and_unexpressed_genes():
    tahoe = TahoeX1(
        TOKENS, max_len=8, values="log", masking=None, drugs={"<pad>": 0, "aspirin": 4}, unexpressed=True
    ).bind(context(6))
    assert tahoe.obs == ("drug",)
    measured = np.array([[True, True, True, True, True, False]])
    counts = COUNTS * measured
    cells = cells_of(counts, measured=measured, obs={"drug": np.array(["aspirin", None, "new", "aspirin"], object)})
    made = tahoe(cells, RNG)
    assert made["drug_ids"].tolist() == [4, 0, 0, 4]
    assert (made["gene"][:, :2] == torch.tensor([2, 3])).all()
    assert (made["expr"][:, :2] == -2).all()
    for row, expressed in enumerate(([12, 14], [10, 12], [], [10, 12, 13, 14])):
        gene, expr = made["gene"][row, 2:].tolist(), made["expr"][row, 2:]
        assert gene[: len(expressed)] == expressed
        assert sorted(gene[:4]) == [10, 12, 13, 14]  # every gene that has a token and was measured
        assert gene[4:] == [0, 0]
        known = counts[row, [token - 10 for token in expressed]]
        assert np.allclose(expr[: len(expressed)], np.log1p(known / max(known.sum(), 1) * 1e4))
        assert expr[len(expressed) :].tolist() == [0] * (4 - len(expressed)) + [-2, -2]
    assert not made["gen_mask"].any()
    with pytest.raises(KeyError, match="<pad>"):
        TahoeX1(TOKENS, drugs={"aspirin": 4}).bind(context(6))


# ------------------------------------------------------------------------------------------------- TranscriptFormer


@pytest.mark.parametrize("name", ["transcriptformer_8", "transcriptformer_14"])
def test_transcriptformer_is_the_original(name):
    case = vectors(name)
    family = TranscriptFormer(vocabulary(case["token"]), max_len=case["max_len"], clip=case["clip"])
    made = collated(family, case["counts"])
    assert made["gene_token_indices"].tolist() == case["gene_token_indices"]
    assert made["gene_counts"].tolist() == case["gene_counts"]


def test_transcriptformer_takes_a_random_choice_if_shuffled():
    made = collated(TranscriptFormer(vocabulary(range(10, 14)), max_len=2, shuffle=True), np.ones((3000, 4)))
    pairs = np.histogram2d(*made["gene_token_indices"].numpy().T, bins=np.arange(10, 15))[0]
    assert chisquare(pairs[~np.eye(4, dtype=bool)]).pvalue > 1e-4
    short = collated(TranscriptFormer(TOKENS, max_len=6, shuffle=True), COUNTS)
    assert [sorted(row) for row in short["gene_token_indices"].tolist()] == [
        [5, 5, 5, 12, 14, 15],
        [5, 5, 5, 10, 12, 15],
        [5] * 6,
        [5, 10, 12, 13, 14, 15],
    ]
    assert short["gene_counts"][3, short["gene_token_indices"][3] == 15].tolist() == [30]


# ----------------------------------------------------------------------------------------------------- scFoundation


def test_scfoundation_is_the_original():
    case = vectors("scfoundation")
    family = ScFoundation({gene: number for number, gene in enumerate(gene_ids(12))}, target=case["target"])
    made = collated(family, case["counts"])
    for row, cell in enumerate(case["cells"]):
        values, positions = cell.get("values", [4.0]), cell.get("positions", [12])
        assert trimmed(made["gene"][row], len(positions)) == positions
        assert np.allclose(trimmed(made["expr"][row], len(values)), values, atol=1e-5)
        assert set(made["gene"][row, len(positions) :].tolist()) <= {103}


def test_scfoundation_totals_are_those_of_its_genes_and_its_width_is_checked():
    genes = [gene for number, gene in enumerate(gene_ids(6)) if number != 5]
    made = collated(ScFoundation(genes, target=5, max_len=9), COUNTS)
    assert made["gene"][3].tolist() == [0, 1, 2, 3, 4, 5, 6, 103, 103]
    assert np.allclose(made["expr"][3, :7], [*np.log1p(np.arange(1, 6) / 15 * 1e4), 5, np.log10(15)])
    assert made["gene"][2].tolist() == [5] + [103] * 8
    with pytest.raises(ValueError, match="row 3 has 5 expressed genes"):
        collated(ScFoundation(genes, max_len=6), COUNTS)


# ----------------------------------------------------------------------------------------------------------- CellFM


def cellfm_reference(counts, order, width):
    """The original, given the order in which genes are drawn."""
    counts = np.round(counts / max(1, counts.sum() / 1e5))
    genes = np.flatnonzero(counts)
    kept = genes if len(genes) <= width else np.sort(genes[order[:width]])
    pad = np.zeros(width - len(kept))
    values = np.log1p(counts[kept] / max(counts.sum(), 1) * 1e4)
    return np.concatenate([kept + 1, pad]), np.concatenate([values, pad])


def test_the_reference_of_cellfm_is_the_original():
    case = vectors("cellfm")
    for counts, cell in zip(case["counts"], case["cells"], strict=True):
        genes, values = cellfm_reference(np.array(counts), cell["order"], case["pad_len"])
        assert genes.tolist() == cell["genes"]
        assert np.allclose(values, cell["values"], atol=1e-5)


@given(st.integers(0, 2**32), st.integers(1, 15))
def test_cellfm_of_a_cell(seed, width):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, 12) * rng.choice([1, 50_000], 12)
    made = collated(CellFM(gene_ids(12), max_len=width), counts[None])
    scaled = np.round(counts / max(1, counts.sum() / 1e5))
    weights = np.log1p(scaled[scaled > 0])
    u = ((bits_of(0, WEIGHT, len(weights)) >> 11).astype(float) + 0.5) / 2**53
    genes, values = cellfm_reference(counts, np.argsort(-np.log(u) / weights), width)
    assert made["gene"][0].tolist() == genes.tolist()
    assert np.allclose(made["expr"][0], values, rtol=1e-5)


def test_cellfm_draws_by_the_logarithms_of_counts():
    counts = np.array([1, 3, 7, 200])
    made = collated(CellFM(gene_ids(4), max_len=1), np.tile(counts, (4000, 1)))["gene"][:, 0].numpy()
    share = np.log1p(counts)
    assert chisquare(np.bincount(made, minlength=5)[1:], 4000 * share / share.sum()).pvalue > 1e-4


# ---------------------------------------------------------------------------------------------------------- all of them

_GENES = {f"ENSG{number:011d}": number for number in range(50)}
FAMILIES = [
    TahoeX1({**SPECIAL, **_GENES}, max_len=18),
    TahoeX1({**SPECIAL, **_GENES}, max_len=40, unexpressed=True, pad_to="longest", masking=MaskedValues()),
    TranscriptFormer({**SPECIAL, **_GENES}, max_len=18, shuffle=True),
    TranscriptFormer({**SPECIAL, **_GENES}, max_len=40, pad_to="longest"),
    ScFoundation(_GENES),
    ScFoundation(_GENES, max_len=60),
    CellFM(_GENES, max_len=18),
    CellFM(_GENES, max_len=40, pad_to="longest"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_laws(family):
    check_collate(family)
    with pytest.raises(TypeError, match="bind"):
        family(cells_of(COUNTS), RNG)


@pytest.mark.parametrize(
    ("family", "token"),
    [(TahoeX1, "<cls>"), (TranscriptFormer, r"\[PAD\]"), (lambda v: TahoeX1(v, drugs={}), "<drug>")],
)
def test_a_vocabulary_without_special_tokens_is_refused_by_their_names(family, token):
    genes = {gene: number for number, gene in enumerate(gene_ids(6))}
    with pytest.raises(KeyError, match=token):
        family({**genes, "<pad>": 7} if token == "<cls>" else genes).bind(context(6))


def test_options_are_checked():
    for make in (
        lambda: TahoeX1({}, values="sqrt"),
        lambda: TahoeX1({}, n_bins=2),
        lambda: TranscriptFormer({}, max_len=0),
        lambda: TahoeX1({}, max_len=1, drugs={}),
        lambda: CellFM({}, pad_to="wide"),
    ):
        with pytest.raises(ValueError, match=r"values|n_bins|max_len|pad_to"):
            make()
