"""Gene tables: which gene of an organism a name means. Training and curation match genes here, by the same rules.

A name of a source's gene (see `gene_names`) is matched by the first of these rules that applies:

1. *Id*. An Ensembl-style id of the table, version ignored, is that gene.
2. *Symbol*. The symbol of one gene is that gene. A symbol that several genes share is ambiguous: it is not matched.
   The copies on Y of human pseudoautosomal genes, such as CD99, do not count: the symbol is the gene on X, since
   aligners mask the copy.
3. *Trailing id*. Among symbols, a name that ends in an id, as ``7SK_ENSG00000260682`` does, is that id: some
   portals write symbols in this way if several genes share them. A name that was made unique (``TBCE-1``) is not
   matched.
4. *Synonym*. A synonym of one gene is that gene, unless the source has that gene under another name too, which may be
   its id, its symbol or a second synonym: the source tells the two apart, so the synonym is ambiguous. A synonym that
   several genes share is ambiguous.

Names without a match stay as they are; a vocabulary of ids drops and counts them (see `GeneVocabulary.map`), and the
ambiguous ones among them are reported. Genes that are matched more than once are summed, and reported once.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet as pq

from scdataloader.genes.names import ID_COLUMNS, SYMBOL_COLUMNS, are_ids, without_version
from scdataloader.genes.organisms import ENSEMBL_ID, normalise_organism
from scdataloader.runtime.messages import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

__all__ = ["GeneTable", "find_gene_table"]

SHIPPED = Path(__file__).parent / "data"
"""Folder of the gene tables that come with the package; its README states their sources."""
_SYNONYM_COLUMNS = ("synonyms", "aliases", "alias_symbol", "prev_symbol")
_TRAILING_ID = re.compile(r"(?:^|_)" + ENSEMBL_ID.pattern + r"$")

_N_DISTINCTIVE = 10
"""Symbols that another organism lacks, and how many times as many as the other way round, that tell them apart."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneTable:
    """The genes of one organism, and their names."""

    symbols: dict[str, str]
    """{id: symbol}, sorted by id; a symbol may be empty."""
    by_symbol: dict[str, str]
    """{symbol: id}, of symbols that one gene has."""
    by_synonym: dict[str, str]
    """{synonym: id}, of synonyms that one gene has and that are neither an id nor a symbol."""
    ambiguous: frozenset[str]
    """Symbols that several genes share, and such synonyms that are not the symbol of a gene."""

    @classmethod
    def read(cls, path: str | Path) -> GeneTable:
        """Read a file; see `gene_rows`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file has no column of ids or of symbols.
        """
        rows = gene_rows(path)
        copies = _copies_on_y(rows["id"])
        by_symbol, shared = _unique(rows["symbol"], rows["id"], copies)
        if shared:
            logger.info(
                "%s: %d symbols are shared by several genes and not matched (%s)",
                path,
                len(shared),
                shown(sorted(shared)),
            )
        with_synonyms = rows[rows["synonyms"] != ""]
        synonyms = with_synonyms.assign(synonyms=with_synonyms["synonyms"].str.split("|")).explode("synonyms")
        by_synonym, shared_synonyms = _unique(synonyms["synonyms"].str.strip(), synonyms["id"], copies)
        first = rows.drop_duplicates("id").sort_values("id")
        symbols = dict(zip(first["id"], first["symbol"], strict=True))
        taken = {*symbols, *by_symbol, *shared}
        return cls(
            symbols=symbols,
            by_symbol=by_symbol,
            by_synonym={name: gene for name, gene in by_synonym.items() if name not in taken},
            ambiguous=frozenset(shared | {name for name in shared_synonyms if name not in by_symbol}),
        )

    def match(self, names: Sequence[str]) -> tuple[list[str], frozenset[str]]:
        """The id of each name, by the rules at the top of this module.

        Args:
            names: Names of the genes of a source, in order.

        Returns:
            ``(len(names),)`` ids, with names that are not matched unchanged; and the ambiguous names among these.
        """
        symbols_end_in_ids = not are_ids(names)
        found = [self._by_name(name, trailing=symbols_end_in_ids) for name in without_version(names)]
        distinct = set(found)
        synonyms = {name: self.by_synonym[name] for name in distinct if name in self.by_synonym}
        n_names = Counter([*synonyms.values(), *distinct])
        clear = {name: gene for name, gene in synonyms.items() if n_names[gene] == 1}
        ids = [clear.get(name, name) for name in found]
        unmatched = {name for name in ids if name not in self.symbols}
        return ids, (self.ambiguous | synonyms.keys() - clear.keys()).intersection(unmatched)

    def _by_name(self, name: str, *, trailing: bool) -> str:
        """The id by rules 1 to 3; the name itself if none applies."""
        if name in self.symbols:
            return name
        if name in self.by_symbol:
            return self.by_symbol[name]
        match = _TRAILING_ID.search(name) if trailing else None
        return name if match is None else match[1]


def find_gene_table(organism: str, tables: Mapping[str, str]) -> GeneTable | None:
    """The user's gene table of an organism; None without one.

    Args:
        organism: NCBITaxon id.
        tables: {organism, by any usual name: path}, as given by the user.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an organism is unknown, or the file is not a gene table.
    """
    path = {normalise_organism(name): path for name, path in tables.items()}.get(organism)
    if path is None:
        return None
    file = Path(path).expanduser()
    status = file.stat()
    return _read_once(file.absolute(), status.st_size, status.st_mtime_ns)


def package_table(organism: str) -> GeneTable | None:
    """The gene table of an organism, by NCBITaxon id, that comes with the package; None without one."""
    path = SHIPPED / f"{organism.replace(':', '_')}.parquet"
    return _read_once(path, 0, 0) if path.exists() else None


@lru_cache(maxsize=16)
def organisms_of_symbols(names: tuple[str, ...]) -> list[str]:
    """The organisms that the names may be symbols of, by the package's tables; most of the names are of the first.

    More than half of the distinct names must be its symbols. Another organism is ruled out if it lacks at least 10 of
    them, and ten times as many as the other way round: the symbols of most vertebrates are much the same, so a small
    panel may be of several.
    """
    distinct = set(names)
    found = {path.stem.replace("_", ":"): distinct & _package_symbols(path) for path in SHIPPED.glob("*.parquet")}
    best = max(found, key=lambda organism: len(found[organism]))
    known = found.pop(best)
    if 2 * len(known) <= len(distinct):
        return []
    others = (
        organism
        for organism, theirs in found.items()
        if len(known - theirs) < max(_N_DISTINCTIVE, _N_DISTINCTIVE * len(theirs - known))
    )
    return [best, *sorted(others)]


@cache
def _package_symbols(path: Path) -> AbstractSet[str]:
    return set(pd.read_parquet(path, columns=["symbol"])["symbol"]) - {""}


@lru_cache(maxsize=32)
def _read_once(path: Path, size: int, mtime_ns: int) -> GeneTable:  # noqa: ARG001 (they are part of the key)
    return GeneTable.read(path)


def gene_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a gene table: columns ``id`` (without version), ``symbol`` and ``synonyms``.

    Symbol and synonyms may be empty; synonyms are separated by ``|``.

    Args:
        path: A csv, perhaps compressed, or a tsv or parquet file if its suffix says so. With a header that names a
            column of ids (such as ``ensembl_gene_id``), one of symbols (such as ``symbol``) and perhaps columns of
            synonyms. A text file may have no header: then the id comes first, and then the symbol.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has no column of ids or of symbols.
    """
    table = _read_text(Path(path).expanduser())
    id_column, symbol_column = (
        next((column for column in known if column in table.columns), None) for known in (ID_COLUMNS, SYMBOL_COLUMNS)
    )
    if id_column is None or symbol_column is None:
        raise ValueError(
            f"{path} is not a gene table: expected a header with one of {ID_COLUMNS} and one of {SYMBOL_COLUMNS}, or "
            f"no header and rows like 'ENSG00000141510,TP53'; its first row is {list(table.columns[:5])}"
        )
    synonyms = [column for column in _SYNONYM_COLUMNS if column in table.columns]
    rows = pd.DataFrame({"id": without_version(table[id_column]), "symbol": table[symbol_column].to_numpy()})
    rows["synonyms"] = table[synonyms].agg("|".join, axis=1).str.strip("|").to_numpy() if synonyms else ""
    return rows[rows["id"] != ""].reset_index(drop=True)


def _read_text(path: Path) -> pd.DataFrame:
    """A table with all values as text; its columns are named by the first row, unless that is a gene."""
    if path.suffix == ".parquet":
        return _parquet_text(path)
    separator = "\t" if any(suffix in {".tsv", ".tab"} for suffix in path.suffixes) else ","
    # keep_default_na: "NaN" and "NA" are symbols of genes
    table = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    first = list(table.iloc[0])
    if len(first) > 1 and ENSEMBL_ID.fullmatch(first[0]):
        return table.rename(columns={0: ID_COLUMNS[0], 1: SYMBOL_COLUMNS[0]})
    return table.iloc[1:].set_axis(first, axis=1)


def _parquet_text(path: Path) -> pd.DataFrame:
    """The columns of a Parquet file that a gene table may have; missing values are empty."""
    known = (*ID_COLUMNS, *SYMBOL_COLUMNS, *_SYNONYM_COLUMNS)
    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if name in known]
    table = file.read(columns=columns or None).to_pandas()
    return pd.DataFrame({name: table[name].astype(object).where(table[name].notna(), "").astype(str) for name in table})


def _unique(names: pd.Series, ids: pd.Series, copies: AbstractSet[str]) -> tuple[dict[str, str], set[str]]:
    """{name: id} of names that one id has, and names that several ids share; without copies of another gene."""
    pairs = pd.DataFrame({"name": names, "id": ids}).drop_duplicates()
    pairs = pairs[pairs["name"].fillna("") != ""]
    pairs = pairs[~(pairs["name"].duplicated(keep=False) & pairs["id"].isin(copies))]
    shared = pairs["name"].duplicated(keep=False)
    unique = pairs[~shared]
    return dict(zip(unique["name"], unique["id"], strict=True)), set(pairs["name"][shared])


def _copies_on_y(ids: pd.Series) -> AbstractSet[str]:
    """The copies on Y of human pseudoautosomal genes, which have a marked id, or since GENCODE 44 one of their own."""
    marked = set(ids[ids.str.endswith("_PAR_Y")])
    return marked | _human_copies_on_y() if ids.str.startswith("ENSG0").any() else marked


@cache
def _human_copies_on_y() -> AbstractSet[str]:
    """Genes on Y that have the symbol of a gene on X."""
    genes = pd.read_parquet(SHIPPED / "NCBITaxon_9606.parquet", columns=["gene_id", "symbol", "chromosome"])
    on_x, on_y = (genes[genes["chromosome"] == chromosome] for chromosome in "XY")
    return set(on_y["gene_id"][on_y["symbol"].isin(set(on_x["symbol"]) - {""})])
