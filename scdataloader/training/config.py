"""The options that name the cells of a run and how they are drawn; shared by `DataModule` and the commands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from scdataloader.collection.collection import Collection
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.labels.roll_up import RollUp
from scdataloader.protocols import SamplingPlan
from scdataloader.registry import load
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.splits import Split, Splits, split_cells
from scdataloader.sampling.training_cells import CollectionCells

BATCH_SIZE = 64
"""Default of ``batch_size``."""


@dataclass(eq=False, repr=False)
class DataConfig:
    """Which cells there are, and how they are split, weighted and drawn; nothing is opened by making one.

    Args:
        data: Paths or globs of .h5ad files, AnnData .zarr folders and stores, "lamindb:<collection key>", or what a
            plug-in has registered; one or a list. From Python also `Source` objects, lamindb collections and artifacts.
        labels: Columns of the cell table whose codes every batch carries, in this order.
        where: Labels that the cells of lamindb data must have, as {registry: labels}; see `Collection.open`.
        hierarchies: Columns of labels, or to sample by, whose labels are terms of the ontologies of their ids; or
            {column: ontology, or a list of several}, by name ("CL") or file; from Python also an `Ontology`.
        roll_up: {column: `RollUp`} for fewer classes in columns of ``hierarchies``.
        sampling: How training cells are drawn: `Sampling`, another `SamplingPlan`, or the registered name of one. By
            default every cell once per epoch, in random order.
        split: How cells are divided into training, validation and test; by default all train.
        alignment: How genes are found and aligned to one vocabulary; by default every gene of every source.
        counts: Which matrix has the counts: "X", "layers/<key>", "raw", or "auto" for the first that has integers.
        values: "counts" refuses values that are negative or fractions, "any" takes them.
    """

    data: list[str] | str | Any
    labels: list[str] | None = None
    where: dict[str, list[str] | str] | None = None
    hierarchies: list[str] | dict[str, Any] | None = None
    roll_up: dict[str, RollUp] | None = None
    sampling: Sampling | SamplingPlan | str | None = None
    split: Split | None = None
    alignment: GeneAlignment | None = None
    counts: str = "auto"
    values: Literal["counts", "any"] = "counts"

    @cached_property
    def plan(self) -> SamplingPlan:
        """``sampling`` as an object.

        Raises:
            LookupError: no plan is registered under the name.
            TypeError: what is given, or registered under the name, is not a `SamplingPlan`.
        """
        plan = load("sampler", self.sampling)() if isinstance(self.sampling, str) else self.sampling
        if plan is None:
            return Sampling()
        if not isinstance(plan, SamplingPlan):
            raise TypeError(f"sampling must be a plan with a method sampler(); got {type(plan).__name__}")
        return plan

    def open(self, alignment: GeneAlignment | None = None) -> Collection:
        """The table of cells; ``alignment`` is another than that of the options."""
        alignment = alignment or self.alignment
        return Collection.open(self.data, where=self.where, genes=alignment, counts=self.counts, values=self.values)

    def hierarchies_of(self, collection: Collection) -> Hierarchies:
        """The columns of the collection that have an ontology."""
        return Hierarchies(collection, self.hierarchies or [], self.roll_up)

    def training_cells_of(self, collection: Collection, hierarchies: Hierarchies | None = None) -> CollectionCells:
        """The cells of the training split; ``hierarchies`` are those of the collection, if they are fitted already."""
        return CollectionCells(
            collection, self.splits_of(collection).train, hierarchies or self.hierarchies_of(collection)
        )

    def splits_of(self, collection: Collection) -> Splits:
        """Which rows train, validate and test."""
        return split_cells(collection, self.split or Split())
