"""Clusters of dask, as the commands reach them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

DASK: dict[str, Any] = {
    "metavar": "ADDRESS",
    "help": "scheduler of a dask cluster that runs the tasks, such as tcp://host:8786",
}
"""What ``--dask`` is in every command that has it."""


@contextmanager
def dask_executor(address: str | None) -> Iterator[Executor | None]:
    """The executor of a cluster; None without an address.

    Raises:
        RuntimeError: dask.distributed is not installed.
        ConnectionError: no scheduler answers.
    """
    if address is None:
        yield None
        return
    try:
        client_of: Any = import_module("distributed").Client
    except ModuleNotFoundError as error:
        raise RuntimeError("--dask requires dask.distributed: pip install 'scdataloader[dask]'") from error
    try:
        client = client_of(address)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no dask scheduler answers at {address}; give the address that `dask scheduler` prints, such as "
            "tcp://host:8786"
        ) from error
    with client:
        yield client.get_executor()
