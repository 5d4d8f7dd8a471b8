"""Which artifacts of a lamindb instance, and which of their cells, have some labels."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scdataloader.ontology.names import terms_in
from scdataloader.protocols import Source, Where

if TYPE_CHECKING:
    import pandas as pd
    from lamindb import Artifact

BELOW = " and below"
"""After a label, it stands for all labels of its hierarchy that are below it, too."""

N_SHOWN = 5
"""Labels that a message names at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Having:
    """Cells that have one of some labels, perhaps with others in a joint label, in one of some columns."""

    columns: tuple[str, ...]
    """Columns of obs; those that a file does not have are passed over, and without any all of its cells are meant."""
    labels: frozenset[str]
    """What their values may be: ids and names."""

    def of(self, source: Source) -> NDArray[np.bool_]:
        """``(n_obs,)`` which of a source's cells these are."""
        found = [column for column in self.columns if column in source.obs_columns]
        if not found:
            return np.ones(source.n_obs, dtype=np.bool_)
        obs = source.obs(found)
        rows: NDArray[np.bool_] = np.logical_or.reduce([self._in(obs[column]) for column in found])
        return rows

    def _in(self, values: pd.Series[Any]) -> NDArray[np.bool_]:
        column = values.astype("category")
        names = map(str, column.cat.categories)
        # the last answers the code -1 of a missing value
        lut = np.array([*(not self.labels.isdisjoint({name, *terms_in(name)}) for name in names), False])
        return lut[column.cat.codes.to_numpy()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """Labels of one registry that are asked for."""

    registry: Any
    """bionty.CellType, or any other that artifacts are linked to."""
    ids: frozenset[int]
    """Their primary keys."""
    texts: frozenset[str]
    """What they are called in obs: by id, or by name."""

    def columns(self, artifacts: Sequence[Artifact]) -> dict[int, set[str]]:
        """Artifacts that have one of them, and the features, which columns of obs are, under which they do."""
        link = self.registry.artifacts.through
        label = next(field.attname for field in link._meta.fields if field.related_model is self.registry)  # noqa: SLF001 (Django's public name for it)
        keys = {artifact.pk for artifact in artifacts}
        found: dict[int, set[str]] = {}
        pairs = link.objects.filter(**{f"{label}__in": self.ids}).values_list("artifact_id", "feature__name")
        for artifact, feature in pairs:
            if artifact in keys:
                found.setdefault(artifact, set()).update([feature] if feature else ())
        return found


def chosen(artifacts: Sequence[Artifact], where: Where) -> list[tuple[Artifact, tuple[Having, ...]]]:
    """Those of the artifacts that have all that is asked for, in order, and what their cells have to have.

    A label that is linked through a feature is one of the column of obs with the feature's name: cells are chosen by
    it. A label that is linked to an artifact as a whole is one of all its cells.

    Raises:
        LookupError: artifacts have no such registry, it has no such label, or no artifact has what is asked for.
        TypeError: ``where`` is no mapping, or a label is no text.
        ValueError: a registry without a hierarchy is asked for what is below a label.
    """
    _check_types(where)
    columns, texts = {}, {}
    for key, labels in where.items():
        asked = _labels(key, [labels] if isinstance(labels, str) else labels)
        columns[key], texts[key] = asked.columns(artifacts), asked.texts
        if artifacts and not columns[key]:
            raise LookupError(f"none of the {len(artifacts):,} artifacts has {labels!r} among its {key}{_there(key)}")
    found = []
    for artifact in artifacts:
        if all(artifact.pk in of_key for of_key in columns.values()):
            having = [
                Having(columns=tuple(sorted(columns[key][artifact.pk])), labels=texts[key])
                for key in where
                if columns[key][artifact.pk]
            ]
            found.append((artifact, tuple(having)))
    if artifacts and not found:
        raise LookupError(f"no artifact of the {len(artifacts):,} has all of {dict(where)}, though each of it occurs")
    return found


def _check_types(where: object) -> None:
    if not isinstance(where, Mapping) or not all(map(_are_labels, where.values())):
        raise TypeError(
            f"where is a mapping from a registry to a label or several, such as {{'cell_types': 'T cell{BELOW}'}}; not "
            f"{where!r}"
        )


def _are_labels(labels: object) -> bool:
    if isinstance(labels, str):
        return True
    return isinstance(labels, Sequence) and len(labels) > 0 and all(isinstance(label, str) for label in labels)


def _labels(key: str, labels: Sequence[str]) -> _Labels:
    registry = _registry(key)
    ids: set[int] = set()
    for label in labels:
        name, below = (label.removesuffix(BELOW), True) if label.endswith(BELOW) else (label, False)
        matched = _matching(registry, key, name)
        ids |= _below(registry, key, matched) if below else matched
    names = [field for field in ("ontology_id", "name") if hasattr(registry, field)]
    texts = {text for row in registry.filter(id__in=ids).values_list(*names) for text in row if text}
    return _Labels(registry=registry, ids=frozenset(ids), texts=frozenset(texts))


def _registry(key: str) -> Any:
    """The registry that artifacts are linked to under this name, such as ``cell_types``."""
    import lamindb
    from lamindb.models.can_curate import CanCurate

    known = {
        field.name: field.related_model
        for field in lamindb.Artifact._meta.get_fields()  # noqa: SLF001 (Django's public name for it)
        if field.many_to_many and issubclass(field.related_model, CanCurate) and _is_of_labels(field)
    }
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise LookupError(
            f"artifacts of this lamindb instance have no registry {key!r}"
            f"{f' (did you mean {near[0]!r}?)' if near else ''}; expected one of {', '.join(sorted(known))}"
        )
    return known[key]


def _is_of_labels(field: Any) -> bool:
    """Whether a field of artifacts is the one by which they are labelled, of several that lead to a registry."""
    import lamindb

    through = getattr(getattr(field.related_model, "artifacts", None), "through", None)
    return hasattr(through, "feature") and getattr(lamindb.Artifact, field.name).through is through


def _matching(registry: Any, key: str, name: str) -> set[int]:
    """Records with this id, name or synonym; of several releases, all."""
    from django.db.models import Q

    fields = [field for field in ("ontology_id", "name", "uid", "scientific_name") if hasattr(registry, field)]
    for exact in ("exact", "iexact"):
        matches = Q()
        for field in fields:
            # bionty has scientific names with a bar
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
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(map(repr, near))}" if near else f"none of its {len(names):,} names is like it"
    raise LookupError(f"there is no {name!r} in the registry {key} of this lamindb instance; {hint}")


def _below(registry: Any, key: str, ids: set[int]) -> set[int]:
    """The records, and all that have them as parents, parents of parents, and so on."""
    if not hasattr(registry, "parents"):
        raise ValueError(f"the labels of {key} have no hierarchy; ask for them one by one, without {BELOW!r}")
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


def _there(key: str) -> str:
    """Some of the labels that there are, for an error."""
    link = _registry(key).artifacts.through
    label = next(field.name for field in link._meta.fields if field.related_model is _registry(key))  # noqa: SLF001 (as above)
    names = sorted(set(link.objects.values_list(f"{label}__name", flat=True)))
    more = f" and {len(names) - N_SHOWN:,} more" if len(names) > N_SHOWN else ""
    return f"; in this instance are {', '.join(map(repr, names[:N_SHOWN]))}{more}" if names else "; none has any"
