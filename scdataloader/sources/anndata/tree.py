"""Nodes that stand for groups and tables of an AnnData: in memory, or over the groups of another format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group(Mapping[str, Any]):
    """Nodes by name, like a group of h5py or zarr."""

    nodes: Mapping[str, Any]
    """Groups, tables, and arrays of NumPy, h5py or zarr."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Attributes, such as the encoding of a sparse matrix."""
    path: str = ""
    """The file or object, for messages; of the root group."""

    def __getitem__(self, name: str) -> Any:
        first, _, rest = name.partition("/")
        return self.nodes[first][rest] if rest else self.nodes[first]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @classmethod
    def of_sparse(cls, kind: str, shape: Sequence[int], **arrays: Any) -> Self:
        """A sparse matrix: "csr" or "csc", with ``data``, ``indices`` and ``indptr``."""
        return cls(nodes=arrays, attrs={"encoding-type": f"{kind}_matrix", "shape": shape})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """A table of cells or genes."""

    columns: Sequence[str]
    """Names of the columns, without the index."""
    n_rows: int
    """Number of rows."""
    read: Callable[[], pd.DataFrame]
    """Returns the whole table, with its index."""

    @classmethod
    def of_frame(cls, frame: pd.DataFrame) -> Self:
        """A table in memory."""
        return cls(columns=list(map(str, frame.columns)), n_rows=len(frame), read=partial(_itself, frame))


def _itself(frame: pd.DataFrame) -> pd.DataFrame:
    return frame
