"""Parquet tables with a cell per row: markers, gene tables, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import scdataloader as scd
from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.sources.locate import open_sources
from scdataloader.sources.parquet import open_parquet
from scdataloader.testing import check_source
from tests.sources.parquet_files import FIRST_TOKEN, write_tahoe
from tests.sources.source_files import N_OBS, coordinates, make


def cells() -> ad.AnnData:
    return make(sp.csr_matrix(coordinates("float32")))


def expected() -> ad.AnnData:
    adata = cells()[:, ::-1].copy()  # the order of the gene table
    adata.obs["BARCODE_SUB_LIB_ID"] = list(adata.obs_names)
    return adata


@pytest.mark.parametrize(("marker", "rows"), [(True, 20), (False, 7), (True, 1000)])
def test_tables_of_tahoe(tmp_path, marker, rows):
    path = write_tahoe(tmp_path, cells(), marker=marker, rows=rows)
    check_source(lambda: open_parquet(path)[0], expected=expected())
    source = scd.open_source(path)
    assert source.var["gene_symbol"].tolist() == expected().var["symbol"].tolist()
    assert source.name == "train-00000-of-00001.parquet"


def test_ids_in_the_lists_need_no_gene_table(tmp_path):
    table = pa.table({"gene_ids": [["b", "a"], [], ["c"]], "counts": [[2, 1], [], [5]], "cell_id": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "a.pq", row_group_size=2)
    (source,) = (selection.source for selection in open_sources(tmp_path / "a.pq"))
    assert source.var.index.tolist() == ["a", "b", "c"]
    assert source.read(np.array([2, 0, 1])).to_scipy().toarray().tolist() == [[0, 0, 5], [1, 2, 0], [0, 0, 0]]
    assert source.obs_names().tolist() == ["x", "y", "z"]
    check_source(source)


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_the_gene_table_may_be_named(tmp_path, kind):
    path = write_tahoe(tmp_path, cells())
    (tmp_path / "metadata" / "gene_metadata.parquet").rename(tmp_path / "genes.parquet")
    with pytest.raises(SourceFormatError, match=r"numbers its genes, and has no gene table .*give one, as 'parquet:"):
        scd.Collection.open(path)
    genes = pd.read_parquet(tmp_path / "genes.parquet")
    genes.to_csv(tmp_path / "genes.csv", index=False)
    tokens = dict(zip(genes["ensembl_id"], map(int, genes["token_id"]), strict=True))
    (tmp_path / "genes.json").write_text(json.dumps(tokens))
    collection = scd.Collection.open(f"parquet:{tmp_path}/data/*.parquet?genes={tmp_path}/genes.{kind}")
    read = collection.read(np.arange(N_OBS)).to_scipy().toarray()
    assert np.array_equal(read, cells().X.toarray())  # the vocabulary is sorted


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("genes", [[5, 6], [99]], r"row group 0: the gene 99 is not in the gene table"),
        ("genes", [[5, 6], [1]], r"row group 0: the gene 1 is not in the gene table"),
        ("genes", [[5], [7]], r"genes and expressions differ in length"),
        ("genes", [[5, None], [7]], r"genes and expressions differ in length, or lack entries"),
        ("genes", [[0.5, 6.0], [7.0]], r"genes holds double, expected numbers or ids"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, column, values, message):
    path = write_tahoe(tmp_path, cells())
    pq.write_table(pa.table({column: values, "expressions": [[1.0, 2.0], [3.0]]}), path)
    with pytest.raises(SourceFormatError, match=message):
        open_parquet(path)[0].read(np.arange(2))


def test_values_are_checked(tmp_path):
    path = write_tahoe(tmp_path, cells())
    n_cells, tokens = 40, [FIRST_TOKEN, FIRST_TOKEN + 1]
    values = [[1.0, 2.0] for _ in range(n_cells)]
    values[3] = [1.0, -2.0]  # of a gene, so not a marker
    pq.write_table(pa.table({"genes": [tokens] * n_cells, "expressions": values}), path)
    for refused in (lambda: open_parquet(path), lambda: open_parquet(path)[0].read(np.array([3]))):
        with pytest.raises(NotCountsError, match=r"-2\.0 at cell 3, gene 41 \(ENSG00000000001\)"):
            refused()
    Path(path).write_bytes(b"PAR1 no more")
    with pytest.raises(SourceFormatError, match=r"train.* cannot be read as Parquet"):
        open_parquet(path)


def test_gene_tables_are_checked(tmp_path):
    path = write_tahoe(tmp_path, cells())
    for columns, message in (
        ({"gene_id": ["a", "b"], "token_id": [3, 3]}, "gives several genes the same number"),
        ({"gene_id": ["a", "b"], "token_id": [3, -1]}, "numbers of genes must be integers from 0"),
        ({"name": ["a", "b"], "token_id": [3, 4]}, "no column of gene ids"),
    ):
        pq.write_table(pa.table(columns), tmp_path / "genes.parquet")
        with pytest.raises(SourceFormatError, match=message):
            open_parquet(path, genes=tmp_path / "genes.parquet")
