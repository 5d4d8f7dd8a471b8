"""Outcomes of curated files: CSV report and terminal summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scdataloader.runtime.files import write_atomically
from scdataloader.runtime.messages import counted, shown
from scdataloader.runtime.names import distinct_names, name_of

REPORT = "report.csv"
N_LISTED = 40
"""With more files, the terminal table lists only those that were not kept."""
WIDTH_IN_A_FILE = 160
"""Characters per line where standard output is not a terminal."""

Status = Literal["kept", "dropped", "failed"]
_STYLES: dict[Status, str] = {"kept": "green", "dropped": "yellow", "failed": "red"}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one file; of a file that was split by organism, of each part."""

    source: str
    """The file as named by the user."""
    content: str
    """Hash of the file's content: 32 hexadecimal digits; empty if it could not be read."""
    recipe: str
    """`Recipe.hash` of the part of the recipe that concerns the file: see `Recipe.for_file`."""
    status: Status
    """Kept: ``output`` was written. Dropped: nothing worth keeping was left. Failed: it could not be curated."""
    reason: str = ""
    """Why the file was dropped or failed, in one line; empty if kept."""
    n_cells_in: int = 0
    """Cells of the file; of a part, those of its organism."""
    n_cells_out: int = 0
    """Cells of ``output``."""
    n_genes_in: int = 0
    """Genes of the file, as it numbers them."""
    n_genes_out: int = 0
    """Genes of ``output``."""
    output: Path | None = None
    """The curated .h5ad file; None unless kept."""
    labels: dict[str, list[str]]
    """{obs column: the distinct standardised ids in ``output``, sorted}; without "unknown"."""
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    """{obs column: `Standardised.lost`, of all cells of the file}; without columns that lost none."""
    organism: str = ""
    """NCBITaxon id; empty if the file failed before it was known."""
    seconds: float = 0.0
    """Time spent."""
    notes: tuple[str, ...] = ()
    """Changes and omissions, with counts, a line each."""

    @classmethod
    def failed(cls, source: str, reason: str, *, content: str = "", recipe: str = "") -> Outcome:
        """The outcome of a file of which nothing is known but why it failed."""
        return cls(source=source, content=content, recipe=recipe, status="failed", reason=reason, labels={})


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``report.csv`` with one line per outcome; returns its path."""
    rows = [
        {
            "source": outcome.source,
            "status": outcome.status,
            "reason": outcome.reason,
            "organism": outcome.organism,
            "cells_in": outcome.n_cells_in,
            "cells_out": outcome.n_cells_out,
            "genes_in": outcome.n_genes_in,
            "genes_out": outcome.n_genes_out,
            "output": "" if outcome.output is None else outcome.output.name,
            "seconds": round(outcome.seconds, 2),
            "notes": "; ".join(outcome.notes),
            # a letter before the digits: pandas 2 crashes on digests that look like numbers with a large exponent
            "content": outcome.content and f"b2:{outcome.content}",
            "recipe": outcome.recipe and f"b2:{outcome.recipe}",
        }
        for outcome in outcomes
    ]
    path = folder / REPORT
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
    return path


def show_report(outcomes: Sequence[Outcome], report: Path) -> None:
    """Print a table of the files and a summary to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_IN_A_FILE)
    listed = outcomes if len(outcomes) <= N_LISTED else [outcome for outcome in outcomes if outcome.status != "kept"]
    if listed:
        console.print(_table(listed))
    for line in lost_labels(outcomes):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{summary(outcomes)}; full report: {report}", markup=False, soft_wrap=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Numbers of files that were kept, dropped and failed, and of cells kept."""
    counts = Counter(outcome.status for outcome in outcomes)
    n_cells = sum(outcome.n_cells_out for outcome in outcomes)
    return ", ".join(f"{counts[status]:,} {status}" for status in _STYLES) + f"; {n_cells:,} cells kept"


def lost_labels(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Per column, how many cells of kept files lost their label, and which labels these were, most cells first."""
    cells: dict[str, Counter[str]] = {}
    n_cells = 0
    for outcome in _kept(outcomes):
        n_cells += outcome.n_cells_in
        for column, labels in outcome.lost.items():
            cells.setdefault(column, Counter()).update(labels)
    for column, lost in cells.items():
        some = shown(f"{n:,} {label}" for label, n in lost.most_common())
        yield f"{column}: {lost.total():,} of {counted(n_cells, 'cell')} became unknown: {some}"


def label_warnings(outcomes: Iterable[Outcome], columns: Iterable[str]) -> Iterator[str]:
    """Warnings of standard columns that have lost all labels, or that some of the kept files lack.

    Without any standard column in any file, nothing is expected of them.
    """
    kept = _kept(outcomes)
    columns = list(columns) if any(one.labels for one in kept) else []
    lacking: dict[tuple[str, ...], list[str]] = {}
    for column in columns:
        if files := _names(one for one in kept if column in one.lost and not one.labels.get(column)):
            yield f"{column}: all labels became unknown in {shown(files)}; a rule can replace them by terms"
        if files := _names(one for one in kept if column not in one.labels):
            lacking.setdefault(files, []).append(column)
    for files, lacked in lacking.items():
        yield (
            f"no {', '.join(lacked)} in {len(files):,} of {counted(len(_names(kept)), 'file')} ({shown(files)}); "
            "a rule can make it from another column"
        )


def _kept(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == "kept"]


def _names(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(outcome.source for outcome in outcomes))


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("cells", "genes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    paths = list(dict.fromkeys(Path(outcome.source) for outcome in outcomes))
    names = dict(zip(paths, distinct_names([name_of(path) for path in paths], paths), strict=True))
    for outcome in outcomes:
        row = (
            names[Path(outcome.source)],
            outcome.status,
            f"{outcome.n_cells_in:,} → {outcome.n_cells_out:,}",
            f"{outcome.n_genes_in:,} → {outcome.n_genes_out:,}",
            outcome.reason,
        )
        table.add_row(*map(Text, row), style=_STYLES[outcome.status])
    return table
