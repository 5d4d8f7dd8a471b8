"""The pages of the reference: one for each public name, and one for each room of the package that lists them.

They are written into ``docs/reference/api`` before Sphinx reads its sources.
"""

import inspect
import re
from dataclasses import is_dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from docutils.nodes import Element
from public import PublicName, public_names
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOMS = {
    "training": "DataModule and training",
    "loading": "Loader",
    "collection": "Collection and predictions",
    "sampling": "Sampling and splits",
    "batches": "Batches and tokens",
    "genes": "Genes",
    "labels": "Labels",
    "ontology": "Ontologies",
    "sources": "Sources",
    "store": "The store",
    "reports": "Reports",
    "curation": "Curation",
    "lamin": "lamindb",
    "models": "Models, losses and metrics",
    "integrations": "Integrations",
    "protocols": "Protocols",
    "registry": "Registered names",
    "testing": "Checks for plug-ins",
    "types": "Values between stages",
    "schema": "Label columns and organisms",
    "errors": "Errors",
}
"""{folder or file of the package: its title}, in the order of the reference."""

_DIRECTIVES = {"class": "autoclass", "exception": "autoexception", "function": "autofunction", "data": "autodata"}


def write_pages(app: Sphinx) -> None:
    """Write the pages, those that have changed only, and remove those of names that are gone."""
    folder = Path(app.srcdir) / "reference" / "api"
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    of_rooms = {room: list(names) for room, names in groupby(public_names(), lambda public: public.room)}
    for room in sorted(of_rooms, key=list(ROOMS).index):
        pages[f"{room}.rst"] = _room_page(ROOMS[room], of_rooms[room])
        pages |= {f"{public.path}.rst": _page(public) for public in of_rooms[room]}
    listed = "\n".join(f"   {room}" for room in ROOMS if room in of_rooms)
    pages["index.rst"] = f"{_title('Python')}.. toctree::\n   :maxdepth: 2\n\n{listed}\n"
    for old in folder.iterdir():
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        page = folder / name
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def _room_page(title: str, names: list[PublicName]) -> str:
    rows = "".join(
        f"   * - :py:obj:`{public.name} <{public.path}>`\n     - {_escaped(public.summary)}\n" for public in names
    )
    pages = "".join(f"   {public.path}\n" for public in names)
    return f"{_title(title)}.. list-table::\n   :widths: 30 70\n\n{rows}\n.. toctree::\n   :hidden:\n\n{pages}"


def _page(public: PublicName) -> str:
    members = "   :members:\n   :show-inheritance:\n" if public.kind == "exception" else ""
    members = "   :members:\n" if public.kind == "class" else members
    return f"{_title(public.name)}.. {_DIRECTIVES[public.kind]}:: {public.path}\n{members}"


def convert_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring, in place, into reStructuredText: tables of Markdown, and patterns such as "mouse/*"."""
    del app, name, options
    if what == "class" and is_dataclass(obj) and is_dataclass(obj.__base__) and "Args:" in lines:
        lines[lines.index("Args:") + 1 : lines.index("Args:") + 1] = _arguments(obj.__base__)
    # napoleon takes "a: b" at the beginning of other docstrings for a type
    converted: list[str] = [] if what in ("class", "exception", "function", "method") else ["..", ""]
    for is_table, group in groupby(map(_escaped, lines), lambda line: line.lstrip().startswith("|")):
        rows = list(group)
        converted += _list_table(rows) if is_table else rows
    lines[:] = converted


def _arguments(base: type) -> list[str]:
    """The lines on its arguments in the docstring of a dataclass, whose fields come first in those below it."""
    after = (inspect.getdoc(base) or "").partition("Args:\n")[2]
    return list(takewhile(lambda line: line.startswith(" "), after.splitlines()))


def _escaped(text: str) -> str:
    """A line in which stars in double quotes are shown as they are."""
    return re.sub(r'"[^"`]*"', lambda quoted: quoted[0].replace("*", r"\*"), text)


def _list_table(rows: list[str]) -> list[str]:
    margin = " " * (len(rows[0]) - len(rows[0].lstrip()))
    table = [f"{margin}.. list-table::", f"{margin}   :header-rows: 1", ""]
    for row in rows:
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        if not all(re.fullmatch(":?-+:?", cell) for cell in cells):
            table += [f"{margin}   {'*' if not i else ' '} - {cell}" for i, cell in enumerate(cells)]
    return [*table, ""]


def name_internal_type(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element) -> Element | None:
    """The name alone, for the type of an argument or a member that has no page because it is not public."""
    del app, env
    is_annotation = node["reftype"] == "class" and node.get("refdoc", "").startswith("reference/api/")
    return contnode if is_annotation else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", name_internal_type)
    app.connect("autodoc-process-docstring", convert_docstring, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
