"""Small stores made straight from matrices, in every layout, and what they must give back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdataloader.store.manifest import (
    SHORT_VERSION,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    SpaceRecord,
    file_record,
)
from scdataloader.store.tables import POSITION, ROW
from scdataloader.store.writing.shard_writer import ShardWriter


@dataclass
class Given:
    """A source to make a store of; its genes may be in any order."""

    name: str
    x: sp.csr_matrix
    obs: pd.DataFrame
    var: pd.DataFrame
    kind: str = "counts"
    uns_organism: str | None = None
    per_shard: int | None = None
    """Cells per shard; None puts all into one."""

    def sorted_genes(self) -> np.ndarray:
        """(n_genes,) the places of the genes in the order of their ids."""
        return np.argsort(np.asarray(self.var.index, str), kind="stable")

    def rank(self, space: list[str]) -> np.ndarray:
        """(n_genes,) number that each gene has in the records."""
        return np.array([space.index(gene) for gene in self.var.index], np.int32)

    def sorted_x(self) -> sp.csr_matrix:
        """The matrix as the store has it."""
        return sp.csr_matrix(self.x[:, self.sorted_genes()])


@dataclass
class Made:
    """A store under way."""

    folder: Path
    shards: list[ShardRecord] = field(default_factory=list)
    genes: dict[str, FileRecord] = field(default_factory=dict)
    space: list[str] = field(default_factory=list)
    """Gene ids of all sources, sorted; one space for all."""

    def write_space(self) -> SpaceRecord:
        pd.DataFrame({"gene": self.space}).to_parquet(self.folder / "genes" / "00000.parquet")
        return SpaceRecord(file=file_record(self.folder, "genes/00000.parquet"), n_genes=len(self.space))

    def write_tables(self, number: int, given: Given, order: np.ndarray | None) -> SourceRecord:
        genes = given.sorted_genes()
        var = given.var.iloc[genes].assign(**{POSITION: genes.astype(np.int32)})
        digest = hashlib.blake2b(repr(list(var.index)).encode() + genes.tobytes(), digest_size=16).hexdigest()
        obs = given.obs if order is None else given.obs.iloc[order].assign(**{ROW: order})
        paths = {f"var/{digest}.parquet": var, f"obs/{number:05}.parquet": obs}
        for path, frame in paths.items():
            frame.to_parquet(self.folder / path)
        self.genes[digest], table = (file_record(self.folder, path) for path in paths)
        return SourceRecord(
            name=given.name,
            fingerprint=hashlib.blake2b(given.name.encode(), digest_size=16).hexdigest(),
            n_cells=given.x.shape[0],
            kind=given.kind,
            genes=digest,
            space=0,
            obs=table,
            uns_organism=given.uns_organism,
        )

    def writer(self, kind: str, *, mixed: bool = False) -> ShardWriter:
        path = f"shards/{len(self.shards):05}.cells"
        return ShardWriter(self.folder, path, kind=kind, n_genes=len(self.space), mixed=mixed)


def make_store(folder: Path, given: list[Given], *, mixed: bool = False, seed: int = 0) -> Path:
    """Write a store of ``given``, source after source, or with all their cells mixed in one shard."""
    for part in ("obs", "var", "genes", "shards"):
        (folder / part).mkdir(parents=True)
    made = Made(folder, space=sorted({gene for item in given for gene in item.var.index}))
    if mixed:
        sources = _mix(made, given, seed)
    else:
        sources = [made.write_tables(number, item, None) for number, item in enumerate(given)]
        for number, item in enumerate(given):
            n = item.x.shape[0]
            for at in range(0, n, item.per_shard or n):
                part = item.x[at : at + (item.per_shard or n)]
                with made.writer(item.kind) as writer:
                    writer.append(part.indptr, part.indices, part.data, item.rank(made.space))
                    made.shards.append(writer.finish(number))
    manifest = Manifest(
        version=SHORT_VERSION,
        release=version("scdataloader"),
        layout="shuffled" if mixed else "source",
        sources=tuple(sources),
        genes=made.genes,
        spaces=(made.write_space(),),
        shards=tuple(made.shards),
    )
    manifest.save(folder)
    return folder


def _mix(made: Made, given: list[Given], seed: int) -> list[SourceRecord]:
    """Each cell is appended by itself, in a random order of all."""
    cells = [(number, row) for number, item in enumerate(given) for row in range(item.x.shape[0])]
    order = [cells[at] for at in np.random.default_rng(seed).permutation(len(cells))]
    with made.writer(given[0].kind, mixed=True) as writer:
        for number, row in order:
            append_mixed(writer, given[number], number, row, made.space)
        made.shards.append(writer.finish())
    rows = [np.array([row for source, row in order if source == number], np.int64) for number in range(len(given))]
    return [made.write_tables(number, item, rows[number]) for number, item in enumerate(given)]


def append_mixed(writer: ShardWriter, item: Given, number: int, row: int, space: list[str]) -> None:
    """One cell to a shard of several sources."""
    from scdataloader.kernels.records.encode import encode_rows, most_words

    part = item.x[row]
    bits = part.data.astype(np.float32).view(np.uint32) if item.kind == "float32" else part.data.astype(np.uint32)
    words, offsets = np.empty(most_words(1, part.nnz), np.uint64), np.empty(1, np.int64)
    sizes = np.empty(1, np.uint32)
    n_words = encode_rows(
        part.indptr.astype(np.int64),
        part.indices,
        bits,
        item.rank(space),
        item.kind == "float32",
        writer.n_cells,
        words,
        offsets,
        sizes,
    )
    writer.append_records(words[:n_words], offsets, sizes, np.array([number], np.uint32))


def counts(n_cells: int, n_genes: int, *, seed: int, wide: bool = True, dtype: Any = np.int64) -> sp.csr_matrix:
    """Skewed counts with long gaps, large values where ``wide``, and an empty cell, the second."""
    rng = np.random.default_rng(seed)
    dense = rng.geometric(0.3, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.1)
    dense[:, n_genes // 4 : n_genes // 4 + 300] = 0
    if wide:
        dense[n_cells // 2] *= 700
        dense[n_cells - 1] *= 90_000
        for value in (255, 256, 65535, 65536, (1 << 24) - 1):
            dense[rng.integers(n_cells, size=2), rng.integers(n_genes, size=2)] = value
    dense[1] = 0
    return sp.csr_matrix(dense.astype(dtype))


def floats(n_cells: int, n_genes: int, *, seed: int) -> sp.csr_matrix:
    """Any float32, NaN and infinity among them."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n_cells, n_genes)).astype(np.float32) * (rng.random((n_cells, n_genes)) < 0.2)
    dense[0, :3] = np.nan, np.inf, -1e-45
    return sp.csr_matrix(dense)


def tables(n_cells: int, n_genes: int, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A cell table with a column of every usual type, and a gene table whose ids are in no order."""
    rng = np.random.default_rng(seed)
    kinds = pd.Categorical(rng.choice(["T cell", "B cell"], n_cells), categories=["NK", "T cell", "B cell"])
    obs = pd.DataFrame(
        {
            "kind": kinds,
            "donor": [f"d{i % 3}" for i in range(n_cells)],
            "number": np.arange(n_cells, dtype=np.int32),
            "share": rng.random(n_cells, np.float32),
            "flag": rng.random(n_cells) < 0.5,
        },
        index=[f"cell{i}-{seed}" for i in range(n_cells)],
    )
    ids = [f"ENSG{i:011d}" for i in rng.permutation(n_genes)]
    var = pd.DataFrame({"symbol": [f"G{i}" for i in range(n_genes)]}, index=ids)
    return obs, var


def given_counts(name: str, n_cells: int, n_genes: int, seed: int, **more: Any) -> Given:
    wide = more.pop("wide", True)
    obs, var = tables(n_cells, n_genes, seed=seed)
    return Given(name, counts(n_cells, n_genes, seed=seed, wide=wide), obs, var, **more)


def given_floats(name: str, n_cells: int, n_genes: int, seed: int, **more: Any) -> Given:
    obs, var = tables(n_cells, n_genes, seed=seed)
    return Given(name, floats(n_cells, n_genes, seed=seed), obs, var, kind="float32", **more)


def twins(name: str, n_cells: int, n_genes: int, seed: int) -> list[Given]:
    """A source in two shards that differ in their values alone: in no length, no place and no number of values."""
    one = given_counts(name, n_cells, n_genes, seed, wide=False)
    other = one.x.copy()
    other.data = 1 + (other.data + 6) % 250
    one.x.data = 1 + one.x.data % 250
    obs, _ = tables(2 * n_cells, n_genes, seed=seed)
    return [Given(name, sp.vstack([one.x, other], format="csr"), obs, one.var, per_shard=n_cells)]
