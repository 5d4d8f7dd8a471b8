"""Ontologies by registered name, path or URL.

The ontologies of cellxgene-ontology-guide and the registries of bionty are registered in ``scdataloader/__init__.py``
like those of a plug-in, which declares an entry point in the group ``scdataloader.ontologies``, or calls::

    scdataloader.register("ontology", "TOY", lambda name: Ontology.from_obo("toy.obo"))
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from pathlib import Path

from scdataloader import registry
from scdataloader.ontology.ontology import Ontology
from scdataloader.ontology.readers import guide_name


def open_ontology(what: object) -> Ontology:
    """An ontology by what a user gives for it.

    Args:
        what: an `Ontology`; a registered name, in any case, such as ``"CL"`` or ``"bionty.CellType"``; or the path or
            URL of a file, as in `Ontology.from_obo`.

    Raises:
        LookupError: the name is not registered; the message shows the nearest.
        TypeError: ``what`` is nothing of these, or the factory of the name does not return an `Ontology`.
        ValueError: see `Ontology.from_guide` and `Ontology.from_obo`.
        OSError: the file does not exist or cannot be downloaded.
    """
    if isinstance(what, Ontology):
        return what
    if not isinstance(what, str | Path):
        raise TypeError(f"expected an Ontology, the registered name of one, or a file; got {what!r}")
    if is_file(what):
        return Ontology.from_obo(what)
    name = _registered_name(str(what)) or str(what)
    ontology = registry.load("ontology", name)(name)
    if not isinstance(ontology, Ontology):
        raise TypeError(
            f"the factory of the ontology {name!r} returned a {type(ontology).__name__}; expected a "
            "scdataloader.Ontology, as Ontology.from_obo or Ontology.from_table makes it"
        )
    return ontology


def is_file(what: str | Path) -> bool:
    """Whether an ontology is given by a path or URL, and not by a registered name."""
    if isinstance(what, Path):
        return True
    if _registered_name(what) is not None or what.startswith("bionty."):
        return False
    return "://" in what or Path(what).suffix != "" or Path(what).is_file()


@cache
def fingerprint(name: str) -> str:
    """Text that changes with the content of a registered ontology; those of the guide are not opened for it.

    Raises:
        LookupError: the name is not registered.
    """
    name = _registered_name(name) or name
    if registry.load("ontology", name) is open_guide:
        return f"{guide_name(name).lower()} {version('cellxgene-ontology-guide')}"
    return f"{name} {open_ontology(name).fingerprint}"


def open_guide(name: str) -> Ontology:
    """Factory of the ontologies of the guide."""
    return Ontology.from_guide(name)


def open_bionty(name: str) -> Ontology:
    """Factory of the registries of bionty, such as ``"bionty.CellType"``."""
    return Ontology.from_bionty(name.removeprefix("bionty."))


def _registered_name(text: str) -> str | None:
    """The registered name that ``text`` is, in any case."""
    names = registry.names("ontology")
    return text if text in names else {name.lower(): name for name in names}.get(text.lower())
