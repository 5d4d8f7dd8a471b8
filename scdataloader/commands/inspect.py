"""The command ``scdataloader inspect``; its options are those of `DataConfig`, `Sampling` and `GeneAlignment`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from scdataloader.collection.collection import Collection
from scdataloader.commands.data_options import data_config, data_parser
from scdataloader.commands.usage import Parser
from scdataloader.lamin.collections import is_lamin, origins
from scdataloader.protocols import DescribesClasses
from scdataloader.reports.tables import show_columns, show_sampling, show_sources
from scdataloader.reports.tree import show_mapped, show_tree
from scdataloader.runtime.faults import Faults
from scdataloader.sampling.options import plan_columns
from scdataloader.training.config import DataConfig

UNUSABLE = 1
"""Exit code where a source cannot be used; 2 is for wrong options, or if there is no other source."""
N_CHARACTERS_IN_A_FILE = 160
"""Width of tables if the output is not a terminal."""


def main(args: Sequence[str]) -> None:
    """Show on standard output what data holds, and how a weighting changes class shares.

    Raises:
        SystemExit: some sources cannot be used; they are listed after the others.
        ValueError: no data is named; and all that opening data raises if no source can be used.
    """
    given = _parser().parse_args(args)
    config, batch_size = data_config(given)
    faults = Faults(listed=True)
    collection = config.open(faults=faults)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    show_sources(console, collection, given.top)
    for item in _items(config.data):
        for line in origins(item) if is_lamin(item) else ():
            console.print(line, markup=False, soft_wrap=True)
    if faults.found:
        console.print(faults.message, markup=False, soft_wrap=True)
    show_columns(console, collection)
    columns = plan_columns(config.plan)
    if given.tree and not columns:
        raise ValueError("--tree shows the classes of a column; name it in --by")
    if config.sampling is not None:
        _show_sampling(console, config, collection, given, batch_size)
    if faults.found:
        raise SystemExit(UNUSABLE)


def _items(data: Any) -> list[Any]:
    """What ``data`` lists, of all corpora."""
    if isinstance(data, Mapping):
        return [item for of_corpus in data.values() for item in _items(of_corpus)]
    return data if isinstance(data, list) else [data]


def _show_sampling(
    console: Console, config: DataConfig, collection: Collection, given: argparse.Namespace, batch_size: int
) -> None:
    columns = plan_columns(config.plan)
    hierarchies = config.hierarchies_of(collection)
    plan, cells = config.plan, config.training_cells_of(collection, hierarchies)
    sampler = plan.sampler(cells, seed=0, global_batch_size=batch_size)
    show_sampling(console, plan, cells, sampler, given.top)
    for column in filter(hierarchies.__contains__, columns):
        show_mapped(console, hierarchies[column])
    if given.tree and isinstance(plan, DescribesClasses):
        show_tree(console, cells, columns, plan.describe(cells), sampler)


def _parser() -> Parser:
    parser = data_parser(
        "scdataloader inspect",
        "Show what data holds, and how a weighting changes the shares of its classes.",
        "scdataloader inspect data/*.h5ad --by cell_type --scheme saturating --saturation 50",
    )
    parser.add_argument("--tree", action="store_true", help="show classes in the tree of their ontology")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="sources and classes to list; default: 20")
    return parser
