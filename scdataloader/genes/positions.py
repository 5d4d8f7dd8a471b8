"""Positions of genes in the genome of their organism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from scdataloader.genes.names import ID_COLUMNS, are_ids, without_version
from scdataloader.genes.organisms import normalise_organism
from scdataloader.genes.tables import SHIPPED, find_gene_table, package_table

_COLUMNS = ["chromosome", "start"]


def gene_positions(names: Sequence[str], organism: str, tables: Mapping[str, str]) -> pd.DataFrame:
    """Chromosome and start of genes, by the user's gene table if it has these columns, else by the package's.

    Args:
        names: Ids or symbols of genes of the organism.
        organism: NCBITaxon id.
        tables: {organism: path}, as given by the user.

    Returns:
        ``(len(names), 2)`` columns ``chromosome``, names such as "1" and "X", and ``start``, the first base; missing
        values for genes without a position.
    """
    ids = without_version(names)
    table = find_gene_table(organism, tables) or (None if are_ids(ids) else package_table(organism))
    if table is not None:
        ids = table.match(ids)[0]
    given = {normalise_organism(name): path for name, path in tables.items()}.get(organism)
    known = None if given is None else _positions(Path(given).expanduser())
    if known is None:
        shipped = SHIPPED / f"{organism.replace(':', '_')}.parquet"
        known = _positions(shipped) if shipped.exists() else None
    if known is None:
        known = pd.DataFrame(columns=_COLUMNS)
    return known.reindex(ids)


@lru_cache(maxsize=16)
def _positions(path: Path) -> pd.DataFrame | None:
    """The positions of a gene table, by id; None if it has none."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
    else:
        separator = "\t" if any(suffix in {".tsv", ".tab"} for suffix in path.suffixes) else ","
        table = pd.read_csv(path, sep=separator, dtype={"chromosome": str}, keep_default_na=False)
    column = next((column for column in ID_COLUMNS if column in table.columns), None)
    if column is None or not set(_COLUMNS) <= set(table.columns):
        return None
    table = table.set_index(pd.Index(without_version(table[column])))[_COLUMNS]
    table = table[table["chromosome"].astype(str) != ""].astype({"chromosome": str, "start": "int64"})
    return table[~table.index.duplicated()]
