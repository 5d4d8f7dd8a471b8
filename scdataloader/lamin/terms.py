"""The registries of a lamindb instance, filled with terms: from the wheel of cellxgene-ontology-guide, or online."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from scdataloader.lamin.session import MAIN, TRASH, check_bionty, session
from scdataloader.ontology.ontology import Ontology
from scdataloader.schema import ONTOLOGIES, ORGANISMS, SchemaOntology

if TYPE_CHECKING:
    import pandas as pd


REGISTRIES = ("Organism", *dict.fromkeys(known.registry for known in ONTOLOGIES.values() if known.registry))
"""All registries that `import_ontologies` fills."""


def import_ontologies(registries: Sequence[str] | None = None, *, online: bool = False) -> Iterator[str]:
    """Fill registries of the connected instance, one transaction each; what is there already is left as it is.

    Offline, the terms are those of the CELLxGENE schema in the wheel of cellxgene-ontology-guide, without deprecated
    ones, and the organisms those that this package knows. Online, they are those of the source that bionty uses: its
    own, unless the registry was filled offline before.

    Args:
        registries: Some of `REGISTRIES`; None for all.
        online: Whether to take bionty's own sources, over the network.

    Yields:
        For each of them, when it is done, a line that says what it holds.

    Raises:
        ValueError: there is no such registry.
        RuntimeError: no instance is connected, it has no bionty, or its database is locked.
        ConnectionError: online, and the network does not give the terms; says which, and the offline way.
    """
    chosen = list(registries or REGISTRIES)
    for name in chosen:
        if name not in REGISTRIES:
            near = difflib.get_close_matches(name, REGISTRIES, n=1, cutoff=0.4)
            raise ValueError(
                f"there is no registry {name!r} to import{f' (did you mean {near[0]}?)' if near else ''}; "
                f"expected some of {', '.join(REGISTRIES)}; for genes there is `scdataloader instance import-genes`"
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
    """Import what a registry lacks; how many records it had and has."""
    import bionty
    from django.db import transaction
    from rich.console import Console

    registry = getattr(bionty, name)
    n_before = registry.filter().count()
    with transaction.atomic(), Console(stderr=True).status(f"importing {name}"):
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
    """Save terms that a registry of the connected instance lacks, with all that is above them; asks no network.

    Args:
        registry: such as ``bionty.CellType``.
        ids: ids of any ontology of the guide, also of one that is not imported into this registry as a whole, such as
            PATO's "normal" into the diseases. Organisms that this package has no name for go by their id.

    Raises:
        LookupError: the guide has no such term, or a deprecated one.
    """
    import lamindb

    missing = _missing(registry, ids)
    if registry.__name__ == "Organism":
        if missing:
            _import_organisms(registry, missing)
        return
    for prefix, terms in _by_prefix(missing):
        source = _source(registry, prefix, terms)
        _restore(registry, _guide(prefix), terms)
        # saving one saves all that is above it
        lamindb.save(registry.from_values(terms, field=registry.ontology_id, source=source, mute=True))


def unsavable(registry: Any, ids: Iterable[str]) -> dict[str, str]:
    """{id: why} of those terms that `save_terms` could not save."""
    why: dict[str, str] = {}
    if registry.__name__ == "Organism":
        return why
    for prefix, terms in _by_prefix(_missing(registry, ids)):
        try:
            ontology = _guide(prefix)
        except ValueError as error:
            why |= {term: _unknown_message(registry.__name__, [term], str(error)) for term in terms}
        else:
            said = f"{ontology!r} has no such current term"
            why |= {term: _unknown_message(registry.__name__, [term], said) for term in terms if term not in ontology}
    return why


def _missing(registry: Any, ids: Iterable[str]) -> list[str]:
    ids = set(ids)
    return sorted(ids - set(registry.filter(ontology_id__in=ids).values_list("ontology_id", flat=True)))


def _by_prefix(ids: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Sorted ids by the ontologies that they name."""
    return [(prefix, list(group)) for prefix, group in groupby(ids, key=lambda term: term.partition(":")[0])]


@lru_cache(maxsize=1)
def _guide(name: str) -> Ontology:
    """An ontology of the guide, of which the last one is kept: the next question is most often about the same."""
    return Ontology.from_guide(name)


def _restore(registry: Any, ontology: Ontology, terms: Sequence[str]) -> None:
    """Take terms, and what is above them, out of lamindb's trash, where they are neither found nor can be made anew."""
    ids = {*terms, *chain.from_iterable(ontology.ancestors(term) for term in terms)}
    registry.objects.filter(ontology_id__in=ids, branch_id=TRASH).update(branch_id=MAIN)


def _source(registry: Any, name: str, wanted: Sequence[str] = ()) -> Any:
    """The table of an ontology in the instance, as bionty's source; made where it is not there yet.

    Args:
        registry: which holds its terms.
        name: of the ontology, in any case.
        wanted: terms that it must have.

    Raises:
        LookupError: the ontology is none of the guide's, or not all that is ``wanted`` is a current term of it.
    """
    import bionty

    record: Any = bionty.Source
    entity = registry.__name__
    try:
        ontology = _guide(name)
    except ValueError as error:
        raise LookupError(_unknown_message(entity, wanted, str(error))) from error
    unknown = [term for term in wanted if term not in ontology]
    if unknown:
        raise LookupError(_unknown_message(entity, unknown, f"{ontology!r} has no such current term"))
    of_registry = {other.lower(): known for other, known in ONTOLOGIES.items() if known.registry == entity}
    known = of_registry.get(name.lower(), SchemaOntology())
    named = {"entity": f"bionty.{entity}", "name": name.lower(), "organism": known.source_organism}
    source = record.filter(**named, version=ontology.version).one_or_none()
    if source is None or source.dataframe_artifact_id is None:
        # not saved before, or there would be two in use for a while
        source = record(**named, version=ontology.version, currently_used=True)
        source = registry.add_source(source, df=_table(ontology))
    return source


def _unknown_message(registry: str, ids: Sequence[str], why: str) -> str:
    return (
        f"{', '.join(ids[:5])} cannot be saved in bionty.{registry}: {why}; if they are right, save them first, as in "
        f"bionty.{registry}(name=..., ontology_id={ids[0]!r}).save()"
    )


def _table(ontology: Ontology) -> pd.DataFrame:
    """Current terms as `add_source` wants them."""
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
    """Save the organisms that this package knows, and ``others`` under their ids."""
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
            f"bionty.{registry.__name__}.import_source() fetches its terms over the network, and got none ({error}); "
            f"without a network: `scdataloader instance import-ontologies {registry.__name__}`, whose terms come with "
            "the wheel of cellxgene-ontology-guide"
        ) from error
