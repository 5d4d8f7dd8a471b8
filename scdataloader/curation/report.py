"""What has become of files: all of it in a CSV, the gist in a table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scdataloader.curation.outcome import Outcome, Status
from scdataloader.runtime.files import write_atomically

REPORT = "report.csv"
N_LISTED = 40
"""Of more files, the table has only those that were not kept."""
N_CHARACTERS_IN_A_FILE = 160
"""Width where there is no terminal to ask."""

_STYLES: dict[Status, str] = {"kept": "green", "dropped": "yellow", "failed": "red"}


def write_report(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``report.csv``, a line for each outcome; returns its path."""
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
            "content": outcome.content,
            "recipe": outcome.recipe,
        }
        for outcome in outcomes
    ]
    path = folder / REPORT
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
    return path


def show_report(outcomes: Sequence[Outcome], report: Path) -> None:
    """Show what has become of files, on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    listed = outcomes if len(outcomes) <= N_LISTED else [outcome for outcome in outcomes if outcome.status != "kept"]
    if listed:
        console.print(_table(listed))
    console.print(f"{summary(outcomes)}; all of it: {report}", markup=False, soft_wrap=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many files were kept, dropped and failed, and how many cells there are now."""
    counts = Counter(outcome.status for outcome in outcomes)
    n_cells = sum(outcome.n_cells_out for outcome in outcomes)
    return ", ".join(f"{counts[status]:,} {status}" for status in _STYLES) + f"; {n_cells:,} cells are kept"


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("cells", "genes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for outcome in outcomes:
        shown = (
            Path(outcome.source).name,
            outcome.status,
            f"{outcome.n_cells_in:,} → {outcome.n_cells_out:,}",
            f"{outcome.n_genes_in:,} → {outcome.n_genes_out:,}",
            outcome.reason,
        )
        table.add_row(*map(Text, shown), style=_STYLES[outcome.status])
    return table
