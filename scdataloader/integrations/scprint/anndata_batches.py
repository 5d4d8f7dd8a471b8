"""Cells of one AnnData for a torch DataLoader, as the tasks of scPRINT-2 read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.data import Dataset

from scdataloader.batches.neighbours import neighbour_tensors
from scdataloader.batches.selected_genes import SelectedGenes
from scdataloader.genes.vocabulary import GeneMap, GeneVocabulary
from scdataloader.integrations.scprint.batches import binned
from scdataloader.integrations.scprint.genes import load_genes, split_by_organism
from scdataloader.integrations.scprint.options import HOW, N_NEIGHBOURS
from scdataloader.kernels.rows.nearest import nearest
from scdataloader.protocols import BatchContext
from scdataloader.schema import ORGANISM
from scdataloader.types import CellBatch, CSRRows, Neighbours

Item = dict[str, Any]
_GENES, _ROW = "_genes", "_row"
"""Keys of an item: ids of the columns of its X, and the number of its cell."""


class SimpleAnnDataset(Dataset[Item]):
    """Cells of an AnnData, in order. An item has "X" (G,), the named columns of obs, and perhaps "knn_cells" (6, G).

    Args:
        adata: The cells.
        obs_to_output: Columns of obs of each item.
        layer: Matrix in ``layers``; None for ``X``.
        get_knn_cells: Whether items have the counts of the 6 nearest neighbours by ``obsp["distances"]``, and their
            distances under "knn_cells_info"; counts of 0 and a distance of -1 where there are fewer.
        encoder: {column: {label: code}} of columns that are encoded.

    Raises:
        KeyError: obs lacks a column, or the graph is missing.
    """

    def __init__(
        self,
        adata: AnnData,
        obs_to_output: Sequence[str] = (),
        layer: str | None = None,
        get_knn_cells: bool = False,  # noqa: FBT001, FBT002 (as scDataLoader has it)
        encoder: Mapping[str, Mapping[Any, int]] | None = None,
    ) -> None:
        self._x = csr_matrix(adata.X if layer is None else adata.layers[layer])
        self._genes = adata.var_names
        self._obs = {name: adata.obs[name].to_numpy() for name in obs_to_output}
        for name, codes in (encoder or {}).items():
            if name in self._obs:
                self._obs[name] = np.array([codes[label] for label in self._obs[name]])
        self._graph: csr_matrix | None = None
        if get_knn_cells:
            if "distances" not in adata.obsp:
                raise KeyError("get_knn_cells needs obsp['distances']; compute it with scanpy.pp.neighbors")
            self._graph = csr_matrix(adata.obsp["distances"])

    def __len__(self) -> int:
        return int(self._x.shape[0])

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, idx: int) -> Item:
        item = {"X": self._x[idx].toarray().ravel(), _GENES: self._genes, _ROW: idx}
        item |= {name: values[idx] for name, values in self._obs.items()}
        if self._graph is not None:
            rows, distances = self._neighbours(idx)
            cells = np.zeros((N_NEIGHBOURS, self._x.shape[1]), np.float32)
            cells[rows >= 0] = self._x[rows[rows >= 0]].toarray()
            item |= {"knn_cells": cells, "knn_cells_info": distances}
        return item

    def _neighbours(self, idx: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        edges = csr_matrix(self._graph)[idx]
        found, distances = nearest(
            edges.indptr.astype(np.int64),
            edges.indices.astype(np.int32),
            edges.data.astype(np.float32),
            np.array([idx], np.int64),
            N_NEIGHBOURS,
        )
        return found[0], distances[0]


class Collator:
    """Batches of items of `SimpleAnnDataset`, in the genes of a model, aligned by their ids.

    Random choices follow torch's generator, which a DataLoader seeds in each worker. Cells of other organisms are left
    out of a batch.

    Args:
        organisms: Organisms of the model, in its order.
        how: "random expr" and "most expr" choose ``max_len`` genes of each cell; "all" takes those of its organism,
            "some" those of ``genelist``.
        org_to_id: {organism: its code} if items have codes of organisms; None if they have their ids.
        valid_genes: Genes of the model, in its order; None for those of `load_genes`.
        max_len: Number of genes of each cell.
        add_zero_genes: Must be 0.
        logp1: Whether values are log2(1 + x).
        norm_to: Total to which the counts of each cell are scaled; None for counts.
        n_bins: Number of quantile bins of the values; 0 for none.
        tp_name: Key of the time point of an item.
        organism_name: Key of the organism of an item.
        class_names: Keys of the classes of an item.
        genelist: Genes for "some", in any order; those that the model lacks are left out.
        genedf: Genes in place of `load_genes`, with a column "organism".

    Raises:
        ValueError: an option has no counterpart, or no gene of ``genelist`` is one of the model.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (the arguments of scDataLoader)
        self,
        organisms: Sequence[str],
        how: str = "all",
        org_to_id: Mapping[str, int] | None = None,
        valid_genes: Sequence[str] | None = None,
        max_len: int = 2000,
        add_zero_genes: int = 0,
        logp1: bool = False,  # noqa: FBT001, FBT002
        norm_to: float | None = None,
        n_bins: int = 0,
        tp_name: str | None = None,
        organism_name: str = ORGANISM,
        class_names: Sequence[str] = (),
        genelist: Sequence[str] = (),
        genedf: pd.DataFrame | None = None,
    ) -> None:
        if how not in (*HOW, "some"):
            raise ValueError(f"how must be one of {', '.join(map(repr, (*HOW, 'some')))}, not {how!r}")
        if add_zero_genes:
            raise ValueError(f"add_zero_genes={add_zero_genes} has no counterpart; use a larger max_len")
        self.organisms, self.how, self.max_len, self.n_bins = list(organisms), how, max_len, n_bins
        self.logp1, self.norm_to, self.tp_name = logp1, norm_to, tp_name
        self.organism_name, self.class_names = organism_name, list(class_names)
        self.genelist, self.genedf = list(genelist), genedf
        self._setup(org_to_id=org_to_id, valid_genes=valid_genes)

    def _setup(self, *, org_to_id: Mapping[str, int] | None = None, valid_genes: Sequence[str] | None = None) -> None:
        """Use other genes or codes of organisms."""
        self.org_to_id = org_to_id
        self._number_of = {
            organism if org_to_id is None else org_to_id[organism]: number
            for number, organism in enumerate(self.organisms)
            if org_to_id is None or organism in org_to_id
        }
        table = load_genes(self.organisms) if self.genedf is None else self.genedf
        known = {name: table.index[table["organism"] == name].tolist() for name in self.organisms}
        genes = known if valid_genes is None else split_by_organism(valid_genes, known)
        self._vocabulary = GeneVocabulary.from_dict(genes)
        self._maps: dict[tuple[int, int], tuple[pd.Index, GeneMap]] = {}
        self._listed = np.isin(self._vocabulary.ids, self.genelist)
        if self.how == "some" and not self._listed.any():
            raise ValueError(
                f"none of the {len(self.genelist):,} genes of genelist is one of the model's {len(self._listed):,}"
            )

    def __call__(self, batch: Sequence[Item]) -> dict[str, Tensor]:
        """One batch: keys as of `ScPrintBatch`, without "dataset" and "row"; and "knn_cells" if the items have it.

        Raises:
            ValueError: no cell is of one of the organisms, the AnnData has too few genes, or "all" and "some" meet
                several organisms.
        """
        items = [item for item in batch if item[self.organism_name] in self._number_of]
        if not items:
            found = sorted({str(item[self.organism_name]) for item in batch})
            raise ValueError(f"all cells of a batch are of {', '.join(found)}; the model is of {self.organisms}")
        cells = self._cells(items)
        made = self._fixed(cells) if self.how in ("all", "some") else self._chosen(cells)
        x, depth = made["x"], torch.from_numpy(cells.depth)
        near = {} if cells.neighbours is None else neighbour_tensors(cells.neighbours, made)
        if self.norm_to is not None:
            x = x * (self.norm_to / depth[:, None])
        if self.logp1:
            x = torch.log2(1 + x)
        if self.n_bins:
            x = binned(x, self.n_bins, cells.position)
        times = [0.0 if self.tp_name is None else item[self.tp_name] for item in items]
        classes = np.array([[item[name] for name in self.class_names] for item in items])
        return {
            "x": x,
            "genes": made["genes"],
            "class": torch.from_numpy(classes.reshape(len(items), -1)).int(),
            "tp": torch.tensor(times, dtype=torch.float32),
            "depth": depth,
            **near,
        }

    def _cells(self, items: Sequence[Item]) -> CellBatch:
        """The cells in the genes of the model."""
        number = np.array([self._number_of[item[self.organism_name]] for item in items], np.int32)
        rows = np.array([item[_ROW] for item in items])
        maps = [self._map(item[_GENES], at) for item, at in zip(items, number, strict=True)]
        measured = np.zeros((len(self.organisms), len(self._vocabulary)), np.bool_)
        for at, found in zip(number, maps, strict=True):
            measured[at] = found.measured
        neighbours = None
        if "knn_cells" in items[0]:
            near = [found.lut for found in maps for _ in range(N_NEIGHBOURS)]
            distances = np.stack([item["knn_cells_info"] for item in items])
            neighbours = Neighbours(
                x=self._aligned([cell for item in items for cell in item["knn_cells"]], near),
                depth=np.stack([item["knn_cells"].sum(axis=1) for item in items]),
                row=np.where(distances < 0, -1, 0).astype(np.int64),
                distance=distances,
            )
        return CellBatch(
            x=self._aligned([item["X"] for item in items], [found.lut for found in maps]),
            depth=np.array([item["X"].sum() for item in items], np.float32),
            row=rows,
            source=number,
            labels=np.empty((len(items), 0), np.int64),
            measured=measured,
            position=rows,
            key=int(torch.randint(2**63 - 1, ())),
            neighbours=neighbours,
        )

    def _map(self, genes: pd.Index, number: int) -> GeneMap:
        """The map from columns to the genes of the model, which is made once."""
        if (id(genes), number) not in self._maps:
            found = self._vocabulary.map(list(genes), self.organisms[number], source="the AnnData")
            self._maps[id(genes), number] = genes, found  # the index is kept, so that no other gets its id
        return self._maps[id(genes), number][1]

    def _aligned(self, cells: Sequence[NDArray[Any]], luts: Sequence[NDArray[np.int32]]) -> CSRRows:
        rows, columns, values = [], [], []
        for row, (cell, lut) in enumerate(zip(cells, luts, strict=True)):
            there = np.flatnonzero(cell)
            there = there[lut[there] >= 0]
            rows.append(np.full(len(there), row))
            columns.append(lut[there])
            values.append(cell[there].astype(np.float32))
        joined = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        found = csr_matrix(joined, shape=(len(cells), len(self._vocabulary)))  # genes that occur twice are summed
        found.sort_indices()
        return CSRRows(
            data=found.data,
            indices=found.indices.astype(np.int32),
            indptr=found.indptr.astype(np.int64),
            n_genes=len(self._vocabulary),
        )

    def _fixed(self, cells: CellBatch) -> dict[str, Tensor]:
        """The same genes of every cell: all of its organism, or those of the list."""
        start, stop = self._part(cells)
        numbers = np.arange(start, stop, dtype=np.int32)
        if self.how == "some":
            numbers = numbers[self._listed[start:stop]]
        x = cells.x.to_scipy()[:, numbers].toarray()
        return {"x": torch.from_numpy(x), "genes": torch.from_numpy(np.tile(numbers, (len(cells), 1)))}

    def _part(self, cells: CellBatch) -> tuple[int, int]:
        here = {self.organisms[number] for number in cells.source}
        if len(here) > 1:
            raise ValueError(f"how={self.how!r} takes cells of one organism in a batch, not of {sorted(here)}")
        return self._vocabulary.organisms[here.pop()]

    def _chosen(self, cells: CellBatch) -> dict[str, Tensor]:
        """Chosen genes of each cell."""
        few = int(min(cells.measured[cells.source].sum(axis=1)))
        if few < self.max_len:
            raise ValueError(
                f"the AnnData measured {few:,} of the model's genes, fewer than max_len={self.max_len:,}; lower max_len"
            )
        return dict(self._selection.many(cells, len(cells))[0])

    @cached_property
    def _selection(self) -> Any:
        selection = SelectedGenes(how=HOW[self.how], n_genes=self.max_len, fill="unexpressed")
        return selection.bind(BatchContext(vocabulary=self._vocabulary))
