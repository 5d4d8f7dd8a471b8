"""What a source calls its genes: Ensembl-style ids, found where they lie, or symbols through a table."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scdataloader.genes.organisms import ENSEMBL_ID, TRAILING_ID, without_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)

INDEX_SHARE = 0.5
"""An index is taken as gene ids when more than this share of it are ids: custom and spike-in genes have none."""
COLUMN_SHARE = 0.9
"""A column of ``var`` is found by itself only when at least this share of it are ids."""
ID_COLUMNS = ("ensembl_id", "ensembl_gene_id", "gene_ids", "gene_id", "feature_id")
SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_name", "feature_name")
SYNONYM_COLUMNS = ("synonyms", "aliases", "alias_symbol", "prev_symbol")


def gene_ids(
    var: pd.DataFrame, *, column: str | None = None, table: Mapping[str, str] | None = None, name: str
) -> list[str]:
    """The ids of a source's genes, in order.

    They come from ``var[column]`` if the user names a column; else from the index, if most of it are Ensembl-style
    ids; else from the column of ``var`` that holds such ids (at least 90 % of it); else the index holds symbols.
    Versions are cut. Symbols, in the index or in ``column``, go through ``table``. One that the table lacks stays as it
    is, so that a vocabulary of ids drops and counts it, unless the name itself ends in an id, as
    ``7SK_ENSG00000260682`` does: that id is taken. A name that was made unique (``TBCE-1``) is not guessed at. Without
    a table symbols stand for themselves.

    Args:
        var: genes in order, ids or symbols in the index. A missing value in a column falls back to the index.
        column: the column of ``var`` to use.
        table: ``{symbol: id}``, as `read_gene_table` gives it.
        name: what messages call the source.

    Raises:
        KeyError: ``var`` has no column ``column``; names the nearest.
    """
    index = [str(label) for label in var.index]
    if column is None and _share_of_ids(index) > INDEX_SHARE:
        return without_version(index)
    column = column if column is not None else _find_id_column(var, name=name)
    values = index if column is None else _column(var, column, index, name=name)
    if column is not None and _share_of_ids(values) > INDEX_SHARE:
        return without_version(values)
    if table is None:
        logger.info("%s: no Ensembl ids in var, genes are matched by name (such as %s)", name, examples(values))
        return values
    ids = [table.get(value) or _trailing_id(value) for value in values]
    n_unmatched = sum(value not in table and id_ == value for value, id_ in zip(values, ids, strict=True))
    logger.info("%s: genes are matched by symbol; %d of %d are not in the table", name, n_unmatched, len(values))
    return ids


def read_gene_table(path: str | Path) -> dict[str, str]:
    """A table of genes as ``{symbol: id}``.

    A symbol that several ids share is left out (and counted in the log): which gene it means cannot be known.

    Args:
        path: as in `gene_rows`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column of ids or of symbols is found.
    """
    pairs = gene_rows(path)[["symbol", "id"]].drop_duplicates()
    pairs = pairs[pairs["symbol"] != ""]
    shared = pairs["symbol"].duplicated(keep=False)
    if shared.any():
        symbols = list(pairs["symbol"][shared].unique())
        logger.info("%s: %d symbols are left out, several ids share each (%s)", path, len(symbols), examples(symbols))
    return dict(zip(pairs["symbol"][~shared], pairs["id"][~shared], strict=True))


def gene_rows(path: str | Path) -> pd.DataFrame:
    """A table of genes as it stands in its file: columns ``id`` (without version), ``symbol`` and ``synonyms``.

    Symbol and synonyms may be empty; synonyms are separated by ``|``.

    Args:
        path: csv, possibly compressed, or tsv or parquet if so named. With a header that names a column of ids (such
            as ``ensembl_gene_id``), one of symbols (such as ``symbol``) and perhaps some of synonyms; or, of text
            files, without header, the id first and then the symbol.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column of ids or of symbols is found.
    """
    table = _read_text(path)
    id_column, symbol_column = (
        next((column for column in known if column in table.columns), None) for known in (ID_COLUMNS, SYMBOL_COLUMNS)
    )
    if id_column is None or symbol_column is None:
        raise ValueError(
            f"{path} is no table of genes: expected a header with one of {ID_COLUMNS} and one of {SYMBOL_COLUMNS}, or "
            f"no header and rows like 'ENSG00000141510,TP53', but the first row is {list(table.columns[:5])}"
        )
    synonyms = [column for column in SYNONYM_COLUMNS if column in table.columns]
    rows = pd.DataFrame({"id": without_version(table[id_column]), "symbol": table[symbol_column].to_numpy()})
    rows["synonyms"] = table[synonyms].agg("|".join, axis=1).to_numpy() if synonyms else ""
    return rows[rows["id"] != ""].reset_index(drop=True)


def _read_text(path: str | Path) -> pd.DataFrame:
    """The table with all values as text; its columns are named after the first row, unless that is a gene."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path).astype(object).fillna("").astype(str)
    separator = "\t" if any(suffix in {".tsv", ".tab"} for suffix in Path(path).suffixes) else ","
    # keep_default_na: "NaN" and "NA" are symbols of genes
    table = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    first = list(table.iloc[0])
    if len(first) > 1 and ENSEMBL_ID.fullmatch(first[0]):
        return table.rename(columns={0: ID_COLUMNS[0], 1: SYMBOL_COLUMNS[0]})
    return table.iloc[1:].set_axis(first, axis=1)


def _find_id_column(var: pd.DataFrame, *, name: str) -> str | None:
    """The column of ``var`` that holds ids: a usual name first, then the largest share, then the leftmost."""
    shares = {
        column: _share_of_ids(var[column].astype(str))
        for column in var.columns
        if var[column].dtype.kind == "O" and _share_of_ids(var[column].iloc[:: 1 + len(var) // 100].astype(str)) > 0
    }
    found = [column for column, share in shares.items() if share >= COLUMN_SHARE]
    if not found:
        return None
    found.sort(key=lambda column: (str(column).lower() not in ID_COLUMNS, -shares[column]))
    best = without_version(var[found[0]].astype(str))
    others = [column for column in found[1:] if without_version(var[column].astype(str)) != best]
    logger.log(
        logging.WARNING if others else logging.INFO,
        "%s: gene ids are taken from var[%r]%s",
        name,
        found[0],
        f", not from {others}, which hold other ids; name the column if that is wrong" if others else "",
    )
    return str(found[0])


def _column(var: pd.DataFrame, column: str, index: Sequence[str], *, name: str) -> list[str]:
    if column not in var.columns:
        columns = [str(other) for other in var.columns]
        near = difflib.get_close_matches(column, columns, n=3, cutoff=0.4) or columns[:10]
        raise KeyError(f"{name} has no var column {column!r} for gene ids; the nearest are {near}")
    values = var[column]
    missing = values.isna()
    return [own if lost else str(value) for value, lost, own in zip(values, missing, index, strict=True)]


def _trailing_id(symbol: str) -> str:
    match = TRAILING_ID.search(symbol)
    return match[1] if match else symbol


def _share_of_ids(names: Iterable[str]) -> float:
    matches = list(map(ENSEMBL_ID.fullmatch, names))
    return 1 - matches.count(None) / len(matches) if matches else 0.0


def examples(names: Sequence[str]) -> str:
    """The first three, for a message."""
    return ", ".join(names[:3]) or "none"
