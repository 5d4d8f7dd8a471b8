"""Filter lamindb artifacts and cells by label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.labels.encoder import label_text
from scdataloader.ontology.names import terms_in
from scdataloader.protocols import Source, Where
from scdataloader.runtime.messages import did_you_mean, shown, suggestion

if TYPE_CHECKING:
    import pandas as pd
    from lamindb import Artifact

BELOW = " and below"
"""After a label, includes all labels below it in its hierarchy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellFilter:
    """Selects cells that have one of some labels, alone or in a joint label, in one of some columns."""

    columns: tuple[str, ...]
    """Columns of obs; those that a file lacks are ignored, and without any, all of its cells pass."""
    labels: frozenset[str]
    """Ids and names."""

    def mask(self, source: Source) -> NDArray[np.bool_]:
        """``(n_obs,)`` mask of the cells that pass."""
        found = [column for column in self.columns if column in source.obs_columns]
        if not found:
            return np.ones(source.n_obs, dtype=np.bool_)
        obs = source.obs(found)
        rows: NDArray[np.bool_] = np.logical_or.reduce([self._in(obs[column]) for column in found])
        return rows

    def _in(self, values: pd.Series[Any]) -> NDArray[np.bool_]:
        column = values.astype("category")
        names = map(label_text, column.cat.categories)
        # the last entry is for the code -1 of a missing value
        lut = np.array([*(not self.labels.isdisjoint({name, *terms_in(name)}) for name in names), False])
        return lut[column.cat.codes.to_numpy()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """Requested labels of one registry."""

    registry: Any
    """bionty.CellType, or another registry that artifacts are linked to."""
    ids: frozenset[int]
    """Primary keys."""
    texts: frozenset[str]
    """Ids and names in obs."""

    def columns(self, artifacts: Sequence[Artifact]) -> dict[int, set[str]]:
        """{primary key: features} of artifacts that have one of the labels; a feature is a column of obs."""
        link = self.registry.artifacts.through
        label = next(field.attname for field in link._meta.fields if field.related_model is self.registry)  # noqa: SLF001 (public in Django)
        keys = {artifact.pk for artifact in artifacts}
        found: dict[int, set[str]] = {}
        pairs = link.objects.filter(**{f"{label}__in": self.ids}).values_list("artifact_id", "feature__name")
        for artifact, feature in pairs:
            if artifact in keys:
                found.setdefault(artifact, set()).update([feature] if feature else ())
        return found


def filter_artifacts(artifacts: Sequence[Artifact], where: Where) -> dict[int, tuple[CellFilter, ...]]:
    """{primary key: filters of its cells} of the artifacts that have all requested labels.

    A label that is linked through a feature belongs to the column of obs with the feature's name, by which cells are
    filtered. A label that is linked to an artifact as a whole belongs to all its cells.

    Raises:
        LookupError: a registry or label does not exist, or no artifact has the requested labels.
        TypeError: ``where`` is not a mapping to texts.
        ValueError: the labels of a registry have no hierarchy, and labels below another are requested.
    """
    _check_types(where)
    columns, texts = {}, {}
    for key, labels in where.items():
        requested = _labels(key, [labels] if isinstance(labels, str) else labels)
        columns[key], texts[key] = requested.columns(artifacts), requested.texts
        if artifacts and not columns[key]:
            raise LookupError(f"none of the {len(artifacts):,} artifacts has {labels!r} in its {key}; {_linked(key)}")
    found = {
        artifact.pk: tuple(
            CellFilter(columns=tuple(sorted(columns[key][artifact.pk])), labels=texts[key])
            for key in where
            if columns[key][artifact.pk]
        )
        for artifact in artifacts
        if all(artifact.pk in of_key for of_key in columns.values())
    }
    if artifacts and not found:
        raise LookupError(
            f"none of the {len(artifacts):,} artifacts has all of {dict(where)}, though some have each of them"
        )
    return found


def split_where(where: object) -> tuple[Where, Where]:
    """The part of ``where`` that names registries, and the rest, which can only name columns of obs.

    Raises:
        TypeError: ``where`` is not a mapping.
    """
    if not isinstance(where, Mapping):
        raise TypeError(_not_labels(where))
    known = _registries()
    of_registries = {key: labels for key, labels in where.items() if key in known}
    return of_registries, {key: values for key, values in where.items() if key not in known}


def no_registry(key: str, columns: Iterable[str] = ()) -> str:
    """The message about a key of ``where`` that is neither a registry nor one of the ``columns`` of obs."""
    known = _registries()
    return (
        f"artifacts of this lamindb instance have no registry {key!r}{did_you_mean(key, known)}; expected one of "
        f"{', '.join(sorted(known))}, or a column of obs{did_you_mean(key, columns)}"
    )


def _check_types(where: object) -> None:
    if not isinstance(where, Mapping) or not all(map(_are_labels, where.values())):
        raise TypeError(_not_labels(where))


def _not_labels(where: object) -> str:
    return f"where must map a registry to a label or several, such as {{'cell_types': 'T cell{BELOW}'}}; got {where!r}"


def _are_labels(labels: object) -> bool:
    if isinstance(labels, str):
        return True
    return isinstance(labels, Sequence) and len(labels) > 0 and all(isinstance(label, str) for label in labels)


def _labels(key: str, labels: Sequence[str]) -> _Labels:
    registry = _registry(key)
    ids: set[int] = set()
    for label in labels:
        matched = _matching(registry, key, label.removesuffix(BELOW))
        ids |= _with_descendants(registry, key, matched) if label.endswith(BELOW) else matched
    names = [field for field in ("ontology_id", "name") if hasattr(registry, field)]
    texts = {text for row in registry.filter(id__in=ids).values_list(*names) for text in row if text}
    return _Labels(registry=registry, ids=frozenset(ids), texts=frozenset(texts))


def _registries() -> dict[str, Any]:
    """{name: registry} of those that artifacts are linked to, such as ``cell_types``."""
    import lamindb
    from lamindb.models.can_curate import CanCurate

    return {
        field.name: field.related_model
        for field in lamindb.Artifact._meta.get_fields()  # noqa: SLF001 (public in Django)
        if field.many_to_many and issubclass(field.related_model, CanCurate) and _has_labels(field)
    }


def _registry(key: str) -> Any:
    known = _registries()
    if key not in known:
        raise LookupError(no_registry(key))
    return known[key]


def _has_labels(field: Any) -> bool:
    """Whether a field of artifacts holds their labels; other fields may lead to the same registry."""
    import lamindb

    through = getattr(getattr(field.related_model, "artifacts", None), "through", None)
    return hasattr(through, "feature") and getattr(lamindb.Artifact, field.name).through is through


def _matching(registry: Any, key: str, name: str) -> set[int]:
    """Records with this id, name or synonym, of all releases."""
    from django.db.models import Q

    fields = [field for field in ("ontology_id", "name", "uid", "scientific_name") if hasattr(registry, field)]
    for exact in ("exact", "iexact"):
        matches = Q()
        for field in fields:
            # scientific names in bionty have underscores
            matches |= Q(**{f"{field}__{exact}": name.replace(" ", "_") if field == "scientific_name" else name})
        found = set(registry.filter(matches).values_list("id", flat=True))
        if found:
            return found
    if hasattr(registry, "synonyms"):
        rows = registry.filter(synonyms__icontains=name).values_list("id", "synonyms")
        found = {number for number, synonyms in rows if name.casefold() in synonyms.casefold().split("|")}
        if found:
            return found
    names = [text for row in registry.filter().values_list(*fields[:2]) for text in row if text]
    raise LookupError(f"registry {key} of this lamindb instance has no {name!r}; {suggestion(name, names)}")


def _with_descendants(registry: Any, key: str, ids: set[int]) -> set[int]:
    if not hasattr(registry, "parents"):
        raise ValueError(f"the labels of {key} have no hierarchy; name them one by one, without {BELOW!r}")
    through = registry.parents.through
    name = registry.__name__.lower()
    children: dict[int, list[int]] = {}
    for child, parent in through.objects.values_list(f"from_{name}_id", f"to_{name}_id"):
        children.setdefault(parent, []).append(child)
    found, front = set(ids), list(ids)
    while front:
        new = set(children.get(front.pop(), ())) - found
        found |= new
        front += new
    return found


def _linked(key: str) -> str:
    """Some of the labels that artifacts have, for a message."""
    link = _registry(key).artifacts.through
    label = next(field.name for field in link._meta.fields if field.related_model is _registry(key))  # noqa: SLF001 (as above)
    names = sorted(set(link.objects.values_list(f"{label}__name", flat=True)))
    return f"labels in this instance: {shown(map(repr, names)) or 'none'}"
