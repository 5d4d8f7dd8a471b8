"""Progress bars and spinners on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

_SECONDS_PER_LINE = 10
_UNSHOWN_SECONDS = 2

Advance = Callable[[int], None]
"""Called, from any thread, with the number of bytes or cells that are done."""


@contextmanager
def progress_bar(what: str, n_bytes: int, *, shown: bool) -> Iterator[Advance]:
    """A bar from 0 to ``n_bytes`` with speed and remaining time; hidden unless ``shown``. Each call advances it."""
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
def seconds_bar(what: str, seconds: float) -> Iterator[Callable[[float], None]]:
    """A bar from 0 to ``seconds`` on a terminal, if these are more than 2. Each call sets those that have passed."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} s"))
    shown = console.is_terminal and seconds > _UNSHOWN_SECONDS
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=seconds)
        yield lambda passed: bar.update(task, completed=passed)


@contextmanager
def spinner(what: str, *, is_long: bool = False) -> Iterator[None]:
    """A spinner and the elapsed time; if standard error is not a terminal, one line if the work ``is_long``."""
    console = Console(stderr=True)
    if is_long and not console.is_terminal:
        console.print(what, soft_wrap=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        bar.add_task(what, total=None)
        yield


@contextmanager
def cells_bar(what: str, n_cells: int, n_done: int, *, shown: bool) -> Iterator[Advance]:
    """A bar from ``n_done`` to ``n_cells`` with speed and remaining time; hidden unless ``shown``.

    Each call sets the number of cells done since the start of the bar. If standard error is not a terminal, progress is
    written as lines of text.
    """
    console = Console(stderr=True)
    if shown and not console.is_terminal:
        yield _Lines(console, what, n_cells, n_done)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Cells(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=n_cells, completed=n_done)
        yield lambda done: bar.update(task, completed=n_done + done)


class _Cells(ProgressColumn):
    """Cells done, total, and cells per second."""

    def render(self, task: RichTask) -> Text:
        """The text of the column."""
        speed = "" if task.speed is None else f", {task.speed:,.0f} cells/s"
        return Text(f"{task.completed:,.0f}/{task.total or 0:,.0f} cells{speed}")


class _Lines:
    """Progress as lines of text."""

    def __init__(self, console: Console, what: str, n_cells: int, n_before: int) -> None:
        self._console, self._what, self._n_cells, self._n_before = console, what, n_cells, n_before
        self._start = time.monotonic()
        self._last = -float(_SECONDS_PER_LINE)

    def __call__(self, done: int) -> None:
        seconds = time.monotonic() - self._start
        if seconds - self._last >= _SECONDS_PER_LINE or self._n_before + done == self._n_cells:
            self._last = seconds
            cells = f"{self._n_before + done:,}/{self._n_cells:,} cells"
            left = (self._n_cells - self._n_before - done) * seconds / done if done else 0
            rate = f", {done / seconds:,.0f} cells/s, {timedelta(seconds=round(left))} left" if done and seconds else ""
            self._console.print(f"{self._what}: {cells}{rate}", soft_wrap=True, highlight=False)
