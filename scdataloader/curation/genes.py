"""Which genes a file has, by its organism's table, and where each goes in the output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from scdataloader.curation.recipe import BIONTY, Recipe
from scdataloader.genes.names import SYMBOL_COLUMNS, examples, gene_ids, gene_rows
from scdataloader.genes.organisms import ENSEMBL_ID, infer_organism, normalise_organism, without_version
from scdataloader.genes.vocabulary import GeneVocabulary
from scdataloader.kernels.rows.align import OK, align_rows, close_gaps
from scdataloader.types import CSRRows

MITOCHONDRIAL = ("mt-", "mt:")
"""How symbols of mitochondrial genes begin, in lower case: of vertebrates, and of the fly."""
EXACT = 1 << 24
"""Up to here float32 has every whole number."""


@dataclass(frozen=True, kw_only=True)
class GeneTable:
    """The genes of an organism, and what they are called."""

    symbols: dict[str, str]
    """{id: symbol}, ids sorted; a symbol may be empty."""
    ids: dict[str, str]
    """{symbol: id}, of symbols that one gene has."""
    synonyms: dict[str, str]
    """{synonym: id}, of those that are no gene's symbol, and of one gene only."""
    ambiguous: frozenset[str]
    """Symbols that several ids share, and synonyms that do, where no gene has them for a symbol."""

    @classmethod
    def read(cls, path: str) -> GeneTable:
        """Read a file: see `gene_rows`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no column of ids or of symbols is found.
        """
        rows = gene_rows(Path(path).expanduser())
        symbols, shared = _unique(rows["symbol"], rows["id"])
        synonyms = rows.assign(synonyms=rows["synonyms"].str.split("|")).explode("synonyms")
        others, unclear = _unique(synonyms["synonyms"].str.strip(), synonyms["id"])
        unclear = {name for name in unclear if name not in symbols} | shared
        others = {name: gene for name, gene in others.items() if name not in shared}
        first = rows.drop_duplicates("id").sort_values("id")
        return cls(
            symbols=dict(zip(first["id"], first["symbol"], strict=True)),
            ids=symbols,
            synonyms={name: gene for name, gene in others.items() if name not in symbols},
            ambiguous=frozenset(unclear),
        )


@dataclass(frozen=True, kw_only=True)
class Genes:
    """Where the genes of a file go."""

    lut: NDArray[np.int32]
    """``(n_source_genes,)`` number of each in the output; -1 is dropped."""
    var: pd.DataFrame
    """Genes of the output: the index holds Ensembl-style ids, sorted, then perhaps names of unmatched genes."""
    notes: tuple[str, ...]
    """What was left out or summed."""

    def only(self, kept: NDArray[np.bool_]) -> Genes:
        """Some of them: ``kept`` is ``(n_genes,)``."""
        number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
        return replace(self, lut=number[self.lut], var=self.var[kept])

    def renumbered(self, rows: CSRRows, name: str) -> csr_matrix:
        """Cells in the genes of the output: ascending within a cell, without zeros, what meets summed; float32.

        Raises:
            ValueError: a sum is beyond what float32 has exactly; ``name`` is what the message calls the file.
        """
        n, n_genes = len(rows), len(self.var)
        indices, data = np.empty(len(rows.indices), np.int32), np.empty(len(rows.data), np.float32)
        sizes, depth, every = np.zeros(n, np.int64), np.empty(n, np.float32), np.arange(n)
        known = self.lut[self.lut >= 0]
        monotone = bool((known[1:] > known[:-1]).all())
        status, at = align_rows(
            *(rows.indptr, rows.indices, rows.data, every, self.lut, n_genes, monotone, False),
            *(every, rows.indptr[:-1], indices, data, sizes, depth),
        )
        if status != OK:  # the source has checked its gene numbers
            raise AssertionError(f"row {at}: status {status}")
        indptr = close_gaps(rows.indptr[:-1], sizes, indices, data)
        data = data[: indptr[-1]]
        if len(data) and data.max() >= EXACT:
            raise ValueError(
                f"{name} has a count of {data.max():,.0f}: beyond {EXACT:,} float32 does not have every whole number; "
                "such counts are hardly those of a cell"
            )
        return csr_matrix((data, indices[: indptr[-1]], indptr), shape=(n, n_genes))


def mitochondrial(var: pd.DataFrame) -> NDArray[np.bool_]:
    """``(n_genes,)`` which genes of an output are, by their symbol."""
    if "symbol" not in var:  # a hook has taken it away
        return np.zeros(len(var), dtype=np.bool_)
    return var["symbol"].astype(str).str.lower().str.startswith(MITOCHONDRIAL).to_numpy(np.bool_)


def match_genes(var: pd.DataFrame, organism: str, recipe: Recipe, name: str) -> Genes:
    """The genes of a file's ``var``, matched by its organism's table, or where there is none by their ids.

    Args:
        var: the file's genes in order.
        organism: NCBITaxon id.
        recipe: of the file.
        name: what messages call the file.

    Raises:
        GeneOverlapError: too few genes are in the table.
        KeyError: ``var`` has not the column that the rule names.
        ValueError: there is no table, and the genes have no ids of the organism.
    """
    path = next((path for other, path in recipe.genes.items() if normalise_organism(other) == organism), None)
    table = None if path is None else _table(path)
    ids = without_version(
        gene_ids(var, column=recipe.rule.genes, table=None if table is None else table.ids, name=name)
    )
    ambiguous: frozenset[str] = frozenset()
    if table is not None:
        ids, ambiguous = _looked_up(ids, table)
    symbols = _own_symbols(var, ids, organism, name) if table is None else table.symbols
    vocabulary = GeneVocabulary.from_dict({organism: sorted(symbols)})
    found = vocabulary.map(ids, organism, source=name, min_overlap=recipe.min_gene_overlap)
    matched = [vocabulary.ids[number] for number in np.flatnonzero(found.measured)]
    unmatched = sorted({ids[at] for at in np.flatnonzero(found.lut < 0)})
    unclear = [gene for gene in unmatched if gene in ambiguous]
    keep = recipe.unmatched_genes == "keep"
    extra = unmatched if keep else []
    number = {gene: place for place, gene in enumerate([*matched, *extra])}
    lut = np.array([number.get(gene, -1) for gene in ids], dtype=np.int32)
    index = pd.Index([*matched, *extra], dtype=object)
    made = pd.DataFrame({"symbol": [*(symbols[gene] for gene in matched), *extra]}, index=index, dtype=object)
    if keep:
        made["in_table"] = np.arange(len(number)) < len(matched)
    n_summed = int((lut >= 0).sum()) - len(number)
    return Genes(lut=lut, var=made, notes=_notes(found.n_dropped, unmatched, unclear, n_summed, keep=keep))


@cache
def _table(path: str) -> GeneTable:
    return GeneTable.read(path)


def _looked_up(names: list[str], table: GeneTable) -> tuple[list[str], frozenset[str]]:
    """The ids of names that are none of the table's ids, and names that may be several genes, which stay as they are.

    A synonym means its gene only where no other name of the file does: a file that has both, or two synonyms of a gene,
    tells them apart.
    """
    by_symbol = [name if name in table.symbols else table.ids.get(name, name) for name in names]
    asked = {name: table.synonyms[name] for name in set(by_symbol) if name in table.synonyms}
    n_names = Counter([*asked.values(), *set(by_symbol)])
    clear = {name: gene for name, gene in asked.items() if n_names[gene] == 1}
    return [clear.get(name, name) for name in by_symbol], table.ambiguous | (set(asked) - set(clear))


def _own_symbols(var: pd.DataFrame, ids: list[str], organism: str, name: str) -> dict[str, str]:
    """{id: symbol}, for want of a table: genes with an id that is no other organism's, and ``var``'s own symbols."""
    column = next((column for column in SYMBOL_COLUMNS if column in var.columns), None)
    symbols = [""] * len(ids) if column is None else var[column].astype(object).fillna("").astype(str)
    known = {
        gene: symbol
        for gene, symbol in zip(ids, symbols, strict=True)
        if ENSEMBL_ID.fullmatch(gene) and infer_organism([gene]) in {organism, None}
    }
    if not known:
        raise ValueError(
            f"{name} is of {organism} and has no Ensembl-style ids of it (its genes look like {examples(ids)}); give "
            f"the recipe a gene table, as genes: {{{organism}: genes.csv}}, or {{{organism}: {BIONTY}}} for the "
            "genes of the connected lamindb instance, or name the column of var that has ids"
        )
    return known


def _unique(names: pd.Series, ids: pd.Series) -> tuple[dict[str, str], set[str]]:
    """{name: id}, and the names that several ids have."""
    pairs = pd.DataFrame({"name": names, "id": ids}).drop_duplicates()
    pairs = pairs[pairs["name"].fillna("") != ""]
    shared = pairs["name"].duplicated(keep=False)
    unique = pairs[~shared]
    return dict(zip(unique["name"], unique["id"], strict=True)), set(pairs["name"][shared])


def _notes(n_dropped: int, unmatched: list[str], ambiguous: list[str], n_summed: int, *, keep: bool) -> tuple[str, ...]:
    notes = []
    if n_dropped:
        what = "kept under their own names" if keep else "dropped"
        notes.append(f"genes without match, {what}: {n_dropped:,} ({examples(unmatched)})")
    if ambiguous:
        notes.append(f"of these, names that may be several genes: {len(ambiguous):,} ({examples(ambiguous)})")
    if n_summed:
        notes.append(f"genes that occur again, summed: {n_summed:,}")
    return tuple(notes)
