"""Formats that are read into memory as a whole: loom files, and folders of a Matrix Market file."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path

import pandas as pd
from anndata import AnnData

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.containers import without_genomes

logger = logging.getLogger(__name__)

_MATRIX = "matrix.mtx"
_PACKED = ("", ".gz")


def read_into_memory(path: Path) -> AnnData | None:
    """The AnnData of a loom file, a Matrix Market file or the folder of one; None of any other path.

    Raises:
        SourceFormatError: files are missing, contradict each other or cannot be read.
    """
    if path.is_dir():
        found = sorted(file for end in _PACKED for file in path.glob(f"*{_MATRIX}{end}"))
        if len(found) > 1:
            names = shown(file.name for file in found)
            raise SourceFormatError(f"{path} has several matrices ({names}); name one of them, as {found[0]}")
        adata = _read_mtx(found[0]) if found else None
    elif path.name.endswith(tuple(_MATRIX + end for end in _PACKED)):
        adata = _read_mtx(path)
    elif path.suffix == ".loom":
        adata = _read_loom(path)
    else:
        return None
    if adata is not None:
        logger.info("%s: read into memory; convert it to a store to read cells from disk", path)
    return adata


def _read_loom(path: Path) -> AnnData:
    try:
        import_module("loompy")
    except ModuleNotFoundError as error:
        raise SourceFormatError(
            f"{path} is a loom file, which anndata reads by the package loompy: pip install 'scdataloader[loom]'"
        ) from error
    from anndata.io import read_loom

    try:
        return read_loom(path, validate=False)
    except (OSError, KeyError, ValueError) as error:
        raise SourceFormatError(f"{path} cannot be read as a loom file: {error}") from error


def _read_mtx(path: Path) -> AnnData:
    """Cells by genes, from a file of genes by cells and the tables of 10x Genomics beside it."""
    from scipy.io import mmread

    genes, barcodes = _table(path, "features.tsv", "genes.tsv"), _table(path, "barcodes.tsv")
    try:
        matrix = mmread(path)
    except (OSError, ValueError) as error:
        raise SourceFormatError(f"{path} cannot be read as a Matrix Market file: {error}") from error
    if matrix.shape != (len(genes), len(barcodes)):
        raise SourceFormatError(
            f"{path} contradicts the files beside it: it is {matrix.shape[0]} by {matrix.shape[1]}, expected "
            f"{len(genes)} genes by {len(barcodes)} cells; download the files again"
        )
    columns = dict(zip(("gene_symbols", "feature_types"), genes.columns[1:], strict=False))
    var = pd.DataFrame({name: genes[column].to_numpy() for name, column in columns.items()}, index=genes[0].to_numpy())
    return AnnData(matrix.T.tocsr(), obs=pd.DataFrame(index=barcodes[0].to_numpy()), var=without_genomes(var))


def _table(matrix: Path, *names: str) -> pd.DataFrame:
    """A table without a header that is beside a matrix, and has the same prefix."""
    prefix = matrix.name.partition(_MATRIX)[0]
    for name in names:
        for end in _PACKED:
            path = matrix.with_name(f"{prefix}{name}{end}")
            if path.is_file():
                return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    raise SourceFormatError(
        f"{matrix} is not the matrix of a 10x Genomics folder: {prefix}{' or '.join(names)} is missing beside it; "
        "download it as well, or read the matrix with scipy.io.mmread and give an AnnData of it"
    )
