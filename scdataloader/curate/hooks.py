"""The user's own steps: functions that take blocks of cells as AnnData, and give AnnData back."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from anndata import AnnData

Hook = Callable[[AnnData], AnnData]


def apply_hooks(names: Sequence[str], block: AnnData) -> AnnData:
    """A block of cells after each of the hooks, in order.

    Raises:
        LookupError: there is no such module, or it has no such function.
        TypeError: a hook gives something else.
        ValueError: the name of a hook has another form.
        Anything that a hook raises.
    """
    for name in names:
        made = load_hook(name)(block)
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
    """
    module_file(name)
    module, function = _parts(name)
    with _working_directory():
        found = getattr(importlib.import_module(module), function, None)
    if found is None:
        raise LookupError(f"the module {module!r} of the hook {name!r} has no function {function!r}")
    hook: Hook = found
    return hook


def module_file(name: str) -> Path:
    """The file of a hook's module, which is not imported for it, but for the packages that it is in.

    Raises:
        LookupError: there is no such module, or it has no file.
        ValueError: the name is not of the form ``module:function``.
    """
    module, _ = _parts(name)
    with _working_directory():
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise LookupError(f"there is no module {module!r} for the hook {name!r}, neither installed nor in {Path.cwd()}")
    return Path(spec.origin)


def _parts(name: str) -> tuple[str, str]:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"a hook is named as module:function, such as my_steps:fix_names, not {name!r}")
    return module, function


@contextmanager
def _working_directory() -> Iterator[None]:
    """A command that is installed does not look for modules where it is called."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        yield
    finally:
        sys.path.pop(0)
