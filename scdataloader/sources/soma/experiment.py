"""Experiments of TileDB-SOMA: where one is, as of which time, and its open arrays in this process."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from scdataloader.errors import ForkError, ScDataLoaderError, SourceFormatError
from scdataloader.runtime.files import is_url, local_path
from scdataloader.runtime.messages import nearest, shown, suggestion
from scdataloader.sources.soma.slabs import Coordinates

JOINID = "soma_joinid"
_BUFFERS = "soma.init_buffer_bytes"
_BUFFER_BYTES = 2 << 20
"""Bytes of each buffer that a read fills: larger ones are slower, since their pages are new every time."""
_POINTS = 20
"""Rows of a table per wanted row, from which on the wanted rows are named one by one."""
_COLUMN = re.compile(r"Column (\S+) does not exist")

_process: int | None = None
"""The process that uses the library, which starts threads that a forked process does not have."""


def library() -> Any:
    """The module ``tiledbsoma``.

    Raises:
        ModuleNotFoundError: it is not installed.
        ForkError: this process was forked after the library was used.
    """
    global _process  # noqa: PLW0603 (one library in a process)
    if _process not in (None, os.getpid()):
        raise ForkError(
            "TileDB-SOMA was used before this process was forked, and would wait for ever in it; start processes by "
            "'spawn' or 'forkserver' (DataLoader(multiprocessing_context='spawn')), or use threads"
        )
    try:
        module = import_module("tiledbsoma")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "experiments of TileDB-SOMA need the package tiledbsoma; pip install 'scdataloader[soma]'"
        ) from error
    _process = os.getpid()
    return module


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of the library into one-line errors about ``what``.

    Raises:
        SourceFormatError: for any error of the library.
    """
    soma = library()
    try:
        yield
    except (soma.SOMAError, RuntimeError) as error:  # TileDB's own errors are RuntimeError
        if isinstance(error, ScDataLoaderError):
            raise
        raise SourceFormatError(f"{what}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The message of an error of the library without the stack that follows it."""
    return str(error).strip().splitlines()[0].removeprefix("SOMAError: ").strip("'")


@dataclass(kw_only=True, eq=False)
class ExperimentFile:
    """An experiment, opened when it is first used. Picklable and thread-safe."""

    uri: str
    """Path or URI."""
    timestamp: int
    """Time as of which it is read, in milliseconds; later writes are not seen."""
    config: Mapping[str, Any]
    """Options of TileDB that are not its defaults."""
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _opened: Any = field(default=None, repr=False)

    @classmethod
    def at(cls, address: str, timestamp: int | None) -> ExperimentFile:
        """The experiment at a path or URI, as of a time in milliseconds; None is now.

        Raises:
            FileNotFoundError: the path does not exist; suggests the nearest ones.
            SourceFormatError: it is not an experiment.
        """
        soma = library()
        uri = address if is_url(address) else str(_existing(address))
        with explained(f"{address} cannot be opened"):
            try:
                opened = soma.open(uri, tiledb_timestamp=timestamp)
            except soma.DoesNotExistError as error:
                raise SourceFormatError(
                    f"{address} is not an experiment of TileDB-SOMA; give the folder that holds obs and ms"
                ) from error
            with opened:
                if not isinstance(opened, soma.Experiment):
                    raise SourceFormatError(_not_an_experiment(address, opened))
                return cls(uri=uri, timestamp=opened.tiledb_timestamp_ms, config={})

    @classmethod
    def of(cls, experiment: Any) -> ExperimentFile:
        """The place of an open experiment, and the time as of which that was opened."""
        uri, context = experiment.uri, experiment.context
        unchanged = library().SOMATileDBContext()
        assert unchanged.native_context  # only then are all of its options known
        default = unchanged.tiledb_config
        config = {key: value for key, value in context.tiledb_config.items() if default.get(key) != value}
        return cls(
            uri=uri if is_url(uri) else str(local_path(uri)), timestamp=experiment.tiledb_timestamp_ms, config=config
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("uri", "timestamp", "config")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _opened=None)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """The open experiment; other threads wait, since TileDB itself uses all cores.

        Raises:
            ForkError: see `library`.
            SourceFormatError: it cannot be read.
        """
        soma = library()  # before the lock, which another thread may have held when this process was forked
        with self._lock, explained(f"{self.uri} cannot be read"):
            if self._opened is None:
                context = soma.SOMATileDBContext(tiledb_config={_BUFFERS: _BUFFER_BYTES, **self.config})
                self._opened = soma.Experiment.open(self.uri, tiledb_timestamp=self.timestamp, context=context)
            yield self._opened

    def close(self) -> None:
        """Close the experiment; a later read opens it again."""
        if self._opened is not None:
            library()
            with self._lock:
                self._opened.close()
                self._opened = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Joinids:
    """Ascending numbers of rows of an experiment."""

    first: int
    """The first one."""
    n: int
    """Number of rows."""
    listed: NDArray[np.int64] | None
    """``(n,)`` all of them; None if they are consecutive."""

    @classmethod
    def of(cls, ids: NDArray[np.int64]) -> Joinids:
        """From joinids in any order."""
        ids = np.sort(ids)
        first, n = int(ids[0]) if len(ids) else 0, len(ids)
        return cls(first=first, n=n, listed=None if n and ids[-1] - ids[0] == n - 1 else ids)

    @property
    def last(self) -> int:
        """The last one."""
        return self.first + self.n - 1 if self.listed is None else int(self.listed[-1])

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Joinids of rows of the source."""
        return rows + self.first if self.listed is None else self.listed[rows]

    @property
    def array(self) -> NDArray[np.int64]:
        """``(n,)`` all of them."""
        return np.arange(self.first, self.first + self.n) if self.listed is None else self.listed


def read_table(frame: Any, columns: Sequence[str], ids: Joinids, what: str) -> pd.DataFrame:
    """Columns of the rows ``ids`` of a DataFrame of the library, in their order.

    Raises:
        SourceFormatError: a row is missing.
    """
    span = ids.last - ids.first + 1
    coordinates = ids.array if ids.n * _POINTS < span else slice(ids.first, ids.last)
    table = frame.read((coordinates,), column_names=list(dict.fromkeys([*columns, JOINID]))).concat()
    found = table[JOINID].to_numpy()
    if len(found) != ids.n or not np.array_equal(found, ids.array):
        order = np.argsort(found, kind="stable")
        at = np.searchsorted(found[order], ids.array)
        is_there = at < len(found)
        is_there[is_there] = found[order[at[is_there]]] == ids.array[is_there]
        if not is_there.all():
            raise SourceFormatError(f"{what} lacks the row {int(ids.array[~is_there][0])}; write the experiment again")
        table = table.take(pa.array(order[at]))
    read: pd.DataFrame = table.unify_dictionaries().select(list(columns)).to_pandas()
    return read.set_axis(pd.RangeIndex(ids.n), axis=0)


def coordinates_of(array: Any, first: int, last: int) -> list[Coordinates]:
    """The values of rows [first, last] of a sparse array, in the order that costs least."""
    names = ("soma_dim_0", "soma_dim_1", "soma_data")
    pieces = []
    for table in array.read((slice(first, last), slice(None))).tables():
        rows, columns, data = (table[name].to_numpy() for name in names)
        pieces.append((rows, columns, data.view(np.uint8) if data.dtype == np.bool_ else data))
    return pieces


def tile_rows(array: Any) -> int:
    """Rows of a tile of an array."""
    return int(json.loads(array.schema_config_options().dims)["soma_dim_0"]["tile"])


def matching(table: Any, value_filter: str | None, name: str) -> NDArray[np.int64]:
    """Joinids of the rows of obs or var that a filter selects.

    Raises:
        KeyError: the filter names a column that does not exist; suggests the nearest ones.
        ValueError: it is not a filter.
    """
    try:
        found: NDArray[np.int64] = (
            table.read(column_names=[JOINID], value_filter=value_filter).concat()[JOINID].to_numpy()
        )
    except library().SOMAError as error:
        if column := _COLUMN.search(str(error)):
            hint = suggestion(column[1], table.keys())
            raise KeyError(f"{name} has no column {column[1]!r}, as {value_filter!r} requires; {hint}") from error
        raise ValueError(
            f"{value_filter!r} is not a filter of {name} ({first_line(error)}); compare columns with values of their "
            "type, as in \"is_primary_data == True and tissue in ['lung', 'blood']\""
        ) from error
    return found


def _existing(address: str) -> Path:
    path = local_path(address).absolute()
    if path.exists():
        return path
    there = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = nearest(path.name, there)
    hint = f"the nearest names in {path.parent} are {shown(near)}" if near else "give the folder of an experiment"
    raise FileNotFoundError(f"{address} does not exist; {hint}")


def _not_an_experiment(address: str, opened: Any) -> str:
    members = list(opened.keys()) if isinstance(opened, Mapping) else []
    hint = f"; open one of its members, such as {address.rstrip('/')}/{members[0]}" if members else ""
    return f"{address} is a {opened.soma_type}, expected a SOMAExperiment{hint}"
