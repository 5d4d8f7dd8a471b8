"""Hooks: the user's functions from a block of cells, as AnnData, to AnnData."""

from __future__ import annotations

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
_IMPORT = re.compile(r"^\s*(?:from|import)\b.*", re.MULTILINE)
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class HookError(RuntimeError):
    """A hook, or its module, raised an error."""


def apply_hooks(names: Sequence[str], block: AnnData) -> AnnData:
    """Apply hooks to a block of cells, in order.

    Raises:
        LookupError: a module does not exist, or does not have the function.
        TypeError: a hook does not return an AnnData.
        ValueError: the name of a hook is not of the form ``module:function``.
        HookError: a hook raised an error.
    """
    for name in names:
        hook = load_hook(name)
        with _translate_errors(f"the hook {name!r}"):
            made = hook(block)
        if not isinstance(made, AnnData):
            raise TypeError(f"the hook {name!r} returned {type(made).__name__}; expected an AnnData")
        block = made
    return block


@cache
def load_hook(name: str) -> Hook:
    """Import the function that ``module:function`` names; the working directory is searched, too.

    Raises:
        LookupError: the module does not exist, or does not have the function.
        ValueError: the name is not of this form.
        HookError: the module raised an error.
    """
    _module_file(name)
    module, function = _parts(name)
    with _working_directory(), _translate_errors(f"the module of the hook {name!r}"):
        found = getattr(importlib.import_module(module), function, None)
    if found is None:
        raise LookupError(f"the module {module!r} of the hook {name!r} has no function {function!r}")
    hook: Hook = found
    return hook


def hook_files(name: str) -> list[Path]:
    """Source files of a hook, sorted: its module, or its whole package, and what these import from the folder beside.

    Of an installed hook, only its own module or package. Nothing is imported, except the packages of the module.

    Raises:
        LookupError: the module does not exist, or has no file.
        ValueError: the name is not of the form ``module:function``.
    """
    path, package = _module_file(name), name.partition(":")[0].partition(".")[0]
    root = next((folder for folder in path.parents if folder.name == package), None)
    is_module = path.name == f"{package}.py" or root is None
    files = {path} if is_module or root is None else set(root.rglob("*.py"))
    beside = path.parent if is_module or root is None else root.parent
    left = [] if str(beside) in _INSTALLED else list(files)
    while left:
        new = _imported(left.pop(), beside) - files
        files |= new
        left += new
    return sorted(files)


def _imported(path: Path, folder: Path) -> set[Path]:
    """Files of the modules and packages in a folder that are named in import statements of a file."""
    statements = _IMPORT.findall(path.read_text(encoding="utf-8", errors="replace"))
    files: set[Path] = set()
    for name in {name for statement in statements for name in re.findall(r"\w+", statement)}:
        package = folder / name
        if package.with_suffix(".py").is_file():
            files.add(package.with_suffix(".py"))
        if (package / "__init__.py").is_file():
            files.update(package.rglob("*.py"))
    return files


def _module_file(name: str) -> Path:
    module, _ = _parts(name)
    with _working_directory():
        try:
            spec = importlib.util.find_spec(module)
        except ImportError:
            spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise LookupError(f"no module {module!r} for the hook {name!r}, neither installed nor in {Path.cwd()}")
    return Path(spec.origin)


def _parts(name: str) -> tuple[str, str]:
    module, _, function = name.partition(":")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a hook; expected module:function, such as my_steps:fix_names")
    return module, function


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Turn any error of the user's code into a `HookError` with the place where it was raised."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise HookError(
            f"{what} raised {type(error).__name__} ({error}) in line {where.lineno} of {where.filename}"
        ) from error


@contextmanager
def _working_directory() -> Iterator[None]:
    """Search the working directory for modules, as ``python -m`` does and an installed command does not."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
