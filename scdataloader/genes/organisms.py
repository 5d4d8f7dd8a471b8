"""Organisms: their names, the prefixes of their gene ids, and which organisms the cells of a source belong to."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from scdataloader.runtime.messages import did_you_mean
from scdataloader.schema import ORGANISMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import pandas as pd
    from numpy.typing import NDArray

UNSTATED = "NCBITaxon:32644"
"""NCBI's "unidentified": the organism of sources that state none. Allowed if no source of a collection states one."""

ENSEMBL_ID = re.compile(r"((?:ENS[A-Z]*G|WBGene|FBgn)[0-9]{7,11})(?:\.[0-9]+)?")
"""Stable gene id of any organism; group 1 is the id without version."""

_NAMES = {name: taxon for taxon, known in ORGANISMS.items() for name in (known.scientific_name, *known.names)}
_PREFIXES = {known.gene_prefix: taxon for taxon, known in ORGANISMS.items()}
_TAXON = re.compile(r"(?:ncbitaxon[:_ ])?([0-9]+)", re.IGNORECASE)


def normalise_organism(name: str) -> str:
    """The NCBITaxon id of an organism: ``human``, ``Homo sapiens``, ``homo_sapiens``, ``9606`` → ``NCBITaxon:9606``.

    Any NCBITaxon id is accepted, also of an organism that is not in `scdataloader.schema.ORGANISMS`.

    Raises:
        ValueError: the name is unknown; suggests the nearest one and lists all.
    """
    taxon = _TAXON.fullmatch(name.strip())
    if taxon:
        return f"NCBITaxon:{taxon[1]}"
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    if plain in _NAMES:
        return _NAMES[plain]
    known = ", ".join(organism.scientific_name for organism in ORGANISMS.values())
    raise ValueError(
        f"unknown organism {name!r}{did_you_mean(plain, _NAMES)}; give its NCBITaxon id, such as NCBITaxon:9606, or "
        f"one of: {known}"
    )


def find_organisms(
    source: str,
    *,
    given: str | None,
    obs: Iterable[tuple[str, pd.Series]],
    uns: Callable[[], str | None],
    gene_ids: Callable[[], Iterable[str]],
) -> list[tuple[str, NDArray[np.int64] | None]]:
    """Organisms of the cells of a source, sorted by NCBITaxon id, each with the row numbers of its cells.

    The first of these that states an organism decides: the user, a column of obs, uns, the prefix of the gene ids (see
    `infer_organism`). What comes after is not read.

    Args:
        source: Name of the source in messages.
        given: The organism that the user gives for all cells; None without one.
        obs: ``(name, values)`` of the columns of obs that may state organisms, by precedence. A column without any
            value is skipped.
        uns: Returns the organism that uns states for all cells; None without one.
        gene_ids: Returns the gene ids of the source.

    Returns:
        Row numbers are None if all cells are of one organism. `UNSTATED` if nothing states an organism.

    Raises:
        ValueError: an organism is unknown, or a column of obs states organisms for some cells only.
    """
    if given is not None:
        return [(normalise_organism(given), None)]
    for column, values in obs:
        if not values.isna().all():
            return _by_column(values.astype("category"), source, column)
    stated = uns()
    if stated:
        return [(normalise_organism(stated), None)]
    return [(infer_organism(gene_ids()) or UNSTATED, None)]


def _by_column(labels: pd.Series, source: str, column: str) -> list[tuple[str, NDArray[np.int64] | None]]:
    n_missing = int(labels.isna().sum())
    if n_missing:
        raise ValueError(
            f"{n_missing:,} of the {len(labels):,} cells of {source} have no organism in obs[{column!r}]; fill the "
            f'column, or give one organism for the source: {{"{source}": "human"}} in the organisms of an alignment, '
            "or by a rule of a recipe"
        )
    organisms = {label: normalise_organism(str(label)) for label, n in labels.value_counts().items() if n}
    distinct = sorted(set(organisms.values()))
    if len(distinct) == 1:
        return [(distinct[0], None)]
    of_cell = labels.map(organisms)
    return [(organism, np.flatnonzero(of_cell == organism)) for organism in distinct]


def infer_organism(ids: Iterable[str]) -> str | None:
    """The organism of gene ids by their Ensembl prefix; None if it is not clear.

    More than half of all ids must have the organism's prefix, and at least 90 % of those that have any prefix.
    """
    counts: Counter[str | None] = Counter()
    for name in ids:
        match = ENSEMBL_ID.fullmatch(name)
        counts[match[1].rstrip("0123456789") if match else None] += 1
    n_ids = counts.total()
    n_other = counts.pop(None, 0)
    if not counts:
        return None
    prefix, n_agree = counts.most_common(1)[0]
    if n_agree * 2 <= n_ids or n_agree < 0.9 * (n_ids - n_other) or prefix is None:
        return None
    return _PREFIXES.get(prefix)
