"""Pickles of plain values, such as a model's dictionary of tokens, read without running the code in them."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
"""Types of NumPy scalars, by the names that pickles give them."""
_BROKEN = (EOFError, ImportError, IndexError, LookupError, OverflowError, TypeError, ValueError, struct.error)
"""What `pickle` raises for bytes that are not a pickle, besides its own error."""


def read_plain_pickle(path: Path) -> Any:
    """The dictionary, list, tuple, string or number of a pickle.

    Nothing that the pickle names is imported or called, but for NumPy's scalars, which become Python numbers.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a pickle, or holds anything else; nothing of it was executed.
    """
    with path.open("rb") as file:
        try:
            value = _Plain(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} is not read: {error}") from error
        except (AttributeError, *_BROKEN) as error:
            raise ValueError(f"{path} is not a pickle: {error}") from error
    wrong = _not_plain(value)
    if wrong is not None:
        raise ValueError(f"{path} holds a {wrong}; expected dictionaries, lists and tuples of strings and numbers")
    return value


class _Plain(pickle.Unpickler):
    """Refuses every name in a pickle but those of NumPy's scalars, for which it has its own functions."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy", "dtype":
                return _scalar_type()
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar"):
                # Made anew, like the type: a pickle can set attributes of what it is given, here those of its own copy.
                return lambda dtype, raw: np.frombuffer(raw, dtype.numpy, count=1)[0].item()
            case "_codecs", "encode":  # how protocol 2 writes bytes
                return lambda text, encoding: text.encode("latin1" if encoding == "latin1" else "ascii")
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, and only dictionaries, lists and tuples of strings and numbers are "
            "safe to read; write it as .json"
        )


def _scalar_type() -> type:
    """A class that stands for ``numpy.dtype``, of numbers only."""

    class ScalarType:
        def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:  # noqa: ARG002, FBT002 (NumPy's)
            if name not in _NUMBERS:
                raise pickle.UnpicklingError(f"it holds NumPy values of type {name!r}, which are not numbers")
            self.numpy = np.dtype(name)

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.numpy = self.numpy.newbyteorder(state[1])

    return ScalarType


def _not_plain(value: Any) -> str | None:
    """The type of the first value that is neither a string, a number, nor a dictionary, list or tuple of these."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
        elif not (one is None or isinstance(one, str | int | float)):
            return type(one).__name__
    return None
