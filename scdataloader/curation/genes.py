"""Genes of a curated file: matched by the gene table of its organism, and numbered anew."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.curation.recipe import BIONTY, Recipe
from scdataloader.genes.features import genes_of
from scdataloader.genes.names import SYMBOL_COLUMNS, are_ids, gene_names, without_version
from scdataloader.genes.organisms import ENSEMBL_ID, infer_organism
from scdataloader.genes.tables import find_gene_table, package_table
from scdataloader.genes.vocabulary import GeneVocabulary
from scdataloader.kernels.rows.align import OK, align_rows, scratch_size
from scdataloader.runtime.messages import shown
from scdataloader.types import CSRRows

MITOCHONDRIAL = ("mt-", "mt:")
"""Prefixes of the symbols of mitochondrial genes, in lower case: of vertebrates, and of the fly."""
EXACT = 1 << 24
"""Float32 represents all whole numbers up to this one."""


@dataclass(frozen=True, kw_only=True)
class CuratedGenes:
    """The genes of a curated file, and the map from those of the original file."""

    lut: NDArray[np.int32]
    """``(n_source_genes,)`` number of each gene in the curated file; -1 is dropped."""
    var: pd.DataFrame
    """Genes of the curated file: the index holds ids, sorted, then names of unmatched genes if these are kept."""
    notes: tuple[str, ...]
    """What was dropped or summed."""

    def only(self, kept: NDArray[np.bool_]) -> CuratedGenes:
        """Some of the genes: ``kept`` is ``(n_genes,)``."""
        number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
        return replace(self, lut=number[self.lut], var=self.var[kept])

    def renumber(self, rows: CSRRows, source: str) -> csr_matrix:
        """Cells in the genes of the curated file: float32, sorted within a cell, without zeros, duplicates summed.

        Raises:
            ValueError: a sum is too large for float32 to be exact; ``source`` is how the message calls the file.
        """
        n, n_genes = len(rows), len(self.var)
        indices, data = np.empty(len(rows.indices), np.int32), np.empty(len(rows.data), np.float32)
        sizes, depth, every = np.zeros(n, np.int64), np.empty(n, np.float32), np.arange(n)
        starts = rows.indptr.copy()
        known = self.lut[self.lut >= 0]
        monotone = bool((known[1:] > known[:-1]).all())
        status, at = align_rows(
            *(rows.indptr, rows.indices, rows.data, every, self.lut, n_genes, monotone, False, False),
            *(every, starts, indices, data, sizes, depth),
            np.empty(scratch_size(n_genes, self.lut), np.float32),
        )
        if status != OK:  # the source has checked its gene numbers
            raise AssertionError(f"row {at}: status {status}")
        data = data[: starts[-1]]  # the rows were written in order, without gaps
        if len(data) and data.max() >= EXACT:
            raise ValueError(
                f"{source} has a count of {data.max():,.0f}; float32 is exact up to {EXACT:,} only, and a cell hardly "
                "has so many molecules of a gene"
            )
        return csr_matrix((data, indices[: starts[-1]], starts), shape=(n, n_genes))


def mitochondrial(var: pd.DataFrame) -> NDArray[np.bool_]:
    """``(n_genes,)`` which genes of a curated file are mitochondrial, by their symbol."""
    if "symbol" not in var:  # a hook has removed it
        return np.zeros(len(var), dtype=np.bool_)
    return var["symbol"].astype(str).str.lower().str.startswith(MITOCHONDRIAL).to_numpy(np.bool_)


def match_genes(var: pd.DataFrame, organism: str, recipe: Recipe, source: str) -> CuratedGenes:
    """Match the genes of a file by the gene table of its organism.

    Without a table in the recipe, ids are kept, and symbols are matched by the table that comes with the package. The
    rules are those of `scdataloader.genes.tables`.

    Args:
        var: Genes of the file, in order.
        organism: NCBITaxon id.
        recipe: The recipe for the file.
        source: Name of the file in messages.

    Raises:
        GeneOverlapError: the file shares too few genes with the table.
        KeyError: ``var`` lacks the column that the rule names.
        ValueError: there is no table, and the genes have no ids of the organism.
    """
    genes, left_out = genes_of(var, source)
    names = gene_names(genes, column=recipe.rule.genes, source=source)
    table = find_gene_table(organism, recipe.genes)
    is_own = table is not None
    if table is None and not are_ids(names):
        table = package_table(organism)
    ids, ambiguous = (without_version(names), frozenset[str]()) if table is None else table.match(names)
    symbols = {} if table is None else table.symbols
    if not is_own:
        symbols = _own_symbols(genes, ids, organism) | symbols
    if not is_own and symbols.keys().isdisjoint(ids):
        raise ValueError(
            f"{source} is of {organism} and has no Ensembl-style ids of it (its genes look like {shown(ids[:3])}); "
            f"give the recipe a gene table, as genes: {{{organism}: genes.csv}}, or {{{organism}: {BIONTY}}} for the "
            "genes of the connected lamindb instance, or name the column of var that holds ids"
        )
    vocabulary = GeneVocabulary.from_dict({organism: sorted(symbols)})
    found = vocabulary.map(ids, organism, source=source, min_overlap=recipe.min_gene_overlap)
    keep = recipe.unmatched_genes == "keep"
    matched = [vocabulary.ids[number] for number in np.flatnonzero(found.measured)]
    others = sorted({ids[at] for at in np.flatnonzero(found.lut < 0)}) if keep else []
    number = {gene: place for place, gene in enumerate([*matched, *others])}
    notes = found.coverage(ids, ambiguous, kept=keep)
    lut = np.array([number.get(gene, -1) for gene in ids], dtype=np.int32)
    if left_out is not None:
        notes.append(f"features that are not genes, left out: {left_out.text}")
        lut, of_genes = np.full(len(var), -1, np.int32), lut
        lut[~left_out.mask] = of_genes
    made = pd.DataFrame({"symbol": [*map(symbols.__getitem__, matched), *others]}, index=[*number], dtype=object)
    if keep:
        made["in_table"] = np.arange(len(number)) < len(matched)
    return CuratedGenes(lut=lut, var=made, notes=tuple(notes))


def _own_symbols(var: pd.DataFrame, ids: list[str], organism: str) -> dict[str, str]:
    """{id: symbol} of genes with an id that is not another organism's, and the symbols in ``var``."""
    column = next((column for column in SYMBOL_COLUMNS if column in var.columns), None)
    symbols = [""] * len(ids) if column is None else var[column].astype(object).fillna("").astype(str)
    return {
        gene: symbol
        for gene, symbol in zip(ids, symbols, strict=True)
        if ENSEMBL_ID.fullmatch(gene) and infer_organism([gene]) in {organism, None}
    }
