"""CellDataset: AnnData files as a map-style torch dataset, item for item what lamindb's MappedCollection gives."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray
from torch.utils.data import Dataset

from scdataloader.integrations.columns import make_encoder, read_column
from scdataloader.integrations.stored import Columns, StoredMatrix
from scdataloader.lamin.collections import is_lamin, resolve_lamin
from scdataloader.sources.anndata.file import AnnDataFile
from scdataloader.sources.anndata.layout import frame_length, read_frame

Item = dict[str, Any]


class CellDataset(Dataset[Item]):
    """Cells of several AnnData files as dense rows over shared genes, with labels.

    The arguments and the items are those of ``lamindb.core.MappedCollection`` (2.12), so that it can take its place:
    an item is ``{"_store_idx": which file, <layer>: (n_vars,) row, "obsm_<key>": row, <obs key>: label}``, rows in the
    dtype in which they are stored unless ``dtype`` is given. A layer or obsm that a file lacks is not in its items.
    What differs, because MappedCollection's answer stops a training or makes it wrong without a word:

    - an obs key that a file lacks gives −1 there (NaN where it is not encoded), not an item without the key;
    - a missing label (NaN) is −1 where it is encoded, not NaN, and never has a code of its own;
    - ``get_label_weights`` has one weight for each item also where a file lacks the key;
    - ``obs_filter`` takes a key that a file lacks for missing there, so NaN selects its cells;
    - an obs key, layer or obsm that is in no file at all is an error.

    A batch is read in one sorted pass over each file (torch's DataLoader asks for it through ``__getitems__``). Workers
    may be forked or spawned; each opens the files itself, and needs no ``worker_init_fn``.

    Args:
        paths: .h5ad files and .zarr folders, ``"lamindb:<key>"``, a lamindb collection or artifacts; one or a list.
        layers_keys: Matrices to give: ``"X"`` (if None), ``"raw.X"`` (never joined), or names of layers.
        obs_keys: Columns of obs to give.
        obsm_keys: Arrays of obsm to give.
        obs_filter: Values to keep, by obs column; a cell is kept if it passes for all columns.
        join: Genes of X and layers: those of all files ("inner"), of any ("outer", zeros elsewhere), or each file's
            own (None). Files with equal genes are never joined.
        encode_labels: Give codes for all ``obs_keys``, or for these, from 0 in the order of the sorted labels of all
            files; categories that no cell has count too.
        unknown_label: The label that is −1 instead, for all keys or by key.
        dtype: What to convert X, layers and obsm to.

    Raises:
        ValueError: an argument contradicts another, files share no gene, or a matrix is not stored by rows.
        KeyError: no file has one of the keys.
        FileNotFoundError: a path does not exist.
    """

    def __init__(  # noqa: PLR0913 -- MappedCollection's arguments
        self,
        paths: Any,
        *,
        layers_keys: list[str] | str | None = None,
        obs_keys: list[str] | str | None = None,
        obsm_keys: list[str] | str | None = None,
        obs_filter: Mapping[str, Any] | None = None,
        join: Literal["inner", "outer"] | None = "inner",
        encode_labels: list[str] | bool = True,
        unknown_label: dict[str, str] | str | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        if join not in {None, "inner", "outer"}:
            raise ValueError(f"join must be 'inner', 'outer' or None, got {join!r}")
        self.layers_keys = _listed(layers_keys) or ["X"]
        self.obs_keys = _listed(obs_keys)
        self.obsm_keys = _listed(obsm_keys)
        encoded = _encoded_keys(encode_labels, self.obs_keys, unknown_label)
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._files = [AnnDataFile(Path(path)) for path in _paths(paths)]
        with ExitStack() as opened:
            # a forked worker shall not inherit open files, nor a failure leave them behind
            for file in self._files:
                opened.callback(file.close)
            self._rows = _kept_rows(self._files, obs_filter or {})
            self._offsets = np.cumsum([0, *map(len, self._rows)])
            self.var_joint, to_joint = _join_genes(self._files, join)
            self._matrices = [self._find_matrices(file, to) for file, to in zip(self._files, to_joint, strict=True)]
            _check_found([*self.layers_keys, *(f"obsm_{key}" for key in self.obsm_keys)], self._matrices, self._files)
            self._labels = {key: read_column(self._files, key) for key in self.obs_keys}
        self.encoders: dict[str, dict[Any, int]] = {}
        for key in encoded:
            unknown = unknown_label.get(key) if isinstance(unknown_label, dict) else unknown_label
            self.encoders[key] = make_encoder(key, self._labels[key], unknown)
            self._labels[key] = [column.encoded(self.encoders[key]) for column in self._labels[key]]

    def _find_matrices(self, file: AnnDataFile, to_joint: Columns) -> dict[str, _Joined]:
        found = {}
        for key in self.layers_keys:
            # before anndata 0.7 the parts of raw lay at the top, with a dot in their names
            places = {"X": ["X"], "raw.X": ["raw/X", "raw.X"]}.get(key, [f"layers/{key}"])
            stored = next((matrix for place in places if (matrix := StoredMatrix.find(file, place))), None)
            if stored is not None:
                to = None if key == "raw.X" else to_joint
                shape = stored.shape[1:] if to is None else (self.n_vars,)
                found[key] = _Joined(stored=stored, to=to, shape=shape)
        for key in self.obsm_keys:
            stored = StoredMatrix.find(file, f"obsm/{key}")
            if stored is not None:
                found[f"obsm_{key}"] = _Joined(stored=stored, to=None, shape=stored.shape[1:])
        return found

    @property
    def n_obs(self) -> int:
        """Number of cells that pass ``obs_filter``."""
        return int(self._offsets[-1])

    @property
    def n_vars(self) -> int | None:
        """Number of joint genes; None if ``join`` is."""
        return None if self.var_joint is None else len(self.var_joint)

    @property
    def shape(self) -> tuple[int, int | None]:
        """``(n_obs, n_vars)``."""
        return self.n_obs, self.n_vars

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: int) -> Item:
        """One cell; a negative number counts from the end.

        Raises:
            IndexError: there is no such cell.
            TypeError: ``index`` is not an integer.
        """
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Cells in the order asked for, repeats allowed; the arrays of a batch share memory."""
        wanted = np.asarray(indices, dtype=np.int64)
        numbers = np.where(wanted < 0, wanted + self.n_obs, wanted)
        if outside := wanted[(numbers < 0) | (numbers >= self.n_obs)].tolist():
            raise IndexError(f"cell {outside[0]} is out of range, the dataset has {self.n_obs} cells")
        files = np.searchsorted(self._offsets, numbers, side="right") - 1
        items: list[Item] = [{"_store_idx": file} for file in files]
        for file in np.unique(files).tolist():
            places = np.flatnonzero(files == file)
            rows = self._rows[file][numbers[places] - self._offsets[file]]
            for key, values in self._read(file, rows):
                for place, value in zip(places.tolist(), values, strict=True):
                    items[place][key] = value
        return items

    def _read(self, file: int, rows: NDArray[np.int64]) -> Iterator[tuple[str, Iterable[Any]]]:
        for key, matrix in self._matrices[file].items():
            out = np.zeros((len(rows), *matrix.shape), self._dtype or matrix.stored.dtype)
            matrix.stored.fill(out, np.arange(len(rows)), rows, matrix.to)
            yield key, out
        for key, columns in self._labels.items():
            labels = columns[file].take(rows)
            yield key, labels.tolist() if key in self.encoders else labels

    def get_label_weights(
        self,
        obs_keys: list[str] | str,
        scaler: float | None = None,
        *,
        return_categories: bool = False,
    ) -> NDArray[np.float64] | dict[str, float]:
        """Weight each cell by the inverse of how many share its label, or its joint labels: ``1 / count``.

        Args:
            obs_keys: Columns of obs; the labels of several are joined by ``"__"``. A missing label is ``"nan"``.
            scaler: Give ``scaler / (count + scaler)`` instead.
            return_categories: Give a weight for each label instead of ``(len(self),)`` weights of the cells.

        Raises:
            KeyError: no file has one of the columns.
        """
        first, *others = (self._label_strings(key) for key in _listed(obs_keys))
        merged = reduce(lambda joint, part: joint + "__" + part, others, first)
        codes, labels = pd.factorize(merged)
        counts = np.bincount(codes, minlength=len(labels))
        weights = 1.0 / counts if scaler is None else scaler / (counts + scaler)
        if return_categories:
            return dict(zip(labels.tolist(), weights.tolist(), strict=True))
        return np.asarray(weights[codes])

    def _label_strings(self, key: str) -> NDArray[np.object_]:
        columns = read_column(self._files, key)
        merged = np.hstack([column.take(rows) for column, rows in zip(columns, self._rows, strict=True)])
        return merged.astype(str).astype(object)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        for file, matrices in zip(self._files, self._matrices, strict=True):
            file.close()
            for matrix in matrices.values():
                matrix.stored.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Joined:
    """A matrix of one file, and its place in the items."""

    stored: StoredMatrix
    """The matrix."""
    to: Columns
    """Where its columns go."""
    shape: tuple[Any, ...]
    """Of one row of an item."""


def _listed(keys: list[str] | str | None) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys or [])


def _paths(data: Any) -> list[str | PathLike[str]]:
    if is_lamin(data):
        return [found.path for found in resolve_lamin(data)]
    if isinstance(data, str | PathLike):
        return [data]
    paths = [path for item in data for path in _paths(item)]
    if not paths:
        raise ValueError("no data: give at least one path to an .h5ad file or a .zarr folder")
    return paths


def _encoded_keys(encode: list[str] | bool, keys: list[str], unknown: dict[str, str] | str | None) -> list[str]:  # noqa: FBT001
    encoded = list(encode) if isinstance(encode, Iterable) else keys if encode else []
    if stray := [key for key in encoded if key not in keys]:
        raise ValueError(f"encode_labels names {stray}, which obs_keys {keys} does not; add them there")
    if encoded and isinstance(unknown, dict) and (stray := [key for key in unknown if key not in encoded]):
        raise ValueError(f"unknown_label names {stray}, which are not encoded: only {encoded} are")
    return encoded


def _kept_rows(files: Sequence[AnnDataFile], obs_filter: Mapping[str, Any]) -> list[NDArray[np.int64]]:
    """Rows of each file that pass the filter."""
    kept = [np.ones(frame_length(file.root["obs"]), bool) for file in files]
    for key, values in obs_filter.items():
        wanted = list(values) if isinstance(values, list | tuple) else [values]
        known = [value for value in wanted if not pd.isna(value)]
        for i, column in enumerate(read_column(files, key)):
            passes = np.append(np.isin(column.categories, known), len(known) < len(wanted))
            kept[i] &= passes[column.codes]
    return [np.flatnonzero(mask) for mask in kept]


def _join_genes(
    files: Sequence[AnnDataFile], join: Literal["inner", "outer"] | None
) -> tuple[pd.Index[Any] | None, list[Columns]]:
    """The joint genes, and where each file's genes lie among them."""
    as_stored: list[Columns] = [None] * len(files)
    if join is None:
        return None, as_stored
    genes = [read_frame(file.root, "var").index for file in files]
    if all(genes[0].equals(other) for other in genes[1:]):
        return genes[0], as_stored
    for file, names in zip(files, genes, strict=True):
        if not names.is_unique:
            twice = names[names.duplicated()][:3].tolist()
            raise ValueError(
                f"{file.path} names genes more than once ({twice}): make var_names unique, or use join=None"
            )
    joint = reduce(pd.Index.intersection if join == "inner" else pd.Index.union, genes)
    if not len(joint):
        examples = ", ".join(
            f"{file.path.name}: {names[:3].tolist()}" for file, names in zip(files, genes, strict=True)
        )
        raise ValueError(f"the files share no gene ({examples}): check what var_names holds, or use join='outer'")
    return joint, [joint.get_indexer(names) for names in genes]


def _check_found(keys: Iterable[str], matrices: Sequence[Mapping[str, object]], files: Sequence[AnnDataFile]) -> None:
    for key in keys:
        if not any(key in found for found in matrices):
            root = files[0].root
            there = [f"{group}/{name}" for group in ("layers", "obsm") if group in root for name in sorted(root[group])]
            raise KeyError(f"no file has {key!r}; {files[0].path} has X{''.join(f', {name}' for name in there)}")
