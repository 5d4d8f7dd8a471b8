"""Arrays over memory that is given by its address: how one compiled loop reads from many mapped files."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

# numba types an intrinsic as if its callers passed the typing context.
intrinsic: Any = typed_intrinsic

CACHE_LINE = 64


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An address as what `numba.carray` takes. Nothing checks that memory lies there: that is the caller's duty."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return nb.types.voidptr(nb.uintp), generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address; an address that is not mapped is no error."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, bytes_at = ir.IntType(32), ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (bytes_at,), ir.FunctionType(ir.VoidType(), [bytes_at, i32, i32, i32])
        )
        read, keep, data_cache = ir.Constant(i32, 0), ir.Constant(i32, 2), ir.Constant(i32, 1)
        builder.call(function, [builder.inttoptr(args[0], bytes_at), read, keep, data_cache])
        return context.get_dummy_value()

    return nb.void(nb.uintp), generate


@nb.njit(nogil=True, cache=True)
def prefetch_bytes(address: int, n_bytes: int) -> None:
    """Ask for all cache lines of a stretch of memory."""
    for byte in range(0, n_bytes, CACHE_LINE):
        prefetch(np.uintp(address + byte))


@nb.njit(nogil=True, cache=True)
def prefetch_range(values: NDArray[Any], begin: int, end: int) -> None:
    """Ask for the cache lines of ``values[begin:end]``."""
    prefetch_bytes(values.ctypes.data + begin * values.itemsize, (end - begin) * values.itemsize)
