"""The user's own steps: functions that take blocks of cells as AnnData, and give AnnData back."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from anndata import AnnData

Hook = Callable[[AnnData], AnnData]

_INSTALLED = frozenset(sysconfig.get_paths().values())
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class HookError(RuntimeError):
    """A user's hook has raised something."""


def apply_hooks(names: Sequence[str], block: AnnData) -> AnnData:
    """A block of cells after each of the hooks, in order.

    Raises:
        LookupError: there is no such module, or it has no such function.
        TypeError: a hook gives something else.
        ValueError: the name of a hook has another form.
        HookError: a hook raises anything.
    """
    for name in names:
        hook = load_hook(name)
        with _told(f"the hook {name!r}"):
            made = hook(block)
        if not isinstance(made, AnnData):
            raise TypeError(f"the hook {name!r} has to give an AnnData, not {type(made).__name__}")
        block = made
    return block


@cache
def load_hook(name: str) -> Hook:
    """The function that ``module:function`` names; modules are also looked for in the working directory.

    Raises:
        LookupError: there is no such module, or it has no such function.
        ValueError: the name has another form.
        HookError: the module raises anything.
    """
    _module_file(name)
    module, function = _parts(name)
    with _working_directory(), _told(f"the module of the hook {name!r}"):
        found = getattr(importlib.import_module(module), function, None)
    if found is None:
        raise LookupError(f"the module {module!r} of the hook {name!r} has no function {function!r}")
    hook: Hook = found
    return hook


def hook_files(name: str) -> list[Path]:
    """The source that a hook is of, sorted: its module, or all of its package, and what it imports from beside these.

    Of what is installed only that itself. Nothing is imported for it, but the packages that the module is in.

    Raises:
        LookupError: there is no such module, or it has no file.
        ValueError: the name is not of the form ``module:function``.
    """
    path, package = _module_file(name), name.partition(":")[0].partition(".")[0]
    root = next((folder for folder in path.parents if folder.name == package), None)
    is_module = path.name == f"{package}.py" or root is None
    found = {path} if is_module or root is None else set(root.rglob("*.py"))
    beside = path.parent if is_module or root is None else root.parent
    left = [] if str(beside) in _INSTALLED else list(found)
    while left:
        new = set(_imported(left.pop(), beside)) - found
        found |= new
        left += new
    return sorted(found)


def _imported(path: Path, folder: Path) -> Iterator[Path]:
    """Files of modules and packages in a folder that a file imports."""
    for name in _imported_names(path, path.stat().st_mtime_ns):
        beside = folder / name
        if beside.with_suffix(".py").is_file():
            yield beside.with_suffix(".py")
        elif (beside / "__init__.py").is_file():
            yield from beside.rglob("*.py")


@cache
def _imported_names(path: Path, mtime_ns: int) -> frozenset[str]:  # noqa: ARG001 (it tells contents apart)
    """First parts of the names of modules."""
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except SyntaxError:  # whoever imports it will tell
        return frozenset()
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return frozenset(name.partition(".")[0] for name in names if name)


def _module_file(name: str) -> Path:
    module, _ = _parts(name)
    with _working_directory():
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:
            spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise LookupError(f"there is no module {module!r} for the hook {name!r}, neither installed nor in {Path.cwd()}")
    return Path(spec.origin)


def _parts(name: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    if not _NAME.fullmatch(name):
        raise ValueError(f"a hook is named as module:function, such as my_steps:fix_names, not {name!r}")
    return module, function


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Around the user's code, which may raise anything."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise HookError(
            f"{what} raised {type(error).__name__} ({error}) in line {where.lineno} of {where.filename}"
        ) from error


@contextmanager
def _working_directory() -> Iterator[None]:
    """A command that is installed does not look for modules where it is called."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
