"""Link artifacts to their labels: terms in columns of obs, and organisms."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from scdataloader.curation.report import Outcome
from scdataloader.lamin.terms import save_terms, unsavable
from scdataloader.schema import LABEL_COLUMNS, ONTOLOGIES, ORGANISM

if TYPE_CHECKING:
    from lamindb import Artifact, Feature, Schema

_REGISTRIES = {column: known.registry for column, known in LABEL_COLUMNS.items()} | {ORGANISM: "Organism"}
_REGISTRY_OF_PREFIX = {name.lower(): known.registry for name, known in ONTOLOGIES.items() if known.registry}

logger = logging.getLogger(__name__)


class Annotator:
    """Labels of many artifacts. Created inside a transaction, and used in the same or another one."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        """Save the terms of all labels that the instance lacks, with all terms above them.

        Raises:
            LookupError: a label is not a term that can be saved: see `unlinkable`.
        """
        self._registries = _registries(outcomes)
        columns = {column for outcome in outcomes for column, ids in outcome.labels.items() if ids}
        for column in sorted(columns - set(self._registries)):
            logger.warning("bionty has no registry for the labels of %s, which are not linked", column)
        self._features = {column: _feature(column, registry) for column, registry in self._registries.items()}
        organisms = _bionty("Organism")
        self._records = {
            registry: _records(registry, self._ids(outcomes, registry))
            for registry in {*self._registries.values(), organisms}
        }
        # made here because a transaction that uses them may be rolled back and retried
        self._schemas = {linked: self._schema(linked) for linked in {*map(self._linked, outcomes)} if linked}

    def prepare(self, artifact: Artifact, outcome: Outcome) -> None:
        """Set the fields of an artifact before it is saved."""
        artifact.n_observations = outcome.n_cells_out
        artifact.schema = self._schemas.get(self._linked(outcome))

    def links(self, artifact: Artifact, outcome: Outcome) -> Iterator[Any]:
        """Links of a saved artifact to other records, for `save_links`."""
        for column, registry in self._registries.items():
            for label in outcome.labels.get(column, ()):
                yield self._link(artifact, registry, label, self._features[column])
        if outcome.organism:
            yield self._link(artifact, _bionty("Organism"), outcome.organism, None)
        if artifact.schema is not None:
            through: Any = type(artifact).schemas.through
            yield through(artifact_id=artifact.pk, schema_id=artifact.schema.slots["obs"].pk, slot="obs")

    def _link(self, artifact: Artifact, registry: Any, label: str, feature: Feature | None) -> Any:
        ends = {"artifact_id": artifact.pk, f"{registry.__name__.lower()}_id": self._records[registry][label]}
        return registry.artifacts.through(**ends, feature=feature)

    def _linked(self, outcome: Outcome) -> tuple[str, ...]:
        """Columns of obs whose labels are linked."""
        return tuple(sorted(set(outcome.labels) & set(self._features)))

    def _schema(self, columns: tuple[str, ...]) -> Schema:
        """The schema of files with these columns of obs; lamindb keeps one per set of columns."""
        import lamindb

        obs = lamindb.Schema(features=[self._features[column] for column in columns]).save()
        return lamindb.Schema(otype="AnnData", slots={"obs": obs}).save()

    def _ids(self, outcomes: Sequence[Outcome], registry: Any) -> set[str]:
        columns = [column for column, of_column in self._registries.items() if of_column is registry]
        ids = {label for outcome in outcomes for column in columns for label in outcome.labels.get(column, ())}
        if registry is _bionty("Organism"):
            ids |= {outcome.organism for outcome in outcomes if outcome.organism}
        return ids


def save_links(links: Iterable[Any]) -> None:
    """Write links of many artifacts at once."""
    of_table: dict[Any, list[Any]] = {}
    for link in links:
        of_table.setdefault(type(link), []).append(link)
    for table, its_links in of_table.items():
        table.objects.bulk_create(its_links, batch_size=1000)


def unlinkable(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """``{file: reason}`` of outcomes with a label that is not a term."""
    reasons: dict[str, str] = {}
    for column, registry in _registries(outcomes).items():
        wrong = unsavable(registry, {label for outcome in outcomes for label in outcome.labels.get(column, ())})
        for outcome in outcomes:
            found = [label for label in outcome.labels.get(column, ()) if label in wrong]
            if found:
                reasons[outcome.source] = f"obs[{column!r}]: {wrong[found[0]]}"
    return reasons


def _bionty(name: str) -> Any:
    import bionty

    return getattr(bionty, name)


def _registries(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """{column: registry} of columns with labels, sorted; those without a registry are left out.

    For columns that are not in the schema, the most frequent prefix of their labels decides.
    """
    prefixes: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for column, ids in outcome.labels.items():
            prefixes.setdefault(column, Counter()).update(label.partition(":")[0].lower() for label in ids)
    names = {
        column: _REGISTRIES.get(column) or _REGISTRY_OF_PREFIX.get(counts.most_common(1)[0][0])
        for column, counts in sorted(prefixes.items())
        if counts
    }
    return {column: _bionty(name) for column, name in names.items() if name is not None}


def _records(registry: Any, ids: Iterable[str]) -> dict[str, int]:
    """{id: primary key}; of several records with one id, the newest."""
    ids = sorted(ids)
    save_terms(registry, ids)
    found = registry.filter(ontology_id__in=ids).order_by("id").values_list("ontology_id", "id")
    return {str(term): int(key) for term, key in found}


def _feature(column: str, registry: Any) -> Feature:
    import lamindb

    found = lamindb.Feature.filter(name=column).first()
    return found or lamindb.Feature(name=column, dtype=registry.ontology_id).save()
