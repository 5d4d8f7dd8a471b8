"""Data sources: AnnData files and folders, read in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path

from scdataloader.protocols import OpenOptions
from scdataloader.runtime.messages import nearest
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.source import AnnDataSource

__all__ = ["AnnDataFile", "AnnDataSource", "open_file", "open_source"]


def open_source(path: str | PathLike[str], *, counts: str = "auto", values: Values = "counts") -> AnnDataSource:
    """Open an ``.h5ad`` file or a zarr folder that AnnData wrote; no cells are read yet.

    Args:
        path: The file or folder.
        counts: Which matrix holds the counts: "X", "layers/<key>", "raw", or "auto" for the first of X, layers/counts
            and raw whose values, in a sample, are whole numbers from 0 up.
        values: "counts" rejects values that are negative or fractions, also later while reading; "any" accepts all.

    Raises:
        FileNotFoundError: no such path; names the nearest ones.
        ValueError: the path is a URL.
        KeyError: no such matrix; lists those that exist.
        NotCountsError: the matrix, or every candidate, holds values that are not counts.
        SourceFormatError: not an AnnData, or damaged.
    """
    if values not in ("counts", "any"):
        raise ValueError(f"values must be 'counts' or 'any', not {values!r}")
    return AnnDataSource.open(_existing(path), counts=counts, values=values)


def open_file(path: str | PathLike[str]) -> AnnDataFile:
    """Open an ``.h5ad`` file or a zarr folder for its tables and matrices by key, whatever these hold.

    Raises:
        FileNotFoundError: no such path; names the nearest ones.
        ValueError: the path is a URL.
        SourceFormatError: not an AnnData.
    """
    return AnnDataFile.open(_existing(path))


def open_anndata(paths: Sequence[Path], options: OpenOptions) -> Iterator[AnnDataSource]:
    """Open AnnData files and folders; registered for every path that is registered for nothing else."""
    for path in paths:
        yield open_source(path, counts=options.counts, values=options.values)


def _existing(path: str | PathLike[str]) -> Path:
    if "://" in fspath(path):
        raise ValueError(f"{path} is not a path on this machine; download or mount it, and give the path of the copy")
    found = Path(path).expanduser()
    if not found.exists():
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
