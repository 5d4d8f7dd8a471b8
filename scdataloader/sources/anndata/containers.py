"""What a file or folder holds: an AnnData, a 10x Genomics matrix, or something else, with advice on how to read it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scdataloader.errors import SourceFormatError
from scdataloader.runtime.messages import shown, suggestion
from scdataloader.sources.anndata.nodes import Node, is_array, lookup, texts
from scdataloader.sources.anndata.tree import Group, Table

_GZIP = "a gzip file, expected HDF5: unpack it with gunzip first"
_ZIP = "a zip file, expected HDF5: unpack it with unzip first"
_PARQUET = (
    "a Parquet table: write it as .h5ad with "
    "anndata.AnnData(pandas.read_parquet('{path}')).write_h5ad('{stem}.h5ad'), cells as rows"
)
_TEXT = (
    "a table of text: write it as .h5ad with anndata.io.read_csv('{path}'{delimiter}).write_h5ad('{stem}.h5ad'), and "
    ".T before .write_h5ad if its rows are genes"
)
_R = "a file of R: write it as .h5ad there, for example by zellkonverter::writeH5AD"
ADVICE = {
    r"\.(tar|tgz|tar\.gz|tar\.bz2)$": "an archive: unpack it with tar -xf first",
    r"\.(rds|rda|rdata|robj)$": _R,
    r"\.(parquet|pq)$": _PARQUET,
    r"\.csv$": _TEXT.replace("{delimiter}", ""),
    r"\.(tsv|txt|tab)$": _TEXT.replace("{delimiter}", ", delimiter='\\t'"),
}
"""{pattern of file names: what the file is, and how to make an AnnData of it}, for files that are not HDF5."""
ADVICE_BY_CONTENT = {b"PAR1": _PARQUET, b"\x1f\x8b": _GZIP, b"PK\x03\x04": _ZIP}
"""{first bytes: advice}, for files of other names."""
_CONTAINERS = {"mod": "a MuData file of the modalities", "tables": "a SpatialData folder of the tables"}
_TENX = {"barcodes", "data", "indices", "indptr", "shape"}
"""Members of the group of a 10x Genomics matrix: of every genome until Cell Ranger 2, named "matrix" since 3."""
_TENX_COLUMNS = {"name": "gene_symbols", "gene_names": "gene_symbols", "feature_type": "feature_types"}
"""Names of gene columns of 10x Genomics as scanpy has them."""
_WITH_GENOME = re.compile(r"([^_]+_+)(ENS[A-Z]*G[0-9]{11}.*)")


def find_anndata(root: Node, inner: str, path: object) -> Node:
    """The AnnData at a path within a file or folder; a 10x Genomics matrix is given the tree of one.

    Args:
        root: The root group.
        inner: Path of a group in it, such as "mod/rna" or the genome of a 10x Genomics file; empty for the root.
        path: The file and ``inner``, for messages.

    Raises:
        SourceFormatError: it holds no AnnData, or several.
    """
    found = lookup(root, inner) if inner else root
    if found is None or is_array(found):
        there = [name for name in _groups(root) if name != inner]
        raise SourceFormatError(f"{path} does not exist: the file has no group {inner!r}; {suggestion(inner, there)}")
    if "obs" in found and "var" in found and "mod" not in found:
        return found
    for group, what in _CONTAINERS.items():
        if group in found and not is_array(found[group]):
            _refuse_several(path, what, [f"{group}/{name}" for name in sorted(found[group].keys())])
    matrices = [name for name in found if _is_tenx(found[name])]
    if len(matrices) > 1:
        _refuse_several(path, "a 10x Genomics file of the genomes", matrices)
    if matrices or _is_tenx(found):
        return _tenx_tree(found[matrices[0]] if matrices else found, path)
    keys = sorted(found.keys())
    missing = " and ".join(key for key in ("obs", "var") if key not in keys)
    hint = "write it with AnnData.write_h5ad or write_zarr"
    if "row_attrs" in keys:
        hint = "it looks like a loom file: give it the suffix .loom"
    raise SourceFormatError(
        f"{path} is not an AnnData: expected obs, var and X or layers, found {', '.join(keys) or 'nothing'} "
        f"({missing} missing); {hint}"
    )


def _groups(root: Node) -> Iterator[str]:
    """Paths of the groups of a file that may be an AnnData, one and two levels deep."""
    for name in root:
        if not is_array(root[name]):
            yield name
            yield from (f"{name}/{key}" for key in root[name] if not is_array(root[name][key]))


def _refuse_several(path: object, what: str, inner: list[str]) -> None:
    names = shown(name.rpartition("/")[2] for name in inner)
    likely = next((name for name in inner if name.endswith("/rna")), inner[0] if inner else None)
    example = f"; name one of them, as '{path}/{likely}'" if likely else ""
    raise SourceFormatError(f"{path} is {what} {names or '(none)'}{example}")


def _is_tenx(node: Node) -> bool:
    return not is_array(node) and set(node.keys()) >= _TENX


def _tenx_tree(matrix: Node, path: object) -> Group:
    """A matrix of genes by cells as CSC has the arrays of one of cells by genes as CSR."""
    genes = matrix.get("features", matrix)
    ids = genes.get("id", genes.get("genes"))
    shape = np.asarray(matrix["shape"]).tolist()
    if ids is None or shape != [*ids.shape, *matrix["barcodes"].shape]:
        raise SourceFormatError(
            f"{path} is not a 10x Genomics matrix, or damaged: its shape is {shape}, expected the numbers of gene ids "
            "and barcodes in it; download or write the file again"
        )
    n_genes, n_cells = shape
    arrays = {name: matrix[name] for name in ("data", "indices", "indptr")}
    columns = {
        _TENX_COLUMNS.get(name, name): node
        for name, node in genes.items()
        if name not in {*_TENX, "id", "genes"} and is_array(node) and node.shape == (n_genes,)
    }
    return Group(
        path=str(path),
        nodes={
            "X": Group.of_sparse("csr", (n_cells, n_genes), **arrays),
            "obs": Table(columns=[], n_rows=n_cells, read=partial(_table, matrix["barcodes"], {})),
            "var": Table(columns=list(columns), n_rows=n_genes, read=partial(_genes, ids, columns)),
        },
    )


def _genes(ids: Node, columns: Mapping[str, Node]) -> pd.DataFrame:
    return without_genomes(_table(ids, columns))


def without_genomes(var: pd.DataFrame) -> pd.DataFrame:
    """A gene table without the genome that references of several genomes have before ids and symbols.

    "GRCh38_ENSG00000121410" and "mm10___A1bg" become "ENSG00000121410" and "A1bg".
    """
    found = [_WITH_GENOME.fullmatch(str(one)) for one in var.index]
    if not any(found):
        return var
    ids = [one if match is None else match[2] for one, match in zip(var.index, found, strict=True)]
    if "gene_symbols" in var:
        pairs = zip(var["gene_symbols"], found, strict=True)
        symbols = [name if match is None else name.removeprefix(match[1]) for name, match in pairs]
        var = var.assign(gene_symbols=symbols)
    return var.set_axis(pd.Index(ids), axis=0)


def _table(index: Node, columns: Mapping[str, Node]) -> pd.DataFrame:
    return pd.DataFrame({name: _values(node) for name, node in columns.items()}, index=pd.Index(_values(index)))


def _values(node: Node) -> Any:
    values = np.asarray(node)
    return texts(values) if values.dtype.kind in "SO" else values
