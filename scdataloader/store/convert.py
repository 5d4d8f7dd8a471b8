"""Anything that a source reads into a store: from Python, and on the command line."""

from __future__ import annotations

import logging
import os
import sys
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from scdataloader.protocols import OpenOptions
from scdataloader.sources.anndata.counts import Values
from scdataloader.sources.locate import open_sources
from scdataloader.store.reader import Store
from scdataloader.store.writing.scan import Options
from scdataloader.store.writing.write import Help, Written, write_store

CELLS_PER_SHARD = 1 << 17
"""Some 500 MB at 1,800 genes per cell: what is lost at most where a conversion is interrupted."""

logger = logging.getLogger(__name__)


def convert(  # noqa: PLR0913 (each is an option of the command, and named)
    data: Any,
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    append: bool = False,
    executor: Executor | None = None,
    n_processes: int | None = None,
    cells_per_shard: int = CELLS_PER_SHARD,
    counts: str = "auto",
    values: Values = "counts",
    seed: int = 0,
    progress: bool | None = None,
) -> Store:
    """Convert sources into a store, in bounded memory; after an interruption, the same call goes on where it stopped.

    Nothing is seen of a store before it is complete: until then, or until the new cells of an append are all there,
    readers find no store, or the old one. In a script, call it under ``if __name__ == "__main__":``, as processes are
    started.

    Args:
        data: A path, a glob, "lamindb:<key>", a lamindb collection, a store, a `Source`; or an iterable of these.
        out: The folder to make, by custom called ``*.cells``; or, with ``append``, the store to add to.
        layout: The order of the cells: "source", as they are; "shuffled"; or "grouped:<obs column>", all cells of a
            label next to each other. None for that of the store that is added to, or else "source". The other two take
            as much disk again while they are made.
        append: Whether to add the sources to a store that exists. Their cells come after those that are there.
        executor: What runs the tasks, such as ``dask.distributed.Client(...).get_executor()``, whose machines have to
            find sources and store under the same paths. None for processes on this machine.
        n_processes: How many of these; None for as many as there are cores; 1 is this process itself.
        cells_per_shard: How many cells there are in a file, at most.
        counts: Which matrix holds the counts; see `open_source`.
        values: "counts" keeps whole numbers up to 2^32 - 1 and refuses all else; "any" keeps float32.
        seed: Of the shuffled order.
        progress: Whether to show a bar on standard error; None to show it on a terminal.

    Returns:
        The store, opened.

    Raises:
        FileExistsError: ``out`` holds something else, or a store, and sources are not to be appended.
        FileNotFoundError: a source, or the store to append to, does not exist.
        ValueError: the sources or options are not those of the unfinished conversion that is there, or cannot be
            converted into this store; or a value cannot be kept: names the source, the cell and the gene.
        RuntimeError: another conversion is writing there.
        WriteError: the disk is full, or not to be written to.
    """
    if executor is not None and n_processes is not None:
        raise ValueError("give an executor or n_processes, not both")
    if n_processes is not None and n_processes < 1:
        raise ValueError(f"n_processes must be 1 or more, not {n_processes}")
    options = Options(
        layout=layout,
        append=append,
        seed=seed,
        kind="counts" if values == "counts" else "float32",
        cells_per_shard=cells_per_shard,
    )
    shown = sys.stderr.isatty() if progress is None else progress
    folder = Path(out).expanduser().absolute()
    start = time.perf_counter()
    selections = open_sources(data, OpenOptions(counts=counts, values=values))
    partial = [selection.source.name for selection in selections if selection.rows is not None]
    if partial:
        raise ValueError(f"a store holds whole sources, but only some cells of {partial[0]} are selected")
    sources = [selection.source for selection in selections]
    written = write_store(folder, sources, options, Help(executor=executor, n_processes=n_processes, shown=shown))
    logger.info("%s", summary(folder, written, time.perf_counter() - start))
    return Store.open(folder)


def summary(folder: Path, written: Written, seconds: float) -> str:
    """One line on what a conversion has done."""
    if not written.shards:
        return f"{folder} has all of these sources already, {written.manifest.n_cells:,} cells; nothing to do"
    n_cells = sum(shard.n_cells for shard in written.shards)
    n_values = sum(shard.n_values for shard in written.shards)
    n_bytes = sum(shard.file.n_bytes for shard in written.shards)
    earlier = n_cells - written.n_cells
    return (
        f"{folder}: {n_cells:,} cells{f' ({earlier:,} of them by an earlier try)' if earlier else ''}, "
        f"{n_values:,} values, {n_bytes / 1e9:.3f} GB, {n_bytes / max(1, n_values):.2f} bytes per value, in "
        f"{seconds:.1f} s ({written.n_cells / seconds:,.0f} cells/s)"
    )
