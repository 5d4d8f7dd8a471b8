"""Gene tables: which gene of an organism a name means. Training and curation match genes here, by the same rules.

A name of a source's gene (see `gene_names`) is matched by the first of these rules that applies:

1. *Id*. An Ensembl-style id of the table, version ignored, is that gene.
2. *Symbol*. The symbol of one gene is that gene. A symbol that several genes share is ambiguous: it is not matched.
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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scdataloader.genes.names import ID_COLUMNS, SYMBOL_COLUMNS, are_ids, without_version
from scdataloader.genes.organisms import ENSEMBL_ID, normalise_organism
from scdataloader.runtime.messages import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SYNONYM_COLUMNS = ("synonyms", "aliases", "alias_symbol", "prev_symbol")
_TRAILING_ID = re.compile(r"(?:^|_)" + ENSEMBL_ID.pattern + r"$")

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
        by_symbol, shared = _unique(rows["symbol"], rows["id"])
        if shared:
            logger.info(
                "%s: %d symbols are shared by several genes and not matched (%s)",
                path,
                len(shared),
                shown(sorted(shared)),
            )
        synonyms = rows.assign(synonyms=rows["synonyms"].str.split("|")).explode("synonyms")
        by_synonym, shared_synonyms = _unique(synonyms["synonyms"].str.strip(), synonyms["id"])
        first = rows.drop_duplicates("id").sort_values("id")
        symbols = dict(zip(first["id"], first["symbol"], strict=True))
        taken = {*symbols, *by_symbol, *shared}
        return cls(
            symbols=symbols,
            by_symbol=by_symbol,
            by_synonym={name: gene for name, gene in by_synonym.items() if name not in taken},
            ambiguous=frozenset(shared | {name for name in shared_synonyms if name not in by_symbol}),
        )

    def match(self, names: Sequence[str], *, source: str) -> tuple[list[str], frozenset[str]]:
        """The id of each name, by the rules at the top of this module.

        Args:
            names: Names of the genes of a source, in order.
            source: Name of the source in messages.

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
        unmatched = sorted({name for name in ids if name not in self.symbols})
        if unmatched:
            logger.info("%s: %d genes are not in the gene table (%s)", source, len(unmatched), shown(unmatched))
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
    """The gene table of an organism; None without one.

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


@lru_cache(maxsize=4)
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
    rows["synonyms"] = table[synonyms].agg("|".join, axis=1).to_numpy() if synonyms else ""
    return rows[rows["id"] != ""].reset_index(drop=True)


def _read_text(path: Path) -> pd.DataFrame:
    """A table with all values as text; its columns are named by the first row, unless that is a gene."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).astype(object).fillna("").astype(str)
    separator = "\t" if any(suffix in {".tsv", ".tab"} for suffix in path.suffixes) else ","
    # keep_default_na: "NaN" and "NA" are symbols of genes
    table = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    first = list(table.iloc[0])
    if len(first) > 1 and ENSEMBL_ID.fullmatch(first[0]):
        return table.rename(columns={0: ID_COLUMNS[0], 1: SYMBOL_COLUMNS[0]})
    return table.iloc[1:].set_axis(first, axis=1)


def _unique(names: pd.Series, ids: pd.Series) -> tuple[dict[str, str], set[str]]:
    """{name: id} of names that one id has, and the names that several ids share."""
    pairs = pd.DataFrame({"name": names, "id": ids}).drop_duplicates()
    pairs = pairs[pairs["name"].fillna("") != ""]
    shared = pairs["name"].duplicated(keep=False)
    unique = pairs[~shared]
    return dict(zip(unique["name"], unique["id"], strict=True)), set(pairs["name"][shared])
