"""DataModule with the arguments and members of scDataLoader 2.x, as scPRINT-2's command line uses it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property, wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.collection.collection import Collection
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.integrations.scprint.genes import split_by_organism
from scdataloader.integrations.scprint.options import ScPrintOptions
from scdataloader.integrations.scprint.splits import scdataloader_splits, without_assays
from scdataloader.loading.loader import Loader
from scdataloader.runtime.messages import did_you_mean, shown
from scdataloader.sampling.splits import Splits
from scdataloader.training.datamodule import DataModule as _DataModule

logger = logging.getLogger(__name__)


class DataModule(_DataModule):
    """Cells for scPRINT-2, by the arguments of scDataLoader 2.x; its members, batches and checkpoints are ours besides.

    Args:
        collection_name: Key of a lamindb collection, or of its store, in the connected instance.
        clss_to_weight: Columns whose joint values are weighted, by default "organism_ontology_term_id"; "nnz" weighs
            cells by their number of expressed genes besides.
        weight_scaler: Cells above which a class hardly gains weight: s of s*c/(s+c). 0 draws every cell once per epoch.
        n_samples_per_epoch: Draws in one epoch over all ranks.
        validation_split: Share of the cells for validation, or a whole number of cells.
        test_split: Share of the cells for test, or a whole number of cells, in whole sources.
        use_default_col: Must be True.
        clss_to_predict: Columns of obs whose codes batches have under "class", in this order; by default
            those of ``checkpoint``, or "organism_ontology_term_id".
        hierarchical_clss: Those of them whose labels are terms of ontologies.
        how: "random expr" and "most expr" choose ``max_len`` genes of each cell, "all" takes every gene.
        organism_col: Must be "organism_ontology_term_id".
        max_len: Number of genes of each cell.
        replacement: Whether draws are independent.
        gene_subset: Genes to use; None for all.
        tp_name: Column of obs with time points, for "tp".
        assays_to_drop: Assays whose cells are used for nothing, by the exact id; by default EFO:0030007, scATAC-seq.
        metacell_mode: Probability with which a training cell is summed with its 6 neighbours by ``obsp["distances"]``.
        get_knn_cells: Whether batches have the 6 neighbours of each cell.
        store_location: No effect.
        force_recompute_indices: No effect.
        sampler_workers: No effect.
        sampler_chunk_size: No effect.
        organisms: Organisms to use, by NCBITaxon id; None for all.
        genedf: Table of genes by id with a column "organism", which is the vocabulary; None for all genes of the data.
        n_bins: Number of quantile bins of the values; 0 leaves counts.
        curiculum: Epochs over which class weights change from nearly uniform to their target.
        start_at: First row of the cells for prediction.
        restrict_to_subset: Must be None.
        batch_size: Cells per batch on each rank.
        num_workers: Threads that read ahead of the model.
        pin_memory: Whether batches for a CUDA device are in page-locked memory.
        drop_last: Whether a last training batch that is not full is left out.
        prefetch_factor: No effect.
        persistent_workers: No effect.
        data: In place of ``collection_name``, files, stores, or anything else that `scdataloader.DataModule` opens.
        checkpoint: Checkpoint of a run on other data, whose genes and label codes are used, as its model needs; give it
            as ``ckpt_path`` of the command too.
        seed: Seed of the draws; None is the one of ``seed_everything``.

    Raises:
        TypeError: an option does not exist.
        ValueError: an option has no counterpart here, or is out of range.
    """

    # the command line is made from these arguments
    @wraps(ScPrintOptions.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        known = [option.name for option in fields(ScPrintOptions)]
        for name in options:
            if name not in known:
                raise TypeError(
                    f"DataModule has no option {name!r}{did_you_mean(name, known)}; its options are those of "
                    "scDataLoader 2.1, data, checkpoint and seed"
                )
        self.options = ScPrintOptions(*args, **options)
        self._organisms: list[str] | None = None
        super().__init__(**self.options.ours())

    @property
    def n_bins(self) -> int:
        """Number of quantile bins; 0 for counts."""
        return self.options.n_bins

    @property
    def max_len(self) -> int:
        """Number of genes of each cell."""
        return self.options.max_len

    @property
    def metacell_mode(self) -> bool:
        """Whether batches have "is_meta"."""
        return bool(self.options.metacell_mode)

    @property
    def num_datasets(self) -> int:
        """Number of sources, which "dataset" of a batch numbers."""
        return len(self.collection.parts)

    @property
    def organisms(self) -> list[str]:
        """Organisms in the order of their genes. Can be set to those of a model, before its genes are."""
        return list(self.genes_dict) if self._organisms is None else list(self._organisms)

    @organisms.setter
    def organisms(self, organisms: Sequence[str]) -> None:
        self._organisms = list(organisms)

    def set_valid_genes_collator(self, genes: Sequence[str]) -> None:
        """Use the genes of a model, in its order.

        Raises:
            ValueError: the genes of an organism are not together.
            GeneOverlapError: a source shares too few genes with them, or is of another organism.
        """
        if list(genes) != self.genes:
            of_organisms = {organism: self.genes_dict.get(organism, []) for organism in self.organisms}
            self.use_genes(split_by_organism(genes, of_organisms))

    def open(self, alignment: GeneAlignment | None = None, faults: Any = None) -> Collection:
        """The table of cells, in the genes of ``gene_subset`` if there are any."""
        collection = super().open(alignment, faults)
        subset = set(self.options.gene_subset or ())
        if not subset:
            return collection
        genes = {
            organism: [gene for gene in ids if gene in subset]
            for organism, ids in collection.vocabulary.genes_dict.items()
        }
        if not any(genes.values()):
            raise ValueError(
                f"none of the {len(subset):,} genes of gene_subset is in the data, such as {shown(sorted(subset))}; "
                f"the data has ids like {shown(collection.vocabulary.ids[:3])}"
            )
        return collection.with_genes(GeneAlignment(vocabulary=genes))

    def splits_of(self, collection: Collection) -> Splits:
        """Which rows train, validate and test: validation by cell, test in whole sources."""
        return scdataloader_splits(
            collection,
            self._usable,
            validation=self.options.validation_split,
            test=self.options.test_split,
        )

    @cached_property
    def _usable(self) -> NDArray[np.int64]:
        return without_assays(self.collection, self.options.dropped_assays)

    def predict_dataloader(self) -> Loader:
        """Every cell from row ``start_at`` on once, in order, but those of ``assays_to_drop``."""
        rows = self._usable
        return self.loader(rows[rows >= self.options.start_at])

    def _loader(self, *args: Any, **options: Any) -> Loader:
        self._check_measured()
        return super()._loader(*args, **options)

    def _check_measured(self) -> None:
        """See that every source measured as many genes as the model gets of a cell: scPRINT has no gene for padding.

        Raises:
            ValueError: one did not; names it.
        """
        if self.options.how == "all":
            return
        n_measured = self.collection.measured.sum(axis=1)
        few = int(np.argmin(n_measured))
        if n_measured[few] < self.max_len:
            raise ValueError(
                f"{self.collection.parts[few].source.name} measured {n_measured[few]:,} of the model's genes, fewer "
                f"than max_len={self.max_len:,}; lower max_len, or leave the source out"
            )
