"""What is in some data, and what a weighting does to its classes: as plain tables, and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from scdataloader.collection.collection import Collection
from scdataloader.commands.inspect import parser, read_options
from scdataloader.genes.organisms import UNSTATED
from scdataloader.lamin.collections import is_lamin, origins
from scdataloader.report.tree import show_mapped, show_tree
from scdataloader.sampling.expectation import expect
from scdataloader.sampling.weighting import Weighting
from scdataloader.sampling.weights import Sampling
from scdataloader.schema import ORGANISMS

N_COLUMNS_LISTED = 40
N_CHARACTERS_IN_A_FILE = 160
"""Width where there is no terminal to ask."""


def source_table(collection: Collection) -> pd.DataFrame:
    """One row for each source: its cells and genes, and how its genes fall in the vocabulary."""
    rows = []
    for part in collection.parts:
        known = ORGANISMS.get(part.organism)
        organism = "not stated" if part.organism == UNSTATED else known.scientific_name if known else part.organism
        rows.append(
            {
                "source": part.source.name,
                "cells": part.n_obs,
                "genes": len(part.genes.lut),
                "organism": organism,
                "counts in": getattr(part.source, "counts", ""),
                "matched": part.genes.n_matched,
                "dropped": part.genes.n_dropped,
                "duplicates": len(part.genes.duplicates),
            }
        )
    return pd.DataFrame(rows)


def column_table(collection: Collection) -> pd.DataFrame:
    """One row for each obs column: in how many of the sources it is; those that all have first."""
    sources = {id(part.source): part.source for part in collection.parts}.values()
    counts: dict[str, int] = {}
    for source in sources:
        for column in getattr(source, "obs_columns", ()):
            counts[column] = counts.get(column, 0) + 1
    table = pd.DataFrame({"column": list(counts), "sources": list(counts.values())})
    return table.sort_values(["sources", "column"], ascending=[False, True], ignore_index=True)


def class_table(weighting: Weighting) -> pd.DataFrame:
    """One row for each class, the largest first, and one for cells of unknown label, if there are any.

    ``cells`` can be drawn; ``natural`` is their share of the cells of known label, ``asked`` the share of the draws
    that the weighting gives them, ``draws`` how many that is in an epoch; under a curriculum once it is over.
    """
    weights = weighting.weights
    natural = weights.counts / weights.counts[:-1].sum()
    natural[-1] = np.nan
    table = pd.DataFrame(
        {
            "class": weighting.names_and_unknown,
            "cells": weights.counts,
            "natural": natural,
            "asked": weights.mass,
            "draws": weights.mass * weighting.num_samples,
        }
    )
    known = table.iloc[:-1].sort_values(["cells", "class"], ascending=[False, True])
    last = table.iloc[-1:] if weights.counts[-1] else table.iloc[:0]
    return pd.concat([known, last], ignore_index=True)


def main(args: Sequence[str]) -> None:
    """Show what ``args`` name on standard output.

    Raises:
        ValueError: no data is named; and all that opening data raises.
    """
    options = parser().parse_args(args)
    asked = read_options(options)
    collection = asked.open()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    _show_sources(console, collection)
    for item in [asked.data] if isinstance(asked.data, str) else asked.data:
        for line in origins(item) if is_lamin(item) else ():
            console.print(line, markup=False, soft_wrap=True)
    _show_columns(console, collection)
    if asked.sampling is None or not asked.sampling.columns:
        if options.tree:
            raise ValueError("--tree shows the classes of a column: name it in --by")
        return
    hierarchies = asked.hierarchies_of(collection)
    weighting = asked.weighting(collection, hierarchies)
    _show_classes(console, weighting, options.top)
    for column in filter(hierarchies.__contains__, asked.sampling.columns):
        show_mapped(console, hierarchies[column])
    if options.tree:
        show_tree(console, weighting, hierarchies)


def _show_sources(console: Console, collection: Collection) -> None:
    cells, genes = f"{len(collection):,} cells", f"{collection.n_genes:,} genes in the vocabulary"
    table = Table(title=f"{len(collection.parts)} sources, {cells}, {genes}", title_justify="left")
    frame = source_table(collection)
    for name in frame:
        numeric = frame[name].dtype.kind == "i"
        table.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    console.print(table)


def _show_columns(console: Console, collection: Collection) -> None:
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


def _show_classes(console: Console, weighting: Weighting, top: int) -> None:
    frame = class_table(weighting)
    sampling = weighting.sampling
    title = f"{' | '.join(sampling.columns)}: {len(weighting.names):,} classes, {_scheme(sampling)}"
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("cells", "natural", "asked", "draws per epoch"):
        table.add_column(name, justify="right")
    n_known = len(weighting.names)
    shown = frame.iloc[: min(top, n_known)]
    for row in shown.itertuples(index=False):
        table.add_row(*_cells(*row))
    rest = frame.iloc[len(shown) : n_known]
    if len(rest):
        sums = rest[["cells", "natural", "asked", "draws"]].sum()
        table.add_row(*_cells(f"… {len(rest):,} other classes", *sums), style="dim")
    for row in frame.iloc[n_known:].itertuples(index=False):
        table.add_row(*_cells(*row), style="yellow")
    console.print(table)
    for line in (weighting.weights.summary(), *_expected(weighting)):
        console.print(line, markup=False, soft_wrap=True)


def _expected(weighting: Weighting) -> list[str]:
    """What to expect of an epoch; under a curriculum, of its first and of its last."""
    last = weighting.sampling.curriculum_epochs - 1
    epochs = {0: "epoch 0 of the curriculum", last: f"epoch {last} and later, as in the table"}
    lines = []
    for epoch, when in epochs.items() if last > 0 else [(0, "an epoch")]:
        said = expect(weighting, epoch)
        lines.append(
            f"expected of {when}: {said.n_draws:,} draws, {said.repeated_share:.2%} repeated draws, "
            f"{said.effective_cells:,.0f} effective cells"
        )
    return lines


def _cells(name: str, cells: float, natural: float, asked: float, draws: float) -> tuple[str, ...]:
    share = "" if np.isnan(natural) else f"{natural:.2%}"
    return name, f"{int(cells):,}", share, f"{asked:.2%}", f"{draws:,.1f}"


def _scheme(sampling: Sampling) -> str:
    if sampling.scheme == "power":
        return f"power, tau {sampling.tau:g}"
    if sampling.scheme == "saturating":
        return f"saturating at {sampling.saturation:g} cells"
    return sampling.scheme
