"""What is in some data, and what a weighting does to its classes: as plain tables, and on the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from scdataloader.alignment import UNSTATED, GeneAlignment
from scdataloader.collection import Collection
from scdataloader.expectation import expect
from scdataloader.label_table import split_cells
from scdataloader.organisms import ORGANISMS
from scdataloader.splits import Split
from scdataloader.weighting import Weighting
from scdataloader.weights import Sampling, Scheme

N_COLUMNS_LISTED = 40
N_CHARACTERS_IN_A_FILE = 160
"""Width where there is no terminal to ask."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a `DataModule` that say which cells there are and how they are drawn; see there."""

    data: list[str] | str
    """Paths, globs, "lamindb:<key>"; one or a list."""
    sampling: Sampling | None = None
    """How training cells are drawn."""
    split: Split | None = None
    """Which cells train."""
    alignment: GeneAlignment | None = None
    """How genes are found and aligned."""
    counts: str = "auto"
    """Which matrix holds the counts."""
    values: Literal["counts", "any"] = "counts"
    """Whether values must be counts."""

    def open(self) -> Collection:
        """The table of cells."""
        return Collection.open(self.data, genes=self.alignment, counts=self.counts, values=self.values)

    def weighting(self, collection: Collection) -> Weighting:
        """How the training cells are weighted."""
        rows = split_cells(collection, self.split or Split()).train
        return Weighting.of(collection, rows, self.sampling or Sampling())


def source_table(collection: Collection) -> pd.DataFrame:
    """One row for each source: its cells and genes, and how its genes fall in the vocabulary."""
    rows = []
    for part in collection.parts:
        names = ORGANISMS.get(part.organism, ("", (part.organism,)))[1]
        organism = "not stated" if part.organism == UNSTATED else names[0]
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
    options = _parser().parse_args(args)
    asked = _options(options)
    collection = asked.open()
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    _show_sources(console, collection)
    _show_columns(console, collection)
    if asked.sampling is not None and asked.sampling.columns:
        _show_classes(console, asked.weighting(collection), options.top)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scdataloader inspect",
        description="Show what is in some data, and what a weighting does to its classes.",
    )
    add = parser.add_argument
    add("data", nargs="*", metavar="DATA", help=".h5ad files, .zarr folders, globs, or lamindb:<collection key>")
    add(
        "--config", type=Path, help="a YAML file of `scdataloader fit`, whose data section gives what is not given here"
    )
    add(
        "--by", nargs="+", metavar="COL", help="columns of obs whose classes, or joint values, are counted and weighted"
    )
    add("--scheme", choices=get_args(Scheme), help="mass of a class of c cells: natural c, uniform 1, power c^tau, "
        "saturating s*c/(s+c); default: natural")  # fmt: skip
    add("--tau", type=float, help="exponent of the power scheme")
    add("--saturation", type=float, help="s of the saturating scheme, in cells")
    add("--num_samples", type=int, help="draws in one epoch; default: as many as there are cells")
    add("--unknown_mass", type=float, help="share of the draws for cells of unknown label; default: 0")
    add("--cell_factors", nargs="+", metavar="COL", help="columns of numbers that weigh cells within their class")
    add("--replacement", action=argparse.BooleanOptionalAction, help="independent draws, or all cells before any again")
    add("--block_size", type=int, help="neighbouring cells that are drawn as a unit; default: 1")
    add("--curriculum_epochs", type=int, help="epochs in which classes go from nearly uniform to what is asked for")
    add("--organisms", nargs="+", metavar="[NAME=]ORGANISM", help="organism of sources that do not say it")
    add("--tables", nargs="+", metavar="ORGANISM=FILE", help="gene tables for sources that know symbols only")
    add("--column", nargs="+", metavar="[NAME=]COLUMN", help="column of var that holds the gene ids")
    add("--vocabulary", nargs="+", metavar="[ORGANISM=]FILE", help="gene ids to align to, one per line")
    add("--min_overlap", type=float, help="least share of genes in common with the vocabulary")
    add("--counts", help='which matrix holds the counts: "X", "layers/<key>", "raw" or "auto"')
    add("--values", choices=("counts", "any"), help='"any" takes values that are no counts')
    add("--top", type=int, default=20, help="classes to list; the others are summed up; default: 20")
    return parser


def _options(given: argparse.Namespace) -> DataOptions:
    """The data section of the YAML file, with what the command line gives put in its place."""
    from jsonargparse import ArgumentError, ArgumentParser

    section = {} if given.config is None else _data_section(given.config)
    _put(
        section,
        data=given.data[0] if len(given.data) == 1 else given.data or None,
        counts=given.counts,
        values=given.values,
    )
    for group, names in _GROUPS.items():
        sub = dict(section.get(group) or {})
        _put(sub, **{name: getattr(given, name, None) for name in names if name not in _PAIRS})
        _put(sub, **{name: _pairs(name, getattr(given, name)) for name in names if name in _PAIRS})
        if sub:
            section[group] = sub
    if not section.get("data"):
        raise ValueError("no data is named: give files before the options, or --config with a data section")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataOptions, "data")
    try:
        options: DataOptions = parser.instantiate(parser.parse_object({"data": section})).data
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    return options


def _data_section(path: Path) -> dict[str, Any]:
    """What a configuration of ``scdataloader fit`` says of the cells; nothing of how they are batched."""
    import yaml  # type: ignore[import-untyped]

    if not path.exists():
        raise FileNotFoundError(f"there is no configuration {path} (working directory {Path.cwd()})")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not (isinstance(found, dict) and isinstance(section := found.get("data"), dict)):
        raise ValueError(f"{path} has no section called data, as a configuration of `scdataloader fit` has")  # noqa: TRY004 (a file, not a call)
    return {key: value for key, value in section.items() if key in DataOptions.__dataclass_fields__}


_GROUPS = {
    "sampling": tuple(Sampling.__dataclass_fields__),
    "alignment": ("organisms", "tables", "column", "vocabulary", "min_overlap"),
}
_PAIRS = ("organisms", "tables", "column", "vocabulary")


def _put(section: dict[str, Any], **given: Any) -> None:
    section.update({name: value for name, value in given.items() if value is not None})


def _pairs(option: str, words: list[str] | None) -> dict[str, str] | str | None:
    """``NAME=VALUE …`` as a dictionary; a single word without "=" is meant for all."""
    if words is None or (len(words) == 1 and "=" not in words[0]):
        return words[0] if words else None
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ValueError(f"--{option} takes one value for all, or NAME=VALUE pairs; {wrong[0]!r} is no such pair")
    return dict(word.split("=", 1) for word in words)


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
