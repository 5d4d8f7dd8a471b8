"""Names for what can be plugged in: kinds of data, samplers, collate functions, ontologies.

The package registers its own sources and ontologies here, in ``scdataloader/__init__.py``. Other packages call
`register`, or declare entry points in the groups ``scdataloader.sources``, ``.samplers``, ``.collates`` and
``.ontologies``::

    [project.entry-points."scdataloader.sources"]
    "toy://" = "toyplugin:open_toy"
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["source", "sampler", "collate", "ontology"]

_GROUPS: dict[str, str] = {
    "source": "scdataloader.sources",
    "sampler": "scdataloader.samplers",
    "collate": "scdataloader.collates",
    "ontology": "scdataloader.ontologies",
}
_registered: dict[tuple[str, str], Any] = {}


def register(kind: Kind, name: str, factory: Callable[..., Any] | str) -> None:
    """Let a name stand for something that is plugged in.

    Args:
        kind: "source": a `SourceOpener`. "sampler": a function without arguments that returns a `SamplingPlan`.
            "collate": a function without arguments that returns a `Collate`. "ontology": an `OntologyFactory`.
        name: For a source one of: a prefix of strings, which ends in ":" or "/" ("toy://"); a pattern of file names
            ("*.toy"); a pattern of folders that contain a file ("*/manifest.json"); "type:" and a pattern of the full
            names of Python classes ("type:anndata.AnnData"), subclasses included. For all else the name itself.
        factory: The factory, or its "module:attribute", imported at its first use.

    A name that entry points of other packages have as well is an error when the name is used.

    Raises:
        ValueError: the name is taken.
        TypeError: the kind is unknown, or ``factory`` is neither callable nor a "module:attribute".
    """
    if kind not in _GROUPS:
        raise TypeError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}")
    if factory.count(":") != 1 if isinstance(factory, str) else not callable(factory):
        raise TypeError(f"factory of {kind} {name!r} must be callable or 'module:attribute'; got {factory!r}")
    if _registered.get((kind, name), factory) != factory:
        raise ValueError(f"{kind} {name!r} is registered already, by {_registered[kind, name]!r}; choose another name")
    _registered[kind, name] = factory


def names(kind: Kind) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({*(name for of, name in _registered if of == kind), *_entry_points(kind)})


def load(kind: Kind, name: str) -> Any:
    """The factory of a registered name, imported if need be.

    Raises:
        LookupError: the name is not registered; the message suggests the nearest ones.
        ImportError: the factory cannot be imported; the message names the plug-in.
        ValueError: the name is registered twice.
    """
    points = _entry_points(kind).get(name, [])
    found = [_registered[kind, name]] if (kind, name) in _registered else []
    if len(found) + len(points) > 1:
        origins = [*(f"{factory!r} of scd.register" for factory in found), *map(_origin, points)]
        raise ValueError(
            f"{kind} {name!r} is registered twice, by {' and '.join(origins)}; uninstall or rename one of them"
        )
    if found:
        return _imported(kind, name, found[0]) if isinstance(found[0], str) else found[0]
    if not points:
        known = names(kind)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"registered: {', '.join(known) or 'none'}"
        raise LookupError(f"{kind} {name!r} is neither a registered name nor the path of a suitable class; {hint}")
    return _imported(kind, name, points[0].value)


def packages() -> set[str]:
    """Top-level packages of everything that is registered; this one is among them."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    modules = {point.value for kind in kinds for point in chain.from_iterable(_entry_points(kind).values())}
    modules |= {made if isinstance(made, str) else str(made.__module__) for made in _registered.values()}
    return {module.partition(":")[0].partition(".")[0] for module in modules}


@cache
def _entry_points(kind: str) -> dict[str, list[EntryPoint]]:
    """{name: entry points of that name}; more than one is a conflict, which is an error when the name is used."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=_GROUPS[kind]):
        found.setdefault(point.name, []).append(point)
    return found


def _origin(point: EntryPoint) -> str:
    package = "an unnamed package" if point.dist is None else str(point.dist.name)
    return f"{point.value} of {package}"


def _imported(kind: Kind, name: str, path: str) -> Any:
    module, _, attribute = path.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise ImportError(
            f"{kind} {name!r} cannot be imported from {path} ({type(error).__name__}: {error}); repair or uninstall "
            "its package"
        ) from error
