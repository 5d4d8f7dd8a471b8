"""Organisms: their names, the prefixes of their gene ids, and which organisms the cells of a source belong to."""

from __future__ import annotations

import re
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from scdataloader.runtime.messages import did_you_mean
from scdataloader.schema import ORGANISMS, SUBSPECIES, is_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pandas as pd
    from numpy.typing import NDArray

UNSTATED = "NCBITaxon:32644"
"""NCBI's "unidentified": the organism of sources that state none. Allowed if no source of a collection states one."""

ENSEMBL_ID = re.compile(r"((?:ENS[A-Z]*G|WBGene|FBgn)[0-9]{7,11})(?:\.[0-9]+(?:_[0-9]+)?)?(_PAR_Y)?")
"""Stable gene id of any organism; group 1 is the id without version, group 2 GENCODE's mark of a copy on Y."""

_NAMES = {name: taxon for taxon, known in ORGANISMS.items() for name in (known.scientific_name, *known.names)}
_NAMES |= {re.sub(r"^(.)\S+ (\S+).*", r"\1. \2", known.scientific_name): taxon for taxon, known in ORGANISMS.items()}
_SPECIES = {f"NCBITaxon:{number}": taxon for taxon, numbers in SUBSPECIES.items() for number in numbers.split()}
_PREFIXES = {known.gene_prefix: taxon for taxon, known in ORGANISMS.items()}
_N_WORDS_OF_SUBSPECIES = 3
_TAXON = re.compile(r"(?:ncbitaxon[:_ ])?([0-9]+)(?:\.0)?", re.IGNORECASE)


def normalise_organism(name: str) -> str:
    """The NCBITaxon id of an organism: ``human``, ``Homo sapiens``, ``homo_sapiens``, ``9606`` → ``NCBITaxon:9606``.

    A subspecies or strain of a known organism has its genes, and so its id: ``Sus scrofa domesticus`` and
    ``NCBITaxon:9825`` are ``NCBITaxon:9823``. Any other NCBITaxon id is accepted as it is.

    Raises:
        ValueError: the name is unknown; suggests the nearest one and lists all.
    """
    taxon = _TAXON.fullmatch(name.strip())
    if taxon:
        found = f"NCBITaxon:{taxon[1]}"
        return _SPECIES.get(found, found)
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    words = plain.split(" ")
    species = " ".join(words[:2]) if len(words) == _N_WORDS_OF_SUBSPECIES else plain
    if plain in _NAMES or species in _NAMES:
        return _NAMES.get(plain) or _NAMES[species]
    known = ", ".join(organism.scientific_name for organism in ORGANISMS.values())
    raise ValueError(
        f"unknown organism {name!r}{did_you_mean(plain, _NAMES)}; give its NCBITaxon id, such as NCBITaxon:9606, or "
        f"one of: {known}"
    )


def find_organisms(
    source: str,
    *,
    given: str | None,
    obs: Iterable[tuple[str, pd.Series | str]],
    uns: Callable[[], str | None],
    by_ids: Callable[[], str | None],
) -> list[tuple[str, NDArray[np.int64] | None]]:
    """Organisms of the cells of a source, sorted by NCBITaxon id, each with the row numbers of its cells.

    The first of these that states an organism decides: the user, a column of obs, uns, the prefix of the gene ids (see
    `infer_organism`). What comes after is not read. Missing values and words for unknown state nothing.

    Args:
        source: Name of the source in messages.
        given: The organism that the user gives for all cells; None without one.
        obs: ``(name, values)`` of the columns of obs that may state organisms, by precedence; or one label, if all
            cells have it. Cells without a value in a column that has some are of the organism of the gene ids.
        uns: Returns the organism that uns states for all cells; None without one.
        by_ids: Returns the organism of the gene ids of the source; None if it is not clear.

    Returns:
        Row numbers are None if all cells are of one organism. `UNSTATED` if nothing states an organism.

    Raises:
        ValueError: an organism is unknown, or a column of obs and the gene ids state organisms for some cells only.
    """
    if given is not None:
        return [(normalise_organism(given), None)]
    for column, values in obs:
        place = f"obs[{column!r}]"
        if isinstance(values, str):
            if (organism := _stated(values, source, place)) is not None:
                return [(organism, None)]
            continue
        labels = values.astype("category")
        organisms = {label: _stated(str(label), source, place) for label, n in labels.value_counts().items() if n}
        if not any(organisms.values()):
            continue
        is_missing = labels.isna() | labels.isin([label for label, organism in organisms.items() if organism is None])
        of_others = by_ids() if is_missing.any() else None
        if is_missing.any() and of_others is None:
            cells = f"{is_missing.sum():,} of the {len(labels):,} cells of {source}"
            raise ValueError(f"{cells} have no organism in {place}; fill the column, or {remedy(source)}")
        distinct = sorted({organism for organism in (*organisms.values(), of_others) if organism})
        if len(distinct) == 1:
            return [(distinct[0], None)]
        of_cell = labels.map(organisms).astype(object).where(~is_missing, of_others)
        return [(organism, np.flatnonzero(of_cell == organism)) for organism in distinct]
    organism = _stated(uns() or "", source, "uns")
    return [(organism or by_ids() or UNSTATED, None)]


def remedy(source: str) -> str:
    """How the user gives the organism of a source, for messages."""
    return (
        f"give its organism by name or NCBITaxon id, as organisms={{{source!r}: 'human'}} of an alignment (--organisms "
        f"{source}=human), or by a rule of a recipe"
    )


def _stated(name: str, source: str, place: str) -> str | None:
    """The organism of a name that is written in a file; None if it means that it is not known."""
    if is_unknown(name):
        return None
    try:
        organism = normalise_organism(name)
    except ValueError as error:
        near = did_you_mean(name.lower(), _NAMES)
        raise ValueError(f"{source} has the unknown organism {name!r} in {place}{near}; {remedy(source)}") from error
    return None if organism == UNSTATED else organism


def infer_organism(ids: Iterable[str]) -> str | None:
    """The organism of gene ids by their Ensembl prefix; None if it is not clear.

    More than half of all ids must have the organism's prefix, and at least 90 % of those that have any prefix.
    """
    return organism_of_prefixes(Counter(map(prefix_of, ids)))


def prefix_of(name: str) -> str | None:
    """The prefix of an Ensembl-style id, such as "ENSMUSG"; None for other names."""
    match = ENSEMBL_ID.fullmatch(name)
    return None if match is None else match[1].rstrip("0123456789")


def organism_of_prefix(prefix: str) -> str | None:
    """The organism whose gene ids have a prefix; None if it is unknown."""
    return _PREFIXES.get(prefix)


def organism_of_prefixes(times: Mapping[str | None, int]) -> str | None:
    """As `infer_organism`, of {prefix: number of ids that have it}, None for names that are not ids."""
    n_ids, n_other = sum(times.values()), times.get(None, 0)
    prefix, n_agree = max(((key, n) for key, n in times.items() if key), key=itemgetter(1), default=(None, 0))
    if prefix is None or n_agree * 2 <= n_ids or n_agree < 0.9 * (n_ids - n_other):
        return None
    return organism_of_prefix(prefix)
