"""The laws of sources."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from scdataloader.errors import ForkError
from scdataloader.genes.names import gene_names, without_version
from scdataloader.protocols import (
    Closes,
    HasCountsLocation,
    HasFileState,
    HasMatrices,
    HasMatrix,
    HasMatrixColumns,
    HasNames,
    HasNeighbours,
    HasOrganism,
    HasReadCost,
    HasSizes,
    NoticesChanges,
    ReadCost,
    ReadGroup,
    ReadsObsInPieces,
    ReadsParts,
    ReadsStored,
    ReadsTogether,
    SharesGenes,
    Source,
    SourceSelection,
)
from scdataloader.runtime.memory import row_buffers
from scdataloader.testing._checks import Checked, difference, in_fork, made
from scdataloader.types import CSRMatrix, CSRRows

_NO_COLUMN = "no such column"


def check_source(
    source: Source | Callable[[], Source], *, expected: Any = None, max_rows: int = 500, seed: int = 0
) -> None:
    """Check a source against the laws of `Source`, and of each optional capability that it has.

    The cells, read once in ascending order, are the reference for reads in any order, with repeats, in threads, from
    pickled copies, in a forked process, unless that is refused, and after `close`.

    Args:
        source: The source, or a function that opens it anew: two openings must then be the same.
        expected: The same cells as an AnnData in memory; then values, genes and the cell table are compared as well.
        max_rows: Cells that are read of a source that has more.
        seed: Which cells these are, and in which orders they are read.

    Raises:
        AssertionError: the source breaks a law; the message names the member, what was expected and what came back.
    """
    opened = made(source, Source)
    check = _SourceCheck.of(opened[0], max_rows, seed)
    try:
        check.run()
        if expected is not None:
            check.compare(expected)
        if len(opened) > 1:
            with check.as_copy("opened again"):
                check.same_source(opened[1])
        check.closing()
    finally:
        if len(opened) > 1:
            for one in opened:
                if isinstance(one, Closes):
                    one.close()


@dataclass
class _SourceCheck:
    about: Checked
    source: Any
    rng: np.random.Generator
    saved: bytes
    """The source, pickled before use."""
    rows: NDArray[np.int64]
    """``(m,)`` rows that are read, ascending."""
    values: csr_matrix
    """``(m, n_genes)`` their values."""

    @classmethod
    def of(cls, source: Any, max_rows: int, seed: int) -> _SourceCheck:
        about = Checked(str(getattr(source, "name", type(source).__name__)))
        about.require_members(source, Source)
        about.require(isinstance(source.name, str) and source.name, "name", "a string", source.name)
        n, rng = source.n_obs, np.random.default_rng(seed)
        about.require(isinstance(n, int | np.integer) and n >= 0, "n_obs", "a number of cells", n)
        rows = np.arange(n) if n <= max_rows else np.sort(rng.choice(n, max_rows, replace=False))
        if n:
            rows[0], rows[-1] = 0, n - 1
        # A copy made before anything is read may lack what the first read sets up.
        saved = about.call("pickle, before use", pickle.dumps, source)
        about.require(isinstance(source.var, pd.DataFrame), "var", "a DataFrame", type(source.var).__name__)
        check = cls(about=about, source=source, rng=rng, saved=saved, rows=rows, values=csr_matrix((len(rows), 0)))
        check.values = check.as_values("read(rows)", about.call("read(rows)", source.read, rows), len(rows))
        return check

    def run(self) -> None:
        self.description()
        self.cell_table()
        self.orders()
        self.refusals()
        self.threads()
        self.copies()
        for protocol, check in _CAPABILITIES.items():
            if isinstance(self.source, protocol):
                check(self)

    @contextmanager
    def as_copy(self, how: str) -> Iterator[None]:
        """Name in messages how a copy of the source was made."""
        before, self.about = self.about, Checked(f"{self.about.name}, {how}")
        try:
            yield
        finally:
            self.about = before

    def description(self) -> None:
        source, about = self.source, self.about
        var, columns, digest = source.var, source.obs_columns, source.fingerprint
        about.require(len(var) == self.values.shape[1], "var", f"{self.values.shape[1]} genes, as read() has", len(var))
        about.require(all(isinstance(gene, str) for gene in var.index), "var.index", "gene ids, as strings", var.index)
        is_digest = isinstance(digest, str) and digest and set(digest) <= set("0123456789abcdef")
        about.require(is_digest, "fingerprint", "a hexadecimal digest", digest)
        about.require(source.fingerprint == digest, "fingerprint", f"{digest}, as before", source.fingerprint)
        are_names = not isinstance(columns, str) and all(isinstance(column, str) for column in columns)
        about.require(are_names, "obs_columns", "a sequence of strings", columns)
        about.require(len(set(columns)) == len(columns), "obs_columns", "each name once", columns)

    def shared_genes(self) -> None:
        shared, var = self.source.shared_genes, self.source.var
        if shared is None:
            return
        names = list(shared.names) if shared.places is None else [shared.names[at] for at in shared.places.place]
        if shared.var_columns is None:
            expected = without_version(gene_names(var, source=self.source.name))
        else:
            columns, expected = list(shared.var_columns), without_version(map(str, var.index))
            self.about.require(columns == list(var.columns), "shared_genes", "the columns of var", columns)
        self.about.require(without_version(names) == expected, "shared_genes", "the genes of var", names[:3])

    def cell_table(self) -> None:
        source, about, columns = self.source, self.about, list(self.source.obs_columns)
        whole = about.call("obs(obs_columns)", source.obs, columns)
        about.require(isinstance(whole, pd.DataFrame), "obs(obs_columns)", "a DataFrame", type(whole).__name__)
        for member, asked in (
            ("obs(obs_columns)", columns),
            ("obs([])", []),
            ("obs(reversed)", columns[::-1]),
            *((f"obs([{c!r}])", [c]) for c in columns),
        ):
            table = about.call(member, source.obs, asked)
            about.require(len(table) == source.n_obs, member, f"{source.n_obs} rows", f"{len(table)} rows")
            about.require(list(table.columns) == asked, member, f"columns {asked}", list(table.columns))
            for column in asked:
                expected, got = whole[column].array, table[column].array
                same = got.dtype == expected.dtype and got.equals(expected)
                about.require(same, member, f"{expected.dtype} values as obs(obs_columns) has", got)
        missing = f"obs([{_NO_COLUMN!r}])"
        error = about.require_error(missing, KeyError, source.obs, [_NO_COLUMN])
        about.require(source.name in str(error), missing, f"a KeyError that names {source.name!r}", str(error))

    def orders(self) -> None:
        n = len(self.rows)
        whole = np.arange(n)
        self.reads("read([]) of no rows", whole[:0])
        if not n:
            return
        first = self.source.read(self.rows)
        kept = pickle.dumps(first)
        self.reads("read(rows) of one row", whole[-1:])
        self.reads("read(rows) in descending order", whole[::-1])
        self.reads("read(rows) in random order", self.rng.permutation(n))
        self.reads("read(rows) with repeats", self.rng.integers(0, n, n + 3))
        self.reads("read(rows) of one row twice", np.repeat(self.rng.integers(0, n, 1), 2))
        same = difference(first, pickle.loads(kept)) is None  # noqa: S301
        self.about.require(
            same, "read(rows)", "cells that later reads leave unchanged", "other values in the same arrays"
        )

    def refusals(self) -> None:
        for row in (-1, self.source.n_obs):
            self.about.require_error(f"read([{row}])", IndexError, self.source.read, np.array([row]))

    def threads(self) -> None:
        if not len(self.rows):
            return
        places = [self.rng.integers(0, len(self.rows), 20) for _ in range(16)]
        parts = self.about.in_threads("read(rows)", lambda place: self.source.read(self.rows[place]), places)
        for place, part in zip(places, parts, strict=True):
            self.compare_rows(
                "read(rows), in threads", self.as_values("read(rows), in threads", part, len(place)), place
            )

    def copies(self) -> None:
        for how, saved in (("before", self.saved), ("after", self.about.call("pickle", pickle.dumps, self.source))):
            with self.as_copy(f"pickled {how} use"):
                copy = self.about.call("unpickle", pickle.loads, saved)
                self.same_source(copy)
            if isinstance(copy, Closes):
                copy.close()
        if hasattr(os, "fork"):
            wrong = in_fork(lambda: self.reads("read(rows)", np.arange(len(self.rows))[::-1]))
            is_right = wrong is None or ForkError.__name__ in wrong
            self.about.require(is_right, "read(rows), in a forked process", "the same cells, or a ForkError", wrong)

    def same_source(self, copy: Any) -> None:
        """Check that a copy describes and reads the same cells."""
        source, about = self.source, self.about
        for member in ("name", "n_obs", "fingerprint"):
            mine, other = getattr(source, member), getattr(copy, member)
            about.require(mine == other, member, f"{mine!r}, as the original has", other)
        columns = list(source.obs_columns)
        about.require(list(copy.obs_columns) == columns, "obs_columns", f"{columns}", copy.obs_columns)
        about.require(copy.var.equals(source.var), "var", "the table of the original", copy.var)
        same = copy.obs(columns).reset_index(drop=True).equals(source.obs(columns).reset_index(drop=True))
        about.require(same, "obs(obs_columns)", "the table of the original", "another one")
        self.reads("read(rows)", np.arange(len(self.rows)), copy)

    def reads(self, member: str, place: NDArray[np.int64], source: Any = None) -> None:
        """Read the reference rows ``place`` and compare them with the reference."""
        rows = self.rows[place]
        given = rows.copy()
        got = self.about.call(member, (source or self.source).read, given)
        self.about.require(np.array_equal(given, rows), member, "its argument unchanged", given)
        self.compare_rows(member, self.as_values(member, got, len(rows)), place)

    def as_values(self, member: str, got: Any, n_rows: int, n_columns: int | None = None) -> csr_matrix:
        """Sparse rows as a matrix, once they are as `CSRRows` documents; of genes, unless ``n_columns`` is given."""
        about = self.about
        about.require(isinstance(got, CSRRows), member, "CSRRows", type(got).__name__)
        for array, dtype in (("data", np.float32), ("indices", np.int32), ("indptr", np.int64)):
            found = getattr(got, array)
            is_right = isinstance(found, np.ndarray) and found.dtype == dtype and found.ndim == 1
            about.require(is_right, f"{member}: {array}", f"a vector of {np.dtype(dtype)}", found)
        about.require(len(got) == n_rows, member, f"{n_rows} cells", f"{len(got)} cells")
        self.require_offsets(member, got.indptr, len(got.indices), len(got.data))
        n_genes = len(self.source.var) if n_columns is None else n_columns
        what = "the length of var" if n_columns is None else "the number of cells"
        about.require(got.n_genes == n_genes, f"{member}: n_genes", f"{n_genes}, {what}", got.n_genes)
        in_range = not len(got.indices) or (got.indices.min() >= 0 and got.indices.max() < n_genes)
        about.require(in_range, f"{member}: indices", f"gene numbers in [0, {n_genes})", got.indices)
        within = np.ones(len(got.indices), np.bool_)
        within[got.indptr[:-1][np.diff(got.indptr) > 0]] = False
        ascend = bool((np.diff(got.indices)[within[1:]] > 0).all())
        about.require(ascend, f"{member}: indices", "strictly ascending gene numbers within each cell", got.indices)
        return csr_matrix((got.data, got.indices, got.indptr), shape=(n_rows, n_genes))

    def require_offsets(self, member: str, indptr: NDArray[np.int64], *lengths: int) -> None:
        fit = indptr[0] == 0 and (np.diff(indptr) >= 0).all() and all(indptr[-1] == length for length in lengths)
        self.about.require(fit, f"{member}: indptr", f"ascending offsets from 0 to {lengths[0]}", indptr)

    def compare_rows(self, member: str, got: csr_matrix, place: NDArray[np.int64]) -> None:
        """Compare cells with the reference rows ``place``, value by value."""
        wanted = self.values[place]
        differs = np.flatnonzero((got != wanted).sum(axis=1))
        if len(differs):
            at = int(differs[0])
            expected, found = (_cell(matrix, at) for matrix in (wanted, got))
            self.about.require(False, member, f"cell {self.rows[place[at]]} at place {at}: {expected}", found)  # noqa: FBT003

    # ------------------------------------------------------------------------------------------ optional capabilities

    def names(self) -> None:
        """`HasNames`."""
        names, n = self.about.call("obs_names()", self.source.obs_names), self.source.n_obs
        self.about.require(isinstance(names, pd.Index) and len(names) == n, "obs_names()", f"an Index of {n}", names)

    def matrix(self) -> None:
        """`HasMatrix`."""
        matrix = self.about.call("matrix", lambda: self.source.matrix)
        if matrix is None:
            return
        self.about.require(isinstance(matrix, CSRMatrix), "matrix", "a CSRMatrix or None", type(matrix).__name__)
        n = self.source.n_obs
        self.about.require(len(matrix.indptr) == n + 1, "matrix.indptr", f"{n + 1} offsets", len(matrix.indptr))
        whole = csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(n, self.values.shape[1]))
        part = whole[self.rows].astype(np.float32)
        self.compare_rows("matrix", part, np.arange(len(self.rows)))

    def changes(self) -> None:
        """`NoticesChanges`."""
        self.about.call("check_unchanged()", self.source.check_unchanged)

    def stored(self) -> None:
        """`ReadsStored`."""
        place = self.rng.permutation(len(self.rows))
        got = self.about.call("read_stored(rows)", self.source.read_stored, self.rows[place])
        self.about.require(isinstance(got, CSRMatrix), "read_stored(rows)", "a CSRMatrix", type(got).__name__)
        self.about.require(len(got.indptr) == len(place) + 1, "read_stored(rows): indptr", f"{len(place)} cells", got)
        self.require_offsets("read_stored(rows)", got.indptr, len(got.indices), len(got.data))
        shape = len(place), self.values.shape[1]
        self.compare_rows(
            "read_stored(rows)", csr_matrix((got.data, got.indices, got.indptr), shape).astype(np.float32), place
        )

    def parts(self) -> None:
        """`ReadsParts`."""
        place = self.rng.permutation(len(self.rows))
        rows, width = self.rows[place], self.values.shape[1]
        sizes = self.about.call("stored_sizes(rows)", self.source.stored_sizes, rows)
        if sizes is None:
            return
        is_right = isinstance(sizes, np.ndarray) and sizes.shape == (len(rows),) and sizes.dtype == np.int64
        self.about.require(is_right, "stored_sizes(rows)", f"a vector of {len(rows)} int64", sizes)
        parts: list[tuple[csr_matrix, NDArray[np.int64]]] = []

        def take(matrix: CSRMatrix, at: NDArray[np.int64], of: NDArray[np.int64]) -> None:
            begins, ends = matrix.indptr[at], matrix.indptr[at + 1]
            values = [np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)]
            inside = np.concatenate([*values, np.empty(0, np.int64)])
            indptr = np.append(0, np.cumsum(ends - begins))
            arrays = matrix.data[inside].astype(np.float32), matrix.indices[inside].astype(np.int32), indptr
            parts.append((csr_matrix(arrays, (len(at), width)), np.array(of)))

        self.about.call("read_parts(rows, take)", self.source.read_parts, rows, take)
        taken = np.concatenate([of for _, of in parts]) if parts else np.empty(0, np.int64)
        once = np.array_equal(np.sort(taken), np.arange(len(rows)))
        self.about.require(once, "read_parts(rows, take)", f"each of {len(rows)} cells once", np.sort(taken))
        if parts:
            numbers = np.concatenate([matrix.indices for matrix, _ in parts])
            in_range = bool(((numbers >= 0) & (numbers < width)).all())
            self.about.require(in_range, "read_parts(rows, take): indices", f"gene numbers in [0, {width})", numbers)
            together = vstack([matrix for matrix, _ in parts], "csr")[np.argsort(taken)]
            self.compare_rows("read_parts(rows, take)", together, place)
            are_equal = np.array_equal(np.diff(together.indptr), sizes)
            self.about.require(are_equal, "stored_sizes(rows)", "the sizes of read_parts", sizes)

    def sizes(self) -> None:
        """`HasSizes`."""
        sizes = self.about.call("nnz()", self.source.nnz)
        if sizes is None:
            return
        n = self.source.n_obs
        is_right = isinstance(sizes, np.ndarray) and sizes.shape == (n,) and sizes.dtype == np.int64
        self.about.require(is_right, "nnz()", f"a vector of {n} int64", sizes)
        read = np.diff(self.values.indptr)
        self.about.require(np.array_equal(sizes[self.rows], read), "nnz()", f"{read}, as read() has", sizes[self.rows])

    def matrices(self) -> None:
        """`HasMatrices`."""
        keys = list(self.source.matrix_keys)
        self.about.require(all(isinstance(key, str) for key in keys), "matrix_keys", "strings", keys)
        for key in keys:
            self._matrix_of_key(key)
        if len(self.rows):
            self.about.require_error(
                "read_matrix('layers/no such key', rows)",
                KeyError,
                self.source.read_matrix,
                "layers/no such key",
                self.rows,
            )

    def _matrix_of_key(self, key: str) -> None:
        member = f"read_matrix({key!r}, rows)"
        whole = self._read_matrix(key, self.rows, member)
        place = self.rng.integers(0, max(1, len(self.rows)), len(self.rows))
        part = self._read_matrix(key, self.rows[place], member)
        wrong = (
            difference(part.toarray(), whole[place].toarray())
            if isinstance(part, csr_matrix)
            else difference(part, whole[place])
        )
        self.about.require(wrong is None, member, "the same cells in any order", wrong)

    def _read_matrix(self, key: str, rows: NDArray[np.int64], member: str) -> Any:
        got = self.about.call(member, self.source.read_matrix, key, rows)
        if key.startswith(("layers/", "obsp/")):
            return self.as_values(member, got, len(rows), self.source.n_obs if key.startswith("obsp/") else None)
        is_right = isinstance(got, np.ndarray) and got.dtype == np.float32 and got.ndim == 2 and len(got) == len(rows)  # noqa: PLR2004
        self.about.require(is_right, member, f"({len(rows)}, D) float32", got)
        return got

    def columns(self) -> None:
        """`HasMatrixColumns`."""
        for key in self.source.matrix_keys if isinstance(self.source, HasMatrices) else ():
            names = self.about.call(f"matrix_columns({key!r})", self.source.matrix_columns, key)
            if names is not None:
                width = self._read_matrix(key, self.rows[:0], f"read_matrix({key!r}, rows)").shape[1]
                is_right = not isinstance(names, str) and len(names) == width
                self.about.require(is_right, f"matrix_columns({key!r})", f"{width} names, or None", names)

    def neighbours(self) -> None:
        """`HasNeighbours`, of the graph "distances" if the source has it."""
        member, n, place = "neighbours(rows, 3)", self.source.n_obs, self.rows[::-1]
        try:
            rows, distances = self.source.neighbours(place, 3)
        except KeyError:
            return
        for what, found, dtype in (("rows", rows, np.int64), ("distances", distances, np.float32)):
            is_right = isinstance(found, np.ndarray) and found.shape == (len(place), 3) and found.dtype == dtype
            self.about.require(is_right, f"{member}: {what}", f"({len(place)}, 3) {np.dtype(dtype)}", found)
        is_pad = rows == -1
        self.about.require(((rows < n) & (rows >= 0) | is_pad).all(), member, f"rows in [0, {n}), or -1", rows)
        self.about.require((is_pad[:, 1:] >= is_pad[:, :-1]).all(), member, "-1 after all neighbours", rows)
        self.about.require((distances[is_pad] == -1).all(), member, "a distance of -1 where the row is -1", distances)
        self.about.require((rows != place[:, None]).all(), member, "no cell among its own neighbours", rows)
        self.about.require(all(len({*own} - {-1}) == (own >= 0).sum() for own in rows), member, "no row twice", rows)
        ordered = np.where(is_pad, np.inf, distances)
        nearest = (ordered[:, 1:] > ordered[:, :-1]) | (ordered[:, 1:] == ordered[:, :-1]) & (
            (rows[:, 1:] > rows[:, :-1]) | is_pad[:, 1:]
        )
        self.about.require(nearest.all(), member, "the nearest first, then the lower row", distances)
        alone = [self.source.neighbours(place[at : at + 1], 3)[0][0] for at in range(min(4, len(place)))]
        self.about.require(
            np.array_equal(alone, rows[: len(alone)]), member, "the same rows as for single cells", alone
        )

    def organism(self) -> None:
        """`HasOrganism`."""
        organism = self.about.call("organism", lambda: self.source.organism)
        self.about.require(
            organism is None or (isinstance(organism, str) and organism), "organism", "a name or None", organism
        )

    def file_state(self) -> None:
        """`HasFileState`."""
        state = self.about.call("file_state()", self.source.file_state)
        self.about.require(state is None or isinstance(state, str), "file_state()", "a string or None", state)
        again = self.about.call("file_state()", self.source.file_state)
        self.about.require(state == again, "file_state()", f"{state}, as before", again)

    def obs_pieces(self) -> None:
        """`ReadsObsInPieces`."""
        for column in self.source.obs_columns:
            what = f"obs_pieces({column!r})"
            pieces = self.about.call(what, lambda column=column: list(self.source.obs_pieces(column)))
            found = [label for piece in pieces for label in piece.astype(object)]
            whole = self.source.obs([column])[column].astype(object).tolist()
            is_equal = len(found) == len(whole) and all(
                a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(found, whole, strict=True)
            )
            self.about.require(is_equal, what, "the column in order, as obs() has it", found[:8])

    def counts(self) -> None:
        """`HasCountsLocation`."""
        counts = self.about.call("counts", lambda: self.source.counts)
        self.about.require(isinstance(counts, str) and counts, "counts", "a string", counts)

    def read_cost(self) -> None:
        """`HasReadCost`."""
        self._require_cost("read_cost", self.about.call("read_cost", lambda: self.source.read_cost))

    def _require_cost(self, member: str, cost: object) -> None:
        is_right = isinstance(cost, ReadCost) and cost.cell >= cost.neighbour >= 0
        self.about.require(is_right, member, "a ReadCost with cell >= neighbour >= 0", cost)

    def together(self) -> None:
        """`ReadsTogether`."""
        about, source = self.about, self.source
        about.call("hash(read_group)", hash, source.read_group)
        n_genes = self.values.shape[1]
        genes = np.arange(n_genes, dtype=np.int32)
        genes[::3] = -1  # outside the vocabulary
        genes[1::4] = -2  # not genes
        for rows in (None, self.rows[1::2]):
            if rows is not None and not len(rows):
                continue
            member = SourceSelection(source=source, rows=rows)
            group = about.call("open_group()", source.open_group, [member], [genes], n_genes)
            about.require(isinstance(group.fingerprint, str), "open_group().fingerprint", "a string", group.fingerprint)
            self._require_cost("open_group().read_cost", group.read_cost)
            self._group_reads(group, member, genes)

    def _group_reads(self, group: ReadGroup, member: SourceSelection, genes: NDArray[np.int32]) -> None:
        order = self.about.call("open_group().arrange()", group.arrange, [np.arange(member.n_obs)])
        is_order = np.array_equal(np.sort(order), np.arange(member.n_obs))
        self.about.require(is_order, "open_group().arrange()", f"each of {member.n_obs} cells once", order)
        in_order = group.is_interleaved or np.array_equal(order, np.arange(member.n_obs))
        self.about.require(in_order, "open_group().arrange()", "the order of the member's cells", order)
        rows = self.rng.integers(0, member.n_obs, min(50, member.n_obs))
        in_source = order[rows] if member.rows is None else member.rows[order[rows]]
        expected = self.as_values("read(rows)", self.source.read(in_source), len(rows))
        pending = self.about.call("open_group().locate(rows)", group.locate, rows)
        middle = len(rows) // 2
        for start, stop, part in ((0, len(rows), pending), (middle, len(rows), pending.slice(middle, len(rows)))):
            self._pending_writes(part, expected[start:stop], genes)

    def _pending_writes(self, pending: Any, expected: csr_matrix, genes: NDArray[np.int32]) -> None:
        about, n = self.about, expected.shape[0]
        about.require(np.array_equal(pending.member, np.zeros(n)), "locate().member", f"{n} zeros", pending.member)
        pending.read_ahead()
        most = pending.sizes
        buffers = row_buffers(most)
        about.call("locate().write()", pending.write, np.arange(n), buffers)
        about.require((buffers.sizes <= most).all(), "locate().write(): sizes", f"at most {most}", buffers.sizes)
        depth = np.asarray(expected[:, genes != -2].sum(axis=1)).ravel().astype(np.float32)  # noqa: PLR2004
        about.require(np.allclose(buffers.depth, depth), "locate().write(): depth", f"{depth}", buffers.depth)
        for row in range(n):
            entries = slice(buffers.starts[row], buffers.starts[row] + buffers.sizes[row])
            cell = expected[row]
            kept = genes[cell.indices] >= 0
            got = buffers.indices[entries].tolist(), buffers.data[entries].tolist()
            wanted = genes[cell.indices[kept]].tolist(), cell.data[kept].tolist()
            about.require(got == wanted, "locate().write()", f"genes and values {wanted}, as read() has", got)

    def closing(self) -> None:
        """`Closes`."""
        if not isinstance(self.source, Closes):
            return
        whole = np.arange(len(self.rows))
        self.about.call("release()", self.source.release)
        self.reads("read(rows), after release()", whole)
        self.about.call("close()", self.source.close)
        self.about.call("close(), twice", self.source.close)
        self.reads("read(rows), after close()", whole)
        self.about.call("close()", self.source.close)

    # ------------------------------------------------------------------------------------------------ the same cells

    def compare(self, expected: Any) -> None:
        """Compare with an AnnData."""
        about, source, whole = self.about, self.source, np.arange(len(self.rows))
        about.require(source.n_obs == expected.n_obs, "n_obs", f"{expected.n_obs}", source.n_obs)
        genes = list(expected.var_names)
        about.require(list(source.var.index) == genes, "var.index", f"{genes[:3]} …", list(source.var.index[:3]))
        wanted = csr_matrix(expected.X)[self.rows].astype(np.float32)
        self.values, read = wanted, self.values
        self.compare_rows("read(rows)", read, whole)
        for column in expected.obs:
            about.require(column in source.obs_columns, "obs_columns", f"{column!r} among them", source.obs_columns)
            got, values = source.obs([column])[column], expected.obs[column]
            stays = isinstance(got.dtype, pd.CategoricalDtype) or not isinstance(values.dtype, pd.CategoricalDtype)
            about.require(stays, f"obs([{column!r}])", "a categorical column", got.dtype)
            about.require(_same(got, values), f"obs([{column!r}])", f"{list(values[:3])} …", list(got[:3]))
        if isinstance(source, HasNames):
            got, names = list(source.obs_names()), list(expected.obs_names)
            about.require(got == names, "obs_names()", f"{names[:3]} …", got[:3])


def _same(first: pd.Series[Any], second: pd.Series[Any]) -> bool:
    missing = first.isna().to_numpy()
    return bool(
        np.array_equal(missing, second.isna().to_numpy())
        and (first.to_numpy()[~missing] == second.to_numpy()[~missing]).all()
    )


def _cell(matrix: csr_matrix, row: int) -> str:
    cell = matrix[row]
    pairs = ", ".join(f"{gene}: {value:g}" for gene, value in zip(cell.indices[:8], cell.data[:8], strict=True))
    return f"{{{pairs}{', …' if cell.nnz > 8 else ''}}} ({cell.nnz} values)"  # noqa: PLR2004


_CAPABILITIES: dict[type, Callable[[_SourceCheck], None]] = {
    HasNames: _SourceCheck.names,
    HasMatrix: _SourceCheck.matrix,
    NoticesChanges: _SourceCheck.changes,
    ReadsStored: _SourceCheck.stored,
    ReadsParts: _SourceCheck.parts,
    HasSizes: _SourceCheck.sizes,
    HasMatrices: _SourceCheck.matrices,
    HasMatrixColumns: _SourceCheck.columns,
    HasNeighbours: _SourceCheck.neighbours,
    HasOrganism: _SourceCheck.organism,
    SharesGenes: _SourceCheck.shared_genes,
    HasFileState: _SourceCheck.file_state,
    HasCountsLocation: _SourceCheck.counts,
    ReadsObsInPieces: _SourceCheck.obs_pieces,
    HasReadCost: _SourceCheck.read_cost,
    ReadsTogether: _SourceCheck.together,
}
