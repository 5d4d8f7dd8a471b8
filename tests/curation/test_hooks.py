"""What hooks see, and what they may give."""

import gc
import sys
import weakref

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from scdataloader.curation import organism as part
from scdataloader.curation.file import curate_file
from scdataloader.curation.recipe import Recipe
from scdataloader.curation.writer import written as writing_to
from scdataloader.sources.arrays import transpose
from tests.curation.helpers import IDS, cells, curate, failed, job, kept, written

CELL_TYPE, ASSAY = "cell_type_ontology_term_id", "assay_ontology_term_id"


@pytest.fixture
def hooks(tmp_path, monkeypatch):
    """Writes a module of hooks, named anew each time; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(code):
        name = f"hooks_{abs(hash((code, tmp_path)))}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    yield write
    for name in [name for name in sys.modules if name.startswith("hooks_")]:
        del sys.modules[name]


def test_hooks_see_blocks_and_may_change_them(tmp_path, monkeypatch, hooks):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 4)
    name = hooks(
        "import numpy as np\n"
        "def recover(block):\n"
        "    assert block.n_obs <= 4\n"
        "    block = block[block.obs['good']].copy()\n"
        "    block.X = np.rint(np.expm1(block.X.toarray()))\n"
        "    block.obs['cell_type_ontology_term_id'] = block.obs['author'].astype(str) + ' cell'\n"
        "    return block\n"
        "def last(block):\n"
        "    block.obs['n_genes'] = block.obs['n_genes_by_counts'] * 2\n"
        "    return block[block.obs['cell_type_ontology_term_id'] == 'CL:0000084'].copy()\n"
    )
    raw = cells(IDS, author=["T", "B"] * 5, good=[i != 2 for i in range(10)])
    counts = raw.X.toarray()
    raw.X = csr_matrix(np.log1p(counts))
    raw.obsm["X_pca"] = np.arange(20.0).reshape(10, 2)
    path = written(tmp_path / "a.h5ad", raw)
    outcome, found = kept(path, Recipe(before=[f"{name}:recover"], after=[f"{name}:last"]))
    rows = [0, 4, 6, 8]
    assert list(found.obs_names) == [f"cell{i}" for i in rows]
    np.testing.assert_array_equal(found.X.toarray(), counts[rows])
    np.testing.assert_array_equal(found.obsm["X_pca"], raw.obsm["X_pca"][rows])
    np.testing.assert_array_equal(found.obs["n_genes"], (counts[rows] > 0).sum(axis=1) * 2)
    assert outcome.labels == {CELL_TYPE: ["CL:0000084"]}
    assert (outcome.n_cells_in, outcome.n_cells_out) == (10, 4)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["a.h5ad"]


def test_metrics_are_those_of_the_output(tmp_path, hooks):
    name = hooks("def hook(block):\n    block.X = block.X * 2\n    return block[:, 1:]\n")
    x = np.arange(1, 81, dtype=np.float32).reshape(10, 8)
    x[2:, 5] = 0
    raw = cells(IDS)
    raw.X = csr_matrix(x)
    for recipe in (Recipe(min_cells_per_gene=3), Recipe(after=[f"{name}:hook"])):
        outcome, found = kept(written(tmp_path / "a.h5ad", raw), recipe)
        assert outcome.n_genes_out == 7
        np.testing.assert_array_equal(found.obs["total_counts"], found.X.sum(axis=1).A1)
        np.testing.assert_array_equal(found.obs["n_genes_by_counts"], np.diff(found.X.indptr))


def test_hooks_that_drop_cells_leave_the_order_of_categories(tmp_path, monkeypatch, hooks):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 3)
    name = hooks("def hook(block): return block[block.obs['good']]")
    day = pd.Categorical(["late", "early", "mid"] * 3 + ["late"], ["early", "mid", "late"], ordered=True)
    raw = cells(IDS, good=[True, False] * 5)
    raw.obs["day"] = day
    _, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(after=[f"{name}:hook"]))
    assert found.obs["day"].dtype == day.dtype
    assert list(found.obs["day"]) == list(day[::2])


def test_what_hooks_give_is_put_in_order(tmp_path, hooks):
    name = hooks(
        "import numpy as np\n"
        "from scipy.sparse import csr_matrix\n"
        "def hook(block):\n"
        "    n, m = block.shape\n"
        "    x = block.X.toarray()[:, ::-1]\n"
        "    # genes from last to first, zeros stored, and every count in two parts\n"
        "    indices = np.tile(np.repeat(np.arange(m)[::-1], 2), n)\n"
        "    data = np.stack([x - 1, np.ones_like(x)], axis=2).clip(0).reshape(-1)\n"
        "    data[np.repeat(x.reshape(-1), 2) == 0] = 0\n"
        "    block.X = csr_matrix((data, indices, np.arange(n + 1) * 2 * m), block.shape)\n"
        "    return block\n"
    )
    raw = cells(IDS)
    outcome, found = kept(written(tmp_path / "a.h5ad", raw), Recipe(after=[f"{name}:hook"]))
    np.testing.assert_array_equal(found.X.toarray(), raw.X.toarray())
    assert found.X.nnz == np.count_nonzero(raw.X.toarray())
    assert found.X.has_canonical_format
    with h5py.File(outcome.output) as file:
        rows = np.split(file["X/indices"][:], file["X/indptr"][1:-1])
    assert all((np.diff(row) > 0).all() for row in rows)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("def hook(block): return None", "returned NoneType; expected an AnnData"),
        ("def hook(block): raise ValueError('not this one')", "raised ValueError (not this one) in line 1 of"),
        (
            "def hook(block): return block.no_such",
            "raised AttributeError ('AnnData' object has no attribute 'no_such')",
        ),
        (
            "import pandas\ndef hook(block):\n    block.obs['day'] = pandas.Timestamp(0)\n    return block",
            "No method registered for writing",
        ),
        (
            "def hook(block):\n    block.X = block.X / 2\n    return block",
            "returned the value 1.5; expected counts",
        ),
        (
            "def hook(block):\n    return block[:, : block.n_vars - int('cell0' in block.obs_names)].copy()",
            "returned 8 genes for a block of cells and 7 for the one before",
        ),
        (
            "def hook(block):\n    block.obs_names = [str(i) for i in range(block.n_obs)]\n    return block",
            "cell names that occur more than once",
        ),
        ("hook = None", "has no function 'hook'"),
        (
            "def hook(block):\n    block.var_names = ['a', 'a', *block.var_names[2:]]\n    return block",
            "the gene 'a' twice",
        ),
        ("def hook(block) return block", "raised SyntaxError (expected ':'"),
        ("import no_such_module", "raised ModuleNotFoundError (No module named 'no_such_module') in line 1 of"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_do_what_they_must_not(tmp_path, monkeypatch, hooks, code, why, when):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 6)
    name = hooks(code)
    path = written(tmp_path / "a.h5ad", cells(IDS))
    assert why in failed(path, Recipe(**{when: [f"{name}:hook"]}))


def test_hooks_that_leave_nothing(tmp_path, hooks):
    name = hooks("def hook(block): return block[:0].copy()")
    (outcome,) = curate(written(tmp_path / "a.h5ad", cells(IDS)), Recipe(after=[f"{name}:hook"]))
    assert (outcome.status, outcome.reason) == ("dropped", "0 cells are left, fewer than the minimum of 1")


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_facts_survive_hooks_and_being_curated_again(tmp_path, hooks, form):
    name = hooks("def same(block): return block\n")
    raw = cells(IDS)
    raw.uns = {"title": "Cells of a test"}
    path = tmp_path / f"a.{form}"
    raw.write_zarr(path) if form == "zarr" else raw.write_h5ad(path)
    if form == "h5ad":
        with h5py.File(path, "r+") as file:  # as old files have them
            file["uns"].update({"text": np.bytes_(b"x"), "latin": np.bytes_(b"\xff")})
    (outcome,) = curate(path, Recipe(before=[f"{name}:same"]))
    assert outcome.notes == (("left out: uns (latin)",) if form == "h5ad" else ())
    (again,) = curate(outcome.output.rename(tmp_path / "again.h5ad"))
    (said,) = again.notes
    assert said.endswith(": total_counts, n_genes_by_counts, is_outlier, outlier_in")
    assert ad.read_h5ad(again.output).uns["title"] == "Cells of a test"


def test_a_hook_may_give_views_and_their_blocks_are_let_go(tmp_path):
    with writing_to(tmp_path / "a.h5ad", "a.h5ad", "none") as writer:
        block = cells(IDS)
        block.obsm["X_pca"] = np.ones((len(block), 2))
        writer.append(block[2:5])
        whole = weakref.ref(block)
        del block
        gc.collect()
        assert whole() is None
    assert list(ad.read_h5ad(tmp_path / "a.h5ad").obs_names) == ["cell2", "cell3", "cell4"]


@pytest.mark.parametrize("stored", [csr_matrix, csc_matrix])
@pytest.mark.parametrize("options", [{}, {"min_cells_per_gene": 1}, {"before": ["same"]}])
def test_every_pass_is_told(tmp_path, monkeypatch, hooks, stored, options):
    monkeypatch.setattr(part, "CELLS_PER_BLOCK", 4)
    monkeypatch.setattr(transpose, "_PIECE", 7)
    if options.get("before"):
        options = {"before": [hooks("def same(block): return block\n") + ":same"]}
    raw, told = cells(IDS), []
    raw.X = stored(raw.X)
    path = written(tmp_path / "a.h5ad", raw)
    (outcome,) = curate_file(job(path, tmp_path / "out", Recipe(**options)), told.append)
    assert outcome.status == "kept", outcome.reason
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert max(np.diff([0, *told])) < 0.3
