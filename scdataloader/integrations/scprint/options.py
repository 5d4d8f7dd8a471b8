"""Options of scDataLoader 2.x's DataModule, and those of ours that they stand for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scdataloader.batches.selected_genes import How, SelectedGenes
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.integrations.scprint.batches import ScPrintBatch
from scdataloader.integrations.scprint.weights import JointValues
from scdataloader.sampling.weights import NNZ
from scdataloader.schema import ORGANISM
from scdataloader.training.config import BATCH_SIZE

HOW: dict[str, How] = {"most expr": "most expressed", "random expr": "random expressed", "all": "all"}
"""scDataLoader's ways to choose genes, and ours."""
N_NEIGHBOURS = 6
"""Neighbours of a cell, in metacells too; scDataLoader has no option for it."""

_WITHOUT_EFFECT = {
    "persistent_workers": "threads read ahead of the model",
    "prefetch_factor": "threads read ahead of the model",
    "sampler_chunk_size": "classes are indexed in one pass",
    "sampler_workers": "classes are indexed in one pass",
    "store_location": "nothing is computed that is worth keeping",
    "force_recompute_indices": "nothing is computed that is worth keeping",
}
"""Options that are accepted and have no effect, with the reason."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScPrintOptions:
    """Arguments of ``scdataloader.DataModule`` of scDataLoader 2.1.3; see `DataModule` of this package."""

    collection_name: str | None = None
    clss_to_weight: list[str] | None = None
    weight_scaler: float = 10
    n_samples_per_epoch: int = 2_000_000
    validation_split: int | float = 0.2
    test_split: int | float = 0
    use_default_col: bool = True
    clss_to_predict: list[str] | None = None
    hierarchical_clss: list[str] | None = None
    how: str = "random expr"
    organism_col: str = ORGANISM
    max_len: int = 1000
    replacement: bool = True
    gene_subset: list[str] | None = None
    tp_name: str | None = None
    assays_to_drop: list[str] | None = None
    metacell_mode: float = 0.0
    get_knn_cells: bool = False
    store_location: str | None = None
    force_recompute_indices: bool = False
    sampler_workers: int | None = None
    sampler_chunk_size: int | None = None
    organisms: list[str] | str | None = None
    genedf: pd.DataFrame | None = None
    n_bins: int = 0
    curiculum: int = 0
    start_at: int = 0
    restrict_to_subset: int | None = None
    batch_size: int = BATCH_SIZE
    num_workers: int = 2
    pin_memory: bool = True
    drop_last: bool = False
    prefetch_factor: int | None = None
    persistent_workers: bool = False
    data: list[str] | str | Any = None
    checkpoint: str | None = None
    seed: int | None = 0

    def __post_init__(self) -> None:
        if (self.collection_name is None) == (self.data is None):
            raise ValueError(
                "name the cells once: collection_name, the key of a lamindb collection, or data, as paths; got "
                f"collection_name={self.collection_name!r} and data={self.data!r}"
            )
        self._refuse()
        for name in ("validation_split", "test_split"):
            size = getattr(self, name)
            # the command line makes floats of whole numbers
            if size < 0 or (size >= 1 and size != int(size)) or (size == 1 and isinstance(size, float)):
                raise ValueError(
                    f"{name} must be a share of the cells, from 0 to below 1, or a number of cells; got {size}"
                )
        ignored = [name for name in _WITHOUT_EFFECT if getattr(self, name)]
        if ignored:
            reasons = "; ".join(dict.fromkeys(_WITHOUT_EFFECT[name] for name in ignored))
            logger.info("options without effect: %s (%s)", ", ".join(ignored), reasons)

    def _refuse(self) -> None:
        """Refuse values that have no counterpart."""
        if self.how not in HOW:
            known = ", ".join(map(repr, HOW))
            raise ValueError(f"how must be one of {known}, not {self.how!r}{_about_some(self.how)}")
        if self.metacell_mode and self.get_knn_cells:
            raise ValueError(f"metacell_mode={self.metacell_mode} excludes get_knn_cells; set one of them")
        if not self.use_default_col:
            raise ValueError("use_default_col=False has no counterpart; give a collate to scdataloader.DataModule")
        if self.organism_col != ORGANISM:
            raise ValueError(f"organism_col must be {ORGANISM!r}, not {self.organism_col!r}; rename the column of obs")
        if self.restrict_to_subset:
            raise ValueError(
                f"restrict_to_subset={self.restrict_to_subset} has no counterpart: every cell with a weight can be "
                "drawn; leave it out, or weigh cells by 'nnz' in clss_to_weight"
            )

    @property
    def dropped_assays(self) -> list[str]:
        """``assays_to_drop``; by default scATAC-seq, as in scDataLoader."""
        return ["EFO:0030007"] if self.assays_to_drop is None else list(self.assays_to_drop)

    def ours(self) -> dict[str, Any]:
        """Arguments of `scdataloader.DataModule`."""
        organisms = [self.organisms] if isinstance(self.organisms, str) else self.organisms
        labels = self._labels()
        hierarchical = self.hierarchical_clss or []
        ignored = [column for column in hierarchical if column not in labels]
        if ignored:
            logger.info("hierarchical_clss that clss_to_predict does not name have no effect: %s", ", ".join(ignored))
        return {
            "data": f"lamindb:{self.collection_name}" if self.data is None else self.data,
            "labels": labels or None,
            "where": {ORGANISM: organisms} if organisms else None,
            "hierarchies": [column for column in hierarchical if column in labels] or None,
            "sampling": self._sampling(),
            "alignment": None if self.genedf is None else GeneAlignment(vocabulary=_genes_by_organism(self.genedf)),
            "collate": ScPrintBatch(selection=self._selection(), n_bins=self.n_bins),
            "targets": [self.tp_name] if self.tp_name else None,
            "neighbours": N_NEIGHBOURS if self.get_knn_cells or self.metacell_mode else None,
            "metacell": self.metacell_mode or None,
            "batch_size": self.batch_size,
            "num_threads": max(1, self.num_workers),
            # True waits for a CUDA device, as a DataLoader does
            "pin_memory": None if self.pin_memory else False,
            "drop_last": self.drop_last,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
        }

    def _labels(self) -> list[str]:
        """Columns of labels; none are those of the checkpoint."""
        if self.clss_to_predict is not None:
            return list(self.clss_to_predict)
        return [] if self.checkpoint else [ORGANISM]

    def _sampling(self) -> JointValues:
        named = [ORGANISM] if self.clss_to_weight is None else self.clss_to_weight
        columns = [column for column in named if column != NNZ]
        if not self.weight_scaler or not named:
            return JointValues()
        by_class: dict[str, Any] = {}
        if columns:
            by_class = {"by": columns, "scheme": "saturating", "saturation": float(self.weight_scaler)}
            by_class["curriculum_epochs"] = self.curiculum
        return JointValues(
            **by_class,
            num_samples=int(self.n_samples_per_epoch),
            cell_factors=NNZ if NNZ in named else None,
            replacement=self.replacement,
        )

    def _selection(self) -> SelectedGenes:
        if self.how == "all":
            return SelectedGenes(how="all")
        return SelectedGenes(how=HOW[self.how], n_genes=self.max_len, fill="unexpressed")


def _about_some(how: str) -> str:
    return "; use gene_subset with how='all', because the DataModule has no list of genes" if how == "some" else ""


def _genes_by_organism(genedf: pd.DataFrame) -> dict[str, list[str]]:
    """{organism: ids} of a table as `load_genes` returns it."""
    organisms = genedf["organism"]
    return {str(organism): genedf.index[organisms == organism].tolist() for organism in organisms.unique()}
