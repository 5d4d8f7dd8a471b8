"""A curated file is what scanpy and pandas make of the whole, whatever the blocks it is read in."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csc_matrix, csr_matrix
from scipy.stats import median_abs_deviation

from scdataloader.curation import organism as part
from scdataloader.curation.filters import cell_metrics, outliers
from scdataloader.curation.recipe import Recipe, Rule
from scdataloader.sources.arrays import transpose
from tests.curation.helpers import IDS, cells, curate, kept, table, written

MITOCHONDRIAL = {IDS[2], IDS[3]}
NAMES = [*IDS, *(f"{name}.3" for name in IDS[:3]), "ENSG00000009999", "GFP"]

matrices = st.integers(1, 9).flatmap(
    lambda n: st.lists(st.sampled_from(NAMES), min_size=8, max_size=10).flatmap(
        lambda names: st.tuples(st.just(names), arrays(np.float32, (n, len(names)), elements=st.integers(0, 3)))
    )
)


def measure(made: ad.AnnData) -> None:
    """What scanpy says of the cells."""
    made.obs = made.obs[[]]
    made.var["mt"] = made.var_names.isin(MITOCHONDRIAL)
    has_mt = made.var["mt"].any()
    with np.errstate(invalid="ignore"):
        sc.pp.calculate_qc_metrics(made, qc_vars=["mt"] if has_mt else [], percent_top=None, log1p=False, inplace=True)


def by_hand(x: np.ndarray, names: list[str], recipe: Recipe) -> ad.AnnData:
    """The same by pandas and scanpy, all at once."""
    frame = pd.DataFrame(x, columns=[name.partition(".")[0] for name in names])
    frame = frame.T.groupby(level=0).sum().T
    frame = frame[sorted(set(frame) & set(IDS))]
    made = ad.AnnData(
        csr_matrix(frame.to_numpy(np.float32)), obs=pd.DataFrame(index=[f"cell{i}" for i in range(len(x))])
    )
    made.var_names = list(frame)
    measure(made)
    made = made[made.obs["n_genes_by_counts"] >= recipe.min_genes_per_cell].copy()
    made = made[made.obs["total_counts"] >= recipe.min_counts_per_cell].copy()
    made = made[:, np.asarray((made.X > 0).sum(axis=0)).ravel() >= recipe.min_cells_per_gene].copy()
    if 0 not in made.shape:
        measure(made)
    return made


@settings(max_examples=30)
@given(matrices, st.integers(1, 4), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3))
def test_a_curated_file_is_what_scanpy_makes_of_the_whole(made, n_block, min_genes, min_counts, min_cells):
    names, x = made
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "CELLS_PER_BLOCK", n_block)
        recipe = Recipe(
            genes={"human": table(Path(folder))},
            min_gene_overlap=0,
            rules={"*": Rule(genes="ensembl_id")},
            min_genes_per_cell=min_genes,
            min_counts_per_cell=min_counts,
            min_cells_per_gene=min_cells,
        )
        raw = cells([f"x{i}" for i in range(len(names))], len(x))
        raw.X, raw.var["ensembl_id"] = csr_matrix(x), names
        path = written(Path(folder) / "a.h5ad", raw)
        expected = by_hand(x, names, recipe)
        if 0 in expected.shape:
            return
        _, found = kept(path, recipe)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert list(found.var_names) == list(expected.var_names)
    assert list(found.obs_names) == list(expected.obs_names)
    for metric in ("n_genes_by_counts", "total_counts", "total_counts_mt", "pct_counts_mt"):
        assert (metric in found.obs) == (metric in expected.obs)
        if metric in found.obs:
            np.testing.assert_allclose(found.obs[metric], expected.obs[metric], rtol=1e-6)


@settings(max_examples=15)
@given(matrices, st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["X", "raw", "layers/own"]))
def test_files_stored_by_genes_come_out_as_those_stored_by_cells(made, n_block, n_piece, n_part, where):
    names, x = made
    files = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(part, "CELLS_PER_BLOCK", n_block)
        patch.setattr(transpose, "_PIECE", n_piece)
        patch.setattr(transpose, "_PART", n_part)
        recipe = Recipe(min_gene_overlap=0, rules={"*": Rule(genes="ensembl_id")}, counts=where)
        for stored in (csr_matrix, csc_matrix):
            raw = cells([f"x{i}" for i in range(len(names))], len(x))
            raw.var["ensembl_id"] = names
            raw.X = stored(x)
            if where == "raw":
                raw.raw = raw.copy()
            raw.layers["own"] = raw.X.copy()
            (outcome,) = curate(written(Path(folder) / "a.h5ad", raw), recipe)
            assert outcome.output is not None, outcome.reason
            with h5py.File(outcome.output) as file:
                files.append([outcome.notes, *(file[f"X/{array}"][:].tolist() for array in file["X"])])
            files[-1].append(ad.read_h5ad(outcome.output).obs)
            assert [path.name for path in outcome.output.parent.iterdir()] == ["a.h5ad"]
    assert files[0][:-1] == files[1][:-1]
    pd.testing.assert_frame_equal(files[0][-1], files[1][-1])


@given(arrays(np.float32, (12, 6), elements=st.integers(0, 9)), st.floats(0.1, 6))
def test_an_outlier_is_further_from_the_median_than_so_many_mads(x, n_mads):
    metrics = cell_metrics(csr_matrix(x), np.arange(6) < 2)
    found = outliers(metrics, n_mads)
    for name in ("total_counts", "n_genes_by_counts", "pct_counts_mt"):
        values = metrics[name].to_numpy(np.float64)
        values = values if name == "pct_counts_mt" else np.log1p(values)
        known = values[np.isfinite(values)]  # cells without a count have no share
        distance = values - np.median(known) if len(known) else values
        mad = median_abs_deviation(known) if len(known) else 0
        one_sided = distance if name == "pct_counts_mt" else np.abs(distance)
        expected = (mad > 0) & (one_sided > n_mads * mad)
        assert [name in which.split(",") for which in found] == expected.tolist()
