"""The public names of the package, read from its source without importing it.

A module is public if it defines ``__all__``, or if it is a file directly in the package: those hold what plug-ins need.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "scdataloader"


class PublicName(NamedTuple):
    """A class, function or value that users may import."""

    path: str
    """The shortest address that it can be imported from, such as ``scdataloader.Sampling``."""
    room: str
    """Folder or file of the package in which it is defined, such as ``sampling``."""
    kind: str
    """``class``, ``exception``, ``function`` or ``data``."""
    summary: str
    """First line of its docstring."""

    @property
    def name(self) -> str:
        """Last part of its address."""
        return self.path.rpartition(".")[2]


def public_names() -> list[PublicName]:
    """All public names, each once, by room and address."""
    trees = dict(_modules())
    found: dict[tuple[str, str], str] = {}
    for module, tree in trees.items():
        for name in _listed(module, tree):
            home = _home(trees, module, name)
            path = f"{module}.{name}"
            found[home] = min(path, found.get(home, path), key=lambda path: (path.count("."), path))
    names = [_described(trees[home], name, home, path) for (home, name), path in found.items()]
    return sorted(names, key=lambda public: (public.room, public.path.lower()))


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            name = ".".join(part for part in parts if part != "__init__")
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def _listed(module: str, tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    if module.count(".") != 1 or (PACKAGE / module.partition(".")[2]).is_dir():
        return []
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_"]


def _home(trees: dict[str, ast.Module], module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and its name there."""
    for node in ast.walk(trees[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(trees, node.module, alias.name)
    for node in trees[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULE_OF":
            home = ast.literal_eval(node.value).get(name)
            return next((path, name) for path in (f"{PACKAGE.name}.{home}", f"{module}.{home}") if path in trees)
    return module, name


def _described(tree: ast.Module, name: str, home: str, path: str) -> PublicName:
    room = home.split(".")[1]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            kind = "function" if isinstance(node, ast.FunctionDef) else "class"
            if kind == "class" and name.endswith("Error"):
                kind = "exception"
            return PublicName(path, room, kind, (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " "))
    return PublicName(path, room, "data" if name.isupper() else "class", "")  # a class that is made on first use
