"""check_source finds every broken law of a source."""

import os
import threading
import uuid
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdataloader.errors import ForkError
from scdataloader.protocols import ReadCost
from scdataloader.testing import MemorySource, check_source, named_values
from scdataloader.types import CSRMatrix, CSRRows

GENES = [f"ENSG{number:011d}" for number in range(30)]
OBS = {"type": pd.Categorical(["B", "T"] * 30), "age": np.arange(60.0)}


class Good(MemorySource):
    """A source with every optional capability but reading together."""

    def __init__(self, **options):
        near = np.stack([(np.arange(60) + step) % 60 for step in (1, 2, 7, 0)], axis=1)
        graph = csr_matrix((np.tile([0.5, 0.5, 0.0, 0.0], 60), near.ravel(), np.arange(61) * 4), (60, 60))
        graph.sort_indices()
        matrices = {
            "layers/spliced": named_values(60, 30, seed=1),
            "obsm/X_pca": named_values(60, 4),
            "obsp/distances": graph,
        }
        super().__init__(
            "mem://good", named_values(60, 30), GENES, OBS, mapped=True, organism="human", matrices=matrices, **options
        )
        self.counts = "X"
        self.read_cost = ReadCost(cell=2.0, neighbour=1.0)

    def read_stored(self, rows):
        part = self._rows[rows]
        return CSRMatrix(indptr=part.indptr, indices=part.indices, data=part.data.astype(np.int64))

    def stored_sizes(self, rows):
        return np.diff(self._rows.indptr).astype(np.int64)[rows]

    def read_parts(self, rows, take):
        matrix = CSRMatrix(indptr=self._rows.indptr, indices=self._rows.indices, data=self._rows.data)
        for place in (np.flatnonzero(rows % 2 == 1), np.flatnonzero(rows % 2 == 0)):
            take(matrix, rows[place], place)

    def nnz(self):
        return np.diff(self._rows.indptr).astype(np.int64)

    def matrix_columns(self, key):
        return ["a", "b", "c", "d"] if key == "obsm/X_pca" else None

    def release(self):
        pass

    def close(self):
        pass


def expected():
    names = pd.Index([str(number) for number in range(60)])
    obs, var = pd.DataFrame(OBS, index=names), pd.DataFrame(index=GENES)
    return ad.AnnData(csr_matrix(named_values(60, 30)), obs=obs, var=var)


def test_a_good_source_passes():
    check_source(Good())
    check_source(Good, expected=expected())


def test_a_source_of_no_cells_passes():
    check_source(MemorySource("mem://empty", np.zeros((0, 3), np.float32), GENES[:3], {"type": []}))


def test_a_large_source_is_sampled():
    check_source(MemorySource("mem://large", named_values(2000, 30), GENES), max_rows=50)


class RefusesForks(Good):
    def __init__(self):
        super().__init__()
        self.process = os.getpid()

    def read(self, rows):
        if os.getpid() != self.process:
            raise ForkError("opened before this process was forked")
        return super().read(rows)


def test_a_source_may_refuse_forked_processes():
    check_source(RefusesForks())


class NoColumns(Good):
    def __getattribute__(self, name):
        if name == "obs_columns":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Nameless(Good):
    def __init__(self):
        super().__init__()
        self.name = ""


class FewerGenes(Good):
    def __init__(self):
        super().__init__()
        self.var = self.var.iloc[1:]


class NumbersForGenes(Good):
    def __init__(self):
        super().__init__()
        self.var = self.var.reset_index(drop=True)


class FickleFingerprint(Good):
    @property
    def fingerprint(self):
        return uuid.uuid4().hex

    @fingerprint.setter
    def fingerprint(self, value):
        pass


class FingerprintOfTheObject(Good):
    def __init__(self):
        super().__init__()
        self.fingerprint = uuid.uuid4().hex


class TooFewObs(Good):
    def obs(self, columns):
        return super().obs(columns).iloc[:-1]


class UnorderedObs(Good):
    def obs(self, columns):
        return super().obs(sorted(columns))


class TextForCategories(Good):
    def obs(self, columns):
        table = super().obs(columns)
        return table.astype({column: str for column in columns if column == "type"})


class OtherTypesTogether(Good):
    def obs(self, columns):
        table = super().obs(columns)
        return table.astype(object) if len(columns) > 1 else table


class EmptyForMissing(Good):
    def obs(self, columns):
        return self._obs.reindex(columns=columns)


class MissingWithoutName(Good):
    def obs(self, columns):
        return self._obs[columns]


class Sorts(Good):
    def read(self, rows):
        return super().read(np.sort(rows))


class SortsItsArgument(Good):
    def read(self, rows):
        got = super().read(rows)
        rows.sort()
        return got


class NoRepeats(Good):
    def read(self, rows):
        return super().read(rows[np.sort(np.unique(rows, return_index=True)[1])])


class NoRows(Good):
    def read(self, rows):
        first = rows[0]  # an index error where there are none
        return super().read(rows) if first < 10**9 else None


class Wraps(Good):
    def read(self, rows):
        return super().read(rows % self.n_obs)


class Float64(Good):
    def read(self, rows):
        got = super().read(rows)
        return replace(got, data=got.data.astype(np.float64))


class NotRows(Good):
    def read(self, rows):
        return self._rows[rows]


class Unsorted(Good):
    def read(self, rows):
        got = super().read(rows)
        indices, data = got.indices.copy(), got.data.copy()
        for start, stop in zip(got.indptr, got.indptr[1:], strict=False):
            indices[start:stop], data[start:stop] = indices[start:stop][::-1], data[start:stop][::-1]
        return replace(got, indices=indices, data=data)


class BadOffsets(Good):
    def read(self, rows):
        got = super().read(rows)
        return replace(got, indptr=got.indptr + 1)


class GeneOutOfRange(Good):
    def read(self, rows):
        got = super().read(rows)
        return replace(got, indices=np.where(got.indices == 29, 30, got.indices).astype(np.int32))


class OneBuffer(Good):
    def __init__(self):
        super().__init__()
        self.buffer = np.empty(10**5, np.float32)

    def read(self, rows):
        got = super().read(rows)
        data = self.buffer[: len(got.data)]
        data[:] = got.data
        return CSRRows(data=data, indices=got.indices, indptr=got.indptr, n_genes=got.n_genes)


class OneRequestAtATime(Good):
    """What a file handle with a position does: threads move it under each other."""

    def read(self, rows):
        self.rows = rows
        threading.Event().wait(0.002)
        return super().read(self.rows)


class NoPickle(Good):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class PickleLosesCells(Good):
    def __setstate__(self, state):
        self.__dict__.update(state | {"_rows": state["_rows"] * 2})


class OtherProcess(Good):
    def __init__(self):
        super().__init__()
        self.process = os.getpid()

    def read(self, rows):
        if os.getpid() != self.process:
            raise OSError("handle of another process")
        return super().read(rows)


class OtherMatrix(Good):
    def __init__(self):
        super().__init__()
        self.matrix = replace(self.matrix, data=self.matrix.data + 1)


class OtherStored(Good):
    def read_stored(self, rows):
        return super().read_stored(np.sort(rows))


class PartsInOtherOrder(Good):
    def read_parts(self, rows, take):
        super().read_parts(np.sort(rows), take)


class LostPart(Good):
    def read_parts(self, rows, take):
        super().read_parts(rows[1:], take)


class GeneOutOfRangeInPart(Good):
    def read_parts(self, rows, take):
        matrix = CSRMatrix(indptr=self._rows.indptr, indices=self._rows.indices + 30, data=self._rows.data)
        take(matrix, rows, np.arange(len(rows)))


class OtherStoredSizes(Good):
    def stored_sizes(self, rows):
        return super().stored_sizes(rows) + 1


class OtherSizes(Good):
    def nnz(self):
        return super().nnz() + 1


class LayerInOtherOrder(Good):
    def read_matrix(self, key, rows):
        return super().read_matrix(key, np.sort(rows))


class SparseEmbedding(Good):
    def read_matrix(self, key, rows):
        return (
            super().read_matrix(key, rows).astype(np.float64) if key == "obsm/X_pca" else super().read_matrix(key, rows)
        )


class AnyKey(Good):
    def read_matrix(self, key, rows):
        return super().read_matrix(key if key in self.matrix_keys else "layers/spliced", rows)


class FewerColumns(Good):
    def matrix_columns(self, key):
        return ["a", "b", "c"] if key == "obsm/X_pca" else None


class ItselfForNeighbour(Good):
    def neighbours(self, rows, k, key="distances"):
        found, distances = super().neighbours(rows, k, key)
        found[:, 0] = rows
        return found, distances


class LaterRowFirst(Good):
    def neighbours(self, rows, k, key="distances"):
        found, distances = super().neighbours(rows, k, key)
        return found[:, [0, 2, 1]], distances


class InventedNeighbours(Good):
    def neighbours(self, rows, k, key="distances"):
        found, distances = super().neighbours(rows, k, key)
        found[:, 2] = 60
        return found, distances


class ZeroForPad(Good):
    def neighbours(self, rows, k, key="distances"):
        found, distances = super().neighbours(rows, k, key)
        found[:, 2], distances[:, 2] = -1, 0
        return found, distances


class NumberForOrganism(Good):
    def __init__(self):
        super().__init__()
        self.organism = 9606


class FickleFileState(Good):
    def file_state(self):
        return uuid.uuid4().hex


class CostAsNumber(Good):
    def __init__(self):
        super().__init__()
        self.read_cost = 1.0


class ClosedForGood(Good):
    closed = False

    def close(self):
        self.closed = True

    def read(self, rows):
        if self.closed:
            raise ValueError("closed")
        return super().read(rows)


BROKEN = {
    NoColumns: "obs_columns.*Source",
    Nameless: "name: expected a string",
    FewerGenes: "n_genes: expected 29",
    NumbersForGenes: "var.index",
    FickleFingerprint: "fingerprint",
    TooFewObs: r"obs\(obs_columns\): expected 60 rows; got 59",
    UnorderedObs: r"obs\(obs_columns\): expected columns",
    OtherTypesTogether: r"obs\(\['type'\]\)",
    EmptyForMissing: "expected KeyError",
    MissingWithoutName: "names 'mem://good'",
    Sorts: "descending order: expected cell 59 at place 0",
    SortsItsArgument: "its argument unchanged",
    NoRepeats: "63 cells; got",
    NoRows: r"read\(\[\]\) of no rows raised IndexError",
    Wraps: r"read\(\[-1\]\): expected IndexError",
    Float64: "data: expected a vector of float32",
    NotRows: "expected CSRRows; got csr_matrix",
    Unsorted: "indices: expected strictly ascending",
    BadOffsets: "indptr: expected ascending offsets",
    GeneOutOfRange: r"gene numbers in \[0, 30\)",
    OneBuffer: "later reads leave unchanged",
    OneRequestAtATime: "in threads?",
    NoPickle: "pickle, before use raised TypeError",
    PickleLosesCells: "pickled before use",
    OtherProcess: "forked process: .* another process",
    OtherMatrix: "matrix: expected cell",
    OtherStored: "read_stored",
    PartsInOtherOrder: "read_parts.*expected cell",
    LostPart: "read_parts.* each of 60 cells once",
    GeneOutOfRangeInPart: r"read_parts.* gene numbers in \[0, 30\)",
    OtherStoredSizes: "stored_sizes.* the sizes of read_parts",
    OtherSizes: r"nnz\(\)",
    LayerInOtherOrder: "read_matrix.*layers/spliced",
    SparseEmbedding: r"obsm/X_pca.*float32",
    AnyKey: "read_matrix.*expected KeyError",
    FewerColumns: r"matrix_columns\('obsm/X_pca'\): expected 4 names",
    ItselfForNeighbour: "no cell among its own neighbours",
    LaterRowFirst: "the nearest first, then the lower row",
    InventedNeighbours: r"rows in \[0, 60\), or -1",
    ZeroForPad: "a distance of -1 where the row is -1",
    NumberForOrganism: "organism: .*9606",
    FickleFileState: r"file_state\(\)",
    CostAsNumber: "read_cost",
    ClosedForGood: r"after close\(\) raised ValueError: closed",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_law_is_named(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        check_source(broken())


def test_two_openings_must_be_the_same():
    check_source(FingerprintOfTheObject())  # one alone does not show it
    with pytest.raises(AssertionError, match="opened again: fingerprint"):
        check_source(FingerprintOfTheObject)


def test_expected_cells_are_compared():
    other = expected()
    other.X = other.X * 2
    with pytest.raises(AssertionError, match="expected cell"):
        check_source(Good(), expected=other)
    with pytest.raises(AssertionError, match=r"type.*categorical"):
        check_source(TextForCategories(), expected=expected())
    more = expected()
    more.obs["donor"] = "d"
    with pytest.raises(AssertionError, match=r"obs_columns.*'donor'"):
        check_source(Good(), expected=more)
