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


LINE = 16
"""Numbers of 32 bits in a cache line."""
_LINE = ir.VectorType(ir.FloatType(), LINE)


@intrinsic
def move_line(typing_context: Any, source: Any, to: Any) -> Any:
    """Move 16 float32 from the address ``source`` to the address ``to``, a multiple of 64, and leave zeros behind.

    They go past the caches, which spares fetching the line that they replace: three times as fast, where what is
    written is not read again soon. Call `settle` before another thread may see them.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = builder.inttoptr(args[0], _LINE.as_pointer())
        values = builder.load(line)
        values.align = 4
        cleared = builder.store(ir.Constant(_LINE, [0.0] * LINE), line)
        cleared.align = 4
        stored = builder.store(values, builder.inttoptr(args[1], _LINE.as_pointer()))
        stored.align = CACHE_LINE
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return nb.void(nb.uintp, nb.uintp), generate


@intrinsic
def settle(typing_context: Any) -> Any:
    """Have everything that was written so far arrive before anything that is written from now on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return nb.void(), generate
