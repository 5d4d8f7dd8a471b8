"""What `scdataloader inspect` is asked: its options, and the data section of a configuration."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from scdataloader.collection.collection import Collection
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.labels.roll_up import RollUp
from scdataloader.protocols import SamplingPlan
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.sampling.splits import Split, split_cells
from scdataloader.sampling.training_cells import CollectionCells
from scdataloader.sampling.weights import Scheme


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of a `DataModule` that say which cells there are and how they are drawn; see there."""

    data: list[str] | str
    """Paths, globs, "lamindb:<key>"; one or a list."""
    where: dict[str, list[str] | str] | None = None
    """Which artifacts of lamindb, and which of their cells."""
    hierarchies: list[str] | dict[str, Any] | None = None
    """Columns that have an ontology."""
    roll_up: dict[str, RollUp] | None = None
    """Which terms their labels go up to."""
    sampling: Sampling | SamplingPlan | None = None
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
        return Collection.open(
            self.data, where=self.where, genes=self.alignment, counts=self.counts, values=self.values
        )

    def hierarchies_of(self, collection: Collection) -> Hierarchies:
        """The columns of the collection that have an ontology."""
        return Hierarchies(collection, self.hierarchies or [], self.roll_up)

    def training_cells(self, collection: Collection, hierarchies: Hierarchies | None = None) -> CollectionCells:
        """The cells of the training split; ``hierarchies`` are those of the collection, if they are fitted already."""
        rows = split_cells(collection, self.split or Split()).train
        return CollectionCells(collection, rows, hierarchies or self.hierarchies_of(collection))


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="scdataloader inspect",
        description="Show what is in some data, and what a weighting does to its classes.",
    )
    add = made.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}  # after one option, or after the same again
    add("data", nargs="*", metavar="DATA", help=".h5ad files, .zarr folders, globs, or lamindb:<collection key>")
    add(
        "--config", type=Path, help="a YAML file of `scdataloader fit`, whose data section gives what is not given here"
    )
    add("--where", **several, metavar="REGISTRY=LABEL", help='of lamindb data, such as cell_types="T cell and below"')
    add(
        "--by", **several, metavar="COL", help="columns of obs whose classes, or joint values, are counted and weighted"
    )
    add(
        "--hierarchies",
        **several,
        metavar="COL[=ONTOLOGY,…]",
        help="columns of terms; default: that of --by for a tree",
    )
    add(
        "--tree", action="store_true", help="show classes in the tree of their ontology, to which --by names one column"
    )
    add("--scheme", choices=get_args(Scheme), help="weight of a class of c cells: natural c, uniform 1, power c^tau, "
        "saturating s*c/(s+c), tree evenly down an ontology; default: natural")  # fmt: skip
    add("--tau", type=float, help="exponent of the power scheme")
    add("--saturation", type=float, help="s of the saturating scheme, in cells")
    add("--num_samples", type=int, help="draws in one epoch; default: as many as there are cells")
    add("--unknown_share", type=float, help="share of the draws for cells of unknown label; default: 0")
    add("--cell_factors", **several, metavar="COL", help="columns of numbers that weigh cells within their class")
    add("--replacement", action=argparse.BooleanOptionalAction, help="independent draws, or all cells before any again")
    add("--block_size", type=int, help="neighbouring cells that are drawn as a unit; default: 1")
    add(
        "--curriculum_epochs", type=int, help="epochs in which class weights change from nearly uniform to their target"
    )
    add("--organisms", **several, metavar="[NAME=]ORGANISM", help="organism of sources that do not say it")
    add("--tables", **several, metavar="ORGANISM=FILE", help="gene tables for sources that know symbols only")
    add("--column", **several, metavar="[NAME=]COLUMN", help="column of var that holds the gene ids")
    add("--vocabulary", **several, metavar="[ORGANISM=]FILE", help="gene ids to align to, one per line")
    add("--min_overlap", type=float, help="least share of genes in common with the vocabulary")
    add("--counts", help='which matrix holds the counts: "X", "layers/<key>", "raw" or "auto"')
    add("--values", choices=("counts", "any"), help='"any" takes values that are no counts')
    add("--top", type=int, default=20, help="classes to list; the others are summed up; default: 20")
    return made


def read_options(given: argparse.Namespace) -> DataOptions:
    """The data section of the YAML file, with what the command line gives put in its place.

    Raises:
        ValueError: there is no data, an option is none, or ``--hierarchies`` names a column that is not counted.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    section = {} if given.config is None else _data_section(given.config)
    _put(
        section,
        data=given.data[0] if len(given.data) == 1 else given.data or None,
        counts=given.counts,
        values=given.values,
        where=None if given.where is None else _conditions(given.where),
        hierarchies=_hierarchies(given),
    )
    for group, names in _GROUPS.items():
        sub = dict(section.get(group) or {})
        _put(sub, **{name: getattr(given, name, None) for name in names if name not in _PAIRS})
        _put(sub, **{name: _pairs(name, getattr(given, name)) for name in names if name in _PAIRS})
        if sub:
            section[group] = sub
    if not section.get("data"):
        raise ValueError("no data is named: give files before the options, or --config with a data section")
    checked = ArgumentParser(exit_on_error=False)
    checked.add_class_arguments(DataOptions, "data")
    try:
        options: DataOptions = checked.instantiate(checked.parse_object({"data": section})).data
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    by = plan_columns(options.sampling)
    idle = [column for column in options.hierarchies or () if given.hierarchies and column not in by]
    if idle:
        raise ValueError(
            f"--hierarchies names {', '.join(idle)}, but classes are counted by {by or 'nothing'}: see --by"
        )
    return options


def _hierarchies(given: argparse.Namespace) -> dict[str, list[str] | None] | None:
    """{column: ontologies, if they are named}; of ``--tree`` or ``--scheme tree`` by one column, that column."""
    words = given.hierarchies
    wants_tree = given.tree or given.scheme == "tree"
    if words is None and wants_tree and given.config is None and len(given.by or ()) == 1:
        words = given.by
    if words is None:
        return None
    parts = (word.partition("=") for word in words)
    return {column: named.split(",") if named else None for column, _, named in parts}


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


def _conditions(words: list[str]) -> dict[str, list[str]]:
    """``REGISTRY=LABEL …``, several labels of one registry together."""
    labels: dict[str, list[str]] = {}
    for word in words:
        registry, equals, label = word.partition("=")
        if not equals:
            raise ValueError(f"--where takes REGISTRY=LABEL, such as cell_types=CL:0000084; {word!r} is none")
        labels.setdefault(registry, []).append(label)
    return labels


def _pairs(option: str, words: list[str] | None) -> dict[str, str] | str | None:
    """``NAME=VALUE …`` as a dictionary; a single word without "=" is meant for all."""
    if words is None or (len(words) == 1 and "=" not in words[0]):
        return words[0] if words else None
    wrong = [word for word in words if "=" not in word]
    if wrong:
        raise ValueError(f"--{option} takes one value for all, or NAME=VALUE pairs; {wrong[0]!r} is no such pair")
    return dict(word.split("=", 1) for word in words)
