"""Scan of the sources of a conversion: their genes and shards, and sources that cannot be converted at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scdataloader.genes.numbers import GeneNumbers
from scdataloader.kernels.draws.random import seed_of
from scdataloader.protocols import Closes, HasFileState, HasOrganism, Source
from scdataloader.runtime.messages import counted, shown
from scdataloader.store.gene_spaces import are_names
from scdataloader.store.manifest import Kind, MatrixPart
from scdataloader.store.tables import GeneList
from scdataloader.store.writing.matrices import matrix_part_of
from scdataloader.store.writing.plan import GROUPED, PlannedSource, split_cells
from scdataloader.store.writing.tasks import stored_offsets

logger = logging.getLogger(__name__)

SHUFFLED = "shuffled"
LAYOUTS = ("source", SHUFFLED, f"{GROUPED}<obs column>")
CELLS_PER_SHARD = 1 << 17
"""About 500 MB at 1,800 genes per cell; an interruption loses at most one such shard per process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How sources are written."""

    layout: str | None = None
    """Order of the cells, see `LAYOUTS`; None for that of the store, or "source" for a new one."""
    append: bool = False
    """Whether to add to an existing store."""
    seed: int | None = None
    """Seed of the shuffled order; None for that of the store, or 0 for a new one."""
    kind: Kind = "counts"
    """Kind of the values."""
    cells_per_shard: int | None = None
    """At most; None for those of the store, or `CELLS_PER_SHARD`."""
    matrices: tuple[str, ...] | None = None
    """Keys of further matrices, sorted; None for those of the store that is appended to, else none."""
    compact: bool = False
    """Whether records take as few bytes as they can."""

    def __post_init__(self) -> None:
        if self.seed is not None:
            object.__setattr__(self, "seed", seed_of(self.seed))
        layout = self.layout
        is_known = layout is None or layout in LAYOUTS[:2] or (layout.startswith(GROUPED) and layout != GROUPED)
        if not is_known:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
        if self.cells_per_shard is not None and self.cells_per_shard < 1:
            raise ValueError(f"cells_per_shard must be 1 or more; got {self.cells_per_shard}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScannedSource:
    """A source to convert."""

    source: Source
    planned: PlannedSource
    genes: NDArray[np.int32]
    """``(n_genes,)`` its genes in its own order, as `GeneNumbers`."""
    are_names: bool
    """Whether its gene ids are the names of its genes; see `gene_spaces.are_names`."""
    ranges: list[tuple[int, int]]
    """Rows [first, last) of its shards."""


class _Genes(NamedTuple):
    """The genes of a source; those of thousands of sources with the same gene table are one object."""

    digest: str
    repeated: tuple[str, ...]
    numbers: NDArray[np.int32]
    are_names: bool


def scan(
    sources: Sequence[Source], layout: str, cells_per_shard: int, genes: GeneNumbers, matrices: Sequence[str] = ()
) -> list[ScannedSource]:
    """Look at all sources, one after the other, without reading all cells. Their genes are added to ``genes``.

    Raises:
        ValueError: there are no cells, or a source occurs twice.
        KeyError: a source lacks the column to group by, or one of the further ``matrices``.
    """
    lists: dict[str, _Genes] = {}
    names: dict[str, str] = {}
    scanned = []
    for source in sources:
        parts = tuple(matrix_part_of(source, key) for key in matrices)
        scanned.append(_scan(source, parts, layout, cells_per_shard, genes, lists))
        planned = scanned[-1].planned
        if planned.fingerprint in names:
            raise ValueError(
                f"{planned.name} and {names[planned.fingerprint]} hold the same cells (fingerprint "
                f"{planned.fingerprint}); name a source once"
            )
        names[planned.fingerprint] = planned.name
    if not any(one.planned.n_cells for one in scanned):
        raise ValueError(f"there are no cells in {', '.join(names.values())}")
    return scanned


def _scan(
    source: Source,
    matrices: tuple[MatrixPart, ...],
    layout: str,
    cells_per_shard: int,
    names: GeneNumbers,
    lists: dict[str, _Genes],
) -> ScannedSource:
    if layout.startswith(GROUPED):
        source.obs([layout.removeprefix(GROUPED)])
    key = GeneList.key_of(source)
    if key not in lists:
        found = GeneList.of(source)
        numbers = names.numbers(found.ids)
        lists[key] = _Genes(found.digest, tuple(found.repeated), numbers, are_names(found.table, source.name))
    genes = lists[key]
    if genes.repeated:
        logger.warning(
            "%s has %s more than once (%s): their counts are summed",
            source.name,
            counted(len(genes.repeated), "gene id"),
            shown(genes.repeated),
        )
    planned = PlannedSource(
        name=source.name,
        file_state=source.file_state() if isinstance(source, HasFileState) else None,
        fingerprint=source.fingerprint,
        n_cells=source.n_obs,
        genes=genes.digest,
        uns_organism=source.organism if isinstance(source, HasOrganism) else None,
        matrices=matrices,
    )
    ranges = split_cells(source.n_obs, cells_per_shard, stored_offsets(source), len(genes.numbers))
    if isinstance(source, Closes):
        source.close()  # gene tables and offsets of thousands of sources would not fit into memory
    return ScannedSource(source=source, planned=planned, genes=genes.numbers, are_names=genes.are_names, ranges=ranges)
