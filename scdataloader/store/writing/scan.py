"""What is to be known of sources before they are converted, and what cannot be converted at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scdataloader.protocols import Closes, HasOrganism, Source
from scdataloader.store.gene_spaces import GeneNumbers
from scdataloader.store.manifest import Kind
from scdataloader.store.tables import GeneList
from scdataloader.store.writing.plan import GROUPED, PlannedSource, split_cells
from scdataloader.store.writing.tasks import stored_offsets

LAYOUTS = ("source", "shuffled", f"{GROUPED}<obs column>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How sources are to be written."""

    layout: str | None = None
    """How cells are ordered, see `LAYOUTS`; None for that of the store that is added to, or else the sources'."""
    append: bool = False
    """Whether to add to a store, or to make a new one."""
    seed: int = 0
    """Of the random order."""
    kind: Kind = "counts"
    """What values are kept as."""
    cells_per_shard: int = 1 << 17
    """At most."""

    def __post_init__(self) -> None:
        layout = self.layout
        is_known = layout is None or layout in LAYOUTS[:2] or (layout.startswith(GROUPED) and layout != GROUPED)
        if not is_known:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; not {layout!r}")
        if self.cells_per_shard < 1:
            raise ValueError(f"cells_per_shard must be 1 or more, not {self.cells_per_shard}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """A source about to be converted."""

    source: Source
    """It."""
    planned: PlannedSource
    """What the plan says of it."""
    genes: NDArray[np.int32]
    """``(n_genes,)`` its genes in its own order, by their numbers among the names of all."""
    ranges: list[tuple[int, int]]
    """Rows of its shards."""


def scan(sources: Sequence[Source], layout: str, cells_per_shard: int, genes: GeneNumbers) -> list[Scanned]:
    """Look at all sources, one after the other; no cell is read. Their genes are added to ``genes``.

    Raises:
        ValueError: there is no cell, a source is named twice, or has gene ids more than once.
        KeyError: a source lacks the column to group by.
    """
    lists: dict[str, NDArray[np.int32]] = {}
    names: dict[str, str] = {}
    found = []
    for source in sources:
        found.append(_scan(source, layout, cells_per_shard, genes, lists))
        planned = found[-1].planned
        if planned.fingerprint in names:
            raise ValueError(
                f"{planned.name} and {names[planned.fingerprint]} hold the same (fingerprint {planned.fingerprint}); "
                "name a source once"
            )
        names[planned.fingerprint] = planned.name
    if not any(one.planned.n_cells for one in found):
        raise ValueError(f"there is no cell in {', '.join(names.values())}")
    return found


def _scan(
    source: Source, layout: str, cells_per_shard: int, names: GeneNumbers, lists: dict[str, NDArray[np.int32]]
) -> Scanned:
    if layout.startswith(GROUPED):
        source.obs([layout.removeprefix(GROUPED)])
    genes = GeneList.of(source)
    if genes.digest not in lists:  # thousands of sources with the same gene table share one array
        lists[genes.digest] = names.numbers(genes.ids)
    planned = PlannedSource(
        name=source.name,
        fingerprint=source.fingerprint,
        n_cells=source.n_obs,
        genes=genes.digest,
        uns_organism=source.organism if isinstance(source, HasOrganism) else None,
    )
    ranges = split_cells(source.n_obs, cells_per_shard, stored_offsets(source), len(genes.ids))
    if isinstance(source, Closes):
        source.close()  # gene tables and offsets of thousands of sources would not fit into memory
    return Scanned(source=source, planned=planned, genes=lists[genes.digest], ranges=ranges)
