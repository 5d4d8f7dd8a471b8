"""The command ``scdataloader report``; its options are those of ``inspect``."""

from __future__ import annotations

from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from scdataloader.collection.collection import Collection
from scdataloader.commands.data_options import data_config, data_parser
from scdataloader.commands.inspect import UNUSABLE
from scdataloader.commands.usage import Parser
from scdataloader.protocols import SamplingPlan
from scdataloader.reports.report import report
from scdataloader.runtime.faults import Faults
from scdataloader.sampling.options import plan_columns
from scdataloader.sampling.splits import Splits
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.schema import LABEL_COLUMNS


def main(args: Sequence[str]) -> None:
    """Write the report of data as an HTML file.

    Raises:
        SystemExit: some sources cannot be used; the report is of the others.
        ValueError: no data is named; and all that opening data raises if no source can be used.
        FileNotFoundError: the folder of ``--out`` does not exist, or that of ``--run`` has no statistics.
    """
    given = _parser().parse_args(args)
    if not given.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of --out {given.out} does not exist; create it first")
    if given.tree is None:
        given.tree = len(given.by or ()) == 1 and given.by[0] in LABEL_COLUMNS
    config, batch_size = data_config(given)
    faults = Faults(listed=True)
    collection = config.open(faults=faults)
    try:
        hierarchies = config.hierarchies_of(collection, [*plan_columns(config.plan), *config.label_columns])
        list(hierarchies.values())  # each is fitted when it is first read
    except ValueError as error:
        if not given.tree or given.hierarchies:
            raise
        raise ValueError(f"{error}; --no-tree shows the classes without their ontology") from error
    data = OpenData(
        collection=collection,
        splits=config.splits_of(collection),
        training_cells=config.training_cells_of(collection, hierarchies),
        plan=config.plan,
        label_columns=config.label_columns,
        batch_size=batch_size,
    )
    path = report(data, run=given.run).save(given.out)
    console = Console(stderr=True, highlight=False)
    console.print(f"written: {path}", markup=False, soft_wrap=True)
    if faults.found:
        console.print(faults.message, markup=False, soft_wrap=True)
        raise SystemExit(UNUSABLE)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenData:
    """What `report` shows, without the `DataModule` that trains on it and is slow to import."""

    collection: Collection
    splits: Splits
    training_cells: CollectionCells
    plan: SamplingPlan
    label_columns: Sequence[str]
    batch_size: int


def _parser() -> Parser:
    parser = data_parser(
        "scdataloader report",
        "Write one HTML file on what data holds, how a weighting changes class shares, and how a run has trained.",
        "scdataloader report data/*.h5ad --by cell_type --scheme saturating --split val=0.1 by=donor_id",
        further=["labels"],
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write; default: report.html")
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="folder of the logs of a training run to show as well"
    )
    text = (
        "whether to show classes in the tree of their ontology; by default for one column of ids of CELLxGENE's schema"
    )
    parser.add_argument("--tree", action=BooleanOptionalAction, help=text)
    return parser
