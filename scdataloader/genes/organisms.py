"""Organisms: their many names, and what their Ensembl ids look like."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import TYPE_CHECKING

from scdataloader.schema import ORGANISMS

if TYPE_CHECKING:
    from collections.abc import Iterable

ENSEMBL_ID = re.compile(r"((?:ENS[A-Z]*G|WBGene|FBgn)[0-9]{7,11})(?:\.[0-9]+)?")
"""A gene's stable id, of any organism; group 1 is the id without version."""
TRAILING_ID = re.compile(r"(?:^|_)" + ENSEMBL_ID.pattern + r"$")
"""A name that ends in an id, as portals write symbols that several genes share: ``7SK_ENSG00000260682``."""

_NAMES = {name: taxon for taxon, known in ORGANISMS.items() for name in (known.scientific_name, *known.names)}
_PREFIXES = {known.gene_prefix: taxon for taxon, known in ORGANISMS.items()}
_TAXON = re.compile(r"(?:ncbitaxon[:_ ])?([0-9]+)", re.IGNORECASE)


def normalise_organism(name: str) -> str:
    """The NCBITaxon id of an organism: ``human``, ``Homo sapiens``, ``homo_sapiens``, ``9606`` → ``NCBITaxon:9606``.

    Any NCBITaxon id is taken as it is, also of an organism that has no name here.

    Raises:
        ValueError: the name is unknown; names the nearest and all known.
    """
    taxon = _TAXON.fullmatch(name.strip())
    if taxon:
        return f"NCBITaxon:{taxon[1]}"
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    if plain in _NAMES:
        return _NAMES[plain]
    near = difflib.get_close_matches(plain, _NAMES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join(known.scientific_name for known in ORGANISMS.values())
    raise ValueError(
        f"unknown organism {name!r}{hint}; give its NCBITaxon id, such as NCBITaxon:9606, or one of: {known}"
    )


def infer_organism(ids: Iterable[str]) -> str | None:
    """The organism that gene ids belong to, by their Ensembl prefix; None where they do not say.

    More than half of all ids must carry the organism's prefix, and nine in ten of those that carry any: a mixture of
    species has no organism of its own.
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


def without_version(ids: Iterable[str]) -> list[str]:
    """Cut ``.12`` off Ensembl-style ids; names of clones such as ``AC012345.1`` stay whole."""
    matches = ((name, ENSEMBL_ID.fullmatch(name) if "." in name else None) for name in ids)
    return [name if match is None else match[1] for name, match in matches]
