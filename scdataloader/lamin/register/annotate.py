"""What lamindb knows of a curated artifact: its number of cells, the labels in its columns of obs, its organism."""

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
    """Labels of many artifacts at once.

    To be made inside of a transaction; to be used inside of another, or the same.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        """Save the terms of all labels that are not in the instance yet, with all that is above them.

        Raises:
            LookupError: a label is no term that can be saved: see `unlinkable`.
        """
        self._registries = _registries(outcomes)
        labelled = {column for outcome in outcomes for column, ids in outcome.labels.items() if ids}
        for column in sorted(labelled - set(self._registries)):
            logger.warning("no registry of bionty is for the labels of %s, which are not linked", column)
        self._features = {column: _feature(column, registry) for column, registry in self._registries.items()}
        self._records = {registry: _records(registry, self._ids(outcomes, registry)) for registry in self._all()}
        # here, as what is saved later may be taken back and tried again
        self._schemas = {columns: self._schema(columns) for columns in {*map(self._columns, outcomes)} if columns}

    def prepare(self, artifact: Artifact, outcome: Outcome) -> None:
        """What is said in the artifact's own record, before it is saved."""
        artifact.n_observations = outcome.n_cells_out
        artifact.schema = self._schemas.get(self._columns(outcome))

    def links(self, artifact: Artifact, outcome: Outcome) -> Iterator[Any]:
        """What is said by links to other records, of an artifact that was saved; for `save_links`."""
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

    def _columns(self, outcome: Outcome) -> tuple[str, ...]:
        """Columns of obs with labels that are linked."""
        return tuple(sorted(set(outcome.labels) & set(self._features)))

    def _schema(self, columns: tuple[str, ...]) -> Schema:
        """What files with these columns of obs are valid by; lamindb keeps one for each set of columns."""
        import lamindb

        obs = lamindb.Schema(features=[self._features[column] for column in columns]).save()
        return lamindb.Schema(otype="AnnData", slots={"obs": obs}).save()

    def _all(self) -> set[Any]:
        return {*self._registries.values(), _bionty("Organism")}

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
    """{file: why} of outcomes with a label that there is no term for."""
    why: dict[str, str] = {}
    for column, registry in _registries(outcomes).items():
        wrong = unsavable(registry, {label for outcome in outcomes for label in outcome.labels.get(column, ())})
        for outcome in outcomes:
            found = [label for label in outcome.labels.get(column, ()) if label in wrong]
            if found:
                why[outcome.source] = f"obs[{column!r}]: {wrong[found[0]]}"
    return why


def _bionty(name: str) -> Any:
    import bionty

    return getattr(bionty, name)


def _registries(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """{column: registry} of columns of labels, sorted; one of the user's own goes by most of its ids, if by any."""
    labels: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for column, ids in outcome.labels.items():
            labels.setdefault(column, Counter()).update(label.partition(":")[0].lower() for label in ids)
    names = {}
    for column, prefixes in sorted(labels.items()):
        if not prefixes:
            continue
        name = _REGISTRIES.get(column) or _REGISTRY_OF_PREFIX.get(prefixes.most_common(1)[0][0])
        if name is not None:
            names[column] = name
    return {column: _bionty(name) for column, name in names.items()}


def _records(registry: Any, ids: Iterable[str]) -> dict[str, int]:
    """{id: primary key}; of several records with one id, of several releases, the newest."""
    ids = sorted(ids)
    save_terms(registry, ids)
    found = registry.filter(ontology_id__in=ids).order_by("id").values_list("ontology_id", "id")
    return {str(term): int(key) for term, key in found}


def _feature(column: str, registry: Any) -> Feature:
    import lamindb

    found = lamindb.Feature.filter(name=column).first()
    return found or lamindb.Feature(name=column, dtype=registry.ontology_id).save()
