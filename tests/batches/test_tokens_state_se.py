"""StateSE: sentences and task genes against the original's arrays, and the laws of their random choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdataloader.batches.tokens.state_se import StateSE
from scdataloader.testing import check_collate
from tests.batches.token_cells import cells_of, context, gene_ids, vectors

RNG = np.random.default_rng(0)
COUNTS = 10 * np.array(
    [[0, 3, 1, 0, 7, 2, 0, 0, 5, 0], [2, 2, 2, 0, 0, 2, 4, 4, 0, 1], [0] * 10, [0] * 6 + [9, 0, 0, 0]]
)
TOKEN = np.array([7, 3, 0, 11, 5, 9, 2, 1, 12, 6])


def state_reference(values, order, fill, width):
    """The original's sentence of one cell, given a random order of its genes and the unexpressed genes it draws."""
    ranked = np.array(order)[np.argsort(-values[order], kind="stable")]
    n = int((values > 0).sum())
    genes = ranked[: width - 1]
    if len(ranked) < width - 1:
        genes = np.append(ranked[:n], ranked[n:][np.array(fill, int)])
    share = values / values.sum() if values.sum() else np.full(len(values), 1 / len(values))
    return genes, 100 * share[genes]


def test_the_reference_is_the_original():
    case = vectors("state_se")
    token = np.array(case["embedding_index"])
    gene_of = dict(zip(token.tolist(), range(10), strict=True))
    for cell in case["cells"]:
        if "error" in cell:
            continue
        values = np.log1p(10 * np.array(case["counts"][cell["cell"]][:10]))
        genes, expr = state_reference(values, cell["permutation"], cell["fill"], cell["pad_len"])
        assert token[genes].tolist() == cell["sentence"][1:]
        assert np.allclose(expr, cell["counts"][1:], atol=1e-4)
        task = [values[gene_of[token]] if token in gene_of else 0 for token in cell["task"]]
        assert np.allclose(task, cell["task_counts"], atol=1e-4)
        assert np.isclose(sum(task), cell["total"], atol=1e-4)
        assert cell["masked"] == int(0.2 * cell["pad_len"])


def collated(counts, **options):
    vocabulary = dict(zip(gene_ids(10), TOKEN.tolist(), strict=True)) | {"ENSG00000000001": 15}
    numbers = {"n_expressed": 3, "n_unexpressed": 2, "n_shared": 4, **options}
    return StateSE(vocabulary, **{"values": "raw", **numbers}).bind(context(10))(cells_of(counts), RNG)


def genes_of(tokens):
    return np.array([TOKEN.tolist().index(token) for token in tokens])


@pytest.mark.parametrize("max_len", [6, 16])
def test_cells_obey_the_reference(max_len):
    counts = np.tile(COUNTS, (20, 1))
    made = {key: tensor.numpy() for key, tensor in collated(counts, max_len=max_len, cls=99).items()}
    assert made["gene"].shape == made["expr"].shape == made["mask"].shape == (80, max_len)
    assert (made["gene"][:, 0] == 99).all()
    assert not made["expr"][:, 0].any()
    for row, values in enumerate(np.log1p(counts)):
        genes, n = genes_of(made["gene"][row, 1:]), int((values > 0).sum())
        shown = min(n, max_len - 1)
        assert set(genes[:shown]) <= set(np.flatnonzero(values)) or not n
        assert (np.diff(values[genes[:shown]]) <= 0).all()
        assert len(set(genes[:shown])) == shown
        assert sorted(values[genes[:shown]])[::-1] == sorted(values[values > 0])[::-1][:shown]
        assert not values[genes[shown:]].any()
        if max_len == 6:
            assert len(set(genes)) == 5  # the source measured enough genes: none twice
        share = 100 * values / values.sum() if n else np.full(10, 10)
        assert np.allclose(made["expr"][row, 1:], share[genes], atol=1e-4)
        assert made["mask"][row].sum() == int(0.2 * max_len)
        assert not made["mask"][row, 0]
        is_task = np.isin(made["gene"][row, 1:], made["task_gene"][row])
        masked = made["mask"][row, 1:]
        assert masked[is_task].all() or not masked[~is_task].any()
    assert len({tuple(row) for row in made["gene"][1::4].tolist()}) > 4  # the order of equal values


def test_task_genes():
    counts = np.tile(COUNTS, (50, 1))
    counts[1::4, 9] = 1  # log1p(1) < 1: "unexpressed"
    made = {key: tensor.numpy() for key, tensor in collated(counts, max_len=8).items()}
    shared = made["task_gene"][:, 5:]
    assert (shared == shared[0]).all()
    assert set(shared[0]) <= {*TOKEN.tolist(), 15}
    unexpressed = set()
    for row, values in enumerate(np.log1p(counts)):
        expressed, rest = genes_of(made["task_gene"][row, :3]), genes_of(made["task_gene"][row, 3:5])
        if (values > 0).sum() > 3:
            assert len(set(expressed)) == 3
        if values.any():
            assert (values[expressed] > 0).all()
        else:
            assert expressed.tolist() == [0, 0, 0]
        assert (values[rest] < 1).all()
        unexpressed |= set(rest) if row % 4 == 1 else set()
        every = [*expressed, *rest]
        assert np.allclose(made["task_expr"][row, :5], values[every], atol=1e-5)
        assert np.isclose(made["total"][row], made["task_expr"][row].sum(), atol=1e-4)
    assert unexpressed == {3, 4, 8, 9}


def test_a_cell_that_expresses_all_genes_has_task_genes_of_them():
    made = collated(np.full((3, 10), 50), max_len=16)
    assert np.allclose(made["expr"][:, 1:], 10, atol=1e-4)
    assert np.isin(made["gene"].numpy()[:, 1:], TOKEN).all()
    assert np.isin(made["task_gene"].numpy()[:, :5], TOKEN).all()


def test_logarithms_are_taken_as_they_are():
    raw, log = collated(COUNTS, max_len=8), collated(np.log1p(COUNTS), max_len=8, values="log")
    for key, tensor in raw.items():
        if key not in ("depth", "labels"):
            assert np.allclose(tensor, log[key], atol=1e-4)


@given(st.integers(0, 2**32))
def test_genes_without_tokens_and_not_measured_are_left_out(seed):
    rng = np.random.default_rng(seed)
    measured = rng.random((1, 12)) < 0.7
    measured[0, 0] = True
    counts = rng.integers(0, 3, (4, 12)) * 20 * measured
    tokens = {gene: number for number, gene in enumerate(gene_ids(12)) if number not in (2, 5)}
    family = StateSE(tokens, "raw", max_len=9, n_expressed=2, n_unexpressed=3, n_shared=0).bind(context(12))
    made = family(cells_of(counts, measured=measured), RNG)
    allowed = set(np.flatnonzero(measured[0])) - {2, 5}
    assert set(made["gene"][:, 1:].ravel().tolist()) <= allowed
    assert set(made["task_gene"].ravel().tolist()) <= allowed
    assert made["task_gene"].shape == (4, 5)


def test_options_are_checked():
    for wrong in ({"values": "guess"}, {"max_len": 0}, {"mask_rate": 2}, {"n_shared": -1}):
        with pytest.raises(ValueError, match=r"values|max_len|mask_rate"):
            StateSE({}, **{"values": "raw", **wrong})
    with pytest.raises(TypeError, match="bind"):
        StateSE({}, "raw")(cells_of(COUNTS), RNG)


@pytest.mark.parametrize("max_len", [20, 90])
def test_laws(max_len):
    genes = {f"ENSG{number:011d}": number for number in range(50)}
    check_collate(StateSE(genes, "raw", max_len=max_len, n_expressed=9, n_unexpressed=9, n_shared=5))
