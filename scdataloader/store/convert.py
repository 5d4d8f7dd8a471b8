"""Conversion of sources into a store: the public function."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from scdataloader.protocols import OpenOptions
from scdataloader.runtime.buckets import checked_url, is_remote
from scdataloader.runtime.files import local_path
from scdataloader.runtime.messages import shown
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.locate import open_sources
from scdataloader.store.reader import Store
from scdataloader.store.writing.bucket import staged
from scdataloader.store.writing.scan import Options
from scdataloader.store.writing.write import ConversionResult, ExecutionOptions, write_store

logger = logging.getLogger(__name__)


def convert(  # noqa: PLR0913 (each is an option of the command, and named)
    data: Any,
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    append: bool = False,
    executor: Executor | None = None,
    n_processes: int | None = None,
    cells_per_shard: int | None = None,
    counts: str = "auto",
    values: Values = "counts",
    layers: Sequence[str] | None = None,
    obsm: Sequence[str] | None = None,
    obsp: Sequence[str] | None = None,
    compact: bool = False,
    seed: int | None = None,
    progress: bool | None = None,
) -> Store:
    """Convert sources into a store, in bounded memory. After an interruption, the same call continues.

    The store, or the cells of an append, become visible when they are complete. In a script, call this under
    ``if __name__ == "__main__":``, since it starts processes.

    Args:
        data: A path, a glob, "lamindb:<key>", a lamindb collection, a store, a `Source`; or an iterable of these.
        out: The folder to write, by convention ``*.cells``; with ``append``, the store to add to. Or its URL
            in a bucket: the store is written in the folder of caches and uploaded, the manifest last.
        layout: Order of the cells: "source", "shuffled", or "grouped:<obs column>" (cells of a label are adjacent).
            None for that of the store, or "source" for a new one. The other two need twice the disk meanwhile.
        append: Whether to add the sources to an existing store, after its cells.
        executor: Runs the tasks, such as ``dask.distributed.Client(...).get_executor()``; its machines must see sources
            and store under the same paths. None for processes on this machine.
        n_processes: Number of processes; None for one per core; 1 for none but this process.
        cells_per_shard: Largest number of cells in a file; None for that of the store, or 131,072.
        counts: Which matrix holds the counts; see `open_source`.
        values: "counts" keeps whole numbers up to 2^32 - 1 and rejects others; "any" keeps float32.
        layers: Names of layers that the store keeps too, such as ["spliced", "unspliced"], as float32. With ``append``,
            further matrices are those of the store.
        obsm: Names of matrices of obsm, such as ["X_pca"], as float32; names of columns are kept.
        obsp: Names of matrices of obsp, such as ["distances"], as float32.
        compact: Whether cells take as few bytes as they can, about two fifths less, and are read more slowly: for
            object storage and slow disks.
        seed: Seed of the shuffled order; None for that of the store, or 0 for a new one.
        progress: Whether to show a bar on standard error; None for only on a terminal.

    Returns:
        The store, opened.

    Raises:
        FileExistsError: ``out`` holds something else, or a store and ``append`` is not set.
        KeyError: a source has no such further matrix.
        FileNotFoundError: a source, or the store to append to, does not exist.
        ValueError: the sources or options are not those of the unfinished conversion in ``out``, or do not fit into
            this store; or a value cannot be kept: names the source, the cell and the gene.
        RuntimeError: another conversion is writing there.
        WriteError: the folder cannot be written, or the disk is full.
        ConnectionError: the bucket of ``out`` does not answer; the same call continues.
    """
    if executor is not None and n_processes is not None:
        raise ValueError("give an executor or n_processes, not both")
    if n_processes is not None and n_processes < 1:
        raise ValueError(f"n_processes must be 1 or more; got {n_processes}")
    options = Options(
        layout=layout,
        append=append,
        seed=seed,
        kind="counts" if values == "counts" else "float32",
        cells_per_shard=cells_per_shard,
        matrices=_keys(layers=layers, obsm=obsm, obsp=obsp),
        compact=compact,
    )
    has_bar = sys.stderr.isatty() if progress is None else progress
    start = time.perf_counter()
    selections = open_sources(data, OpenOptions(counts=counts, values=values))
    partial = [selection.source.name for selection in selections if selection.rows is not None]
    if partial:
        raise ValueError(f"a store holds whole sources, but only some cells of {partial[0]} are selected")
    corpora = sorted({selection.corpus for selection in selections if selection.corpus is not None})
    if corpora:
        raise ValueError(f"a store has no corpora; got {shown(corpora)}; convert each to a separate store")
    sources = [selection.source for selection in selections]
    if is_remote(out):
        url = checked_url(out)
        with staged(url) as stage:
            execution = ExecutionOptions(executor=executor, n_processes=n_processes, shown=has_bar, url=stage.url)
            result = write_store(stage.folder, sources, options, execution)
            stage.upload(result.manifest, shown=has_bar)
        logger.info("%s", _summary(url, result, time.perf_counter() - start))
        return Store.open(url)
    folder = local_path(out).absolute()
    execution = ExecutionOptions(executor=executor, n_processes=n_processes, shown=has_bar)
    result = write_store(folder, sources, options, execution)
    logger.info("%s", _summary(folder, result, time.perf_counter() - start))
    return Store.open(folder)


def _keys(**names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Keys of the matrices of these names, sorted; None if no names are given."""
    for group, of_group in names.items():
        if isinstance(of_group, str):
            raise TypeError(f"{group} must be a list of names; got {of_group!r}, use [{of_group!r}]")
    keys = {f"{group}/{name}" for group, of_group in names.items() for name in of_group or ()}
    return None if all(of_group is None for of_group in names.values()) else tuple(sorted(keys))


def _summary(folder: Path | str, result: ConversionResult, seconds: float) -> str:
    """One line on a conversion."""
    if not result.shards:
        return f"{folder} has all of these sources already, {result.manifest.n_cells:,} cells; nothing to do"
    n_cells = sum(shard.n_cells for shard in result.shards)
    n_values = sum(shard.n_values for shard in result.shards)
    n_bytes = sum(shard.file.n_bytes for shard in result.shards)
    further = sum(shard.file.n_bytes for shard in result.further)
    earlier = n_cells - result.n_cells
    return (
        f"{folder}: {n_cells:,} cells{f' ({earlier:,} of them by an earlier run)' if earlier else ''}, "
        f"{n_values:,} values, {n_bytes / 1e6:,.1f} MB, {n_bytes / max(1, n_values):.2f} bytes per value, "
        f"{f'and {further / 1e6:,.1f} MB of further matrices, ' if further else ''}in "
        f"{seconds:.1f} s ({result.n_cells / seconds:,.0f} cells/s)"
    )
