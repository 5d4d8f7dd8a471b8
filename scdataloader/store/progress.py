"""How far a long pass over a store is, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

Advance = Callable[[int], None]
"""Told how many more bytes are done; from any thread."""


@contextmanager
def progress_bar(what: str, n_bytes: int, *, shown: bool) -> Iterator[Advance]:
    """A bar from 0 to ``n_bytes``, with bytes per second and the time that is left; nothing, unless ``shown``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=n_bytes)
        yield lambda done: bar.advance(task, done)
