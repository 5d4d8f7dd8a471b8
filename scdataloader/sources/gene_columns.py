"""Which column of a gene table names the genes, where the format does not say."""

from __future__ import annotations

import re

import pandas as pd

_IDS = ("var_id", "var_feature_id", "feature_id", "gene_ids", "gene_id", "ensembl_id", "ensembl_gene_id")
_NAMES = ("feature_name", "gene_symbols", "gene_symbol", "gene_name", "symbol")
_ENSEMBL_ID = re.compile(r"ENS[A-Z]*G[0-9]{11}(\.[0-9]+)?")


def gene_id_column(frame: pd.DataFrame) -> str | None:
    """The column of a gene table that names the genes: by its name, by Ensembl ids in it, or one of symbols."""
    named = [column for column in _IDS if column in frame]
    for column in frame.columns if not named else ():
        values = frame[column].dropna().astype(str)
        if len(values) and values.str.fullmatch(_ENSEMBL_ID).mean() > 0.5:  # noqa: PLR2004
            named.append(str(column))
    named += [column for column in _NAMES if column in frame]
    return named[0] if named else None
