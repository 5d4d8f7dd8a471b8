"""Names of ontology terms, terms below others, and the filling of a lamindb instance, as scPRINT-2 calls them."""

from __future__ import annotations

import logging
import re
import secrets
import string
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from scdataloader.curation.labels import cached_ontology
from scdataloader.genes.tables import SHIPPED
from scdataloader.lamin import import_genes, import_ontologies
from scdataloader.ontology.graph import steps_up
from scdataloader.ontology.names import prefix_of, terms_in
from scdataloader.registry import names
from scdataloader.schema import LABEL_COLUMNS, ORGANISM, ORGANISMS, UNKNOWN

_OWN = ("NCBITaxon:9606", "NCBITaxon:10090")
"""The organisms whose genes scDataLoader imports by default."""
_OTHER_COLUMNS = ("simplified_dev_stage", "age_group")
"""Further columns of scDataLoader whose labels are terms."""
_ID = re.compile(r"[A-Za-z]\w*:\w+")

logger = logging.getLogger(__name__)


def translate(val: Any, t: str = "cell_type_ontology_term_id") -> Any:
    """Names of ontology terms, from the ontologies of the CELLxGENE schema.

    Args:
        val: One id; or several, as a set, a list, or the keys of a dictionary. An id may be joint, of several terms
            separated by commas or "||", and its name is then the names, separated by commas.
        t: Column of obs whose labels the ids are.

    Returns:
        {id: name} of one id or a set, a list of names of a list, {name: value} of a dictionary; the name of what is not
        a term is None, and that of "unknown" is "unknown". None if the labels of the column are not terms.
    """
    if t not in LABEL_COLUMNS and t not in (*_OTHER_COLUMNS, ORGANISM):
        return None
    if isinstance(val, str):
        return {val: _name(val)}
    if isinstance(val, Mapping):
        return {_name(term): value for term, value in val.items()}
    if isinstance(val, set | frozenset):
        return {term: _name(term) for term in val}
    return [_name(term) for term in val]


def _name(label: object) -> str | None:
    if label == UNKNOWN:
        return UNKNOWN
    found = [_name_of_term(term) for term in terms_in(str(label))]
    known = [name for name in found if name is not None]
    return ",".join(known) if len(known) == len(found) else None


def _name_of_term(term: str) -> str | None:
    if term in ORGANISMS:
        return ORGANISMS[term].names[0]
    prefix = prefix_of(term)
    if prefix not in names("ontology"):
        return None
    try:
        return cached_ontology(prefix).label(term)
    except LookupError:
        return None


def get_descendants(val: str, df: pd.DataFrame) -> set[str]:
    """Ids of all terms below a term.

    Args:
        val: The id of the term.
        df: Terms by id, whose column "parents__ontology_id" has the ids of the parents of each: as a list or another
            collection, or as any text in which they occur.
    """
    children: dict[str, list[str]] = {}
    for term, parents in df["parents__ontology_id"].items():
        for parent in _ids_in(parents):
            children.setdefault(parent, []).append(str(term))
    below = steps_up(_Graph(children), val)
    return set(below) - {val}


class _Graph(dict[str, list[str]]):
    """{term: terms below it}; a term that is not there has none."""

    def __missing__(self, term: str) -> list[str]:
        return []


def _ids_in(parents: object) -> Iterable[str]:
    if isinstance(parents, str):
        return _ID.findall(parents)
    return map(str, parents) if isinstance(parents, Iterable) else ()


def random_str(stringLength: int = 6, stype: str = "all", withdigits: bool = True) -> str:  # noqa: FBT001, FBT002, N803
    """A random text for names of files; no generator that is seeded is used.

    Args:
        stringLength: Number of characters.
        stype: "lowercase", "uppercase" or "all" letters.
        withdigits: Whether there may be digits.
    """
    letters = {"lowercase": string.ascii_lowercase, "uppercase": string.ascii_uppercase}
    characters = letters.get(stype, string.ascii_letters) + (string.digits if withdigits else "")
    return "".join(secrets.choice(characters) for _ in range(stringLength))


def populate_my_ontology() -> None:
    """Fill registries of the connected lamindb instance, offline: ontologies, and genes of human and mouse.

    Raises:
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
    """
    for line in import_ontologies():
        logger.info(line)
    for organism in _OWN:
        logger.info(import_genes(organism, SHIPPED / f"{organism.replace(':', '_')}.parquet"))


def add_genes_of_other_organisms() -> None:
    """Add the genes of the other organisms that the package has tables of, as ``_adding_scbasecamp_genes``.

    Raises:
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
    """
    for path in sorted(SHIPPED.glob("*.parquet")):
        organism = path.stem.replace("_", ":")
        if organism not in _OWN:
            logger.info(import_genes(organism, path))
