"""Sources of a store back to AnnData files, one each, a stretch of cells at a time."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import zarr

from scdataloader.runtime.files import writing
from scdataloader.runtime.progress import Advance, progress_bar
from scdataloader.store.original import Original, find_source
from scdataloader.store.reader import Store, StoreSource

Form = Literal["h5ad", "zarr"]
_SUFFIXES = (".h5ad", ".zarr")
_CHUNK = 1 << 19
"""Values in a chunk of a zarr array."""
_UNFIT = re.compile(r"[^\w.+-]|^\.")
"""What the name of a file does not get from the name of a source, so that none leads elsewhere."""


def export(
    store: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    source: int | str | None = None,
    form: Form | None = None,
    progress: bool | None = None,
) -> list[Path]:
    """Write sources of a store as AnnData files that equal what it was made from; returns their paths.

    Values are uncompressed float32, or uint32 where there are counts beyond 2^24. Of what a source had, the store keeps
    its counts (now ``X``), ``obs`` and ``var``.

    Args:
        store: The store.
        out: A file that ends in ``.h5ad`` or ``.zarr``, for one source; else a folder, for files named as the sources.
        source: Which source, by name or number; None takes all.
        form: "h5ad" or "zarr"; None says the ending of ``out``, or else "h5ad".
        progress: Whether to show a bar on standard error; None to show it on a terminal.

    Raises:
        FileExistsError: a file is there already; nothing has been written.
        LookupError: there is no such source.
        StoreFormatError: the store is damaged.
        WriteError: a file cannot be written; nothing of it is left.
        ValueError: ``out`` is one file, but there are several sources; or of another form.
    """
    opened = Store.open(store)
    sources = opened.sources if source is None else [find_source(opened, source)]
    paths = _paths(Path(out).expanduser(), sources, form)
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already; remove it, or choose another name")
    n_bytes = 8 * sum(shard.n_values for shard in opened.manifest.shards)
    shown = sys.stderr.isatty() if progress is None else progress
    with progress_bar("exporting", n_bytes, shown=shown) as advance:
        for path, one in zip(paths, sources, strict=True):
            original = Original.of(one)
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with _at_once(path) as partial:
                    _write(original, partial, path.suffix, advance)
    return paths


def _paths(out: Path, sources: Sequence[StoreSource], form: Form | None) -> list[Path]:
    """Where each source goes."""
    if out.suffix in _SUFFIXES and not out.is_dir():
        if form is not None and out.suffix != f".{form}":
            raise ValueError(f"{out} is to be {form}, but does not end in .{form}")
        if len(sources) != 1:
            raise ValueError(f"{out} is one file, but there are {len(sources)} sources; name a folder, or one source")
        return [out]
    suffix, taken = f".{form or 'h5ad'}", set[str]()
    paths = []
    for source in sources:
        stem = _UNFIT.sub("_", source.name)
        for known in _SUFFIXES:
            stem = stem.removesuffix(known)
        name, number = stem, 1
        while name.lower() in taken:  # some disks do not tell upper from lower case
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        paths.append(out / f"{name}{suffix}")
    return paths


@contextmanager
def _at_once(path: Path) -> Iterator[Path]:
    """Another name to write to, which becomes ``path`` if all goes well, and nothing otherwise."""
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        partial.rename(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(original: Original, path: Path, suffix: str, advance: Advance) -> None:
    if suffix == ".h5ad":
        with h5py.File(path, "w") as file:
            _write_into(file, original, advance)
    else:
        # In the version of zarr that anndata itself would write.
        _write_into(zarr.open_group(path, mode="w", zarr_format=ad.settings.zarr_write_format), original, advance)


def _write_into(root: Any, original: Original, advance: Advance) -> None:
    """Write the parts of an AnnData into an empty group."""
    ad.io.write_elem(root, "/", original.without_x())
    matrix = root.create_group("X")
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(original.shape)})
    n = int(original.indptr[-1])
    data = _array(matrix, "data", n, original.dtype)
    indices = _array(matrix, "indices", n, np.dtype(np.int32))
    _array(matrix, "indptr", len(original.indptr), np.dtype(np.int64))[:] = original.indptr
    for block in original.blocks():
        room = slice(block.start, block.start + len(block.data))
        data[room], indices[room] = block.data, block.indices
        advance(block.data.nbytes + block.indices.nbytes)


def _array(group: Any, name: str, n: int, dtype: np.dtype[Any]) -> Any:
    if isinstance(group, h5py.Group):
        return group.create_dataset(name, (n,), dtype)  # in one piece, as it is read fastest
    return group.create_array(name, shape=(n,), dtype=dtype, chunks=(min(max(n, 1), _CHUNK),))
