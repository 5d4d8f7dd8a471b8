"""The interfaces of plug-ins.

A source, a sampler, a sampling plan, a transform and a collate function are any objects with the members of the
protocol of that name; no base class is needed. The other protocols are optional capabilities: an object that has the
members gets what their docstrings describe, and no other member of a plug-in is ever used. `scdataloader.testing`
checks an object against the laws that these docstrings state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from scdataloader.types import CellBatch, CSRMatrix, CSRRows, RowBuffers, SharedGenes

# ------------------------------------------------------------------------------------------------------------- sources


@runtime_checkable
class Source(Protocol):
    """One place that holds cells: a file, a table of a database, arrays in memory."""

    @property
    def name(self) -> str:
        """Name of the source in messages."""

    @property
    def n_obs(self) -> int:
        """Number of cells."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when X, obs or var change."""

    @property
    def var(self) -> pd.DataFrame:
        """Genes in the order of their numbers; the index holds the gene ids as written."""

    @property
    def obs_columns(self) -> Sequence[str]:
        """Names of the columns of the cell table."""

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of the cell table: ``n_obs`` rows, with any index. Categorical columns stay categorical.

        Raises:
            KeyError: a column is missing; the message names the source.
        """

    def read(self, rows: NDArray[np.int64]) -> CSRRows:
        """Cells ``rows`` in that order, repeats allowed, in the source's own gene numbering. Thread-safe.

        Raises:
            ForkError: the source cannot be read in a process that was forked after it was opened, as this one was.
            IndexError: a row is outside ``[0, n_obs)``.
        """


@runtime_checkable
class HasNames(Protocol):
    """A source whose cells have names."""

    def obs_names(self) -> pd.Index:
        """``(n_obs,)`` name of each cell: the index of the cell table."""


@runtime_checkable
class HasPath(Protocol):
    """A source that is stored at a path. Patterns of options such as "mouse/*" match the end of the path.

    Where several sources have one name, each is given a name that tells it apart, by as much of its path as needed.
    """

    name: str

    @property
    def path(self) -> Path:
        """The file or folder; of a source within one, this and the place in it, such as "a.h5mu/mod/rna"."""


@runtime_checkable
class HasGenePositions(Protocol):
    """A converted source, as those of a store, whose ``var`` is not in the order of the original source."""

    def gene_positions(self) -> NDArray[np.int64]:
        """``(len(var),)`` position of each gene in the original source. A further conversion keeps that order."""


@runtime_checkable
class SharesGenes(Protocol):
    """A source whose genes are some of a list that it shares with others, which is matched once for all of them."""

    @property
    def shared_genes(self) -> SharedGenes | None:
        """The index of ``var``; None if ``var`` has to be read for the names of genes.

        Without ``var_columns``, the source states that the index holds the names of its genes, and that all its
        features are genes.
        """


@runtime_checkable
class HasMatrix(Protocol):
    """A source whose whole matrix can be addressed in memory; it is then read without calling ``read``."""

    @property
    def matrix(self) -> CSRMatrix | None:
        """The matrix, loaded or memory-mapped; None if this source cannot offer it.

        If its files may change, the source is `NoticesChanges` as well.
        """


@runtime_checkable
class NoticesChanges(Protocol):
    """A source of files that other processes may change. Its methods check this themselves."""

    def check_unchanged(self) -> None:
        """Called after values were taken from `HasMatrix.matrix`, before they are used.

        Raises:
            SourceChangedError: a file has changed since the source was opened, or cannot be read; names it.
        """


@runtime_checkable
class ReadsStored(Protocol):
    """A source that can give values as stored: in their dtype, and unsorted within a cell. These are what is read."""

    def read_stored(self, rows: NDArray[np.int64]) -> CSRMatrix:
        """Cells ``rows`` as in `Source.read`, except for the dtype of the values and their order within a cell."""


TakePart: TypeAlias = "Callable[[CSRMatrix, NDArray[np.int64], NDArray[np.int64]], None]"
"""Takes ``(matrix, at, place)``: rows ``at`` of a matrix, and which of the requested cells these are."""


@runtime_checkable
class ReadsParts(Protocol):
    """A source that decodes its cells in parts, which need not be in memory together."""

    def stored_sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """``(len(rows),)`` number of stored values of each; None if parts cannot be read, as of another layout."""

    def read_parts(self, rows: NDArray[np.int64], take: TakePart) -> None:
        """Pass on cells ``rows`` as stored, as by `ReadsStored.read_stored`, in parts.

        ``take`` is called from any thread, with every cell once; a matrix is valid during the call. What is in it has
        not been checked.
        """


@runtime_checkable
class HasSizes(Protocol):
    """A source that may know the sizes of its cells without reading their values."""

    def nnz(self) -> NDArray[np.int64] | None:
        """``(n_obs,)`` number of stored values of each cell, as `Source.read` gives; None if reading is needed."""


@runtime_checkable
class HasMatrices(Protocol):
    """A source with matrices besides its counts."""

    @property
    def matrix_keys(self) -> Sequence[str]:
        """Keys such as "layers/spliced" (in the genes of ``var``), "obsm/X_pca" (any columns) and "obsp/distances"."""

    def read_matrix(self, key: str, rows: NDArray[np.int64]) -> CSRRows | NDArray[np.float32]:
        """Cells ``rows`` of a matrix: ``(len(rows), D)`` float32 for "obsm/…", sparse rows for others.

        Those of "layers/…" are in the genes of ``var``. Those of "obsp/…" are in the rows of the source, and each of
        their entries is an edge, also one of value 0.

        Raises:
            KeyError: the matrix does not exist.
        """


@runtime_checkable
class HasMatrixColumns(Protocol):
    """A source that may know the names of the columns of its matrices "obsm/…", such as those of proteins."""

    def matrix_columns(self, key: str) -> Sequence[str] | None:
        """``(D,)`` names of the columns; None if they have none. All sources that have names must have the same."""


@runtime_checkable
class HasNeighbours(Protocol):
    """A source that has a graph of its cells, as scanpy writes it to ``obsp["distances"]``."""

    def neighbours(
        self, rows: NDArray[np.int64], k: int, key: str = "distances"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """``(len(rows), k)`` rows of the nearest neighbours in this source, nearest first, and their distances.

        The cell itself is not a neighbour; another cell at distance 0 is, if the graph has it. Ties go to the lower
        row. Where a cell has fewer neighbours, rows and distances of the places left are -1.

        Args:
            rows: The cells.
            k: Number of neighbours.
            key: Name of the graph, as in ``obsp``.

        Raises:
            KeyError: there is no such graph; names the source.
        """


@runtime_checkable
class HasOrganism(Protocol):
    """A source that states an organism outside of obs."""

    @property
    def organism(self) -> str | None:
        """Name or NCBITaxon id; None if it states none."""


@runtime_checkable
class HasLabels(Protocol):
    """A source that states columns of obs without reading them."""

    @property
    def labels(self) -> Mapping[str, str]:
        """{column of obs: its label} of columns that hold the same text for all cells; it need not have all of them."""


@runtime_checkable
class ReadsObsInPieces(Protocol):
    """A source whose columns of obs need not be in memory as a whole."""

    def obs_pieces(self, column: str) -> Iterator[pd.Series[Any]]:
        """A column of obs in pieces of some cells, in order.

        Raises:
            KeyError: the column is missing; names the source.
        """


@runtime_checkable
class HasCountsLocation(Protocol):
    """A source with several candidates for the counts."""

    @property
    def counts(self) -> str:
        """Where the counts were found, such as "X" or "layers/counts"; shown by ``inspect``."""


@runtime_checkable
class HasFileState(Protocol):
    """A source in files. A conversion converts it anew if they are written to before it ends."""

    def file_state(self) -> str | None:
        """Sizes and times of change of the files, or a digest of them: another text once they have been written to.

        None if there are none.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadCost:
    """Estimated time of reading, by which the loader chooses how many cells it reads at once."""

    cell: float
    """Microseconds for a cell that is read alone."""
    neighbour: float
    """Microseconds for a cell whose neighbours are read with it."""
    is_ahead: bool = False
    """Whether the expensive part is done by ``read_ahead``; small reads then cost as little per cell as large ones."""

    @property
    def is_flat(self) -> bool:
        """Whether small reads cost about as much per cell as large ones."""
        return self.cell < 4 * self.neighbour

    @property
    def is_steep(self) -> bool:
        """Whether hundreds of cells can be read in the time of one alone; then as many as fit are read at once."""
        return self.cell >= 500 * self.neighbour

    def cells_per_second(self, n_cells: int, draws: int) -> float:
        """Estimated rate at which ``draws`` single random cells of ``n_cells`` are read at once."""
        n_units = max(1.0, n_cells * self.neighbour / self.cell)
        n_read = n_units * -np.expm1(-draws / n_units)  # the others are not drawn
        return float(1e6 * draws / (n_read * self.cell + draws * self.neighbour))


@runtime_checkable
class HasReadCost(Protocol):
    """A source that can estimate how long reading takes."""

    @property
    def read_cost(self) -> ReadCost:
        """The estimate, for cells that are not in memory yet."""


@runtime_checkable
class Closes(Protocol):
    """A source that holds files, maps or connections."""

    def release(self) -> None:
        """Free the memory of what was read so far; later reads get it again."""

    def close(self) -> None:
        """Close files and drop everything that can be read again. A later read opens them again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSelection:
    """A source and a selection of its cells."""

    source: Source
    rows: NDArray[np.int64] | None = None
    """``(m,)`` row numbers in the source, ascending, at least one; None for all cells."""
    corpus: str | None = None
    """Name of the corpus that the source belongs to; None if the data are not divided into corpora."""

    @property
    def n_obs(self) -> int:
        """Number of selected cells."""
        return self.source.n_obs if self.rows is None else len(self.rows)


# ------------------------------------------------------------------------------- sources that are read together


class PendingRead(Protocol):
    """Cells that are located and not read yet."""

    @property
    def member(self) -> NDArray[np.integer[Any]]:
        """``(m,)`` which member of the group each cell belongs to, from 0."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(m,)`` maximum of entries that each cell can have. If files have to be decoded, this reads them."""

    def slice(self, start: int, stop: int) -> PendingRead:
        """Cells ``[start, stop)`` of these."""

    def read_ahead(self) -> None:
        """Start loading the cells; returns at once."""

    def write(self, place: NDArray[np.int64], rows: RowBuffers) -> None:
        """Write the cells, in vocabulary genes, into the slots ``place`` ``(m,)`` of ``rows``."""


class PendingMatrix(Protocol):
    """Cells of a further matrix that are located and not read yet."""

    def slice(self, start: int, stop: int) -> PendingMatrix:
        """Cells ``[start, stop)`` of these."""

    def read_ahead(self) -> None:
        """Start loading the cells; returns at once."""

    def read(self) -> CSRRows | NDArray[np.float32]:
        """The cells: rows in vocabulary genes of "layers/…", ``(m, D)`` of "obsm/…"."""


class ReadGroup(Protocol):
    """Consecutive sources of a collection that are read in one go."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the cells and their order."""

    @property
    def read_cost(self) -> ReadCost:
        """See `HasReadCost`."""

    @property
    def is_interleaved(self) -> bool:
        """Whether the cells of different members alternate; otherwise rows go member after member."""

    def arrange(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Values of the cells of each member, in the order of the group's rows."""

    def locate(self, rows: NDArray[np.int64]) -> PendingRead:
        """Cells ``rows``, numbered from 0 in the group."""


@runtime_checkable
class ReadsTogether(Protocol):
    """A source that is faster to read together with others of the same place, as the sources of one store are."""

    @property
    def read_group(self) -> Hashable:
        """Consecutive sources of a collection with equal values of this are opened as one group."""

    def open_group(
        self, members: Sequence[SourceSelection], luts: Sequence[NDArray[np.int32]], n_genes: int
    ) -> ReadGroup:
        """A reader of all ``members``; called on the first of them.

        Args:
            members: The sources of the group, with the selection of their cells.
            luts: For each member ``(len(var),)`` the vocabulary number of each of its genes; -1 for a gene outside
                the vocabulary, whose values only count towards the cell's depth; -2 for a feature that is not a gene,
                whose values do not.
            n_genes: Length of the vocabulary.
        """


@runtime_checkable
class NeverChanges(Protocol):
    """A read group of data that never change under its fingerprint: what is computed from obs is kept in files."""

    @property
    def cache_folder(self) -> Path | None:
        """Folder beside the data for such files, which need not exist; None for the user's cache alone."""


@runtime_checkable
class ReadsMatrices(Protocol):
    """A read group that reads further matrices of its sources in one go; otherwise source after source is read."""

    def locate_matrix(self, key: str, rows: NDArray[np.int64]) -> PendingMatrix:
        """Cells ``rows``, numbered from 0 in the group, of "layers/…" in vocabulary genes, or of "obsm/…"."""


# ------------------------------------------------------------------------------------------------------ opening sources


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOptions:
    """Requirements on the values that a user sets; see `scdataloader.open_source`."""

    counts: str = "auto"
    """Which matrix holds the counts: "X", "layers/<key>", "raw" or "auto"."""
    values: Literal["counts", "any"] = "counts"
    """Whether values that are negative or fractions are refused."""


Where: TypeAlias = Mapping[str, Any]
"""Values that cells must have, one or a list by name. The names are columns of obs, as in
``{"is_primary_data": True}``; for data of lamindb also registries, as in ``{"cell_types": "CL:0000084 and below"}``."""


@runtime_checkable
class SourceOpener(Protocol):
    """Opener of a kind of data, registered under its name; see `scdataloader.registry.register`.

    A function is one, such as ``lambda addresses, options: [ToySource(address) for address in addresses]``.
    """

    def __call__(self, addresses: Sequence[Any], options: OpenOptions, /) -> Iterable[Source | SourceSelection]:
        """The sources of consecutive entries of a user's ``data``, in order.

        Args:
            addresses: Strings as written, paths that match, or Python objects.
            options: The user's requirements on the values.
        """


@runtime_checkable
class SelectsCells(Protocol):
    """An opener that selects cells itself, by registries and columns of obs: ``Collection.open(..., where=...)``."""

    def select(
        self, addresses: Sequence[Any], options: OpenOptions, where: Where
    ) -> Iterable[Source | SourceSelection]:
        """The sources as by a call, but only the cells that have the labels.

        Raises:
            LookupError: no cell has them, or there is no such label, registry or column.
        """


# ------------------------------------------------------------------------------------------------------------ sampling


@runtime_checkable
class Sampler(Protocol):
    """The order in which cells are drawn, as a pure function of (epoch, position)."""

    @property
    def num_samples(self) -> int:
        """Draws in one epoch, over all ranks."""

    def draw(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """``(stop - start,)`` row numbers of the draws at positions ``[start, stop)`` of ``epoch``. Thread-safe."""


@runtime_checkable
class HasFingerprint(Protocol):
    """A sampler that identifies its stream. Without this, a saved state is compared by the first draws of epoch 0."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of all that the order depends on."""


@runtime_checkable
class HasWindow(Protocol):
    """A sampler that spreads neighbouring cells over a window of draws, to be read together."""

    @property
    def window(self) -> int | None:
        """Draws in a window; None if there are no windows."""


@runtime_checkable
class DrawsSets(Protocol):
    """A sampler whose draws form sets of cells that stay together: batches hold whole sets, on every rank."""

    @property
    def set_size(self) -> int:
        """Cells of a set, which are drawn at positions ``[k * set_size, (k + 1) * set_size)``; 1 for single cells.

        ``num_samples`` is a multiple of this.
        """

    @property
    def n_controls(self) -> int:
        """How many cells at the end of each set are controls of the others."""


class TrainingCells(Protocol):
    """The cells that a sampling plan draws from."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """``(n,)`` row numbers in the collection, ascending."""

    @property
    def source(self) -> NDArray[np.integer[Any]]:
        """``(n,)`` which source of the collection each cell belongs to."""

    @property
    def source_names(self) -> Sequence[str]:
        """Name of each source."""

    @property
    def corpus(self) -> NDArray[np.integer[Any]]:
        """``(n,)`` which corpus each cell belongs to; all 0 if the data are not divided into corpora."""

    @property
    def corpus_names(self) -> Sequence[str]:
        """Name of each corpus, sorted; empty if the data are not divided into corpora."""

    def obs(self, columns: Sequence[str]) -> pd.DataFrame:
        """``(n, len(columns))`` columns of the cell table; missing values where a source lacks a column.

        Raises:
            KeyError: no source has a column.
        """

    def classes(self, columns: Sequence[str]) -> tuple[NDArray[np.signedinteger[Any]], list[tuple[str, ...]]]:
        """``(n,)`` class of each cell by its labels in ``columns``, -1 for unknown, and the labels of each class.

        The array has a type that holds the classes, int8 for few: convert it before computing with it. Do not write to
        it.
        """

    def nnz(self) -> NDArray[np.int64]:
        """``(n,)`` number of stored values of each cell, over the features that count as genes."""

    @property
    def collection_size(self) -> int:
        """Number of cells of the whole collection."""

    @property
    def hierarchies(self) -> Mapping[str, Any]:
        """{column: `Hierarchy`} of the columns whose labels are terms of an ontology; each is built on first use."""


@runtime_checkable
class SamplingPlan(Protocol):
    """How training cells are drawn: ``DataModule(sampling=...)``. `Sampling` is one."""

    def sampler(self, cells: TrainingCells, /, *, seed: int, global_batch_size: int) -> Sampler:
        """The sampler of a training run; it draws among ``cells.rows``.

        Args:
            cells: The cells of the training split.
            seed: Seed of the stream of draws.
            global_batch_size: Cells of one step over all ranks.
        """


@runtime_checkable
class HasColumns(Protocol):
    """A plan that draws by columns of obs."""

    @property
    def columns(self) -> Sequence[str]:
        """Their names. The classes of a plan that also describes its classes are the joint labels of these."""


@runtime_checkable
class HasPlans(Protocol):
    """A plan that draws by other plans."""

    @property
    def plans(self) -> Sequence[SamplingPlan]:
        """These plans. Their columns of ontology terms are used as well."""


@runtime_checkable
class HasEvaluation(Protocol):
    """A plan with another one for the cells of validation and test, which otherwise come one by one in order."""

    @property
    def evaluation(self) -> SamplingPlan | None:
        """The plan; every pass over its first epoch draws each cell at least once, if it can be drawn at all.

        None for cells one by one in order.
        """


class DrawnClasses(Protocol):
    """The classes that a plan draws by."""

    @property
    def names(self) -> Sequence[str]:
        """``(C,)`` name of each class."""

    @property
    def codes(self) -> NDArray[np.signedinteger[Any]]:
        """``(n,)`` class of each training cell; -1 is unknown."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(C + 1,)`` cells of each class that can be drawn if the class is; those of unknown labels last."""

    def target_shares(self, epoch: int) -> NDArray[np.float64]:
        """``(C + 1,)`` target share of the draws of ``epoch`` for each class; that of unknown labels last."""

    def summary(self) -> str:
        """One line for the log."""


@runtime_checkable
class DescribesClasses(Protocol):
    """A plan that describes the classes it draws by, for the monitor, ``inspect`` and ``report``."""

    def describe(self, cells: TrainingCells) -> DrawnClasses:
        """The classes of ``cells`` and their target shares."""


# ------------------------------------------------------------------------------------------------ batches for the model


class Vocabulary(Protocol):
    """The model's genes, in order."""

    @property
    def ids(self) -> Sequence[str]:
        """Gene id of each number."""

    @property
    def genes_dict(self) -> dict[str, list[str]]:
        """{organism: gene ids}; joined in order it is ``ids``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchContext:
    """What a collate function can use before the first batch."""

    vocabulary: Vocabulary
    """The genes of ``batch.x``."""
    labels: tuple[str, ...] = ()
    """Columns of ``batch.labels``, in order."""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """{label column: name of each code}."""
    set_size: int = 1
    """Cells of each set that the sampler draws, see `DrawsSets`; 1 for single cells."""
    n_controls: int = 0
    """How many cells at the end of each set are controls of the others."""
    gene_tables: Mapping[str, str] = field(default_factory=dict)
    """{organism: path} of the user's gene tables, see `GeneAlignment`; other organisms have those of the package."""
    medians: Callable[[], Mapping[str, float]] | None = None
    """Computes {gene id: median}, see `compute_medians`, over the training cells, or returns those of the checkpoint;
    None where training cells are not known."""


@runtime_checkable
class Transform(Protocol):
    """A change of a batch's values or genes, before it is collated."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator, /) -> CellBatch:
        """A new batch; ``rng`` depends on (seed, epoch, position of the batch) alone."""


@runtime_checkable
class PerCell(Protocol):
    """A transform that treats cells independently and uses no ``rng``; it is applied to many batches at once."""

    @property
    def per_cell(self) -> bool:
        """Whether it does."""


@runtime_checkable
class Collate(Protocol):
    """The last step before the model: cells to a mapping of tensors, with any keys."""

    def __call__(self, batch: CellBatch, rng: np.random.Generator, /) -> Mapping[str, Any]:
        """One batch; ``rng`` depends on (seed, epoch, position of the batch) alone."""


@runtime_checkable
class Binds(Protocol):
    """A collate function that needs the vocabulary or the classes; bound once, when a loader is made."""

    def bind(self, context: BatchContext) -> Collate:
        """The collate function to call. Its optional members are used, not those of the unbound one."""


@runtime_checkable
class WantsObs(Protocol):
    """A collate function that wants columns of obs in ``batch.obs``."""

    @property
    def obs(self) -> Sequence[str]:
        """Their names. Every source must have them."""


@runtime_checkable
class WantsMatrices(Protocol):
    """A collate function that wants further matrices in ``batch.matrices``."""

    @property
    def matrices(self) -> Sequence[str]:
        """Their keys, such as "layers/spliced" or "obsm/X_pca". Every source must have them."""


@runtime_checkable
class CollatesMany(Protocol):
    """A collate function that treats cells independently and is faster for many cells at once."""

    def many(self, cells: CellBatch, batch_size: int) -> Sequence[Mapping[str, Any]]:
        """Consecutive batches of ``batch_size`` cells, as by single calls.

        Used if there are no transforms, or all of them are `PerCell`; not if a subclass defines ``__call__`` only.
        """


def makes_many(collate: object) -> TypeGuard[CollatesMany]:
    """Whether ``many`` makes what calls do: not if it is inherited by a class that defines ``__call__`` only."""
    if not isinstance(collate, CollatesMany):
        return False
    definers = (vars(kind) for kind in type(collate).__mro__ if {"__call__", "many"} & vars(kind).keys())
    return "many" in next(definers, {"many": None})


@runtime_checkable
class Densifies(Protocol):
    """A collate function with sparse tensors that are made dense on the model's device."""

    @property
    def densify(self) -> Sequence[str]:
        """Keys of its batches whose tensors are sparse CSR."""


@runtime_checkable
class HasTokens(Protocol):
    """A collate function, before `Binds.bind`, that makes tokens of a dictionary."""

    def token_dictionary(self, vocabulary: Vocabulary) -> Mapping[str, int]:
        """{gene or special token: token}; the command line sets ``n_tokens`` and ``pad_token`` of a model by it."""


# The command line accepts a class as one of these only if its annotations are those of the protocol, or if those are
# Any. At run time they are Any, so that a plug-in can be annotated in its own way, or not at all.
for _method in (SamplingPlan.sampler, Transform.__call__, Collate.__call__):
    _method.__annotations__ = dict.fromkeys(_method.__annotations__, Any)


# ----------------------------------------------------------------------------------------------------------- ontologies


OntologyFactory: TypeAlias = Callable[[str], Any]
"""Registered under the prefix of an ontology ("CL"): takes the name and returns a `scdataloader.Ontology`."""
