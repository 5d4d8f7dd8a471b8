"""CellDataset: AnnData files as a map-style torch dataset with the items of lamindb's MappedCollection."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import DTypeLike, NDArray
from torch.utils.data import Dataset

from scdataloader.errors import SourceFormatError
from scdataloader.lamin.collections import is_lamin, resolve_lamin
from scdataloader.sources import AnnDataFile, open_file
from scdataloader.sources.anndata.layout import MatrixLayout, matrix_keys

Item = dict[str, Any]
Columns = NDArray[np.int64] | None
_MISSING = -1
"""Code of a missing label."""


class CellDataset(Dataset[Item]):
    """Cells of several AnnData files as dense rows over shared genes, with labels.

    Arguments, members and items are those of ``lamindb.core.MappedCollection`` (2.12), which it can replace, but for
    its open files (``storages``, ``conns``). An item is ``{"_store_idx": number of the file, <layer>: (n_vars,) row,
    "obsm_<key>": row, <obs key>: label}``, with rows in the stored dtype unless ``dtype`` is given. A layer or obsm
    that a file lacks is missing from its items. Where the answers of MappedCollection stop a training or make it
    silently wrong, they differ:

    - an obs key that a file lacks is −1 there (NaN where it is not encoded), not missing from the item;
    - a missing label (NaN) is −1 where it is encoded, not NaN, and never has a code;
    - ``get_merged_labels`` and ``get_label_weights`` have one value for each item, also if a file lacks the key;
    - ``obs_filter`` treats a key that a file lacks as missing values, so NaN selects the cells of the file;
    - ``"_index"`` is the cell's name in every file, whatever the name of the index;
    - an obs key, layer or obsm that no file has is an error.

    A batch is read in one pass over each file (torch's DataLoader calls ``__getitems__``). Workers may be forked or
    spawned; each opens the files itself, without a ``worker_init_fn``.

    Args:
        path_list: .h5ad files and .zarr folders, ``"lamindb:<key>"``, a lamindb collection or artifacts, AnnData
            objects; one or a list.
        layers_keys: Matrices of the items: ``"X"`` (if None), ``"raw.X"`` (never joined), or names of layers.
        obs_keys: Columns of obs of the items; ``"_index"``, or the index's own name, for the names of the cells.
        obsm_keys: Arrays of obsm of the items.
        obs_filter: Values to keep, by obs column; a cell is kept if it passes for all columns.
        join: Genes of X and layers: those of all files ("inner"), of any file ("outer", zeros elsewhere), or the own
            genes of each file (None). Files with equal genes are never joined.
        encode_labels: Replace labels by codes for all ``obs_keys``, or for the listed ones: from 0, in the order of the
            sorted labels of all files, unused categories included.
        unknown_label: The label whose code is −1, for all keys or by key.
        cache_categories: No effect: labels are always in memory.
        parallel: No effect: files can always be read from several processes.
        dtype: Type of the rows of X, layers and obsm.
        obs_names: Whether items have the name of the cell, under "obs_names"; MappedCollection has none.

    Raises:
        ValueError: an argument contradicts another, files share no gene, or a matrix is not stored by rows.
        KeyError: no file has one of the keys.
        FileNotFoundError: a path does not exist.
    """

    def __init__(  # noqa: PLR0913, PLR0917 -- MappedCollection's arguments
        self,
        path_list: Any,
        layers_keys: list[str] | str | None = None,
        obs_keys: list[str] | str | None = None,
        obsm_keys: list[str] | str | None = None,
        obs_filter: Mapping[str, Any] | tuple[str, Any] | None = None,
        join: Literal["inner", "outer"] | None = "inner",
        encode_labels: list[str] | bool = True,  # noqa: FBT001, FBT002
        unknown_label: dict[str, str] | str | None = None,
        cache_categories: bool = True,  # noqa: ARG002, FBT001, FBT002
        parallel: bool = False,  # noqa: FBT001, FBT002
        dtype: DTypeLike | None = None,
        *,
        obs_names: bool = False,
    ) -> None:
        if join not in {None, "inner", "outer"}:
            raise ValueError(f"join must be 'inner', 'outer' or None, got {join!r}")
        self.path_list = path_list
        self.layers_keys = _listed(layers_keys) or ["X"]
        self.obs_keys = None if obs_keys is None else _listed(obs_keys)
        self.obsm_keys = None if obsm_keys is None else _listed(obsm_keys)
        encoded = _encoded_keys(encode_labels, self.obs_keys or [], unknown_label)
        self.encode_labels: list[str] | Literal[False] = encoded or False
        self.unknown_label = unknown_label
        self.parallel = parallel
        self.filtered = obs_filter is not None
        self._names: list[NDArray[Any]] = []
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._files = [open_file(place) for place in _places(path_list)]
        self._closed = False
        if obs_names:
            self._names = [file.obs_names().astype(str).to_numpy() for file in self._files]
        self.indices_list = _kept_rows(self._files, dict([obs_filter]) if isinstance(obs_filter, tuple) else obs_filter)
        self.n_obs_list = list(map(len, self.indices_list))
        self._offsets = np.cumsum([0, *self.n_obs_list])
        self.var_list: list[pd.Index[Any]] | None = None if join is None else self._read_vars()
        self.var_joint, self._to_joint = _join_genes(self._files, self.var_list or [], join)
        self.join_vars = None if self._to_joint is None else join
        self._matrices = [self._find_matrices(number) for number in range(len(self._files))]
        keys = [*self.layers_keys, *(f"obsm_{key}" for key in self.obsm_keys or [])]
        _check_found(keys, self._matrices, self._files[0])
        self._labels = {key: _read_column(self._files, key) for key in self.obs_keys or []}
        self.encoders: dict[str, dict[Any, int]] = {}
        for key in encoded:
            unknown = unknown_label.get(key) if isinstance(unknown_label, dict) else unknown_label
            self.encoders[key] = _make_encoder(_merged_categories(key, self._labels[key]), unknown)
            self._labels[key] = [column.encoded(self.encoders[key]) for column in self._labels[key]]

    def _find_matrices(self, number: int) -> dict[str, _Matrix]:
        file, to_joint = self._files[number], None if self._to_joint is None else self._to_joint[number]
        keys = {key: {"X": "X", "raw.X": "raw"}.get(key, f"layers/{key}") for key in self.layers_keys}
        keys |= {f"obsm_{key}": f"obsm/{key}" for key in self.obsm_keys or []}
        found = {}
        for key, stored_key in keys.items():
            stored = file.find_matrix(stored_key)
            if stored is None:
                continue
            if stored.kind == "csc":
                raise SourceFormatError(
                    f"{stored_key} in {file.path} is stored as csc, expected a CSR matrix or a dense array; "
                    "write it again from scipy.sparse.csr_matrix(...)"
                )
            to = to_joint if stored.var == "var" else None
            found[key] = _Matrix(
                file=file, stored=stored, to=to, row_shape=stored.row_shape if to is None else (self.n_vars,)
            )
        return found

    def _read_vars(self) -> list[pd.Index[Any]]:
        return [file.var_names() for file in self._files]

    @property
    def n_obs(self) -> int:
        """Number of cells that pass ``obs_filter``."""
        return int(self._offsets[-1])

    @property
    def n_vars(self) -> int | None:
        """Number of joint genes; None if ``join`` is None."""
        return None if self.var_joint is None else len(self.var_joint)

    @property
    def shape(self) -> tuple[int, int | None]:
        """``(n_obs, n_vars)``."""
        return self.n_obs, self.n_vars

    @property
    def n_vars_list(self) -> list[int] | None:
        """Number of genes of each file; None if ``join`` is None, until a method has read the genes."""
        return None if self.var_list is None else list(map(len, self.var_list))

    @property
    def original_shapes(self) -> list[tuple[int, int | None]]:
        """Cells that pass ``obs_filter``, and ``n_vars_list``, of each file."""
        n_vars: Sequence[int | None] = self.n_vars_list or [None] * len(self._files)
        return list(zip(self.n_obs_list, n_vars, strict=True))

    @property
    def var_indices(self) -> list[NDArray[np.int64]] | None:
        """Of each file the number of each joint gene (inner), or the joint number of each gene (outer)."""
        if self.join_vars is None or self.var_list is None or self.var_joint is None:
            return None
        joint = self.var_joint
        pairs = ((names, joint) if self.join_vars == "inner" else (joint, names) for names in self.var_list)
        return [where.get_indexer(names) for where, names in pairs]

    @property
    def indices(self) -> NDArray[np.int64]:
        """``(n_obs,)`` row of each item in its file."""
        return np.hstack(self.indices_list)

    @property
    def storage_idx(self) -> NDArray[np.int64]:
        """``(n_obs,)`` number of the file of each item."""
        return np.repeat(np.arange(len(self._files)), self.n_obs_list)

    @property
    def closed(self) -> bool:
        """Whether the files are closed."""
        return self._closed

    def check_vars_sorted(self, ascending: bool = True) -> bool:  # noqa: FBT001, FBT002
        """Whether the genes of every file are in the order of their names."""
        self.var_list = self.var_list or self._read_vars()
        order = "is_monotonic_increasing" if ascending else "is_monotonic_decreasing"
        return all(getattr(names, order) for names in self.var_list)

    def check_vars_non_aligned(self, vars: pd.Index[Any] | list[str]) -> list[int]:  # noqa: A002
        """Numbers of the files whose genes are not these, in this order."""
        self.var_list = self.var_list or self._read_vars()
        return [number for number, names in enumerate(self.var_list) if not names.equals(pd.Index(vars))]

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: int) -> Item:
        """One cell; a negative number counts from the end.

        Raises:
            IndexError: ``index`` is out of range.
            TypeError: ``index`` is not an integer.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Cells in the order of ``indices``, repeats allowed; the arrays of a batch share memory."""
        requested = np.asarray(indices, dtype=np.int64)
        numbers = np.where(requested < 0, requested + self.n_obs, requested)
        if outside := requested[(numbers < 0) | (numbers >= self.n_obs)].tolist():
            raise IndexError(f"cell {outside[0]} is out of range, the dataset has {self.n_obs} cells")
        self._closed = False
        files = np.searchsorted(self._offsets, numbers, side="right") - 1
        items: list[Item] = [{"_store_idx": file} for file in files]
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            rows = self.indices_list[file][numbers[places] - self._offsets[file]]
            for key, values in self._read(file, rows):
                for place, value in zip(places.tolist(), values, strict=True):
                    items[place][key] = value
        return items

    def _read(self, file: int, rows: NDArray[np.int64]) -> Iterator[tuple[str, Iterable[Any]]]:
        for key, matrix in self._matrices[file].items():
            yield key, matrix.read(rows, self._dtype)
        for key, columns in self._labels.items():
            labels = columns[file].take(rows)
            yield key, labels.tolist() if key in self.encoders else labels
        if self._names:
            yield "obs_names", self._names[file][rows]

    def get_label_weights(
        self,
        obs_keys: list[str] | str,
        scaler: float | None = None,
        return_categories: bool = False,  # noqa: FBT001, FBT002
    ) -> NDArray[np.float64] | dict[str, float]:
        """Weight of each cell: ``1 / count``, for the number of cells with the same label, or the same joint labels.

        Args:
            obs_keys: Columns of obs; the labels of several are joined by ``"__"``. A missing label is ``"nan"``.
            scaler: Return ``scaler / (count + scaler)`` instead.
            return_categories: Return a weight for each label instead of ``(len(self),)`` weights of the cells.

        Raises:
            KeyError: no file has one of the columns.
        """
        first, *others = (self.get_merged_labels(key).astype(str).astype(object) for key in _listed(obs_keys))
        codes, labels = pd.factorize(reduce(lambda joint, part: joint + "__" + part, others, first))
        counts = np.bincount(codes, minlength=len(labels))
        weights = 1.0 / counts if scaler is None else scaler / (counts + scaler)
        if return_categories:
            return dict(zip(labels.tolist(), weights.tolist(), strict=True))
        return np.asarray(weights[codes])

    def get_merged_labels(self, label_key: str) -> NDArray[Any]:
        """``(n_obs,)`` labels of a column of obs, not encoded; NaN where they are missing.

        Raises:
            KeyError: no file has the column.
        """
        columns = _read_column(self._files, label_key)
        return np.hstack([column.take(rows) for column, rows in zip(columns, self.indices_list, strict=True)])

    def get_merged_categories(self, label_key: str) -> list[Any]:
        """Sorted labels of a column of obs in all files, with unused categories and without missing values.

        Raises:
            KeyError: no file has the column.
            TypeError: the labels have no common order.
        """
        return _merged_categories(label_key, _read_column(self._files, label_key))

    @classmethod
    def torch_worker_init_fn(cls, worker_id: int) -> None:
        """No effect, as a ``worker_init_fn``: every process opens the files itself."""

    def close(self) -> None:
        """Close the files; reading opens them again."""
        for file in self._files:
            file.close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Matrix:
    """A matrix of one file, and its place in the items."""

    file: AnnDataFile
    """The file."""
    stored: MatrixLayout
    """The matrix."""
    to: Columns
    """The column of an item for each column of the matrix, -1 for none; None if they are the same."""
    row_shape: tuple[Any, ...]
    """Shape of a row of an item."""

    def read(self, rows: NDArray[np.int64], dtype: np.dtype[Any] | None) -> NDArray[Any]:
        """``(len(rows), *row_shape)`` dense rows; of the stored type if ``dtype`` is None."""
        out = np.zeros((len(rows), *self.row_shape), dtype or self.stored.dtype)
        if self.stored.kind == "dense":
            block = self.file.read_dense(self.stored, rows).reshape(len(rows), *self.stored.row_shape)
            if self.to is None:
                out[:] = block
            else:
                out[:, self.to[self.to >= 0]] = block[:, self.to >= 0]
            return out
        read = self.file.read_exact(self.stored, rows)
        cells, columns, data = np.repeat(np.arange(len(rows)), np.diff(read.indptr)), read.indices, read.data
        if self.to is not None:
            columns = self.to[columns]
            kept = columns >= 0
            cells, columns, data = cells[kept], columns[kept], data[kept]
        out[cells, columns] = data
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _LabelColumn:
    """A column of the obs of one file, as codes and categories whatever its type."""

    codes: NDArray[np.integer[Any]]
    """``(n_obs,)`` number of the category of each cell, -1 where the label is missing."""
    categories: NDArray[Any]
    """Labels, or their codes."""
    missing: Any = np.nan
    """Value of a missing label."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The labels of some cells, in the dtype of the categories if it can hold all of them."""
        codes = self.codes[rows]
        known = codes >= 0
        if known.all():
            return np.asarray(self.categories[codes])
        holds = self.categories.dtype.kind == "f" or not isinstance(self.missing, float)
        out = np.full(len(rows), self.missing, self.categories.dtype if holds else object)
        out[known] = self.categories[codes[known]]
        return out

    def encoded(self, encoder: Mapping[Any, int]) -> _LabelColumn:
        """The same column with codes for labels."""
        codes = np.array([encoder[label] for label in self.categories.tolist()], np.int64)
        return _LabelColumn(codes=self.codes, categories=codes, missing=_MISSING)


def _read_column(files: Sequence[AnnDataFile], key: str) -> list[_LabelColumn]:
    """A column of each file; all missing where a file lacks it."""
    columns = [_label_column(file, key) for file in files]
    if all(column is None for column in columns):
        known = sorted({column for file in files for column in file.obs_columns})
        raise KeyError(f"no file has the obs column {key!r}; there are {', '.join(known) or 'none'}")
    return [
        column or _LabelColumn(codes=np.full(file.n_obs, _MISSING, np.int8), categories=np.empty(0, object))
        for file, column in zip(files, columns, strict=True)
    ]


def _label_column(file: AnnDataFile, key: str) -> _LabelColumn | None:
    if key in file.obs_columns:
        values = file.obs([key])[key]
    else:
        names = file.obs_names()
        if key not in {"_index", names.name}:
            return None
        values = pd.Series(names)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return _LabelColumn(codes=values.cat.codes.to_numpy(), categories=values.cat.categories.to_numpy())
    codes, categories = pd.factorize(values)
    return _LabelColumn(codes=codes, categories=categories.to_numpy())


def _merged_categories(key: str, columns: Iterable[_LabelColumn]) -> list[Any]:
    labels = {label for column in columns for label in column.categories.tolist()}
    try:
        return sorted(labels)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in labels})
        raise TypeError(
            f"labels of obs column {key!r} have several types ({', '.join(kinds)}), which cannot be sorted; "
            "write the column with one type, or leave it out of encode_labels"
        ) from error


def _make_encoder(labels: Iterable[Any], unknown: str | None) -> dict[Any, int]:
    """Codes from 0 for sorted labels; -1 for ``unknown``, if it is one of them."""
    known = [label for label in labels if label != unknown]
    return ({unknown: _MISSING} if unknown in labels else {}) | {label: code for code, label in enumerate(known)}


def _listed(keys: list[str] | str | None) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys or [])


def _places(data: Any) -> list[str | PathLike[str] | AnnData]:
    """Paths and AnnData objects, in order."""
    if is_lamin(data):
        return [found.path for found in resolve_lamin(data)]
    if isinstance(data, str | PathLike) or not isinstance(data, Iterable):
        return [data]
    places = [place for item in data for place in _places(item)]
    if not places:
        raise ValueError("no data: give at least one path to an .h5ad file or a .zarr folder, or an AnnData")
    return places


def _encoded_keys(encode: list[str] | bool, keys: list[str], unknown: dict[str, str] | str | None) -> list[str]:  # noqa: FBT001
    encoded = list(encode) if isinstance(encode, Iterable) else keys if encode else []
    if stray := [key for key in encoded if key not in keys]:
        raise ValueError(f"encode_labels names {stray}, which are not in obs_keys {keys}; add them there")
    if encoded and isinstance(unknown, dict) and (stray := [key for key in unknown if key not in encoded]):
        raise ValueError(f"unknown_label names {stray}, which are not encoded; encoded are {encoded}")
    return encoded


def _kept_rows(files: Sequence[AnnDataFile], obs_filter: Mapping[str, Any] | None) -> list[NDArray[np.int64]]:
    """Rows of each file that pass the filter."""
    kept = [np.ones(file.n_obs, bool) for file in files]
    for key, values in (obs_filter or {}).items():
        wanted = list(values) if isinstance(values, list | tuple) else [values]
        known = [value for value in wanted if not pd.isna(value)]
        for i, column in enumerate(_read_column(files, key)):
            passes = np.append(np.isin(column.categories, known), len(known) < len(wanted))
            kept[i] &= passes[column.codes]
    return [np.flatnonzero(mask) for mask in kept]


def _join_genes(
    files: Sequence[AnnDataFile], genes: Sequence[pd.Index[Any]], join: Literal["inner", "outer"] | None
) -> tuple[pd.Index[Any] | None, list[NDArray[np.int64]] | None]:
    """The joint genes, and the number among them of each gene of each file, -1 for none; None if they are the same."""
    if join is None:
        return None, None
    if all(genes[0].equals(other) for other in genes[1:]):
        return genes[0], None
    for file, names in zip(files, genes, strict=True):
        if not names.is_unique:
            twice = names[names.duplicated()][:3].tolist()
            raise ValueError(
                f"{file.path} names genes more than once ({twice}); make var_names unique, or use join=None"
            )
    joint = reduce(pd.Index.intersection if join == "inner" else pd.Index.union, genes)
    if not len(joint):
        examples = ", ".join(
            f"{file.path.name}: {names[:3].tolist()}" for file, names in zip(files, genes, strict=True)
        )
        raise ValueError(f"the files share no gene ({examples}); check var_names, or use join='outer'")
    return joint, [joint.get_indexer(names) for names in genes]


def _check_found(keys: Iterable[str], matrices: Sequence[Mapping[str, object]], file: AnnDataFile) -> None:
    """Check that some file has a matrix for every key; ``file`` serves as the example in the message."""
    for key in keys:
        if not any(key in found for found in matrices):
            with file.opened() as root:
                there = [name for group in ("layers", "obsm") for name in matrix_keys(root, group)]
            raise KeyError(f"no file has {key!r}; {file.path} has {', '.join(['X', *there])}")
