"""The cells of an experiment of TileDB-SOMA, or of a query of it, as a source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdataloader.errors import NotCountsError, SourceFormatError
from scdataloader.kernels.rows import gather
from scdataloader.protocols import ReadCost
from scdataloader.runtime.messages import did_you_mean, shown, suggestion
from scdataloader.runtime.names import name_of
from scdataloader.sources.anndata.counts import OR_ANY, Values, first_not_count
from scdataloader.sources.arrays.matrices import StoredRows
from scdataloader.sources.fingerprint import column_content, digest_of, joined
from scdataloader.sources.gene_columns import gene_id_column
from scdataloader.sources.soma.experiment import (
    ExperimentFile,
    Joinids,
    coordinates_of,
    library,
    read_table,
    tile_rows,
)
from scdataloader.sources.soma.slabs import Coordinates, SlabCache, Slabs
from scdataloader.types import CSRMatrix, CSRRows

_LAYERS, _OBSM = "layers/", "obsm/"
_CANDIDATES = ("raw", "counts", "data")
"""Layers of X that are looked at first."""
_SAMPLE = 64
"""Cells at the start, in the middle and at the end that are read when a source is opened."""
_NAMES = "obs_id"
_GENE_IDS = "var_id"
_MICROSECONDS = 0.045
"""Time of decoding a value."""


class SomaSource:
    """Cells of an experiment, in the order of their joinids. Create it with `open_soma`.

    It reads the experiment as of the time when it was opened. It holds an address and joinids, so that it can be
    pickled; copies, also those in other processes, open the experiment themselves. A process that was forked after
    TileDB was used cannot read it.
    """

    def __init__(
        self,
        file: ExperimentFile,
        measurement: str,
        obs_ids: Joinids,
        var_ids: Joinids,
        *,
        counts: str = "auto",
        values: Values = "counts",
        genes: str | None = None,
    ) -> None:
        """Look at the arrays, and at a sample of the values.

        Args:
            file: The experiment.
            measurement: Name of the measurement.
            obs_ids: The cells.
            var_ids: The genes.
            counts: As in `open_soma`.
            values: As in `open_soma`.
            genes: As in `open_soma`.

        Raises:
            KeyError: the layer, or a column of var, does not exist.
            NotCountsError: the layer, or every candidate, holds values that are not counts.
            SourceFormatError: the layer is dense, or var has no ids.
        """
        self.file, self.measurement = file, measurement
        self.path = Path(file.uri)
        self.name = name_of(self.path)
        self.n_obs = obs_ids.n
        self._obs_ids, self._var_ids, self._values = obs_ids, var_ids, values
        self._var: pd.DataFrame | None = None
        self._drop()
        with file.opened() as experiment:
            columns = list(experiment.obs.keys())
            self.matrix_keys = self._keys_of(experiment.ms[measurement])
        self._names = _NAMES if _NAMES in columns else None
        self.obs_columns = [column for column in columns if column != self._names]
        self._gene_ids = self._column_of_genes(genes)
        self.counts = self._choose(counts)
        sample = self._sample()
        self._values_per_cell = len(self._read(self.counts, sample).data) / len(sample)
        self._digest: str | None = None

    # ------------------------------------------------------------------------------------------------------- tables

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table; categoricals stay categorical. Not cached.

        Raises:
            KeyError: a column is missing; suggests the nearest ones.
        """
        for column in columns:
            if column not in self.obs_columns:
                raise KeyError(f"{self.name} has no obs column {column!r}; {suggestion(column, self.obs_columns)}")
        return self._obs(columns)

    def obs_names(self) -> pd.Index:
        """Names of the cells: the column "obs_id", or else the joinids."""
        if self._names is None:
            names: Any = self._obs_ids.array.astype(str)
        else:
            names = self._obs([self._names])[self._names]
        index: pd.Index = pd.Index(np.asarray(names, dtype=object))
        return index

    def _obs(self, columns: Sequence[str]) -> pd.DataFrame:
        if not len(columns):
            return pd.DataFrame(index=pd.RangeIndex(self.n_obs))
        with self.file.opened() as experiment:
            return read_table(experiment.obs, columns, self._obs_ids, f"obs of {self.name}")

    @property
    def var(self) -> pd.DataFrame:
        """Genes in the order of their joinids."""
        if self._var is None:
            frame = self._var_table()
            ids = frame.pop(self._gene_ids) if self._gene_ids == _GENE_IDS else frame[self._gene_ids]
            self._var = frame.set_axis(pd.Index(ids.astype(str).to_numpy(object)), axis=0)
        return self._var

    def _var_table(self) -> pd.DataFrame:
        with self.file.opened() as experiment:
            table = experiment.ms[self.measurement].var
            return read_table(table, list(table.keys()), self._var_ids, f"var of {self.name}")

    def _column_of_genes(self, given: str | None) -> str:
        frame = self._var_table()
        if given is not None and given not in frame:
            raise KeyError(f"var of {self.name} has no column {given!r}; {suggestion(given, frame.columns)}")
        found = given or gene_id_column(frame)
        if found is None:
            raise SourceFormatError(
                f"var of {self.name} has no column of gene ids ({shown(frame.columns)}); name one, as "
                f"'?genes={frame.columns[-1]}'"
            )
        return found

    @property
    def fingerprint(self) -> str:
        """Digests of obs, var and X: of the writes and the joinids, of var as a whole, and of samples of obs and X."""
        if self._digest is None:
            sample = self._sample()
            rows = self._read(self.counts, sample)
            ids = [self._obs_ids.array.tobytes(), self._var_ids.array.tobytes()]
            with self.file.opened() as experiment:
                obs = [*_writes(experiment.obs), *ids[:1]]
                x = [*_writes(experiment.ms[self.measurement].X[self.counts.removeprefix(_LAYERS)]), *ids]
                sampled = read_table(
                    experiment.obs, list(experiment.obs.keys()), Joinids.of(self._obs_ids.at(sample)), self.name
                )
            obs += [piece for column in sampled for piece in column_content(sampled[column])]
            var = [piece for column in self.var for piece in column_content(self.var[column])]
            x += [
                rows.indptr.tobytes(),
                rows.indices.astype(np.int32).tobytes(),
                rows.data.astype(np.float64).tobytes(),
            ]
            names = json.dumps(list(self.var.index)).encode()
            self._digest = joined(digest_of(obs), digest_of([names, *var]), digest_of([self.counts.encode(), *x]))
        return self._digest

    # ----------------------------------------------------------------------------------------------------- matrices

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the genes of ``var``. Thread-safe.

        Raises:
            ForkError: this process was forked after the experiment was opened.
            IndexError: a row is outside [0, n_obs).
            NotCountsError: a value is not a count, unless the source was opened with ``values="any"``.
            SourceFormatError: the experiment cannot be read.
        """
        return self._csr_rows(self._read_counts(rows), self._var_ids.n)

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """As `read`, with values and gene numbers in as few bits as they need."""
        read = self._read_counts(rows)
        return CSRMatrix(data=read.data, indices=read.indices, indptr=read.indptr)

    def read_matrix(self, key: str, rows: NDArray[np.int64]) -> CSRRows | NDArray[np.float32]:
        """Cells ``rows`` of another matrix: ``(len(rows), D)`` values of "obsm/…", sparse rows of "layers/…".

        Raises:
            KeyError: the matrix does not exist.
        """
        if key not in self.matrix_keys:
            raise KeyError(f"{self.name} has no matrix {key!r}; there are {shown(self.matrix_keys) or 'none'}")
        read = self._csr_rows(self._read(key, rows), self._slabs(key).n_columns)
        return read.to_scipy().toarray() if key.startswith(_OBSM) else read

    @property
    def read_cost(self) -> ReadCost:
        """A cell that is read alone takes half as long as all of the row of tiles that it is in."""
        slabs = self._slabs(self.counts)
        neighbour = max(1.0, self._values_per_cell * _MICROSECONDS)
        return ReadCost(cell=max(1, min(slabs.step, slabs.n_rows) // 2) * neighbour, neighbour=neighbour)

    def release(self) -> None:
        """Drop decoded rows, but for the slab that was read last: a scan goes on in it."""
        self._cache.keep_latest()

    def close(self) -> None:
        """Close the experiment, and drop everything that can be read again; a later read opens it again."""
        self.file.close()
        self._drop()

    def _drop(self) -> None:
        self._var = None
        self._cache = SlabCache()
        self._arrays: dict[str, Slabs] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_var", "_cache", "_arrays")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._drop()

    def __repr__(self) -> str:
        return f"SomaSource({self.file.uri!r}: {self.n_obs} cells, {self._var_ids.n} genes, {self.counts})"

    def _csr_rows(self, read: StoredRows, n_columns: int) -> CSRRows:
        exact = StoredRows(
            data=read.data.astype(np.float32),
            indices=read.indices.astype(np.int32),
            indptr=read.indptr,
            flags=read.flags,
        ).in_order()
        return CSRRows(data=exact.data, indices=exact.indices, indptr=exact.indptr, n_genes=n_columns)

    def _read_counts(self, rows: NDArray[np.int64]) -> StoredRows:
        read = self._read(self.counts, rows)
        if read.flags & gather.NOT_COUNTS and self._values == "counts":
            fault = self._fault(read, np.asarray(rows))
            if fault is not None:
                raise NotCountsError(
                    f"{self.name}: {self.counts} does not hold counts: {fault}, expected whole numbers from 0 up; "
                    f"choose another layer with counts='{_LAYERS}<name>' ({shown(self._layers)}){OR_ANY}"
                )
        return read

    def _read(self, key: str, rows: NDArray[np.int64]) -> StoredRows:
        library()  # in a forked process, the locks of the cache may be held for ever
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError(f"rows must be a list of integers; got shape {rows.shape}, dtype {rows.dtype}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self.n_obs):
            raise IndexError(f"{self.name} has cells 0 to {self.n_obs - 1}; got rows from {rows.min()} to {rows.max()}")
        return self._slabs(key).read(self._obs_ids.at(rows.astype(np.int64)))

    def _slabs(self, key: str) -> Slabs:
        """A matrix; looked at when it is first used."""
        if key not in self._arrays:
            with self.file.opened() as experiment:
                array = self._array(experiment, key)
                n_rows, width = array.shape
                if key.startswith(_OBSM):
                    lut = np.arange(width, dtype=np.int32)
                else:
                    lut = np.full(max(width, self._var_ids.last + 1), -1, np.int32)
                    lut[self._var_ids.array] = np.arange(self._var_ids.n, dtype=np.int32)
                self._arrays[key] = Slabs(
                    key=key,
                    n_rows=n_rows,
                    step=tile_rows(array),
                    lut=lut,
                    n_columns=int(lut.max(initial=-1)) + 1,
                    read_coordinates=partial(self._coordinates, key),
                    cache=self._cache,
                )
        return self._arrays[key]

    def _coordinates(self, key: str, first: int, last: int) -> list[Coordinates]:
        with self.file.opened() as experiment:
            return coordinates_of(self._array(experiment, key), first, last)

    def _array(self, experiment: Any, key: str) -> Any:
        group, _, name = key.partition("/")
        measurement = experiment.ms[self.measurement]
        return (measurement.X if group == "layers" else measurement.obsm)[name]

    def _keys_of(self, measurement: Any) -> list[str]:
        """Keys of the sparse layers of X, and of the sparse matrices of obsm."""
        keys = []
        for group, prefix in (("X", _LAYERS), ("obsm", _OBSM)):
            arrays = measurement.get(group, {})
            keys += [prefix + name for name in arrays if isinstance(arrays[name], library().SparseNDArray)]
        return keys

    @property
    def _layers(self) -> list[str]:
        return [key for key in self.matrix_keys if key.startswith(_LAYERS)]

    def _choose(self, counts: str) -> str:
        """Key of the layer that holds the counts; see `open_soma`."""
        layers = self._layers
        if counts != "auto":
            key = counts if counts.startswith(_LAYERS) else _LAYERS + counts
            if key not in layers:
                raise KeyError(
                    f"measurement {self.measurement!r} of {self.name} has no layer "
                    f"{key.removeprefix(_LAYERS)!r} of X{did_you_mean(key, layers)}; set counts to one of "
                    f"{shown(layers) or 'no sparse layers'}"
                )
            layers = [key]
        if not layers:
            raise SourceFormatError(
                f"measurement {self.measurement!r} of {self.name} has no sparse layer of X, expected one with counts; "
                "write it with X_kind=tiledbsoma.SparseNDArray"
            )
        first = [_LAYERS + name for name in _CANDIDATES if _LAYERS + name in layers]
        ordered = [*first, *(key for key in layers if key not in first)]
        faults = []
        for key in ordered if self._values == "counts" else ():
            fault = self._sampled_fault(key)
            if fault is None:
                return key
            faults.append(f"{key}: {fault}")
        if faults:
            raise NotCountsError(
                f"{self.name}: no counts found ({'; '.join(faults)}), expected whole numbers from 0 up in a layer of "
                f"X; there are {shown(self._layers)}{OR_ANY}"
            )
        return ordered[0]

    def _sample(self) -> NDArray[np.int64]:
        """Some rows from the start, the middle and the end."""
        n = min(_SAMPLE, self.n_obs)
        starts = (0, (self.n_obs - n) // 2, self.n_obs - n)
        return np.unique(np.concatenate([np.arange(start, start + n) for start in starts]))

    def _sampled_fault(self, key: str) -> str | None:
        rows = self._sample()
        read = self._read(key, rows)
        return self._fault(read, rows) if read.flags & gather.NOT_COUNTS else None

    def _fault(self, read: StoredRows, rows: NDArray[np.int64]) -> str | None:
        """The first value that is not a count, and where it is."""
        at = first_not_count(read.data)
        if at is None:
            return None
        gene = int(read.indices[at])
        return f"{read.data[at]!s} at cell {rows[read.row_of(at)]}, gene {gene} ({self.var.index[gene]})"


def _writes(array: Any) -> list[bytes]:
    """What changes with every write to an array, as far as it is known without reading it."""
    folder = Path(array.uri.removeprefix("file://")) / "__fragments"
    limit = array.tiledb_timestamp_ms
    fragments = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    written = [name for name in fragments if int(name.split("_")[2]) <= limit]
    return [json.dumps([str(array.schema), array.non_empty_domain(), written]).encode()]
