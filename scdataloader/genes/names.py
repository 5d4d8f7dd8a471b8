"""Names of a source's genes: Ensembl-style ids or symbols, found in the index or in a column of ``var``."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from scdataloader.genes.organisms import ENSEMBL_ID
from scdataloader.runtime.messages import shown, suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd


logger = logging.getLogger(__name__)

ID_COLUMNS = ("ensembl_id", "ensembl_gene_id", "gene_ids", "gene_id", "feature_id")
SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_name", "feature_name")

_OLD_COPY_ON_Y = re.compile(r"ENSGR([0-9]{10})(?:\.[0-9]+)?")
MOST = 0.5
"""Fraction of ids that names have to exceed to be ids."""
_MIN_COLUMN_SHARE = 0.9
"""Minimum fraction of ids in a column of ``var`` that is found automatically."""


def gene_names(var: pd.DataFrame, *, column: str | None = None, source: str) -> list[str]:
    """The names of a source's genes, in order: ids without version, or symbols as written.

    They are ``var[column]`` if the user names a column; else the index, if most of it are Ensembl-style ids; else the
    column of ``var`` with at least 90 % such ids; else the index, which then holds symbols.

    Args:
        var: Genes in order. A missing value in a column falls back to the index.
        column: The column of ``var`` to use; None finds the names automatically.
        source: Name of the source in messages.

    Raises:
        KeyError: ``var`` has no column ``column``; suggests the nearest ones.
    """
    index = list(map(str, var.index))
    if column is None and are_ids(index):
        return without_version(index)
    column = column if column is not None else _find_id_column(var, source)
    names = index if column is None else _column(var, column, index, source)
    if are_ids(names):
        return without_version(names)
    logger.info("%s: no Ensembl ids in var, genes are matched by name (%s)", source, shown(names[:3]))
    return names


def are_ids(names: Iterable[str]) -> bool:
    """Whether more than half of the names are Ensembl-style ids; custom genes and spike-ins have none."""
    return _share(tuple(names)) > MOST


def without_version(ids: Iterable[str]) -> list[str]:
    """Ids without the ``.12`` of Ensembl-style ids; other names, such as the clone ``AC012345.1``, are unchanged.

    The copy on Y of a pseudoautosomal gene is another gene: ``ENSG00000182378.15_PAR_Y``, in old releases
    ``ENSGR0000182378.5``, is ``ENSG00000182378_PAR_Y``.
    """
    ids = list(ids)
    text = "\n".join(ids)
    if "." not in text and "ENSGR" not in text:
        return ids
    return [_plain(name) if "." in name or name[:5] == "ENSGR" else name for name in ids]


def _plain(name: str) -> str:
    old = _OLD_COPY_ON_Y.fullmatch(name)
    if old is not None:
        return f"ENSG0{old[1]}_PAR_Y"
    match = ENSEMBL_ID.fullmatch(name)
    return name if match is None else match[1] + (match[2] or "")


def _find_id_column(var: pd.DataFrame, source: str) -> str | None:
    """The column of ``var`` that holds ids: one with a usual name, then the largest fraction of ids, then the first."""
    shares = {
        column: _share(tuple(var[column].astype(str)))
        for column in var.columns
        if var[column].dtype.kind == "O" and _share(tuple(var[column].iloc[:: 1 + len(var) // 100].astype(str))) > 0
    }
    found = [column for column, share in shares.items() if share >= _MIN_COLUMN_SHARE]
    if not found:
        return None
    found.sort(key=lambda column: (str(column).lower() not in ID_COLUMNS, -shares[column]))
    best = without_version(var[found[0]].astype(str))
    others = [column for column in found[1:] if without_version(var[column].astype(str)) != best]
    logger.log(
        logging.WARNING if others else logging.INFO,
        "%s: gene ids are read from var[%r]%s",
        source,
        found[0],
        f", not from {others}, which hold other ids; name the column to choose another" if others else "",
    )
    return str(found[0])


def _column(var: pd.DataFrame, column: str, index: Sequence[str], source: str) -> list[str]:
    if column not in var.columns:
        raise KeyError(f"{source} has no var column {column!r} for gene ids; {suggestion(column, var.columns)}")
    values = var[column]
    missing = values.isna()
    return [own if lost else str(value) for value, lost, own in zip(values, missing, index, strict=True)]


@lru_cache(maxsize=16)
def _share(names: tuple[str, ...]) -> float:
    """Cached, because many sources have the same genes, and are asked more than once."""
    return sum(map(_is_id, names)) / len(names) if names else 0.0


@lru_cache(maxsize=1 << 18)
def _is_id(name: str) -> bool:
    """Cached, because thousands of sources may have different parts of the same genes."""
    return ENSEMBL_ID.fullmatch(name) is not None
