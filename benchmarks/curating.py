"""Speed and memory of curation, and duration of a run in which all files are finished.

    python benchmarks/curating.py --folder DIR [--cells 50000 200000] [--gzip] [--csc] [--files 500]

Makes synthetic human files in DIR (20,000 genes, 1,800 expressed per cell; three label columns) and removes them.
`one file` curates one file in a process, without imports: cells per second of wall time and of processor time, peak
anonymous memory, and peak resident memory including mapped pages. `many files` runs the command on small files,
including imports and processes, and runs it again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

N_GENES, N_MITOCHONDRIAL, N_PER_CELL, N_POOL = 20_000, 13, 1_800, 4_096
GZIP = {"compression": "gzip", "chunks": (65536,)}
LABELS = {
    "cell_type_ontology_term_id": ["CL:0000084", "CL:0000236", "CL:0000003", "monocyte", "no such cell"],
    "tissue_ontology_term_id": ["UBERON:0000178", "blood", "UBERON:0002048"],
    "assay_ontology_term_id": ["EFO:0009922", "10x 3' v2"],
}


def make(path: Path, n_cells: int, n_genes: int, n_per_cell: int, seed: int, *, csc: bool, **options: object) -> None:
    """Write an .h5ad file of a few thousand distinct cells, repeated in random orders; ``options`` are of h5py."""
    import anndata as ad
    import h5py
    import pandas as pd

    rng = np.random.default_rng(seed)
    names = [f"cell{i}" for i in range(n_cells)]
    obs = pd.DataFrame(
        {column: pd.Categorical(rng.choice(labels, n_cells)) for column, labels in LABELS.items()}, index=names
    )
    genes = [f"ENSG{i:011d}" for i in rng.permutation(n_genes)]
    var = pd.DataFrame({"symbol": [f"MT-{i}" if i < N_MITOCHONDRIAL else f"G{i}" for i in range(n_genes)]}, index=genes)
    ad.AnnData(obs=obs, var=var).write_h5ad(path)
    n_pool = min(n_cells, N_POOL)
    pool = np.sort(rng.random((n_pool, n_genes), np.float32).argpartition(n_per_cell, axis=1)[:, :n_per_cell]).astype(
        np.int32
    )
    values = rng.geometric(0.4, (n_pool, n_per_cell)).astype(np.float32)
    orders = [np.random.default_rng([seed, start]).permutation(n_pool) for start in range(0, n_cells, n_pool)]
    pieces = by_genes(pool, values, orders, n_cells, n_genes) if csc else by_cells(pool, values, orders, n_cells)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        x = file.create_group("X")
        kind = "csc_matrix" if csc else "csr_matrix"
        x.attrs.update({"encoding-type": kind, "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
        data = x.create_dataset("data", (n_cells * n_per_cell,), np.float32, **options)
        indices = x.create_dataset("indices", (n_cells * n_per_cell,), np.int32, **options)
        sizes = [np.zeros(1, np.int64)]
        at = 0
        for lengths, numbers, counts in pieces:
            indices[at : at + len(numbers)], data[at : at + len(numbers)] = numbers, counts
            sizes.append(lengths)
            at += len(numbers)
        x.create_dataset("indptr", data=np.cumsum(np.concatenate(sizes)))


Piece = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Sizes of some rows or columns, their indices and their values."""


def by_cells(pool: np.ndarray, values: np.ndarray, orders: list[np.ndarray], n_cells: int) -> Iterator[Piece]:
    """The cells of the pool in each order, until there are enough."""
    for number, order in enumerate(orders):
        rows = order[: n_cells - number * len(pool)]
        yield np.full(len(rows), pool.shape[1]), pool[rows].reshape(-1), values[rows].reshape(-1)


def by_genes(
    pool: np.ndarray, values: np.ndarray, orders: list[np.ndarray], n_cells: int, n_genes: int
) -> Iterator[Piece]:
    """The same, gene by gene."""
    from scipy.sparse import csr_matrix

    places = np.stack([np.argsort(order) for order in orders]) + np.arange(len(orders))[:, None] * len(pool)
    columns = csr_matrix(
        (values.reshape(-1), pool.reshape(-1), np.arange(len(pool) + 1) * pool.shape[1]), (len(pool), n_genes)
    ).tocsc()
    many = 64
    for start in range(0, n_genes, many):
        numbers, counts = [], []
        for gene in range(start, min(start + many, n_genes)):
            inside = slice(columns.indptr[gene], columns.indptr[gene + 1])
            cells = places[:, columns.indices[inside]]
            order = np.argsort(cells, axis=1)
            cells = np.take_along_axis(cells, order, axis=1)
            numbers.append(cells[cells < n_cells].astype(np.int32))
            counts.append(columns.data[inside][order][cells < n_cells])
        yield np.array([len(cells) for cells in numbers]), np.concatenate(numbers), np.concatenate(counts)


def measure(path: Path) -> None:
    """Curate one file in this process."""
    from measure import PeakMemory

    from scdataloader.curation.file import Job, curate_file
    from scdataloader.curation.recipe import Recipe

    recipe = Recipe(min_genes_per_cell=200, min_cells_per_gene=3)
    job = Job(
        path=path,
        source=path.name,
        n_bytes=path.stat().st_size,
        content="",
        recipe=recipe,
        recipe_hash=recipe.hash,
        output=path.with_name("curated.h5ad"),
    )
    memory, start, cpu = PeakMemory(), time.perf_counter(), time.process_time()
    (outcome,) = curate_file(job, lambda _: None)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert outcome.status == "kept", outcome.reason
    record = {
        "cells": outcome.n_cells_out,
        "genes": outcome.n_genes_out,
        "wall_s": round(wall, 1),
        "cells_per_s": round(outcome.n_cells_in / wall),
        "cells_per_cpu_s": round(outcome.n_cells_in / cpu),
        "peak_anon_mib": round(memory.mib),
        "peak_resident_mib": round(peak_resident()),
    }
    print("one file", json.dumps(record), flush=True)
    os._exit(0)


def peak_resident() -> float:
    """Peak resident memory in MiB; not from getrusage, which includes the peak of the parent process."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def many(folder: Path, n_files: int) -> None:
    """The command on many small files, twice."""
    for number in range(n_files):
        make(folder / f"small{number}.h5ad", 50, 500, 100, number, csc=False)
    command = [sys.executable, "-m", "scdataloader", "curate", f"{folder}/small*.h5ad", "--out", f"{folder}/out"]
    for what in ("first", "again"):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"many files, {what}: {n_files} files in {time.perf_counter() - start:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cells", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--gzip", action="store_true", help="compress the files of --cells")
    parser.add_argument("--csc", action="store_true", help="store the files of --cells by genes")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
    folder = options.folder / "curating"
    folder.mkdir(parents=True)
    try:
        for n_cells in options.cells:
            path = folder / f"cells{n_cells}.h5ad"
            make(path, n_cells, N_GENES, N_PER_CELL, 0, csc=options.csc, **(GZIP if options.gzip else {}))
            command = [sys.executable, __file__, "--folder", folder, "--measure", path]
            subprocess.run(command, check=True)
            path.unlink()
        if options.files:
            many(folder, options.files)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
