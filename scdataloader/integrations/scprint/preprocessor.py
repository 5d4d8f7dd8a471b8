"""Standardised genes, filters and a PCA of one AnnData, as the tasks of scPRINT-2 ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.curation.filters import cell_metrics
from scdataloader.curation.genes import CuratedGenes, match_genes
from scdataloader.curation.recipe import Recipe
from scdataloader.genes.organisms import normalise_organism
from scdataloader.genes.tables import SHIPPED
from scdataloader.integrations.scprint.genes import load_genes
from scdataloader.schema import IS_PRIMARY, ORGANISM
from scdataloader.sources import AnnDataSource, open_source
from scdataloader.types import CSRRows

Hook = Callable[[AnnData], AnnData]
_MANY = 1000
"""Cells from which a PCA has 50 components; of fewer, it has one for each 20 cells."""
_NAME = "the AnnData"


@dataclass(kw_only=True)
class Preprocessor:
    """Makes one AnnData ready for a task: counts in X, the genes of `load_genes` that it measured, cells filtered.

    Genes that the AnnData did not measure are not added: the batches of `Collator` are aligned by ids. Cells keep their
    names. To curate files, use ``scdataloader curate``.

    Args:
        use_layer: Matrix in ``layers`` with the counts; None finds them.
        use_raw: Whether the counts are those of ``raw``, if there is one.
        force_preprocess: Whether values that are not counts are taken.
        is_symbol: No effect: names are matched as ids, symbols and synonyms.
        organisms: Organisms that are accepted; None accepts all of which the package has a gene table.
        drop_non_primary: Whether cells whose "is_primary_data" is false are left out.
        min_nnz_genes: Minimum of expressed genes of a cell.
        filter_cell_by_counts: Minimum of counts of a cell.
        min_dataset_size: Minimum of cells that are left.
        maxdropamount: Maximum of the ratio of cells before and after the filters.
        min_valid_genes_id: Minimum of genes that are known.
        keepdata: Whether layers, obsm and obsp are kept.
        do_postp: Whether to add ``layers["norm"]``, log1p of counts scaled to ``normalize_sum``, and its PCA as
            ``obsm["X_pca"]``; needs scanpy.
        normalize_sum: See ``do_postp``.
        additional_preprocess: Function from AnnData to AnnData that is called first.
        additional_postprocess: The same, called after the PCA.
        skip_validate: Must be True.
    """

    use_layer: str | None = None
    use_raw: bool = True
    force_preprocess: bool = False
    is_symbol: bool = False
    organisms: Sequence[str] | None = None
    drop_non_primary: bool = False
    min_nnz_genes: int = 200
    filter_cell_by_counts: int = 0
    min_dataset_size: int = 100
    maxdropamount: float = 50
    min_valid_genes_id: int = 10_000
    keepdata: bool = False
    do_postp: bool = True
    normalize_sum: float = 1e4
    additional_preprocess: Hook | None = None
    additional_postprocess: Hook | None = None
    skip_validate: bool = True

    def __post_init__(self) -> None:
        if not self.skip_validate:
            raise ValueError("skip_validate=False has no counterpart; validate labels by `scdataloader curate`")

    def __call__(self, adata: AnnData, dataset_id: str | None = None) -> AnnData:
        """The cells and genes that are kept; ``adata`` is not changed.

        Raises:
            KeyError: not exactly one organism is stated, or the layer does not exist.
            LookupError: the package has no gene table of the organism.
            NotCountsError: the values are not counts.
            ValueError: too few cells or genes are left; names the number and the option.
        """
        if self.additional_preprocess is not None:
            adata = self.additional_preprocess(adata)
        organism = self._organism(adata)
        source = open_source(adata, counts=self._counts(adata), values="any" if self.force_preprocess else "counts")
        rows = self._kept(adata, source)
        genes = self._genes(source, organism)
        made = AnnData(
            genes.renumber(source.read(rows), _NAME),
            obs=adata.obs.iloc[rows].copy(),
            var=load_genes(organism).loc[genes.var.index],
            uns=dict(adata.uns),
        )
        made.obs[ORGANISM] = organism
        made.obs["nnz"] = np.diff(made.X.indptr)
        if dataset_id is not None:
            made.uns["dataset_id"] = dataset_id
        metrics = cell_metrics(made.X, made.var["mt"].to_numpy())
        made.obs[metrics.columns] = metrics.to_numpy()
        if self.keepdata:
            self._keep(adata, made, rows, genes)
        if self.do_postp:
            self._add_pca(made)
            made = made if self.additional_postprocess is None else self.additional_postprocess(made)
        return made

    def _organism(self, adata: AnnData) -> str:
        stated = set(adata.obs[ORGANISM]) if ORGANISM in adata.obs else {adata.uns.get(ORGANISM)}
        if len(stated) > 1 or None in stated:
            raise KeyError(
                f"{_NAME} must be of one organism, named in obs or uns[{ORGANISM!r}]; found {sorted(map(str, stated))}"
            )
        organism = normalise_organism(str(stated.pop()))
        if self.organisms is not None and organism not in set(map(normalise_organism, self.organisms)):
            raise ValueError(f"{_NAME} is of {organism}, which is not one of organisms={list(self.organisms)}")
        return organism

    def _counts(self, adata: AnnData) -> str:
        if self.use_layer is not None:
            return f"layers/{self.use_layer}"
        return "raw" if self.use_raw and adata.raw is not None else "auto"

    def _kept(self, adata: AnnData, source: AnnDataSource) -> NDArray[np.int64]:
        """Rows of the cells that pass the filters."""
        kept = np.ones(len(adata), np.bool_)
        if self.drop_non_primary and IS_PRIMARY in adata.obs:
            kept = adata.obs[IS_PRIMARY].to_numpy(np.bool_)
        cells = source.read(np.arange(len(adata)))
        kept &= np.diff(cells.indptr) >= self.min_nnz_genes
        kept &= np.asarray(cells.to_scipy().sum(axis=1)).ravel() >= self.filter_cell_by_counts
        n, n_kept = len(kept), int(kept.sum())
        if n_kept < self.min_dataset_size or n > self.maxdropamount * (n_kept + 1):
            raise ValueError(
                f"{n_kept:,} of {n:,} cells pass the filters (min_nnz_genes={self.min_nnz_genes}, "
                f"filter_cell_by_counts={self.filter_cell_by_counts}), too few by "
                f"min_dataset_size={self.min_dataset_size} or maxdropamount={self.maxdropamount}; lower these"
            )
        return np.flatnonzero(kept)

    def _genes(self, source: AnnDataSource, organism: str) -> CuratedGenes:
        table = SHIPPED / f"{organism.replace(':', '_')}.parquet"
        load_genes(organism)  # refuses an organism without a table
        genes = match_genes(source.var, organism, Recipe(genes={organism: str(table)}), _NAME)
        if len(genes.var) < self.min_valid_genes_id:
            raise ValueError(
                f"{len(genes.var):,} of {len(source.var):,} genes of {_NAME} are genes of {organism}, fewer than "
                f"min_valid_genes_id={self.min_valid_genes_id:,}; lower it"
            )
        return genes

    @staticmethod
    def _keep(adata: AnnData, made: AnnData, rows: NDArray[np.int64], genes: CuratedGenes) -> None:
        """Keep layers in the genes of ``made``, obsm and obsp."""
        for name, values in adata.layers.items():
            if values.shape[1] == len(genes.lut):
                made.layers[name] = genes.renumber(_rows_of(values, rows), f"layers[{name!r}]")
        for name, values in adata.obsm.items():
            made.obsm[name] = values.iloc[rows] if hasattr(values, "iloc") else values[rows]
        for name, values in adata.obsp.items():
            made.obsp[name] = values[rows][:, rows]

    def _add_pca(self, adata: AnnData) -> None:
        import scanpy as sc

        adata.layers["norm"] = adata.X.copy()
        sc.pp.normalize_total(adata, target_sum=self.normalize_sum, layer="norm")
        sc.pp.log1p(adata, layer="norm")
        n_comps = 50 if len(adata) > _MANY else max(1, len(adata) // 20)
        adata.obsm["X_pca"] = sc.pp.pca(adata.layers["norm"], n_comps=n_comps)


def _rows_of(values: Any, rows: NDArray[np.int64]) -> CSRRows:
    cells = csr_matrix(values[rows]).astype(np.float32)
    cells.sort_indices()
    return CSRRows(
        data=cells.data,
        indices=cells.indices.astype(np.int32),
        indptr=cells.indptr.astype(np.int64),
        n_genes=cells.shape[1],
    )
