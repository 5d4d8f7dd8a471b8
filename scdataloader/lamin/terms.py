"""Import ontology terms into registries: from the wheel of cellxgene-ontology-guide, or online."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from scdataloader.lamin.session import MAIN, TRASH, check_bionty, session
from scdataloader.ontology.locate import open_ontology
from scdataloader.ontology.ontology import Ontology
from scdataloader.runtime.messages import did_you_mean
from scdataloader.runtime.progress import spinner
from scdataloader.schema import ONTOLOGIES, ORGANISMS, SchemaOntology

if TYPE_CHECKING:
    import pandas as pd


REGISTRIES = ("Organism", *dict.fromkeys(known.registry for known in ONTOLOGIES.values() if known.registry))
"""The registries that `import_ontologies` fills."""


def import_ontologies(registries: Sequence[str] | None = None, *, online: bool = False) -> Iterator[str]:
    """Fill registries of the connected instance, in one transaction each; existing records are left unchanged.

    Offline, the terms are the current ones of the CELLxGENE schema, from the wheel of cellxgene-ontology-guide, and the
    organisms those of `ORGANISMS`. Online, they are those of the source that bionty uses: its own, unless the registry
    was filled offline before.

    Args:
        registries: Some of `REGISTRIES`; None for all.
        online: Whether to take the terms from bionty's own sources, over the network.

    Yields:
        A line on the content of each registry, when it is filled.

    Raises:
        ValueError: a registry does not exist.
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
        ConnectionError: the terms cannot be downloaded.
    """
    chosen = list(registries or REGISTRIES)
    for name in chosen:
        if name not in REGISTRIES:
            raise ValueError(
                f"no registry {name!r}{did_you_mean(name, REGISTRIES)}; expected some of {', '.join(REGISTRIES)}; "
                "for genes, use `scdataloader instance import-genes`"
            )
    for name in chosen:
        with session():
            check_bionty()
            start = time.perf_counter()
            n_before, n_after = _filled(name, online=online)
            n_new, seconds = n_after - n_before, time.perf_counter() - start
        news = f"{n_new:,} new in {seconds:.1f} s" if n_new else "none new"
        yield f"{name}: {n_after:,} terms, {news}"


def _filled(name: str, *, online: bool) -> tuple[int, int]:
    """Import what a registry lacks; returns its numbers of records before and after."""
    import bionty
    from django.db import transaction

    registry = getattr(bionty, name)
    n_before = registry.filter().count()
    with transaction.atomic(), spinner(f"importing {name}"):
        if online:
            _import_online(registry)
        elif name == "Organism":
            _import_organisms(registry)
        else:
            for ontology, known in ONTOLOGIES.items():
                if known.registry == name:
                    source = _source(registry, ontology)
                    if not source.in_db:
                        registry.import_source(source)
    return n_before, registry.filter().count()


def save_terms(registry: Any, ids: Iterable[str]) -> None:
    """Save terms that a registry of the connected instance lacks, with all terms above them, offline.

    Args:
        registry: Such as ``bionty.CellType``.
        ids: Ids of any registered ontology, also of one that is not imported into this registry as a whole, such as
            PATO's "normal" into the diseases. Organisms that are not in `ORGANISMS` are named by their id.

    Raises:
        LookupError: a term does not exist or is deprecated.
    """
    import lamindb

    missing = _missing(registry, ids)
    if registry.__name__ == "Organism":
        if missing:
            _import_organisms(registry, missing)
        return
    for prefix, terms in _by_prefix(missing):
        for reason in _unsavable(registry, prefix, terms).values():
            raise LookupError(reason)
        _restore(registry, _ontology(prefix), terms)
        # saves all terms above them, too
        source = _source(registry, prefix)
        lamindb.save(registry.from_values(terms, field=registry.ontology_id, source=source, mute=True))


def unsavable(registry: Any, ids: Iterable[str]) -> dict[str, str]:
    """{id: reason} of the terms that `save_terms` cannot save."""
    reasons: dict[str, str] = {}
    for prefix, terms in _by_prefix(_missing(registry, ids)) if registry.__name__ != "Organism" else ():
        reasons |= _unsavable(registry, prefix, terms)
    return reasons


def _unsavable(registry: Any, prefix: str, terms: Sequence[str]) -> dict[str, str]:
    """The same for terms of one prefix that the registry lacks."""
    try:
        ontology = _ontology(prefix)
    except (LookupError, ValueError) as error:
        unknown, reason = terms, str(error.args[0])
    else:
        unknown = [term for term in terms if term not in ontology]
        reason = f"{ontology!r} has no such current term"
    name = registry.__name__
    return {
        term: f"{term} cannot be saved in bionty.{name}: {reason}; if it is right, save it first, as in "
        f"bionty.{name}(name=..., ontology_id={term!r}).save()"
        for term in unknown
    }


def _missing(registry: Any, ids: Iterable[str]) -> list[str]:
    ids = set(ids)
    return sorted(ids - set(registry.filter(ontology_id__in=ids).values_list("ontology_id", flat=True)))


def _by_prefix(ids: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Sorted ids, grouped by prefix."""
    return [(prefix, list(group)) for prefix, group in groupby(ids, key=lambda term: term.partition(":")[0])]


@lru_cache(maxsize=8)
def _ontology(name: str) -> Ontology:
    """An ontology by its registered name; as many are cached as the columns of the schema need."""
    return open_ontology(name)


def _restore(registry: Any, ontology: Ontology, terms: Sequence[str]) -> None:
    """Restore terms, and all terms above them, from lamindb's trash, where they block records of the same id."""
    ids = {*terms, *chain.from_iterable(ontology.ancestors(term) for term in terms)}
    registry.objects.filter(ontology_id__in=ids, branch_id=TRASH).update(branch_id=MAIN)


def _source(registry: Any, name: str) -> Any:
    """The table of a registered ontology as a source of bionty, which is created if it does not exist."""
    import bionty

    record: Any = bionty.Source
    entity, ontology = registry.__name__, _ontology(name)
    of_registry = {other.lower(): known for other, known in ONTOLOGIES.items() if known.registry == entity}
    known = of_registry.get(name.lower(), SchemaOntology())
    named = {"entity": f"bionty.{entity}", "name": name.lower(), "organism": known.source_organism}
    version = ontology.version or ontology.fingerprint[:8]
    source = record.filter(**named, version=version).one_or_none()
    if source is None or source.dataframe_artifact_id is None:
        # not saved before add_source, or two would be in use for a while
        source = record(**named, version=version, currently_used=True)
        source = registry.add_source(source, df=_table(ontology))
    return source


def _table(ontology: Ontology) -> pd.DataFrame:
    """Current terms in the columns that ``add_source`` of bionty expects."""
    import pandas as pd

    return pd.DataFrame(
        {
            "ontology_id": list(ontology.terms),
            "name": [ontology.label(term) for term in ontology.terms],
            "definition": None,
            "synonyms": ["|".join(ontology.synonyms(term)) or None for term in ontology.terms],
            "parents": [ontology.parents(term) for term in ontology.terms],
        }
    )


def _import_organisms(registry: Any, others: Iterable[str] = ()) -> None:
    """Save all organisms of `ORGANISMS`, and ``others`` under their ids."""
    there = set(registry.filter().values_list("ontology_id", flat=True))
    for taxon, known in ORGANISMS.items():
        if taxon not in there:
            scientific_name = known.scientific_name.replace(" ", "_")
            registry(name=known.names[0], ontology_id=taxon, scientific_name=scientific_name).save()
    for taxon in others:
        if taxon not in ORGANISMS:
            registry(name=taxon, ontology_id=taxon, scientific_name=taxon).save()


def _import_online(registry: Any) -> None:
    import httpx
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        registry.import_source()
    except (BotoCoreError, ClientError, httpx.HTTPError, OSError) as error:
        raise ConnectionError(
            f"bionty.{registry.__name__}.import_source() cannot download its terms ({error}); without a network, use "
            f"`scdataloader instance import-ontologies {registry.__name__}`, whose terms come with "
            "cellxgene-ontology-guide"
        ) from error
