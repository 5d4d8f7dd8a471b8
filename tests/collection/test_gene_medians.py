"""Medians of genes against NumPy."""

import json

import numpy as np
import pytest

import scdataloader as scd
from scdataloader.collection import gene_medians
from scdataloader.testing import MemorySource

IDS = [f"ENSG{number:011d}" for number in range(12)]


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.8, (301, 12)) * rng.integers(1, 5, 12)
    counts[:, 3] = 0
    counts[1:, 4] = 0  # one value at most
    counts[0, 4] = 9
    counts[7] = 0
    counts[8:, 5] = np.where(np.arange(293) == 3, 1_000_000, 0)
    return counts.astype(np.float32)


def numpy_medians(counts, ids=IDS):
    total = counts.sum(axis=1, keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        values = np.where(counts > 0, counts / total * 1e4, np.nan)
    return {gene: np.nanmedian(values[:, at]) for at, gene in enumerate(ids) if (counts[:, at] > 0).any()}


@pytest.mark.parametrize("window", [1, 7, 4096])
def test_medians_are_those_of_the_definition(counts, window, monkeypatch):
    monkeypatch.setattr(gene_medians, "_WINDOW", window)
    source = MemorySource("cells", counts, IDS)
    medians = scd.tokens.compute_medians([source], progress=False)
    want = numpy_medians(counts)
    assert medians.keys() == want.keys()
    assert IDS[3] not in medians
    assert all(medians[gene] == pytest.approx(want[gene], rel=1e-6) for gene in want)


def test_totals_are_over_all_genes_of_the_source(counts):
    collection = scd.Collection.open(
        [MemorySource("cells", counts, IDS)], genes=scd.GeneAlignment(vocabulary=IDS[2:7], organisms="human")
    )
    want = numpy_medians(counts)
    medians = scd.tokens.compute_medians(collection, progress=False)
    assert medians == pytest.approx({gene: want[gene] for gene in IDS[2:7] if gene in want}, rel=1e-6)


def test_chosen_rows_count_and_sources_do_not_matter(counts):
    both = scd.Collection.open([MemorySource("a", counts[:100], IDS), MemorySource("b", counts[100:], IDS)])
    rows = np.arange(0, 301, 3)
    medians = scd.tokens.compute_medians(both, rows=rows, progress=False)
    assert medians == pytest.approx(numpy_medians(counts[rows]), rel=1e-6)
    assert scd.tokens.compute_medians(both, rows=rows[:0], progress=False) == {}


def test_a_model_reads_the_file(counts, tmp_path):
    source = MemorySource("cells", counts, IDS)
    medians = scd.tokens.compute_medians(source, path=tmp_path / "medians.json", progress=False)
    assert json.loads((tmp_path / "medians.json").read_text()) == medians
    table = scd.tokens.read_numbers(tmp_path / "medians.json", "medians")
    assert dict(table.values) == medians
    with pytest.raises(FileExistsError, match=r"medians\.json"):
        scd.tokens.compute_medians(source, path=tmp_path / "medians.json")


def test_progress_is_written(counts, capsys):
    scd.tokens.compute_medians(MemorySource("cells", counts, IDS))
    assert "medians of genes, 4 passes: 1,204/1,204 cells" in capsys.readouterr().err
