"""Tables of sources, obs columns and sampled classes, as data frames and on the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from scdataloader.collection.collection import Collection
from scdataloader.genes.organisms import UNSTATED
from scdataloader.protocols import (
    DescribesClasses,
    DrawnClasses,
    HasCountsLocation,
    Sampler,
    SamplingPlan,
    TrainingCells,
)
from scdataloader.runtime.messages import counted
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.sampling.samplers import AFTER_CURRICULUM
from scdataloader.sampling.tally import Tally
from scdataloader.schema import ORGANISMS

N_COLUMNS_LISTED = 40


def source_table(collection: Collection) -> pd.DataFrame:
    """One row for each source: its cells and genes, how its genes fall in the vocabulary, and its corpus, if any."""
    rows: list[dict[str, Any]] = []
    for part, corpus in zip(collection.parts, collection.corpora or [None] * len(collection.parts), strict=True):
        known = ORGANISMS.get(part.organism)
        organism = "not stated" if part.organism == UNSTATED else known.scientific_name if known else part.organism
        rows.append(
            {
                "source": part.source.name,
                "cells": part.n_obs,
                "genes": len(part.genes.lut),
                "organism": organism,
                "counts in": part.source.counts if isinstance(part.source, HasCountsLocation) else "",
                "matched": part.genes.n_matched,
                "dropped": part.genes.n_dropped,
                "duplicates": len(part.genes.duplicates),
            }
            | ({} if corpus is None else {"corpus": corpus})
        )
    return pd.DataFrame(rows)


def column_table(collection: Collection) -> pd.DataFrame:
    """One row for each obs column: in how many of the sources it is; those that all have first."""
    sources = {id(part.source): part.source for part in collection.parts}.values()
    counts: dict[str, int] = {}
    for source in sources:
        for column in source.obs_columns:
            counts[column] = counts.get(column, 0) + 1
    table = pd.DataFrame({"column": list(counts), "sources": list(counts.values())})
    return table.sort_values(["sources", "column"], ascending=[False, True], ignore_index=True)


def class_table(drawn: DrawnClasses, num_samples: int) -> pd.DataFrame:
    """One row per class, the largest first, and one for cells of unknown label, if there are any.

    ``cells`` are those that can be drawn; ``natural`` is their share of the cells of known label, ``target`` their
    target share of the draws, and ``draws`` the expected draws of an epoch of ``num_samples``, after any curriculum.
    """
    sizes, target = drawn.sizes, drawn.target_shares(AFTER_CURRICULUM)
    natural = sizes / sizes[:-1].sum()
    natural[-1] = np.nan
    table = pd.DataFrame(
        {
            "class": [*drawn.names, "unknown"],
            "cells": sizes,
            "natural": natural,
            "target": target,
            "draws": target * num_samples,
        }
    )
    known = table.iloc[:-1].sort_values(["cells", "class"], ascending=[False, True])
    last = table.iloc[-1:] if sizes[-1] else table.iloc[:0]
    return pd.concat([known, last], ignore_index=True)


def show_sampling(console: Console, plan: SamplingPlan, cells: TrainingCells, sampler: Sampler, top: int) -> None:
    """Print the ``top`` largest classes that a plan draws by, if it describes any, and the statistics of an epoch."""
    drawn = plan.describe(cells) if isinstance(plan, DescribesClasses) else None
    lines = []
    if drawn is not None:
        columns = plan_columns(plan)
        if columns or len(drawn.names) > 1:
            title = f"{' | '.join(columns) or type(plan).__name__}: {counted(len(drawn.names), 'class')}"
            title += f", {plan.description}" if isinstance(plan, Sampling) else ""
            _show_classes(console, title, class_table(drawn, sampler.num_samples), top, len(drawn.names))
        lines.append(drawn.summary())
    for line in (*lines, *_epochs(sampler, drawn, cells)):
        console.print(line, markup=False, soft_wrap=True)


def show_sources(console: Console, collection: Collection, top: int) -> None:
    """Print the table of sources, the first ``top`` of them."""
    cells, genes = f"{len(collection):,} cells", f"{collection.n_genes:,} genes in the vocabulary"
    table = Table(title=f"{counted(len(collection.parts), 'source')}, {cells}, {genes}", title_justify="left")
    frame = source_table(collection)
    for name in frame:
        numeric = frame[name].dtype.kind == "i"
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.iloc[:top].itertuples(index=False):
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    rest = frame.iloc[top:]
    if len(rest):
        cells = f"{rest['cells'].sum():,}"
        table.add_row(f"… {len(rest):,} other sources", cells, *[""] * (len(frame.columns) - 2), style="dim")
    console.print(table)


def show_columns(console: Console, collection: Collection) -> None:
    """Print the names of the obs columns: those of all sources, and those of some."""
    frame = column_table(collection)
    n_sources = int(frame["sources"].max()) if len(frame) else 0
    for line, chosen in (
        ("obs columns in all sources", frame[frame["sources"] == n_sources]),
        ("obs columns in some", frame[frame["sources"] < n_sources]),
    ):
        names = list(chosen["column"])
        if names:
            more = f" … and {len(names) - N_COLUMNS_LISTED} more" if len(names) > N_COLUMNS_LISTED else ""
            console.print(f"{line}: {', '.join(names[:N_COLUMNS_LISTED])}{more}", markup=False, soft_wrap=True)


def _show_classes(console: Console, title: str, frame: pd.DataFrame, top: int, n_known: int) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("cells", "natural", "target", "draws per epoch"):
        table.add_column(name, justify="right")
    shown = frame.iloc[: min(top, n_known)]
    for row in shown.itertuples(index=False):
        table.add_row(*_cells(*row))
    rest = frame.iloc[len(shown) : n_known]
    if len(rest):
        sums = rest[["cells", "natural", "target", "draws"]].sum()
        table.add_row(*_cells(f"… {len(rest):,} other classes", *sums), style="dim")
    for row in frame.iloc[n_known:].itertuples(index=False):
        table.add_row(*_cells(*row), style="yellow")
    console.print(table)


def _epochs(sampler: Sampler, drawn: DrawnClasses | None, cells: TrainingCells) -> list[str]:
    """Statistics of an epoch that is drawn and counted; with a curriculum, of its first epoch and of a later one."""
    epochs = {0: "an epoch"}
    if drawn is not None and not np.array_equal(drawn.target_shares(0), drawn.target_shares(AFTER_CURRICULUM)):
        epochs = {0: "epoch 0 of the curriculum", AFTER_CURRICULUM: "an epoch after the curriculum"}
    lines = []
    for epoch, name in epochs.items():
        tally = Tally(cells.collection_size)
        tally.add_epoch(sampler, epoch)
        part = f"the first {tally.n_draws:,} of " if tally.n_draws < sampler.num_samples else ""
        lines.append(
            f"{name}: {part}{counted(sampler.num_samples, 'draw')}, {tally.repeated_share:.2%} repeated draws, "
            f"{tally.effective_cells:,.0f} effective cells"
        )
    return lines


def _cells(name: str, cells: float, natural: float, target: float, draws: float) -> tuple[str, ...]:
    share = "" if np.isnan(natural) else f"{natural:.2%}"
    return name, f"{int(cells):,}", share, f"{target:.2%}", f"{draws:,.1f}"
