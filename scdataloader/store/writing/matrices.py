"""Further matrices of the sources of a conversion: layers, obsm and obsp, as rows of records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import HasMatrices, HasMatrixColumns, Source
from scdataloader.runtime.messages import suggestion
from scdataloader.sources.contract import check_rows
from scdataloader.store.manifest import OBSM, OBSP, MatrixPart
from scdataloader.store.shard import stored_edges
from scdataloader.types import CSRMatrix, CSRRows

_SAMPLES = 64
"""Cells that a digest covers."""
_FIRST_BLOCK, _GROWTH = 64, 4
"""Cells that are read first, and the factor by which later blocks may be longer."""
_CELLS_PER_BLOCK, _VALUES_PER_BLOCK = 1 << 12, 1 << 21


def matrix_part_of(source: Source, key: str) -> MatrixPart:
    """What a source has of a matrix, with a digest of some of its cells.

    Raises:
        KeyError: it has no such matrix; names the source.
        TypeError: it returns something other than `HasMatrices` documents.
    """
    samples = np.unique(np.linspace(0, max(0, source.n_obs - 1), min(_SAMPLES, source.n_obs)).astype(np.int64))
    read = _read(source, key, samples)
    names = source.matrix_columns(key) if isinstance(source, HasMatrixColumns) and key.startswith(OBSM) else None
    digest = blake2b(json.dumps([key, None if names is None else list(names)]).encode(), digest_size=16)
    arrays = (read.indptr, read.indices, read.data) if isinstance(read, CSRRows) else (read,)
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return MatrixPart(
        n_columns=read.n_genes if isinstance(read, CSRRows) else read.shape[1],
        names=None if names is None else tuple(map(str, names)),
        digest=digest.hexdigest(),
    )


def matrix_rows(source: Source, key: str, first: int, last: int) -> CSRMatrix:
    """Cells ``[first, last)`` of a matrix, with values as they are in records.

    Raises:
        TypeError: the source returns something other than `HasMatrices` documents.
    """
    read = _read(source, key, np.arange(first, last))
    if isinstance(read, CSRRows):
        data = stored_edges(read.data) if key.startswith(OBSP) else read.data
        return CSRMatrix(indptr=read.indptr, indices=read.indices, data=data)
    is_stored = read != 0
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_stored.sum(axis=1), dtype=np.int64)])
    return CSRMatrix(indptr=indptr, indices=np.nonzero(is_stored)[1].astype(np.int32), data=read[is_stored])


def matrix_blocks(source: Source, key: str, first: int, last: int) -> Iterator[tuple[int, int, CSRMatrix]]:
    """Cells ``[first, last)`` in blocks of bounded memory: the first and the end of each block, and its cells.

    The number of values is not known beforehand: each block is as long as those of the block before it allow.
    """
    length = _FIRST_BLOCK
    while first < last:
        stop = min(last, first + max(1, min(length, _CELLS_PER_BLOCK)))
        rows = matrix_rows(source, key, first, stop)
        yield first, stop, rows
        per_cell = max(1, len(rows.data) // (stop - first))
        length, first = min(_GROWTH * (stop - first), _VALUES_PER_BLOCK // per_cell), stop


def _read(source: Source, key: str, rows: NDArray[np.int64]) -> CSRRows | NDArray[np.float32]:
    has = list(source.matrix_keys) if isinstance(source, HasMatrices) else []
    if not isinstance(source, HasMatrices) or key not in has:
        raise KeyError(f"{source.name} has no matrix {key!r}, which the store should keep; {suggestion(key, has)}")
    read: Any = source.read_matrix(key, rows)
    call = f"{source.name}: read_matrix({key!r}) of {len(rows)} cells"
    if not key.startswith(OBSM):
        return check_rows(read, len(rows), call)
    if not (isinstance(read, np.ndarray) and read.dtype == np.float32 and read.shape[:-1] == (len(rows),)):
        found = f"{read.dtype} of shape {read.shape}" if isinstance(read, np.ndarray) else type(read).__name__
        raise TypeError(f"{call} must return as many rows of float32; got {found}")
    return read
