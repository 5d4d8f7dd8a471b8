"""Comparing, calling and naming what a check looks at."""

from __future__ import annotations

import os
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse

from scdataloader.types import CSRRows

_CHILD_SECONDS = 60
_N_THREADS = 4


@dataclass(frozen=True)
class Checked:
    """A plug-in under check; every message starts with its name."""

    name: str

    def require(self, holds: object, member: str, expected: str, got: object) -> None:
        """Raise an AssertionError that names the member, what was expected and what came back."""
        if not holds:
            raise AssertionError(f"{self.name}: {member}: expected {expected}; got {_short(got)}")

    def call(self, member: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a call into the plug-in; whatever it raises becomes an AssertionError."""
        try:
            return function(*arguments)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{self.name}: {member} raised {type(error).__name__}: {error}") from error

    def require_error(
        self, member: str, error: type[Exception], function: Callable[..., Any], *arguments: Any
    ) -> Exception:
        """The error of a call that has to raise ``error``."""
        expected = f"{error.__name__}"
        try:
            got = function(*arguments)
        except error as raised:
            return raised
        except Exception as other:
            text = f"{type(other).__name__}: {other}"
            raise AssertionError(f"{self.name}: {member}: expected {expected}; got {text}") from other
        raise AssertionError(f"{self.name}: {member}: expected {expected}; got {_short(got)}")

    def require_members(self, plugin: object, protocol: type) -> None:
        """Raise an AssertionError if a member of the protocol is missing."""
        members = [name for name in vars(protocol) if not name.startswith("_")]
        for name in members:
            found = self.call(name, hasattr, plugin, name)
            self.require(found, name, f"a member of that name, as {protocol.__name__} has", "none")
        if not members:
            self.require(callable(plugin), "__call__", f"a callable, as {protocol.__name__} is", type(plugin).__name__)

    def in_threads(self, member: str, function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        """Results of calls that several threads make at the same time."""
        with ThreadPoolExecutor(_N_THREADS) as pool:
            return list(pool.map(lambda argument: self.call(f"{member}, in a thread", function, argument), arguments))


def made(plugin: Any, protocol: type) -> list[Any]:
    """The plug-in; of a function or a class that makes it, two that are made the same way."""
    is_factory = isinstance(plugin, type) or (callable(plugin) and not isinstance(plugin, protocol))
    return [plugin(), plugin()] if is_factory else [plugin]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]} …"  # noqa: PLR2004


def in_fork(function: Callable[[], None]) -> str | None:
    """What is wrong with a call in a forked process; None if it returns there."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that other threads run is what is to be checked
        child = os.fork()
    if not child:
        _run_child(function, writing)
    os.close(writing)
    try:
        return _wait(child, reading)
    finally:
        os.close(reading)


def _run_child(function: Callable[[], None], writing: int) -> None:
    status = 1
    try:
        function()
        status = 0
    except BaseException as error:  # noqa: BLE001 (reported by the parent)
        os.write(writing, f"{type(error).__name__}: {error}".encode()[:4000])
    finally:
        os._exit(status)


def _wait(child: int, reading: int) -> str | None:
    deadline = time.monotonic() + _CHILD_SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else os.read(reading, 4000).decode() or f"exit code {code}"
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return f"no end after {_CHILD_SECONDS} seconds"


def global_random_state() -> bytes:
    """The states of the global random generators of Python, NumPy and torch."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.random.get_rng_state().numpy().tobytes()))  # noqa: NPY002


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seed the global random generators of Python, NumPy and torch; afterwards they are as before."""
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.random.set_rng_state(kept[2])


def difference(first: Any, second: Any, where: str = "") -> str | None:
    """Where two results differ in type, shape, dtype or any bit; None if they do not."""
    if type(first) is not type(second):
        return f"{where or 'result'}: {type(first).__name__} and {type(second).__name__}"
    if isinstance(first, Mapping):
        if list(first) != list(second):
            return f"{where or 'keys'}: {list(first)} and {list(second)}"
        pairs = ((first[key], second[key], f"{where}[{key!r}]") for key in first)
        return next(filter(None, (difference(*pair) for pair in pairs)), None)
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return f"{where or 'result'}: {len(first)} and {len(second)} entries"
        items = ((*pair, f"{where}[{at}]") for at, pair in enumerate(zip(first, second, strict=True)))
        return next(filter(None, (difference(*item) for item in items)), None)
    return None if _image(first) == _image(second) else f"{where or 'result'}: {_short(first)} and {_short(second)}"


def _image(value: Any) -> Any:
    """A value that equals another one's exactly when both are the same, NaN included."""
    if isinstance(value, torch.Tensor) and value.layout is not torch.strided:
        parts = (value.crow_indices(), value.col_indices(), value.values()) if _is_csr(value) else (value.to_dense(),)
        return value.layout, tuple(value.shape), [_image(part) for part in parts]
    if isinstance(value, torch.Tensor):
        detached = value.detach().cpu().contiguous()
        return str(value.dtype), tuple(value.shape), bytes(detached.reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, CSRRows):
        return value.n_genes, [_image(part) for part in (value.data, value.indices, value.indptr)]
    if issparse(value):
        return value.shape, [_image(part) for part in (value.tocoo().row, value.tocoo().col, value.tocoo().data)]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes()
    return pickle.dumps(value)


def _is_csr(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.sparse_csr
