"""Data sources: AnnData files, folders and objects, read in place, and what can be read as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path

from anndata import AnnData

from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import Bucket, RemotePath, checked_url, is_remote, not_by_url
from scdataloader.runtime.files import local_path, split_path
from scdataloader.runtime.messages import nearest
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.anndata.file import AnnDataFile, Format
from scdataloader.sources.anndata.imported import read_into_memory
from scdataloader.sources.anndata.memory import AnnDataInMemory
from scdataloader.sources.anndata.remote import format_of_url
from scdataloader.sources.anndata.source import AnnDataSource
from scdataloader.sources.parquet import PARQUET, open_parquet
from scdataloader.sources.scdl import open_scdl
from scdataloader.sources.soma import open_census, open_soma

_NOT_BY_URL = {
    ".loom": "a loom file",
    ".mtx": "a Matrix Market file",
    ".mtx.gz": "a Matrix Market file",
    ".zip": "a zip file",
}
"""{end of a name: what it is}."""

__all__ = [
    "AnnDataFile",
    "AnnDataSource",
    "open_census",
    "open_file",
    "open_parquet",
    "open_scdl",
    "open_soma",
    "open_source",
]


def open_source(
    data: str | PathLike[str] | AnnData, *, counts: str = "auto", values: Values = "counts"
) -> AnnDataSource:
    """Open an AnnData: a file, a folder or an object.

    No cells are read yet, but those of loom and Matrix Market files, which are read into memory as a whole.

    Args:
        data: An .h5ad file; a zarr folder that AnnData wrote, or a zip of one; a group in either, such as
            "x.h5mu/mod/rna" or "x.zarr/tables/table"; an .h5 file of 10x Genomics, for several genomes
            "x.h5/<genome>"; a .loom file; a folder of matrix.mtx, or the matrix; a Parquet
            table with a cell per row (`open_parquet`); an `AnnData`.
        counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first of X, layers/counts
            and raw whose values, in a sample, are whole numbers from 0 up.
        values: "counts" rejects values that are negative or fractions, also later while reading; "any" accepts all.

    Raises:
        FileNotFoundError: no such path; names the nearest ones.
        ValueError: ``values`` is another word, or the path is a URL that cannot be used; see `checked_url`.
        KeyError: no such matrix; lists those that exist.
        NotCountsError: the matrix, or every candidate, holds values that are not counts.
        SourceFormatError: not an AnnData, or damaged.
    """
    if values not in ("counts", "any"):
        raise ValueError(f"values must be 'counts' or 'any', not {values!r}")
    if not isinstance(data, AnnData) and Path(data).suffix in PARQUET:
        path = RemotePath(checked_url(data)) if is_remote(data) else _existing(data)
        if isinstance(path, RemotePath) or path.is_file():
            (table,) = open_parquet(path, counts=counts, values=values)
            return table
    return AnnDataSource.open(*_located(data), counts=counts, values=values)


def open_file(data: str | PathLike[str] | AnnData) -> AnnDataFile:
    """Open an AnnData for its tables and matrices by key, whatever these hold; ``data`` as for `open_source`.

    Raises:
        FileNotFoundError: no such path; names the nearest ones.
        ValueError: ``values`` is another word, or the path is a URL that cannot be used; see `checked_url`.
        SourceFormatError: not an AnnData.
    """
    return AnnDataFile.open(*_located(data))


def open_anndata(data: Sequence[Path | AnnData], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open AnnData; registered for their objects, and for every path that is registered for nothing else."""
    for one in data:
        yield open_source(one, counts=options.counts, values=options.values)


def _located(data: str | PathLike[str] | AnnData) -> tuple[Path, Format | None]:
    """The path of an AnnData, and its format, if that is not known from the path."""
    if isinstance(data, AnnData):
        form = AnnDataInMemory.of(data)
        return form.path, form
    if is_remote(data):
        url = RemotePath(checked_url(data))
        _check_by_url(url)
        return url, format_of_url(url)
    path = _existing(data)
    adata = read_into_memory(path)
    return path, None if adata is None else AnnDataInMemory.of(adata)


def _check_by_url(url: RemotePath) -> None:
    """Refuse what is read as a whole, or as files of this machine.

    Raises:
        SourceFormatError: it is such a file, or the folder of a Matrix Market file.
    """
    kind = next((_NOT_BY_URL[end] for part in url.parts for end in _NOT_BY_URL if part.endswith(end)), None)
    is_web = str(url).startswith("http")  # cannot be listed
    if kind is None and not (url.suffix or is_web):
        matrices = (name for name in Bucket.open(str(url)).names() if name.endswith(("matrix.mtx", "matrix.mtx.gz")))
        kind = "a folder of a Matrix Market file" if any(matrices) else None
    if kind is not None:
        raise not_by_url(url, kind)


def _existing(path: str | PathLike[str]) -> Path:
    found = local_path(path)
    if not split_path(found)[0].exists():
        raise FileNotFoundError(_no_such_path(fspath(path), found))
    return found.absolute()


def _no_such_path(written: str, path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{written} does not exist, nor does the folder {folder}"
    there = sorted(entry.name for entry in folder.iterdir())
    near = nearest(path.name, there)
    hint = f"the nearest names there are {', '.join(near)}" if near else f"{len(there)} other names are there"
    return f"{written} does not exist; in {folder} {hint}"
