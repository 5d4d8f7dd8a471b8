"""The options that name the cells of a run and how they are drawn; shared by `DataModule` and the commands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

from scdataloader.collection.collection import Collection
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.labels.hierarchy import Hierarchies
from scdataloader.labels.roll_up import RollUp
from scdataloader.protocols import SamplingPlan
from scdataloader.registry import Kind, load
from scdataloader.runtime.faults import Faults
from scdataloader.runtime.messages import did_you_mean
from scdataloader.sampling.options import Sampling
from scdataloader.sampling.splits import Split, Splits, split_cells
from scdataloader.sampling.training_cells import CollectionCells

Options = TypeVar("Options")

BATCH_SIZE = 64
"""Default of ``batch_size``."""


@dataclass(eq=False, repr=False)
class DataConfig:
    """Which cells there are, and how they are split, weighted and drawn; nothing is opened by making one.

    Args:
        data: Paths or globs of .h5ad files, AnnData .zarr folders and stores, "lamindb:<collection key>", or what a
            plug-in has registered; one or a list; or {corpus: one or a list}, see `Mixture`. From Python also `Source`
            objects, lamindb collections and artifacts.
        labels: Columns of the cell table whose codes every batch carries, in this order; one or a list. "a//b" are the
            joint labels of the columns a and b.
        where: Values that the cells must have: {column of obs: values}, or also {registry: labels} for data of lamindb;
            see `Collection.open`.
        hierarchies: Columns of labels, or to sample by, whose labels are terms of the ontologies of their ids; or
            {column: ontology, or a list of several}, by name ("CL") or file; from Python also an `Ontology`.
        roll_up: {column: `RollUp`} for fewer classes in columns of ``hierarchies``.
        sampling: How training cells are drawn: `Sampling`, another `SamplingPlan`, or the registered name of one. By
            default every cell once per epoch, in random order.
        split: How cells are divided into training, validation and test; by default all train.
        alignment: How genes are found and aligned to one vocabulary; by default every gene of every source.
        counts: Which matrix has the counts: "X", "layers/<key>", "raw", or "auto" for the first that has integers.
        values: "counts" refuses values that are negative or fractions, "any" takes them.

    From Python, a dictionary of their options stands for `Sampling`, `Split`, `GeneAlignment` and `RollUp`.

    Raises:
        TypeError: an option is of a type that it does not take, or a dictionary has an unknown key.
    """

    data: list[str] | str | Any
    labels: list[str] | str | None = None
    # strings first: the command line takes the first type that fits
    where: dict[str, list[str | bool | float] | str | bool | float] | None = None
    hierarchies: list[str] | dict[str, Any] | str | None = None
    roll_up: dict[str, RollUp] | None = None
    sampling: Sampling | SamplingPlan | str | None = None
    split: Split | None = None
    alignment: GeneAlignment | None = None
    counts: str = "auto"
    values: Literal["counts", "any"] = "counts"

    def __post_init__(self) -> None:
        self.labels = None if self.labels is None else listed("labels", self.labels)
        if self.hierarchies is not None and not isinstance(self.hierarchies, Mapping):
            self.hierarchies = listed("hierarchies", self.hierarchies)
        self.sampling = options_of(Sampling, self.sampling, "sampling")
        self.split = options_of(Split, self.split, "split")
        self.alignment = options_of(GeneAlignment, self.alignment, "alignment")
        if self.roll_up is not None:
            self.roll_up = {column: options_of(RollUp, how, "roll_up") for column, how in self.roll_up.items()}

    @property
    def label_columns(self) -> list[str]:
        """``labels`` as a list."""
        return list(self.labels or ())

    @cached_property
    def plan(self) -> SamplingPlan:
        """``sampling`` as an object.

        Raises:
            LookupError: no plan is registered under the name.
            TypeError: what is given, or registered under the name, is not a `SamplingPlan`.
        """
        if self.sampling is None:
            return Sampling()
        plan = plugged("sampler", self.sampling)
        if not isinstance(plan, SamplingPlan):
            raise TypeError(f"sampling must be a plan with a method sampler(); got {type(plan).__name__}")
        return plan

    def open(self, alignment: GeneAlignment | None = None, faults: Faults | None = None) -> Collection:
        """The table of cells; ``alignment`` replaces that of the options, ``faults`` is for `Collection.open`."""
        return Collection.open(
            self.data,
            where=self.where,
            genes=alignment or self.alignment,
            counts=self.counts,
            values=self.values,
            faults=faults,
        )

    def hierarchies_of(self, collection: Collection, used: Sequence[str] | None = None) -> Hierarchies:
        """The columns of the collection that have an ontology; see `Hierarchies` for ``used``."""
        named = self.hierarchies if isinstance(self.hierarchies, Mapping) else list(self.hierarchies or ())
        return Hierarchies(collection, named, self.roll_up, used)

    def training_cells_of(self, collection: Collection, hierarchies: Hierarchies | None = None) -> CollectionCells:
        """The cells of the training split; ``hierarchies`` are those of the collection, if they are fitted already."""
        return CollectionCells(
            collection, self.splits_of(collection).train_rows, hierarchies or self.hierarchies_of(collection)
        )

    def splits_of(self, collection: Collection) -> Splits:
        """Which rows train, validate and test."""
        return split_cells(collection, self.split or Split())


def plugged(kind: Kind, given: Any) -> Any:
    """The object that a registered name or a class stands for; any other object as it is.

    Raises:
        LookupError: nothing is registered under the name.
    """
    made = load(kind, given) if isinstance(given, str) else given
    return made() if made is not given or isinstance(given, type) else given


def listed(option: str, names: Any) -> list[str]:
    """One name, or several in order, as a list.

    Raises:
        TypeError: they are not names in an order.
    """
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, Iterable) or isinstance(several, Mapping | set | frozenset):
        raise TypeError(f"{option} must be a name or a list of names; got {type(names).__name__} {names!r}")
    several = list(several)
    wrong = [name for name in several if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"{option} must be names; got {type(wrong[0]).__name__} {wrong[0]!r}")
    return several


def options_of(kind: type[Options], given: Any, option: str) -> Any:
    """A dictionary of options as an object of ``kind``, the dataclass that has them; anything else as it is.

    Raises:
        TypeError: a key is not an option; suggests the nearest one.
    """
    if not isinstance(given, Mapping):
        return given
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise TypeError(
            f"{option} has no option {unknown[0]!r}{did_you_mean(str(unknown[0]), known)}; {kind.__name__} takes "
            f"{', '.join(known)}"
        )
    return kind(**given)
