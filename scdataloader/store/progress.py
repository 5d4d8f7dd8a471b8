"""How far a long pass over a store is, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

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


@contextmanager
def cells_bar(what: str, n_cells: int, n_done: int, *, shown: bool) -> Iterator[Advance]:
    """A bar from ``n_done`` to ``n_cells``, with cells per second and the time left; told how many are done in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Cells(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=n_cells, completed=n_done)
        yield lambda done: bar.update(task, completed=n_done + done)


class _Cells(ProgressColumn):
    """Cells that are done, of all, and how many more each second."""

    def render(self, task: RichTask) -> Text:
        """As text."""
        speed = "" if task.speed is None else f", {task.speed:,.0f} cells/s"
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} cells{speed}")
